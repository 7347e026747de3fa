"""The probability that a draft token is accepted, learned from earlier verdicts.

A drafter's own probability is a poor estimate of acceptance: it depends on how the two models differ. `AcceptanceModel` maps a
drafter's *signal* (a number that rises with confidence: the log-odds of its probability, or the length of a lookup's match) and
the draft's position to P(accepted | all before it accepted), by logistic regression that is updated after every round:
a Gaussian over the three weights, one Newton step per observation (the extended Kalman filter of the logistic model), and a
floor under its uncertainty so that it never stops learning.

Pure Python: three weights don't repay a tensor library's overhead in a decode loop.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MEMORY_DRAFTS = 150.0
"""Draft tokens that the regression remembers: about as many as pass between changes of topic."""

PRIOR_VARIANCE = (0.5, 0.1, 0.1)
"""Variances of the weights of bias, signal and position in a fresh model; forgetting restores no more than these."""

MEAN_MEMORY_DRAFTS = 32.0
"""Draft tokens that the running mean of acceptance remembers."""

STALE_MEMORY_DRAFTS = 8.0
"""Draft tokens to which that memory shrinks while a drafter isn't used."""

MAX_SIGNAL = 40.0
"""Bound on a signal's absolute value: beyond it acceptance is as good as certain, and exp would overflow."""

MAX_NEWTON_STEPS = 30
"""Upper limit on the Newton steps of a fit; about six are needed."""


def log_odds(probability: float, bound: float = 6.0) -> float:
    """ln(p/(1-p)), kept within ±`bound`; NaN counts as no confidence at all."""
    if not probability > 0:
        return -bound
    if probability >= 1:
        return bound
    return max(-bound, min(bound, math.log(probability / (1 - probability))))


class AcceptanceModel:
    """Estimates P(accepted | signal, position) for one drafter in one sampling mode."""

    def __init__(self, weights: Sequence[float] = (0.0, 1.0, 0.0), *, typical: float = 0.6) -> None:
        self.weights = list(weights)
        self.variance = [[PRIOR_VARIANCE[i] if i == j else 0.0 for j in range(3)] for i in range(3)]
        self.typical = typical
        """Share of drafts accepted lately, whatever their signal: the estimate before a draft is made."""
        self._typical_weight = 4.0
        self.observed = 0
        self._parent: AcceptanceModel | None = None

    def branch(self) -> AcceptanceModel:
        """Return a copy that goes on learning by itself, for one text of several; what it learns, this model learns as well."""
        out = AcceptanceModel(self.weights, typical=self.typical)
        out.variance = [list(row) for row in self.variance]
        out._typical_weight, out.observed, out._parent = self._typical_weight, self.observed, self
        return out

    def __call__(self, signal: float, position: int) -> float:
        """Return the probability that the draft at `position` (from 1) is accepted."""
        w = self.weights
        return _sigmoid(w[0] + w[1] * max(-MAX_SIGNAL, min(MAX_SIGNAL, signal)) + w[2] * math.log(position))

    def observe(self, signal: float, position: int, accepted: float) -> None:
        """Learn from a verified draft: 1 accepted, 0 rejected, between for a known probability."""
        if self._parent is not None:
            self._parent.observe(signal, position, accepted)
        self.observed += 1
        self._update_typical(accepted)
        w, p = self.weights, self.variance
        x1, x2 = max(-MAX_SIGNAL, min(MAX_SIGNAL, signal)), math.log(position)
        px = [row[0] + row[1] * x1 + row[2] * x2 for row in p]
        doubt = max(0.0, px[0] + x1 * px[1] + x2 * px[2])  # variance of the logit
        chance = _sigmoid(w[0] + w[1] * x1 + w[2] * x2)
        information = chance * (1 - chance)
        scale = 1 / (1 + information * doubt)
        step = scale * (accepted - chance)
        for i in range(3):
            w[i] += px[i] * step
        shrink = information * scale
        for i in range(3):
            row, by = p[i], px[i] * shrink
            row[0] -= by * px[0]
            row[1] -= by * px[1]
            row[2] -= by * px[2]
        if w[1] < 0:
            # The drafter's confidence may be worthless, never perverse: a negative slope only chases noise. The likeliest
            # weights with slope 0 (the others move along with it, or a rejection could raise the estimate).
            share = w[1] / max(p[1][1], 1e-9)
            w[0], w[1], w[2] = w[0] - p[0][1] * share, 0.0, w[2] - p[2][1] * share
        # Forgetting: never surer of such a draft than `MEMORY_DRAFTS` of them could make it, or unsurer than at first. What the
        # drafts don't show doesn't grow, and can't run away.
        prior = PRIOR_VARIANCE[0] + PRIOR_VARIANCE[1] * x1 * x1 + PRIOR_VARIANCE[2] * x2 * x2
        missing = min(prior, 1 / (MEMORY_DRAFTS * information + 1e-9)) - doubt * scale
        if missing > 0:
            square = 1 + x1 * x1 + x2 * x2
            add = missing / (square * square)
            for row, by in zip(p, (add, add * x1, add * x2), strict=True):
                row[0] += by
                row[1] += by * x1
                row[2] += by * x2

    def expect(self, accepted: float) -> None:
        """Adjust `typical` alone, by a draft that wasn't verified, with its probability."""
        if self._parent is not None:
            self._parent.expect(accepted)
        self._update_typical(accepted)

    def _update_typical(self, accepted: float) -> None:
        self._typical_weight = min(self._typical_weight + 1, MEAN_MEMORY_DRAFTS)
        self.typical += (accepted - self.typical) / self._typical_weight

    def fade(self) -> None:
        """Shorten the memory of `typical`, as a round went to another drafter."""
        self._typical_weight += (
            (STALE_MEMORY_DRAFTS - self._typical_weight) * 0.02 * (self._typical_weight > STALE_MEMORY_DRAFTS)
        )

    def fit(self, drafts: Iterable[tuple[float, int, float]]) -> None:
        """Learn from a recording of (signal, position, accepted), all of equal weight, on top of what was learned before.

        Finds the most likely weights and their variance (Laplace) by Newton's method.
        """
        seen = [(1.0, max(-MAX_SIGNAL, min(MAX_SIGNAL, s)), math.log(k), y) for s, k, y in drafts]
        before, doubt = list(self.weights), _inverse(self.variance)
        for _ in range(MAX_NEWTON_STEPS):
            w, hessian = self.weights, [list(row) for row in doubt]
            gradient = [sum(row[j] * (before[j] - w[j]) for j in range(3)) for row in doubt]
            for *x, accepted in seen:
                chance = _sigmoid(w[0] + w[1] * x[1] + w[2] * x[2])
                for i in range(3):
                    gradient[i] += (accepted - chance) * x[i]
                    for j in range(3):
                        hessian[i][j] += chance * (1 - chance) * x[i] * x[j]
            self.variance = _inverse(hessian)
            step = [sum(row[j] * gradient[j] for j in range(3)) for row in self.variance]
            # Far out the curve is flat and Newton's step too long; unshortened it swings from side to side for good.
            here, share = _surprise(w, before, doubt, seen), 1.0
            while share > 1e-3 and _surprise(_moved(w, step, share), before, doubt, seen) > here:
                share /= 2
            self.weights = _moved(w, step, share)
            if share * max(map(abs, step)) < 1e-6:
                break
        self.weights[1] = max(0.0, self.weights[1])
        self.typical = (self.typical * (self.observed + 4) + sum(y for *_, y in seen)) / (self.observed + 4 + len(seen))
        self.observed += len(seen)
        self._typical_weight = min(16.0, 4.0 + self.observed)

    def to_json(self) -> dict[str, object]:
        """Return the model as a profile stores it."""
        return {"weights": [round(w, 5) for w in self.weights], "typical": round(self.typical, 5), "n": self.observed}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> AcceptanceModel:
        """Restore a model from `to_json`'s form. Raises KeyError, TypeError or ValueError on anything else."""
        weights, typical, n = data["weights"], data["typical"], data["n"]
        if not isinstance(weights, list) or len(weights) != 3 or not isinstance(typical, float | int):
            raise TypeError("weights is not a list of three, or typical not a number")
        out = cls([float(w) for w in weights], typical=float(typical))
        if not all(math.isfinite(w) for w in (*out.weights, out.typical)):
            raise ValueError("a weight is not finite")
        if not isinstance(n, int):
            raise TypeError("n is not an integer")
        # A profile's text is not today's: keep the estimate, with all the doubt of a fresh one.
        out.observed, out._typical_weight = n, min(8.0, 4.0 + n)
        return out


def _moved(weights: Sequence[float], step: Sequence[float], share: float) -> list[float]:
    return [w + share * d for w, d in zip(weights, step, strict=True)]


def _surprise(
    w: Sequence[float],
    before: Sequence[float],
    doubt: Sequence[Sequence[float]],
    seen: Iterable[tuple[float, float, float, float]],
) -> float:
    """Return what a fit minimises: -ln of prior times likelihood, up to a constant."""
    off = [a - b for a, b in zip(w, before, strict=True)]
    total = 0.5 * sum(off[i] * doubt[i][j] * off[j] for i in range(3) for j in range(3))
    for x0, x1, x2, accepted in seen:
        z = w[0] * x0 + w[1] * x1 + w[2] * x2
        total += max(z, 0.0) + math.log1p(math.exp(-abs(z))) - accepted * z
    return total


def _inverse(a: Sequence[Sequence[float]]) -> list[list[float]]:
    """Invert a symmetric positive definite 3x3 matrix by its cofactors."""
    (p, q, r), (_, s, t), (_, _, u) = a
    b, c, d = s * u - t * t, r * t - q * u, q * t - r * s
    e, f, g = p * u - r * r, q * r - p * t, p * s - q * q
    scale = p * b + q * c + r * d
    return [[b / scale, c / scale, d / scale], [c / scale, e / scale, f / scale], [d / scale, f / scale, g / scale]]


def _sigmoid(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-min(x, 60.0)))
    e = math.exp(max(x, -60.0))
    return e / (1 + e)
