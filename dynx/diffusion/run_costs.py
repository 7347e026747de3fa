"""Measure what a run costs on the backends that calibration left: the start, and a picture by how many are drawn in one call."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from dynx.diffusion import backends
from dynx.diffusion.assembly import sample_of
from dynx.diffusion.parts import DECODER
from dynx.diffusion.runs import LONG_RUN, RunCost, Seconds
from dynx.diffusion.schedule_search import draw
from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.registry import attempt
from dynx.runtime.threads import BESIDE_ANOTHER_RUNTIME, torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.backends import Candidate
    from dynx.diffusion.engine import Engine
    from dynx.diffusion.plan import ImageGeneratorPlan
    from dynx.diffusion.profile_data import StepSchedules
    from dynx.runtime.backends.network import NetworkBackend

TRIED_BATCHES = (4, 8)
"""Numbers of pictures in a call that are tried beside 1."""

MAX_BATCHED_CALL_SECONDS = 0.2
"""Longest call of one picture beside which several are tried: a longer one keeps all cores busy by itself."""

TIMED_ROUNDS = 3
"""Timed pictures of each kind, after one that warms up; the median is used."""

START_ROUNDS = 2
"""Processes that are started with and without compiling; the fastest of each count."""

START_TIMEOUT_SECONDS = 300.0

Files = tuple[tuple[str, str], ...]
"""Part and folder in the cache, for each."""

PART_PICTURES = 64
"""Pictures within which another backend has to win back the start of a text encoder or a decoder."""

MIN_BATCH_SAVING = 0.05
"""Least share of a picture's time that more pictures in a call have to save."""


def measure_runs(
    assembly: LoadedImageGenerator, winner: Candidate, schedules: StepSchedules, clock: Callable[[], float]
) -> list[RunCost]:
    """Time pictures on the chosen backend and, where that computes in float32, on PyTorch as well.

    Sets the chosen parts of the pipeline on the engine, too. In the end the engine draws as it did before, on the chosen backend.
    """
    costs, starts = [], Starts(assembly.plan)
    if winner.spec.dtype == "float32":
        costs.append(measure_loaded(assembly, schedules, clock))
    if winner.spec != backends.AS_LOADED:
        costs.append(measure_run(assembly, winner, schedules, clock, starts))
    return costs


def measure_loaded(assembly: LoadedImageGenerator, schedules: StepSchedules, clock: Callable[[], float]) -> RunCost:
    """Time pictures of the pipeline as it was loaded."""
    return _cost(assembly, assembly.engine.reference, backends.AS_LOADED, schedules, clock, None, None)


def measure_run(
    assembly: LoadedImageGenerator,
    candidate: Candidate,
    schedules: StepSchedules,
    clock: Callable[[], float],
    starts: Starts,
) -> RunCost:
    """Time pictures on a backend that the engine is set to; also sets the parts of the pipeline that pay on it."""
    engine = assembly.engine
    engine.parts.kernels = {}
    engine.parts.kernels = _faster_parts(assembly, candidate, clock)
    return _cost(assembly, engine, candidate.spec, schedules, clock, candidate, starts)


def _cost(
    assembly: LoadedImageGenerator,
    engine: Engine,
    spec: Any,
    schedules: StepSchedules,
    clock: Callable[[], float],
    winner: Candidate | None,
    starts: Starts | None,
) -> RunCost:
    """Time runs on one backend, for one picture in a call and as many more as save time."""
    parts = tuple(engine.parts.kernels)
    by_batch = {1: _seconds(assembly, engine, schedules, 1, clock, winner, parts, starts)}
    if by_batch[1].call <= MAX_BATCHED_CALL_SECONDS and not schedules.alone:
        for batch in TRIED_BATCHES:
            try:
                with attempt(spec.backend, assembly.plan.source.name):
                    tried = _seconds(assembly, engine, schedules, batch, clock, winner, parts, starts)
            except UnsupportedModelError:
                break
            calls = schedules.levels[0]
            least = min(each.picture(calls) for each in by_batch.values())
            if tried.picture(calls) > (1 - MIN_BATCH_SAVING) * least:
                break
            by_batch[batch] = tried
    return RunCost(spec, by_batch, parts)


def _seconds(
    assembly: LoadedImageGenerator,
    engine: Engine,
    schedules: StepSchedules,
    batch: int,
    clock: Callable[[], float],
    winner: Candidate | None,
    parts: Sequence[str],
    starts: Starts | None,
) -> Seconds:
    """Time pictures in few and in many steps, which tells the network's share from the rest, and the start."""
    plan = assembly.plan
    request = sample_of(plan.request, engine, batch)
    start, files = 0.0, tuple[tuple[str, str], ...]()
    if winner is not None and engine.kernels is not None:
        _prepare(engine, request, schedules, parts)
        seconds, files = _start(assembly, request, schedules, winner, parts, clock)
        beside = None if starts is None else starts.delay(files, winner.spec.dtype)
        start = winner.start_seconds + seconds if beside is None else beside
    few, many = schedules.schedule(schedules.levels[0]), schedules.schedule(schedules.levels[-1])
    found: dict[int, list[float]] = {len(few.grid): [], len(many.grid): []}
    for turn in range(TIMED_ROUNDS + 1):
        for schedule in (few, many):
            seeds = tuple(seed + 1000 * turn + len(schedule.grid) for seed in request.seeds)
            fresh = replace(request, seeds=seeds, prompts=tuple(f"picture {s}" for s in seeds[: len(request.prompts)]))
            began = clock()
            draw(engine, fresh, schedule)
            if turn:
                found[len(schedule.grid)].append((clock() - began) / batch)
    (a, few_seconds), (b, many_seconds) = ((steps, median(seen)) for steps, seen in found.items())
    call = max((many_seconds - few_seconds) / (b - a), 1e-9) if b > a else few_seconds / a
    return Seconds(max(0.0, few_seconds - a * call), call, max(0.0, start), files)


def _prepare(engine: Engine, request: Any, schedules: StepSchedules, parts: Sequence[str]) -> None:
    if engine.kernels is None:
        return
    guided = schedules.guided_share is not None
    backends.prepare(engine.kernels, engine, request, schedules.longest, guidance_interval=guided)
    backends.prepare_parts(engine.parts.kernels, backends.part_calls(engine, request), parts)


def _start(
    assembly: LoadedImageGenerator,
    request: Any,
    schedules: StepSchedules,
    winner: Candidate,
    parts: Sequence[str],
    clock: Callable[[], float],
) -> tuple[float, Files]:
    """Return the seconds in which another process prepares for a request, from the cache, and the files that it finds there."""
    plan, engine = assembly.plan, assembly.engine
    kernels = backends.build_kernels(plan, engine, winner.spec)
    if kernels is None:
        return 0.0, ()
    made = backends.build_parts(plan, engine, winner.spec)
    began = clock()
    guided = schedules.guided_share is not None
    backends.prepare(kernels, engine, request, schedules.longest, guidance_interval=guided)
    if parts:
        made = backends.prepare_parts(made, backends.part_calls(engine, request), parts)
    seconds = clock() - began
    files = [("", name) for name in kernels.kept]
    if parts:
        files += [(part, name) for part, backend in made.items() for name in backend.kept]
    return seconds, tuple(files)


START_SCRIPT = """
import json, sys, time
import numpy
from pathlib import Path
from dynx.runtime.backends.openvino import ahead
given = json.loads(sys.argv[1])
began = time.perf_counter()
folders = [(Path(folder), precision) for folder, precision in given["folders"]]
ahead.begin(folders, given["threads"])
from dynx.runtime import loading
loading.load_pipeline(loading.Source("it", Path(given["model"]), "folder"), device="cpu", dtype="float32")
import dynx.diffusion.engine
for future in list(ahead.begun()):
    future.result()
print(time.perf_counter() - began)
"""
"""Loads a pipeline while graphs are compiled beside it."""


class Starts:
    """Time starts in processes of their own: a pipeline that is loaded with graphs compiled beside it, and without any."""

    def __init__(self, plan: ImageGeneratorPlan) -> None:
        self._plan = plan
        self._bare: float | None = None

    def delay(self, files: Files, precision: str) -> float | None:
        """Return by how many seconds compiling these files delays a start; None where that can't be measured."""
        plan = self._plan
        folders = [(str(folder), kind) for folder, kind in backends.compiled_files(plan, files, precision)]
        if not folders or plan.request.allow_pickle or plan.source.trusted:
            return None
        try:
            if self._bare is None:
                self._bare = min(self._seconds([]) for _ in range(START_ROUNDS))
            return max(0.0, min(self._seconds(folders) for _ in range(START_ROUNDS)) - self._bare)
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            return None

    def _seconds(self, folders: list[tuple[str, str]]) -> float:
        given = {"folders": folders, "threads": self._plan.threads, "model": str(self._plan.source.folder)}
        words = [sys.executable, "-c", START_SCRIPT, json.dumps(given)]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=START_TIMEOUT_SECONDS, check=True)  # noqa: S603
        return float(ended.stdout.split()[-1])


def _faster_parts(
    assembly: LoadedImageGenerator, winner: Candidate, clock: Callable[[], float]
) -> dict[str, NetworkBackend]:
    """Return the parts that the backend computes so much faster that their start is won back."""
    plan, engine = assembly.plan, assembly.engine
    made = backends.build_parts(plan, engine, winner.spec)
    if not made:
        return {}
    calls = backends.part_calls(engine, sample_of(plan.request, engine))
    chosen = {}
    for name, kernels in made.items():
        for args, kwargs in calls.get(name, [])[:1]:
            try:
                with attempt(winner.spec.backend, plan.source.name):
                    kernels.prepare(args, kwargs)
                    again = backends.build_parts(plan, engine, winner.spec)[name]
                    began = clock()
                    again.prepare(args, kwargs)
                    start = clock() - began
                    with torch_threads(BESIDE_ANOTHER_RUNTIME if kernels.own_threads else None):
                        saved = _call_seconds(engine, name, None, args, kwargs, clock) - _call_seconds(
                            engine, name, kernels, args, kwargs, clock
                        )
            except UnsupportedModelError:
                continue
            pictures = PART_PICTURES if name != DECODER else LONG_RUN
            if saved * pictures > start:
                chosen[name] = kernels
    return chosen


def _call_seconds(
    engine: Engine,
    name: str,
    kernels: NetworkBackend | None,
    args: Any,
    kwargs: Any,
    clock: Callable[[], float],
) -> float:
    """Return the median seconds of a part's call."""
    import torch

    module = engine.parts.modules()[name]
    seen = []
    with torch.no_grad():
        for turn in range(TIMED_ROUNDS + 1):
            began = clock()
            if kernels is None:
                module(*args, **kwargs)
            else:
                kernels(module, args, kwargs)
            if turn:
                seen.append(clock() - began)
    return median(seen)
