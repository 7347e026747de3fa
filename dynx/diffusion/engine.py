"""A request in, pictures out, each with no more network calls than its schedule asks for.

The pipeline's own call does the work: texts, first noise, loop, decoder and safety checker are its own. Plain execution is that
call as its author made it, bit for bit, and only counted. What can't be drawn by a schedule is drawn plain, and the receipt says
why. Pipelines don't give the loop away before they end, so steps are told to `watch` while they happen.
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
from dynx.diffusion.denoiser import noisy_input
from dynx.diffusion.pipelines import few_step, needs, pictures, recognise
from dynx.diffusion.sampler import Mismatch, Sampler
from dynx.diffusion.schedule import Grid
from dynx.diffusion.types import Picture, Receipt, Step
from dynx.errors import DeviceError, InvalidInput, UnsupportedModelError
from dynx.runtime.loading import PIPELINES
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from dynx.diffusion.pipelines import Family
    from dynx.diffusion.sampler import Pilot
    from dynx.diffusion.schedule import Schedule
    from dynx.diffusion.types import Request
    from dynx.runtime.backends.network import NetworkBackend

EMBEDDINGS = ("encoder_hidden_states", "encoder_hidden_states_t5", "prompt_embeds", "context")
"""What networks call the text that they're given."""


@dataclass(frozen=True)
class Course:
    """Where a pipeline's own run begins and which way it goes."""

    grid: Grid
    """Its author's, for the request's steps, size and guidance."""
    latents: Tensor
    """(R, …) the first that the network is given; R is twice the pictures under guidance."""
    embedding: Tensor | None
    """(R, …) the text that the network is given; None where there's none."""


STANDING = 0.999
"""Some schedulers end with a step that leads nowhere; a grid must fall."""


class _Enough(Exception):  # noqa: N818 - not an error
    """Leaves a pipeline's call; never leaves `course`."""


class Engine:
    """Draws with a loaded diffusers pipeline; one request at a time. `clock` in seconds."""

    def __init__(
        self,
        pipe: Any,
        family: Family | None = None,
        *,
        kernels: NetworkBackend | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.pipe = pipe
        self.family = family or recognise(pipe)
        self.kernels = kernels
        """What computes its one network; None: PyTorch, as the pipeline was loaded."""
        self._clock = clock

    @property
    def reference(self) -> Engine:
        """The same pipeline as it was loaded, which pictures are compared with."""
        return self if self.kernels is None else Engine(self.pipe, self.family, clock=self._clock)

    def draw(
        self,
        request: Request,
        schedule: Schedule | None = None,
        *,
        watch: Callable[[Step], None] | None = None,
        stop: Callable[[], bool] | None = None,
        pilot: Pilot | None = None,
    ) -> list[Picture]:
        """The pictures of a request, by a schedule or plain.

        `watch` hears of every step. `stop` is asked after each; once it says so the pictures are those that the run was heading
        for then. `pilot` may change the rest of the grid (see `sampler.Look`). What these raise passes through, and the
        pipeline is whole again. Raises InvalidInput for what the pipeline refuses or can't be told, DeviceError when memory runs
        out.
        """
        arguments = self._arguments(request, schedule)
        notes: list[str] = []
        if schedule is not None and (reason := self.plain_reason(request)):
            schedule, pilot = None, None
            notes.append(f"plain: {reason}")
            arguments = self._arguments(request, None)
        started = self._clock()
        passed = self.kernels.passed if self.kernels else 0
        sampler = Sampler(self.pipe, self.family, schedule, watch=watch, stop=stop, pilot=pilot, kernels=self.kernels)
        spent = [sampler]
        try:
            images, flagged = self._call(sampler, arguments, request)
        except Mismatch as e:
            notes.append(f"plain: {e}")
            sampler = Sampler(self.pipe, self.family, watch=watch, stop=stop, kernels=self.kernels)
            spent.append(sampler)
            images, flagged = self._call(sampler, self._arguments(request, None), request)
        if not sampler.denoisers:
            notes.append("its network calls can't be counted")
        if self.kernels and (left := self.kernels.passed - passed):
            notes.append(f"{left} network calls of another shape than was prepared for ran on PyTorch")
        receipt = Receipt(
            calls=sum(s.calls for s in spent),
            rows=sum(s.rows for s in spent),
            planned=sampler.planned,
            run=sampler.run,
            skipped=sampler.skipped,
            unguided=sampler.unguided,
            cached=sampler.cached,
            seconds=self._clock() - started,
            solver=sampler.schedule.solver if sampler.schedule else self.family.scheduler,
            schedule=sampler.schedule,
            timesteps=sampler.timesteps,
            landed=sampler.landed,
            notes=(*notes, *sampler.notes),
        )
        prompts = request.prompts or ("",) * len(request)
        return [_picture(*each, receipt) for each in zip(prompts, request.seeds, images, flagged, strict=True)]

    def check(self, request: Request) -> None:
        """Raise UnsupportedModelError where a pipeline needs more than a prompt: a picture to start from, a mask, a label.

        One that takes pictures is called, and left at the door of its network. Raises InvalidInput for what it can't be told.
        """
        call = inspect.signature(self.pipe.__call__).parameters
        needed, taken = needs(call), pictures(call)
        if needed:
            raise self._lacking(needed)
        arguments = self._arguments(request, None)
        sampler = Sampler(self.pipe, self.family)
        if not taken or not sampler.denoisers:
            return

        def look(*_: object) -> None:
            raise _Enough

        for denoiser in sampler.denoisers:
            denoiser.seen = look
        try:
            with sampler, _told(), suppress(_Enough):
                self.pipe(**arguments)
        except DeviceError:
            raise
        except Exception as e:
            raise self._lacking(taken, next(iter(str(e).splitlines()), type(e).__name__)) from e

    def _lacking(self, names: list[str], told: str = "") -> UnsupportedModelError:
        words = f"{self.family.name} needs {' and '.join(names)}, and dynx draws from prompts alone"
        return UnsupportedModelError(f"{words} ({told})" if told else words, hint=PIPELINES)

    @property
    def cacheable(self) -> bool:
        """Whether diffusers can cache its network's features."""
        slot = self.family.slot
        return slot is not None and self.kernels is None and why_not(getattr(self.pipe, slot)) is None

    def plain_reason(self, request: Request) -> str | None:
        """Why a request had better be drawn plain whatever the schedule, or None."""
        if not self.family.adaptive.value:
            return self.family.adaptive.reason
        return few_step(self.pipe, steps=request.steps, guidance=request.guidance)

    def course(self, request: Request) -> Course:
        """The author's own grid for a request, and what the network is first given; the network itself doesn't run.

        The pipeline is called, and left at the door of its network. Raises UnsupportedModelError where the noise is unknown.
        """
        if self.family.noise is None or self.family.slot is None:
            raise UnsupportedModelError(f"{self.family.name}: {self.family.adaptive.reason}")
        args, kwargs = self.first_call(request)
        text = next((kwargs[name] for name in EMBEDDINGS if isinstance(kwargs.get(name), Tensor)), None)
        return Course(_own_grid(self.pipe.scheduler, self.family), noisy_input(args, kwargs), text)

    def first_call(self, request: Request, schedule: Schedule | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments that a request's first call gives to the one network, which doesn't run.

        Raises UnsupportedModelError where there is no such call.
        """
        if self.family.slot is None:
            raise UnsupportedModelError(f"{self.family.name}: {self.family.adaptive.reason}")
        found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append((args, kwargs))
            raise _Enough

        sampler = Sampler(self.pipe, self.family, schedule)
        sampler.denoisers[0].seen = look
        with sampler, _told(), suppress(_Enough):
            self.pipe(**self._arguments(request, schedule))
        if not found:
            raise UnsupportedModelError(f"{self.family.name} doesn't call its network")
        return found[0]

    def _call(
        self, sampler: Sampler, arguments: dict[str, Any], request: Request
    ) -> tuple[list[NDArray[np.float32]], list[bool]]:
        """The pipeline's pictures (H, W, 3), and which of them its safety checker took."""
        with sampler, _told():
            result = self.pipe(**arguments)
        images = getattr(result, "images", None)
        if images is None or len(images) != len(request):
            raise UnsupportedModelError(f"{self.family.name} makes something else than pictures")
        if isinstance(images, Tensor):
            images = images.detach().permute(0, 2, 3, 1).float().cpu().numpy()
        flagged = getattr(result, "nsfw_content_detected", None) or [False] * len(request)
        return [np.asarray(image, dtype=np.float32) for image in images], [bool(f) for f in flagged]

    def _arguments(self, request: Request, schedule: Schedule | None) -> dict[str, Any]:
        """For the pipeline's call; what it can't be told is a InvalidInput."""
        known = inspect.signature(self.pipe.__call__).parameters
        count, one = len(request), len(request) == 1
        made: dict[str, Any] = dict(request.options)
        if self.family.prompted:
            if not request.prompts:
                raise InvalidInput(f"{self.family.name} draws from a prompt")
            made["prompt"] = request.prompts[0] if one else list(request.prompts)
        elif any(request.prompts):
            raise InvalidInput(f"{self.family.name} takes no prompt")
        else:
            made["batch_size"] = count
        if request.negative is not None:
            made["negative_prompt"] = request.negative if one else [request.negative] * count
        if request.guidance is not None:
            made["guidance_scale"] = request.guidance
        if request.size is not None:
            made["width"], made["height"] = request.size
        steps = request.steps if schedule is None else len(schedule.grid)
        if steps is not None:
            made["num_inference_steps"] = steps
        generators = [torch.Generator().manual_seed(seed) for seed in request.seeds]
        made |= {"generator": generators[0] if one else generators, "output_type": "pt"}
        variable = any(p.kind is p.VAR_KEYWORD for p in known.values())
        if unknown := [name for name in made if name not in known and not (variable and name in request.options)]:
            raise InvalidInput(f"{self.family.name} can't be told {', '.join(unknown)}")
        return made


def _picture(prompt: str, seed: int, pixels: NDArray[np.float32], flagged: bool, receipt: Receipt) -> Picture:
    """With the pixels, unless they aren't numbers."""
    bad = int((~np.isfinite(pixels)).any(-1).sum())
    if not bad:
        return Picture(prompt, seed, pixels, receipt, flagged)
    share = "all" if bad == pixels.shape[0] * pixels.shape[1] else f"{bad:,}"
    return Picture(prompt, seed, None, receipt, flagged, f"{share} of its pixels are not numbers")


def _own_grid(scheduler: Any, family: Family) -> Grid:
    """The grid that the author's scheduler has just been set to, each level once."""
    noise = family.noise
    if noise is None:
        raise ValueError("a grid without a known noise")
    timesteps = [float(t) for t in scheduler.timesteps]
    kept = [t for i, t in enumerate(timesteps) if t < min(timesteps[:i], default=np.inf)]  # some call twice at a level
    sigmas = [float(s) for s in getattr(scheduler, "sigmas", ())]
    if len(kept) == len(timesteps) == len(sigmas) - 1:  # exact, where the levels lie between timesteps
        *levels, final = sigmas
        grid = Grid(tuple(kept), (*levels, min(final, levels[-1] * STANDING)))
    else:
        final = 0.0 if noise.flow or scheduler.config.get("set_alpha_to_one", True) else float(noise.sigmas([0.0])[0])
        grid = noise.grid(kept, min(final, float(noise.sigmas(kept[-1:])[0]) * STANDING))
    if family.unit:
        return grid
    start = float(scheduler.init_noise_sigma) / (1 + grid.sigmas[0] ** 2) ** 0.5
    return replace(grid, scale=start if abs(start - 1) > 1e-6 else 1.0)


@contextmanager
def _told() -> Iterator[None]:
    """What pipelines raise, in dynx's terms."""
    try:
        yield
    except Exception as e:
        if is_out_of_memory(e):
            raise DeviceError("out of memory", hint="try a smaller `size`, or one picture at a time") from e
        raise
