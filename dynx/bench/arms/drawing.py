"""Benchmark arms for pipelines that draw: the unmodified run, fewer steps for all pictures, and dynamic.

A case is a prompt and a seed; every arm draws one picture of it. Static arms are the pipeline's own scheduler with fewer steps,
and DPM-Solver++ over as many evenly chosen steps of its grid. Speed alone proves nothing here: dynamic is compared with
the cheapest static arm whose tail is as good, where the tail is the SSIM to plain's picture that 5 % of pictures are below.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from dynx.bench.measurements import Outcome
from dynx.bench.runner import Arm
from dynx.bench.statistics import median
from dynx.diffusion.apply_profile import strength_of
from dynx.diffusion.generator import DEFAULT_SOLVER
from dynx.diffusion.schedule import Schedule
from dynx.diffusion.similarity import scales_for, ssim, tails
from dynx.errors import ModelError, UsageError
from dynx.runtime.binomial import two_sided

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dynx.bench.measurements import JSON, Group, Measurements
    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.generator import ImageGenerator
    from dynx.diffusion.similarity import Tails
    from dynx.diffusion.types import Picture

    Pixels = NDArray[np.uint8]

FIRST_SEED = 1 << 20
"""Seed of the first pair; calibration draws with seeds far below, so these pictures are new to the profile."""

MIN_TAIL_PICTURES = 20
"""Pictures from which the 5th percentile differs from the worst."""

EQUAL_COST_FACTOR = 1.25
"""Factor up to which two arms cost about the same."""


class Pair(NamedTuple):
    """One picture to draw; the prompt is empty for a pipeline that takes none."""

    prompt: str
    seed: int


def pairs(prompts: Sequence[str], count: int) -> list[Pair]:
    """Return `count` pairs, each with a seed of its own; prompts repeat where there are fewer. Raises UsageError for none."""
    if not prompts:
        raise UsageError("there are no prompts")
    return [Pair(prompts[i % len(prompts)], FIRST_SEED + i) for i in range(count)]


def own_arms(
    artist: ImageGenerator, steps: Sequence[int], comparison: PictureComparison, clock: Callable[[], float]
) -> list[Arm[Pair]]:
    """Build plain (the reference), static in each number of steps below plain's by either solver, and dynamic.

    Where the pipeline only runs plainly, the static arms are its author's scheduler alone.
    """

    def arm(name: str, draw: Callable[[Pair], Picture]) -> Callable[[Pair], Outcome]:
        def run(pair: Pair) -> Outcome:
            began = clock()
            picture = draw(pair)
            seconds = clock() - began
            return _outcome(picture, seconds, comparison.add(name, pair, picture))

        return run

    engine = artist.assembly.engine
    sample = replace(artist.request("", 0), steps=None)
    strength = strength_of(engine)
    fewer = [n for n in steps if n < engine.adapter.default_steps and int(n * (strength or 1)) >= 1]
    arms = [Arm(comparison.reference, arm(comparison.reference, _plain(artist)), "plain", reference=True)]
    arms += [Arm(f"author {n}", arm(f"author {n}", _by_its_author(artist, n)), "static") for n in fewer]
    if fewer and engine.plain_reason(sample) is None:
        grid = engine.initial_call(sample).grid
        for n in fewer:
            if n < len(grid):
                name, schedule = f"{DEFAULT_SOLVER} {n}", Schedule(DEFAULT_SOLVER, grid.thinned(n))
                arms.append(Arm(name, arm(name, _by_schedule(artist, schedule)), "static"))
    arms.append(Arm("dynamic", arm("dynamic", lambda pair: artist.draw(pair.prompt, pair.seed)), "dynamic"))
    return arms


def further_arm(
    name: str,
    group: Group,
    artist: ImageGenerator,
    steps: Sequence[int],
    comparison: PictureComparison,
    clock: Callable[[], float],
) -> Arm[Pair]:
    """Build one more arm: another pipeline or other settings, with its author's scheduler where a number of steps is given."""
    draw = _by_its_author(artist, steps[0]) if steps else lambda pair: artist.draw(pair.prompt, pair.seed)

    def run(pair: Pair) -> Outcome:
        began = clock()
        picture = draw(pair)
        seconds = clock() - began
        return _outcome(picture, seconds, comparison.add(name, pair, picture))

    return Arm(name, run, group)


def _plain(artist: ImageGenerator) -> Callable[[Pair], Picture]:
    return lambda pair: artist.assembly.engine.reference.draw(replace(artist.request(*pair), steps=None))[0]


def _by_its_author(artist: ImageGenerator, steps: int) -> Callable[[Pair], Picture]:
    return lambda pair: artist.assembly.engine.draw(replace(artist.request(*pair), steps=steps))[0]


def _by_schedule(artist: ImageGenerator, schedule: Schedule) -> Callable[[Pair], Picture]:
    return lambda pair: artist.assembly.engine.draw(replace(artist.request(*pair), steps=None), schedule)[0]


def _outcome(picture: Picture, seconds: float, print_: str) -> Outcome:
    receipt = picture.stats
    facts: dict[str, JSON] = {
        "calls": receipt.calls,
        "rows": receipt.rows,
        "steps_run": receipt.run,
        "steps_skipped": receipt.skipped,
        "steps_unguided": receipt.unguided,
    }
    return Outcome(1, seconds, print_, facts)


class PictureComparison:
    """Compares the pictures of a case with the reference's while they are in memory, and keeps only the numbers.

    It relies on the order of `runner.measure`: all arms take a case one after another, each once.
    """

    def __init__(self, reference: str = "plain", alike: Callable[[Pixels, Pixels], float] | None = None) -> None:
        self.reference, self._alike = reference, alike
        self.repeats: dict[Pair, float] = {}
        """SSIM of the reference's later pictures of a case to its first, the worst for each: the noise floor."""
        self._case: Pair | None = None
        self._block: dict[str, tuple[str, Pixels]] = {}
        self._first: dict[Pair, tuple[str, Pixels]] = {}
        self._known: dict[tuple[str, str], float] = {}
        self._meaning: dict[tuple[str, str], float] = {}

    def add(self, arm: str, pair: Pair, picture: Picture) -> str:
        """Compare a picture and return its fingerprint.

        Raises ModelError where there is no picture, UsageError where it can't be compared.
        """
        if picture.error is not None:
            raise ModelError(f"no picture: {picture.error}", hint="try `dtype` float32")
        pixels = picture.bytes8()
        height, width = pixels.shape[:2]
        if not scales_for(min(height, width)):
            raise UsageError(f"pictures of {width}×{height} are too small to be compared by SSIM")
        print_ = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()
        if pair != self._case or arm in self._block:
            self._case, self._block = pair, {}
        self._block[arm] = print_, pixels
        if arm == self.reference:
            if pair in self._first:
                self.repeats[pair] = min(
                    self.repeats.get(pair, 1.0), self._compare((print_, pixels), self._first[pair])
                )
            else:
                self._first[pair] = print_, pixels
        if self.reference in self._block:
            for other in self._block.values() if arm == self.reference else [self._block[arm]]:
                self._compare(other, self._block[self.reference])
        return print_

    def ssim(self, ours: str, reference: str) -> float:
        """Return the SSIM of two fingerprints from the same case and round."""
        return self._known[ours, reference]

    def clip(self, ours: str, reference: str) -> float | None:
        """Return their CLIP similarity, None where the pipeline has no vision tower."""
        return self._meaning.get((ours, reference))

    def _compare(self, ours: tuple[str, Pixels], theirs: tuple[str, Pixels]) -> float:
        key = ours[0], theirs[0]
        if key not in self._known:
            self._known[key] = 1.0 if key[0] == key[1] else ssim(ours[1], theirs[1])
            if self._alike is not None:
                self._meaning[key] = 1.0 if key[0] == key[1] else self._alike(ours[1], theirs[1])
        return self._known[key]


@dataclass(frozen=True)
class Quality:
    """Similarity of one arm's pictures to plain's, and their mean cost in network calls and rows."""

    likeness: tuple[float, ...]
    """SSIM to plain's picture, for each pair the worst of all rounds."""
    calls: float
    rows: float
    meaning: tuple[float, ...] = ()
    """CLIP similarity in the same way; () where the pipeline carries no vision tower."""

    @cached_property
    def tails(self) -> Tails:
        """Percentiles of the SSIM."""
        return tails(self.likeness)

    def reached(self, bar: float) -> int:
        """Count the pictures with at least that SSIM."""
        return sum(value >= bar for value in self.likeness)

    def json(self) -> dict[str, JSON]:
        """Return an arm's facts for the JSON document."""
        clip = tails(self.meaning).json() if self.meaning else None
        return {"mean_calls": self.calls, "mean_rows": self.rows, "ssim": self.tails.json(), "clip": clip}


def judge(measured: Measurements, comparison: PictureComparison) -> dict[str, Quality]:
    """Return the quality of each arm that was measured."""
    if not measured.rounds:
        return {}
    reference = measured.samples[measured.reference]
    found = {}
    for arm, samples in measured.samples.items():
        if not samples:
            continue
        worst, meaning = [1.0] * measured.cases, [1.0] * measured.cases
        seen = False
        for ours, theirs in zip(samples, reference, strict=False):  # an arm may have fewer rounds
            pair = str(ours.output), str(theirs.output)
            worst[ours.case] = min(worst[ours.case], comparison.ssim(*pair))
            clip = comparison.clip(*pair)
            if clip is not None:
                seen, meaning[ours.case] = True, min(meaning[ours.case], clip)
        calls, rows = (_mean(float(str(s.facts[fact])) for s in samples) for fact in ("calls", "rows"))
        found[arm] = Quality(tuple(worst), calls, rows, tuple(meaning) if seen else ())
    return found


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def columns(quality: Mapping[str, Quality]) -> dict[str, dict[str, str]]:
    """Return calls and tails for tables, by title and arm."""
    made: dict[str, dict[str, str]] = {"calls": {}, "SSIM p5": {}, "worst": {}}
    for arm, q in quality.items():
        made["calls"][arm] = f"{q.calls:.1f}"
        made["SSIM p5"][arm], made["worst"][arm] = _figure(q.tails.p5), _figure(q.tails.worst)
    return made


@dataclass(frozen=True)
class StaticComparison:
    """Comparison of the dynamic arm with the static ones; empty where it wasn't measured."""

    speeds: Mapping[str, float]
    """Pictures per second, the median over rounds."""
    quality: Mapping[str, Quality]
    statics: tuple[str, ...]
    target: float
    """SSIM that was asked for."""

    @classmethod
    def of(cls, measured: Measurements, quality: Mapping[str, Quality], target: float) -> StaticComparison:
        """Compare what was measured."""
        speeds = {arm: median(measured.series(arm).speeds()) for arm in quality}
        statics = tuple(arm for arm in quality if measured.groups[arm] == "static")
        return cls(speeds, quality, statics, target)

    @property
    def bars(self) -> dict[str, float]:
        """SSIM that a static arm must reach to be compared with dynamic: its p5, and what was asked for where that is less."""
        if "dynamic" not in self.quality:
            return {}
        p5 = self.quality["dynamic"].tails.p5
        bars = {"the cheapest static of equal p5": p5}
        return bars | {f"the cheapest static of p5 {self.target:g}": self.target} if self.target < p5 else bars

    def good(self, bar: float) -> list[str]:
        """Return the static arms whose p5 reaches a bar."""
        return [arm for arm in self.statics if self.quality[arm].tails.p5 >= bar]

    def baselines(self) -> dict[str, str]:
        """Return the fastest static arm that reaches each bar, by the words for the bar."""
        found: dict[str, str] = {}
        for words, bar in self.bars.items():
            good = self.good(bar)
            fastest = max(good, key=self.speeds.__getitem__, default=None)
            if fastest is not None and fastest not in found.values():
                found[words] = fastest
        return found

    def about_as(self, cost: Callable[[str], float]) -> str | None:
        """Return the static arm of about dynamic's cost, of several the one with the best tail; None without any."""
        if "dynamic" not in self.quality or not self.statics:
            return None

        def away(arm: str) -> float:
            return abs(math.log(cost(arm) / cost("dynamic")))

        nearest = min(map(away, self.statics))
        if nearest > math.log(EQUAL_COST_FACTOR):
            return None
        alike = [arm for arm in self.statics if away(arm) <= nearest + 1e-9]
        return max(alike, key=lambda arm: self.quality[arm].tails.p5)

    def sentences(self) -> list[str]:
        """Return sentences that compare dynamic's pictures and calls with the static arms'."""
        own = self.quality.get("dynamic")
        if own is None:
            return []
        n, reached = len(own.likeness), own.reached(self.target)
        low, high = two_sided(n, reached, 0.05)
        share = f"{100 * reached / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        out = [
            f"dynamic: {_cost(own)} a picture to plain's {self.quality['plain'].calls:.1f}; SSIM to plain's pictures "
            f"{_tail(own)}, median {_figure(own.tails.median)}; at least {self.target:g} in {reached:,} of {n:,}, {share}"
        ]
        if own.meaning:
            clip = tails(own.meaning)
            out.append(f"CLIP similarity to plain's pictures: p5 {_figure(clip.p5)}, worst {_figure(clip.worst)}")
        if n < MIN_TAIL_PICTURES:
            out.append(
                f"of {n} pictures p5, the SSIM that 5 % are below, is the worst: {MIN_TAIL_PICTURES} would tell them apart"
            )
        if own.calls >= self.quality["plain"].calls:
            return out
        out += [self._at(bar) for bar in self.bars.values()]
        out += self._at_equal_cost()
        return out

    def _at(self, bar: float) -> str:
        """Say which static arm reaches a bar with the fewest calls."""
        good, own = self.good(bar), self.quality["dynamic"]
        whose = "as dynamic's" if bar == own.tails.p5 else "as asked for"
        if not good:
            return f"at p5 {_figure(bar)}, {whose}: no static arm reaches it"
        least = min(good, key=lambda arm: self.quality[arm].calls)
        q = self.quality[least]
        return f"at p5 {_figure(bar)}, {whose}: {least} takes {_cost(q)}, {q.calls / own.calls:.2f}x of dynamic's"

    def _at_equal_cost(self) -> list[str]:
        by_calls = self.about_as(lambda arm: self.quality[arm].calls)
        by_time = self.about_as(lambda arm: 1 / self.speeds[arm])
        both = by_calls == by_time
        out = []
        for what, arm in (("calls and time" if both else "calls", by_calls), ("time", None if both else by_time)):
            if arm is not None:
                said = f"{arm} ({_cost(self.quality[arm])}) {_tail(self.quality[arm])}"
                out.append(f"at about equal {what}: {said}; dynamic {_tail(self.quality['dynamic'])}")
        return out


def _cost(q: Quality) -> str:
    return f"{q.calls:.1f} network calls"


def _tail(q: Quality) -> str:
    return f"p5 {_figure(q.tails.p5)}, worst {_figure(q.tails.worst)}"


def _figure(likeness: float) -> str:
    """Format an SSIM with three decimals, rounded down, so that no value seems to reach a bar that it misses."""
    return "1" if likeness >= 1 else f"{math.floor(likeness * 1000 + 1e-9) / 1000:.3f}"


def floor(comparison: PictureComparison) -> str | None:
    """Say how similar the plain run is to itself; None where nothing was drawn twice."""
    if not comparison.repeats:
        return None
    found = tails(list(comparison.repeats.values()))
    if found.worst == 1:
        return "noise floor: plain draws the same picture to the bit each time"
    return f"noise floor: plain drawn again has SSIM p5 {_figure(found.p5)}, worst {_figure(found.worst)} to itself"


def why_plain(assembly: LoadedImageGenerator) -> str | None:
    """Return the reason why dynamic is plain here, None where it isn't."""
    return None if assembly.step_profile is not None else assembly.why_plain
