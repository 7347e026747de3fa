"""`dynx bench`: compares plain, static and dynamic execution, and decides gates. Each model's task sets what is measured."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.cli.bench.task import ALL, SUITE_BUDGET_SECONDS, TASKS, names_of
from dynx.cli.console import Terminal
from dynx.errors import DynxError, GateFailed, Undecided, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.bench.result import BenchResult, Gate
    from dynx.cli.bench.task import TaskModule
    from dynx.cli.options.bench import Options, Request


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
    check_tasks(chosen[0], models)
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
    """Print the table, notes and verdicts."""
    from dynx.bench.report import sentences
    from dynx.bench.table import render, render_categories

    console = terminal.rich(sys.stdout)
    if titled:
        console.print(f"{result.header['model']}: {result.task}", style="bold", markup=False)
    console.print(render(result, console.width, ascii_only=not terminal.unicode))
    if result.categories:
        console.print(render_categories(result, ascii_only=not terminal.unicode))
    for sentence in sentences(result):
        console.print(sentence, soft_wrap=True, markup=False)
    if titled:
        console.print()


def finish(results: list[BenchResult], errors: list[DynxError], options: Options, terminal: Terminal) -> None:
    """Write the exports, then raise for the worst of the results. Raises GateFailed, Undecided, or the first error."""
    from dynx.bench import document, export
    from dynx.bench.result import Verdict, overall
    from dynx.cli.output_files import parse_export, parse_plot

    if options.json and results:
        terminal.write(document.to_json(results))
    for spec in (options.export or []) if results else ():
        terminal.detail(f"wrote {export.write(results, *parse_export(spec))}")
    if options.plot and results:
        from dynx.bench import plot

        terminal.detail(f"wrote {plot.bench(results, parse_plot(options.plot))}")
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
    """Join the reasons of the chosen gates, with the models' names where there are several."""
    return "; ".join(
        (f"{result.header['model']}: " if len(results) > 1 else "") + f"{gate.name}: {gate.reason}"
        for result in results
        for gate in result.gates
        if chosen(gate)
    )


def choose(options: Options) -> list[Request]:
    """Return one request per given model, else per shipped model (of the task, if one is given). Raises UsageError."""
    from dynx import shipped
    from dynx.cli.bench.arm_options import request_of

    if options.task not in (None, ALL, *TASKS):
        hint = f"-m {options.task}" if options.task else None
        raise UsageError(f"unknown task {options.task!r}: use one of {', '.join(TASKS)}, or {ALL}", hint=hint)
    task = None if options.task == ALL else options.task
    if options.models:
        twice = sorted({m for m in options.models if options.models.count(m) > 1})
        if twice:
            raise UsageError(f"-m {twice[0]} is given twice")
        return [request_of(options, model) for model in options.models]
    order = [name for each in TASKS for name in shipped.names(each)]
    return [request_of(options, name) for name in order if task is None or name in shipped.names(task)]


def check(options: Options) -> None:
    """Raise UsageError for what is wrong with any model, before one is loaded."""
    from dynx.bench.gates import min_quality, min_speedup
    from dynx.cli.bench import arm_options
    from dynx.cli.bench.values import parse_tolerance
    from dynx.cli.output_files import parse_export, parse_plot

    for spec in options.export or []:
        parse_export(spec)
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


def modules() -> dict[str, TaskModule]:
    """Return the module that measures each task's models."""
    from dynx.cli.bench import classification, drawing, generation

    return {"generate": generation, "classify": classification, "draw": drawing}


def task_of(request: Request) -> TaskModule:
    """Return the module that measures this model. Raises UsageError where another task is given."""
    from dynx.runtime import loading

    source = loading.find(
        request.model,
        offline=request.offline,
        allow_pickle=request.allow_pickle,
        trust_remote_code=request.trust_remote_code,
    )
    task = loading.task_of(source)
    module = modules()[task]
    if request.task not in (None, ALL, task):
        raise UsageError(f"{source.name} {module.MODEL_IS}; the task given is {request.task}")
    return module


def check_tasks(request: Request, models: Sequence[tuple[Request, TaskModule]]) -> None:
    """Raise UsageError for an option that applies to none of the models."""
    known = list(modules().values())
    here = [module for _, module in models]
    for name, value in vars(request).items():
        takers = [module for module in known if name in names_of(module.Settings)]
        if value is not None and takers and not any(module in takers for module in here):
            shown = name.replace("_", "-")
            words = " and ".join(module.MODELS for module in takers)
            who = (
                f"{Path(models[0][0].model).name} {here[0].MODEL_IS}"
                if len(models) == 1
                else "none of the models is one"
            )
            raise UsageError(f"--{shown} is for {words}; {who}")


def applying(request: Request, module: TaskModule) -> Request:
    """Return one of several requests without the options of other tasks, and with a share of the time."""
    mine = names_of(module.Settings)
    others = {name for other in modules().values() for name in names_of(other.Settings) if name not in mine}
    cleared: dict[str, Any] = dict.fromkeys(others)
    budget = request.budget
    if budget is None and request.runs is None:
        budget = SUITE_BUDGET_SECONDS
    return replace(request, budget=budget, **cleared)
