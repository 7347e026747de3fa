"""`dynx bench` for language models: static drafts of each length against dynamic ones, all writing the same tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dynx.cli.bench import conditions, contest, read_prompts, settings
from dynx.cli.generate import open_assembly

if TYPE_CHECKING:
    from dynx.bench.gate import Gate
    from dynx.bench.harness import Arm
    from dynx.bench.report import BenchResult
    from dynx.cli.bench import Options
    from dynx.cli.console import Terminal


@dataclass(frozen=True)
class Settings:
    """What language models have of their own on the command line."""

    draft: str = "auto"
    max_new_tokens: int = 64
    runs: int = 5
    prompts: int = 4
    static: str = "1-10"
    temperature: float = 0.0


def measure(options: Options, terminal: Terminal) -> BenchResult:
    """Run the arms on prompts, condense what they did, and judge it."""
    from dynx.bench import report
    from dynx.bench.generation import Task, own_arms, parse_lengths, peer_arms
    from dynx.speculation.events import Sampling

    own = settings(options, Settings)
    lengths = parse_lengths(own.static)
    texts = read_prompts(options.data)[: own.prompts]
    assembly = open_assembly(replace(options, draft=own.draft), terminal)
    plan = assembly.plan
    seed = 0 if own.temperature else None
    sampling = Sampling(own.temperature, repetition_penalty=assembly.repetition_penalty, seed=seed)
    task = Task(own.max_new_tokens, sampling, assembly.end_tokens)
    cases = [list(assembly.tokenizer(text)["input_ids"]) for text in texts]
    arms: list[Arm[list[int]]] = own_arms(assembly, task, lengths)
    if options.against:
        arms += peer_arms(assembly, task, lengths)
    result = report.summarize(
        contest(arms, cases, options, terminal, rounds=own.runs),
        task="generate",
        unit="tokens",
        header=conditions(
            plan,
            drafter=plan.drafter.name if plan.drafter else None,
            drafter_hash=plan.key.companion,
            draft=assembly.decisions["draft"].value,
            tokens_per_answer=own.max_new_tokens,
            temperature=own.temperature,
        ),
        rng=random.Random(0),  # noqa: S311
    )
    return result.judged(gates(result, options))


def gates(result: BenchResult, options: Options) -> list[Gate]:
    """What the command line asks for: dynamic against plain, and token for token."""
    from dynx.bench.gate import min_speedup, require_identical

    try:
        arm = result.arm("dynamic")
    except KeyError:  # a model that can't roll back has no dynamic arm: plain is what it runs
        arm = result.reference
    failure = arm.failure.message if arm.failure else None
    judged: list[Gate] = []
    if options.min_speedup is not None:
        judged.append(min_speedup(arm.ratio, options.min_speedup, failure=failure))
    if options.require_identical:
        judged.append(require_identical(arm.identical, failure=failure))
    return judged
