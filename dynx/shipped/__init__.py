"""The models that come with dynx: ordinary Hugging Face folders beside this file, one per name."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
MARKS = ("config.json", "model_index.json")


ENDINGS = {"generate": "ForCausalLM", "classify": "Classification"}
"""How the architectures that a task takes are called."""


def names(task: str | None = None) -> list[str]:
    """Names of the shipped models; of those alone that `task` takes ("generate", "classify")."""
    found = sorted(p.name for p in HERE.iterdir() if any((p / mark).is_file() for mark in MARKS))
    return [name for name in found if task is None or _takes(task, HERE / name)]


def by_task() -> dict[str, tuple[str, ...]]:
    """Names of the shipped models of each task."""
    return {task: tuple(names(task)) for task in ENDINGS}


def _takes(task: str, model: Path) -> bool:
    config = model / MARKS[0]
    architectures = json.loads(config.read_text(encoding="utf-8")).get("architectures", []) if config.is_file() else []
    return any(name.endswith(ENDINGS[task]) for name in architectures)


def folder(name: str) -> Path | None:
    """The folder of a shipped model, or None."""
    return HERE / name if name in names() else None
