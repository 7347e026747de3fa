"""Which kernels compute a pipeline's network, and in what precision: decided beforehand, made ready, or raced.

The pipeline itself stays in float32 on a processor: texts, latents and decoder, and the network as its author made it, which is
what pictures are compared with. Only the network's calls go elsewhere, so the one promise of likeness to the full run covers
steps, kernels and precision together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from dynx.errors import DeviceError, UnsupportedModelError
from dynx.runtime.backends.registry import (
    COMPILED,
    IPEX,
    OPENVINO,
    TITLES,
    TORCH,
    attempt,
    choose,
    import_backend,
    usable,
)
from dynx.runtime.decision import Decision
from dynx.runtime.device import choose_dtype
from dynx.runtime.plan import BackendSpec
from dynx.runtime.profile_store import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dynx.diffusion.engine import Engine
    from dynx.diffusion.plan import ImageGeneratorPlan
    from dynx.diffusion.schedule import Schedule
    from dynx.diffusion.types import Request
    from dynx.runtime.backends.network import NetworkBackend
    from dynx.runtime.device import Device

ROUNDS = 7
"""Of a race: calls of each, in turns; the median counts."""

PICTURES = 4
"""Of a typical run: what a backend takes to start must be won back by these."""

AS_LOADED = BackendSpec(TORCH, "float32")


def decide(
    asked: str, dtype: str, device: str, machine: Device, measured: BackendSpec | None
) -> tuple[Decision[str], Decision[str]]:
    """Backend and precision of a run, as they are asked for; `measured` is what a profile was measured with.

    Raises InvalidInput for a name that isn't known, DeviceError for a backend that can't be had.
    """
    if asked == IPEX:
        raise DeviceError("`backend` ipex: pipelines that draw aren't run on it")
    backend = choose(asked, "none", device, None if measured is None else measured[0])
    if asked == "auto" and measured is None:
        others = dict.fromkeys(TITLES[name] for name, _ in ways(asked, dtype, device, machine) if name != TORCH)
        tells = f"nothing is measured yet; calibrating times {' and '.join(others)} too"
        backend = Decision(TORCH, tells if others else "the only one here")
    if backend.value != TORCH and device != "cpu":
        raise DeviceError(f"`backend` {asked}: networks are prepared for the processor, and this runs on {device}")
    if dtype != "auto" or device != "cpu":
        return backend, choose_dtype(None if dtype == "auto" else dtype, device, machine)
    if measured is not None and measured[1] != "float32" and backend.value == measured[0]:
        return backend, Decision(measured[1], "measured: the promise holds with it, and it is faster")
    return backend, Decision("float32", "full precision unless asked otherwise")


def ways(asked: str, dtype: str, device: str, machine: Device) -> list[BackendSpec]:
    """What a calibration may race: backends and precisions that can be had and aren't ruled out by what was asked for.

    A whole network takes PyTorch's compiler minutes, so unasked that is tried only where there is no OpenVINO.
    """
    if device != "cpu":
        return []
    named = choose(asked, "none", device, None).value if asked != "auto" else None
    backends = [str(name) for name, able in usable(device).items() if able.value and name != IPEX]
    if named is not None:
        backends = [named]
    elif OPENVINO in backends:
        backends = [name for name in backends if name != COMPILED]
    precisions = ["float32", "bfloat16"] if machine.bf16_instruction else ["float32"]
    if dtype != "auto":
        precisions = [choose_dtype(dtype, device, machine).value]
    return [BackendSpec(backend, precision) for backend in backends for precision in precisions]


def of(plan: ImageGeneratorPlan, engine: Engine, way: BackendSpec) -> NetworkBackend | None:
    """Kernels that aren't ready for any call yet; None where the pipeline runs as it was loaded.

    Raises UnsupportedModelError for a pipeline of several networks.
    """
    if way == AS_LOADED or plan.device != "cpu":
        return None
    slot = engine.family.slot
    if slot is None:
        raise UnsupportedModelError(f"{engine.family.name} has no single network to run on {TITLES[way[0]]}")
    from dynx.runtime.backends.network import NetworkBackend

    backend, dtype = way
    cache = None if backend == TORCH else cache_folder() / "networks" / plan.weights
    threads = plan.threads
    return NetworkBackend(getattr(engine.pipe, slot), backend, dtype=dtype, threads=threads, cache=cache)


def prepare(
    kernels: NetworkBackend, engine: Engine, request: Request, schedule: Schedule | None = None, *, cut: bool = False
) -> None:
    """Make ready for a request's calls, and where guidance is `cut`, for those of half the rows.

    Raises UnsupportedModelError with the reason.
    """
    from dynx.diffusion.denoiser import halved, noisy_input

    args, kwargs = engine.first_call(request, schedule)
    kernels.prepare(args, kwargs)
    rows = int(noisy_input(args, kwargs).shape[0])
    if cut and rows == 2 * len(request):
        kernels.prepare(halved(args, rows, 0), halved(kwargs, rows, 0))


@dataclass(frozen=True)
class Runner:
    """One of those in a race."""

    way: BackendSpec
    kernels: NetworkBackend | None
    call: float
    """Seconds of a network call."""
    start: float
    """Seconds until it is ready in a process that finds it kept."""

    def picture(self, calls: float) -> float:
        """Seconds of a picture in a typical run that are spent on so many calls and its share of the start."""
        return calls * self.call + self.start / PICTURES

    def __str__(self) -> str:
        start = f", {self.start:.1f} s to start" if self.start >= 0.05 else ""
        return f"{TITLES[self.way[0]]} {self.way[1]} {1e3 * self.call:.1f} ms{start}"


def race(
    plan: ImageGeneratorPlan,
    engine: Engine,
    request: Request,
    ways: Sequence[BackendSpec],
    clock: Callable[[], float],
    stages: Callable[[str], None] = lambda _: None,
) -> tuple[list[Runner], dict[str, str]]:
    """Time a network call of `request` in each way; also what can't be used, and why."""
    args, kwargs = engine.first_call(request)
    network = getattr(engine.pipe, str(engine.family.slot))
    able: dict[BackendSpec, tuple[NetworkBackend | None, float]] = {}
    refused: dict[str, str] = {}
    imports: dict[str, float] = {}
    for way in ways:
        stages(f"preparing {TITLES[way[0]]} {way[1]}")
        if way[0] not in imports:
            began = clock()
            import_backend(way[0])
            imports[way[0]] = clock() - began
        try:
            with attempt(way[0], plan.source.name):
                kernels = of(plan, engine, way)
                if kernels is not None:
                    kernels.prepare(args, kwargs)
                able[way] = kernels, imports[way[0]] + _start(plan, engine, way, (args, kwargs), clock)
        except UnsupportedModelError as e:
            refused[f"{TITLES[way[0]]} {way[1]}"] = str(e)
    seen = _timed(network, {way: kernels for way, (kernels, _) in able.items()}, args, kwargs, clock, refused)
    return [Runner(way, kernels, seen[way], start) for way, (kernels, start) in able.items() if way in seen], refused


def _start(
    plan: ImageGeneratorPlan, engine: Engine, way: BackendSpec, call: tuple[Any, Any], clock: Callable[[], float]
) -> float:
    """Seconds that another process needs to take up what is kept."""
    again = None if way[0] == TORCH else of(plan, engine, way)
    if again is None:
        return 0.0
    began = clock()
    again.prepare(*call)
    return clock() - began


def _timed(
    network: Any,
    ways: Mapping[BackendSpec, NetworkBackend | None],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    clock: Callable[[], float],
    refused: dict[str, str],
) -> dict[BackendSpec, float]:
    """Seconds of a call, medians; those that raise go into `refused`, except the network as it was loaded."""
    import torch

    order, rng = list(ways), random.Random(0)  # noqa: S311 - the order of measurements is no secret
    seconds: dict[BackendSpec, list[float]] = {way: [] for way in ways}
    with torch.no_grad():
        for number in range(ROUNDS + 1):  # the first warms up
            rng.shuffle(order)
            for way in [way for way in order if way in seconds]:
                kernels = ways[way]
                began = clock()
                if kernels is None:
                    network(*args, **kwargs)
                else:
                    try:
                        with attempt(way[0], type(network).__name__):
                            kernels(network, args, kwargs)
                    except UnsupportedModelError as e:
                        refused[f"{TITLES[way[0]]} {way[1]}"] = str(e)
                        del seconds[way]
                        continue
                if number:
                    seconds[way].append(clock() - began)
    return {way: median(seen) for way, seen in seconds.items()}
