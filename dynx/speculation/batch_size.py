"""How many prompts to answer at once, or whether one after another is faster; from a profile, else from a second of timing.

One at a time a prompt has all of speculation; in a batch passes are shared, and the more rows share them the less a guess saves.
Which is faster is a matter of what a pass of B rows costs, so it is measured: by calibration, or on the first prompts that wait.
Times are seconds. Letters: B rows, k drafts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from dynx.errors import InvalidInput
from dynx.runtime.backends.batch import BatchSession, can_batch
from dynx.runtime.backends.eager import EagerBackend
from dynx.runtime.backends.registry import TITLES
from dynx.runtime.costs import CostCurve
from dynx.runtime.decision import Decision
from dynx.speculation.batching import BatchCosts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dynx.runtime.backends.interface import Backend
    from dynx.runtime.profile import Profile
    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.engine import Engine

MOST = 16
"""Rows that are chosen unasked: beyond, an answer waits long for its neighbours, and processors have no more to gain."""

CELLS = ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 4), (16, 4))
"""Rows and tokens of the target's passes that are timed; of the draft model's, those of one token."""

CONTEXT = 48
"""Tokens before each timed pass."""

SAMPLES = 5
"""Of each cell, at most; at least 3."""

CREDIT = 3.0
"""Times plain decoding that speculation is credited with until it has been measured: about the best that it does."""

CLEARLY, ELSEWHERE = 1.05, 1.25
"""What a batch must win by; the second where it takes kernels that run has not loaded."""

FEW, WORTH_TIMING = 4, 512
"""Prompts that wait, and tokens that they may become, below which a second of timing isn't earned back."""

SHARE_OF_MEMORY = 0.25
"""Of what is free, for the keys and values of a batch."""


@dataclass(frozen=True)
class Choice:
    """`rows` at most at a time, and how many prompts must wait for a batch to begin at all."""

    decision: Decision[int]
    least: int = 2
    costs: BatchCosts | None = None
    until: int = 1 << 30  # waiting prompts up to which it holds
    engine: Engine | None = None  # to batch on, where it isn't the one that runs

    @property
    def rows(self) -> int:
        """1: one prompt after another."""
        return self.decision.value


def measure_batches(
    target: EagerBackend,
    small: EagerBackend | None,
    *,
    budget: float,
    clock: Callable[[], float],
    most: int = MOST,
) -> BatchCosts:
    """Passes of several rows, timed within about `budget` seconds."""
    costs = BatchCosts()
    jobs: list[tuple[CostCurve, int, Callable[[], None]]] = []
    for backend, curve in ((target, costs.target), (small, costs.draft)):
        if backend is None:
            continue
        for rows in sorted({b for b, _ in CELLS if b <= most}):
            session = _filled(backend, rows)
            for b, width in CELLS:
                if b == rows and (width == 1 or backend is target):
                    jobs.append((curve, rows * width, _pass(session, rows, width)))
    seen: list[list[float]] = [[] for _ in jobs]
    for _, _, job in jobs:
        job()  # the first allocates and chooses kernels
    began = clock()
    for number in range(SAMPLES):
        for times, (_, _, job) in zip(seen, jobs, strict=True):
            start = clock()
            job()
            times.append(clock() - start)
        if number >= 2 and (clock() - began) * (number + 2) / (number + 1) > budget:
            break
    for (curve, tokens, _), times in zip(jobs, seen, strict=True):
        curve.table[tokens] = (sorted(times)[len(times) // 2], 8.0)
    return costs


def for_profile(
    assembly: LoadedGenerator, *, drafting: bool, budget: float, clock: Callable[[], float]
) -> dict[str, Any] | None:
    """What a profile should say of batches; None where there are none. `drafting`: whether the draft model is worth having."""
    engine = assembly.engine
    if not isinstance(engine.target, EagerBackend):
        if assembly.plan.key.quantization != "none":
            return None
        engine = _eager(assembly)
    target, small = engine.target, engine.drafters.model if drafting else None
    if not can_batch(target).value:
        return None
    other = cast("EagerBackend", small) if small is not None and can_batch(small).value else None
    costs = measure_batches(cast("EagerBackend", target), other, budget=budget, clock=clock)
    return {
        "target": costs.target.to_json(),
        "draft": costs.draft.to_json() if costs.draft.known else None,
    }


def _filled(backend: EagerBackend, rows: int) -> BatchSession:
    context = CONTEXT if backend.context is None else max(1, min(CONTEXT, backend.context - 8))
    others = []
    for r in range(rows):
        others.append(BatchSession(backend))
        others[-1].prefill([(7 * i + r) % backend.vocab for i in range(context)])
    session = BatchSession(backend)
    session.admit(others)
    return session


def _pass(session: BatchSession, rows: int, width: int) -> Callable[[], None]:
    def job() -> None:
        lengths = session.lengths
        session.forward([[3 + i for i in range(width)]] * rows).argmax(-1).tolist()
        session.rollback(lengths)

    return job


def from_json(found: Mapping[str, Any]) -> BatchCosts:
    """What `for_profile` found. Raises KeyError, TypeError or ValueError on anything else."""
    costs = BatchCosts()
    costs.target = CostCurve.from_json(found["target"], costs.drift)
    if found.get("draft"):
        costs.draft = CostCurve.from_json(found["draft"], costs.drift)
    if not costs.target.known:
        raise ValueError("no passes")
    return costs


def rate_of(costs: BatchCosts, rows: int, acceptance: float) -> float:
    """Tokens per second of `rows` rows, plain or with the number of drafts that is best at an acceptance."""
    best, tokens, survival = rows / costs.target(rows), 1.0, 1.0
    for k in range(1, 9):
        survival *= acceptance
        tokens += survival
        if costs.draft.known:
            seconds = costs.target(rows * (k + 1)) + costs.drafting(k, rows, 2)
            best = max(best, rows * tokens / seconds)
    return best


def weigh(costs: BatchCosts, single: float, said: str, acceptance: float, most: int, margin: float = CLEARLY) -> Choice:
    """The number of rows with the highest rate, if that beats `single` tokens per second (of which `said` tells the origin)."""
    rates = {rows: rate_of(costs, rows, acceptance) for rows in range(2, most + 1)}
    top = max(rates.values(), default=0.0)
    if top < margin * single:
        return Choice(Decision(1, f"a batch would write {top:.0f} tokens/s, and one at a time {single:.0f} ({said})"))
    rows = min(b for b, rate in rates.items() if rate >= 0.98 * top)
    least = min(b for b, rate in rates.items() if rate >= margin * single)
    begin = f"; from {least} waiting prompts on" if least > 2 else ""
    return Choice(
        Decision(rows, f"a batch writes {rates[rows]:.0f} tokens/s, and one at a time {single:.0f} ({said}){begin}"),
        least,
        costs,
    )


def from_profile(profile: Profile | None, most: int, margin: float = CLEARLY) -> Choice | None:
    """What a profile says; None where it says nothing that can be used."""
    if profile is None or not profile.measured.get("batch"):
        return None
    try:
        costs = from_json(profile.measured["batch"])
        single = float(profile.fitted["tokens_per_second"])
        drafting = "draft" in profile.fitted["origins"]
        acceptance = float(profile.fitted["reliability"]["draft"]["typical"]) if drafting else 0.0
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return weigh(costs, single, "from the profile", acceptance, most, margin)


def by_timing(engine: Engine, single: float | None, most: int, budget: float = 1.0) -> Choice:
    """Time batches here and now. `single`: tokens per second that one at a time made so far, if it did."""
    target, small = cast("EagerBackend", engine.target), engine.drafters.model
    other = cast("EagerBackend", small) if small is not None and can_batch(small).value else None
    costs = measure_batches(target, other, budget=budget, clock=engine.clock, most=most)
    said = "as measured so far"
    if single is None:
        drafting = small is not None or engine.drafters.lookup or engine.drafters.exit_layers
        credit = CREDIT if drafting else 1.0
        single = credit / costs.target(1)
        said = f"if speculation is worth {credit:g}x plain, which nothing has measured" if drafting else "plain"
    return weigh(costs, single, said, 0.0, most)


def choose(
    assembly: LoadedGenerator, *, asked: int | None, waiting: int, tokens: int, single: float | None = None
) -> Choice:
    """How to answer prompts of which `waiting` are there, each with up to so many `tokens`. Raises InvalidInput.

    `asked` is a number of rows that the user insists on; `single` the tokens per second that were made one at a time so far.
    """
    engine, plan = assembly.engine, assembly.plan
    if asked == 1:
        return Choice(Decision(1, "asked for"))
    if engine.exact is not None:
        return _alone(asked, "`exact` is about the rounding of a single row")
    if plan.request.plain and asked is None:
        return Choice(Decision(1, "plain decoding was asked for"))
    profiled = from_profile(
        plan.own_profile, asked or MOST, CLEARLY if isinstance(engine.target, EagerBackend) else ELSEWHERE
    )
    if not isinstance(engine.target, EagerBackend):
        refused = _refused(assembly, asked, profiled)
        if refused is not None:
            return refused
        engine = _eager(assembly)
    able = can_batch(engine.target)
    if not able.value:
        return _alone(asked, able.reason)
    most = rows_that_fit(engine.target, plan.machine.memory_available or 0, asked or MOST)
    if most < 2:
        return _alone(asked, "the memory that is free holds no second answer")
    if asked is not None:
        said = "asked for" if most == asked else f"{asked} were asked for, and memory holds no more"
        return Choice(Decision(most, said), 1, None if profiled is None else profiled.costs, engine=engine)
    if profiled is None:
        if waiting < FEW or waiting * tokens < WORTH_TIMING:
            why = "too little is waiting for a second of timing to pay; calibrating would tell"
            return Choice(Decision(1, why), until=waiting)
        return by_timing(engine, single, most)
    if profiled.rows > most:
        return replace(
            profiled, decision=Decision(most, f"{profiled.decision.reason}; memory holds no more"), engine=engine
        )
    return replace(profiled, engine=engine)


def _refused(assembly: LoadedGenerator, asked: int | None, profiled: Choice | None) -> Choice | None:
    """Why batches aren't worth loading PyTorch's kernels for, where others run; None where they are."""
    plan, name = assembly.plan, assembly.engine.target.name
    why = f"{TITLES.get(name, name)} runs one sequence at a time"
    if plan.key.quantization != "none":
        return _alone(asked, why)
    if asked is not None or (profiled is not None and profiled.rows > 1):
        return None
    known = profiled.decision.reason if profiled is not None else "whether PyTorch's batches win isn't measured"
    return Choice(Decision(1, f"{why}; {known}"))


def _alone(asked: int | None, reason: str) -> Choice:
    """One at a time, which is an error if more was asked for."""
    if asked is not None:
        raise InvalidInput(f"`batch` {asked}: {reason}")
    return Choice(Decision(1, reason))


def _eager(assembly: LoadedGenerator) -> Engine:
    """The assembly's models on PyTorch, which has batches."""
    from dynx.speculation.backends import torch_backend
    from dynx.speculation.engine import Drafters, Engine

    plan, ours = assembly.plan, assembly.engine
    small = plan.drafter if ours.drafters.model is not None else None
    drafters = Drafters(
        None if small is None else torch_backend(plan, small), None, ours.drafters.lookup, ours.drafters.library
    )
    return Engine(
        torch_backend(plan, plan.source), drafters, tokenizer=ours.tokenizer, knowledge=ours.knowledge, clock=ours.clock
    )


def rows_that_fit(target: Backend, free: int, most: int) -> int:
    """Rows whose keys and values take no more than their share of `free` bytes, when each fills the context."""
    if not isinstance(target, EagerBackend) or free <= 0:
        return most
    config = target.config
    heads = int(getattr(config, "num_attention_heads", 1))
    width = int(getattr(config, "head_dim", 0) or config.hidden_size // heads)
    shared = int(getattr(config, "num_key_value_heads", 0) or heads)
    each = 2 * target.layers * shared * width * target.model.dtype.itemsize * (target.context or 4096)
    return max(1, min(most, int(SHARE_OF_MEMORY * free / (2 * each))))  # twice: buffers double as they grow
