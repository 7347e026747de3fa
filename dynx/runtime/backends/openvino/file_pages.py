"""Gives the memory of a mapped file back once what it holds was copied from it.

OpenVINO maps the file of a kept model and, in the first passes, repacks its weights into memory of its own. The mapped pages
would count as this process's memory from then on: 0.26 GB of SmolLM2-135M's 0.84. What is read again, such as rows of an
embedding, comes from the system's cache of the file.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

DONT_NEED = 4
"""Linux's `MADV_DONTNEED`: the pages are read from the file again when they are used."""


def give_back(file: Path) -> None:
    """Give the pages of mappings of `file` back, where they can only be read. Does nothing on systems other than Linux."""
    if sys.platform != "linux":
        return
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return
    name = str(file.resolve())
    for place in (line.split(maxsplit=5) for line in maps.splitlines()):
        if len(place) == 6 and place[5] == name and "w" not in place[1]:
            begin, end = (int(number, 16) for number in place[0].split("-"))
            advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), DONT_NEED)
