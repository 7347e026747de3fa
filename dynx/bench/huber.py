"""Locations and their uncertainty where some of the numbers are wild: what paired timings on a shared machine are.

It knows columns of numbers, one column for each input and one number in it for each round, and nothing of times. Pure Python:
some hundred numbers are done in a millisecond, so that a referee can look often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BEND = 1.5
"""Huber's k, in robust standard deviations: 96 % as efficient as the mean on normal numbers."""

MAD_TO_SIGMA = 1.4826  # 1 / Φ⁻¹(3/4): turns a normal sample's MAD into its standard deviation
DIFFERENCE_TO_SIGMA = MAD_TO_SIGMA / math.sqrt(2)  # the median absolute difference of two normal numbers, as their σ
MEAN_DIFFERENCE_TO_SIGMA = math.sqrt(math.pi) / 2
MEDIAN_VARIANCE = math.pi / 2  # of a median over that of a mean, for normal numbers
CLOSE = 1e-10  # of σ: iterations end there
ROUNDING = 1e-9  # differences of logarithms below this are the computer's
MOST_DOF = 200  # Student's t differs from here on by less than 1 %, and its sums get long


@dataclass(frozen=True)
class Location:
    """Where a column lies, and the variance of saying so (0 for a column of one number, which says nothing of it)."""

    value: float
    variance: float


def locate(columns: Sequence[Sequence[float]]) -> list[Location]:
    """Huber's M-estimate of each column (1964, Annals of Mathematical Statistics 35:73), all with the same scale.

    Numbers further than `BEND` σ from the estimate count as if they were that far. The variance is his sandwich (Huber and
    Ronchetti 2009, Robust Statistics, section 7.6) with the share of unbent numbers taken over all columns.
    """
    scale = spread_of(columns)
    centers = [_m_estimate(column, scale) for column in columns]
    count = len(columns[0])
    if count < 2 or scale == 0:
        return [Location(center, 0.0) for center in centers]
    far = [[abs(v - m) / scale for v in column] for column, m in zip(columns, centers, strict=True)]
    straight = max(sum(x < BEND for column in far for x in column), 1) / (count * len(columns))
    factor = scale * (1 + (1 - straight) / (straight * count)) / straight
    bent = [sum(min(x, BEND) ** 2 for x in column) for column in far]
    return [Location(m, factor**2 * squares / (count * (count - 1))) for m, squares in zip(centers, bent, strict=True)]


def middle(columns: Sequence[Sequence[float]]) -> list[Location]:
    """The median of each column, with the variance that normal numbers of their spread would give it."""
    variance = MEDIAN_VARIANCE * spread_of(columns) ** 2 / len(columns[0])
    return [Location(median(column), variance) for column in columns]


def spread_of(columns: Sequence[Sequence[float]]) -> float:
    """σ within columns by the median absolute difference of neighbours, which no drift and no few wild numbers touch."""
    differences = [abs(b - a) for column in columns for a, b in pairwise(column)]
    if not differences:
        return 0.0
    usual = DIFFERENCE_TO_SIGMA * median(differences)
    if usual > ROUNDING:
        return usual
    spread = MEAN_DIFFERENCE_TO_SIGMA * mean(differences)
    return spread if spread > ROUNDING else 0.0


def reach(variances: Sequence[float], dof_each: int, confidence: float) -> float:
    """Half the width of Student's interval for a sum of independent estimates; degrees of freedom by Welch and Satterthwaite."""
    total = sum(variances)
    if total <= 0:
        return 0.0
    dof = max(1, min(MOST_DOF, math.floor(dof_each * total**2 / sum(v**2 for v in variances) + 1e-6)))
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
    """By reweighted means, which converge from the median."""
    center = median(column)
    if scale == 0:
        return center
    for _ in range(100):
        weights = [1.0 if abs(v - center) <= BEND * scale else BEND * scale / abs(v - center) for v in column]
        before, center = center, sum(w * v for w, v in zip(weights, column, strict=True)) / sum(weights)
        if abs(center - before) <= CLOSE * scale:
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
