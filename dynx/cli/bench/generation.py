"""`dynx bench` for language models: static drafts of each length against dynamic ones, all writing the same tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dynx.cli.bench import arm_options
from dynx.cli.bench.command import Prepared, conditions, read_prompts, settings, tolerance_of
from dynx.cli.generate.model import open_assembly
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.bench.arms.generation import Task
    from dynx.bench.gates import Gate
    from dynx.bench.report import BenchResult
    from dynx.bench.runner import Arm, Group, Measurements, Outcome
    from dynx.cli.bench.options import Options
    from dynx.cli.console import Terminal
    from dynx.speculation.setup import Assembly

TASK, ARE, IS_ONE = "generate", "language models", "is a language model"


@dataclass(frozen=True)
class Settings:
    """What language models have of their own on the command line."""

    draft: str = "auto"
    backend: str = "auto"
    quantize: str = "none"
    max_new_tokens: int = 64
    runs: int = 5
    prompts: int = 4
    static: str = "1-10"
    temperature: float = 0.0


def prepare(options: Options, terminal: Terminal) -> Prepared:
    """The arms and the prompts they are run on, and how a result is made of what they did."""
    from dynx.bench.arms.generation import Task, own_arms, parse_lengths
    from dynx.runtime.hashing import text_hash
    from dynx.speculation.types import Sampling

    own = settings(options, Settings)
    lengths = parse_lengths(own.static)
    texts = read_prompts(options.data)[: own.prompts]
    assembly = opened(options, terminal)
    plan = assembly.plan
    seed = 0 if own.temperature else None
    sampling = Sampling(own.temperature, repetition_penalty=assembly.repetition_penalty, seed=seed)
    task = Task(own.max_new_tokens, sampling, assembly.end_tokens)
    cases = [list(assembly.tokenizer(text)["input_ids"]) for text in texts]
    arms: list[Arm[list[int]]] = own_arms(assembly, task, lengths)
    arms += further_arms(options, assembly, task, lengths, dict(zip(map(tuple, cases), texts, strict=True)), terminal)
    header = conditions(
        plan,
        drafter=plan.drafter.name if plan.drafter else None,
        drafter_hash=plan.key.companion,
        draft=assembly.decisions["draft"].value,
        backend=assembly.decisions["backend"].value,
        quantization=plan.key.quantization,
        data_hash=text_hash(texts),
        tokens_per_answer=own.max_new_tokens,
        temperature=own.temperature,
    )

    def conclude(measured: Measurements, confidence: float) -> BenchResult:
        return judged(measured, confidence, options, header, assembly, cases)

    return Prepared(TASK, arms, cases, header, own.runs, conclude)


def opened(options: Options, terminal: Terminal) -> Assembly:
    """The model on a command line."""
    return open_assembly(defaulted(options), terminal)


def defaulted(options: Options) -> Options:
    """A command line with this task's defaults for what wasn't given."""
    own = settings(options, Settings)
    given: dict[str, Any] = {"draft": own.draft, "backend": own.backend, "quantize": own.quantize}
    return replace(options, **given)


def judged(
    measured: Measurements,
    confidence: float,
    options: Options,
    header: dict[str, Any],
    assembly: Assembly,
    cases: Sequence[list[int]],
) -> BenchResult:
    """What was measured, condensed, with where answers first differ, and judged."""
    from dynx.bench import report
    from dynx.bench.arms.generation import by_position
    from dynx.bench.mismatch import first_mismatch

    facts: dict[str, dict[str, Any]] = by_position(measured)
    notes, identical = [], {}
    for name in measured.samples:
        identical[name] = measured.identical_rate(name)
        found = first_mismatch(measured, name, cases, assembly)
        facts.setdefault(name, {})["first_mismatch"] = found.json() if found else None
        if found is not None and measured.groups[name] != "external":
            notes.append(str(found))
    result = report.summarize(
        measured,
        task=TASK,
        unit="tokens",
        header=header,
        rng=random.Random(0),  # noqa: S311
        confidence=confidence,
        facts=facts,
        identical=identical,
        notes=notes,
    )
    return result.judged(gates(result, options))


def further_arms(
    options: Options,
    assembly: Assembly,
    task: Task,
    lengths: Sequence[int],
    texts: dict[tuple[int, ...], str],
    terminal: Terminal,
) -> list[Arm[list[int]]]:
    """What --arm asks for."""
    from dynx.bench.arms.generation import own_arms, parse_lengths, peer_arms

    arms: list[Arm[list[int]]] = []
    for one in arm_options.parse_all(options.arms or []):
        if one.kind == "peer":
            peers = peer_arms(assembly, task, lengths)
            arms += [replace(arm, name=one.name + arm.name.removeprefix("hf")) for arm in peers]
            continue
        arm_options.check_takes(one, Settings, "language models")
        theirs = one.applied(options)
        fixed = parse_lengths(theirs.static) if "static" in one.differs and theirs.static is not None else []
        if len(fixed) > 1:
            raise UsageError(f"--arm {one.name}: an arm has one draft length, not {theirs.static}")
        other = assembly
        if set(one.differs) - {"static"}:
            other = opened(theirs, terminal)
        made = own_arms(other, replace(task, eos=other.end_tokens), fixed)
        chosen = next((arm for arm in made if arm.group == "static"), None) if fixed else made[-1]
        if chosen is None:
            raise UsageError(f"--arm {one.name}: no drafter is available")
        group: Group = (
            "external" if other.plan.key.model != assembly.plan.key.model else "static" if fixed else "dynamic"
        )
        run = retokenized(chosen, other, texts) if group == "external" else chosen
        arm = replace(run, name=one.name, group=group, reference=False)
        arms.append(arm_options.side_by_side(arm, other, assembly))
    return arms


def retokenized(arm: Arm[list[int]], assembly: Assembly, texts: dict[tuple[int, ...], str]) -> Arm[list[int]]:
    """An arm of another model, given the same texts as its own tokens."""

    def run(case: list[int]) -> Outcome:
        return arm.run(list(assembly.tokenizer(texts[tuple(case)])["input_ids"]))

    return replace(arm, run=run)


def gates(result: BenchResult, options: Options) -> list[Gate]:
    """What the command line asks for: dynamic against plain, and token for token."""
    from dynx.bench.gates import min_speedup, require_identical

    try:
        arm = result.arm("dynamic")
    except KeyError:  # a model that can't roll back has no dynamic arm: plain is what it runs
        arm = result.reference
    failure = arm.failure.message if arm.failure else None
    judged: list[Gate] = []
    if options.min_speedup is not None:
        judged.append(min_speedup(arm.ratio, options.min_speedup, failure=failure, tolerance=tolerance_of(options)))
    if options.require_identical:
        judged.append(require_identical(arm.identical, failure=failure))
    return judged
