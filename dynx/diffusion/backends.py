"""Choose, prepare and time the backends that compute a pipeline's network, each in some precision.

On a processor the pipeline itself stays in float32: text encoders, latents, decoder, and the original network, whose pictures
are the reference. Only the network's calls run on the backend, so the guarantee of similarity to the full run covers steps,
backend and precision together.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    time_in_turns,
    usable,
)
from dynx.runtime.decision import Decision
from dynx.runtime.device import choose_dtype
from dynx.runtime.plan import BackendSpec
from dynx.runtime.profile_store import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from dynx.diffusion.engine import Engine
    from dynx.diffusion.plan import ImageGeneratorPlan
    from dynx.diffusion.schedule import Schedule
    from dynx.diffusion.types import Request
    from dynx.runtime.backends.network import NetworkBackend
    from dynx.runtime.device import Device

TIMED_CALLS = 7
"""Timed calls of each candidate, made in turns; the median is used."""

AS_LOADED = BackendSpec(TORCH, "float32")
"""The network as diffusers loaded it."""


def decide(
    asked: str, dtype: str, device: str, machine: Device, measured: BackendSpec | None
) -> tuple[Decision[str], Decision[str]]:
    """Decide the backend and precision of a run; `measured` is what a profile was measured with.

    Raises InvalidInput for an unknown name, DeviceError for a backend that isn't available.
    """
    if asked == IPEX:
        raise DeviceError("`backend` ipex: pipelines that draw aren't run on it")
    backend = choose(asked, "none", device, None if measured is None else measured[0])
    if asked == "auto" and measured is None:
        others = dict.fromkeys(
            TITLES[name] for name, _ in candidate_specs(asked, dtype, device, machine) if name != TORCH
        )
        tells = f"nothing is measured yet; calibrating times {' and '.join(others)} too"
        backend = Decision(TORCH, tells if others else "the only one here")
    if backend.value != TORCH and device != "cpu":
        raise DeviceError(f"`backend` {asked}: networks are prepared for the processor, and this runs on {device}")
    if dtype != "auto" or device != "cpu":
        return backend, choose_dtype(None if dtype == "auto" else dtype, device, machine)
    if measured is not None and measured[1] != "float32" and backend.value == measured[0]:
        return backend, Decision(measured[1], "measured: the promise holds with it, and it is faster")
    return backend, Decision("float32", "full precision unless asked otherwise")


def candidate_specs(asked: str, dtype: str, device: str, machine: Device) -> list[BackendSpec]:
    """List the available backends and precisions among which a calibration chooses, as far as the request allows.

    PyTorch's compiler takes minutes for a whole network, so it is tried by default only where OpenVINO isn't installed.
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


def build_kernels(plan: ImageGeneratorPlan, engine: Engine, spec: BackendSpec) -> NetworkBackend | None:
    """Build the kernels of a backend, not yet prepared for any call; None where the pipeline runs as it was loaded.

    Raises UnsupportedModelError for a pipeline of several networks.
    """
    if spec == AS_LOADED or plan.device != "cpu":
        return None
    slot = engine.adapter.slot
    if slot is None:
        raise UnsupportedModelError(f"{engine.adapter.name} has no single network to run on {TITLES[spec[0]]}")
    return _backend_of(plan, getattr(engine.pipe, slot), spec)


def _backend_of(plan: ImageGeneratorPlan, module: Any, spec: BackendSpec, part: str = "") -> NetworkBackend:
    """Build a backend for a module of the plan's pipeline; `part` is its name, empty for the network."""
    from dynx.runtime.backends.network import NetworkBackend

    backend, dtype = spec
    cache = None if backend == TORCH else cache_folder() / "networks" / plan.weights / part
    return NetworkBackend(module, backend, dtype=dtype, threads=plan.threads, cache=cache)


def compiled_files(
    plan: ImageGeneratorPlan, files: Sequence[tuple[str, str]], precision: str
) -> list[tuple[Path, str]]:
    """Return the folders in the cache of what is compiled for a run, each with its precision; parts are in float32."""
    root = cache_folder() / "networks" / plan.weights
    return [(root / part / name, "float32" if part else precision) for part, name in files]


def build_parts(plan: ImageGeneratorPlan, engine: Engine, spec: BackendSpec) -> dict[str, NetworkBackend]:
    """Build backends for the text encoders and the decoder, in float32 and not yet prepared; none where PyTorch computes."""
    if spec.backend == TORCH or plan.device != "cpu":
        return {}
    full = BackendSpec(spec.backend, "float32")
    return {name: _backend_of(plan, module, full, name) for name, module in engine.parts.modules().items()}


def part_calls(engine: Engine, request: Request) -> dict[str, list[tuple[Any, Any]]]:
    """Return the calls of text encoders and decoder that a request leads to, by part, without running the network."""
    from dynx.diffusion.denoiser import noisy_input
    from dynx.diffusion.engine import Engine as Fresh
    from dynx.diffusion.parts import DECODER

    found: dict[str, list[tuple[Any, Any]]] = {}

    def seen(name: str, args: Any, kwargs: Any) -> None:
        found.setdefault(name, []).append((args, kwargs))

    fresh = Fresh(engine.pipe, engine.adapter)  # which keeps no texts yet
    fresh.parts.seen = seen
    latents = noisy_input(*fresh.first_call(request))
    vae: Any = getattr(engine.pipe, "vae", None)
    if (
        DECODER in fresh.parts.modules()
        and latents.dim() == 4
        and latents.shape[1] == vae.config.get("latent_channels")
    ):
        import torch

        with torch.no_grad(), fresh.parts.attached():
            vae.decode(latents[: len(request)], return_dict=False)
    return found


def prepare(
    kernels: NetworkBackend,
    engine: Engine,
    request: Request,
    schedule: Schedule | None = None,
    *,
    guidance_interval: bool = False,
) -> None:
    """Prepare the kernels for a request's calls; with a `guidance_interval` also for calls of half the rows.

    Raises UnsupportedModelError with the reason.
    """
    from dynx.diffusion.denoiser import halved, noisy_input

    args, kwargs = engine.first_call(request, schedule)
    kernels.prepare(args, kwargs)
    rows = int(noisy_input(args, kwargs).shape[0])
    if guidance_interval and rows == 2 * len(request):
        kernels.prepare(halved(args, rows, 0), halved(kwargs, rows, 0))


@dataclass(frozen=True)
class Candidate:
    """Hold a timed backend and precision."""

    spec: BackendSpec
    kernels: NetworkBackend | None
    call_seconds: float
    """Seconds of a network call."""
    start_seconds: float
    """Seconds of startup in a process that finds the compiled network in the cache."""

    def __str__(self) -> str:
        start = f", {self.start_seconds:.1f} s to start" if self.start_seconds >= 0.05 else ""
        return f"{TITLES[self.spec[0]]} {self.spec[1]} {1e3 * self.call_seconds:.1f} ms{start}"


def prepare_parts(
    parts: Mapping[str, NetworkBackend], calls: Mapping[str, Sequence[tuple[Any, Any]]], names: Sequence[str]
) -> dict[str, NetworkBackend]:
    """Prepare the named parts for their calls, and return those. Raises UnsupportedModelError with the reason."""
    for name in names:
        for args, kwargs in calls.get(name, ()):
            parts[name].prepare(args, kwargs)
    return {name: parts[name] for name in names if name in calls}


def race(
    plan: ImageGeneratorPlan,
    engine: Engine,
    request: Request,
    candidate_specs: Sequence[BackendSpec],
    clock: Callable[[], float],
    stages: Callable[[str], None] = lambda _: None,
) -> tuple[list[Candidate], dict[str, str]]:
    """Time a network call of `request` with each spec; also return the reasons of those that can't run it."""
    args, kwargs = engine.first_call(request)
    network = getattr(engine.pipe, str(engine.adapter.slot))
    able: dict[BackendSpec, tuple[NetworkBackend | None, float]] = {}
    refused: dict[str, str] = {}
    imports: dict[str, float] = {}
    for spec in candidate_specs:
        stages(f"preparing {TITLES[spec[0]]} {spec[1]}")
        if spec[0] not in imports:
            began = clock()
            import_backend(spec[0])
            imports[spec[0]] = clock() - began
        try:
            with attempt(spec[0], plan.source.name):
                kernels = build_kernels(plan, engine, spec)
                if kernels is not None:
                    kernels.prepare(args, kwargs)
                able[spec] = kernels, imports[spec[0]] + _startup_seconds(plan, engine, spec, (args, kwargs), clock)
        except UnsupportedModelError as e:
            refused[f"{TITLES[spec[0]]} {spec[1]}"] = str(e)
    kernels_of = {spec: kernels for spec, (kernels, _) in able.items()}
    seconds, failed = _call_seconds(network, kernels_of, args, kwargs, clock)
    refused |= {f"{TITLES[spec[0]]} {spec[1]}": str(e) for spec, e in failed.items()}
    return [
        Candidate(BackendSpec(*spec), kernels, seconds[spec], start)
        for spec, (kernels, start) in able.items()
        if spec in seconds
    ], refused


def _startup_seconds(
    plan: ImageGeneratorPlan, engine: Engine, spec: BackendSpec, call: tuple[Any, Any], clock: Callable[[], float]
) -> float:
    """Return the seconds in which another process loads the compiled network from the cache."""
    again = None if spec[0] == TORCH else build_kernels(plan, engine, spec)
    if again is None:
        return 0.0
    began = clock()
    again.prepare(*call)
    return clock() - began


def _call_seconds(
    network: Any,
    able: Mapping[BackendSpec, NetworkBackend | None],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    clock: Callable[[], float],
) -> tuple[dict[BackendSpec, float], dict[BackendSpec, UnsupportedModelError]]:
    """Return the median seconds of a call by spec, and the errors of those that fail."""
    import torch

    def job(kernels: NetworkBackend | None) -> Callable[[int], int]:
        def call(_: int) -> int:
            if kernels is None:
                network(*args, **kwargs)
            else:
                kernels(network, args, kwargs)
            return 1

        return call

    with torch.no_grad():
        seconds, failed = time_in_turns(
            {spec: job(kernels) for spec, kernels in able.items()},
            clock,
            rounds=TIMED_CALLS,
            backend_of=lambda spec: spec[0],
            model=type(network).__name__,
        )
    if AS_LOADED in failed:
        raise failed[AS_LOADED]
    return seconds, failed
