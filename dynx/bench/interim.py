"""Interim analyses: after which rounds the gates of a running measurement are judged, and at which confidence.

Judging after every round at a 95 % interval, and stopping at the first failure, gives far more false alarms than one in twenty.
Here the allowed error is spent in proportion to the rounds that could be made (an error spending function: Lan and DeMets 1983,
Biometrika 70:659; this one by Kim and DeMets 1987, Biometrika 74:149). An analysis gets what accrued since the one before. The
last one gets all that is left, also where time is up long before. By Bonferroni's inequality the intervals of all analyses hold
together with the confidence asked for, however the analyses depend on each other: that needs no joint distribution, and costs a
few per cent of the rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ANALYSES = 6
"""Analyses of one measurement: after 1, 2, 4, … 32 times the first number of rounds."""

CONFIDENCE = 0.95
"""Probability with which the intervals of all analyses hold together."""


@dataclass(frozen=True)
class InterimPlan:
    """Numbers of rounds after which one measurement is analyzed, and the confidence of all analyses together."""

    rounds: tuple[int, ...]
    confidence: float = CONFIDENCE

    @classmethod
    def doubling(cls, first: int, count: int = MAX_ANALYSES, confidence: float = CONFIDENCE) -> InterimPlan:
        """Plan analyses after `first` rounds, twice as many, and so on: each adds as many rounds as all before it."""
        return cls(tuple(first << i for i in range(count)), confidence)

    @classmethod
    def single(cls, rounds: int, confidence: float = CONFIDENCE) -> InterimPlan:
        """Plan one analysis, at the end."""
        return cls((rounds,), confidence)

    @property
    def last(self) -> int:
        """Return the largest number of rounds."""
        return self.rounds[-1]

    def confidence_at(self, analyzed: Sequence[int], *, last: bool) -> float:
        """Return the confidence of the intervals at the last of the analyses after the rounds `analyzed`.

        Analyses may come at other times than planned, as long as it isn't the figures that call for them but, say, the clock.
        With `last` no other follows. An analysis that is both the first and the last has all of the confidence.
        """
        before = max((r for r in analyzed[:-1] if r < analyzed[-1]), default=0)
        until = self.last if last else min(analyzed[-1], self.last)
        return 1 - (1 - self.confidence) * (until - before) / self.last

    def __str__(self) -> str:
        return (
            f"gates are about exactly these inputs, looked at up to {len(self.rounds)} times, at intervals that hold together "
            f"with {100 * self.confidence:g} % confidence (error spent by rounds, Lan & DeMets 1983)"
        )
