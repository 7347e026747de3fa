"""What a run is told: a solver, a grid of noise levels, and what it may leave out; all of it plain numbers.

A noise level is written in two ways. The network is told a *timestep*; solvers count in *sigma*, the noise's share over the
picture's: x = α·x0 + σ·ε. Pipelines that predict noise keep α² + σ² = 1, and their sigma here is σ/α (0 … about 15), as
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
"""Their orders. Euler is DDIM without noise (Song et al. 2021); the others are DPM-Solver++ multistep (Lu et al. 2022)."""

WARMUP_STEPS = 4
MAX_SKIPPED_STEPS = 4
"""AdaptiveDiffusion's (Ye et al. 2024): steps always computed first, and most steps skipped in a row."""


MAX_FINAL_SIGMA = 0.1
"""Last sigma above which a run would end in noise that can be seen; authors' own schedules end at 0 … 0.03."""


@dataclass(frozen=True, eq=False)
class Noise:
    """How much noise the timesteps of a model mean."""

    levels: NDArray[np.float64] | None = field(repr=False)
    """(T,) rising sigma of each training timestep; None: flow matching, where sigma is the timestep's share of T."""
    steps: int = 1000  # T

    @property
    def flow(self) -> bool:
        """Whether it is flow matching."""
        return self.levels is None

    def sigmas(self, timesteps: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Of some timesteps (N,); between training timesteps linear, as diffusers has it."""
        import numpy as np

        t = np.asarray(timesteps, dtype=np.float64)
        return t / self.steps if self.levels is None else np.interp(t, np.arange(len(self.levels)), self.levels)

    def grid(self, timesteps: Sequence[float], final: float = 0.0, scale: float = 1.0) -> Grid:
        """Through these timesteps, down to a last sigma."""
        sigmas = (*(float(s) for s in self.sigmas(timesteps)), final)
        return Grid(tuple(float(t) for t in timesteps), sigmas, scale)

    def parts(self, sigma: float) -> tuple[float, float]:
        """α and σ."""
        if self.levels is None:
            return 1 - sigma, sigma
        alpha = 1 / math.sqrt(1 + sigma * sigma)
        return alpha, sigma * alpha

    def arc(self, sigma: float) -> float:
        """How far along its way a level is, so that equal parts of it are equal ways for a straight trajectory.

        x moves on the circle (α, σ) by that angle, or on the line of flow matching.
        """
        return sigma if self.levels is None else math.atan(sigma)


@dataclass(frozen=True)
class Grid:
    """The noise levels of N steps: what the network is told (N,), and where the steps lead (N+1,), usually down to 0."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    scale: float = 1.0
    """Of the first noise: some schedulers start a hair below one."""

    def __post_init__(self) -> None:
        """Raises InvalidInput unless both fall strictly and fit each other."""
        numbers = (*self.timesteps, *self.sigmas, self.scale)
        falls = all(a > b for row in (self.timesteps, self.sigmas) for a, b in pairwise(row))
        fits = bool(self.timesteps) and len(self.sigmas) == len(self.timesteps) + 1 and self.sigmas[-1] >= 0
        if not (
            all(math.isfinite(n) for n in numbers) and falls and fits and self.scale > 0 and min(self.timesteps) >= 0
        ):
            raise InvalidInput(f"not a grid of falling noise levels: timesteps {self.timesteps}, sigmas {self.sigmas}")

    def __len__(self) -> int:
        return len(self.timesteps)

    def pick(self, nodes: Sequence[int]) -> Grid:
        """The grid over some of its nodes 0 … N, rising; the last one is where it leads."""
        return Grid(tuple(self.timesteps[i] for i in nodes[:-1]), tuple(self.sigmas[i] for i in nodes), self.scale)

    def thinned(self, steps: int) -> Grid:
        """So many of its steps, evenly, from its first node to its last. Raises InvalidInput for more than it has."""
        if not 1 <= steps <= len(self):
            raise InvalidInput(f"{steps} steps can't be taken from {len(self)}")
        return self.pick([round(i * len(self) / steps) for i in range(steps + 1)])

    def to_json(self) -> dict[str, Any]:
        """For a profile."""
        return {"timesteps": list(self.timesteps), "sigmas": list(self.sigmas), "scale": self.scale}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Grid:
        """What `to_json` wrote. Raises KeyError, TypeError, ValueError or InvalidInput on anything else."""
        return cls(tuple(map(float, data["timesteps"])), tuple(map(float, data["sigmas"])), float(data["scale"]))


@dataclass(frozen=True)
class Schedule:
    """How to draw a picture."""

    solver: str
    grid: Grid
    skip: float = 0.0
    """δ: a step whose trajectory bends less than this is answered with the last prediction; 0 never."""
    cache: float = 0.0
    """Of a transformer that diffusers can cache: the first block's relative change below which the others are left out."""
    warmup: int = WARMUP_STEPS
    longest_skip: int = MAX_SKIPPED_STEPS
    guided_steps: int | None = None
    """Steps with classifier-free guidance, after which it's left out; None: all."""
    finish_after_steps: int | None = None
    """Steps after which the run lands on the clean picture it is heading for; None: it goes to the end."""

    def __post_init__(self) -> None:
        """Raises InvalidInput for what can't be run."""
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
        """For a profile; an infinite δ becomes null."""
        return {
            "solver": self.solver,
            "grid": self.grid.to_json(),
            "skip": self.skip if math.isfinite(self.skip) else None,
            "cache": self.cache,
            "warmup": self.warmup,
            "longest_skip": self.longest_skip,
            "guided": self.guided_steps,
            "land_after": self.finish_after_steps,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Schedule:
        """What `to_json` wrote. Raises KeyError, TypeError, ValueError or InvalidInput on anything else."""
        return cls(
            solver=str(data["solver"]),
            grid=Grid.from_json(data["grid"]),
            skip=math.inf if data["skip"] is None else float(data["skip"]),
            cache=float(data.get("cache", 0.0)),
            warmup=int(data["warmup"]),
            longest_skip=int(data["longest_skip"]),
            guided_steps=None if data["guided"] is None else int(data["guided"]),
            finish_after_steps=None if data["land_after"] is None else int(data["land_after"]),
        )
