"""The files under a folder, through symbolic links to folders, and round no loop.

People share encoders between pipelines, and pictures between data sets, by links. `os.walk` and `Path.rglob` pass over
linked folders in silence, and `os.walk(followlinks=True)` never comes back from a loop.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_NESTED_LINKS = 4
"""Links to folders inside one another that are followed: n folders linked to each other hold n! paths without a loop."""


def walk(folder: Path, keep: Callable[[Path], bool] = lambda _: True) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder below `folder`, itself first, as a path relative to it, with the sorted names of its files.

    Left out is what `keep` refuses by its relative path, folders with all that is in them. A folder that lies inside
    itself by way of a link is entered once. Broken links count as files. Raises OSError for what can't be listed.
    """
    yield from _walk(folder, Path(), keep, (os.path.realpath(folder),), 0)


def _walk(
    folder: Path, inside: Path, keep: Callable[[Path], bool], above: tuple[str, ...], links: int
) -> Iterator[tuple[Path, list[str]]]:
    """`above` are the real paths of the folders entered on the way, `links` how many of them were linked."""
    folders: list[tuple[str, bool]] = []
    files: list[str] = []
    with os.scandir(folder / inside) as entries:
        for entry in entries:
            if keep(inside / entry.name):
                if _leads_to_a_folder(entry):
                    folders.append((entry.name, entry.is_symlink()))
                else:
                    files.append(entry.name)
    yield inside, sorted(files)
    for name, linked in sorted(folders):
        real = os.path.realpath(folder / inside / name)
        if real not in above and links + linked <= MAX_NESTED_LINKS:
            yield from _walk(folder, inside / name, keep, (*above, real), links + linked)


def _leads_to_a_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
