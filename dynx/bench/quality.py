"""Quality of an arm's outputs, by the measure of its task: shown beside speed in tables and plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynx.bench.result import ArmResult, BenchResult

QUALITY_NAMES = {
    "generate": "answers equal to plain's",
    "classify": "labels equal to the full model's",
    "draw": "SSIM to plain that 95 % of pictures reach",
}


@dataclass(frozen=True)
class Quality:
    """Quality of one arm's outputs, at most 1, with an interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None
    share: bool = True
    """Whether it is a share, shown in per cent."""


def quality_of(result: BenchResult, arm: ArmResult) -> Quality | None:
    """Return the quality of an arm by the measure of its task (`QUALITY_NAMES`), None where nothing was measured."""
    if arm.ratio is None and not arm.reference:
        return None
    agreement: Any = arm.facts.get("agreement")
    if result.task == "classify" and isinstance(agreement, Mapping):
        return Quality(agreement["value"], agreement["low"], agreement["high"])
    similarity: Any = arm.facts.get("ssim")
    if result.task == "draw":
        return Quality(similarity["p5"], share=False) if isinstance(similarity, Mapping) else None
    return None if arm.identical is None else Quality(arm.identical)
