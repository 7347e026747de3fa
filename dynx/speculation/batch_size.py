"""Chooses how many prompts to answer in one batch: from a profile, else from a second of timing.

One at a time a prompt has all of speculation; in a batch passes are shared, and the more sequences share them the less a draft
token saves. Which is faster depends on the cost of a pass of B sequences, so it is measured: by calibration, or on the first
waiting prompts. Times are seconds. Letters: B sequences, k drafts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dynx.errors import InvalidInput, UnsupportedModelError
from dynx.runtime.backends.batch_rows import batches, open_batch
from dynx.runtime.backends.eager import EagerBackend
from dynx.runtime.backends.interface import Part
from dynx.runtime.backends.registry import OPENVINO, TITLES, TORCH, usable
from dynx.runtime.costs import CostCurve
from dynx.runtime.decision import Decision
from dynx.speculation.shared_costs import BatchCosts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dynx.runtime.backends.interface import Backend
    from dynx.runtime.profile import Profile
    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.engine import Engine

MAX_AUTO_SEQUENCES, MAX_AUTO_RAGGED_SEQUENCES = 16, 64
"""Largest batch that is chosen automatically: in a larger one an answer waits long for the others, and nothing is gained.

The second where passes are ragged. There a sequence that is done leaves nothing behind, and a token costs the less the more there
are, up to about 64.
"""

TIMED_PASSES = ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 4), (16, 4))
"""(Sequences, tokens of each) of the target's timed passes; of the draft model's, those of one token."""

TIMED_RAGGED_PASSES, RAGGED_BUDGET = ((1, 1), (8, 1), (16, 4)), 0.3
"""The same where passes are ragged and a pass costs by its tokens alone, when prompts are waiting; and the seconds for it."""

TIMED_CONTEXT_TOKENS = 48
"""Tokens before each timed pass."""

MAX_SAMPLES_PER_PASS = 5
"""Most samples of each timed pass; at least 3 are taken."""

UNMEASURED_SPEEDUP = 3.0
"""Speed-up over plain decoding that speculation is assumed to have until it is measured: about its best."""

MIN_BATCH_SPEEDUP, MIN_BATCH_SPEEDUP_OTHER_BACKEND = 1.05, 1.25
"""Speed-up over one at a time from which a batch is chosen; the second where it needs another backend loaded."""

MIN_WAITING_PROMPTS, MIN_WAITING_TOKENS = 4, 512
"""Waiting prompts, and tokens of their answers, below which a second of timing isn't earned back."""

MIN_CONVERTED_TOKENS = 2048
"""Waiting tokens from which converting a model for OpenVINO, some seconds the first time, is earned back by faster batches."""

MAX_MEMORY_SHARE = 0.25
"""Share of free memory that the keys and values of a batch may take."""


@dataclass(frozen=True)
class BatchChoice:
    """`sequences` at most at a time, and how many prompts must wait for a batch to begin at all."""

    decision: Decision[int]
    min_waiting: int = 2
    costs: BatchCosts | None = None
    until: int = 1 << 30  # waiting prompts up to which it holds
    engine: Engine | None = None  # to batch on, where it isn't the one that runs

    @property
    def sequences(self) -> int:
        """Largest batch; 1 means one prompt after another."""
        return self.decision.value


def measure_batches(
    target: Backend,
    small: Backend | None,
    *,
    budget: float,
    clock: Callable[[], float],
    most: int = MAX_AUTO_SEQUENCES,
    passes: Sequence[tuple[int, int]] = TIMED_PASSES,
) -> BatchCosts:
    """Time passes of several sequences within about `budget` seconds."""
    costs = BatchCosts()
    jobs: list[tuple[CostCurve, int, Callable[[], None]]] = []
    for backend, curve in ((target, costs.target), (small, costs.draft)):
        if backend is None:
            continue
        for sequences in sorted({b for b, _ in passes if b <= most}):
            batch, sessions = _filled(backend, sequences)
            for b, width in passes:
                if b == sequences and (width == 1 or backend is target):
                    jobs.append((curve, sequences * width, _pass(batch, sessions, width)))
    seen: list[list[float]] = [[] for _ in jobs]
    for _, _, job in jobs:
        job()  # the first allocates and chooses kernels
    began = clock()
    for number in range(MAX_SAMPLES_PER_PASS):
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
    """Measure a profile's section on batches; None without batches. `drafting`: whether the draft model is worth having."""
    engine = assembly.engine
    if not batches(engine.target).value and not isinstance(engine.target, EagerBackend):
        if assembly.plan.key.quantization != "none":
            return None
        engine = _eager(assembly)
    target, small = engine.target, engine.drafters.model if drafting else None
    if not batches(target).value:
        return None
    other = small if small is not None and batches(small).value else None
    costs = measure_batches(target, other, budget=budget, clock=clock)
    return {
        "backend": target.name,
        "target": costs.target.to_json(),
        "draft": costs.draft.to_json() if costs.draft.known else None,
    }


def _filled(backend: Backend, sequences: int) -> tuple[Any, list[Any]]:
    """Return a batch and its sequences, each with some context."""
    context = (
        TIMED_CONTEXT_TOKENS if backend.context is None else max(1, min(TIMED_CONTEXT_TOKENS, backend.context - 8))
    )
    batch = open_batch(backend)
    sessions: list[Any] = [batch.open()]
    batch.read(sessions[0], [7 * i % backend.vocab for i in range(context)])
    for r in range(1, sequences):
        if batch.ragged:
            sessions.append(sessions[0].fork())
        else:
            sessions.append(batch.open())
            batch.read(sessions[r], [(7 * i + r) % backend.vocab for i in range(context)])
    return batch, sessions


def _pass(batch: Any, sessions: Sequence[Any], width: int) -> Callable[[], None]:
    def job() -> None:
        lengths = [session.length for session in sessions]
        batch.forward([Part(session, [3 + i for i in range(width)], None, picks=True) for session in sessions])
        for session, length in zip(sessions, lengths, strict=True):
            session.rollback(length)

    return job


def from_json(found: Mapping[str, Any]) -> BatchCosts:
    """Restore costs from `for_profile`'s form. Raises KeyError, TypeError or ValueError on anything else."""
    costs = BatchCosts()
    costs.target = CostCurve.from_json(found["target"], costs.drift)
    if found.get("draft"):
        costs.draft = CostCurve.from_json(found["draft"], costs.drift)
    if not costs.target.known:
        raise ValueError("no passes")
    return costs


def rate_of(costs: BatchCosts, sequences: int, acceptance: float) -> float:
    """Return tokens per second of a batch, plain or with the best number of drafts at an acceptance, whichever is more."""
    best, tokens, survival = sequences / costs.target(sequences), 1.0, 1.0
    for k in range(1, 9):
        survival *= acceptance
        tokens += survival
        if costs.draft.known:
            seconds = costs.target(sequences * (k + 1)) + costs.drafting(k, sequences, 2)
            best = max(best, sequences * tokens / seconds)
    return best


def weigh(
    costs: BatchCosts,
    single: float,
    single_source: str,
    acceptance: float,
    most: int,
    margin: float = MIN_BATCH_SPEEDUP,
) -> BatchChoice:
    """Choose the batch size with the highest rate, if it beats `single` tokens per second (measured as `single_source` says)."""
    rates = {sequences: rate_of(costs, sequences, acceptance) for sequences in range(2, most + 1)}
    top = max(rates.values(), default=0.0)
    if top < margin * single:
        return BatchChoice(
            Decision(1, f"a batch would write {top:.0f} tokens/s, and one at a time {single:.0f} ({single_source})")
        )
    sequences = min(b for b, rate in rates.items() if rate >= 0.98 * top)
    min_waiting = min(b for b, rate in rates.items() if rate >= margin * single)
    begin = f"; from {min_waiting} waiting prompts on" if min_waiting > 2 else ""
    return BatchChoice(
        Decision(
            sequences,
            f"a batch writes {rates[sequences]:.0f} tokens/s, and one at a time {single:.0f} ({single_source}){begin}",
        ),
        min_waiting,
        costs,
    )


def from_profile(
    profile: Profile | None,
    most: int,
    margin: float = MIN_BATCH_SPEEDUP,
    backend: str = TORCH,
    *,
    plain: bool = False,
) -> BatchChoice | None:
    """Choose by a profile's measurements; None where it has none of batches on `backend`."""
    if profile is None or not profile.measured.get("batch"):
        return None
    try:
        if profile.measured["batch"].get("backend", TORCH) != backend:
            return None
        costs = from_json(profile.measured["batch"])
        single = 1 / costs.target(1) if plain else float(profile.fitted["tokens_per_second"])
        drafting = "draft" in profile.fitted["origins"] and not plain
        acceptance = float(profile.fitted["reliability"]["draft"]["typical"]) if drafting else 0.0
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return weigh(costs, single, "from the profile", acceptance, most, margin)


def by_timing(
    engine: Engine, single: float | None, most: int, budget: float = 1.0, *, plain: bool = False
) -> BatchChoice:
    """Choose by timing batches now. `single`: tokens per second that one at a time made so far, if it did."""
    target, small = engine.target, engine.drafters.model
    other = small if small is not None and batches(small).value else None
    passes: Sequence[tuple[int, int]] = TIMED_PASSES
    if not isinstance(target, EagerBackend):
        passes, budget = TIMED_RAGGED_PASSES, min(budget, RAGGED_BUDGET)
    costs = measure_batches(target, other, budget=budget, clock=engine.clock, most=most, passes=passes)
    single_source = "as measured so far"
    if single is None:
        drafting = not plain and (small is not None or engine.drafters.lookup or engine.drafters.exit_layers)
        credit = UNMEASURED_SPEEDUP if drafting else 1.0
        single = credit / costs.target(1)
        single_source = (
            f"if speculation is worth {credit:g}x plain, which nothing has measured" if drafting else "plain"
        )
    return weigh(costs, single, single_source, 0.0, most)


def choose(
    assembly: LoadedGenerator, *, asked: int | None, waiting: int, tokens: int, single: float | None = None
) -> BatchChoice:
    """Choose how to answer `waiting` prompts with up to `tokens` tokens each. Raises InvalidInput.

    `asked` is a number of rows that the user insists on; `single` the tokens per second that were made one at a time so far. The
    reason names a draft model that takes no part in batches.
    """
    found = _choose(assembly, asked, waiting, tokens, single)
    small = assembly.engine.drafters.model
    if found.sequences < 2 or small is None or assembly.plan.request.plain or (able := batches(small)).value:
        return found
    why = f"{found.decision.reason}; the draft model takes no part in it: {able.reason}"
    return replace(found, decision=Decision(found.sequences, why))


def _choose(
    assembly: LoadedGenerator, asked: int | None, waiting: int, tokens: int, single: float | None
) -> BatchChoice:
    engine, plan = assembly.engine, assembly.plan
    if asked == 1:
        return BatchChoice(Decision(1, "asked for"))
    own = isinstance(engine.target, EagerBackend) or batches(engine.target).value
    if engine.exact is not None and (isinstance(engine.target, EagerBackend) or engine.exact.bound):
        return _alone(asked, "`exact` is about the rounding of a single row")
    profiled = from_profile(
        plan.own_profile,
        asked or (MAX_AUTO_SEQUENCES if engine.target.name == TORCH or not own else MAX_AUTO_RAGGED_SEQUENCES),
        MIN_BATCH_SPEEDUP if own else MIN_BATCH_SPEEDUP_OTHER_BACKEND,
        engine.target.name if own else TORCH,
        plain=plan.request.plain,
    )
    if not own:
        refused = _refused(assembly, asked, profiled)
        if refused is not None:
            return refused
        engine = _eager(assembly)
    elif engine.target.name == TORCH and profiled is None and waiting * tokens >= MIN_CONVERTED_TOKENS:
        engine = _converted(assembly) or engine
    able = batches(engine.target)
    if not able.value:
        return _alone(asked, able.reason)
    most = asked or (MAX_AUTO_SEQUENCES if isinstance(engine.target, EagerBackend) else MAX_AUTO_RAGGED_SEQUENCES)
    most = sequences_that_fit(engine.target, plan.machine.memory_available or 0, most)
    if most < 2:
        return _alone(asked, "the memory that is free holds no second answer")
    if asked is not None:
        single_source = "asked for" if most == asked else f"{asked} were asked for, and memory holds no more"
        return BatchChoice(
            Decision(most, single_source), 1, None if profiled is None else profiled.costs, engine=engine
        )
    if profiled is None:
        if waiting < MIN_WAITING_PROMPTS or waiting * tokens < MIN_WAITING_TOKENS:
            why = "too little is waiting for a second of timing to pay; calibrating would tell"
            return BatchChoice(Decision(1, why), until=waiting)
        return by_timing(engine, single, most, plain=plan.request.plain)
    if profiled.sequences > most:
        return replace(
            profiled, decision=Decision(most, f"{profiled.decision.reason}; memory holds no more"), engine=engine
        )
    return replace(profiled, engine=engine)


def _refused(assembly: LoadedGenerator, asked: int | None, profiled: BatchChoice | None) -> BatchChoice | None:
    """Decide against batches on a backend without them; None where loading PyTorch's backend for batches is worth it."""
    plan, name = assembly.plan, assembly.engine.target.name
    why = f"{TITLES.get(name, name)} runs one sequence at a time"
    if plan.key.quantization != "none":
        return _alone(asked, why)
    if asked is not None or (profiled is not None and profiled.sequences > 1):
        return None
    known = profiled.decision.reason if profiled is not None else "whether PyTorch's batches win isn't measured"
    return BatchChoice(Decision(1, f"{why}; {known}"))


def _alone(asked: int | None, reason: str) -> BatchChoice:
    """Decide for one at a time; raises InvalidInput if a batch was requested."""
    if asked is not None:
        raise InvalidInput(f"`batch` {asked}: {reason}")
    return BatchChoice(Decision(1, reason))


def _eager(assembly: LoadedGenerator) -> Engine:
    """Load the assembly's models on PyTorch, which has batches."""
    from dynx.speculation.backends import torch_backend
    from dynx.speculation.drafters.base import OpensDrafters

    plan, ours = assembly.plan, assembly.engine
    model = ours.drafters.model
    small = None if model is None or isinstance(model, OpensDrafters) else plan.drafter
    return _engine_over(
        assembly, torch_backend(plan, plan.source), None if small is None else torch_backend(plan, small)
    )


def _converted(assembly: LoadedGenerator) -> Engine | None:
    """Load the assembly's target on OpenVINO; None where that isn't there, wasn't to be chosen or can't run it.

    Its draft model, where it has one, goes on where it is.
    """
    from dynx.speculation.backends import ModelBackends

    plan, ours = assembly.plan, assembly.engine
    able = usable(plan.device, plan.request.quantize)[OPENVINO].value
    if plan.request.backend != "auto" or plan.own_profile is not None or not able or ours.exact is not None:
        return None
    try:
        target = ModelBackends(plan, lambda _: None, lambda _: None, None).target_on(OPENVINO)
    except UnsupportedModelError:
        return None
    if target.context is not None and ours.target.context is not None and target.context < ours.target.context:
        return None
    return _engine_over(assembly, target, ours.drafters.model)


def _engine_over(assembly: LoadedGenerator, target: Backend, small: Backend | None) -> Engine:
    from dynx.speculation.engine import Drafters, Engine

    ours = assembly.engine
    return Engine(
        target,
        Drafters(small, None, ours.drafters.lookup, ours.drafters.library),
        tokenizer=ours.tokenizer,
        acceptance_profile=ours.acceptance_profile,
        clock=ours.clock,
        threads=assembly.plan.threads,
    )


def sequences_that_fit(target: Backend, free: int, most: int) -> int:
    """Return how many sequences' keys and values fit their share of `free` bytes when each fills the context."""
    if not isinstance(target, EagerBackend) or free <= 0:
        return most  # a pool of blocks has a limit of its own, at which sequences wait
    config = target.config
    heads = int(getattr(config, "num_attention_heads", 1))
    width = int(getattr(config, "head_dim", 0) or config.hidden_size // heads)
    shared = int(getattr(config, "num_key_value_heads", 0) or heads)
    each = 2 * target.layers * shared * width * target.model.dtype.itemsize * (target.context or 4096)
    return max(1, min(most, int(MAX_MEMORY_SHARE * free / (2 * each))))  # twice: buffers double as they grow
