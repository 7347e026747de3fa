"""A pipeline once it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from dynx.diffusion.engine import Engine
    from dynx.diffusion.plan import ImageGeneratorDecisions, ImageGeneratorPlan, ImageGeneratorRequest
    from dynx.diffusion.profile_data import StepProfile
    from dynx.diffusion.types import Request


@dataclass
class LoadedImageGenerator:
    """A plan carried out."""

    plan: ImageGeneratorPlan
    engine: Engine
    step_profile: StepProfile | None
    """What the profile says of this pipeline's steps, where it may be used."""
    racing: bool = False
    """Whether a calibration is to choose the backend."""

    @property
    def why_plain(self) -> str:
        """Why the steps are what they are."""
        return "" if self.decisions.steps is None else self.decisions.steps.reason

    @property
    def decisions(self) -> ImageGeneratorDecisions:
        """Every setting with its value and the reason."""
        return self.plan.decisions


def sample_of(request: ImageGeneratorRequest, engine: Engine) -> Request:
    """A request of the shapes that a request's pictures have."""
    from dynx.diffusion.types import Request

    return Request(("",) if engine.adapter.prompted else (), (0,), request.negative, request.guidance, request.size)


def check_size(size: tuple[int, int], engine: Engine) -> None:
    """Raises InvalidInput for a width or height that the network can't take."""
    multiple = engine.adapter.multiple
    if any(side % multiple or side < multiple for side in size):
        near = [max(multiple, round(side / multiple) * multiple) for side in size]
        raise InvalidInput(
            f"{size[0]}x{size[1]}: width and height must be multiples of {multiple}", hint=f"`size` {near[0]}x{near[1]}"
        )
