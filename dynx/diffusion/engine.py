"""Draw the pictures of a request with no more network calls than its schedule needs.

The pipeline's own call runs: text encoding, initial noise, loop, decoder and safety checker are unchanged. Plain execution is
that call bit for bit, with its network calls counted. A request that can't follow a schedule is drawn plain, and the stats give
the reason. A pipeline returns only after its loop, so steps are reported to a `callback` during the run.
"""

from __future__ import annotations

import inspect
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dynx.diffusion.caching import why_not
from dynx.diffusion.control import SCALE
from dynx.diffusion.denoiser import noisy_input, text_embedding
from dynx.diffusion.parts import Parts
from dynx.diffusion.pipelines import adapter_for, few_step, picture_arguments, required_arguments
from dynx.diffusion.sampler import Mismatch, Sampler
from dynx.diffusion.schedule import Grid
from dynx.diffusion.types import ImageStats, Picture, Step
from dynx.errors import DeviceError, InvalidInput, UnsupportedModelError
from dynx.runtime.loading import PIPELINES
from dynx.runtime.memory import is_out_of_memory
from dynx.runtime.threads import BESIDE_ANOTHER_RUNTIME, torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from dynx.diffusion.control import Control
    from dynx.diffusion.editing import Start
    from dynx.diffusion.pipelines import PipelineAdapter
    from dynx.diffusion.sampler import StepController
    from dynx.diffusion.schedule import Schedule
    from dynx.diffusion.types import Request
    from dynx.runtime.backends.network import NetworkBackend


@dataclass(frozen=True)
class InitialCall:
    """Hold the grid of a pipeline's own run and the inputs of its first network call."""

    grid: Grid
    """The grid of the pipeline's own scheduler for the request's steps, size and guidance."""
    latents: Tensor
    """(R, …) the latents of the first call; R is twice the number of pictures under guidance."""
    embedding: Tensor | None
    """(R, …) the text embedding; None for a network without one."""
    skipped: int = 0
    """Steps that the pipeline leaves out at the beginning, by its strength; the grid is without them."""


MAX_LAST_SIGMA_RATIO = 0.999
"""Largest ratio of the last sigma to the one before; some schedulers repeat the last level, and a grid must decrease."""


class _CallCaptured(Exception):  # noqa: N818 - not an error
    """Signal that a network call is captured; raised inside a pipeline and always caught in this module."""


class Engine:
    """Draw with a loaded diffusers pipeline, one request at a time. `clock` returns seconds."""

    def __init__(
        self,
        pipe: Any,
        adapter: PipelineAdapter | None = None,
        *,
        kernels: NetworkBackend | None = None,
        parts: Parts | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.pipe = pipe
        self.parts = parts or Parts(pipe)
        """Its text encoders and decoder."""
        self.adapter = adapter or adapter_for(pipe)
        self.kernels = kernels
        self.start: Start | None = None
        """What its pictures start from, in the size that they are drawn in; None for noise alone."""
        self.control: Control | None = None
        """What controls its pictures, in the same size; None for nothing."""
        self._skipped: dict[tuple[int | None, float | None], int] = {}
        """The backend that computes its one network; None: PyTorch, as the pipeline was loaded."""
        self._clock = clock

    @property
    def reference(self) -> Engine:
        """The engine of the same pipeline as it was loaded, whose pictures are the reference."""
        if self.kernels is None and not self.parts.kernels:
            return self
        found = Engine(self.pipe, self.adapter, parts=self.parts.as_loaded, clock=self._clock)
        found.start, found.control = self.start, self.control
        return found

    def draw(
        self,
        request: Request,
        schedule: Schedule | None = None,
        *,
        callback: Callable[[Step], None] | None = None,
        stop: Callable[[], bool] | None = None,
        controller: StepController | None = None,
    ) -> list[Picture]:
        """Draw the pictures of a request, with a schedule or plain.

        `callback` is called after every step. `stop` is called after every step too; once it returns True the run finishes
        early, on the clean pictures predicted by then. `controller` may change the rest of the grid (see
        `sampler.StepState`). Exceptions of these three pass through, and the pipeline is restored. Raises InvalidInput for
        arguments that the pipeline refuses or doesn't take, DeviceError when memory runs out.
        """
        arguments = self._arguments(request, schedule)
        notes: list[str] = []
        if schedule is not None and (reason := self.plain_reason(request)):
            schedule, controller = None, None
            notes.append(f"plain: {reason}")
            arguments = self._arguments(request, None)
        started = self._clock()
        passed = self.kernels.passed if self.kernels else 0
        sampler = Sampler(
            self.pipe,
            self.adapter,
            schedule,
            callback=callback,
            stop=stop,
            controller=controller,
            kernels=self.kernels,
            skipped=(0, 0) if schedule is None else self._skipped_steps(request),
        )
        spent = [sampler]
        try:
            images, flagged = self._call(sampler, arguments, request)
        except Mismatch as e:
            notes.append(f"plain: {e}")
            sampler = Sampler(self.pipe, self.adapter, callback=callback, stop=stop, kernels=self.kernels)
            spent.append(sampler)
            images, flagged = self._call(sampler, self._arguments(request, None), request)
        if not sampler.denoisers:
            notes.append("its network calls can't be counted")
        if self.kernels and (left := self.kernels.passed - passed):
            notes.append(f"{left} network calls of another shape than was prepared for ran on PyTorch")
        stats = ImageStats(
            calls=sum(s.calls for s in spent),
            rows=sum(s.rows for s in spent),
            planned=sampler.planned,
            run=sampler.run,
            skipped=sampler.skipped,
            unguided=sampler.unguided,
            cached=sampler.cached,
            seconds=self._clock() - started,
            solver=sampler.schedule.solver if sampler.schedule else self.adapter.scheduler,
            schedule=sampler.schedule,
            timesteps=sampler.timesteps,
            finished_early=sampler.finished_early,
            notes=(*notes, *sampler.notes),
            pictures=len(request),
            backend=str(self.kernels or ""),
        )
        prompts = request.prompts or ("",) * len(request)
        return [_picture(*each, stats) for each in zip(prompts, request.seeds, images, flagged, strict=True)]

    def check(self, request: Request) -> None:
        """Raise UnsupportedModelError where a pipeline needs more than a prompt: a picture to start from, a mask, a label.

        A pipeline that takes pictures is called until it reaches its network. Raises InvalidInput for arguments that it doesn't
        take.
        """
        call = inspect.signature(self.pipe.__call__).parameters
        needed = [name for name in required_arguments(call) if name != self.adapter.control]
        taken = picture_arguments(call)
        if needed:
            raise self._lacking(needed)
        arguments = self._arguments(request, None)
        sampler = Sampler(self.pipe, self.adapter)
        if not taken or not sampler.denoisers:
            return

        def capture(*_: object) -> None:
            raise _CallCaptured

        for denoiser in sampler.denoisers:
            denoiser.seen = capture
        try:
            with sampler, self.parts.attached(), _translated_errors(), suppress(_CallCaptured):
                self.pipe(**arguments)
        except DeviceError:
            raise
        except Exception as e:
            raise self._lacking(taken, next(iter(str(e).splitlines()), type(e).__name__)) from e

    def _lacking(self, names: list[str], detail: str = "") -> UnsupportedModelError:
        words = f"{self.adapter.name} needs {' and '.join(names)}, and dynx draws from prompts alone"
        return UnsupportedModelError(f"{words} ({detail})" if detail else words, hint=PIPELINES)

    @property
    def cacheable(self) -> bool:
        """Whether diffusers can cache the features of its network."""
        slot = self.adapter.slot
        return slot is not None and self.kernels is None and why_not(getattr(self.pipe, slot)) is None

    def plain_reason(self, request: Request) -> str | None:
        """Return why a request is drawn plain whatever the schedule, or None."""
        if not self.adapter.adaptive.value:
            return self.adapter.adaptive.reason
        return few_step(self.pipe, steps=request.steps, guidance=request.guidance)

    def initial_call(self, request: Request) -> InitialCall:
        """Return the pipeline's own grid for a request and the inputs of its first network call, without running the network.

        The pipeline is called until it reaches its network. Raises UnsupportedModelError where the noise is unknown.
        """
        if self.adapter.noise is None or self.adapter.slot is None:
            raise UnsupportedModelError(f"{self.adapter.name}: {self.adapter.adaptive.reason}")
        args, kwargs = self.first_call(request)
        grid, skipped = _own_grid(self.pipe.scheduler, self.adapter), 0
        if request.starts:
            at = _place(
                grid, float(torch.as_tensor(kwargs.get("timestep", args[1] if len(args) > 1 else 0)).flatten()[0])
            )
            grid, skipped = grid.pick(range(at, len(grid) + 1)), at
        return InitialCall(grid, noisy_input(args, kwargs), text_embedding(kwargs), skipped)

    def _skipped_steps(self, request: Request) -> tuple[int, int]:
        """Return how many steps the pipeline leaves out at the beginning of a request, and of how many."""
        if not request.starts:
            return 0, 0
        key = request.steps, request.starts[0].strength
        if key not in self._skipped:
            self._skipped[key] = self.initial_call(request).skipped
        return self._skipped[key], self.adapter.default_steps if request.steps is None else request.steps

    def first_call(self, request: Request, schedule: Schedule | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a request's first network call, without running the network.

        Raises UnsupportedModelError where there is no such call.
        """
        if self.adapter.slot is None:
            raise UnsupportedModelError(f"{self.adapter.name}: {self.adapter.adaptive.reason}")
        found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def capture(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append((args, kwargs))
            raise _CallCaptured

        skipped = (0, 0) if schedule is None else self._skipped_steps(request)
        sampler = Sampler(self.pipe, self.adapter, schedule, skipped=skipped)
        sampler.denoisers[0].seen = capture
        with sampler, self.parts.attached(), _translated_errors(), suppress(_CallCaptured):
            self.pipe(**self._arguments(request, schedule))
        if not found:
            raise UnsupportedModelError(f"{self.adapter.name} doesn't call its network")
        return found[0]

    @property
    def threads(self) -> int | None:
        """Threads of PyTorch during a run: few beside another runtime's; None leaves them."""
        return BESIDE_ANOTHER_RUNTIME if self.kernels is not None and self.kernels.own_threads else None

    def _call(
        self, sampler: Sampler, arguments: dict[str, Any], request: Request
    ) -> tuple[list[NDArray[np.float32]], list[bool]]:
        """Return the pipeline's pictures (H, W, 3) and which of them its safety checker blackened."""
        with torch_threads(self.threads), sampler, self.parts.attached(), _translated_errors():
            result = self.pipe(**arguments)
        images = getattr(result, "images", None)
        if images is None or len(images) != len(request):
            raise UnsupportedModelError(f"{self.adapter.name} makes something else than pictures")
        if isinstance(images, Tensor):
            images = images.detach().permute(0, 2, 3, 1).float().cpu().numpy()
        flagged = getattr(result, "nsfw_content_detected", None) or [False] * len(request)
        return [np.asarray(image, dtype=np.float32) for image in images], [bool(f) for f in flagged]

    def _start_arguments(self, request: Request, known: Any) -> dict[str, Any]:
        """Return the arguments for the pictures that a request starts from."""
        first = request.starts[0]
        strength = known["strength"].default if first.strength is None else first.strength
        steps = self.adapter.default_steps if request.steps is None else request.steps
        if int(steps * strength) < 1:
            raise InvalidInput(
                f"`strength` {strength:g} of {steps} steps leaves none", hint=f"at least {1 / steps:.2g}"
            )
        images, masks = [each.image for each in request.starts], [each.mask for each in request.starts]
        one = len(request) == 1
        made: dict[str, Any] = {"image": images[0] if one else images, "strength": strength}
        if masks[0] is not None:
            made["mask_image"] = masks[0] if one else masks
        return made

    def _arguments(self, request: Request, schedule: Schedule | None) -> dict[str, Any]:
        """Return the arguments of the pipeline's call. Raises InvalidInput for settings that it doesn't take."""
        known = inspect.signature(self.pipe.__call__).parameters
        count, one = len(request), len(request) == 1
        made: dict[str, Any] = dict(request.options)
        if self.adapter.prompted:
            if not request.prompts:
                raise InvalidInput(f"{self.adapter.name} draws from a prompt")
            made["prompt"] = request.prompts[0] if one else list(request.prompts)
        elif any(request.prompts):
            raise InvalidInput(f"{self.adapter.name} takes no prompt")
        else:
            made["batch_size"] = count
        if request.negative is not None:
            made["negative_prompt"] = request.negative if one else [request.negative] * count
        if request.guidance is not None:
            made["guidance_scale"] = request.guidance
        if request.size is not None and not (request.starts and "width" not in known):
            made["width"], made["height"] = request.size
        if request.controls and self.adapter.control is not None:
            pictures, scale = [each.image for each in request.controls], request.controls[0].scale
            made[self.adapter.control] = pictures[0] if one else pictures
            if scale is not None:
                made[SCALE] = scale
        steps = request.steps if schedule is None or request.starts else len(schedule.grid)
        if request.starts:
            made |= self._start_arguments(request, known)
        if steps is not None:
            made["num_inference_steps"] = steps
        generators = [torch.Generator().manual_seed(seed) for seed in request.seeds]
        made |= {"generator": generators[0] if one else generators, "output_type": "pt"}
        variable = any(p.kind is p.VAR_KEYWORD for p in known.values())
        if unknown := [name for name in made if name not in known and not (variable and name in request.options)]:
            raise InvalidInput(f"{self.adapter.name} can't be told {', '.join(unknown)}")
        return made


def _place(grid: Grid, timestep: float) -> int:
    """Return the step of a grid that the network gets this timestep at; some networks get a thousandth of it."""
    times = np.asarray(grid.timesteps)
    near = int(np.abs(times - timestep).argmin())
    if abs(times[near] - timestep) > 0.5 or (timestep <= 1 < times[near]):
        near = int(np.abs(times - 1000 * timestep).argmin())
    return near


def _picture(prompt: str, seed: int, pixels: NDArray[np.float32], flagged: bool, stats: ImageStats) -> Picture:
    """Make a picture of the pixels, or of an error where some aren't finite numbers."""
    bad = int((~np.isfinite(pixels)).any(-1).sum())
    if not bad:
        return Picture(prompt, seed, pixels, stats, flagged)
    share = "all" if bad == pixels.shape[0] * pixels.shape[1] else f"{bad:,}"
    return Picture(prompt, seed, None, stats, flagged, f"{share} of its pixels are not numbers")


def _own_grid(scheduler: Any, adapter: PipelineAdapter) -> Grid:
    """Return the grid to which the pipeline's own scheduler is set, each level once."""
    noise = adapter.noise
    if noise is None:
        raise ValueError("a grid without a known noise")
    timesteps = [float(t) for t in scheduler.timesteps]
    kept = [t for i, t in enumerate(timesteps) if t < min(timesteps[:i], default=np.inf)]  # some call twice at a level
    sigmas = [float(s) for s in getattr(scheduler, "sigmas", ())]
    if len(kept) == len(timesteps) == len(sigmas) - 1:  # exact, where the levels lie between timesteps
        *levels, final = (sigma / (noise.data or 1.0) for sigma in sigmas)
        grid = Grid(tuple(kept), (*levels, min(final, levels[-1] * MAX_LAST_SIGMA_RATIO)))
    else:
        final = 0.0 if noise.flow or scheduler.config.get("set_alpha_to_one", True) else float(noise.sigmas([0.0])[0])
        grid = noise.grid(kept, min(final, float(noise.sigmas(kept[-1:])[0]) * MAX_LAST_SIGMA_RATIO))
    if adapter.unit:
        return grid
    start = float(scheduler.init_noise_sigma) / ((noise.data or 1.0) * (1 + grid.sigmas[0] ** 2) ** 0.5)
    return replace(grid, scale=start if abs(start - 1) > 1e-6 else 1.0)


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Translate out-of-memory errors of pipelines to DeviceError."""
    try:
        yield
    except Exception as e:
        if is_out_of_memory(e):
            raise DeviceError("out of memory", hint="try a smaller `size`, or one picture at a time") from e
        raise
