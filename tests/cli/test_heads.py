"""Draft heads at the command line: found in the model's folder, named, refused; the text is plain decoding's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file
from support.commands import train_tokenizer
from support.heads import MEDUSA, medusa_weights, write_head, write_with_mtp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

ARGUMENTS = ("generate", "the cat sat", "-n", "24")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid model with its own multi-token prediction and a tokenizer."""
    folder = write_with_mtp(tmp_path_factory.mktemp("models") / "hybrid", "qwen3_5_text", vocab=400)
    train_tokenizer(400).save_pretrained(folder)
    return folder


def test_auto_finds_the_models_own_head(cli: Callable[..., Result], model: Path) -> None:
    """`auto` drafts with the multi-token prediction in the model's folder, and the text is plain decoding's."""
    plain = cli(*ARGUMENTS, "-m", str(model), "--draft", "none")
    for draft in ("auto", "mtp"):
        found = cli(*ARGUMENTS, "-m", str(model), "--draft", draft, "--explain")
        assert found.code == 0, found.err
        assert plain.out.strip() in found.out + found.err
        assert "head hybrid/mtp (its own multi-token prediction)" in found.out + found.err


def test_a_torn_head_is_ignored_with_one_warning(cli: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    """A multi-token prediction with a tensor missing is left out under `auto`, and is an error where it is asked for."""
    folder = tmp_path / "torn"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    state = load_file(folder / "model.safetensors")
    del state["mtp.pre_fc_norm_hidden.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    plain = cli(*ARGUMENTS, "-m", str(model), "--draft", "none")

    found = cli(*ARGUMENTS, "-m", str(folder))
    assert (found.code, found.out) == (0, plain.out)
    assert found.err.count("torn/mtp is ignored: ") == 1
    assert "mtp.pre_fc_norm_hidden.weight" in found.err
    asked = cli(*ARGUMENTS, "-m", str(folder), "--draft", "mtp")
    assert asked.code == 1
    assert "mtp.pre_fc_norm_hidden.weight" in asked.err


def test_heads_that_cannot_draft_are_named(cli: Callable[..., Result], tiny_folder: Path, tmp_path: Path) -> None:
    """A head for another model, one of another format and a head that isn't there are each refused in a line."""
    for config, said in (
        (MEDUSA, "isn't for this model: its heads have shape (64, 32)"),
        ({"architectures": ["DFlashDraftModel"]}, "is a DFlash drafter"),
    ):
        folder = write_head(tmp_path / said.split()[-1], dict(config), medusa_weights(), "medusa_lm_head")
        found = cli(*ARGUMENTS, "-m", str(tiny_folder), "--draft", str(folder))
        assert (found.code, found.out) == (1, "")
        assert f"{folder.name} {said}" in found.err
        assert json.loads((folder / "config.json").read_text()) == config
    found = cli(*ARGUMENTS, "-m", str(tiny_folder), "--draft", "mtp")
    assert found.code == 2
    assert "has no multi-token prediction" in found.err
