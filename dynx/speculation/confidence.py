"""How likely a draft is to stay, learned from what stayed before.

A drafter's own probability is a poor estimate of acceptance: it depends on how the two models differ. `Reliability` maps a
drafter's *signal* (a number that rises with confidence: the log-odds of its probability, or the length of a lookup's match) and
the draft's position to P(accepted | all before it accepted), by logistic regression that is updated after every round:
a Gaussian over the three weights, one Newton step per observation (the extended Kalman filter of the logistic model), and a
floor under its uncertainty so that it never stops learning.

Pure Python: three weights don't repay a tensor library's overhead in a decode loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

FORGET = 1.01
"""Growth of the variance per observation: the memory is some hundred drafts, about one change of topic."""

MAX_VARIANCE = (1.0, 0.25, 0.25)
"""Of bias, signal, position: the prior's, and the most that forgetting may restore."""

TYPICAL_MEMORY = 64.0
"""Drafts that the running mean of acceptance remembers."""


def log_odds(probability: float, bound: float = 6.0) -> float:
    """ln(p/(1-p)), kept within ±`bound`."""
    if probability <= 0:
        return -bound
    if probability >= 1:
        return bound
    return max(-bound, min(bound, math.log(probability / (1 - probability))))


class Reliability:
    """P(accepted | signal, position) for one drafter in one sampling mode."""

    def __init__(self, weights: Sequence[float] = (0.0, 1.0, 0.0), *, typical: float = 0.6) -> None:
        self.weights = list(weights)
        self.variance = [[MAX_VARIANCE[i] if i == j else 0.0 for j in range(3)] for i in range(3)]
        self.typical = typical
        """Share of drafts accepted lately, whatever their signal: the outlook before a draft is made."""
        self._typical_weight = 4.0
        self.observed = 0

    def __call__(self, signal: float, position: int) -> float:
        """Probability that the draft at `position` (from 1) stays."""
        w = self.weights
        return _sigmoid(w[0] + w[1] * signal + w[2] * math.log(position))

    def observe(self, signal: float, position: int, accepted: float) -> None:
        """Learn from a draft that was judged: 1 stayed, 0 rejected, between for a known probability."""
        self.observed += 1
        self._typical_weight = min(self._typical_weight + 1, TYPICAL_MEMORY)
        self.typical += (accepted - self.typical) / self._typical_weight
        x = (1.0, signal, math.log(position))
        p = self.variance
        px = [p[i][0] * x[0] + p[i][1] * x[1] + p[i][2] * x[2] for i in range(3)]
        chance = self(signal, position)
        information = chance * (1 - chance)
        scale = 1 / (1 + information * (x[0] * px[0] + x[1] * px[1] + x[2] * px[2]))
        for i in range(3):
            self.weights[i] += px[i] * scale * (accepted - chance)
        # The drafter's confidence may be worthless, never perverse: a negative slope only chases noise.
        self.weights[1] = max(0.0, self.weights[1])
        for i in range(3):
            for j in range(3):
                p[i][j] -= information * scale * px[i] * px[j]
        if all(p[i][i] * FORGET <= MAX_VARIANCE[i] for i in range(3)):
            for row in p:
                for j in range(3):
                    row[j] *= FORGET

    def fit(self, drafts: Iterable[tuple[float, int, float]]) -> None:
        """Learn from a recording of (signal, position, accepted)."""
        for signal, position, accepted in drafts:
            self.observe(signal, position, accepted)

    def to_json(self) -> dict[str, object]:
        """For a profile."""
        return {"weights": [round(w, 5) for w in self.weights], "typical": round(self.typical, 5), "n": self.observed}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Reliability:
        """What `to_json` wrote, ready to go on learning. Raises KeyError, TypeError or ValueError on anything else."""
        weights, typical, n = data["weights"], data["typical"], data["n"]
        if not isinstance(weights, list) or len(weights) != 3 or not isinstance(typical, float | int):
            raise TypeError("weights is not a list of three, or typical not a number")
        out = cls([float(w) for w in weights], typical=float(typical))
        if not all(math.isfinite(w) for w in (*out.weights, out.typical)):
            raise ValueError("a weight is not finite")
        if not isinstance(n, int):
            raise TypeError("n is not an integer")
        # A profile's text is not today's: keep the estimate, and a third of the prior's variance to move with.
        for i in range(3):
            out.variance[i][i] = MAX_VARIANCE[i] / 3
        out.observed, out._typical_weight = n, min(16.0, 4.0 + n)
        return out


def _sigmoid(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-min(x, 60.0)))
    e = math.exp(max(x, -60.0))
    return e / (1 + e)
