"""Huber's robust mean and its variance, for paired timings on a shared machine, some of which are disturbed.

The data are columns of numbers, one column for each input with one number for each round. Pure Python: some hundred numbers take
a millisecond, so that interim analyses cost little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HUBER_K = 1.5
"""Huber's tuning constant, in robust standard deviations: 96 % as efficient as the mean on normal numbers."""

MAD_TO_SIGMA = 1.4826
"""1 / Φ⁻¹(3/4): turns a normal sample's median absolute deviation into its standard deviation."""

DIFFERENCE_TO_SIGMA = MAD_TO_SIGMA / math.sqrt(2)
"""Factor from the median absolute difference of two normal numbers to their standard deviation."""

MEAN_DIFFERENCE_TO_SIGMA = math.sqrt(math.pi) / 2
"""Factor from the mean absolute difference of two normal numbers to their standard deviation."""

MEDIAN_VARIANCE = math.pi / 2
"""Variance of a median over that of a mean, for normal numbers."""

CONVERGED_SIGMA = 1e-10
"""Change of the estimate, in standard deviations, at which the iterations end."""

MIN_LOG_SPREAD = 1e-9
"""Spread of logarithms below which differences are rounding errors."""

MAX_DEGREES_OF_FREEDOM = 200
"""Degrees of freedom from which Student's t differs by less than 1 %, and its sums get long."""


@dataclass(frozen=True)
class Location:
    """Location of a column and the variance of that estimate, 0 for a column of one number."""

    value: float
    variance: float


def locate(columns: Sequence[Sequence[float]]) -> list[Location]:
    """Return Huber's M-estimate of each column (1964, Annals of Mathematical Statistics 35:73), all with the same scale.

    Numbers further than `HUBER_K` σ from the estimate count as if they were that far. The variance is his sandwich (Huber and
    Ronchetti 2009, Robust Statistics, section 7.6) with the share of unclipped numbers taken over all columns.
    """
    scale = spread_of(columns)
    centers = [_m_estimate(column, scale) for column in columns]
    count = len(columns[0])
    if count < 2 or scale == 0:
        return [Location(center, 0.0) for center in centers]
    far = [[abs(v - m) / scale for v in column] for column, m in zip(columns, centers, strict=True)]
    straight = max(sum(x < HUBER_K for column in far for x in column), 1) / (count * len(columns))
    factor = scale * (1 + (1 - straight) / (straight * count)) / straight
    bent = [sum(min(x, HUBER_K) ** 2 for x in column) for column in far]
    return [Location(m, factor**2 * squares / (count * (count - 1))) for m, squares in zip(centers, bent, strict=True)]


def middle(columns: Sequence[Sequence[float]]) -> list[Location]:
    """Return the median of each column, with the variance that it has for normal numbers of that spread."""
    variance = MEDIAN_VARIANCE * spread_of(columns) ** 2 / len(columns[0])
    return [Location(median(column), variance) for column in columns]


def spread_of(columns: Sequence[Sequence[float]]) -> float:
    """Estimate σ within columns by the median absolute difference of neighbours, which drift and a few outliers don't change."""
    differences = [abs(b - a) for column in columns for a, b in pairwise(column)]
    if not differences:
        return 0.0
    usual = DIFFERENCE_TO_SIGMA * median(differences)
    if usual > MIN_LOG_SPREAD:
        return usual
    spread = MEAN_DIFFERENCE_TO_SIGMA * mean(differences)
    return spread if spread > MIN_LOG_SPREAD else 0.0


def reach(variances: Sequence[float], dof_each: int, confidence: float) -> float:
    """Return half the width of Student's interval for a sum of independent estimates.

    The degrees of freedom are Welch and Satterthwaite's.
    """
    total = sum(variances)
    if total <= 0:
        return 0.0
    dof = max(1, min(MAX_DEGREES_OF_FREEDOM, math.floor(dof_each * total**2 / sum(v**2 for v in variances) + 1e-6)))
    return student_quantile(0.5 + confidence / 2, dof) * math.sqrt(total)


def student_quantile(probability: float, dof: int) -> float:
    """Return the quantile (probability above one half) of Student's t by bisection on its distribution function."""
    low, high = 0.0, 2.0
    while _student_cdf(high, dof) < probability:
        high *= 2
    for _ in range(80):
        between = (low + high) / 2
        low, high = (between, high) if _student_cdf(between, dof) < probability else (low, between)
    return (low + high) / 2


def _m_estimate(column: Sequence[float], scale: float) -> float:
    """Estimate Huber's mean by reweighted means, from the median on."""
    center = median(column)
    if scale == 0:
        return center
    for _ in range(100):
        weights = [1.0 if abs(v - center) <= HUBER_K * scale else HUBER_K * scale / abs(v - center) for v in column]
        before, center = center, sum(w * v for w, v in zip(weights, column, strict=True)) / sum(weights)
        if abs(center - before) <= CONVERGED_SIGMA * scale:
            break
    return center


def _student_cdf(t: float, dof: int) -> float:
    """Return P(T ≤ t) for t ≥ 0 by the finite sums 26.7.3 and 26.7.4 of Abramowitz & Stegun (1964)."""
    theta = math.atan(t / math.sqrt(dof))
    cos2 = math.cos(theta) ** 2
    odd = dof % 2
    term, total = (math.cos(theta), 0.0) if odd else (1.0, 0.0)
    for step in range(dof // 2):
        total += term
        k = 2 * step + 1 + odd
        term *= cos2 * k / (k + 1)
    inside = 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
    return (1 + inside) / 2
