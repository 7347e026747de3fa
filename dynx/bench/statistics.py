"""The arithmetic of a comparison: how much faster, how sure, and what could have been seen.

It knows matrices of seconds and units, rounds × cases, and nothing of what was run. Every answer is a ratio of speeds
inside one run; absolute speeds on shared machines don't repeat. NumPy loads only when an interval is computed.

    estimate = ratio_of_speeds(dynamic, plain, rng=random.Random(0))
    print(estimate)                          # 1.31x [1.24, 1.39]
    print(detectable_effect(estimate))       # 0.083: a change of 8 % would have been noticed
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist, mean, median, stdev
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "RatioEstimate",
    "Scope",
    "Series",
    "detectable_effect",
    "median",
    "outliers",
    "ratio_of_speeds",
    "spread",
]

Scope: TypeAlias = Literal["task", "cases"]
"""What an interval speaks of: inputs like the measured ones ("task"), or exactly the measured ones ("cases")."""

OUTLIER_SCORE = 3.5  # Iglewicz & Hoaglin 1993: modified z-scores beyond this are labelled
TIGHT = 0.01  # closer than 1 % to the median is no outlier: on steady samples the score alone flags rounding
MAD_TO_SIGMA = 1.4826  # 1 / Φ⁻¹(3/4): turns a normal sample's MAD into its standard deviation
MEAN_AD_TO_SIGMA = 1.2533  # √(π/2): the same for the mean absolute deviation
RESAMPLES = 10_000
# Two or three inputs say too little about the next one: in simulation, with speed-ups differing by 20 % between inputs,
# intervals asked to cover 95 % covered 68 % (two inputs), 90 % (three), 96 % (four).
FEWEST_CASES_FOR_TASK = 4


@dataclass(frozen=True)
class Series:
    """What one arm did: units produced and seconds spent, both as rounds × cases."""

    units: Sequence[Sequence[float]]
    seconds: Sequence[Sequence[float]]

    def speeds(self) -> tuple[float, ...]:
        """Return units per second of the whole task, one figure for each round."""
        return tuple(sum(units) / sum(seconds) for units, seconds in zip(self.units, self.seconds, strict=True))


@dataclass(frozen=True)
class RatioEstimate:
    """Speed of an arm over speed of the reference, with its interval.

    `low` is 0 and `high` infinite where the sample can't bound the ratio (one round of a single case).
    `pairs` counts the (case, round) pairs behind it; `scope` says what the interval speaks of.
    """

    ratio: float
    low: float
    high: float
    confidence: float
    pairs: int
    scope: Scope = "task"

    @property
    def bounded(self) -> bool:
        """Whether the sample could bound the ratio at all."""
        return self.low > 0 and math.isfinite(self.high)

    @property
    def interval(self) -> str:
        """The interval in print, `[1.24, 1.39]`."""
        return f"[{self.low:.2f}, {self.high:.2f}]" if self.bounded else "[unknown]"

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x {self.interval}"


def ratio_of_speeds(
    arm: Series,
    reference: Series,
    *,
    rng: random.Random,
    confidence: float = 0.95,
    scope: Scope = "task",
    resamples: int = RESAMPLES,
) -> RatioEstimate:
    """Estimate how many times faster than `reference` the arm does the whole task.

    The figure is the median over rounds r of ρ_r = (Σ_c units / Σ_c seconds of the arm) / (the same of the reference),
    taken on logarithms so that swapping the arms inverts it. Totals make long inputs count for what they cost; pairing
    within a round cancels drift; the median ignores a round that something else disturbed.

    The interval is a percentile bootstrap that resamples rounds and cases independently, because every case returns in
    every round: the pigeonhole bootstrap of Owen (2007, Annals of Applied Statistics 1:386), which errs on the wide
    side. With scope "cases", or fewer than four cases, only rounds are resampled and the interval speaks of these
    inputs alone. Percentiles are expanded for small samples as Hesterberg (2015, The American Statistician 69:371)
    derives: Φ(−√(n/(n−1)) t_{n−1}) in place of α/2. No resample of n rounds leaves their range, which holds the median
    with probability 1 − 2^(1−n) only; where that is short of `confidence`, Student's t interval of the log ratios is
    joined to it.

    Raises ValueError when the two series differ in shape, or a whole round produced no units.
    """
    shape = (len(reference.seconds), len(reference.seconds[0]) if reference.seconds else 0)
    for part in (arm.units, arm.seconds, reference.units, reference.seconds):
        if len(part) != shape[0] or any(len(row) != shape[1] for row in part) or 0 in shape:
            raise ValueError("both series need the same rounds and cases, at least one of each")
    if not all(speed > 0 for series in (arm, reference) for speed in series.speeds()):
        raise ValueError("a round without any units has no speed to compare")
    rounds, cases = shape
    over_cases = scope == "task" and cases >= FEWEST_CASES_FOR_TASK
    logs = [math.log(a / b) for a, b in zip(arm.speeds(), reference.speeds(), strict=True)]
    center = median(logs)
    low, high = -math.inf, math.inf
    resampled = cases if over_cases else rounds
    if resampled > 1:
        replicates = _replicates(arm, reference, over_cases, resamples, rng)
        low, high = _expanded_percentiles(replicates, resampled, confidence)
        if not over_cases and 2.0 ** (1 - rounds) > 1 - confidence:
            reach = _student_quantile(0.5 + confidence / 2, rounds - 1) * stdev(logs) / math.sqrt(rounds)
            low, high = min(low, mean(logs) - reach), max(high, mean(logs) + reach)
        low, high = min(low, center), max(high, center)
    return RatioEstimate(
        ratio=math.exp(center),
        low=_exp(low),
        high=_exp(high),
        confidence=confidence,
        pairs=rounds * cases,
        scope="task" if over_cases else "cases",
    )


def detectable_effect(estimate: RatioEstimate, *, power: float = 0.8) -> float:
    """Return the smallest change of the ratio, as a fraction, that a sample this noisy detects with chance `power`.

    An effect δ = |log ratio| is detected when the interval, of half width h = log(high/low)/2, leaves 1 out. The
    estimate scatters around δ with σ ≈ h / z_{1−α/2}, so detection has the chance `power` from δ = h + z_power σ on:
    exp(h (1 + z_power / z_{1−α/2})) − 1. This is the minimum detectable effect of Bloom (1995, Evaluation Review
    19:547), on logarithms. Infinite when the estimate is unbounded.
    """
    if not estimate.bounded:
        return math.inf
    half_width = math.log(estimate.high / estimate.low) / 2
    normal = NormalDist()
    share = normal.inv_cdf(power) / normal.inv_cdf(0.5 + estimate.confidence / 2)
    return _exp(half_width * (1 + share)) - 1


def outliers(samples: Sequence[float], *, score: float = OUTLIER_SCORE) -> tuple[int, ...]:
    """Return the indices of samples whose modified z-score, 0.6745 (x − median) / MAD, exceeds `score` either way.

    Source: Iglewicz & Hoaglin (1993), How to Detect and Handle Outliers, ASQC. When more than half of the samples are
    equal the MAD is 0 and the mean absolute deviation takes its place, scaled to the same unit. Samples within 1 % of
    the median never count. Outliers are reported, not removed: the median already ignores them.
    """
    if not samples:
        return ()
    center = median(samples)
    scale = spread(samples) or MEAN_AD_TO_SIGMA * mean(abs(x - center) for x in samples)
    least = max(score * scale, TIGHT * abs(center))
    return tuple(index for index, x in enumerate(samples) if abs(x - center) > least)


def spread(samples: Sequence[float]) -> float:
    """Return the robust standard deviation, 1.4826 MAD, in the unit of the samples; raises on an empty sequence."""
    center = median(samples)
    return MAD_TO_SIGMA * median(abs(x - center) for x in samples)


def _replicates(
    arm: Series, reference: Series, over_cases: bool, resamples: int, rng: random.Random
) -> NDArray[np.float64]:
    """Return the finite bootstrap replicates of the median log ratio."""
    import numpy as np

    def log_speed(series: Series) -> NDArray[np.float64]:
        units, seconds = np.asarray(series.units, np.float64), np.asarray(series.seconds, np.float64)
        speed: NDArray[np.float64] = np.log(weights @ units.T) - np.log(weights @ seconds.T)
        return speed  # resamples (or 1) × rounds

    generator = np.random.default_rng(rng.getrandbits(64))
    rounds, cases = len(arm.seconds), len(arm.seconds[0])
    weights = np.ones((1, cases))
    if over_cases:
        weights = generator.multinomial(cases, np.full(cases, 1 / cases), size=resamples).astype(np.float64)
    picked = generator.integers(0, rounds, size=(resamples, rounds))
    # A resample may hold only inputs that produced nothing; such a replicate has no speed and is left out.
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.broadcast_to(log_speed(arm) - log_speed(reference), (resamples, rounds))
        replicates: NDArray[np.float64] = np.median(np.take_along_axis(logs, picked, axis=1), axis=1)
    return replicates[np.isfinite(replicates)]


def _expanded_percentiles(replicates: NDArray[np.float64], n: int, confidence: float) -> tuple[float, float]:
    """Return both ends of the percentile interval, widened for `n` resampled rounds or cases."""
    import numpy as np

    if replicates.size == 0:
        return -math.inf, math.inf
    stretch = math.sqrt(n / (n - 1)) * _student_quantile(0.5 + confidence / 2, n - 1)
    tail = NormalDist().cdf(-stretch)
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def _student_quantile(probability: float, dof: int) -> float:
    """Return the quantile (probability above one half) of Student's t by bisection on its distribution function."""
    low, high = 0.0, 2.0
    while _student_cdf(high, dof) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, dof) < probability else (low, middle)
    return (low + high) / 2


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


def _exp(log: float) -> float:
    return math.inf if log > 700 else math.exp(log)  # math.exp raises from 710 on
