"""Choose the backend and precision with which a calibrated pipeline draws fastest at the requested quality, once it has started.

Calls of all candidates are timed in turns. What a start costs is for each run to weigh (`runs`). Reduced
precision is measured on the trial pictures: the number of steps in which it reaches the quality. The guarantee is certified
later, on other pictures drawn with the chosen backend and precision.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dynx.diffusion import backends
from dynx.diffusion.assembly import sample_of
from dynx.diffusion.caching import FIRST_BLOCK
from dynx.diffusion.schedule_search import Trials
from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.registry import TITLES, attempt
from dynx.runtime.decision import Decision
from dynx.runtime.plan import BackendSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.backends import Candidate
    from dynx.diffusion.profile_data import StepSchedules
    from dynx.diffusion.schedule_search import Pixels
    from dynx.diffusion.types import Request
    from dynx.runtime.backends.network import NetworkBackend


MAX_TIME_RATIO = 0.9
"""Largest time of a candidate relative to the loaded pipeline; smaller savings don't justify another precision or cache."""

MAX_LOW_PRECISION_RATIO = 0.75
"""Largest time in reduced precision relative to the best in float32. What was certified in float32 holds for every backend in
float32, so that short runs may draw on PyTorch; reduced precision gives that up."""


def choose_backend(
    assembly: LoadedImageGenerator,
    schedules: StepSchedules,
    tried: list[dict[str, Any]],
    trial_requests: Sequence[Request],
    reference: Sequence[Pixels],
    clock: Callable[[], float],
    progress: Callable[[str], None],
) -> tuple[StepSchedules, Candidate | None]:
    """Set the engine's backend and the plan's decisions; return the step schedules, without a cache that the backend can't use.

    Also returns what was measured of the backend, None where there was no choice.

    `tried` holds the trials of the schedules in full precision; the trials made here are appended. Raises
    UnsupportedModelError if the requested backend can't run the network.
    """
    plan, engine, request = assembly.plan, assembly.engine, assembly.plan.request
    choices = backends.candidate_specs(request.backend, request.dtype, plan.device, plan.machine)
    if engine.adapter.slot is None or choices in ([], [backends.AS_LOADED]):
        return schedules, None
    candidates, refused = backends.race(plan, engine, sample_of(request, engine), choices, clock, progress)
    if not candidates:
        raise UnsupportedModelError("; ".join(refused.values()))
    bare = replace(schedules, cache=0.0)
    steps = _fewest_steps(schedules, tried, request.quality)
    notes = [f"{who} can't run it: {why}" for who, why in refused.items()]

    def cost(candidate: Candidate, calls: float) -> float:
        share = _uncached_share(schedules, tried) if candidate.spec == backends.AS_LOADED else 1.0
        return candidate.call_seconds * calls * share

    best = candidates[0]
    while candidates:
        best = min(candidates, key=lambda candidate: cost(candidate, steps))
        full = [candidate for candidate in candidates if candidate.spec[1] == "float32"]
        try:
            if full and best.spec[1] != "float32":
                other = min(full, key=lambda candidate: cost(candidate, steps))
                progress(f"trying {best.spec[1]}")
                with attempt(best.spec[0], plan.source.name):
                    found = _steps_in_precision(assembly, bare, best, trial_requests, reference, tried)
                if found is None or cost(best, found) >= MAX_LOW_PRECISION_RATIO * cost(other, steps):
                    why = f"takes {found} steps" if found else "doesn't reach the quality"
                    notes.append(f"{best.spec[1]} {why} where float32 takes {steps}, and saves too little for that")
                    best = other
            loaded = next((candidate for candidate in candidates if candidate.spec == backends.AS_LOADED), best)
            if cost(best, steps) > MAX_TIME_RATIO * cost(loaded, steps):
                best = loaded
            with attempt(best.spec[0], plan.source.name):
                set_backend(assembly, best.kernels, schedules)
            break
        except UnsupportedModelError as e:
            candidates = [candidate for candidate in candidates if candidate is not best]
            notes.append(f"{TITLES[best.spec[0]]} {best.spec[1]} can't run it: {e}")
            if not candidates:
                raise
    said = "; ".join([*map(str, candidates), *notes])
    plan.decisions.backend = Decision(best.spec[0], f"a network call: {said}")
    plan.decisions.dtype = Decision(best.spec[1], "asked for" if request.dtype != "auto" else "with the backend")
    if best.spec == backends.AS_LOADED or not schedules.cache:
        return schedules, best
    plan.decisions.cache = Decision("off", f"features are cached by PyTorch only, and {TITLES[best.spec[0]]} is faster")
    return bare, best


def set_backend(
    assembly: LoadedImageGenerator, made: NetworkBackend | None, schedules: StepSchedules, pictures: int = 1
) -> None:
    """Set the engine's kernels, prepared for every call of `pictures` together that the step schedules lead to."""
    engine = assembly.engine
    engine.kernels = None
    if made is not None:
        sample = sample_of(assembly.plan.request, engine, pictures)
        backends.prepare(made, engine, sample, schedules.longest, guidance_interval=schedules.guided_share is not None)
    engine.kernels = made


def restore_backend(
    assembly: LoadedImageGenerator,
    spec: Sequence[str],
    why: Mapping[str, str],
    schedules: StepSchedules,
    pictures: int = 1,
) -> None:
    """Set the backend that an interrupted calibration had chosen. Raises UnsupportedModelError if it can't run."""
    plan = assembly.plan
    spec = BackendSpec(*spec)
    set_backend(assembly, backends.build_kernels(plan, assembly.engine, spec), schedules, pictures)
    plan.decisions.backend = Decision(spec.backend, why["backend"])
    plan.decisions.dtype = Decision(spec.dtype, why["dtype"])


def _same_settings(schedules: StepSchedules, entry: Mapping[str, Any], cache: float) -> bool:
    if cache and entry.get("cache_kind", FIRST_BLOCK) != schedules.cache_kind:
        return False
    return (entry["solver"], entry["guided"], entry["skip"], entry["cache"]) == (
        schedules.solver,
        schedules.guided_share,
        schedules.skip,
        cache,
    )


def _fewest_steps(schedules: StepSchedules, tried: Sequence[Mapping[str, Any]], quality: float) -> int:
    """Return the fewest steps in which trials with these settings reached the quality."""
    good = [
        entry["steps"]
        for entry in tried
        if _same_settings(schedules, entry, schedules.cache) and entry["tail"] >= quality
    ]
    return int(min(good, default=schedules.levels[-1]))


def _uncached_share(schedules: StepSchedules, tried: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of the network's rows that still run with the cache of the step schedules."""
    if not schedules.cache:
        return 1.0
    rows = {
        cache: {entry["steps"]: entry["rows"] for entry in tried if _same_settings(schedules, entry, cache)}
        for cache in (0.0, schedules.cache)
    }
    both = rows[0.0].keys() & rows[schedules.cache].keys()
    return min((rows[schedules.cache][steps] / rows[0.0][steps] for steps in both), default=1.0)


def _steps_in_precision(
    assembly: LoadedImageGenerator,
    schedules: StepSchedules,
    candidate: Candidate,
    trial_requests: Sequence[Request],
    reference: Sequence[Pixels],
    tried: list[dict[str, Any]],
) -> int | None:
    """Return the fewest steps in which a candidate reaches the quality on the trial pictures, or None."""
    set_backend(assembly, candidate.kernels, schedules)
    trials = Trials(assembly.engine, trial_requests, reference)
    at = trials.fewest(schedules, assembly.plan.request.quality)
    tried += [{**entry, "backend": candidate.spec[0], "precision": candidate.spec[1]} for entry in trials.log]
    return schedules.levels[at] if at < len(schedules.levels) else None
