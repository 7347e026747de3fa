"""Draw a picture for a prompt: choose plain execution, the profile's steps or a draft, and run the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynx.diffusion.schedule import Schedule
from dynx.diffusion.types import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.profile_data import Guarantee
    from dynx.diffusion.types import Picture, Step

DRAFT_STEPS = 6
"""Steps of a draft without a profile."""

DEFAULT_SOLVER = "dpm++2m"
"""Solver of drafts without a profile, and of static arms of the benchmark."""


class ImageGenerator:
    """Draw with a loaded pipeline, one picture at a time."""

    def __init__(self, assembly: LoadedImageGenerator) -> None:
        self.assembly = assembly

    @property
    def guarantee(self) -> Guarantee | None:
        """The guarantee of the pictures; None without a profile."""
        known = self.assembly.step_profile
        return known.guarantee if known else None

    def request(self, prompt: str, seed: int) -> Request:
        """Make the engine's request for one picture."""
        request = self.assembly.plan.request
        prompts = (prompt,) if self.assembly.engine.adapter.prompted else ()
        known = self.assembly.step_profile
        plain_steps = request.steps if known is None else None
        return Request(prompts, (seed,), request.negative, request.guidance, request.size, plain_steps)

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
        engine, known = self.assembly.engine, self.assembly.step_profile
        request = self.request(prompt, seed)
        if draft and engine.plain_reason(request) is None:
            schedule = known.draft if known else self._few(request)
            return engine.draw(request, schedule, callback=callback, stop=stop)[0]
        if known is None:
            return engine.draw(request, callback=callback, stop=stop)[0]
        controller = known.controller(engine, request)
        return engine.draw(request, controller.schedule, callback=callback, stop=stop, controller=controller)[0]

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
