"""Define a schedule: a solver, a grid of noise levels, and what may be left out; all of it plain numbers.

A noise level has two notations. The network takes a *timestep*; solvers use *sigma*, the ratio of noise to picture in
x = α·x0 + σ·ε. Pipelines that predict noise keep α² + σ² = 1, and their sigma here is σ/α (0 … about 15), as
in k-diffusion and ComfyUI. Flow matching keeps α + σ = 1, and its sigma is σ itself (0 … 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

SOLVER_ORDERS = {"euler": 1, "dpm++2m": 2, "dpm++3m": 3}
"""Orders of the solvers: Euler is DDIM without noise (Song et al. 2021), the others DPM-Solver++ multistep (Lu et al. 2022)."""

WARMUP_STEPS = 4
MAX_SKIPPED_STEPS = 4
"""Steps that are always computed first, and most consecutive skipped steps, both from AdaptiveDiffusion (Ye et al. 2024)."""

MAX_FINAL_SIGMA = 0.1
"""Largest last sigma without visible noise in the picture; pipelines' own schedules end at 0 … 0.03."""


@dataclass(frozen=True, eq=False)
class Noise:
    """Map the timesteps of a model to noise levels."""

    levels: NDArray[np.float64] | None = field(repr=False)
    """(T,) rising sigma of each training timestep; None for flow matching, where sigma is timestep / T."""
    steps: int = 1000  # T
    data: float | None = None
    """Standard deviation of the data where timesteps are ln(σ)/4 (Karras et al. 2022); None where they count training steps.

    Latents enter the network divided by it, as does σ here, which makes them those of a variance-preserving model.
    """

    @property
    def flow(self) -> bool:
        """Whether the model uses flow matching."""
        return self.levels is None and self.data is None

    def sigmas(self, timesteps: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sigmas (N,) of timesteps, linear between training timesteps as in diffusers."""
        import numpy as np

        t = np.asarray(timesteps, dtype=np.float64)
        if self.data is not None:
            return np.asarray(np.exp(4 * t) / self.data)
        return t / self.steps if self.levels is None else np.interp(t, np.arange(len(self.levels)), self.levels)

    def grid(self, timesteps: Sequence[float], final: float = 0.0, scale: float = 1.0) -> Grid:
        """Make the grid of these timesteps that ends at the sigma `final`."""
        sigmas = (*(float(s) for s in self.sigmas(timesteps)), final)
        return Grid(tuple(float(t) for t in timesteps), sigmas, scale)

    def parts(self, sigma: float) -> tuple[float, float]:
        """Return α and σ of x = α·x0 + σ·ε at a noise level."""
        if self.flow:
            return 1 - sigma, sigma
        alpha = 1 / math.sqrt(1 + sigma * sigma)
        return alpha, sigma * alpha

    def arc(self, sigma: float) -> float:
        """Return the arc length of a noise level, in which a straight trajectory moves at constant speed.

        It is the angle of x on the circle (α, σ), or the position on the line of flow matching.
        """
        return sigma if self.flow else math.atan(sigma)


@dataclass(frozen=True)
class Grid:
    """Hold the noise levels of N steps: timesteps (N,) for the network and sigmas (N+1,), usually down to 0."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    scale: float = 1.0
    """Factor of the initial noise; some schedulers start slightly below 1."""

    def __post_init__(self) -> None:
        """Raise InvalidInput unless both fall strictly and fit each other."""
        numbers = (*self.timesteps, *self.sigmas, self.scale)
        falls = all(a > b for row in (self.timesteps, self.sigmas) for a, b in pairwise(row))
        fits = bool(self.timesteps) and len(self.sigmas) == len(self.timesteps) + 1 and self.sigmas[-1] >= 0
        if not (all(math.isfinite(n) for n in numbers) and falls and fits and self.scale > 0):
            raise InvalidInput(f"not a grid of falling noise levels: timesteps {self.timesteps}, sigmas {self.sigmas}")

    def __len__(self) -> int:
        return len(self.timesteps)

    def pick(self, nodes: Sequence[int]) -> Grid:
        """Return the grid over some of its nodes 0 … N, rising; the last node is the end of the last step."""
        return Grid(tuple(self.timesteps[i] for i in nodes[:-1]), tuple(self.sigmas[i] for i in nodes), self.scale)

    def thinned(self, steps: int) -> Grid:
        """Return a grid of `steps` evenly chosen steps, from the first node to the last. Raises InvalidInput for too many."""
        if not 1 <= steps <= len(self):
            raise InvalidInput(f"{steps} steps can't be taken from {len(self)}")
        return self.pick([round(i * len(self) / steps) for i in range(steps + 1)])

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form for a profile."""
        return {"timesteps": list(self.timesteps), "sigmas": list(self.sigmas), "scale": self.scale}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Grid:
        """Read what `to_json` wrote. Raises KeyError, TypeError, ValueError or InvalidInput on anything else."""
        return cls(tuple(map(float, data["timesteps"])), tuple(map(float, data["sigmas"])), float(data["scale"]))


@dataclass(frozen=True)
class Schedule:
    """Hold how a picture is drawn: solver, grid, skipping, caching and guidance interval."""

    solver: str
    grid: Grid
    skip: float = 0.0
    """Threshold δ: a step where the trajectory bends less reuses the last prediction; 0 disables skipping."""
    cache: float = 0.0
    """The feature cache's number, a threshold or every how many steps all blocks run, by its kind; 0 disables caching."""
    cache_kind: str = "first-block"
    """The kind of feature cache (see `caching`)."""
    magnitude_ratios: tuple[float, ...] = ()
    """For the magnitude cache, the expected change of the blocks' residual at each step."""
    warmup: int = WARMUP_STEPS
    longest_skip: int = MAX_SKIPPED_STEPS
    guided_steps: int | None = None
    """Guidance interval: number of steps, from the first, with classifier-free guidance; None for all."""
    finish_after_steps: int | None = None
    """Steps after which the run finishes early, on the clean picture predicted by then; None runs to the end."""

    def __post_init__(self) -> None:
        """Raise InvalidInput for a schedule that can't be run."""
        if self.solver not in SOLVER_ORDERS:
            raise InvalidInput(f"no solver {self.solver}", hint=f"solvers: {', '.join(SOLVER_ORDERS)}")
        counts = (self.warmup >= 1, self.longest_skip >= 1, self.guided_steps is None or self.guided_steps >= 1)
        if not (
            self.skip >= 0
            and self.cache >= 0
            and all(counts)
            and (self.finish_after_steps is None or self.finish_after_steps >= 1)
        ):
            raise InvalidInput(f"a schedule of {self}")
        if self.grid.sigmas[-1] > MAX_FINAL_SIGMA:
            raise InvalidInput(f"a grid that ends at sigma {self.grid.sigmas[-1]:.3g} leaves noise in the picture")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form for a profile; an infinite δ becomes null."""
        return {
            "solver": self.solver,
            "grid": self.grid.to_json(),
            "skip": self.skip if math.isfinite(self.skip) else None,
            "cache": self.cache,
            "cache_kind": self.cache_kind,
            "warmup": self.warmup,
            "longest_skip": self.longest_skip,
            "guided": self.guided_steps,
            "land_after": self.finish_after_steps,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Schedule:
        """Read what `to_json` wrote. Raises KeyError, TypeError, ValueError or InvalidInput on anything else."""
        return cls(
            solver=str(data["solver"]),
            grid=Grid.from_json(data["grid"]),
            skip=math.inf if data["skip"] is None else float(data["skip"]),
            cache=float(data.get("cache", 0.0)),
            cache_kind=str(data.get("cache_kind", "first-block")),
            warmup=int(data["warmup"]),
            longest_skip=int(data["longest_skip"]),
            guided_steps=None if data["guided"] is None else int(data["guided"]),
            finish_after_steps=None if data["land_after"] is None else int(data["land_after"]),
        )
