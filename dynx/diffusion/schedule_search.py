"""Search solvers, grids, guidance intervals, skipping and caching on a few trial pictures.

Nothing is certified here; the best settings on these pictures are measured on others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.diffusion.caching import FIRST_BLOCK, MAGNITUDE, TAYLOR_SEER, ResidualNorms, why_not
from dynx.diffusion.grid import continuations, mean_errors, plan
from dynx.diffusion.plan import PICTURE_SHARE
from dynx.diffusion.predictor import shortfall
from dynx.diffusion.profile_data import OBSERVED_STEPS, StepSchedules
from dynx.diffusion.schedule import WARMUP_STEPS, Schedule
from dynx.diffusion.similarity import compare
from dynx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dynx.diffusion.engine import Engine
    from dynx.diffusion.sampler import RestOfSchedule, StepState
    from dynx.diffusion.trajectory import Trajectory
    from dynx.diffusion.types import Request

    Array = NDArray[np.float64]
    Pixels = NDArray[np.float32]

STEP_COUNTS = (3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 25, 30)
"""Numbers of steps that are planned; those above two thirds of the plain run's are left out."""

TRIED_GAMMAS = (1.0, 1.1, 1.2)
TRIED_SOLVERS = ("euler", "dpm++2m")
TRIED_GUIDED_SHARES = (0.6, 0.4)
"""Guidance intervals that are tried, as shares of the steps with classifier-free guidance."""

TRIED_SKIP_THRESHOLDS = (0.01, 0.03)
"""Skip thresholds δ that are tried."""

TRIED_CACHES = ((FIRST_BLOCK, (0.03, 0.1)), (TAYLOR_SEER, (2, 3)), (MAGNITUDE, (0.03, 0.1)))
"""Kinds of feature caches that are tried, where diffusers has them for the network, with the numbers of each."""

KEPT_STEPS_RANGE = (0.5, 2.5)
"""Range of the numbers of steps that are kept, relative to the fewest that suffice for nearly all pictures."""

QUALITY_MARGIN_SHARE = 0.4
"""Margin above the quality, as a share of 1 - quality, that settings which leave something out must reach in the trials.

Leaving something out lowers the SSIM at every number of steps, so settings that barely reach the quality in the trials would
fail the certificate.
"""

MAX_ROWS_RATIO = 0.95
"""Largest ratio of rows with such settings to rows without them."""


@dataclass(frozen=True)
class Drawn:
    """Hold the pictures of one request: pixels, network rows for each, network calls for all together."""

    pixels: list[Pixels]
    rows: float
    calls: int


def draw(
    engine: Engine,
    request: Request,
    schedule: Schedule | None = None,
    controller: Callable[[StepState], RestOfSchedule | None] | None = None,
) -> Drawn:
    """Draw a request. Raises UnsupportedModelError for pixels that aren't finite, or a run that fell back to plain."""
    pictures = engine.draw(request, schedule, controller=controller)
    if bad := next((p.error for p in pictures if p.pixels is None), None):
        raise UnsupportedModelError(f"{engine.adapter.name} draws no picture: {bad}", hint="try `dtype` float32")
    stats = pictures[0].stats
    if schedule is not None and stats.plain:
        raise UnsupportedModelError(f"{engine.adapter.name} is drawn {'; '.join(stats.notes)}")
    return Drawn([p.pixels for p in pictures if p.pixels is not None], stats.rows / len(pictures), stats.calls)


def one_by_one(request: Request) -> list[Request]:
    """Split a request into one for each picture, because skipping is decided for a batch as a whole."""
    return [
        replace(
            request,
            prompts=request.prompts[i : i + 1],
            seeds=(seed,),
            starts=request.starts[i : i + 1],
            controls=request.controls[i : i + 1],
        )
        for i, seed in enumerate(request.seeds)
    ]


def likeness(pixels: Sequence[Pixels], reference: Sequence[Pixels]) -> Array:
    """Return the SSIM (n,) of pictures to their references."""
    return np.asarray([compare(p, q).ssim for p, q in zip(pixels, reference, strict=True)])


def choose_step_schedules(
    engine: Engine,
    trial_requests: Sequence[Request],
    trajectories: Sequence[Trajectory],
    reference: Sequence[Pixels],
    quality: float,
    progress: Callable[[float, str], None],
) -> tuple[StepSchedules, list[dict[str, Any]]]:
    """Choose the step schedules that reach the quality with the fewest network rows; also return the log of trials.

    The fewest steps of a first plan set the range: there solvers and γ are compared by the SSIM of the worst pictures, which
    the guarantee is about, and guidance intervals, skipping and caching are tried. Raises UnsupportedModelError for a plain
    run of too few steps.
    """
    fine = trajectories[0].grid
    levels = [k for k in STEP_COUNTS if OBSERVED_STEPS < k <= 2 * len(fine) // 3]
    if not levels:
        raise UnsupportedModelError(f"its plain run has {len(fine)} steps, too few to leave any out")
    trials = Trials(engine, trial_requests, reference)
    errors = {solver: mean_errors(way.errors(solver) for way in trajectories) for solver in TRIED_SOLVERS}
    progress(0.0, "looking for the fewest steps")
    schedules = plan_step_schedules(fine, errors[TRIED_SOLVERS[0]], TRIED_GAMMAS[0], TRIED_SOLVERS[0], levels)
    at = min(trials.fewest(schedules, quality), len(levels) - 1)
    choices = [(solver, gamma) for solver in TRIED_SOLVERS for gamma in TRIED_GAMMAS]
    best = math.inf
    for n, (solver, gamma) in enumerate(choices):
        progress(0.2 + 0.4 * n / len(choices), f"trying {solver}, γ {gamma:g}")
        each = plan_step_schedules(fine, errors[solver], gamma, solver, levels, levels[at])
        loss = float(shortfall(np.asarray([trials.run(each, k).tail for k in levels[at : at + 2]])).mean())
        if loss < best:
            best, schedules = loss, each
    progress(0.6, f"looking for the fewest steps of {schedules.solver}")
    at = trials.fewest(schedules, quality)
    if at == len(levels):
        return schedules, trials.log
    rows, safe = trials.run(schedules, levels[at]).rows, quality + QUALITY_MARGIN_SHARE * (1 - quality)
    if engine.adapter.guidance == "batched":
        progress(0.7, "trying without guidance at the end")
        limited = [replace(schedules, guided_share=share) for share in TRIED_GUIDED_SHARES]
        schedules, rows = trials.cheapest(schedules, limited, levels[at : at + 2], safe, rows)
    if levels[at] > WARMUP_STEPS + 1:  # the first steps and the last are never skipped
        progress(0.8, "trying to skip")
        skips = [replace(schedules, skip=skip) for skip in TRIED_SKIP_THRESHOLDS]
        schedules, rows = trials.cheapest(schedules, skips, levels[at : at + 3], safe, rows)
    if engine.cacheable:
        progress(0.9, "trying to cache")
        schedules, rows = trials.cheapest(
            schedules, caches_for(engine, trial_requests, schedules), levels[at:], safe, rows
        )
    kept = {
        k: nodes
        for k, nodes in schedules.nodes.items()
        if KEPT_STEPS_RANGE[0] * levels[at] <= k <= KEPT_STEPS_RANGE[1] * levels[at]
    }
    return replace(schedules, nodes=kept), trials.log


def caches_for(engine: Engine, trial_requests: Sequence[Request], schedules: StepSchedules) -> list[StepSchedules]:
    """Return step schedules with each kind of cache that the network can have; a full run measures magnitudes."""
    network = getattr(engine.pipe, str(engine.adapter.slot))
    found = []
    for kind, numbers in TRIED_CACHES:
        magnitudes: tuple[float, ...] = ()
        if kind == MAGNITUDE:
            magnitudes = measure_magnitudes(engine, trial_requests[0], schedules)
            if not magnitudes:
                continue
        if why_not(network, kind) is None:
            found += [replace(schedules, cache=each, cache_kind=kind, magnitudes=magnitudes) for each in numbers]
    return found


def measure_magnitudes(engine: Engine, request: Request, schedules: StepSchedules) -> tuple[float, ...]:
    """Return by how much the network's blocks change their input at each node of the fine grid; () where that can't be told."""
    network, steps = getattr(engine.pipe, str(engine.adapter.slot)), len(schedules.fine)
    with ResidualNorms(network) as seen:
        draw(engine, request, Schedule(schedules.solver, schedules.fine))
    each = len(seen.norms) // steps  # some pipelines guide by a call of its own
    if not each or len(seen.norms) != each * steps:
        return ()
    return tuple(float(norm) for norm in np.reshape(seen.norms, (steps, each)).mean(axis=1))


def plan_step_schedules(
    fine: Any, errors: Array, gamma: float, solver: str, levels: Sequence[int], middle: int | None = None
) -> StepSchedules:
    """Plan grids for all `levels` that share the first nodes of the best grid of `middle` steps, as far as the largest allows."""
    middle = middle or levels[len(levels) // 3]
    last = len(fine) - max(levels) + OBSERVED_STEPS - 1
    path = [
        min(node, last - OBSERVED_STEPS + 1 + i)
        for i, node in enumerate(plan(errors, gamma, middle).nodes_for(middle)[:OBSERVED_STEPS])
    ]
    nodes = continuations(errors, gamma, path, max(levels))
    return StepSchedules(fine, {k: nodes[k] for k in levels}, solver)


@dataclass(frozen=True)
class Trial:
    """Hold the result of one trial: the SSIM of every picture and the mean network rows of a picture."""

    likeness: Array
    rows: float

    @property
    def tail(self) -> float:
        """The SSIM that all but the allowed share of pictures reach."""
        return float(np.quantile(self.likeness, 1 - PICTURE_SHARE))


class Trials:
    """Draw the same trial pictures with one schedule after another, none twice, and keep the results."""

    def __init__(self, engine: Engine, requests: Sequence[Request], reference: Sequence[Pixels]) -> None:
        self._engine, self._requests, self._reference = engine, requests, reference
        self._known: list[tuple[Schedule, Trial]] = []
        self.log: list[dict[str, Any]] = []

    def run(self, schedules: StepSchedules, steps: int) -> Trial:
        """Draw all trial pictures in `steps` steps."""
        schedule = schedules.schedule(steps)
        for known, trial in self._known:
            if known == schedule:
                return trial
        alone = schedules.alone or self._engine.kernels is not None  # which are made for one picture at a time
        requests = [one for r in self._requests for one in one_by_one(r)] if alone else self._requests
        drawn = [draw(self._engine, request, schedule) for request in requests]
        alike = likeness([p for one in drawn for p in one.pixels], self._reference)
        rows = float(np.average([one.rows for one in drawn], weights=[len(one.pixels) for one in drawn]))
        trial = Trial(alike, rows)
        self._known.append((schedule, trial))
        way = {
            "solver": schedules.solver,
            "guided": schedules.guided_share,
            "skip": schedules.skip,
            "cache": schedules.cache,
            **({"cache_kind": schedules.cache_kind} if schedules.cache else {}),
            "steps": steps,
        }
        self.log.append(way | {"rows": rows, "tail": trial.tail, "median": float(np.median(alike))})
        return trial

    def fewest(self, schedules: StepSchedules, quality: float) -> int:
        """Find by bisection the index of the first level that reaches the quality; the number of levels if none does."""
        levels, low, high = schedules.levels, 0, len(schedules.levels)
        while low < high:
            middle = (low + high) // 2
            if self.run(schedules, levels[middle]).tail >= quality:
                high = middle
            else:
                low = middle + 1
        return low

    def cheapest(
        self, best: StepSchedules, others: Sequence[StepSchedules], levels: Sequence[int], quality: float, rows: float
    ) -> tuple[StepSchedules, float]:
        """Return the cheapest step schedules that reach the quality: `best`, which takes `rows`, or one of `others`."""
        for schedules in others:
            for steps in levels:
                trial = self.run(schedules, steps)
                if trial.rows > MAX_ROWS_RATIO * rows:
                    break
                if trial.tail >= quality:
                    best, rows = schedules, trial.rows
                    break
        return best, rows
