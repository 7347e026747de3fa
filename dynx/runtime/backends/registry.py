"""The backends for language models: PyTorch, eager, compiled or with CUDA graphs, and OpenVINO or IPEX where installed.

What a run uses is decided without loading anything (`choose`): the backend asked for, else the one that calibration measured to
be fastest, else eager PyTorch. Only calibration compiles and converts unasked, since that takes seconds; it times them side
by side.
"""

from __future__ import annotations

import contextlib
import importlib
import random
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

from dynx.errors import DeviceError, DynxError, InvalidInput, UnsupportedModelError
from dynx.runtime.backends.availability import available, can_capture, can_compile, can_use_ipex
from dynx.runtime.decision import Decision
from dynx.runtime.threads import BESIDE_ANOTHER_RUNTIME, torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from dynx.runtime.backends.eager import EagerBackend
    from dynx.runtime.backends.interface import Backend

Name = Literal["torch-eager", "torch-compiled", "torch-graphs", "openvino", "ipex"]
Quantization = Literal["none", "int8", "int4", "file"]
Key = TypeVar("Key")

TORCH: Name = "torch-eager"
COMPILED: Name = "torch-compiled"
GRAPHS: Name = "torch-graphs"
OPENVINO: Name = "openvino"
IPEX: Name = "ipex"

TITLES: dict[str, str] = {
    TORCH: "PyTorch",
    COMPILED: "compiled PyTorch",
    GRAPHS: "PyTorch with CUDA graphs",
    OPENVINO: "OpenVINO",
    IPEX: "IPEX",
}

ALIASES: dict[str, Name] = {"torch": TORCH, "eager": TORCH, "compiled": COMPILED, "graphs": GRAPHS}

QUANTIZED_PREFERENCE: tuple[Name, ...] = (OPENVINO, COMPILED, TORCH)
"""What computes quantized weights before anything is measured, the best first. Measured on 287 M parameters and two cores, a
pass of one token: OpenVINO 24 ms, compiled 24 ms, eager 44 ms, and eager bfloat16 54 ms."""

RACE_TOKENS = (1, 6)
"""Tokens per pass in a race: one for plain decoding, and about as many as a round of draft tokens verifies."""

BACKEND_IMPORTS: dict[str, tuple[str, ...]] = {
    COMPILED: ("torch._inductor.standalone_compile",),
    OPENVINO: ("openvino",),
}
"""Modules that a backend imports beyond PyTorch, before its first pass."""

TYPICAL_RUN_PASSES = 256
"""Passes of a run over which a later start is weighed against shorter passes: an answer of some hundred tokens."""

RACE_CONTEXT_TOKENS, RACE_ROUNDS = 64, 9
"""Tokens of context before each pass of a race, and passes of each backend and number of tokens."""


def usable(device: str, quantize: str = "none") -> dict[Name, Decision[bool]]:
    """Decide which backends can be used on a device with weights in this precision, without importing any."""
    there = available()
    if there.value and device != "cpu":
        there = Decision(False, f"OpenVINO is used on processors only, not on {device}")
    if quantize == "file":
        quantize = "none"  # to OpenVINO the file's integers go; PyTorch has them unpacked
    eager, torch_compile, captured = Decision(True, "PyTorch"), can_compile(device), can_capture(device)
    if quantize == "int4":
        eager = torch_compile = Decision(False, "PyTorch has no fast kernels for int4 weights here")
    elif quantize != "none" and device.partition(":")[0] != "cpu":
        eager = torch_compile = Decision(
            False, f"PyTorch's {quantize} kernels are used on processors only, not on {device}"
        )
    optimized = can_use_ipex(device)
    if quantize != "none":
        optimized = Decision(False, f"IPEX is used for weights as they are, not in {quantize}")
        captured = Decision(False, f"CUDA graphs are captured with weights as they are, not in {quantize}")
    return {TORCH: eager, COMPILED: torch_compile, GRAPHS: captured, OPENVINO: there, IPEX: optimized}


def choose(asked: str, quantize: str, device: str, measured: str | None) -> Decision[str]:
    """Choose the backend of a run. `measured` is the fastest by a profile.

    Raises InvalidInput for a name that isn't known, DeviceError for a backend that isn't there or lacks the kernels.
    """
    if asked not in ("auto", *get_args(Name), *ALIASES):
        raise InvalidInput(f"`backend` {asked}: one of auto, {', '.join(get_args(Name))}")
    there = cast("dict[str, Decision[bool]]", usable(device, quantize))
    name = ALIASES.get(asked, asked)
    able = [each for each, found in there.items() if found.value]
    if name != "auto":
        if name not in able:
            stored = f" `quantize` {quantize}" if quantize != "none" else ""
            raise DeviceError(f"`backend` {asked}{stored}: {there[name].reason}")
        return Decision(name, "asked for")
    if not able:
        raise DeviceError(f"`quantize` {quantize}: {there[OPENVINO].reason}")
    if measured is not None and measured in able:
        return Decision(measured, "measured to be the fastest here")
    if quantize == "file" and OPENVINO in able:
        return Decision(OPENVINO, "it computes with the file's own integers; calibrating times the others")
    if quantize not in ("none", "file"):
        best = next(each for each in QUANTIZED_PREFERENCE if each in able)
        others = "; calibrating times the others" if len(able) > 1 else ""
        return Decision(best, f"it has {quantize} kernels{others}")
    if measured is not None and measured in there:
        return Decision(TORCH, there[measured].reason)
    others = " and ".join(TITLES[each] for each in able if each != TORCH)
    return Decision(
        TORCH, f"nothing is measured yet; calibrating times {others} too" if others else "the only one here"
    )


@contextlib.contextmanager
def attempt(name: str, model: str) -> Iterator[None]:
    """Turn whatever a backend raises on `model` into UnsupportedModelError, so that another backend can take its place.

    Running out of memory stays what it is, as do errors of dynx's own, Ctrl-C and exits.
    """
    from dynx.runtime.memory import is_out_of_memory

    try:
        yield
    except DynxError:
        raise
    except Exception as e:
        if is_out_of_memory(e):
            raise
        said = (str(e).strip() or "no message").splitlines()[0][:160]
        raise UnsupportedModelError(f"{model} fails on {TITLES.get(name, name)} ({type(e).__name__}: {said})") from e


def time_in_turns(
    jobs: Mapping[Key, Callable[[int], int]],
    clock: Callable[[], float],
    *,
    rounds: int,
    backend_of: Callable[[Key], str],
    model: str,
    prepare: Callable[[Key], None] = lambda _: None,
) -> tuple[dict[Key, float], dict[Key, UnsupportedModelError]]:
    """Time jobs in turns and in random order; return the median seconds per unit of work, and the errors of jobs that failed.

    A job takes the number of the round and returns the units that it did: passes, network calls, inputs. Round 0 warms up and
    isn't timed, nor is `prepare`, which is called before each job. A job that raises isn't run again.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in jobs}
    failed: dict[Key, UnsupportedModelError] = {}
    order, rng = list(jobs), random.Random(0)  # noqa: S311 - the order of measurements is no secret
    for number in range(rounds + 1):
        rng.shuffle(order)
        for key in order:
            if key in failed:
                continue
            try:
                with attempt(backend_of(key), model):
                    if number == 0:
                        jobs[key](number)
                        continue
                    prepare(key)
                    began = clock()
                    units = jobs[key](number)
                    seconds[key].append((clock() - began) / units)
            except UnsupportedModelError as e:
                failed[key] = e
    return {key: median(seen) for key, seen in seconds.items() if key not in failed}, failed


@dataclass(frozen=True)
class Race:
    """Backends timed side by side: milliseconds of a pass by name and width, and seconds until the first pass."""

    passes: Mapping[str, Mapping[int, float]]
    starts: Mapping[str, float] = field(default_factory=dict)
    failed: Mapping[str, UnsupportedModelError] = field(default_factory=dict)
    """Backends that were left out, and why."""

    def run(self, name: str) -> float:
        """Seconds of a typical run, from the start."""
        by_width = self.passes[name].values()
        return self.starts.get(name, 0.0) + TYPICAL_RUN_PASSES * sum(by_width) / len(by_width) / 1e3

    @property
    def winner(self) -> str:
        """Backend with the shortest run: one that is slightly faster but starts seconds later loses."""
        return min(self.passes, key=self.run)

    def __str__(self) -> str:
        timed = "; ".join(f"{name} {', '.join(f'{ms:.2f}' for ms in by.values())}" for name, by in self.passes.items())
        said = f"{timed} ms a pass of {' and '.join(map(str, RACE_TOKENS))} tokens"
        if any(self.starts.values()):
            starts = ", ".join(f"{name} {self.run(name):.1f} s" for name in self.passes)
            said += f"; with the start, a run of {TYPICAL_RUN_PASSES} passes takes {starts}"
        return said


def race(
    backends: Mapping[str, Backend],
    clock: Callable[[], float],
    widths: Sequence[int] = RACE_TOKENS,
    starts: Mapping[str, float] | None = None,
    model: str = "the model",
) -> Race:
    """Time backends in turns, each on its own sequence; return medians. `clock` and `starts` in seconds.

    A backend that raises is left out. Raises UnsupportedModelError, the first backend's, where none is left.
    """
    passes: dict[tuple[str, int], tuple[Callable[[], None], Callable[[], None]]] = {}
    failed: dict[str, UnsupportedModelError] = {}
    for name, backend in backends.items():
        try:
            with attempt(name, model):
                passes |= {(name, width): _pass(backend, width) for width in widths}
        except UnsupportedModelError as e:
            failed[name] = e
    seconds, refused = time_in_turns(
        {cell: _once(job) for cell, (_, job) in passes.items()},
        clock,
        rounds=RACE_ROUNDS,
        backend_of=lambda cell: cell[0],
        model=model,
        prepare=lambda cell: passes[cell][0](),
    )
    failed |= {name: why for (name, _), why in refused.items()}
    left = [name for name in backends if name not in failed]
    if not left:
        raise next(iter(failed.values()))
    milliseconds = {name: {width: 1e3 * seconds[name, width] for width in widths} for name in left}
    return Race(milliseconds, starts or {}, failed)


def _once(job: Callable[[], None]) -> Callable[[int], int]:
    def run(_: int) -> int:
        job()
        return 1

    return run


def import_backend(name: str) -> None:
    """Import what a backend needs beyond PyTorch, to time it as part of each process's start."""
    if name == IPEX:
        from dynx.runtime.backends import ipex

        with contextlib.suppress(Exception):  # said again, with the reason, when the backend is loaded
            ipex.extension()
    for module in BACKEND_IMPORTS.get(name, ()):
        with contextlib.suppress(Exception):
            importlib.import_module(module)


def _pass(backend: Backend, width: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a function that prepares a pass, and the pass."""
    context = (
        RACE_CONTEXT_TOKENS if backend.context is None else max(1, min(RACE_CONTEXT_TOKENS, backend.context - width))
    )
    session = backend.open()
    session.pick([(7 * i + 1) % backend.vocab for i in range(context)], keep=1)

    def job() -> None:
        with torch_threads(BESIDE_ANOTHER_RUNTIME if backend.own_threads else None):
            session.pick([(3 + i) % backend.vocab for i in range(width)])
        session.rollback(context)

    def ready() -> None:
        if session.pads:
            session.set_padded_length(width)
            job()

    return ready, job


def quantize_model(backend: EagerBackend, precision: str) -> EagerBackend:
    """Quantize `backend`'s weights to int8, in place. Raises UnsupportedModelError with the reason."""
    from dynx.runtime.backends import packed_linear

    packed_linear.quantize(backend.model)
    backend.precision = precision
    return backend


def compile_model(eager: EagerBackend, *, cache: Path, trusted: bool) -> Backend:
    """Compile `eager`'s model in place; store compiled code in `cache`. Raises UnsupportedModelError with the reason."""
    from dynx.runtime.backends import torch_compile

    backend = torch_compile.load(eager.model, cache=cache, trusted=trusted)
    backend.precision = eager.precision
    return backend


def capture_model(eager: EagerBackend, *, trusted: bool) -> Backend:
    """Capture the passes of `eager`'s model as CUDA graphs. Raises UnsupportedModelError with the reason."""
    from dynx.runtime.backends import cuda_graphs

    return cuda_graphs.load(eager.model, trusted=trusted)


def load_ipex(eager: EagerBackend, *, trusted: bool) -> Backend:
    """Replace the layers of `eager`'s model by IPEX's, in place. Raises UnsupportedModelError with the reason."""
    from dynx.runtime.backends import ipex

    return ipex.load(eager.model, trusted=trusted)


def convert_to_openvino(
    model: Any, *, precision: Any, threads: int, cache: Path | None, stored: Any = None, used_up: bool = False
) -> Backend:
    """Convert `model` for OpenVINO; keep it in `cache` where there is one.

    With `used_up` nobody needs `model` any more, and its weights may be freed. `stored` reads the weights as the model's file
    holds them, for the precision "file". Raises UnsupportedModelError with the reason.
    """
    from dynx.runtime.backends.openvino import kept

    load = kept.convert if used_up else kept.load
    return load(model, precision=precision, threads=threads, cache=cache, stored=stored)


def load_exported(
    folder: Path, *, name: str, dtype: str, threads: int, trusted: bool, cache: Path | None = None
) -> Backend:
    """Load a model in OpenVINO's own format; `cache` is a folder for these files alone, where it is noted that they were checked.

    Raises ModelError, UnsupportedModelError with the reason.
    """
    from dynx.runtime.backends.openvino import exported

    return exported.load(folder, name=name, dtype=dtype, threads=threads, trusted=trusted, cache=cache)


def was_checked(*, precision: Any, cache: Path) -> bool:
    """Whether what is kept in `cache` was compared with the torch model after it was written."""
    from dynx.runtime.backends.openvino import kept as openvino

    return openvino.was_checked(precision=precision, cache=cache)


def load_converted_ahead(*, precision: Any, threads: int, cache: Path) -> Future[Backend | None] | None:
    """Begin `load_converted` in a thread, with a first pass; None where nothing was stored."""
    from dynx.runtime.backends.openvino import ahead, kept

    if not kept.is_kept(precision=precision, cache=cache):
        return None
    return cast("Future[Backend | None]", ahead.decoder(precision, threads, cache))


def load_converted(*, precision: Any, threads: int, cache: Path) -> Backend | None:
    """Load what `convert_to_openvino` stored, without the torch model; None where there is nothing usable."""
    from dynx.runtime.backends.openvino import kept as openvino

    return openvino.reload(precision=precision, threads=threads, cache=cache)
