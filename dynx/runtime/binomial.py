"""How often can something go wrong, given how often it did: exact bounds and tests for counts of failures.

It knows whole numbers of trials and failures, and nothing of what failed. Every figure is the distribution's own sum, no normal
approximation: at a risk of 2 % those are wrong where it matters. A rate is at most ε at confidence 1-δ when
P(Bin(n, ε) ≤ k) ≤ δ, the probability that a rate of ε would show as few failures as were seen.

    smallest_sample(0.02, 0.05)          # 149: fewer inputs can't support 2 % at 95 %, whatever they show
    most_failures(2000, 0.02, 0.05)      # 29
    fixed_sequence(p_values, 0.05)       # the loosest of an ordered list of rules that still holds

Letters: n trials, k failures, ε (`eps`) the risk allowed, δ (`delta`) the chance that a statement is wrong.
Pure Python: the bounds are computed a few times per calibration, and `runtime` starts without NumPy.
"""

from __future__ import annotations

import math
from functools import lru_cache
from operator import index
from typing import TYPE_CHECKING

from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "binomial_tail",
    "divide",
    "fixed_sequence",
    "hypergeometric_tail",
    "lower_bound",
    "most_failures",
    "most_failures_in_rest",
    "most_failures_in_total",
    "smallest_sample",
    "supports",
    "two_sided",
    "upper_bound",
]

BISECTION_STEPS = 200
"""Halvings at most: the interval is down to neighbouring floats after about 60, or to 1e-60 where the bound is next to 0."""

MIN_STIRLING_N = 16
"""From here the series below is good to the last bit; under it the logarithm of the factorial is."""


def binomial_tail(n: int, k: int, p: float) -> float:
    """P(Bin(n, p) ≤ k), exact to about 1e-13 of itself; the p-value of "the rate is above p" when k of n failed.

    `k` may be -1 (nothing is fewer than no failures: 0.0). Raises InvalidInput unless -1 ≤ k ≤ n and 0 ≤ p ≤ 1.
    """
    n, k = _count(n, "n"), index(k)
    if not -1 <= k <= n:
        raise InvalidInput(f"{k} failures of {n} make no sense")
    if not 0 <= p <= 1:
        raise InvalidInput(f"{p} is not a probability")
    if k == n:
        return 1.0
    if k < 0 or p == 1:
        return 0.0
    if p == 0:
        return 1.0
    return _binomial_tail(n, k, float(p))


@lru_cache(maxsize=4096)
def _binomial_tail(n: int, k: int, p: float) -> float:
    # Summed away from the mode: the terms shrink from the first, so the sum stops early and loses nothing.
    if k <= n * p:
        ratio = (1 - p) / p
        return _outward(_binomial_log(n, k, p), (j / (n - j + 1) * ratio for j in range(k, 0, -1)))
    ratio = p / (1 - p)
    return 1 - _outward(_binomial_log(n, k + 1, p), ((n - j) / (j + 1) * ratio for j in range(k + 1, n)))


def _outward(log_first: float, ratios: Iterable[float]) -> float:
    """Sum of terms of which the first and the ratio of each to the one before are given, until they stop mattering."""
    term = total = 1.0
    for ratio in ratios:
        term *= ratio
        total += term
        if term < total * 1e-18:
            break
    return min(1.0, math.exp(log_first + math.log(total)))


def _binomial_log(n: int, k: int, p: float) -> float:
    """ln P(Bin(n, p) = k) for 0 < p < 1.

    Loader's saddle-point form (C. Loader 2000, Fast and accurate computation of binomial probabilities): a difference of
    log-factorials of a million would lose nine of sixteen digits, deviances lose none.
    """
    if k == 0:
        return n * math.log1p(-p)
    if k == n:
        return n * math.log(p)
    errors = _stirling(n) - _stirling(k) - _stirling(n - k)
    deviances = _deviance(k, n * p) + _deviance(n - k, n * (1 - p))
    return errors - deviances - 0.5 * math.log(2 * math.pi * k * (n - k) / n)


def _stirling(n: int) -> float:
    """Compute the remainder of Stirling's formula for ln n!."""
    if n < MIN_STIRLING_N:
        return math.log(math.factorial(n)) - (0.5 * math.log(2 * math.pi * n) + n * math.log(n) - n)
    s = 1 / (n * n)
    return (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - s / 1188) * s) * s) * s) / n


def _deviance(x: float, mean: float) -> float:
    """x·ln(x/mean) + mean - x, without the cancellation where x is near its mean."""
    off = x - mean
    if abs(off) > 0.1 * (x + mean):
        return x * math.log(x / mean) - off
    v = off / (x + mean)
    total, term = off * v, 2 * x * v
    for j in range(3, 60, 2):
        term *= v * v
        if total + term / j == total:
            break
        total += term / j
    return total


def upper_bound(n: int, k: int, delta: float) -> float:
    """Compute the highest rate that k failures in n leave possible at confidence 1-δ (Clopper and Pearson 1934, one-sided).

    The rate p at which P(Bin(n, p) ≤ k) = δ; 1.0 when everything failed or nothing was tried. Raises InvalidInput on bad counts.
    """
    n, k = _counts(n, k)
    delta = _chance(delta, "delta")
    if k == n:
        return 1.0
    low, high = k / n, 1.0
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if binomial_tail(n, k, middle) > delta:
            low = middle
        else:
            high = middle
    return high


def lower_bound(n: int, k: int, delta: float) -> float:
    """Compute the lowest rate that k failures in n leave possible at confidence 1-δ, one-sided; 0.0 when nothing failed."""
    n, k = _counts(n, k)  # before the mirror: n failures of n left, none failed
    return 1 - upper_bound(n, n - k, delta)


def two_sided(n: int, k: int, delta: float) -> tuple[float, float]:
    """Clopper and Pearson's interval for the rate at confidence 1-δ, δ/2 on each side."""
    return lower_bound(n, k, delta / 2), upper_bound(n, k, delta / 2)


def most_failures(n: int, eps: float, delta: float) -> int | None:
    """Find the most failures in n trials that still show a rate of at most ε at confidence 1-δ; None if not even 0 does.

    The largest k with P(Bin(n, ε) ≤ k) ≤ δ. Raises InvalidInput unless 0 < ε < 1 and 0 < δ < 1.
    """
    n, eps, delta = _count(n, "n"), _chance(eps, "eps"), _chance(delta, "delta")
    low, high = -1, n  # P(≤ -1) = 0 passes, P(≤ n) = 1 doesn't
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_tail(n, middle, eps) <= delta:
            low = middle
        else:
            high = middle
    return low if low >= 0 else None


def smallest_sample(eps: float, delta: float, failures: int = 0) -> int:
    """Find the fewest trials that show a rate of at most ε at confidence 1-δ when `failures` of them fail.

    With none failing that is ln δ / ln(1-ε), rounded up.
    """
    eps, delta, k = _chance(eps, "eps"), _chance(delta, "delta"), _count(failures, "failures")
    high = k + 1
    while binomial_tail(high, k, eps) > delta:
        high *= 2
    low = k  # n = k passes never: all of them failed
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_tail(middle, k, eps) <= delta:
            high = middle
        else:
            low = middle
    return high


def fixed_sequence(p_values: Iterable[float], delta: float) -> int | None:
    """Test an ordered list, the surest first, each at the full δ, up to the first that fails: the index of the last passed.

    None when already the first fails. The order must not depend on the data behind the p-values. All that passed hold
    together at confidence 1-δ, so no share of δ is lost to their number (Angelopoulos et al. 2021, Learn then Test, 4.2).
    `p_values` is read no further than the first failure; NaN fails.
    """
    delta = _chance(delta, "delta")
    last = None
    for i, p in enumerate(p_values):
        if not p <= delta:
            break
        last = i
    return last


def divide(delta: float, candidates: int) -> float:
    """δ for each of several candidates of which the best is kept by its own result: they share it (Bonferroni)."""
    if index(candidates) < 1:
        raise InvalidInput(f"{candidates} candidates can't share anything")
    return _chance(delta, "delta") / candidates


def hypergeometric_tail(total: int, bad: int, drawn: int, k: int) -> float:
    """P(at most k of the `bad` are among `drawn` taken without replacement from `total`), exact to about 1e-12 of itself.

    Raises InvalidInput unless 0 ≤ bad ≤ total, 0 ≤ drawn ≤ total and k ≥ -1.
    """
    total, bad, drawn, k = _count(total, "total"), _count(bad, "bad"), _count(drawn, "drawn"), index(k)
    if bad > total or drawn > total or k < -1:
        raise InvalidInput(f"{k} of {bad} bad ones among {drawn} of {total} make no sense")
    fewest, most = max(0, drawn + bad - total), min(bad, drawn)
    if k >= most:
        return 1.0
    if k < fewest:
        return 0.0
    good = total - bad
    if k * total <= drawn * bad:
        down = (j * (good - drawn + j) / ((bad - j + 1) * (drawn - j + 1)) for j in range(k, fewest, -1))
        return _outward(_hypergeometric_log(total, bad, drawn, k), down)
    up = ((bad - j) * (drawn - j) / ((j + 1) * (good - drawn + j + 1)) for j in range(k + 1, most))
    return 1 - _outward(_hypergeometric_log(total, bad, drawn, k + 1), up)


def _hypergeometric_log(total: int, bad: int, drawn: int, k: int) -> float:
    """ln P(exactly k): a ratio of three binomial probabilities, whose p cancels; the share drawn keeps all three large."""
    if drawn in (0, total):
        return 0.0  # only one k is possible
    p, good = drawn / total, total - bad
    one = _binomial_log(bad, k, p) if bad else 0.0
    other = _binomial_log(good, drawn - k, p) if good else 0.0
    return one + other - _binomial_log(total, drawn, p)


def most_failures_in_total(total: int, drawn: int, k: int, delta: float) -> int:
    """Compute the most failures among all `total` that k among a random `drawn` of them leave possible at confidence 1-δ.

    The largest D with P(Hyp ≤ k) > δ, exact, without any assumption about the population.
    """
    total, (drawn, k), delta = _count(total, "total"), _counts(drawn, k), _chance(delta, "delta")
    if drawn > total:
        raise InvalidInput(f"{drawn} can't be drawn from {total}")
    low, high = k, total - (drawn - k)  # the others of the sample did not fail
    while low < high:
        middle = (low + high + 1) // 2
        if hypergeometric_tail(total, middle, drawn, k) > delta:
            low = middle
        else:
            high = middle - 1
    return low


def most_failures_in_rest(total: int, drawn: int, k: int, delta: float) -> int:
    """Compute the same among the `total - drawn` that were not drawn."""
    return most_failures_in_total(total, drawn, k, delta) - k


def supports(n: int, eps: float, delta: float, *, noun: str = "inputs", failure: str = "disagreement") -> str:
    """Say in a sentence what n trials can show, before any is run.

    "149 inputs are the fewest for 2 % at 95 %; 300 allow 1 disagreement."
    """
    floor = smallest_sample(eps, delta)
    head = f"{floor:,} {noun} are the fewest for {percent(eps)} at {percent(1 - delta)}"
    allowed = most_failures(n, eps, delta)
    if allowed is None:
        return f"{head}; {n:,} are too few."
    number = "no" if allowed == 0 else f"{allowed:,}"
    return f"{head}; {n:,} allow {number} {failure}{'' if allowed == 1 else 's'}."


def percent(share: float) -> str:
    """Format a share as a percentage: 0.02 is "2 %", 0.0145 "1.45 %"."""
    return f"{round(100 * share, 2):.10g} %"


def _count(value: int, name: str) -> int:
    value = index(value)  # a float here would be a mean times n: TypeError
    if value < 0:
        raise InvalidInput(f"{name} is {value}, below 0")
    return value


def _counts(n: int, k: int) -> tuple[int, int]:
    n, k = _count(n, "n"), index(k)
    if not 0 <= k <= n:
        raise InvalidInput(f"{k} failures of {n} make no sense")
    return n, k


def _chance(value: float, name: str) -> float:
    if not 0 < value < 1:
        raise InvalidInput(f"{name} is {value}, not between 0 and 1")
    return float(value)
