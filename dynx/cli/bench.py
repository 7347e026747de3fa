"""`dynx bench`: plain against static against dynamic, and a verdict."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.cli.console import Terminal
from dynx.cli.generate import open_assembly
from dynx.errors import GateFailed, UsageError
from dynx.runtime.utf8 import decode

if TYPE_CHECKING:
    from dynx.bench.gate import Gate
    from dynx.bench.harness import Arm, Progress
    from dynx.bench.report import BenchResult
    from dynx.cli.options import Color, Dtype
    from dynx.speculation.setup import Assembly


@dataclass(frozen=True)
class Options:
    """The command line of `dynx bench`, by parameter name."""

    model: str
    draft: str
    data: str | None
    runs: int
    max_new_tokens: int
    prompts: int
    static: str
    against: str | None
    temperature: float
    min_speedup: float | None
    require_identical: bool
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
    from dynx.bench.gate import min_speedup
    from dynx.bench.generation import parse_lengths
    from dynx.bench.report import parse_export

    lengths = parse_lengths(options.static)  # here, and not after minutes of measuring
    for spec in options.export or []:
        parse_export(spec)
    if options.min_speedup is not None:
        min_speedup(None, options.min_speedup)
    texts = read_prompts(options.data)[: options.prompts]
    terminal = Terminal(quiet=options.quiet, verbose=options.verbose, color=options.color, json=options.json)
    assembly = open_assembly(options, terminal)
    result = judge(measure(options, lengths, texts, assembly, terminal), options)
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


def measure(
    options: Options, lengths: list[int], texts: list[str], assembly: Assembly, terminal: Terminal
) -> BenchResult:
    """Run the arms and condense what they did."""
    from dynx.bench import harness, report
    from dynx.bench.generation import Task, own_arms, peer_arms
    from dynx.speculation.events import Sampling

    seed = 0 if options.temperature else None
    sampling = Sampling(options.temperature, repetition_penalty=assembly.repetition_penalty, seed=seed)
    task = Task(options.max_new_tokens, sampling, assembly.end_tokens)
    cases = [list(assembly.tokenizer(text)["input_ids"]) for text in texts]
    arms: list[Arm[list[int]]] = own_arms(assembly, task, lengths)
    if options.against:
        arms += peer_arms(assembly, task, options.against, lengths)
    with terminal.progress("measuring") as move:

        def progress(p: Progress) -> None:
            move(p.done, p.total, p.arm)

        measured = harness.measure(
            arms,
            cases,
            rounds=options.runs,
            warmup=1,
            clock=time.perf_counter,
            rng=random.Random(0),  # noqa: S311 - the order of measurements is no secret
            budget_s=options.budget,
            progress=progress,
        )
    return report.summarize(
        measured,
        task="generate",
        unit="tokens",
        header=header(assembly, options),
        rng=random.Random(0),  # noqa: S311
    )


def header(assembly: Assembly, options: Options) -> dict[str, Any]:
    """Where and on what this was measured."""
    plan = assembly.plan
    return {
        "model": plan.source.name,
        "model_hash": plan.key.model,
        "drafter": plan.drafter.name if plan.drafter else None,
        "drafter_hash": plan.key.companion,
        "draft": assembly.decisions["draft"].value,
        "profile": plan.profile.key.id if plan.profile else None,
        "device": plan.device,
        "processor": plan.machine.cpu,
        "threads": assembly.decisions["threads"].value,
        "dtype": plan.dtype,
        "tokens_per_answer": options.max_new_tokens,
        "temperature": options.temperature,
        "versions": {name: metadata.version(name) for name in ("dynx", "torch", "transformers") if _installed(name)},
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def judge(result: BenchResult, options: Options) -> BenchResult:
    """Add the gates that the command line asks for."""
    from dynx.bench.gate import min_speedup, require_identical

    try:
        arm = result.arm("dynamic")
    except KeyError:  # a model that can't roll back has no dynamic arm: plain is what it runs
        arm = result.reference
    failure = arm.failure.message if arm.failure else None
    gates: list[Gate] = []
    if options.min_speedup is not None:
        gates.append(min_speedup(arm.ratio, options.min_speedup, failure=failure))
    if options.require_identical:
        gates.append(require_identical(arm.identical, failure=failure))
    return result.judged(gates)
