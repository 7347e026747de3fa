"""The entry points that pyproject.toml declares, for processes in which dynx isn't installed but found on the path."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

from support.commands import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def declare(folder: Path) -> Path:
    """Write a distribution's metadata with all of them into `folder`, to be put on the path."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    made = folder / "declared_by_dynx-0.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: declared-by-dynx\nVersion: 0\n", encoding="utf-8")
    lines = [
        line for group, found in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in found.items()))
    ]
    (made / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
