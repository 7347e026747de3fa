"""What is mapped of a file leaves memory once it was copied, and reads the same afterwards."""

from __future__ import annotations

import importlib.util
import mmap
import os
import re
import sys
from pathlib import Path

import pytest
from support.models import VOCAB, tiny

if sys.platform != "linux":
    pytest.skip("only Linux tells which pages are in memory", allow_module_level=True)

from dynx.runtime.backends.openvino.file_pages import give_back

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SIZE = 1 << 20


def resident(file: Path) -> int:
    """KiB of this process's mappings of a file that are in memory."""
    count, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            here = line.endswith(f" {file.resolve()}")
        elif here and line.startswith("Rss:"):
            count += int(line.split()[1])
    return count


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of a mebibyte."""
    path = tmp_path / "a file"
    path.write_bytes(os.urandom(SIZE))
    return path


def test_pages_that_can_only_be_read_are_given_back(file: Path) -> None:
    """They read the same afterwards."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == file.read_bytes()
        assert resident(file) == SIZE // 1024
        give_back(file)
        assert resident(file) == 0
        assert mapped[:] == file.read_bytes()


def test_what_was_written_over_a_mapping_stays(file: Path) -> None:
    """A private copy isn't in the file."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:5] = b"dynx!"
        give_back(file)
        assert mapped[:5] == b"dynx!"


def test_a_file_that_is_not_mapped_is_none(file: Path) -> None:
    """Nothing happens, nor where there is no such file."""
    give_back(file)
    give_back(file.with_name("other"))


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO isn't installed")
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_kept_model_leaves_memory_after_its_first_pass(precision: str, tmp_path: Path) -> None:
    """The plugin has weights of its own by then; logits stay the same."""
    from dynx.runtime.backends.openvino import decoder
    from dynx.runtime.backends.openvino import kept as models

    text = [(11 * i * i + 5 * i + 3) % VOCAB for i in range(20)]
    made = models.load(tiny("llama"), precision=precision, threads=1, cache=tmp_path)  # type: ignore[arg-type]
    want = made.open().forward(text)
    kept = models.reload(precision=precision, threads=1, cache=tmp_path)  # type: ignore[arg-type]
    assert kept is not None
    assert kept.folder is not None
    del made
    first = kept.open().forward(text)
    assert resident(kept.folder / decoder.WEIGHTS_FILE) == 0
    assert bool((first == want).all())
    assert bool((kept.open().forward(text) == want).all())
