"""What a result has to show besides its ratios: how good each arm is, and what the dynamic arm did with the inputs.

Numbers only, taken from a result's arms; `charts` draws them and `page` says them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynx.bench.report import ArmResult, BenchResult

FEWEST_JUDGED = 5
"""Drafts at a position from which on the share that was kept is shown."""

QUALITIES = {
    "generate": "answers equal to plain's",
    "classify": "labels equal to the full model's",
    "draw": "SSIM to plain that 95 % of pictures reach",
}


@dataclass(frozen=True)
class Quality:
    """How good one arm's outputs are, 1 for as good as can be; with an interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None
    share: bool = True
    """Whether it is a share, to be told in per cent."""

    def __str__(self) -> str:
        if not self.share:
            return f"{self.value:.3f}"
        text = f"{100 * self.value:.2f}".rstrip("0").rstrip(".") if self.value < 1 else "100"
        return f"{text} %"


def quality_of(result: BenchResult, arm: ArmResult) -> Quality | None:
    """By the measure of its task (see `QUALITIES`); None where nothing was measured."""
    if arm.ratio is None and not arm.reference:
        return None
    agreement: Any = arm.facts.get("agreement")
    if result.task == "classify" and isinstance(agreement, Mapping):
        return Quality(agreement["value"], agreement["low"], agreement["high"])
    likeness: Any = arm.facts.get("ssim")
    if result.task == "draw":
        return Quality(likeness["p5"], share=False) if isinstance(likeness, Mapping) else None
    return None if arm.identical is None else Quality(arm.identical)


@dataclass(frozen=True)
class Point:
    """An arm by speed and quality; `best` where no other is both faster and as good."""

    arm: ArmResult
    ratio: float
    quality: Quality
    best: bool


def frontier(result: BenchResult) -> list[Point]:
    """The arms by speed, slowest first; none where quality doesn't tell them apart."""
    known = [(a, a.ratio.ratio, q) for a in result.arms if a.ratio and (q := quality_of(result, a)) is not None]
    if len({round(q.value, 6) for _, _, q in known}) < 2:
        return []

    def beaten(ratio: float, quality: Quality) -> bool:
        return any(
            r >= ratio and q.value >= quality.value and (r, q.value) != (ratio, quality.value) for _, r, q in known
        )

    points = [Point(arm, ratio, quality, not beaten(ratio, quality)) for arm, ratio, quality in known]
    return sorted(points, key=lambda p: (p.ratio, -p.quality.value))


@dataclass(frozen=True)
class Kept:
    """One drafter's drafts at each position from the first: how many the model judged, and how many it kept."""

    drafter: str
    judged: Sequence[int]
    kept: Sequence[int]

    def shares(self) -> list[tuple[int, float]]:
        """(position from 1, share kept), while enough were judged."""
        out = []
        for i, (judged, kept) in enumerate(zip(self.judged, self.kept, strict=True), start=1):
            if judged < FEWEST_JUDGED:
                break
            out.append((i, kept / judged))
        return out


def acceptance(result: BenchResult) -> list[Kept]:
    """The dynamic arm's drafters, the busiest first."""
    tallies: Any = _dynamic_facts(result).get("by_position") or {}
    made = [Kept(origin, tuple(t["submitted"]), tuple(t["accepted"])) for origin, t in tallies.items()]
    return sorted((k for k in made if k.shares()), key=lambda k: -sum(k.judged))


def exits(result: BenchResult) -> list[tuple[int, int]]:
    """(layer, answers that left after it) of the dynamic arm, by depth."""
    left: Any = _dynamic_facts(result).get("left_after") or {}
    return sorted((int(layer), int(count)) for layer, count in left.items())


def steps(result: BenchResult) -> list[tuple[int, int]]:
    """(steps, pictures drawn in so many) of the dynamic arm's first round, fewest first."""
    for arm in result.arms:
        if arm.group == "dynamic" and result.task == "draw":
            runs: list[Any] = [s.facts.get("steps_run") for s in arm.samples[: result.cases]]
            return sorted(Counter(int(n) for n in runs if n is not None).items())
    return []


def _dynamic_facts(result: BenchResult) -> Mapping[str, Any]:
    return next((arm.facts for arm in result.arms if arm.group == "dynamic"), {})
