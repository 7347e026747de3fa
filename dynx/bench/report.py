"""Condenses measurements into a result, and says in sentences what its figures mean.

result = summarize(measurements, task="generate", unit="tokens", header=facts, rng=random.Random(0))
result = result.judged([min_speedup(result.arm("dynamic").ratio, 1.15)])
print("\n".join(sentences(result)))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.bench.gates import best_static
from dynx.bench.result import BEST_STATIC, ArmResult, BenchResult, Comparison
from dynx.bench.statistics import OUTLIER_SCORE, RESAMPLES, detectable_effect, median, outliers, ratio_of_speeds
from dynx.bench.wording import count

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping, Sequence

    from dynx.bench.measurements import JSON, Measurements, Sample
    from dynx.bench.statistics import RatioEstimate, Scope

CONFIDENCE = 0.95
"""Confidence of the intervals in tables; a gate's may have to be higher."""

INTERIM_RESAMPLES = 500
"""Bootstrap resamples at an interim analysis, whose gates don't depend on those intervals."""

ESTIMATORS = {
    "huber": (
        "ratios are of each input's times by Huber's M-estimate over the rounds (1964), in which a disturbed run counts little"
    ),
    "totals": "one round has no robust estimate: ratios are of total times, in which a disturbed run counts in full",
}
"""Sentences on how the ratios were estimated."""


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
    baselines: Mapping[str, str] | None = None,
    columns: Mapping[str, Mapping[str, str]] | None = None,
) -> BenchResult:
    """Condense measurements into a result without gates.

    `unit` is the plural of what is counted ("tokens"), `case` what one case is called if that isn't a single input. An
    arm's facts are merged over its samples (numbers by their median, anything else where all samples agree); `facts` adds
    or overrides per arm, and so does `identical` where an output holds several answers that are compared one by one.
    `baselines` are the static arms that dynamic ones are compared with, under the words for why; by default the fastest. Each
    ratio gets a random generator of its own drawn from `rng`, so the same seed gives the same intervals. `confidence` is how
    sure a gate has to be; intervals in tables have 95 %. See `ratio_of_speeds` for `scope`.
    """

    def ratio(arm: str, reference: str) -> RatioEstimate | None:
        pair = measurements.paired(arm, reference)
        # A model may end every text at once; no units, no ratio.
        if not all(speed > 0 for series in pair for speed in series.speeds()):
            return None
        resamples = RESAMPLES if measurements.ended else INTERIM_RESAMPLES
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
    if baselines is None:
        best = best_static(results)
        baselines = {BEST_STATIC: best.name} if best else {}
    dynamic = [arm.name for arm in results if arm.group == "dynamic" and arm.ratio is not None]
    against = [
        (name, baseline, ratio(name, baseline), basis) for name in dynamic for basis, baseline in baselines.items()
    ]
    return BenchResult(
        task=task,
        unit=unit,
        header=header,
        cases=measurements.cases,
        rounds=measurements.rounds,
        elapsed=measurements.elapsed,
        stopped=measurements.stopped,
        arms=tuple(results),
        comparisons=tuple(Comparison(arm, baseline, found, basis) for arm, baseline, found, basis in against if found),
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


def sentences(result: BenchResult) -> tuple[str, ...]:
    """Say in sentences what the figures mean, the most important first."""
    return tuple(_sentences(result))


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
        complete = count(result.rounds, "complete round")
        yield (
            f"interrupted: figures are from {complete}"
            if result.rounds
            else "interrupted before any round was complete"
        )
    elif result.stopped == "budget":
        yield f"the time budget ended the measurement after {count(result.rounds, 'round')}"


def _about_intervals(result: BenchResult, ratio: RatioEstimate) -> str:
    scope = "inputs like these" if ratio.scope == "task" else "exactly these inputs"
    measured = f"{count(result.rounds, 'round')} of {count(result.cases, result.case)}"
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
