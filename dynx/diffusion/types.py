"""What goes into the engine and what comes out: a request, steps while they happen, pictures with a receipt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from dynx.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Request:
    """Pictures to draw together, one for each seed; a picture doesn't depend on the others but for rounding."""

    prompts: tuple[str, ...]
    """One for each picture; () where the pipeline takes none."""
    seeds: tuple[int, ...]
    negative: str | None = None
    guidance: float | None = None
    """None: the pipeline's own."""
    size: tuple[int, int] | None = None
    """Width and height in pixels."""
    steps: int | None = None
    """Of plain execution; None: the pipeline's own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the pipeline's call."""

    def __post_init__(self) -> None:
        """Raises InvalidInput for a request of nothing, or prompts that don't match the seeds."""
        if not self.seeds or (self.prompts and len(self.prompts) != len(self.seeds)):
            raise InvalidInput(f"{len(self.prompts)} prompts and {len(self.seeds)} seeds don't go together")
        if self.steps is not None and self.steps < 1:
            raise InvalidInput(f"{self.steps} steps draw nothing")

    def __len__(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True)
class Step:
    """One step of the loop is done. The steps after landing are not told."""

    index: int  # from 1
    total: int  # as planned now
    computed: bool  # False: answered with what the network said before, or cached
    guided: bool  # False: guidance was left out
    calls: int  # of the network so far
    clean: Tensor | None
    """The picture it is heading for, in the pipeline's latents (B, …), for previews; None where it can't be told."""
    cached: bool = False  # only the network's first block ran


@dataclass(frozen=True)
class ImageStats:
    """What the pictures of one request cost together."""

    calls: int
    """Times the network really ran."""
    rows: int
    """Batch rows that went through it: a guided picture takes two in a call."""
    planned: int
    """Steps of the grid; a run that was stopped did fewer."""
    run: int
    """Steps of which the network ran."""
    skipped: int
    """Steps answered with an earlier prediction."""
    unguided: int
    """Of those run, without classifier-free guidance although it was asked for."""
    seconds: float
    solver: str
    """"euler", "dpm++2m" … , or the class of the pipeline's own scheduler."""
    schedule: Schedule | None
    """None: plain."""
    timesteps: tuple[float, ...]
    """That the network was told at the steps run, in order."""
    cached: int = 0
    """Steps of which only the network's first block ran; they are neither run nor skipped."""
    finished_early: bool = False
    """Stopped early, on the clean picture it was heading for."""
    notes: tuple[str, ...] = ()
    """Why something that was asked for was not done, one clause each."""

    @property
    def plain(self) -> bool:
        """Whether the pipeline ran as its author made it."""
        return self.schedule is None

    def json(self) -> dict[str, Any]:
        """For a document or the picture's metadata."""
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
        }


@dataclass(frozen=True)
class Picture:
    """One picture, or the reason why there is none; `receipt` is that of its whole request."""

    prompt: str
    seed: int
    pixels: NDArray[np.float32] | None
    """(H, W, 3) in 0 … 1, as the pipeline made it."""
    stats: ImageStats
    flagged: bool = False
    """The pipeline's safety checker blackened it."""
    error: str | None = None
    """None exactly where there are pixels."""

    def bytes8(self) -> NDArray[np.uint8]:
        """(H, W, 3) of 0 … 255, rounded as diffusers rounds. Raises InvalidInput where there is no picture."""
        if self.pixels is None:
            raise InvalidInput(f"no picture: {self.error}")
        rounded: NDArray[np.float32] = (self.pixels * 255).round()
        return rounded.astype("uint8")
