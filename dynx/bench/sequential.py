"""When to look at a measurement that goes on until its gates are decided, and how sure each look must be.

Whoever looks after every round at a 95 % interval, and stops when it says what is feared, is alarmed falsely far more often than
one time in twenty. Here the number of looks is fixed beforehand and each uses an equal part of the allowed error, so that by
Bonferroni's inequality all intervals hold together with the confidence asked for, however the looks depend on each other
and whenever the measurement stops. It is the plainest of the group-sequential designs (Pocock 1977, Biometrika 64:191; Lan and
DeMets 1983, Biometrika 70:659): it needs no joint distribution, and costs about a fifth more rounds than they do.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    def each(self) -> float:
        """The confidence of the intervals of a single look.

        A measurement that a budget ends is looked at then instead of at the next planned time, so the count holds.
        """
        return 1 - (1 - self.confidence) / len(self.rounds)

    @property
    def last(self) -> int:
        """Rounds at most."""
        return self.rounds[-1]

    def __str__(self) -> str:
        return (
            f"looked up to {len(self.rounds)} times, so each interval has {100 * self.each:.4g} % "
            f"and all have {100 * self.confidence:g} % together (Bonferroni)"
        )
