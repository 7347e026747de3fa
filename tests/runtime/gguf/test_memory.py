"""Loading a GGUF file takes little more memory than the unpacked model: no copy in float32, and no second one beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support import gguf_files
from support.commands import PROMPT, Result, finish, spawn, train_tokenizer

from dynx.runtime.gguf.header import read_header

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("gguf")

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]

MEASURED = """
import json, resource, sys
from dynx.cli.main import run
code = run(sys.argv[1:])
sys.stderr.write("\\n" + json.dumps([code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""
MAX_SHARE = 1.5
"""Of the unpacked model in bfloat16."""


def command(model: Path, backend: str) -> tuple[object, ...]:
    """Return what is run."""
    return ("generate", "-m", model, PROMPT, "-n", 1, "--plain", "--backend", backend)


def peak(model: Path, backend: str) -> int:
    """Return the most bytes that a command on the model had in memory."""
    result = finish(spawn(*command(model, backend), code=MEASURED))
    code, found = json.loads(result.err.splitlines()[-1])
    assert code == 0, result.err
    return int(found)


def unpacked(model: Path) -> int:
    """Return the bytes of the model's values in 16 bits."""
    return 2 * sum(read_header(model).types.values())


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_peak_memory_of_a_load(cli: Callable[..., Result], tmp_path: Path, backend: str) -> None:
    """Against a model of the same kind that is next to nothing; on OpenVINO from the second start on."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    tokenizer = train_tokenizer()
    large = gguf_files.write(
        tmp_path / "large.gguf", "qwen3", "Q4_1", layers=8, width=1024, inner=2816, tokenizer=tokenizer
    )
    small = gguf_files.write(tmp_path / "small.gguf", "qwen3", "Q4_1", layers=2, tokenizer=tokenizer)
    for model in (large, small) if backend == "openvino" else ():
        assert cli(*command(model, backend)).code == 0
    most, least = peak(large, backend), peak(small, backend)
    share = (most - least) / (unpacked(large) - unpacked(small))

    assert unpacked(large) > 150 << 20  # what differs from run to run is small beside it
    assert share <= MAX_SHARE
