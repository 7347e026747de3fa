"""Which kernels and precision a calibration settles on: what draws a typical run soonest and still keeps the quality.

Calls are timed side by side, and what a backend needs to start is shared out over the pictures of a run. Less than full
precision must show on the trial pictures in how many steps it reaches the quality; what is promised is certified later, on
other pictures, drawn by all that was settled on here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dynx.diffusion import backends
from dynx.diffusion.assembly import sample_of
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
    from dynx.runtime.backends.network import ModuleKernels


MAX_TIME_RATIO = 0.9
"""Of the time of the pipeline as it was loaded: what others may take at the most. Less isn't worth another precision or cache."""


def choose_backend(
    assembly: LoadedImageGenerator,
    schedules: StepSchedules,
    tried: list[dict[str, Any]],
    trial_requests: Sequence[Request],
    reference: Sequence[Pixels],
    clock: Callable[[], float],
    progress: Callable[[str], None],
) -> StepSchedules:
    """Give the engine its kernels, and the plan's decisions their reasons; the ladder, without what these can't do.

    `tried` is what was found out about the ladder in full precision, and gets what is found out here. Raises
    UnsupportedModelError where what was asked for can't run the network.
    """
    plan, engine, request = assembly.plan, assembly.engine, assembly.plan.request
    choices = backends.candidate_specs(request.backend, request.dtype, plan.device, plan.machine)
    if engine.adapter.slot is None or choices in ([], [backends.AS_LOADED]):
        return schedules
    candidates, refused = backends.race(plan, engine, sample_of(request, engine), choices, clock, progress)
    if not candidates:
        raise UnsupportedModelError("; ".join(refused.values()))
    bare = replace(schedules, cache=0.0)
    steps = _fewest_steps(schedules, tried, request.quality)
    notes = [f"{who} can't run it: {why}" for who, why in refused.items()]

    def cost(candidate: Candidate, calls: float) -> float:
        return candidate.seconds_per_picture(
            calls * (_uncached_share(schedules, tried) if candidate.spec == backends.AS_LOADED else 1.0)
        )

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
                if found is None or cost(best, found) >= cost(other, steps):
                    why = f"takes {found} steps" if found else "doesn't reach the quality"
                    notes.append(f"{best.spec[1]} {why} where float32 takes {steps}")
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
    plan.decisions.backend = Decision(
        best.spec[0], f"a network call and the start, {backends.PICTURES_PER_RUN} pictures a run: {said}"
    )
    plan.decisions.dtype = Decision(best.spec[1], "asked for" if request.dtype != "auto" else "with the backend")
    if best.spec == backends.AS_LOADED or not schedules.cache:
        return schedules
    plan.decisions.cache = Decision("off", f"features are cached by PyTorch only, and {TITLES[best.spec[0]]} is faster")
    return bare


def set_backend(assembly: LoadedImageGenerator, made: ModuleKernels | None, schedules: StepSchedules) -> None:
    """Give kernels to the engine, ready for every call that the ladder leads to."""
    engine = assembly.engine
    engine.kernels = None
    if made is not None:
        sample = sample_of(assembly.plan.request, engine)
        backends.prepare(made, engine, sample, schedules.longest, guidance_interval=schedules.guided_share is not None)
    engine.kernels = made


def restore_backend(
    assembly: LoadedImageGenerator, spec: Sequence[str], why: Mapping[str, str], schedules: StepSchedules
) -> None:
    """What an earlier part of this calibration settled on. Raises UnsupportedModelError."""
    plan = assembly.plan
    spec = BackendSpec(*spec)
    set_backend(assembly, backends.build_kernels(plan, assembly.engine, spec), schedules)
    plan.decisions.backend = Decision(spec.backend, why["backend"])
    plan.decisions.dtype = Decision(spec.dtype, why["dtype"])


def _same_settings(schedules: StepSchedules, entry: Mapping[str, Any], cache: float) -> bool:
    return (entry["solver"], entry["guided"], entry["skip"], entry["cache"]) == (
        schedules.solver,
        schedules.guided_share,
        schedules.skip,
        cache,
    )


def _fewest_steps(schedules: StepSchedules, tried: Sequence[Mapping[str, Any]], quality: float) -> int:
    """Steps in which the trials of such a ladder reached the quality."""
    good = [
        entry["steps"]
        for entry in tried
        if _same_settings(schedules, entry, schedules.cache) and entry["tail"] >= quality
    ]
    return int(min(good, default=schedules.levels[-1]))


def _uncached_share(schedules: StepSchedules, tried: Sequence[Mapping[str, Any]]) -> float:
    """Share of the network's work that is left with the ladder's cache."""
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
    """Steps in which a runner reaches the quality on the trial pictures; None for none."""
    set_backend(assembly, candidate.kernels, schedules)
    trials = Trials(assembly.engine, trial_requests, reference)
    at = trials.fewest(schedules, assembly.plan.request.quality)
    tried += [{**entry, "backend": candidate.spec[0], "precision": candidate.spec[1]} for entry in trials.log]
    return schedules.levels[at] if at < len(schedules.levels) else None
