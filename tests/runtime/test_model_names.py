"""Models are found by every name that people type, and both spellings of a precision count."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from dynx.errors import ModelError
from dynx.runtime.loading import Source, find, stored_dtype
from dynx.runtime.model_names import hub_id, snapshot

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_addresses_and_names_of_the_cache() -> None:
    """Of the model's page, with and without what follows; other names stay."""
    for name in (
        "owner/name",
        "https://huggingface.co/owner/name",
        "https://huggingface.co/owner/name/",
        "https://huggingface.co/owner/name/tree/main",
        "https://huggingface.co/owner/name/blob/main/config.json",
        "https://huggingface.co/owner/name?library=transformers",
        "huggingface.co/owner/name",
        "https://hf.co/owner/name",
        "models--owner--name",
    ):
        assert hub_id(name) == "owner/name"
    assert hub_id("models--gpt2") == hub_id("gpt2") == "gpt2"
    assert hub_id("./owner/name") == "./owner/name"
    with pytest.raises(ModelError, match="isn't its main branch"):
        hub_id("https://huggingface.co/owner/name/tree/fp16")


@pytest.mark.usefixtures("alone")
def test_folders_of_the_cache(tiny_folder: Path, tmp_path: Path) -> None:
    """The repository's folder is its main branch's snapshot, else the newest; a snapshot is itself; both have the hub's name."""
    repository = tmp_path / "models--owner--name"
    folder = repository / "snapshots" / COMMIT
    shutil.copytree(tiny_folder, folder)
    assert snapshot(tmp_path) is None
    assert snapshot(repository) == ("owner/name", folder)
    other = repository / "snapshots" / ("f" * 40)
    other.mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in (repository, f"{repository}/", folder):
        assert find(str(name)) == Source("owner/name", folder, "folder")
    shutil.rmtree(repository / "snapshots")
    (repository / "snapshots").mkdir()
    with pytest.raises(ModelError, match="holds no snapshot of owner/name"):
        find(str(repository))


@pytest.mark.parametrize(
    ("config", "want"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16"}, "float16"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({}, None),
    ],
)
def test_both_spellings_of_the_precision(config: dict[str, object], want: str | None, tmp_path: Path) -> None:
    """Old and new, in the model's configuration or in its text part's."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stored_dtype(Source("x", tmp_path, "folder")) == want
