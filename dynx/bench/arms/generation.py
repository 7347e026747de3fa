"""Benchmark arms for language models: plain, static drafts, dynamic, and transformers' own ways of decoding.

All take token ids and write up to the same number of tokens, prefill included in the time. The dynamic arm starts each text from
the profile alone, as a new process would.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dynx.bench.measurements import Outcome
from dynx.bench.runner import Arm
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.policy import Plain, Policy, Static
from dynx.speculation.types import DraftSource, Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.bench.measurements import JSON, Measurements
    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.types import DrafterCandidate


@dataclass(frozen=True)
class Task:
    """Decoding settings that all arms share."""

    max_new_tokens: int
    sampling: Sampling
    eos: frozenset[int]
    stop: tuple[str, ...] = ()  # the model's own; needs the engine's tokenizer

    def request(self, prompt: Sequence[int]) -> Request:
        """Return the engine's request for one case."""
        return Request(prompt, self.max_new_tokens, self.sampling, self.eos, self.stop)


def own_arms(assembly: LoadedGenerator, task: Task, lengths: Sequence[int]) -> list[Arm[list[int]]]:
    """Build plain (the reference), static at each length with the main drafter, and dynamic.

    Where the plan has put all drafters aside, the static arms are those of prompt lookup.
    """
    engine = assembly.engine
    arms = [Arm("plain", _run(engine, task, lambda: Plain()), "plain", reference=True)]
    for origin in _origins(engine):
        arms += [Arm(f"{origin} k={k}", _run(engine, task, _static(origin, k)), "static") for k in lengths]
    if engine.target.can_rollback.value:
        if not engine.drafters.present and assembly.plan.auto:
            arms += [lookup_arm(assembly, task, f"lookup k={k}", k) for k in lengths]
        arms.append(Arm("dynamic", _run_dynamic(engine, task), "dynamic"))
    return arms


class StaticLookup(Static):
    """Always `length` drafts of prompt lookup, but only after a match of at least `shortest` tokens."""

    def __init__(self, length: int, shortest: int = 1) -> None:
        super().__init__("lookup", length)
        self._least = math.log2(shortest + 1)

    def choose(self, candidates: Sequence[DrafterCandidate], context: int, room: int) -> DraftSource | None:
        """Return lookup, if it has a match that is long enough."""
        return super().choose([c for c in candidates if (c.signal or 0.0) >= self._least], context, room)


def lookup_arm(assembly: LoadedGenerator, task: Task, name: str, length: int, shortest: int = 1) -> Arm[list[int]]:
    """Build static prompt lookup on the same model, also where the plan has put lookup aside."""
    engine = assembly.engine
    looking = Engine(
        engine.target,
        Drafters(lookup=True, library=engine.drafters.library),
        tokenizer=engine.tokenizer,
        clock=engine.clock,
    )
    return Arm(name, _run(looking, task, lambda: StaticLookup(length, shortest)), "static")


def _origins(engine: Engine) -> list[DraftSource]:
    """Return the drafter that gets static arms: the draft model, else self, else lookup; none without any."""
    drafters = engine.drafters
    if drafters.model is not None:
        return ["draft"]
    return ["self"] if drafters.exit_layers else ["lookup"] if drafters.lookup else []


def _static(origin: DraftSource, k: int) -> Callable[[], Policy]:
    return lambda: Static(origin, k)


def _run(engine: Engine, task: Task, policy: Callable[[], Policy]) -> Callable[[list[int]], Outcome]:
    return lambda prompt: _outcome(engine, task, prompt, policy())


def _run_dynamic(engine: Engine, task: Task) -> Callable[[list[int]], Outcome]:
    known = engine.acceptance_profile

    def run(prompt: list[int]) -> Outcome:
        fresh = Engine(
            engine.target,
            engine.drafters,
            tokenizer=engine.tokenizer if task.stop else None,
            acceptance_profile=copy.deepcopy(known),
            clock=engine.clock,
        )
        began = engine.clock()  # a process reads its profile once and not for each text
        outcome = _outcome(fresh, task, prompt, None)
        return replace(outcome, seconds=engine.clock() - began)

    return run


def _outcome(engine: Engine, task: Task, prompt: list[int], policy: Policy | None) -> Outcome:
    run = engine.start(task.request(prompt), policy)
    for _ in run:
        pass
    receipt = run.receipt()
    facts: dict[str, Any] = {
        "tokens_per_forward": receipt.tokens_per_forward,
        "passes": receipt.target_forwards,
        "first_token_seconds": receipt.first_token_seconds,
    }
    for origin, tally in receipt.drafters.items():
        facts[f"{origin} drafted"], facts[f"{origin} kept"] = tally.drafted, tally.accepted
    if receipt.drafters:
        facts["by_position"] = {
            origin: {"submitted": list(t.submitted_by_position), "accepted": list(t.accepted_by_position)}
            for origin, t in receipt.drafters.items()
        }
    return Outcome(len(run.tokens), None, tuple(run.tokens), facts)


def by_position(measured: Measurements) -> dict[str, dict[str, JSON]]:
    """Return each arm's facts: draft tokens submitted and accepted at each position, by drafter, over all of its runs."""
    found: dict[str, dict[str, JSON]] = {}
    for arm, samples in measured.samples.items():
        tallies: dict[str, dict[str, list[int]]] = {}
        for sample in samples:
            drafters: Any = sample.facts.get("by_position", {})
            for origin, counts in drafters.items():
                for what, numbers in counts.items():
                    sums = tallies.setdefault(origin, {}).setdefault(what, [])
                    sums += [0] * (len(numbers) - len(sums))
                    sums[: len(numbers)] = [a + b for a, b in zip(sums, numbers, strict=False)]
        if tallies:
            found[arm] = {"by_position": tallies}
    return found


def peer_arms(assembly: LoadedGenerator, task: Task, lengths: Sequence[int]) -> list[Arm[list[int]]]:
    """Build arms of transformers' `generate` on the same modules: plain, lookup, and dynamic and static with the draft model.

    Raises ValueError with sampling, whose random streams can't be compared.
    """
    if not task.sampling.greedy:
        raise ValueError("transformers is compared in greedy decoding")
    target, small = _torch(assembly)
    tokenizer = assembly.tokenizer
    arms = [
        Arm("hf plain", _generate(target, tokenizer, task, {}), "external"),
        Arm("hf lookup", _generate(target, tokenizer, task, {"prompt_lookup_num_tokens": 10}), "external"),
    ]
    if small is not None:
        arms.append(Arm("hf dynamic", _generate(target, tokenizer, task, {}, small.model, None), "external"))
        arms += [Arm(f"hf k={k}", _generate(target, tokenizer, task, {}, small.model, k), "external") for k in lengths]
    return arms


def _torch(assembly: LoadedGenerator) -> tuple[Any, Any]:
    """Return target and drafter as transformers' modules, loaded anew where the assembly runs on another backend or weights."""
    from dynx.runtime.backends.registry import TORCH
    from dynx.speculation.backends import torch_backend
    from dynx.speculation.drafters.head import HeadBackend

    plan, drafters = assembly.plan, assembly.engine.drafters
    target: Any = assembly.engine.target
    small: Any = drafters.model
    if (target.name, target.precision) != (TORCH, plan.dtype):
        target = torch_backend(plan, plan.source)
    if isinstance(small, HeadBackend):
        return target, None  # it is no model of transformers'
    if small is not None and plan.drafter is not None and small.name != TORCH:
        small = torch_backend(plan, plan.drafter)
    return target, small


def _generate(
    target: Any, tokenizer: Any, task: Task, options: dict[str, Any], assistant: Any = None, length: int | None = None
) -> Callable[[list[int]], Outcome]:
    import torch

    penalty = {} if task.sampling.repetition_penalty == 1 else {"repetition_penalty": task.sampling.repetition_penalty}

    def run(prompt: list[int]) -> Outcome:
        from dynx.runtime.loading import quietly

        if assistant is not None:
            config = assistant.generation_config
            config.num_assistant_tokens = length or 20  # 20 and 0.4 are transformers' defaults
            config.num_assistant_tokens_schedule = "constant"
            config.assistant_confidence_threshold = 0.0 if length else 0.4
            options["assistant_model"] = assistant
        ids = torch.tensor([prompt], device=target.device)
        with quietly():
            out = target.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=task.max_new_tokens,
                do_sample=False,
                eos_token_id=sorted(task.eos) or None,
                pad_token_id=min(task.eos, default=0),
                trust_remote_code=False,
                tokenizer=tokenizer if task.stop else None,
                **penalty,
                **options,
            )
        tokens = tuple(out[0, len(prompt) :].tolist())
        return Outcome(len(tokens), None, tokens)

    return run
