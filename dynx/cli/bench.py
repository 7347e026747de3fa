"""`dynx bench`: plain against static against dynamic, and a verdict. What is measured depends on the model's task."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dynx.cli.console import Terminal
from dynx.errors import GateFailed, UsageError
from dynx.runtime.utf8 import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.bench.harness import Arm, Case, Measurements, Progress
    from dynx.bench.report import BenchResult
    from dynx.cli.options import Color, Dtype

Own = TypeVar("Own")


@dataclass(frozen=True)
class Options:
    """The command line of `dynx bench`, by parameter name. None: not given, so that the task's own default holds."""

    model: str
    data: str | None
    runs: int | None
    prompts: int | None
    draft: str | None
    max_new_tokens: int | None
    static: str | None
    temperature: float | None
    tsv: bool
    column: str | None
    field: str | None
    labels: str | None
    batch_size: int | None
    max_length: int | None
    confidence: float | None
    tolerance: float | None
    against: str | None
    min_speedup: float | None
    require_identical: bool
    max_disagreement: float | None
    quality: float | None
    guidance: float | None
    size: str | None
    min_quality: float | None
    budget: float | None
    export: list[str] | None
    json: bool
    device: str
    dtype: Dtype
    threads: int | None
    profile: str | None
    allow_pickle: bool
    offline: bool
    quiet: int
    verbose: int
    color: Color


def run(options: Options) -> None:
    """Measure, print, export, judge. Raises GateFailed where a gate fails."""
    check(options)
    terminal = Terminal(quiet=options.quiet, verbose=options.verbose, color=options.color, json=options.json)
    result = measurer(options)(options, terminal)
    if options.json:
        terminal.write(result.to_json())
    else:
        console = terminal.rich(sys.stdout)
        console.print(result.to_table(console.width, ascii_only=not terminal.unicode))
        for sentence in result.reading():
            console.print(sentence, soft_wrap=True, markup=False)
    for spec in options.export or []:
        terminal.detail(f"wrote {result.export(spec)}")
    if result.stopped == "interrupt":
        raise KeyboardInterrupt
    failed = [gate for gate in result.gates if gate.verdict == "fail"]
    if failed:
        raise GateFailed("; ".join(f"{gate.name}: {gate.reason}" for gate in failed))


def check(options: Options) -> None:
    """What is wrong whatever the model: told before one is looked for, and not after minutes of measuring."""
    from dynx.bench import PEERS
    from dynx.bench.gate import min_quality, min_speedup
    from dynx.bench.report import parse_export

    for spec in options.export or []:
        parse_export(spec)
    if options.min_speedup is not None:
        min_speedup(None, options.min_speedup)
    if options.min_quality is not None:
        min_quality(0, 0, options.min_quality)
    if options.against not in (None, *PEERS):
        raise UsageError(f"--against {options.against}: known peers are {', '.join(PEERS)}")


def measurer(options: Options) -> Callable[[Options, Terminal], BenchResult]:
    """What measures models of this one's task. Raises UsageError for options that only other tasks have."""
    from dynx.cli import bench_classification, bench_drawing, bench_generation
    from dynx.runtime import loading

    tasks: dict[str, tuple[Any, str, str]] = {
        "generate": (bench_generation, "language models", "writes text"),
        "classify": (bench_classification, "classifiers", "is a classifier"),
        "draw": (bench_drawing, "pipelines that draw", "draws"),
    }

    source = loading.find(options.model, offline=options.offline, allow_pickle=options.allow_pickle)
    module, _, is_one = tasks[loading.task_of(source)]
    for name, value in vars(options).items():
        takers = [words for other, words, _ in tasks.values() if name in names_of(other.Settings)]
        if value is not None and value is not False and takers and name not in names_of(module.Settings):
            shown = name.replace("_", "-")
            raise UsageError(f"--{shown} is for {' and '.join(takers)}, and {source.name} {is_one}")
    measure: Callable[[Options, Terminal], BenchResult] = module.measure
    return measure


def names_of(kind: type[Any]) -> list[str]:
    """The options that a task has of its own."""
    return [f.name for f in fields(kind)]


def settings(options: Options, kind: type[Own]) -> Own:
    """A task's own settings: those that were given, and its defaults."""
    return kind(**{name: value for name in names_of(kind) if (value := getattr(options, name)) is not None})


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


def contest(
    arms: Sequence[Arm[Case]], cases: Sequence[Case], options: Options, terminal: Terminal, *, rounds: int
) -> Measurements:
    """Run the arms in turns, with a bar on the terminal."""
    from dynx.bench import harness

    with terminal.progress("measuring") as move:

        def progress(p: Progress) -> None:
            move(p.done, p.total, p.arm)

        return harness.measure(
            arms,
            cases,
            rounds=rounds,
            warmup=1,
            clock=time.perf_counter,
            rng=random.Random(0),  # noqa: S311 - the order of measurements is no secret
            budget_s=options.budget,
            progress=progress,
        )


def conditions(plan: Any, *, library: str = "transformers", **details: Any) -> dict[str, Any]:
    """Where and on what was measured: the header of a result. `library` is where the model comes from, `details` the task's."""
    return {
        "model": plan.source.name,
        "model_hash": plan.key.model,
        "profile": plan.profile.key.id if plan.profile else None,
        "device": plan.device,
        "processor": plan.machine.cpu,
        "threads": plan.decisions["threads"].value,
        "dtype": plan.dtype,
        **details,
        "versions": {name: metadata.version(name) for name in ("dynx", "torch", library) if _installed(name)},
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
