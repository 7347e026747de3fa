"""Draw pictures for prompts: choose plain execution, the profile's steps or a draft, draw several in one call, run the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dynx.diffusion.profile_data import StepController
from dynx.diffusion.schedule import Schedule
from dynx.diffusion.types import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.profile_data import Guarantee
    from dynx.diffusion.types import Picture, Step

    Wanted = tuple[str, int]
    """The prompt and the seed of a picture."""

T = TypeVar("T")

DRAFT_STEPS = 6
"""Steps of a draft without a profile."""

DEFAULT_SOLVER = "dpm++2m"
"""Solver of drafts without a profile, and of static arms of the benchmark."""


class ImageGenerator:
    """Draw with a loaded pipeline."""

    def __init__(self, assembly: LoadedImageGenerator) -> None:
        self.assembly = assembly
        self._spent = 0.0  # seconds of pictures, while a move to another backend is pending

    @property
    def guarantee(self) -> Guarantee | None:
        """The guarantee of the pictures; None without a profile."""
        known = self.assembly.step_profile
        return known.guarantee if known else None

    def request(self, prompt: str, seed: int) -> Request:
        """Make the engine's request for one picture."""
        return self._request([(prompt, seed)])

    def _request(self, wanted: Sequence[Wanted]) -> Request:
        request = self.assembly.plan.request
        prompts = tuple(prompt for prompt, _ in wanted) if self.assembly.engine.adapter.prompted else ()
        known = self.assembly.step_profile
        plain_steps = request.steps if known is None else None
        seeds = tuple(seed for _, seed in wanted)
        start = self.assembly.engine.start
        starts = () if start is None else (start,) * len(wanted)
        control = self.assembly.engine.control
        controls = () if control is None else (control,) * len(wanted)
        return Request(
            prompts,
            seeds,
            request.negative,
            request.guidance,
            request.size,
            plain_steps,
            starts=starts,
            controls=controls,
        )

    def draw(
        self,
        prompt: str,
        seed: int,
        *,
        draft: bool = False,
        callback: Callable[[Step], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Picture:
        """Draw one picture: in the profile's steps for this prompt and seed, plain without a profile, in few steps for a draft.

        `callback` is called after every step; once `stop` returns True the run finishes early, on the clean picture predicted
        by then. Raises InvalidInput for what the pipeline refuses, DeviceError when memory runs out.
        """

        def told(_: int, step: Step) -> None:
            if callback is not None:
                callback(step)

        drawn = list(self.draw_all([(prompt, seed)], draft=draft, callback=told, stop=stop))
        if not drawn:  # stopped before it began: the first step is made, and finished early
            drawn = list(enumerate(self._draw_together([(prompt, seed)], [0], draft, told, stop)[0]))
        return drawn[0][1]

    @property
    def together(self) -> int:
        """The most pictures that are drawn in one network call."""
        known = self.assembly.step_profile
        alone = known is not None and known.fitted.schedules.alone
        return 1 if alone else max(self.assembly.batches)

    def draw_all(
        self,
        wanted: Sequence[Wanted],
        *,
        draft: bool = False,
        callback: Callable[[int, Step], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[int, Picture]]:
        """Draw several pictures, some of them in one network call; yield the place in `wanted` and the picture, once it is drawn.

        In a call of several pictures those that need more steps than most are drawn again afterwards, so the order isn't that
        of `wanted`. `callback` gets the place and the step. After `stop` the pictures of the call under way come last, finished
        early. Errors as in `draw`.
        """
        again: list[tuple[int, int]] = []
        for numbers in self._split(range(len(wanted))):
            if stop is not None and stop():
                return
            drawn, needed = self._draw_together([wanted[i] for i in numbers], numbers, draft, callback, stop)
            stopped = stop is not None and stop()
            for i, picture, steps in zip(numbers, drawn, needed, strict=False):
                if steps is None or stopped:
                    yield i, picture
                else:
                    again.append((steps, i))
            if stopped:
                return
            self._move_over(sum(picture.stats.seconds for picture in drawn), len(wanted) - numbers[-1] - 1)
        again.sort()
        for group in self._split(again):
            schedule = self._schedule(group[-1][0])
            drawn = self._drawn([wanted[i] for _, i in group], schedule, [i for _, i in group], callback, stop)
            yield from zip((i for _, i in group), drawn, strict=False)
            if stop is not None and stop():
                return

    def _split(self, numbers: Sequence[T]) -> Iterator[Sequence[T]]:
        """Cut into what one network call takes."""
        size = self.together
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]

    def _schedule(self, steps: int) -> Schedule:
        known = self.assembly.step_profile
        if known is None:
            raise RuntimeError("no profile")
        schedules = known.fitted.schedules
        return schedules.schedule(steps) if steps in schedules.nodes else schedules.longest

    def _draw_together(
        self,
        wanted: Sequence[Wanted],
        numbers: Sequence[int],
        draft: bool,
        callback: Callable[[int, Step], None] | None,
        stop: Callable[[], bool] | None,
    ) -> tuple[list[Picture], list[int | None]]:
        """Draw pictures in one call; also return how many steps those need that have to be drawn again, None for the others."""
        engine, known = self.assembly.engine, self.assembly.step_profile
        nothing: list[int | None] = [None] * len(wanted)
        if draft and engine.plain_reason(self._request(wanted[:1])) is None:
            schedule = known.draft if known else self._few(self._request(wanted[:1]))
            return self._drawn(wanted, schedule, numbers, callback, stop), nothing
        if known is None:
            return self._drawn(wanted, None, numbers, callback, stop), nothing
        controller = StepController(known, redrawn=len(wanted) > 1)
        drawn = self._drawn(wanted, controller.schedule, numbers, callback, stop, controller)
        steps = controller.steps
        if steps is None or drawn[0].stats.plain:
            return drawn, nothing
        return drawn, [needs if needs > steps else None for needs in controller.needed[: len(wanted)]]

    def _drawn(
        self,
        wanted: Sequence[Wanted],
        schedule: Schedule | None,
        numbers: Sequence[int],
        callback: Callable[[int, Step], None] | None,
        stop: Callable[[], bool] | None,
        controller: StepController | None = None,
    ) -> list[Picture]:
        """Draw pictures in one call, filled up to a number that the backend is prepared for."""
        engine = self.assembly.engine
        count = len(wanted)
        if engine.kernels is not None:
            count = next((batch for batch in sorted(self.assembly.batches) if batch >= count), count)
        filled = [*wanted, *[wanted[-1]] * (count - len(wanted))]

        def told(step: Step) -> None:
            for place, number in enumerate(numbers):
                if callback is not None:
                    callback(number, step if step.clean is None else replace(step, clean=step.clean[place : place + 1]))

        drawn = engine.draw(
            self._request(filled),
            schedule,
            callback=told if callback is not None else None,
            stop=stop,
            controller=controller,
        )
        stats = drawn[0].stats.of_one()
        stats = replace(stats, seconds=stats.seconds * count / len(wanted), pictures=len(wanted))
        return [replace(picture, stats=stats) for picture in drawn[: len(wanted)]]

    def _move_over(self, seconds: float, ahead: int) -> None:
        """Turn to the backend that is faster in the long run once that pays, by the seconds spent and the pictures ahead."""
        assembly = self.assembly
        if assembly.pending is None:
            return
        self._spent += seconds
        if assembly.pending.pays(self._spent, ahead):
            from dynx.diffusion.setup import move_over

            move_over(assembly, f"it took over after {self._spent:.1f} s of pictures, which a start on it costs")

    def _few(self, request: Request) -> Schedule:
        """Return a schedule of a few steps of the pipeline's own grid."""
        grid = self.assembly.engine.initial_call(request).grid
        return Schedule(DEFAULT_SOLVER, grid.thinned(min(DRAFT_STEPS, len(grid))))

    def preview(self, clean: Tensor) -> NDArray[np.uint8] | None:
        """Return small pictures (B, h, w, 3) of clean latents by the profile's colour map, or a pixel pipeline's own pixels."""
        pixels = clean.detach().float().cpu()
        if pixels.dim() != 4:
            return None
        channels_last = pixels.permute(0, 2, 3, 1).numpy()
        if not self.assembly.engine.adapter.latent:
            return _bytes((channels_last + 1) / 2)
        known = self.assembly.step_profile
        if known is None or known.colours is None or len(known.colours) != channels_last.shape[-1] + 1:
            return None
        rgb = channels_last @ known.colours[:-1] + known.colours[-1]
        return _bytes(rgb)


def _bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    made: NDArray[np.uint8] = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    return made
