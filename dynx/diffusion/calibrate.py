"""Calibrate a pipeline once: choose grid and solver, predict how many steps a picture needs, and certify the quality.

1. Draw some pictures plain; these full runs are the reference for quality.
2. Record their trajectories over the plain run's own grid, and plan grids for every number of steps by dynamic programming.
3. On those pictures try solvers, γ, guidance intervals, skipping and caching; keep the cheapest settings that reach the
   quality, and time them.
4. Draw new pictures at every number of steps; all numbers share their first nodes. One part of the pictures fits the predictor
   and, by cross-fitting, proposes the rules; the larger part, used once, certifies.

The full run is the pipeline's own, on a processor in float32 whatever backend its network is calibrated for. Nothing here
prints; `progress` receives (share done, current activity).
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.diffusion.apply_profile import control_scale_of, strength_of, why_plain
from dynx.diffusion.backend_search import choose_backend, restore_backend
from dynx.diffusion.caching import FIRST_BLOCK, MAGNITUDE, TAYLOR_SEER
from dynx.diffusion.evidence import (
    CALIBRATION_SEED,
    MAX_PICTURES,
    MIN_PICTURES,
    PICTURES_PER_BATCH,
    SPLIT_SHARES,
    TRIAL_PICTURES,
    fit,
    requests_for,
    sweep,
)
from dynx.diffusion.plan import ERROR_PROBABILITY, PICTURE_SHARE
from dynx.diffusion.profile_data import StepSchedules, further_name, to_arrays
from dynx.diffusion.run_costs import measure_runs
from dynx.diffusion.schedule_search import choose_step_schedules, draw, one_by_one
from dynx.diffusion.similarity import tails
from dynx.diffusion.step_sweep import colour_map, time_steps
from dynx.diffusion.trajectory import record
from dynx.errors import InvalidInput, UnsupportedModelError
from dynx.runtime.binomial import most_failures, percent, supports
from dynx.runtime.certify import Costs, leaves_at, split
from dynx.runtime.hashing import text_hash
from dynx.runtime.identity import still
from dynx.runtime.plan import BackendSpec
from dynx.runtime.profile import Profile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.profile_data import Fitted
    from dynx.diffusion.similarity import Tails
    from dynx.diffusion.step_sweep import Partial, StepSweep
    from dynx.diffusion.types import Request
    from dynx.runtime.certify import Certificate

    Array = NDArray[np.float64]

Progress = Callable[[float, str], None]

CACHES = {
    FIRST_BLOCK: "cached where the first block changes less than {:g}",
    TAYLOR_SEER: "all blocks run in every {:g}th step only",
    MAGNITUDE: "cached while the blocks' residual is expected to change less than {:g}",
}
"""Feature caches in words."""

TIMED_PICTURES = 3
"""Trial pictures that are drawn one by one at every number of steps and timed."""

MAX_BUDGET_OVERRUN_RATIO = 1.5
"""Largest ratio of required time to budget at which calibration still starts; the budget in a hint leaves half of that spare."""


@dataclass(frozen=True)
class Findings:
    """Hold the results of a calibration; `profile` and `arrays` are stored."""

    pictures: int
    power: str
    schedules: StepSchedules
    likeness: dict[int, Tails]
    """SSIM to the plain run at each number of steps, on the certifying pictures."""
    seconds: dict[int, float]
    plain_seconds: float
    full_steps: int
    certificate: Certificate
    reached: Tails | None
    """SSIM under the certified rule; None where no rule is certified."""
    correlation: float | None
    """Between steps taken and steps needed, on the certifying pictures (Spearman)."""
    constant: int | None
    """The fewest steps that the same test certifies for all pictures alike; None for none."""
    summary: str
    profile: Profile
    arrays: dict[str, NDArray[Any]]


def calibrate(
    assembly: LoadedImageGenerator,
    prompts: Sequence[str],
    *,
    budget: float,
    clock: Callable[[], float],
    progress: Progress = lambda _share, _what: None,
    partial: Partial | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Findings:
    """Calibrate within about `budget` seconds; `prompts` are cycled, each time with other seeds.

    Pictures that an earlier run left in `partial` are reused, with a message to `say`. Raises UnsupportedModelError for a
    pipeline that draws plain only, InvalidInput for no prompts or a budget for too few pictures.
    """
    engine, adapter = assembly.engine, assembly.engine.adapter
    began = clock()
    requests = requests_for(assembly, prompts)
    if reason := engine.plain_reason(requests[0]):
        raise UnsupportedModelError(f"{adapter.name} is drawn plain: {reason}")
    if adapter.random:
        raise UnsupportedModelError(
            f"{adapter.name} is drawn plain: {adapter.scheduler} draws noise at every step, and no other run gives its picture"
        )
    known = partial.load() if partial else None
    made: StepSweep | None = None
    if known is None:
        state = _choose(assembly, requests[: TRIAL_PICTURES // PICTURES_PER_BATCH], budget, clock, progress)
        if partial:
            partial.save(state, None)
    else:
        state, made = known
        if "way" in state:
            count = PICTURES_PER_BATCH if state["together"] else 1
            restore_backend(assembly, state["way"], state["why"], StepSchedules.from_json(state["ladder"]), count)
        say(f"going on after {len(made) if made else 'no'} pictures that an earlier calibration drew")
    schedules = StepSchedules.from_json(state["ladder"])
    costs = Costs(tuple(state["reach"]), state["full"], tuple(state["check"]))
    done = len(made) if made else 0
    count = _count(budget - (clock() - began), state["each"], done, clock() - began)
    sweep_began = clock()

    def drawn(now: StepSweep) -> None:
        if partial:
            partial.save(state, now)
        have, fresh = len(now), len(now) - done
        left = (clock() - sweep_began) / fresh * (count - have)
        progress(0.35 + 0.65 * have / count, f"{have} of {count} pictures, each in every way; {_duration(left)} left")

    progress(0.35 + 0.65 * done / count, f"{done} of {count} pictures, each in every way")
    later = requests[TRIAL_PICTURES // PICTURES_PER_BATCH :]
    made = sweep(assembly, later, schedules, count, made, together=state["together"], drawn=drawn)
    fitted = fit(made, schedules, costs, state["plain"])
    found = findings(assembly, prompts, fitted, state, colour_map(made.latents, made.colours))
    progress(1.0, "done")
    return found


def power(count: int) -> str:
    """Describe what `count` pictures can certify."""
    n = len(split(count, CALIBRATION_SEED, SPLIT_SHARES)[1])
    said = supports(n, round(1 - PICTURE_SHARE, 12), ERROR_PROBABILITY, noun="pictures", failure="failure")
    return f"{n} of {count} pictures certify: {said}"


def settings(assembly: LoadedImageGenerator, prompts: Sequence[str]) -> dict[str, Any]:
    """Return the settings that a calibration depends on, which identify an unfinished one."""
    request, adapter = assembly.plan.request, assembly.engine.adapter
    return {
        "format": 2,
        "profile": assembly.plan.key.id,
        "weights": assembly.plan.weights,
        "prompts": text_hash(prompts),
        "quality": request.quality,
        "guidance": adapter.default_guidance if request.guidance is None else request.guidance,
        "negative": request.negative,
        "backend": request.backend,
        "dtype": request.dtype,
        "size": None if request.size is None else list(request.size),
        "scheduler": adapter.scheduler,
        "strength": strength_of(assembly.engine),
        "control_scale": control_scale_of(assembly.engine),
        "starts": [each.identity for each in assembly.starts],
        "controls": [each.identity for each in assembly.controls],
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "diffusers")}


def _choose(
    assembly: LoadedImageGenerator,
    trial_requests: Sequence[Request],
    budget: float,
    clock: Callable[[], float],
    progress: Progress,
) -> dict[str, Any]:
    """Choose the step schedules and measure their costs; return both as JSON."""
    engine = assembly.engine
    began = clock()
    progress(0.0, "drawing in full")
    first = draw(engine, trial_requests[0])
    each = (clock() - began) / len(trial_requests[0])
    _count(budget, 2 * each, 0, clock() - began)  # plain and on the whole grid: the least that it can take
    full = [first]
    for request in trial_requests[1:]:
        before = clock()
        full.append(draw(engine, request))
        each = min(each, (clock() - before) / len(request))  # the first warms up
    reference = [pixels for drawn in full for pixels in drawn.pixels]
    fine = engine.initial_call(trial_requests[0]).grid
    progress(0.03, "recording their way")
    try:
        trajectories = [record(engine, request, fine)[1] for request in trial_requests]
    except InvalidInput as e:
        raise UnsupportedModelError(f"{engine.adapter.name} is drawn plain: {e}", hint=e.hint) from None
    schedules, tried = choose_step_schedules(
        engine,
        trial_requests,
        trajectories,
        reference,
        assembly.plan.request.quality,
        lambda x, what: progress(0.05 + 0.25 * x, what),
    )
    chosen: dict[str, Any] = {}
    winner = None
    if assembly.racing:
        schedules, winner = choose_backend(
            assembly, schedules, tried, trial_requests, reference, clock, lambda what: progress(0.3, what)
        )
        why = {"backend": assembly.decisions.backend.reason, "dtype": assembly.decisions.dtype.reason}
        chosen = {"way": list(assembly.plan.spec), "why": why}
    progress(0.32, "by the clock")
    runs = measure_runs(assembly, winner, schedules, clock) if winner is not None else []
    costs, plain = time_steps(engine, one_by_one(trial_requests[0])[:TIMED_PICTURES], schedules, clock)
    all_ways = each / len(fine) * (len(fine) + sum(schedules.steps))
    if engine.kernels is not None:
        all_ways = each + sum(costs.reach) + costs.full
    elif schedules.alone:
        all_ways = plain / len(fine) * (len(fine) + sum(schedules.steps))
    high, wide = reference[0].shape[:2]
    return chosen | {
        "ladder": schedules.to_json(),
        "tried": tried,
        "reach": list(costs.reach),
        "full": costs.full,
        "check": list(costs.check),
        "plain": plain,
        "each": all_ways,
        "full_steps": first.calls,
        "pixels": [wide, high],
        "runs": [run.to_json() for run in runs],
        "together": any(run.spec == assembly.plan.spec and PICTURES_PER_BATCH in run.by_batch for run in runs),
    }


def _count(left: float, each: float, done: int, spent: float) -> int:
    """Return the number of pictures that fit in the time, those done included. Raises InvalidInput where that is too few."""
    missing = max(0, MIN_PICTURES - done) * each
    if missing > MAX_BUDGET_OVERRUN_RATIO * max(left, 0.0):
        need = 10 * math.ceil((spent + missing) * (1 + MAX_BUDGET_OVERRUN_RATIO) / 2 / 10)
        raise InvalidInput(
            f"{MIN_PICTURES} pictures at every number of steps take at least {_duration(spent + missing)} here; the budget is "
            f"{_duration(spent + left)}",
            hint=f"`budget` {need}",
        )
    return int(min(MAX_PICTURES, max(MIN_PICTURES, done, done + left / max(each, 1e-9))))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def needed(likeness: Array, steps: Sequence[int], quality: float) -> Array:
    """Return (n,) the fewest steps from which on each picture reaches the quality; `steps` (L+1,) rises."""
    good = likeness[:, :-1] >= quality
    lasting = np.flip(np.logical_and.accumulate(np.flip(good, 1), axis=1), 1)
    first = np.where(lasting.any(1), lasting.argmax(1), good.shape[1])
    found: Array = np.asarray(steps, dtype=np.float64)[first]
    return found


def best_constant(likeness: Array, levels: Sequence[int], quality: float) -> int | None:
    """Return the fewest steps that the same test certifies for all pictures alike, tested from the most down, or None."""
    allowed = most_failures(len(likeness), round(1 - PICTURE_SHARE, 12), ERROR_PROBABILITY)
    found = None
    for k in reversed(range(len(levels))):
        if allowed is None or int((likeness[:, k] < quality).sum()) > allowed:
            break
        found = levels[k]
    return found


def rank_correlation(a: Array, b: Array) -> float | None:
    """Return Spearman's rank correlation, ties by their mean rank; None where one of the two doesn't vary."""

    def ranks(values: Array) -> Array:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ends = counts.cumsum()
        mean: Array = ((ends - counts + ends - 1) / 2)[inverse]
        return mean

    x, y = ranks(a), ranks(b)
    if x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def findings(
    assembly: LoadedImageGenerator,
    prompts: Sequence[str],
    fitted: Fitted,
    state: dict[str, Any],
    colours: Array | None,
    further: Mapping[BackendSpec, Fitted] | None = None,
) -> Findings:
    """Certify what was measured and make the profile; `further` is what was measured in further precisions.

    `state` holds the measured times and the pipeline's own steps and pixels.
    """
    quality = assembly.plan.request.quality
    certificate = fitted.certify(quality, PICTURE_SHARE, ERROR_PROBABILITY)
    schedules, shown = fitted.schedules, fitted.certifying.likeness
    active = fitted.pays(certificate)
    reached = tails(fitted.reached(certificate, quality)) if active else None
    on = None if assembly.engine.kernels is None else f"on {assembly.engine.kernels}"
    scores = fitted.scores(fitted.certifying, quality)
    taken = np.asarray(schedules.steps, dtype=np.float64)[leaves_at(np.asarray(certificate.thresholds), scores)]
    constant = best_constant(shown, schedules.levels, quality)
    if reached is None:
        summary = f"plain: {why_plain(fitted, certificate, quality)}"
    else:
        summary = _in_words(fitted, certificate, taken, constant, reached, quality, state["full_steps"], on)
    likeness = {k: tails(shown[:, i]) for i, k in enumerate(schedules.levels)}
    n = len(shown) + len(fitted.choosing)
    return Findings(
        pictures=n,
        power=power(n),
        schedules=schedules,
        likeness=likeness,
        seconds=dict(zip(schedules.levels, fitted.costs.reach, strict=True)),
        plain_seconds=fitted.plain,
        full_steps=state["full_steps"],
        certificate=certificate,
        reached=reached,
        correlation=rank_correlation(taken, needed(shown, schedules.steps, quality)) if active else None,
        constant=constant,
        summary=summary,
        profile=_profile(assembly, prompts, fitted, certificate, likeness, reached, state, summary, further or {}),
        arrays=to_arrays(fitted, colours, further),
    )


def _in_words(
    fitted: Fitted,
    certificate: Certificate,
    taken: Array,
    constant: int | None,
    reached: Tails,
    quality: float,
    full_steps: int,
    on: str | None,
) -> str:
    schedules = fitted.schedules
    same = f"{constant} as a constant" if constant else "no constant number would do"
    parts = [f"{schedules.solver} in {taken.min():.0f} to {taken.max():.0f} steps, {taken.mean():.1f} on average", same]
    if schedules.guided_share:
        parts.append(f"guided for {percent(schedules.guided_share)} of them")
    if schedules.skip:
        parts.append(f"skipping where it bends less than {schedules.skip:g}")
    if schedules.cache:
        parts.append(CACHES[schedules.cache_kind].format(schedules.cache))
    if on is not None:
        parts.append(on)
    return (
        f"{', '.join(parts)}: {fitted.speedup(certificate):.2f}x of {full_steps} steps; SSIM at least {quality:g} in "
        f"{certificate.n - certificate.disagreements} of {certificate.n} pictures, p5 {reached.p5:.3f}, worst {reached.worst:.3f}"
    )


def seconds_of(fitted: Fitted) -> dict[str, Any]:
    """Return the times of `fitted` as a profile stores them."""
    c = fitted.costs
    return {"reach": list(c.reach), "full": c.full, "check": list(c.check), "plain": fitted.plain}


def _profile(
    assembly: LoadedImageGenerator,
    prompts: Sequence[str],
    fitted: Fitted,
    certificate: Certificate,
    likeness: dict[int, Tails],
    reached: Tails | None,
    state: dict[str, Any],
    summary: str,
    further: Mapping[BackendSpec, Fitted],
) -> Profile:
    plan, asked = assembly.plan, settings(assembly, prompts)
    spec = BackendSpec(*state.get("spec", plan.spec))
    others, seconds, certificates = [], {}, {}
    for each, measured in further.items():
        name, found = further_name(each), measured.certify(plan.request.quality, PICTURE_SHARE, ERROR_PROBABILITY)
        others.append({"backend": each.backend, "precision": each.dtype})
        seconds[name] = seconds_of(measured)
        certificates[name] = {"certificate": found.to_json()}
    return Profile(
        key=plan.key,
        model_name=plan.source.name,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        versions=_versions(),
        weights=still(plan.weights, plan.source),
        device={
            "name": plan.machine.cpu if plan.device == "cpu" else plan.device,
            "threads": assembly.plan.threads,
        },
        measured={
            "seconds": {name: state[name] for name in ("reach", "full", "check", "plain")},
            "likeness": {str(k): t.json() for k, t in likeness.items()},
            "tried": state["tried"],
            **({"kernels": state["why"]["backend"]} if "why" in state else {}),
            **({"runs": state["runs"]} if state.get("runs") else {}),
            **({"further": seconds} if seconds else {}),
        },
        fitted={
            "ladder": fitted.schedules.to_json(),
            "full_steps": state["full_steps"],
            "pixels": state["pixels"],
            "backend": spec.backend,
            "precision": spec.dtype,
            **({"further": others} if others else {}),
            **{name: asked[name] for name in ("guidance", "negative", "size", "scheduler", "strength", "quality")},
            **({} if asked["control_scale"] is None else {"control_scale": asked["control_scale"]}),
        },
        evidence={
            "data": text_hash(prompts),
            "prompts": len(prompts),
            "certificate": certificate.to_json(),
            "reached": None if reached is None else reached.json(),
            **({"further": certificates} if certificates else {}),
            **({"basis": state["basis"]} if "basis" in state else {}),
        },
        decision={"summary": summary},
    )
