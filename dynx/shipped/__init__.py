"""The models that come with dynx: ordinary Hugging Face folders beside this file, one per name."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
MARKS = ("config.json", "model_index.json")


def names() -> list[str]:
    """Names of the shipped models."""
    return sorted(p.name for p in HERE.iterdir() if any((p / mark).is_file() for mark in MARKS))


def folder(name: str) -> Path | None:
    """The folder of a shipped model, or None."""
    return HERE / name if name in names() else None
