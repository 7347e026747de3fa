"""`dynx bench`: plain against static against dynamic, and a verdict. What is measured depends on each model's task."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dynx.cli.console import Terminal
from dynx.errors import DynxError, GateFailed, Undecided, UsageError
from dynx.runtime.utf8 import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.bench.gates import Gate
    from dynx.bench.report import BenchResult
    from dynx.bench.runner import JSON, Arm, Measurements
    from dynx.cli.bench.options import Options

Own = TypeVar("Own")

SEVERAL_BUDGET = 50.0
"""Seconds for each of several models, unless asked otherwise."""

GATED_BUDGET = 120.0
"""Seconds for a gate on speed to be decided in, unless asked otherwise: on a loaded machine it takes most of them."""

HURRY = 0.1
"""Share of the budget after which arms that decide no gate stop, where they are so slow that the first look is still to come."""

TASKS = ("generate", "classify", "draw")
ALL = "all"


@dataclass
class Prepared:
    """A task made ready: what runs, on what, and how measurements become a result."""

    task: str
    arms: Sequence[Arm[Any]]
    cases: Sequence[Any]
    header: dict[str, Any]
    rounds: int
    """Unless a gate wants more."""
    conclude: Callable[[Measurements, float], BenchResult]
    """From complete rounds and the confidence of intervals; with the task's own gates judged."""


def run(options: Options) -> None:
    """Measure, print, export, judge. Raises GateFailed where a gate fails."""
    try:
        _run(options)
    except (GateFailed, Undecided):
        raise
    except DynxError as e:
        if not options.bisect:
            raise
        raise Undecided(f"nothing was judged: {e}", hint=e.hint) from e
    except Exception as e:
        if not options.bisect or hasattr(e, "format_message"):
            raise
        raise Undecided(f"nothing was judged: {type(e).__name__}: {e}") from e


def _run(options: Options) -> None:
    chosen = choose(options)
    check(options)
    terminal = Terminal(quiet=options.quiet, verbose=options.verbose, color=options.color, json=options.json)
    models = [(one, task_of(one)) for one in chosen]
    check_tasks(options, models)
    from dynx.cli.bench import measure

    known = measure.read_baseline(options, models)
    results, errors = [], []
    for one, module in models:
        mine = applying(one, module) if len(models) > 1 else one
        try:
            result = measure.measure(mine, module, known, terminal)
        except DynxError as e:
            if len(models) == 1:
                raise
            terminal.warn(f"{one.model}: {e}")
            errors.append(e)
            continue
        results.append(result)
        if not options.json:
            show(result, terminal, titled=len(models) > 1)
        if result.stopped == "interrupt":
            break
    finish(results, errors, options, terminal)


def show(result: BenchResult, terminal: Terminal, *, titled: bool) -> None:
    """The table and what it says."""
    console = terminal.rich(sys.stdout)
    if titled:
        console.print(f"{result.header['model']}: {result.task}", style="bold", markup=False)
    console.print(result.to_table(console.width, ascii_only=not terminal.unicode))
    for sentence in result.reading():
        console.print(sentence, soft_wrap=True, markup=False)
    if titled:
        console.print()


def finish(results: list[BenchResult], errors: list[DynxError], options: Options, terminal: Terminal) -> None:
    """Write what was asked for, and end as the worst of the results asks. Raises GateFailed, Undecided, or the first error."""
    from dynx.bench import exports, report
    from dynx.bench.gates import Verdict, overall

    if options.json and results:
        terminal.write(report.to_json(results))
    for spec in (options.export or []) if results else ():
        terminal.detail(f"wrote {exports.write(results, spec)}")
    if options.plot and results:
        from dynx.bench import plot

        terminal.detail(f"wrote {plot.bench(results, plot.parse_plot(options.plot))}")
    if any(result.stopped == "interrupt" for result in results):
        raise KeyboardInterrupt
    if errors:
        raise errors[0]
    failed = reasons(results, lambda gate: gate.verdict is Verdict.FAIL and not gate.advisory)
    if failed:
        raise GateFailed(failed)
    if options.bisect and overall(gate for result in results for gate in result.gates) is not Verdict.PASS:
        open_ = reasons(results, lambda gate: gate.verdict is not Verdict.PASS or gate.advisory)
        raise Undecided(open_ or "no gate is given")


def reasons(results: Sequence[BenchResult], chosen: Callable[[Gate], bool]) -> str:
    """What such gates say, with the models' names where there are several."""
    return "; ".join(
        (f"{result.header['model']}: " if len(results) > 1 else "") + f"{gate.name}: {gate.reason}"
        for result in results
        for gate in result.gates
        if chosen(gate)
    )


def choose(options: Options) -> list[Options]:
    """One for each model: those given, else those shipped for the task, else all shipped ones. Raises UsageError."""
    from dynx import shipped

    if options.task not in (None, ALL, *TASKS):
        hint = f"-m {options.task}" if options.task else None
        raise UsageError(f"unknown task {options.task!r}: use one of {', '.join(TASKS)}, or {ALL}", hint=hint)
    task = None if options.task == ALL else options.task
    if options.models:
        twice = sorted({m for m in options.models if options.models.count(m) > 1})
        if twice:
            raise UsageError(f"-m {twice[0]} is given twice")
        return [replace(options, model=model) for model in options.models]
    order = [name for each in TASKS for name in shipped.names(each)]
    return [replace(options, model=name) for name in order if task is None or name in shipped.names(task)]


def check(options: Options) -> None:
    """What is wrong whatever the model: told before one is looked for, and not after minutes of measuring."""
    from dynx.bench import exports
    from dynx.bench.baseline import parse_tolerance
    from dynx.bench.gates import min_quality, min_speedup
    from dynx.bench.plot import parse_plot
    from dynx.cli.bench import arm_options

    for spec in options.export or []:
        exports.parse_export(spec)
    if options.plot is not None:
        parse_plot(options.plot)
    if options.min_speedup is not None:
        min_speedup(None, options.min_speedup)
    if options.min_quality is not None:
        min_quality(0, 0, options.min_quality)
    if options.tolerance is not None:
        parse_tolerance(options.tolerance)
        if not options.gates_speed:
            raise UsageError(
                "--tolerance requires --baseline or --min-speedup",
                hint="for the tolerance of a regression model's outputs, use --within",
            )
    arm_options.parse_all(options.arms or [])


def task_of(options: Options) -> Any:
    """The module that measures models of this one's task. Raises UsageError where another task was asked for."""
    from dynx.cli.bench import classification as bench_classification
    from dynx.cli.bench import drawing as bench_drawing
    from dynx.cli.bench import generation as bench_generation
    from dynx.runtime import loading

    tasks = {"generate": bench_generation, "classify": bench_classification, "draw": bench_drawing}
    source = loading.find(options.model, offline=options.offline, allow_pickle=options.allow_pickle)
    task = loading.task_of(source)
    if options.task not in (None, ALL, task):
        raise UsageError(f"{source.name} {tasks[task].IS_ONE}; the task given is {options.task}")
    return tasks[task]


def check_tasks(options: Options, models: Sequence[tuple[Options, Any]]) -> None:
    """Raises UsageError for an option that none of the models has a use for."""
    from dynx.cli.bench import classification as bench_classification
    from dynx.cli.bench import drawing as bench_drawing
    from dynx.cli.bench import generation as bench_generation

    known = (bench_generation, bench_classification, bench_drawing)
    here = [module for _, module in models]
    for name, value in vars(options).items():
        takers = [module for module in known if name in names_of(module.Settings)]
        given = value is not None and value is not False
        if given and takers and not any(module in takers for module in here):
            shown = name.replace("_", "-")
            words = " and ".join(module.ARE for module in takers)
            who = (
                f"{Path(models[0][0].model).name} {here[0].IS_ONE}" if len(models) == 1 else "none of the models is one"
            )
            raise UsageError(f"--{shown} is for {words}; {who}")


def applying(options: Options, module: Any) -> Options:
    """Of several models' options those that this one's task has, and less time for each."""
    from dynx.cli.bench import classification as bench_classification
    from dynx.cli.bench import drawing as bench_drawing
    from dynx.cli.bench import generation as bench_generation

    mine = names_of(module.Settings)
    others = {
        name
        for other in (bench_generation, bench_classification, bench_drawing)
        for name in names_of(other.Settings)
        if name not in mine
    }
    cleared: dict[str, Any] = {name: False if getattr(options, name) is False else None for name in others}
    budget = options.budget
    if budget is None and options.runs is None:
        budget = SEVERAL_BUDGET
    return replace(options, budget=budget, **cleared)


def names_of(kind: type[Any]) -> list[str]:
    """The options that a task has of its own."""
    return [f.name for f in fields(kind)]


def settings(options: Options, kind: type[Own]) -> Own:
    """A task's own settings: those that were given, and its defaults."""
    return kind(**{name: value for name in names_of(kind) if (value := getattr(options, name)) is not None})


def tolerance_of(options: Options) -> float:
    """How far below --min-speedup still passes."""
    from dynx.bench.baseline import parse_tolerance

    return 0.0 if options.tolerance is None else parse_tolerance(options.tolerance)


def read_prompts(path: str | None) -> list[str]:
    """The prompts of a file, one per line (- is stdin), or the built-in ones. Raises UsageError."""
    from dynx.bench.prompts import OPENINGS

    if path is None:
        return list(OPENINGS)
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as e:
        raise UsageError(f"--data {path} can't be read: {e.strerror}") from None
    lines = [line for line in decode(data, path).splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"--data {path} is empty", hint="one prompt per line")
    return lines


def conditions(plan: Any, *, library: str = "transformers", **details: Any) -> dict[str, Any]:
    """Where and on what was measured: the header of a result. `library` is where the model comes from, `details` the task's."""
    from dynx.bench.fingerprint import governor

    found: dict[str, JSON] = {
        "model": plan.source.name,
        "model_hash": plan.key.model,
        "profile": plan.profile.key.id if plan.profile else None,
        "device": plan.device,
        "processor": plan.machine.cpu,
        "threads": plan.decisions["threads"].value,
        "governor": governor(),
        "dtype": plan.dtype,
        **details,
        "versions": {name: metadata.version(name) for name in ("dynx", "torch", library) if _installed(name)},
    }
    return found


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
