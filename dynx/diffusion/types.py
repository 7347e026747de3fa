"""Define the engine's input and output: a request, events for the steps, pictures with stats."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from dynx.diffusion.control import Control
    from dynx.diffusion.editing import Start
    from dynx.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Request:
    """Request pictures to draw in one batch, one for each seed; pictures are independent up to rounding."""

    prompts: tuple[str, ...]
    """One prompt for each picture; () for a pipeline without prompts."""
    seeds: tuple[int, ...]
    negative: str | None = None
    guidance: float | None = None
    """Guidance scale; None for the pipeline's own."""
    size: tuple[int, int] | None = None
    """Width and height in pixels."""
    steps: int | None = None
    """Steps of plain execution; None for the pipeline's own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the pipeline's call."""
    starts: tuple[Start, ...] = ()
    """What each picture starts from, all of one size and strength; () for noise alone."""
    controls: tuple[Control, ...] = ()
    """What controls each picture, all of one size and scale; () for a pipeline without a ControlNet."""

    def __post_init__(self) -> None:
        """Raise InvalidInput for an empty request, or prompts that don't match the seeds."""
        if not self.seeds or (self.prompts and len(self.prompts) != len(self.seeds)):
            raise InvalidInput(f"{len(self.prompts)} prompts and {len(self.seeds)} seeds don't go together")
        if self.starts and len(self.starts) != len(self.seeds):
            raise InvalidInput(
                f"{len(self.starts)} pictures to start from and {len(self.seeds)} seeds don't go together"
            )
        if self.controls and len(self.controls) != len(self.seeds):
            raise InvalidInput(f"{len(self.controls)} control pictures and {len(self.seeds)} seeds don't go together")
        if self.steps is not None and self.steps < 1:
            raise InvalidInput(f"{self.steps} steps draw nothing")

    def __len__(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True)
class Step:
    """Report one finished step of the loop; the idle steps after an early finish aren't reported."""

    index: int  # from 1
    total: int  # as planned now
    computed: bool  # False: an earlier prediction was reused, or the step was cached
    guided: bool  # False: guidance was left out
    calls: int  # of the network so far
    clean: Tensor | None
    """The predicted clean picture in the pipeline's latents (B, …), for previews; None where it is unknown."""
    cached: bool = False  # only the network's first block ran


@dataclass(frozen=True)
class ImageStats:
    """Hold what the pictures of one request cost together."""

    calls: int
    """Number of times the network ran."""
    rows: int
    """Batch rows that the network ran for; a guided picture takes two in a call."""
    planned: int
    """Steps of the grid; a stopped run made fewer."""
    run: int
    """Steps in which the network ran."""
    skipped: int
    """Steps that reused an earlier prediction."""
    unguided: int
    """Steps run without classifier-free guidance although the request has it."""
    seconds: float
    solver: str
    """"euler", "dpm++2m" … , or the class of the pipeline's own scheduler."""
    schedule: Schedule | None
    """The schedule that was followed; None for plain execution."""
    timesteps: tuple[float, ...]
    """Timesteps passed to the network at the steps run, in order."""
    cached: int = 0
    """Steps in which only the network's first block ran; they count neither as run nor as skipped."""
    finished_early: bool = False
    """Whether the run finished early, on the clean picture predicted by then."""
    notes: tuple[str, ...] = ()
    """Reasons why requested settings weren't applied, one clause each."""
    pictures: int = 1
    """Pictures that shared the network calls."""
    backend: str = ""
    """What computed the network, in words; empty for PyTorch as the pipeline was loaded."""

    def of_one(self) -> ImageStats:
        """Return one picture's share of the rows and of the time; calls and steps are those that it took part in."""
        n = self.pictures
        return replace(self, rows=self.rows // n, seconds=self.seconds / n)

    @property
    def plain(self) -> bool:
        """Whether the pipeline ran unchanged."""
        return self.schedule is None

    def json(self) -> dict[str, Any]:
        """Return the JSON form for a document or the picture's metadata."""
        return {
            "calls": self.calls,
            "rows": self.rows,
            "steps": {
                "planned": self.planned,
                "run": self.run,
                "skipped": self.skipped,
                "cached": self.cached,
                "unguided": self.unguided,
            },
            "seconds": self.seconds,
            "solver": self.solver,
            "timesteps": list(self.timesteps),
            "schedule": self.schedule.to_json() if self.schedule else None,
            "landed": self.finished_early,
            "notes": list(self.notes),
            "together": self.pictures,
        }


@dataclass(frozen=True)
class Picture:
    """Hold one picture, or the reason why there is none; `stats` are those of its whole request."""

    prompt: str
    seed: int
    pixels: NDArray[np.float32] | None
    """(H, W, 3) in 0 … 1, as the pipeline made it."""
    stats: ImageStats
    flagged: bool = False
    """Whether the pipeline's safety checker blackened the picture."""
    error: str | None = None
    """Why there are no pixels; None if there are."""

    def bytes8(self) -> NDArray[np.uint8]:
        """Return the pixels (H, W, 3) as 0 … 255, rounded as in diffusers. Raises InvalidInput if there is no picture."""
        if self.pixels is None:
            raise InvalidInput(f"no picture: {self.error}")
        rounded: NDArray[np.float32] = (self.pixels * 255).round()
        return rounded.astype("uint8")
