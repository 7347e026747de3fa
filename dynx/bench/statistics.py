"""Statistics of a comparison: ratios of speeds, their confidence intervals, and detectable effects.

The data are matrices of seconds and units, rounds × cases. Every answer is a ratio of speeds inside one run; absolute speeds on
shared machines don't repeat. NumPy loads only for an interval that covers other inputs.

    estimate = ratio_of_speeds(dynamic, plain, rng=random.Random(0))
    print(estimate)                          # 1.31x [1.24, 1.39]
    print(detectable_effect(estimate))       # 0.083: a change of 8 % would have been noticed
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist, mean, median
from typing import TYPE_CHECKING, Literal, TypeAlias

from dynx.bench.huber import MAD_TO_SIGMA, Location, locate, middle, reach, student_quantile

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Estimator",
    "Interval",
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
"""What an interval covers: inputs like the measured ones ("task"), or exactly the measured ones ("cases")."""

Estimator: TypeAlias = Literal["huber", "totals"]
"""How a ratio was estimated: from Huber's means of each input's times over the rounds, or from one round's total times."""

OUTLIER_SCORE = 3.5
"""Modified z-score beyond which a sample is an outlier (Iglewicz & Hoaglin 1993)."""

MIN_OUTLIER_SHARE = 0.01
"""Distance from the median, as a share of it, below which nothing is an outlier: on steady samples the score flags rounding."""

MEAN_AD_TO_SIGMA = 1.2533
"""√(π/2): turns the mean absolute deviation of a normal sample into its standard deviation."""

RESAMPLES = 10_000
"""Bootstrap resamples."""

# Two or three inputs say too little about the next one: in simulation, with speed-ups differing by 20 % between inputs,
# intervals asked to cover 95 % covered 68 % (two inputs), 90 % (three), 96 % (four).
MIN_CASES_FOR_TASK = 4


@dataclass(frozen=True)
class Series:
    """Units that one arm produced and seconds that it took, both as rounds × cases."""

    units: Sequence[Sequence[float]]
    seconds: Sequence[Sequence[float]]

    def speeds(self) -> tuple[float, ...]:
        """Return units per second of the whole task, one figure for each round."""
        return tuple(sum(units) / sum(seconds) for units, seconds in zip(self.units, self.seconds, strict=True))


@dataclass(frozen=True)
class Interval:
    """Bounds of a ratio at this confidence; `low` is 0 and `high` infinite where the sample can't bound it."""

    low: float
    high: float
    confidence: float

    @property
    def bounded(self) -> bool:
        """Whether the sample could bound the ratio at all."""
        return self.low > 0 and math.isfinite(self.high)


@dataclass(frozen=True)
class RatioEstimate:
    """Speed of an arm over speed of the reference, with its interval.

    `low` is 0 and `high` infinite where the sample can't bound the ratio (one round of a single case).
    `pairs` counts the (case, round) pairs behind it; `scope` is what the interval covers. `here` is the interval for
    exactly the measured inputs, which is what a gate judges by; None where there is no other than this one. `leaving_one_out`
    is the least and the greatest ratio that all inputs but one give, where there is one round only: how much a single
    disturbed run can matter.
    """

    ratio: float
    low: float
    high: float
    confidence: float
    pairs: int
    scope: Scope = "task"
    estimator: Estimator = "huber"
    here: Interval | None = None
    leaving_one_out: tuple[float, float] | None = None

    @property
    def bounded(self) -> bool:
        """Whether the sample could bound the ratio at all."""
        return self.low > 0 and math.isfinite(self.high)

    @property
    def interval(self) -> str:
        """The interval as text, `[1.24, 1.39]`."""
        return f"[{self.low:.2f}, {self.high:.2f}]" if self.bounded else "[unknown]"

    def on_these(self) -> RatioEstimate:
        """Return the same ratio, for exactly the inputs that were measured."""
        if self.here is None:
            return self
        here = self.here
        return replace(self, low=here.low, high=here.high, confidence=here.confidence, scope="cases", here=None)

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x {self.interval}"


def ratio_of_speeds(
    arm: Series,
    reference: Series,
    *,
    rng: random.Random | None = None,
    confidence: float = 0.95,
    scope: Scope = "task",
    judged: float | None = None,
    resamples: int = RESAMPLES,
) -> RatioEstimate:
    """Estimate how many times faster than `reference` the arm does the whole task.

    Each input is paired with itself in every round, which cancels drift. Over the rounds the log ratio of its two times gets
    Huber's M-estimate, so that a run which something else disturbed counts little, and their geometric mean gives it its
    weight; the ratio is that of all units by the total of such times. Logarithms make swapped arms invert it. One round
    has no repetitions to average: the ratio is that of total times.

    The interval for exactly these inputs, at confidence `judged` (or `confidence`), is Student's over the rounds; one round has
    none, and where there are cases enough that of inputs like these takes its place, which is wider. With
    scope "task" and at least four cases, `low` and `high` cover inputs like these: a percentile bootstrap of the cases,
    whose estimated times carry the rounds' noise, expanded for small samples as Hesterberg (2015, The American Statistician
    69:371) derives, Φ(−√(n/(n−1)) t_{n−1}) in place of α/2. No resample of n cases leaves their range, which holds their
    median with probability 1 − 2^(1−n) only; where that is short of `confidence`, Student's t interval of the linearized
    ratio (Cochran 1977, Sampling Techniques, section 6.3) is joined to it, and always the interval for these inputs.

    Only the bootstrap needs chance: `rng`, or the same every time. Raises ValueError when the two series differ in shape, or a
    whole round produced no units.
    """
    rounds, cases = _shape(arm, reference)
    over_cases = scope == "task" and cases >= MIN_CASES_FOR_TASK
    sums = _typical(arm, reference)
    center = sums.log_ratio()
    judged = confidence if judged is None else judged
    noise = sums.noise() if rounds > 1 else None

    seed = rng.getrandbits(64) if over_cases and rng is not None else 0

    def over_inputs(confidence: float) -> Interval:
        low, high = _over_cases(sums, confidence, resamples, seed)
        return Interval(_exp(min(low, center)), _exp(max(high, center)), confidence)

    def on_these(confidence: float) -> Interval:
        if noise is None:
            return over_inputs(confidence) if over_cases else Interval(0.0, math.inf, confidence)
        far = reach(noise, rounds - 1, confidence)
        return Interval(_exp(center - far), _exp(center + far), confidence)

    here = on_these(judged)
    found = here if judged == confidence else on_these(confidence)
    if over_cases and noise is not None:
        wider = over_inputs(confidence)
        found = Interval(min(found.low, wider.low), max(found.high, wider.high), confidence)
    return RatioEstimate(
        ratio=math.exp(center),
        low=found.low,
        high=found.high,
        confidence=confidence,
        pairs=rounds * cases,
        scope="task" if over_cases else "cases",
        estimator="huber" if rounds > 1 else "totals",
        here=None if here == found else here,
        leaving_one_out=sums.leaving_one_out() if rounds == 1 else None,
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
    least = max(score * scale, MIN_OUTLIER_SHARE * abs(center))
    return tuple(index for index, x in enumerate(samples) if abs(x - center) > least)


def spread(samples: Sequence[float]) -> float:
    """Return the robust standard deviation, 1.4826 MAD, in the unit of the samples; raises on an empty sequence."""
    center = median(samples)
    return MAD_TO_SIGMA * median(abs(x - center) for x in samples)


@dataclass(frozen=True)
class _Sums:
    """Units and typical seconds that each case adds to both totals, and the variances of the logarithms behind the seconds."""

    arm_units: Sequence[float]
    reference_units: Sequence[float]
    arm_seconds: Sequence[float]
    reference_seconds: Sequence[float]
    ratios: Sequence[Location]
    levels: Sequence[Location]

    def log_ratio(self) -> float:
        """Return the logarithm of the ratio of speeds."""
        return math.log(sum(self.arm_units) / sum(self.arm_seconds)) - math.log(
            sum(self.reference_units) / sum(self.reference_seconds)
        )

    def leaving_one_out(self) -> tuple[float, float] | None:
        """Return the least and the greatest ratio of all cases but one; None where that leaves nothing."""
        found = []
        for left_out in range(len(self.arm_units)):
            one = _Sums(*([x for i, x in enumerate(part) if i != left_out] for part in vars(self).values()))
            if sum(one.arm_units) > 0 and sum(one.reference_units) > 0:
                found.append(math.exp(one.log_ratio()))
        return (min(found), max(found)) if found else None

    def noise(self) -> list[float]:
        """Return the variances that add up to the log ratio's, by its derivatives to each case's log ratio and log level."""
        ours, theirs = _shares(self.arm_seconds), _shares(self.reference_seconds)
        by_ratio = [((a + b) / 2) ** 2 * ratio.variance for a, b, ratio in zip(ours, theirs, self.ratios, strict=True)]
        by_level = [(a - b) ** 2 * level.variance for a, b, level in zip(ours, theirs, self.levels, strict=True)]
        return [a + b for a, b in zip(by_ratio, by_level, strict=True)]

    def influences(self) -> list[float]:
        """Return the derivatives of the log ratio to each case's weight, times the number of cases; their mean is 0."""
        parts = zip(
            _shares(self.arm_units),
            _shares(self.arm_seconds),
            _shares(self.reference_units),
            _shares(self.reference_seconds),
            strict=True,
        )
        return [len(self.arm_units) * (a - b - c + d) for a, b, c, d in parts]


def _shape(arm: Series, reference: Series) -> tuple[int, int]:
    shape = (len(reference.seconds), len(reference.seconds[0]) if reference.seconds else 0)
    for part in (arm.units, arm.seconds, reference.units, reference.seconds):
        if len(part) != shape[0] or any(len(row) != shape[1] for row in part) or 0 in shape:
            raise ValueError("both series need the same rounds and cases, at least one of each")
    if not all(speed > 0 for series in (arm, reference) for speed in series.speeds()):
        raise ValueError("a round without any units has no speed to compare")
    return shape


def _typical(arm: Series, reference: Series) -> _Sums:
    """Estimate each case's seconds for both arms, by M-estimates of their log ratio and medians of their log geometric mean."""
    ours, theirs = (
        [[math.log(x) for x in column] for column in zip(*s.seconds, strict=True)] for s in (arm, reference)
    )
    columns = list(zip(ours, theirs, strict=True))
    ratios = locate([[b - a for a, b in zip(x, y, strict=True)] for x, y in columns])
    levels = middle([[(a + b) / 2 for a, b in zip(x, y, strict=True)] for x, y in columns])
    pairs = list(zip(levels, ratios, strict=True))
    return _Sums(
        arm_units=[sum(column) for column in zip(*arm.units, strict=True)],
        reference_units=[sum(column) for column in zip(*reference.units, strict=True)],
        arm_seconds=[math.exp(level.value - ratio.value / 2) for level, ratio in pairs],
        reference_seconds=[math.exp(level.value + ratio.value / 2) for level, ratio in pairs],
        ratios=ratios,
        levels=levels,
    )


def _shares(parts: Sequence[float]) -> list[float]:
    total = sum(parts)
    return [part / total for part in parts]


def _over_cases(sums: _Sums, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """Return both ends of the log ratio's interval for inputs like these."""
    cases = len(sums.arm_units)
    low, high = _expanded_percentiles(_replicates(sums, resamples, seed), cases, confidence)
    if 2.0 ** (1 - cases) > 1 - confidence:
        center = sums.log_ratio()
        variance = sum(x**2 for x in sums.influences()) / (cases * (cases - 1))
        far = reach([variance], cases - 1, confidence)
        low, high = min(low, center - far), max(high, center + far)
    return low, high


def _replicates(sums: _Sums, resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the finite bootstrap replicates of the log ratio, cases drawn with replacement."""
    import numpy as np

    generator = np.random.default_rng(seed)
    cases = len(sums.arm_units)
    weights = generator.multinomial(cases, np.full(cases, 1 / cases), size=resamples).astype(np.float64)
    # A resample may hold only inputs that produced nothing; such a replicate has no speed and is left out.
    with np.errstate(divide="ignore", invalid="ignore"):
        ours, theirs = (
            np.log(weights @ np.asarray(units, np.float64)) - np.log(weights @ np.asarray(seconds, np.float64))
            for units, seconds in (
                (sums.arm_units, sums.arm_seconds),
                (sums.reference_units, sums.reference_seconds),
            )
        )
        replicates: NDArray[np.float64] = ours - theirs
    return replicates[np.isfinite(replicates)]


def _expanded_percentiles(replicates: NDArray[np.float64], n: int, confidence: float) -> tuple[float, float]:
    """Return both ends of the percentile interval, widened for `n` resampled cases."""
    import numpy as np

    if replicates.size == 0:
        return -math.inf, math.inf
    stretch = math.sqrt(n / (n - 1)) * student_quantile(0.5 + confidence / 2, n - 1)
    tail = NormalDist().cdf(-stretch)
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def _exp(log: float) -> float:
    return math.inf if log > 700 else math.exp(log)  # math.exp raises from 710 on
