"""What a caller asks of a pipeline that draws and what is decided before its weights are read: data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dynx.runtime.plan import BackendSpec, Decisions, ModelRequest, Plan

if TYPE_CHECKING:
    from dynx.runtime.decision import Decision

TASK = "draw"
BUNDLED = "steps.json"
"""The file of a pipeline's folder that may hold a profile, as exporting one writes it."""

DEFAULT_QUALITY = 0.95
"""SSIM to the full run of the same seed that is promised unless asked otherwise."""

PICTURE_SHARE = 0.95
"""Share of pictures that reach it."""

ERROR_PROBABILITY = 0.05
"""1 - confidence of the promise."""


@dataclass(frozen=True)
class ImageGeneratorRequest(ModelRequest):
    """What a caller asks of a pipeline that draws."""

    model: str = "emoji"
    quality: float = field(default=DEFAULT_QUALITY, kw_only=True)
    steps: int | None = field(default=None, kw_only=True)
    """A fixed number of steps, whatever a profile says."""
    guidance: float | None = field(default=None, kw_only=True)
    negative: str | None = field(default=None, kw_only=True)
    """What the pictures should not be like."""
    size: tuple[int, int] | None = field(default=None, kw_only=True)
    """Width and height in pixels."""


@dataclass(kw_only=True)
class ImageGeneratorDecisions(Decisions):
    """The settings of a pipeline, as decided."""

    adapters: Decision[str] | None = None
    guidance: Decision[float] | None = None
    steps: Decision[Any] | None = None
    cache: Decision[str] | None = None


@dataclass
class ImageGeneratorPlan(Plan[ImageGeneratorRequest, ImageGeneratorDecisions]):
    """Everything that is decided before a pipeline is loaded."""

    @property
    def spec(self) -> BackendSpec:
        """What computes the network, and in what precision."""
        return BackendSpec(self.backend, self.dtype)

    @property
    def loaded_dtype(self) -> str:
        """The precision that the pipeline is loaded in: on a processor float32, and only its network may be computed in less."""
        return "float32" if self.device == "cpu" else self.dtype
