"""Hold a loaded pipeline with its plan and profile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from dynx.diffusion.control import Control
    from dynx.diffusion.editing import Start
    from dynx.diffusion.engine import Engine
    from dynx.diffusion.plan import ImageGeneratorDecisions, ImageGeneratorPlan, ImageGeneratorRequest
    from dynx.diffusion.profile_data import CertifiedSteps, StepProfile
    from dynx.diffusion.runs import Choice, Pending
    from dynx.diffusion.types import Request
    from dynx.runtime.plan import BackendSpec


@dataclass
class LoadedImageGenerator:
    """Hold a plan, the engine that carries it out, and the profile of its steps."""

    plan: ImageGeneratorPlan
    engine: Engine
    step_profile: StepProfile | None
    """The certified steps of this pipeline; None where no profile applies."""
    racing: bool = False
    """Whether a calibration chooses the backend."""
    starts: tuple[Start, ...] = ()
    """What a calibration's pictures start from, in turns; () for what the request names, or noise alone."""
    controls: tuple[Control, ...] = ()
    """What controls a calibration's pictures, in turns; () for what the request names, or nothing."""
    batches: tuple[int, ...] = (1,)
    """Numbers of pictures that a network call may take; on PyTorch any number up to the last."""
    run: Choice | None = None
    """What the run draws with by its length; None where nothing was measured."""
    in_full: CertifiedSteps | None = None
    """The certified steps of the profile's own precision; None where there are none in others."""
    further: dict[BackendSpec, CertifiedSteps] = field(default_factory=dict)
    """The certified steps of backends in reduced precision, among which a run chooses too."""
    pending: Pending | None = None
    """What a run of unknown length moves over to once that pays."""

    @property
    def why_plain(self) -> str:
        """The reason for the number of steps."""
        return "" if self.decisions.steps is None else self.decisions.steps.reason

    @property
    def decisions(self) -> ImageGeneratorDecisions:
        """Every setting with its value and the reason for it."""
        return self.plan.decisions


def sample_of(request: ImageGeneratorRequest, engine: Engine, pictures: int = 1) -> Request:
    """Make a request for `pictures` of the requested size, for the shapes of its tensors."""
    from dynx.diffusion.types import Request

    prompts = ("",) * pictures if engine.adapter.prompted else ()
    starts = (engine.start,) * pictures if engine.start is not None else ()
    controls = (engine.control,) * pictures if engine.control is not None else ()
    seeds = tuple(range(pictures))
    steps = request.steps if starts else None  # of which a strength leaves some
    return Request(
        prompts, seeds, request.negative, request.guidance, request.size, steps, starts=starts, controls=controls
    )


def check_size(size: tuple[int, int], engine: Engine) -> None:
    """Raise InvalidInput for a width or height that the network can't take."""
    multiple = engine.adapter.multiple
    if any(side % multiple or side < multiple for side in size):
        near = [max(multiple, round(side / multiple) * multiple) for side in size]
        raise InvalidInput(
            f"{size[0]}x{size[1]}: width and height must be multiples of {multiple}", hint=f"`size` {near[0]}x{near[1]}"
        )
