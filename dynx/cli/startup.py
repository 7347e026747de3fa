"""Measures the time between the start of the process and its first token, label or picture, for -vv.

A stage begins where it is marked and lasts until the next one, so the parts add up to the whole. What happens before dynx runs
is counted where the system says when the process began.
"""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

STAT_FILE = Path("/proc/self/stat")
START_TIME_FIELD = 19
"""Position of `starttime` among the fields after the name, in clock ticks since boot: proc(5)."""


def process_age(stat: Path = STAT_FILE) -> float | None:
    """Return the seconds since this process started, to about 10 ms; None where the system doesn't tell."""
    try:
        ticks = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[START_TIME_FIELD])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    return age if age >= 0 else None


class Startup:
    """The stages of one process up to its first product; `age` is the age of the process in seconds."""

    def __init__(self, age: float | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._marks: list[tuple[str, float]] | None = [] if age is None else [("python and dynx", clock() - age)]
        self.mark("deciding")

    def mark(self, stage: str) -> None:
        """Begin a stage."""
        if self._marks is not None:
            self._marks.append((stage, self._clock()))

    def end(self, product: str) -> str | None:
        """End at the first product: return the stages as one line; None for later products."""
        if self._marks is None:
            return None
        marks, self._marks = [*self._marks, ("", self._clock())], None
        parts: dict[str, float] = {}
        for (stage, begun), (_, ended) in pairwise(marks):
            parts[stage] = parts.get(stage, 0.0) + ended - begun
        listed = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in parts.items())
        return f"{product} after {marks[-1][1] - marks[0][1]:.2f} s: {listed}"
