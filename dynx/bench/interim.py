"""When to look at a measurement that goes on until its gates are decided, and how sure each look must be.

Whoever looks after every round at a 95 % interval, and stops when it says what is feared, is alarmed falsely far more often than
one time in twenty. Here the allowed error is spent in proportion to the rounds that could be made (an error spending function:
Lan and DeMets 1983, Biometrika 70:659; this one by Kim and DeMets 1987, Biometrika 74:149). A look gets what accrued since the
one before, and the last gets all that is left, also where time is up long before. By Bonferroni's inequality the looks'
intervals then hold together with the confidence asked for, however the looks depend on each other: that needs no joint
distribution, and costs a few per cent of the rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST = 6
"""Looks: after 1, 2, 4, … 32 times the first number of rounds."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Looks:
    """The plan of one measurement: after how many rounds to look, and how sure all looks are together."""

    rounds: tuple[int, ...]
    confidence: float = CONFIDENCE

    @classmethod
    def doubling(cls, first: int, count: int = MOST, confidence: float = CONFIDENCE) -> Looks:
        """After `first` rounds, twice as many, and so on: each look sees as much new as all before it."""
        return cls(tuple(first << i for i in range(count)), confidence)

    @classmethod
    def once(cls, rounds: int, confidence: float = CONFIDENCE) -> Looks:
        """At the end alone."""
        return cls((rounds,), confidence)

    @property
    def last(self) -> int:
        """Rounds at most."""
        return self.rounds[-1]

    def sure(self, looked: Sequence[int], *, last: bool) -> float:
        """The confidence of the intervals at the newest of the looks that were after so many rounds (`looked`).

        Looks may come at other times than planned, as long as it isn't the figures that call for them but, say, the clock.
        With `last` nothing will be looked at after it. Where nothing was before it either, it has all of the confidence.
        """
        before = max((r for r in looked[:-1] if r < looked[-1]), default=0)
        until = self.last if last else min(looked[-1], self.last)
        return 1 - (1 - self.confidence) * (until - before) / self.last

    def __str__(self) -> str:
        return (
            f"gates are about exactly these inputs, looked at up to {len(self.rounds)} times, at intervals that hold together "
            f"with {100 * self.confidence:g} % confidence (error spent by rounds, Lan & DeMets 1983)"
        )
