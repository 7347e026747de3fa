"""Measures one model, from the request to a decided result: budgets, interim analyses, and the comparison with --baseline."""

from __future__ import annotations

import os
import random
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.cli.bench.task import (
    EARLY_ANALYSIS_SHARE,
    GATE_BUDGET_SECONDS,
    LOADING_TIMEOUT_SECONDS,
    SPEED_GATE_BUDGET_SECONDS,
)
from dynx.cli.bench.values import parse_slow, tolerance_or
from dynx.errors import DynxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from dynx.bench.baseline import Baseline
    from dynx.bench.interim import InterimPlan
    from dynx.bench.measurements import JSON, Measurements
    from dynx.bench.result import BenchResult, Gate
    from dynx.bench.runner import Arm, Progress
    from dynx.cli.bench.task import Prepared, TaskModule
    from dynx.cli.console import Terminal
    from dynx.cli.options.bench import Options, Request

SLOW_VARIABLE = "DYNX_BENCH_SLOW"
"""Environment variable for testing gates: an arm and how much slower to make it, like dynamic=15%."""


def read_baseline(options: Options, models: Sequence[tuple[Request, TaskModule]]) -> list[Baseline]:
    """Read the results in --baseline and check that each model has one; return none without the option. Raises UsageError."""
    if options.baseline is None:
        return []
    from dynx.bench import baseline

    with naming_baseline(hint="dynx bench --export json:FILE writes one"):
        found = baseline.read(Path(options.baseline))
    for one, module in models:
        name = Path(one.model).name
        with naming_baseline():
            stored = baseline.pick(found, module.TASK, name)
        if "dynamic" not in stored.series:
            raise UsageError(f"--baseline {options.baseline} has no results of the dynamic arm of {name}")
    return found


@contextmanager
def naming_baseline(hint: str | None = None) -> Iterator[None]:
    """Prefix errors about the baseline's file with the option's name."""
    try:
        yield
    except UsageError as e:
        raise UsageError(f"--baseline {e}", hint=hint) from None


def measure(request: Request, module: TaskModule, known: list[Baseline], terminal: Terminal) -> BenchResult:
    """Prepare one model's task, measure it and decide its gates."""
    return measured(prepare(request, module, terminal), request, known, terminal)


def prepare(request: Request, module: TaskModule, terminal: Terminal) -> Prepared:
    """Prepare the task. Raises DynxError where a gate is given and loading takes too long."""
    from dynx.bench.deadline import OutOfTime, deadline

    seconds = max(request.budget or 0.0, LOADING_TIMEOUT_SECONDS)
    try:
        with deadline(seconds) if request.gated else nullcontext():
            prepared: Prepared = module.prepare(request, terminal)
    except OutOfTime:
        raise DynxError(
            f"nothing was measured: {request.model} wasn't ready after {seconds:g} s",
            hint="--budget SECONDS gives loading more time too, where it is more than that",
        ) from None
    return prepared


def measured(prepared: Prepared, request: Request, known: list[Baseline], terminal: Terminal) -> BenchResult:
    """Run the arms on the cases until the gates are decided or time is up, then summarize and decide."""
    from dynx.bench import baseline, runner
    from dynx.bench.deadline import deadline

    with naming_baseline():
        stored = baseline.pick(known, prepared.task, str(prepared.header["model"])) if known else None
    how: dict[str, JSON] = {"harness": {}}
    differing = stored.differences({**prepared.header, **how}) if stored else ()
    if stored and differing:
        terminal.warn(f"--baseline {request.baseline} is advisory, because conditions differ: {'; '.join(differing)}")
    interim, budget = plan(request, prepared)

    def conclude(measured: Measurements) -> BenchResult:
        sure = confidence(interim, measured)
        result = prepared.conclude(measured, sure)
        if measured.cut_short:
            return cut_short(result, measured, budget)
        more = against(stored, measured, request, sure, differing) if stored else []
        return result.judged([*result.gates, *more])

    def judge(measured: Measurements) -> Collection[str]:
        result = conclude(measured)
        undecided = [gate.name for gate in result.gates if gate.verdict == "inconclusive"]
        dynamic = {arm.name for arm in result.arms if arm.group == "dynamic"}
        if any(name.startswith("min-speedup") for name in undecided):
            return dynamic | {
                name
                for comparisons in (result.comparisons, *(category.comparisons for category in result.categories))
                for item in comparisons
                for name in (item.arm, item.baseline)
            }
        return dynamic if any(name.startswith("baseline") for name in undecided) else ()

    arms = equipped(prepared)
    with terminal.progress("measuring") as move:

        def progress(p: Progress) -> None:
            move(p.done, p.total, p.arm)

        found = runner.measure(
            arms,
            prepared.cases,
            rounds=interim.last,
            warmup=1,
            clock=time.perf_counter,
            rng=random.Random(0),  # noqa: S311 - the order of measurements is no secret
            budget_s=budget,
            progress=progress,
            analyses=interim.rounds,
            judge=judge if len(interim.rounds) > 1 else None,
            early_analysis_s=EARLY_ANALYSIS_SHARE * budget if budget is not None else None,
            deadline_s=budget if request.gated else None,
            guard=deadline,
        )
    return annotated(conclude(found), found, interim)


def plan(request: Request, prepared: Prepared) -> tuple[InterimPlan, float | None]:
    """Return the rounds of the interim analyses, and the budget in seconds; a speed gate is by default measured until decided.

    A gate always has a budget, so that no machine can keep a build waiting; without one only --budget sets it.
    """
    from dynx.bench.interim import InterimPlan

    if not request.gates_speed or request.runs is not None:
        usual = GATE_BUDGET_SECONDS if request.gated else None
        return InterimPlan.single(prepared.rounds), usual if request.budget is None else request.budget
    return InterimPlan.doubling(
        prepared.rounds
    ), SPEED_GATE_BUDGET_SECONDS if request.budget is None else request.budget


def cut_short(result: BenchResult, measured: Measurements, budget: float | None) -> BenchResult:
    """Return the result for a budget that ended before every input ran once: no gate passes."""
    from dynx.bench.result import Verdict

    of = measured.planned_cases or measured.cases
    done = measured.cases if measured.rounds else 0
    why = f"the budget of {budget:g} s ended after {done} of {of} {result.case}s" if budget else "it was cut short"
    gates = [
        replace(gate, verdict=Verdict.INCONCLUSIVE, reason=f"{gate.reason}; {why}")
        if gate.verdict is Verdict.PASS
        else gate
        for gate in result.gates
    ]
    return replace(result, gates=tuple(gates), notes=(*result.notes, f"{why}, in the first round"))


def confidence(interim: InterimPlan, measured: Measurements) -> float:
    """Return the confidence level of the gates' intervals, for an interim analysis or for the end."""
    if measured.stopped == "decided" or not measured.ended:
        return interim.confidence_at(measured.analyzed, last=False)
    return interim.confidence_at([*measured.analyzed, max(measured.rounds, 1)], last=True)


def equipped(prepared: Prepared) -> list[Arm[Any]]:
    """Return the arms, slowed down as the variable for tests says. Raises UsageError for a value that can't be read."""
    from dynx.bench.wrappers import slowed

    arms = list(prepared.arms)
    if setting := os.environ.get(SLOW_VARIABLE):
        name, share = parse_slow(setting)
        arms = [slowed(arm, share, time.perf_counter, time.sleep) if arm.name == name else arm for arm in arms]
    return arms


def against(
    stored: Baseline, measured: Measurements, request: Request, confidence: float, differing: tuple[str, ...]
) -> list[Gate]:
    """Compare each dynamic arm with the same arm of the stored result."""
    from dynx.bench.baseline import DEFAULT_TOLERANCE, no_slower

    tolerance = tolerance_or(request.tolerance, DEFAULT_TOLERANCE)
    arms = [name for name, group in measured.groups.items() if group == "dynamic" and name in stored.series]
    return [
        no_slower(
            measured,
            arm,
            stored,
            tolerance=tolerance,
            confidence=confidence,
            differing=differing,
        )
        for arm in arms
    ]


def annotated(result: BenchResult, measured: Measurements, interim: InterimPlan) -> BenchResult:
    """Add the method of measurement to the result: interim analyses and overhead."""
    notes = list(result.notes)
    if setting := os.environ.get(SLOW_VARIABLE):
        notes.append(f"{SLOW_VARIABLE}={setting} slows an arm down on purpose, so these results are not dynx's speed")
    if len(interim.rounds) > 1:
        notes.append(f"{interim}; {_times(measured)}")
    runner: dict[str, JSON] = {
        "overhead": None if measured.overhead is None else max(0.0, round(measured.overhead, 6)),
        "looks": measured.analyses or 1,
        "looks_at_most": len(interim.rounds),
        "interval_confidence": round(confidence(interim, measured), 6),
    }
    header = {**result.header, "harness": runner}
    return replace(result, header=header, notes=tuple(notes))


def _times(measured: Measurements) -> str:
    times = "once" if measured.analyses == 1 else f"{measured.analyses} times"
    return f"it took {times}" if measured.stopped == "decided" else f"{times} so far"
