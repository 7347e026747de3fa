"""Define the request to draw, and the plan that is decided before any weights are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dynx.runtime.plan import BackendSpec, Decisions, ModelRequest, Plan

if TYPE_CHECKING:
    from dynx.diffusion.control import Control
    from dynx.diffusion.editing import Start
    from dynx.runtime.decision import Decision

TASK = "draw"
BUNDLED = "steps.json"
"""File of a pipeline's folder that may hold an exported profile."""

DEFAULT_QUALITY = 0.95
"""Default SSIM to the full run of the same seed that is guaranteed."""

PICTURE_SHARE = 0.95
"""Share of pictures that reach the quality under the guarantee."""

ERROR_PROBABILITY = 0.05
"""Probability that the guarantee is wrong: 1 - confidence."""


@dataclass(frozen=True)
class ImageGeneratorRequest(ModelRequest):
    """Hold a request for an image generator: the model and its settings."""

    model: str = "emoji"
    quality: float = field(default=DEFAULT_QUALITY, kw_only=True)
    steps: int | None = field(default=None, kw_only=True)
    """A fixed number of steps, which overrides the profile."""
    guidance: float | None = field(default=None, kw_only=True)
    negative: str | None = field(default=None, kw_only=True)
    """Negative prompt."""
    size: tuple[int, int] | None = field(default=None, kw_only=True)
    """Width and height in pixels."""
    image: str | None = field(default=None, kw_only=True)
    """File of the picture that pictures start from; None for noise alone."""
    mask: str | None = field(default=None, kw_only=True)
    """File of the mask of what may change, white; None for all."""
    strength: float | None = field(default=None, kw_only=True)
    """How much of the noise is added to the picture, above 0 and at most 1; None for the pipeline's own."""
    control_image: str | None = field(default=None, kw_only=True)
    """File of the picture that controls what a pipeline with a ControlNet draws."""
    control_scale: float | None = field(default=None, kw_only=True)
    """How much it counts; None for the pipeline's own."""
    lora: tuple[str, ...] = field(default=(), kw_only=True)
    """LoRA adapters that are folded into the weights: files, each maybe with a weight after a colon ("tone.safetensors:0.5")."""


@dataclass(kw_only=True)
class ImageGeneratorDecisions(Decisions):
    """Hold the decided settings of an image generator, each with its reason."""

    adapters: Decision[str] | None = None
    guidance: Decision[float] | None = None
    steps: Decision[Any] | None = None
    cache: Decision[str] | None = None


@dataclass
class ImageGeneratorPlan(Plan[ImageGeneratorRequest, ImageGeneratorDecisions]):
    """Hold everything that is decided before a pipeline is loaded."""

    start: Start | None = None
    """What pictures start from; None for noise alone."""
    control: Control | None = None
    """What controls pictures; None for nothing."""

    @property
    def spec(self) -> BackendSpec:
        """The backend that computes the network, and its precision."""
        return BackendSpec(self.backend, self.dtype)

    @property
    def loaded_dtype(self) -> str:
        """The precision that the pipeline is loaded in: float32 on a processor, where only the network may use less."""
        return "float32" if self.device == "cpu" else self.dtype
