"""Models in OpenVINO's own format run as they are, and others of that format are refused in a line."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support import exported
from support.commands import PROMPT, Result

pytest.importorskip("openvino")

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.openvino import checked
from dynx.runtime.backends.openvino import exported as backend
from dynx.runtime.loading import find, load_causal_lm, weights_kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., Result]

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def whole(tiny_folder: Path) -> Any:
    """The model that is exported."""
    return load_causal_lm(find(str(tiny_folder)), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def made(whole: Any, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported model with its tokenizer."""
    folder = tmp_path_factory.mktemp("exported") / "ir"
    exported.export(whole, folder)
    for file in tiny_folder.glob("*token*.json"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the exported model."""
    return shutil.copytree(made, tmp_path / "ir")


def test_logits_are_those_of_the_model(whole: Any, made: Path) -> None:
    """In one pass, in pieces, after a rollback, and for the last row alone."""
    loaded = backend.load(made, name="ir", dtype="float32", threads=1)
    ids = [5, 9, 14, 2, 77, 30, 31, 8]
    with torch.no_grad():
        want = whole(torch.tensor([ids])).logits[0]
    session = loaded.open()
    assert torch.allclose(session.forward(ids), want, atol=1e-3)
    session.rollback(3)
    session.forward([1, 2])
    session.rollback(3)
    assert torch.allclose(session.forward(ids[3:5]), want[3:5], atol=1e-3)
    assert torch.allclose(session.forward(ids[5:], keep=1), want[-1:], atol=1e-3)


def test_the_text_is_that_of_the_model(cli: Cli, made: Path, tiny_folder: Path) -> None:
    """Plain and with lookup, on the command line; the plan says what it is."""
    want = cli("generate", "-m", tiny_folder, PROMPT, "-n", 16, "--plain").out
    for words in (("--plain",), ("--draft", "lookup", "--verify")):
        found = cli("generate", "-m", made, PROMPT, "-n", 16, "--dtype", "float32", *words)
        assert (found.code, found.out) == (0, want), found.err
    said = json.loads(cli("generate", "-m", made, PROMPT, "--dry-run", "--json").out)["decisions"]
    assert said["backend"]["value"] == "openvino"
    assert said["weights"]["value"] == "float32"


def test_the_comparison_is_made_once_for_the_same_files(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights, another release or another processor are compared again; so is what didn't pass."""
    made: list[str | None] = []
    whole = backend._difference

    def difference(*arguments: Any) -> str | None:
        made.append(whole(*arguments))
        return made[-1]

    monkeypatch.setattr(backend, "_difference", difference)

    def compared(*words: str) -> int:
        before = len(made)
        found = cli("generate", "-m", folder, PROMPT, "-n", 4, "--dtype", "float32", *words)
        assert found.code == 0, found.err
        return len(made) - before

    assert [compared(), compared()] == [1, 0]
    with monkeypatch.context() as patched:
        patched.setattr(backend, "release", lambda: "1.2.3")
        assert [compared(), compared()] == [1, 0]
    with monkeypatch.context() as patched:
        patched.setattr(checked, "_processor", lambda: "another")
        assert [compared(), compared()] == [1, 0]
    weights = folder / "openvino_model.bin"
    data = bytearray(weights.read_bytes())
    data[-4:] = bytes(4)
    weights.write_bytes(data)
    assert [compared(), compared()] == [1, 0]
    assert set(made) == {None}

    monkeypatch.setattr(checked, "_processor", lambda: "a third")
    monkeypatch.setattr(backend, "_difference", lambda *_: "gives other logits")
    for _ in range(2):
        refused = cli("generate", "-m", folder, PROMPT, "-n", 4, "--dtype", "float32")
        assert refused.code == 1
        assert "gives other logits" in refused.err


def test_what_contradicts_the_model_is_refused(cli: Cli, made: Path, tmp_path: Path) -> None:
    """Another backend, another quantization, adapters."""
    for words, said in (
        (("--backend", "torch"), "--backend torch: ir is an OpenVINO model, which only OpenVINO runs"),
        (("--quantize", "int8"), "--quantize int8: ir is an OpenVINO model whose weights are stored as float32"),
    ):
        refused = cli("generate", "-m", made, PROMPT, *words)
        assert refused.code == 2
        assert said in refused.err
    adapter = tmp_path / "tone"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    refused = cli("generate", "-m", made, PROMPT, "--adapter", adapter)
    assert "ir is an OpenVINO model, into which no adapter can be folded" in refused.err


def test_bad_folders_are_named(cli: Cli, folder: Path, whole: Any, tmp_path: Path) -> None:
    """No tokenizer, a torn file, no weights, no state, no config."""
    weights = folder / "openvino_model.bin"
    data = weights.read_bytes()
    for change, said in (
        (lambda: [file.unlink() for file in folder.glob("*token*.json")], "ir has no tokenizer"),
        (lambda: weights.write_bytes(data[:-40]), "openvino_model.bin is truncated"),
        (weights.unlink, "has no openvino_model.bin"),
        (lambda: (folder / "config.json").unlink(), "has no config.json"),
    ):
        change()
        refused = cli("generate", "-m", folder, PROMPT)
        assert (refused.code, refused.out) == (1, "")
        assert said in refused.err
    other = tmp_path / "other"
    exported.export(whole, other, state=False)
    with pytest.raises(UnsupportedModelError, match="other is an OpenVINO model of another kind"):
        backend.load(other, name="other", dtype="float32", threads=1)


def test_the_kind_of_weights_is_read_from_the_graph(folder: Path) -> None:
    """By most of the numbers."""
    assert weights_kind(folder) == "float32"
    graph = folder / "openvino_model.xml"
    graph.write_text(graph.read_text().replace('element_type="f32"', 'element_type="u4"'))
    assert weights_kind(folder) == "int4"
