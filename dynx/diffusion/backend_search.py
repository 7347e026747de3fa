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
    from dynx.diffusion.backends import Runner
    from dynx.diffusion.profile_data import Ladder
    from dynx.diffusion.schedule_search import Pixels
    from dynx.diffusion.types import Request
    from dynx.runtime.backends.network import NetworkBackend


PAYS = 0.9
"""Of the time of the pipeline as it was loaded: what others may take at the most. Less isn't worth another precision or cache."""


def settle(
    assembly: LoadedImageGenerator,
    ladder: Ladder,
    tried: list[dict[str, Any]],
    trying: Sequence[Request],
    reference: Sequence[Pixels],
    clock: Callable[[], float],
    progress: Callable[[str], None],
) -> Ladder:
    """Give the engine its kernels, and the plan's decisions their reasons; the ladder, without what these can't do.

    `tried` is what was found out about the ladder in full precision, and gets what is found out here. Raises
    UnsupportedModelError where what was asked for can't run the network.
    """
    plan, engine, request = assembly.plan, assembly.engine, assembly.plan.request
    choices = backends.ways(request.backend, request.dtype, plan.device, plan.machine)
    if engine.family.slot is None or choices in ([], [backends.AS_LOADED]):
        return ladder
    runners, refused = backends.race(plan, engine, sample_of(request, engine), choices, clock, progress)
    if not runners:
        raise UnsupportedModelError("; ".join(refused.values()))
    bare = replace(ladder, cache=0.0)
    steps = _fewest(ladder, tried, request.quality)
    notes = [f"{who} can't run it: {why}" for who, why in refused.items()]

    def cost(runner: Runner, calls: float) -> float:
        return runner.picture(calls * (_cached(ladder, tried) if runner.way == backends.AS_LOADED else 1.0))

    best = runners[0]
    while runners:
        best = min(runners, key=lambda runner: cost(runner, steps))
        full = [runner for runner in runners if runner.way[1] == "float32"]
        try:
            if full and best.way[1] != "float32":
                other = min(full, key=lambda runner: cost(runner, steps))
                progress(f"trying {best.way[1]}")
                with attempt(best.way[0], plan.source.name):
                    found = _in_precision(assembly, bare, best, trying, reference, tried)
                if found is None or cost(best, found) >= cost(other, steps):
                    why = f"takes {found} steps" if found else "doesn't reach the quality"
                    notes.append(f"{best.way[1]} {why} where float32 takes {steps}")
                    best = other
            loaded = next((runner for runner in runners if runner.way == backends.AS_LOADED), best)
            if cost(best, steps) > PAYS * cost(loaded, steps):
                best = loaded
            with attempt(best.way[0], plan.source.name):
                use(assembly, best.kernels, ladder)
            break
        except UnsupportedModelError as e:
            runners = [runner for runner in runners if runner is not best]
            notes.append(f"{TITLES[best.way[0]]} {best.way[1]} can't run it: {e}")
            if not runners:
                raise
    said = "; ".join([*map(str, runners), *notes])
    plan.decisions.backend = Decision(
        best.way[0], f"a network call and the start, {backends.PICTURES} pictures a run: {said}"
    )
    plan.decisions.dtype = Decision(best.way[1], "asked for" if request.dtype != "auto" else "with the backend")
    if best.way == backends.AS_LOADED or not ladder.cache:
        return ladder
    plan.decisions.cache = Decision("off", f"features are cached by PyTorch only, and {TITLES[best.way[0]]} is faster")
    return bare


def use(assembly: LoadedImageGenerator, made: NetworkBackend | None, ladder: Ladder) -> None:
    """Give kernels to the engine, ready for every call that the ladder leads to."""
    engine = assembly.engine
    engine.kernels = None
    if made is not None:
        sample = sample_of(assembly.plan.request, engine)
        backends.prepare(made, engine, sample, ladder.longest, cut=ladder.guided is not None)
    engine.kernels = made


def take_up(assembly: LoadedImageGenerator, way: Sequence[str], why: Mapping[str, str], ladder: Ladder) -> None:
    """What an earlier part of this calibration settled on. Raises UnsupportedModelError."""
    plan = assembly.plan
    spec = BackendSpec(*way)
    use(assembly, backends.of(plan, assembly.engine, spec), ladder)
    plan.decisions.backend = Decision(spec.backend, why["backend"])
    plan.decisions.dtype = Decision(spec.dtype, why["dtype"])


def _alike(ladder: Ladder, entry: Mapping[str, Any], cache: float) -> bool:
    return (entry["solver"], entry["guided"], entry["skip"], entry["cache"]) == (
        ladder.solver,
        ladder.guided,
        ladder.skip,
        cache,
    )


def _fewest(ladder: Ladder, tried: Sequence[Mapping[str, Any]], quality: float) -> int:
    """Steps in which the trials of such a ladder reached the quality."""
    good = [entry["steps"] for entry in tried if _alike(ladder, entry, ladder.cache) and entry["tail"] >= quality]
    return int(min(good, default=ladder.levels[-1]))


def _cached(ladder: Ladder, tried: Sequence[Mapping[str, Any]]) -> float:
    """Share of the network's work that is left with the ladder's cache."""
    if not ladder.cache:
        return 1.0
    rows = {
        cache: {entry["steps"]: entry["rows"] for entry in tried if _alike(ladder, entry, cache)}
        for cache in (0.0, ladder.cache)
    }
    both = rows[0.0].keys() & rows[ladder.cache].keys()
    return min((rows[ladder.cache][steps] / rows[0.0][steps] for steps in both), default=1.0)


def _in_precision(
    assembly: LoadedImageGenerator,
    ladder: Ladder,
    runner: Runner,
    trying: Sequence[Request],
    reference: Sequence[Pixels],
    tried: list[dict[str, Any]],
) -> int | None:
    """Steps in which a runner reaches the quality on the trial pictures; None for none."""
    use(assembly, runner.kernels, ladder)
    trials = Trials(assembly.engine, trying, reference)
    at = trials.fewest(ladder, assembly.plan.request.quality)
    tried += [{**entry, "backend": runner.way[0], "precision": runner.way[1]} for entry in trials.log]
    return ladder.levels[at] if at < len(ladder.levels) else None
