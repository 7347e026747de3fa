"""From what a user typed to a GGUF file: which of a folder's files, and which of a hub repository's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dynx.errors import ModelError
from dynx.runtime.gguf.header import PART

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SUFFIX = ".gguf"
BESIDE = re.compile(r"(mmproj|imatrix)|.*[-._](mmproj|imatrix)", re.IGNORECASE)
"""How files begin that lie beside a language model: projectors of pictures and statistics of quantization."""

HUB_FILE = re.compile(rf"(?P<id>[\w.-]+/[\w.-]+)(?::(?P<which>[\w./-]+)|/(?P<path>[\w./-]+\{SUFFIX}))", re.ASCII)
"""A hub id with a file of it: `owner/name:FILE.gguf`, `owner/name:Q4_K_M`, `owner/name/folder/FILE.gguf`."""


def models_in(names: Sequence[str]) -> list[str]:
    """Pick the language models among relative file names: a split one counts once, by its first part."""
    found = []
    for name in sorted(names):
        file = name.rpartition("/")[2]
        part = PART.fullmatch(file)
        if file.endswith(SUFFIX) and not BESIDE.match(file) and (part is None or int(part["part"]) == 1):
            found.append(name)
    return found


def choose(names: Sequence[str], which: str | None, where: str, typed: str) -> str:
    """Pick the one file that `which` names: by its path, or by the quantization in its name; any where it is None.

    `typed` is how the user names the folder, for the hint. Raises ModelError where none or several fit.
    """
    found = models_in(names)
    if which is not None:
        wanted = which.lower().removesuffix(SUFFIX)
        exact = [name for name in found if name.lower().removesuffix(SUFFIX) in (wanted, f"{wanted}-00001-of")]
        word = re.compile(rf"(^|[-._/]){re.escape(wanted)}([-._/]|$)")
        fitting = exact or [name for name in found if word.search(name.lower().removesuffix(SUFFIX))]
        if not fitting:
            raise ModelError(f"{where} has no GGUF file {which}", hint=_listed(found))
        found = fitting
    if not found:
        raise ModelError(f"{where} has no GGUF file of a language model")
    if len(found) > 1:
        raise ModelError(f"{where} has {len(found)} models: {', '.join(found)}", hint=f"choose one: {typed}{found[0]}")
    return found[0]


def _listed(names: Sequence[str]) -> str | None:
    return f"it has {', '.join(names)}" if names else None


def names_in(folder: Path) -> list[str]:
    """List the GGUF files in a folder and in its subfolders, one level down, by relative name."""
    found = [*folder.glob(f"*{SUFFIX}"), *folder.glob(f"*/*{SUFFIX}")]
    return [path.relative_to(folder).as_posix() for path in found]
