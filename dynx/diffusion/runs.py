"""Choose by the number of pictures at hand what a run draws with: a backend that starts late has to save that time again.

Calibration measures for each backend how long it takes to start, and how long a picture takes, by the number of pictures in one
network call. A run of a known length takes what is over first. Where nobody knows how many pictures will come, the run starts
on what starts fastest and moves over once it has spent as much time as the move costs: at most twice what would have been best.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from dynx.runtime.backends.registry import TITLES
from dynx.runtime.plan import BackendSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LONG_RUN = 1000
"""Pictures of a run in which starting hardly counts."""


@dataclass(frozen=True)
class Seconds:
    """Hold the time of a picture in seconds: `fixed` for texts, decoder and loop, `call` for each network call."""

    fixed: float
    call: float
    start: float
    """Seconds until the first picture beyond those of the pipeline as it was loaded."""
    files: tuple[tuple[str, str], ...] = ()
    """What is compiled for it, as part (empty for the network) and folder in the cache."""

    def picture(self, calls: float) -> float:
        """Return the seconds of a picture that takes `calls` network calls."""
        return self.fixed + calls * self.call


@dataclass(frozen=True)
class RunCost:
    """Hold what drawing costs on one backend, by the number of pictures in a network call."""

    spec: BackendSpec
    by_batch: Mapping[int, Seconds]
    parts: tuple[str, ...] = ()
    """Parts of the pipeline beside its network that run on the backend too."""
    calls: float | None = None
    """Network calls of a picture on this backend, where its precision has a certificate of its own; not stored."""

    def seconds(self, batch: int, pictures: int, calls: float) -> float:
        """Return the seconds of a whole run; the last call is filled up."""
        return self.by_batch[batch].start + ceil(pictures / batch) * batch * self.picture(batch, calls)

    def picture(self, batch: int, calls: float) -> float:
        """Return the seconds of a picture; `calls` are its network calls, unless this backend has its own number."""
        return self.by_batch[batch].picture(calls if self.calls is None else self.calls)

    def best(self, pictures: int, calls: float) -> Choice:
        """Return the number of pictures in a call that finishes a run first."""
        batch = min(
            (b for b in self.by_batch if b == 1 or b <= pictures), key=lambda b: self.seconds(b, pictures, calls)
        )
        return Choice(self, batch)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form for a profile."""
        return {
            "backend": self.spec.backend,
            "precision": self.spec.dtype,
            "parts": list(self.parts),
            "batches": {str(b): [s.fixed, s.call, s.start] for b, s in self.by_batch.items()},
            "files": {str(b): [list(file) for file in s.files] for b, s in self.by_batch.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunCost:
        """Read what `to_json` wrote. Raises KeyError, IndexError, TypeError or ValueError on anything else."""
        files = {str(b): tuple((str(part), str(name)) for part, name in row) for b, row in data["files"].items()}
        by_batch = {
            int(b): Seconds(float(row[0]), float(row[1]), float(row[2]), files.get(b, ()))
            for b, row in data["batches"].items()
        }
        if 1 not in by_batch or any(b < 1 or s.fixed < 0 or s.call <= 0 or s.start < 0 for b, s in by_batch.items()):
            raise ValueError("its times of runs can't be used")
        return cls(BackendSpec(str(data["backend"]), str(data["precision"])), by_batch, tuple(map(str, data["parts"])))


@dataclass(frozen=True)
class Choice:
    """Hold a backend and the number of pictures in a network call."""

    cost: RunCost
    batch: int

    @property
    def times(self) -> Seconds:
        """What was measured of it."""
        return self.cost.by_batch[self.batch]

    def __str__(self) -> str:
        together = f", {self.batch} pictures in a call" if self.batch > 1 else ""
        return f"{TITLES[self.cost.spec.backend]} in {self.cost.spec.dtype}{together}"


def choose(costs: Sequence[RunCost], pictures: int, calls: float) -> Choice:
    """Return what finishes a run of `pictures` first; `calls` are a picture's network calls on average."""
    found = [cost.best(pictures, calls) for cost in costs]
    return min(found, key=lambda choice: choice.cost.seconds(choice.batch, pictures, calls))


def why(costs: Sequence[RunCost], chosen: Choice, pictures: int, calls: float) -> str:
    """Explain a choice by the times of the others."""

    def said(choice: Choice) -> str:
        return f"{choice} {choice.cost.seconds(choice.batch, pictures, calls):.2f} s"

    others = [cost.best(pictures, calls) for cost in costs if cost is not chosen.cost]
    best = [chosen, *sorted(others, key=lambda c: c.cost.seconds(c.batch, pictures, calls))]
    many = f"{pictures} picture{'s' if pictures > 1 else ''} of {calls:.1f} network calls, the start included"
    return f"measured for {many}: {'; '.join(map(said, best))}"


@dataclass(frozen=True)
class Pending:
    """Hold what a run of unknown length moves over to once that pays."""

    now: Choice
    later: Choice
    calls: float

    def pays(self, spent: float, ahead: int = 0) -> bool:
        """Return whether moving over pays after `spent` seconds of pictures, with `ahead` pictures known to come."""
        now, later = (each.cost.picture(each.batch, self.calls) for each in (self.now, self.later))
        saved = 1 - later / now
        return saved > 0 and (spent + ahead * now) * saved >= self.later.times.start


def begin(costs: Sequence[RunCost], calls: float) -> tuple[Choice, Pending | None]:
    """Return what a run of unknown length starts with, and what it moves over to; None where that is the same."""
    now, later = choose(costs, 1, calls), choose(costs, LONG_RUN, calls)
    return now, None if later == now else Pending(now, later, calls)
