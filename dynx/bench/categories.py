"""Condenses a measurement for each kind of its inputs: one that gains may hide another that loses.

result = by_category(result, measured, labels=["qa", "code", "qa"], rng=random.Random(0))
result.categories[0].arms[0].ratio
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dynx.bench.gates import min_speedup
from dynx.bench.report import CONFIDENCE, summarize
from dynx.bench.result import Category

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from dynx.bench.measurements import Measurements
    from dynx.bench.result import BenchResult, Gate


def by_category(
    result: BenchResult,
    measured: Measurements,
    labels: Sequence[str],
    *,
    rng: random.Random,
    confidence: float = CONFIDENCE,
) -> BenchResult:
    """Return the result with its categories, in the order in which they first occur; with fewer than two there are none.

    `labels` has each case's category. Gates of several categories are judged at once, so that intervals which hold together with
    `confidence` are wider, by Bonferroni's inequality. Each category's best static arm is chosen anew.
    """
    cases: dict[str, list[int]] = {}
    for case, label in enumerate(labels[: measured.cases]):
        cases.setdefault(label, []).append(case)
    if len(cases) < 2 or not measured.rounds:
        return result
    together = 1 - (1 - confidence) / len(cases)
    found = []
    for label, own in cases.items():
        part = summarize(
            measured.only(own), task=result.task, unit=result.unit, header=result.header, rng=rng, confidence=together
        )
        found.append(Category(label, len(own), part.arms, part.comparisons))
    return replace(result, categories=tuple(found))


def min_speedup_of_each(result: BenchResult, arm: str, bar: float, *, tolerance: float = 0.0) -> list[Gate]:
    """Judge the arm's speed in every category, as `min_speedup` does over all inputs."""
    gates = []
    for category in result.categories:
        own = next(each for each in category.arms if each.name == arm)
        failure = own.failure.message if own.failure else None
        name = f"min-speedup {category.name}"
        gates.append(min_speedup(own.ratio, bar, failure=failure, name=name, tolerance=tolerance))
    return gates
