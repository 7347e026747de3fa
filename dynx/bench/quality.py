"""How good an arm's outputs are, by the measure of its task: what tables hold beside speed, and plots draw it against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynx.bench.result import ArmResult, BenchResult

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
