"""Fixtures of the runtime's tests."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from dynx import shipped

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tokenizer_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a shipped model's tokenizer, and an empty cache."""
    monkeypatch.setenv("DYNX_CACHE_DIR", str(tmp_path / "cache"))
    source = shipped.folder("story")
    assert source is not None
    out = tmp_path / "model"
    out.mkdir()
    for file in source.iterdir():
        if file.is_file() and file.suffix == ".json":
            shutil.copy(file, out)
    return out
