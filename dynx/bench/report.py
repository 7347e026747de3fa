"""The result of a bench: one object, read by people as a table or Markdown and by machines as JSON.

It condenses measurements into arms, comparisons and sentences, and exports them. It runs nothing and judges nothing:
gates come from `dynx.bench.gates`, drawing from `dynx.bench.table`. The JSON follows `dynx.schemas`.

    result = summarize(measurements, task="generate", unit="tokens", header=facts, rng=random.Random(0))
    result = result.judged([min_speedup(result.arm("dynamic").ratio, 1.15)])
    result.export("json:bench.json")
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING

from dynx.bench import table
from dynx.bench.exports import parse_export
from dynx.bench.gates import Gate, Verdict, best_static, overall
from dynx.bench.statistics import (
    OUTLIER_SCORE,
    RESAMPLES,
    detectable_effect,
    median,
    outliers,
    ratio_of_speeds,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable
    from pathlib import Path

    from rich.table import Table

    from dynx.bench.runner import JSON, Failure, Group, Measurements, Sample, Stop
    from dynx.bench.statistics import RatioEstimate, Scope

__all__ = ["BenchResult", "parse_export", "summarize"]

SCHEMA = "dynx.bench/1"
SUITE = "dynx.bench.suite/1"
BEST = "the best static"

CONFIDENCE = 0.95
"""Of the intervals in tables; a gate's may have to be surer."""

FEW_RESAMPLES = 500
"""While a judge looks, as it doesn't judge by those intervals."""

ESTIMATORS = {
    "huber": (
        "ratios are of each input's times by Huber's M-estimate over the rounds (1964), in which a disturbed run counts little"
    ),
    "totals": "one round has no robust estimate: ratios are of total times, in which a disturbed run counts in full",
}
"""How the ratios were made, in words."""


@dataclass(frozen=True)
class ArmResult:
    """One arm, condensed.

    `speed` is the median over rounds of units per second of the whole task; `identical` the share of outputs equal to
    the reference's; `outliers` index into `samples`. An arm that failed has a `failure` and no figures; `ratio` is also
    None when a round produced no units.
    """

    name: str
    group: Group
    reference: bool
    speed: float | None
    ratio: RatioEstimate | None
    identical: float | None
    samples: Sequence[Sample]
    outliers: Sequence[int]
    facts: Mapping[str, JSON]
    failure: Failure | None = None


@dataclass(frozen=True)
class Comparison:
    """A dynamic arm against a static one, paired like every other ratio."""

    arm: str
    baseline: str
    ratio: RatioEstimate
    basis: str = BEST
    """Which of the static arms the baseline is, in words."""


@dataclass(frozen=True)
class BenchResult:
    """Everything one bench found out; `header` says where (device, threads, dtype, versions, model hashes)."""

    task: str
    unit: str
    header: Mapping[str, JSON]
    cases: int
    rounds: int
    elapsed: float
    stopped: Stop
    arms: Sequence[ArmResult]
    comparisons: Sequence[Comparison]
    gates: Sequence[Gate] = ()
    notes: Sequence[str] = ()
    """What else the task has to say, in sentences."""
    case: str = "input"
    """What a case is called: an input, or a part of them."""
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What tables show besides, by title: a cell for each arm by its name."""

    @property
    def verdict(self) -> Verdict | None:
        """The worst verdict of all gates, None without gates."""
        return overall(self.gates)

    @property
    def reference(self) -> ArmResult:
        """The arm that every ratio is taken to."""
        return next(arm for arm in self.arms if arm.reference)

    def arm(self, name: str) -> ArmResult:
        """Return the arm called `name`; raises KeyError when there is none."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)

    def judged(self, gates: Sequence[Gate]) -> BenchResult:
        """Return the same result with these gates."""
        return replace(self, gates=tuple(gates))

    def reading(self) -> tuple[str, ...]:
        """Say in sentences what the figures mean, most important first."""
        return tuple(_sentences(self))

    def to_document(self) -> dict[str, JSON]:
        """Return what `to_json` writes, as plain dicts and lists without any non-finite number."""
        document = _plain(
            {
                "schema": SCHEMA,
                "task": self.task,
                "unit": self.unit,
                "header": self.header,
                "cases": self.cases,
                "rounds": self.rounds,
                "seconds": self.elapsed,
                "stopped": self.stopped,
                "arms": [_arm_document(arm) for arm in self.arms],
                "comparisons": [
                    {
                        "arm": item.arm,
                        "baseline": item.baseline,
                        "basis": item.basis,
                        "ratio": _ratio_document(item.ratio),
                    }
                    for item in self.comparisons
                ],
                "gates": [vars(gate) for gate in self.gates],
                "verdict": self.verdict,
                "reading": self.reading(),
            }
        )
        assert isinstance(document, dict)  # noqa: S101 -- for the type checker: a mapping went in
        return document

    def to_json(self) -> str:
        """Return one JSON document, schema first; what isn't finite is null."""
        return json.dumps(self.to_document(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Return a Markdown page without the samples: it stays far below the 1 MiB that step summaries may have."""
        return table.markdown(self)

    def to_table(self, width: int = 80, *, ascii_only: bool = False) -> Table:
        """Return a rich table for a terminal `width` columns wide."""
        return table.table(self, width, ascii_only=ascii_only)

    def export(self, spec: str, environment: Mapping[str, str] | None = None) -> Path:
        """Write the result as `FORMAT:PATH` says and return the path; see `dynx.bench.exports`."""
        from dynx.bench import exports

        return exports.write([self], spec, environment)


def to_json(results: Sequence[BenchResult]) -> str:
    """One JSON document for one result or several."""
    if len(results) == 1:
        return results[0].to_json()
    suite = {
        "schema": SUITE,
        "verdict": overall(gate for result in results for gate in result.gates),
        "results": [result.to_document() for result in results],
    }
    return json.dumps(suite, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(results: Sequence[BenchResult]) -> str:
    """One page for one result or several."""
    return "\n".join(result.to_markdown() for result in results)


def summarize(
    measurements: Measurements,
    *,
    task: str,
    unit: str,
    header: Mapping[str, JSON],
    rng: random.Random,
    confidence: float = CONFIDENCE,
    scope: Scope = "task",
    facts: Mapping[str, Mapping[str, JSON]] | None = None,
    identical: Mapping[str, float | None] | None = None,
    notes: Sequence[str] = (),
    case: str = "input",
    rivals: Mapping[str, str] | None = None,
    columns: Mapping[str, Mapping[str, str]] | None = None,
) -> BenchResult:
    """Condense measurements into a result without gates.

    `unit` is the plural of what is counted ("tokens"), `case` what one case is called if that isn't a single input. An
    arm's facts are merged over its samples (numbers by their median, anything else where all samples agree); `facts` adds
    or overrides per arm, and so does `identical` where an output holds several answers that are compared one by one.
    `rivals` are the static arms that dynamic ones are compared with, under the words for why; by default the fastest. Each
    ratio gets a random generator of its own drawn from `rng`, so the same seed gives the same intervals. `confidence` is how
    sure a gate has to be; intervals in tables have 95 %. See `ratio_of_speeds` for `scope`.
    """

    def ratio(arm: str, reference: str) -> RatioEstimate | None:
        pair = measurements.paired(arm, reference)
        # A model may end every text at once; no units, no ratio.
        if not all(speed > 0 for series in pair for speed in series.speeds()):
            return None
        resamples = RESAMPLES if measurements.ended else FEW_RESAMPLES
        return ratio_of_speeds(
            *pair, rng=rng, confidence=CONFIDENCE, judged=confidence, scope=scope, resamples=resamples
        )

    results = []
    for name, group in measurements.groups.items():
        samples = tuple(measurements.samples.get(name, ()))
        measured = bool(samples)
        own = {} if facts is None else facts.get(name, {})
        results.append(
            ArmResult(
                name=name,
                group=group,
                reference=name == measurements.reference,
                speed=median(measurements.series(name).speeds()) if measured else None,
                ratio=ratio(name, measurements.reference) if measured else None,
                identical=measurements.identical_rate(name) if identical is None else identical.get(name),
                samples=samples,
                outliers=_outliers(samples, measurements.cases),
                facts={**_merged_facts(samples), **own},
                failure=measurements.failures.get(name),
            )
        )
    if rivals is None:
        best = best_static(results)
        rivals = {BEST: best.name} if best else {}
    dynamic = [arm.name for arm in results if arm.group == "dynamic" and arm.ratio is not None]
    against = [(name, rival, ratio(name, rival), basis) for name in dynamic for basis, rival in rivals.items()]
    return BenchResult(
        task=task,
        unit=unit,
        header=header,
        cases=measurements.cases,
        rounds=measurements.rounds,
        elapsed=measurements.elapsed,
        stopped=measurements.stopped,
        arms=tuple(results),
        comparisons=tuple(Comparison(arm, rival, found, basis) for arm, rival, found, basis in against if found),
        notes=tuple(notes),
        case=case,
        columns=columns or {},
    )


def _outliers(samples: Sequence[Sample], cases: int) -> tuple[int, ...]:
    """Return indices of samples far from the arm's own median for their case; cases differ in length, so relative."""
    typical = {
        case: median(sample.seconds for sample in samples[case::cases]) for case in range(cases if samples else 0)
    }
    return outliers([sample.seconds / typical[sample.case] for sample in samples])


def _merged_facts(samples: Sequence[Sample]) -> dict[str, JSON]:
    merged: dict[str, JSON] = {}
    for name in {name: None for sample in samples for name in sample.facts}:
        values = [sample.facts[name] for sample in samples if name in sample.facts]
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) == len(values):
            merged[name] = median(numbers)
        elif all(value == values[0] for value in values):
            merged[name] = values[0]
    return merged


def _sentences(result: BenchResult) -> Iterable[str]:
    contenders = [arm for arm in result.arms if not arm.reference and arm.ratio is not None]
    leading = [arm for arm in contenders if arm.group == "dynamic"] or contenders
    for arm in leading:
        if arm.ratio is None:
            continue
        text = f"{arm.name} {arm.ratio.ratio:.2f}x of {result.reference.name} {arm.ratio.interval}"
        for item in result.comparisons:
            if item.arm == arm.name:
                text += f"; {item.ratio.ratio:.2f}x of {item.basis} ({item.baseline}) {item.ratio.interval}"
        yield text
    yield from result.notes
    yield from (f"{gate.name}: {gate.verdict}, {gate.reason}" for gate in result.gates)
    yield from (f"{arm.name} failed and has no figures: {arm.failure.message}" for arm in result.arms if arm.failure)
    for arm in leading[:1]:
        if arm.ratio is not None:
            yield _about_intervals(result, arm.ratio)
            yield _about_estimate(arm.ratio)
    noisy = [f"{len(arm.outliers)} of {len(arm.samples)} for {arm.name}" for arm in result.arms if arm.outliers]
    if noisy:
        source = f"modified z-score above {OUTLIER_SCORE}, Iglewicz & Hoaglin 1993"
        yield f"outliers ({source}), counted in all the same: {', '.join(noisy)}"
    if result.stopped == "interrupt":
        complete = table.count(result.rounds, "complete round")
        yield (
            f"interrupted: figures are from {complete}"
            if result.rounds
            else "interrupted before any round was complete"
        )
    elif result.stopped == "budget":
        yield f"the time budget ended the measurement after {table.count(result.rounds, 'round')}"


def _about_intervals(result: BenchResult, ratio: RatioEstimate) -> str:
    scope = "inputs like these" if ratio.scope == "task" else "exactly these inputs"
    measured = f"{table.count(result.rounds, 'round')} of {table.count(result.cases, result.case)}"
    if not ratio.bounded:
        return f"no intervals: {measured} can't bound a ratio"
    effect = detectable_effect(ratio.on_these())
    here = "on exactly these " if ratio.scope == "task" and result.rounds > 1 else ""
    return (
        f"[ ] are {100 * ratio.confidence:g} % intervals for {scope}, from {measured}; "
        f"{here}a difference of {100 * effect:.1f} % would show in four runs of five"
    )


def _about_estimate(ratio: RatioEstimate) -> str:
    said = ESTIMATORS[ratio.estimator]
    if ratio.leaving_one_out is None:
        return said
    low, high = ratio.leaving_one_out
    return f"{said} (leaving out one input would give {low:.2f}x to {high:.2f}x)"


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
