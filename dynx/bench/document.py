"""A benchmark's result as a JSON document, by the schemas in `dynx.schemas`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING

from dynx.bench.report import sentences
from dynx.bench.result import SCHEMA, SUITE, overall
from dynx.bench.statistics import detectable_effect

if TYPE_CHECKING:
    from dynx.bench.measurements import JSON
    from dynx.bench.result import ArmResult, BenchResult, Comparison
    from dynx.bench.statistics import RatioEstimate


def to_document(result: BenchResult) -> dict[str, JSON]:
    """Return the document as plain dicts and lists, without any non-finite number."""
    document = _plain(
        {
            "schema": SCHEMA,
            "task": result.task,
            "unit": result.unit,
            "header": result.header,
            "cases": result.cases,
            "rounds": result.rounds,
            "seconds": result.elapsed,
            "stopped": result.stopped,
            "arms": [_arm_document(arm) for arm in result.arms],
            "comparisons": [_comparison_document(item) for item in result.comparisons],
            **_categories_document(result),
            "gates": [vars(gate) for gate in result.gates],
            "verdict": result.verdict,
            "reading": sentences(result),
        }
    )
    assert isinstance(document, dict)  # noqa: S101 -- for the type checker: a mapping went in
    return document


def to_json(results: Sequence[BenchResult]) -> str:
    """Return one JSON document for one result or a suite of several, schema first; what isn't finite is null."""
    document: Mapping[str, JSON]
    if len(results) == 1:
        document = to_document(results[0])
    else:
        document = {
            "schema": SUITE,
            "verdict": overall(gate for result in results for gate in result.gates),
            "results": [to_document(result) for result in results],
        }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _arm_document(arm: ArmResult) -> dict[str, object]:
    return {
        "name": arm.name,
        "group": arm.group,
        "reference": arm.reference,
        "speed": arm.speed,
        "ratio": _ratio_document(arm.ratio),
        "identical": arm.identical,
        "outliers": arm.outliers,
        "facts": arm.facts,
        "failure": vars(arm.failure) if arm.failure else None,
        # Outputs stay out: a bench of long texts would drown its figures.
        "samples": [
            {
                "round": sample.round,
                "case": sample.case,
                "position": sample.position,
                "units": sample.units,
                "seconds": sample.seconds,
                "facts": sample.facts,
            }
            for sample in arm.samples
        ],
    }


def _comparison_document(item: Comparison) -> dict[str, object]:
    return {
        "arm": item.arm,
        "baseline": item.baseline,
        "basis": item.basis,
        "ratio": _ratio_document(item.ratio),
    }


def _categories_document(result: BenchResult) -> dict[str, object]:
    """Return the categories, where there are any."""
    if not result.categories:
        return {}
    return {
        "categories": [
            {
                "name": category.name,
                "cases": category.cases,
                "arms": [
                    {"name": a.name, "speed": a.speed, "ratio": _ratio_document(a.ratio), "identical": a.identical}
                    for a in category.arms
                ],
                "comparisons": [_comparison_document(item) for item in category.comparisons],
            }
            for category in result.categories
        ]
    }


def _ratio_document(ratio: RatioEstimate | None) -> dict[str, object] | None:
    if ratio is None:
        return None
    return {
        "ratio": ratio.ratio,
        "low": ratio.low if ratio.bounded else None,
        "high": ratio.high,
        "confidence": ratio.confidence,
        "pairs": ratio.pairs,
        "scope": ratio.scope,
        "estimator": ratio.estimator,
        "here": None if (here := ratio.here) is None else {**vars(here), "low": here.low if here.bounded else None},
        "leaving_one_out": ratio.leaving_one_out,
        "detectable": detectable_effect(ratio.on_these()),
    }


def _plain(value: object) -> JSON:
    """Return `value` as JSON can hold it: what isn't finite as null, NumPy's numbers as numbers, paths as text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return str(value)
