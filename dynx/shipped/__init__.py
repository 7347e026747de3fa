"""The models that come with dynx: ordinary Hugging Face folders beside this file, one per name."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
CONFIG, PIPELINE = "config.json", "model_index.json"
MARKS = (CONFIG, PIPELINE)


ENDINGS = {"generate": "ForCausalLM", "classify": "Classification"}
"""How the architectures that a task takes are called; dynx draw takes pipelines, which have none."""

TASKS = (*ENDINGS, "draw")


def names(task: str | None = None) -> list[str]:
    """Names of the shipped models; of those alone that `task` takes ("generate", "classify", "draw")."""
    found = sorted(p.name for p in HERE.iterdir() if any((p / mark).is_file() for mark in MARKS))
    return [name for name in found if task is None or _takes(task, HERE / name)]


def by_task() -> dict[str, tuple[str, ...]]:
    """Names of the shipped models of each task."""
    return {task: tuple(names(task)) for task in TASKS}


def _takes(task: str, model: Path) -> bool:
    if task == "draw":
        return (model / PIPELINE).is_file()
    config = model / CONFIG
    architectures = json.loads(config.read_text(encoding="utf-8")).get("architectures", []) if config.is_file() else []
    return any(name.endswith(ENDINGS[task]) for name in architectures)


def folder(name: str) -> Path | None:
    """Return the folder of a shipped model, or None."""
    return HERE / name if name in names() else None
