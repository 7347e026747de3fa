"""One model's measurement, from the command line to a judged result: what wraps the arms, when to look, what is compared."""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.cli.bench.command import GATED_BUDGET, HURRY
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from dynx.bench.baseline import Baseline
    from dynx.bench.gates import Gate
    from dynx.bench.interim import Looks
    from dynx.bench.report import BenchResult
    from dynx.bench.runner import JSON, Arm, Measurements, Progress
    from dynx.cli.bench.command import Prepared
    from dynx.cli.bench.options import Options
    from dynx.cli.console import Terminal

SLOW = "DYNX_BENCH_SLOW"
"""For testing gates: an arm and how much slower it is to be, like dynamic=15%."""


def read_baseline(options: Options, models: Sequence[tuple[Options, Any]]) -> list[Baseline]:
    """What --baseline names, with something in it for each model; empty without it. Raises UsageError."""
    if options.baseline is None:
        return []
    from dynx.bench import baseline

    found = baseline.read(Path(options.baseline))
    for one, module in models:
        name = Path(one.model).name
        if "dynamic" not in baseline.pick(found, module.TASK, name).series:
            raise UsageError(f"--baseline {options.baseline} has no results of the dynamic arm of {name}")
    return found


def measure(options: Options, module: Any, known: list[Baseline], terminal: Terminal) -> BenchResult:
    """The whole of it for one model."""
    return measured(module.prepare(options, terminal), options, known, terminal)


def measured(prepared: Prepared, options: Options, known: list[Baseline], terminal: Terminal) -> BenchResult:
    """Run the arms on the cases until it is decided or time is up, condense, and judge."""
    from dynx.bench import baseline, runner

    stored = baseline.pick(known, prepared.task, str(prepared.header["model"])) if known else None
    how: dict[str, JSON] = {"harness": {}}
    differing = stored.differences({**prepared.header, **how}) if stored else ()
    if stored and differing:
        terminal.warn(f"--baseline {options.baseline} is advisory, because conditions differ: {'; '.join(differing)}")
    looks, budget = plan(options, prepared)

    def conclude(measured: Measurements) -> BenchResult:
        sure = confidence(looks, measured)
        result = prepared.conclude(measured, sure)
        more = against(stored, measured, options, sure, differing) if stored else []
        return result.judged([*result.gates, *more])

    def judge(measured: Measurements) -> Collection[str]:
        result = conclude(measured)
        undecided = [gate.name for gate in result.gates if gate.verdict == "inconclusive"]
        dynamic = {arm.name for arm in result.arms if arm.group == "dynamic"}
        if "min-speedup" in undecided:
            return dynamic | {name for item in result.comparisons for name in (item.arm, item.baseline)}
        return dynamic if any(name.startswith("baseline") for name in undecided) else ()

    arms = equipped(prepared)
    with terminal.progress("measuring") as move:

        def progress(p: Progress) -> None:
            move(p.done, p.total, p.arm)

        found = runner.measure(
            arms,
            prepared.cases,
            rounds=looks.last,
            warmup=1,
            clock=time.perf_counter,
            rng=random.Random(0),  # noqa: S311 - the order of measurements is no secret
            budget_s=budget,
            progress=progress,
            looks=looks.rounds,
            judge=judge if len(looks.rounds) > 1 else None,
            hurry_s=HURRY * budget if budget is not None else None,
        )
    return annotated(conclude(found), found, looks)


def plan(options: Options, prepared: Prepared) -> tuple[Looks, float | None]:
    """When to look, and the seconds there are: with a gate on speed and nothing said, until it is decided."""
    from dynx.bench.interim import Looks

    if not options.gates_speed or options.runs is not None:
        return Looks.once(prepared.rounds), options.budget
    return Looks.doubling(prepared.rounds), GATED_BUDGET if options.budget is None else options.budget


def confidence(looks: Looks, measured: Measurements) -> float:
    """How sure the intervals that gates are judged by must be, at a look or after all of them."""
    if measured.stopped == "decided" or not measured.ended:
        return looks.sure(measured.looked, last=False)
    return looks.sure([*measured.looked, max(measured.rounds, 1)], last=True)


def equipped(prepared: Prepared) -> list[Arm[Any]]:
    """The arms with all that is wrapped around them. Raises UsageError for a slow-down of no arm's."""
    from dynx.bench.limits import parse_slow, slowed

    arms = list(prepared.arms)
    if setting := os.environ.get(SLOW):
        name, share = parse_slow(setting)
        arms = [slowed(arm, share, time.perf_counter, time.sleep) if arm.name == name else arm for arm in arms]
    return arms


def against(
    stored: Baseline, measured: Measurements, options: Options, confidence: float, differing: tuple[str, ...]
) -> list[Gate]:
    """A gate for each dynamic arm that the stored result has too."""
    from dynx.bench.baseline import TOLERANCE, no_slower, parse_tolerance

    tolerance = TOLERANCE if options.tolerance is None else parse_tolerance(options.tolerance)
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


def annotated(result: BenchResult, measured: Measurements, looks: Looks) -> BenchResult:
    """The result with how it was measured: looks and overhead."""
    notes = list(result.notes)
    if setting := os.environ.get(SLOW):
        notes.append(f"{SLOW}={setting} slows an arm down on purpose, so these results are not dynx's speed")
    if len(looks.rounds) > 1:
        notes.append(f"{looks}; {_looked(measured)}")
    runner: dict[str, JSON] = {
        "overhead": None if measured.overhead is None else max(0.0, round(measured.overhead, 6)),
        "looks": measured.looks or 1,
        "looks_at_most": len(looks.rounds),
        "interval_confidence": round(confidence(looks, measured), 6),
    }
    header = {**result.header, "harness": runner}
    return replace(result, header=header, notes=tuple(notes))


def _looked(measured: Measurements) -> str:
    times = "once" if measured.looks == 1 else f"{measured.looks} times"
    return f"it took {times}" if measured.stopped == "decided" else f"{times} so far"
