"""The spellings in which people name a model: a hub id, the address of its page, a folder, or a folder of the hub's cache."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dynx.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+(?:/[\w.-]+)?)(/.*)?")
"""The address of a model's page: the id, and what follows it."""

MAIN_BRANCH = re.compile(r"/?|/(tree|blob|resolve)/main(/.*)?|/discussions.*|[?#].*")
"""What may follow the id in the address of a page that shows the main branch."""

CACHED = re.compile(r"models--([\w.-]+?)(?:--([\w.-]+))?")
"""A folder of the hub's cache: one per repository."""


def hub_id(name: str) -> str:
    """Return the hub id in the address of a page or in a name of the hub's cache; other names as they are.

    Raises ModelError for a page that shows another revision than the main branch.
    """
    if page := PAGE.fullmatch(name.partition("?")[0].partition("#")[0]):
        if not MAIN_BRANCH.fullmatch(page[2] or ""):
            raise ModelError(
                f"{name} is a page of {page[1]} that isn't its main branch",
                hint=f"{page[1]} is the model; or download it",
            )
        return page[1]
    return cached_id(name) or name


def cached_id(name: str) -> str | None:
    """Return the hub id that the name of a folder in the hub's cache stands for, or None."""
    found = CACHED.fullmatch(name)
    return "/".join(part for part in found.groups() if part) if found else None


def snapshot(folder: Path) -> tuple[str, Path] | None:
    """Return (hub id, folder of the files) where `folder` is one of the hub's cache or of a snapshot in it, or None.

    A repository's folder stands for the main branch, else for its newest snapshot. Raises ModelError where it holds none.
    """
    if (known := cached_id(folder.name)) and (folder / "snapshots").is_dir():
        main = folder / "refs" / "main"
        try:
            named = folder / "snapshots" / main.read_text(encoding="utf-8").strip()
        except OSError:
            named = None
        if named is not None and named.is_dir():
            return known, named
        there = sorted((p for p in (folder / "snapshots").iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        if not there:
            raise ModelError(f"{folder} holds no snapshot of {known}", hint=f"{known} downloads it")
        return known, there[-1]
    if folder.parent.name == "snapshots" and (known := cached_id(folder.parent.parent.name)):
        return known, folder
    return None
