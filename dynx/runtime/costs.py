"""Estimates the time of a forward pass from its number of tokens and the context before them.

A `CostCurve` starts from a table that calibration measured, or from nothing, and keeps learning from the passes that the
engine times anyway. Two things change under way and are kept apart: the machine gets slower or faster as a whole
(`Drift`, shared by all curves of a process, since a neighbour's load slows drafter and target alike), and single widths
cost other than the table says (a slow correction per width). Without that split, a slow moment would make the width in use
look worse than the widths that were not.

Times are seconds. Letters: n tokens in the pass, c tokens of context before it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from statistics import median

PRIOR_SLOPE = 0.03
"""Relative extra cost assumed for each further token of an unmeasured width; small models on a CPU measure 0.01 to 0.1."""

DRIFT_RATE = 0.1
WIDTH_RATE = 0.01
"""Steps of the exponential averages, in log space: drift follows within ten passes, a width's own correction ten times slower,
so that a tenth of a change of pace, at most, is mistaken for a change of the widths in use."""

CALIBRATED_WEIGHT = 100.0
"""Weight of a calibrated time, in measurements; the largest that any time gets."""

FOREIGN_WEIGHT = 0.0
"""Weight of another machine's time, in measurements; the first pass here replaces it."""

MAX_SLOWDOWN = 2.0
"""Factor to which a pass's time over its expectation is limited, against page faults and scheduler pauses."""

MIN_SECONDS = 1e-7
"""Smallest time of a pass, in seconds, where extrapolation over contexts goes below."""


@dataclass
class Drift:
    """How much slower than its tables the machine runs at the moment; 1 is as measured."""

    factor: float = 1.0


@dataclass
class CostCurve:
    """Seconds of a forward pass of n tokens after c.

    `table` maps n to (seconds at context `reference`, how many measurements stand behind it). Kernels work in steps of several
    tokens, so costs may jump between two neighbours: what lies between measured widths is a line, which measuring both ends of
    the usual steps keeps from crossing one.
    """

    drift: Drift = field(default_factory=Drift)
    table: dict[int, tuple[float, float]] = field(default_factory=dict)
    per_context: float = 0.0  # extra seconds for each token of context beyond `reference`
    reference: int = 0
    slopes: dict[int, float] = field(default_factory=dict)  # `per_context` by width, where widths differ in it
    padded: Mapping[int, int] = field(default_factory=dict)  # widths that run as another one
    _line: list[float] = field(default_factory=list, init=False, repr=False, compare=False)  # of widths 1, 2, …
    _rises: list[float] = field(default_factory=list, init=False, repr=False, compare=False)  # their slopes
    _changed: int = field(default=0, init=False, repr=False, compare=False)  # the width that `_line` must catch up with

    @property
    def known(self) -> bool:
        """Whether anything has been measured."""
        return bool(self.table)

    def pad(self, lengths: Mapping[int, int]) -> None:
        """Give widths the time of those that they run as: two times for the same pass would part by chance."""
        self.padded, self._line, self._rises = lengths, [], []
        for n in [n for n in lengths if n in self.table and lengths[n] in self.table]:
            del self.table[n]

    @property
    def widest(self) -> int:
        """The widest pass measured; 0 if none was."""
        return max(self.table, default=0)

    def __call__(self, n: int, context: int = 0) -> float:
        """Seconds expected now for a pass of `n` tokens after `context`; 0 where nothing was measured."""
        if not self.table or n <= 0:
            return 0.0
        return self.drift.factor * max(self._base(n) + self.slope(n) * (context - self.reference), MIN_SECONDS)

    def slope(self, n: int) -> float:
        """Return the extra seconds of a pass of `n` tokens for each token of context: a line between measured widths."""
        if not self.slopes:
            return self.per_context
        n = self.padded.get(n, n)
        widths = sorted(self.slopes)
        at = bisect_left(widths, n)
        if at == len(widths) or at == 0:
            return self.slopes[widths[min(at, len(widths) - 1)]]
        low, high = widths[at - 1], widths[at]
        return self.slopes[low] + (n - low) / (high - low) * (self.slopes[high] - self.slopes[low])

    def _base(self, n: int) -> float:
        n = self.padded.get(n, n)
        if n in self.table:
            return self.table[n][0]
        widths = sorted(self.table)
        at = bisect_left(widths, n)
        if at == 0:
            low, value = widths[0], self.table[widths[0]][0]
            return value / (1 + PRIOR_SLOPE * (low - n))
        low = widths[at - 1]
        below = self.table[low][0]
        if at == len(widths):
            return below * (1 + PRIOR_SLOPE * (n - low))
        high = widths[at]
        share = (n - low) / (high - low)
        return below + share * (self.table[high][0] - below)

    def upto(self, n: int, context: int = 0) -> list[float]:
        """Seconds expected now for passes of 1 … n tokens, each what a call would give.

        Remembers the interpolation, so change `table` by `observe` only.
        """
        if not self.table:
            return [0.0] * n
        if self._changed:
            self._redraw(self._changed)
            self._changed = 0
        last = max(n, max((self.padded[width] for width in self.padded if width <= n), default=0))
        if len(self._line) < last:
            self._line = self._interpolate(last)
        line = self._line[:n]
        for width, run in self.padded.items():
            if width <= n:
                line[width - 1] = self._line[run - 1]
        factor, beyond = self.drift.factor, context - self.reference
        if self.slopes:
            self._rises.extend(self.slope(width) for width in range(len(self._rises) + 1, n + 1))
            return [
                factor * max(base + rise * beyond, MIN_SECONDS) for base, rise in zip(line, self._rises, strict=False)
            ]
        more = self.per_context * beyond
        if more >= 0:
            return [factor * (base + more) for base in line]
        return [factor * max(base + more, MIN_SECONDS) for base in line]

    def _interpolate(self, n: int) -> list[float]:
        knots = [(width, seconds) for width, (seconds, _) in sorted(self.table.items()) if width <= n]
        if n not in self.table:
            knots.append((n, self._base(n)))
        line = [self._base(width) for width in range(1, knots[0][0] + 1)]
        for (low, below), (high, above) in pairwise(knots):
            step = (above - below) / (high - low)
            line.extend([below + step * i for i in range(1, high - low)])
            line.append(above)
        return line

    def _redraw(self, n: int) -> None:
        """Bring the interpolation up to date next to width `n`, or forget it where that takes more than its neighbours."""
        line, low, high = self._line, n - 1, n + 1
        while low > 0 and low not in self.table:
            low -= 1
        while high <= len(line) and high not in self.table:
            high += 1
        if n > len(line) or (low == 0 < n - 1) or (high > len(line) and n < len(line)):
            self._line = []
            return
        here = line[n - 1] = self.table[n][0]
        for other in (low, high):
            if 0 < other <= len(line):
                step = (line[other - 1] - here) / (other - n)
                for width in range(min(other, n) + 1, max(other, n)):
                    line[width - 1] = here + step * (width - n)

    def observe(self, n: int, context: int, seconds: float, *, limit: float = MAX_SLOWDOWN) -> None:
        """Learn from a pass that took `seconds`; a width's first is trusted up to `limit` times its expectation."""
        n = self.padded.get(n, n)
        seconds = max(seconds, MIN_SECONDS)  # what takes less than the clock shows doesn't make the machine faster
        if n not in self.table:
            self._line = []
            guess = self._base(n) if self.table else 0.0
            base = seconds / self.drift.factor - self.slope(n) * (context - self.reference)
            # One sample of a new width may be a hiccup: trust it no further than that, or half, the interpolation.
            self.table[n] = (
                min(max(base, guess / MAX_SLOWDOWN), limit * guess) if guess else max(base, MIN_SECONDS),
                1.0,
            )
            return
        expected = self(n, context)
        ratio = min(max(seconds / expected, 1 / MAX_SLOWDOWN), MAX_SLOWDOWN)
        value, weight = self.table[n]
        settled = weight >= 8
        if settled:
            self.drift.factor *= ratio**DRIFT_RATE
        rate = max(WIDTH_RATE, 1 / (weight + 1))
        self.table[n] = (value * ratio**rate, min(weight + 1, 1 / WIDTH_RATE))
        if self._changed not in (0, n):
            self._line = []
        self._changed = n

    def begin(self, n: int, seconds: float) -> None:
        """Take the first time of a width as it is, whatever was expected."""
        self.table[n], self._line = (max(seconds / self.drift.factor, MIN_SECONDS), 1.0), []

    def to_json(self) -> dict[str, object]:
        """For a profile: drift left out, it belongs to the moment."""
        by_width = {"seconds_per_context_token_by_width": {str(n): s for n, s in sorted(self.slopes.items())}}
        return {
            "reference_context": self.reference,
            "seconds_per_context_token": self.per_context,
            "seconds_by_width": {str(n): v for n, (v, _) in sorted(self.table.items())},
            **(by_width if self.slopes else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object], drift: Drift) -> CostCurve:
        """Build the curve that `to_json` described. Raises KeyError, TypeError or ValueError on anything else."""
        by_width, slopes = data["seconds_by_width"], data.get("seconds_per_context_token_by_width", {})
        if not isinstance(by_width, Mapping) or not isinstance(slopes, Mapping):
            raise TypeError("seconds by width are not an object")
        curve = cls(drift, {int(n): (float(v), CALIBRATED_WEIGHT) for n, v in by_width.items()})
        curve.per_context = _number(data["seconds_per_context_token"])
        curve.reference = int(_number(data["reference_context"]))
        curve.slopes = {int(n): _number(s) for n, s in slopes.items()}
        return curve

    @classmethod
    def fit(cls, samples: Iterable[tuple[int, int, float]], drift: Drift | None = None) -> CostCurve:
        """From measurements (n, c, seconds): of each width the median at every context, and a slope over contexts.

        Slopes are Theil and Sen's, the median of those between any two contexts, and of each width and its two neighbours the
        middle one counts: single outliers change nothing, and a jump stays one. Passes of one token may read the cache by
        another kernel than wider ones, so their slopes differ. A width without a slope of its own has its neighbours'.
        """
        cells: dict[int, dict[int, list[float]]] = {}
        for n, c, seconds in samples:
            cells.setdefault(n, {}).setdefault(c, []).append(seconds)
        by_width = {
            n: {c: median(values) for c, values in by_context.items()} for n, by_context in sorted(cells.items())
        }
        curve = cls(drift or Drift(), reference=min(c for medians in by_width.values() for c in medians))
        sloped = {n: _theil_sen(medians) for n, medians in by_width.items() if len(medians) > 1}
        found = list(sloped.values())
        for i, n in enumerate(sloped):
            near = found[max(0, i - 1) : i + 2]
            curve.slopes[n] = max(0.0, median(near) if len(near) == 3 else found[i])
        curve.per_context = curve.slope(1)
        for n, medians in by_width.items():
            rise = curve.slope(n)
            base = median(value - rise * (c - curve.reference) for c, value in medians.items())
            curve.table[n] = base, CALIBRATED_WEIGHT
        return curve


def _theil_sen(seconds: Mapping[int, float]) -> float:
    """Return the median slope between any two contexts."""
    return median((y - x) / (high - low) for (low, x), (high, y) in combinations(sorted(seconds.items()), 2))


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is not a number")
    return float(value)
