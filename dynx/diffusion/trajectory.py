"""Record reference trajectories of a pipeline on a fine grid, and measure how similar repeated runs of a seed are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dynx.diffusion.grid import mean_errors, step_errors
from dynx.diffusion.schedule import SOLVER_ORDERS, Schedule
from dynx.diffusion.similarity import compare, tails
from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynx.diffusion.engine import Engine
    from dynx.diffusion.sampler import StepState
    from dynx.diffusion.schedule import Grid, Noise
    from dynx.diffusion.similarity import Tails
    from dynx.diffusion.types import Picture, Request


@dataclass(frozen=True)
class Trajectory:
    """Hold the trajectories of B pictures over a grid of N steps, with latents of D numbers in the network's scaling."""

    grid: Grid
    noise: Noise
    latents: NDArray[np.float32]  # (N+1, B, D) at every node
    clean: NDArray[np.float32]  # (N, B, D) the pictures predicted there, after guidance

    def __len__(self) -> int:
        return int(self.latents.shape[1])

    def errors(self, solver: str) -> NDArray[np.float64]:
        """Return mean step errors (N+1, N+1, N+1) for `grid.plan`; a third-order solver is treated as second-order."""
        if solver not in SOLVER_ORDERS:
            raise InvalidInput(f"no solver {solver}", hint=f"solvers: {', '.join(SOLVER_ORDERS)}")
        parts = np.asarray([self.noise.parts(sigma) for sigma in self.grid.sigmas])
        order = min(SOLVER_ORDERS[solver], 2)
        return mean_errors(
            step_errors(parts[:, 0], parts[:, 1], self.latents[:, b], self.clean[:, b], order=order)
            for b in range(len(self))
        )


def record(engine: Engine, request: Request, grid: Grid, solver: str = "dpm++2m") -> tuple[list[Picture], Trajectory]:
    """Draw on a fine grid and record the trajectories. Raises InvalidInput for a plain run, or latents that aren't finite."""
    noise = engine.adapter.noise
    if noise is None or (reason := engine.plain_reason(request)):
        raise InvalidInput(f"no trajectory: {engine.adapter.adaptive.reason if noise is None else reason}")
    latents: list[NDArray[np.float32]] = []
    clean: list[NDArray[np.float32]] = []

    def keep(state: StepState) -> None:
        latents.append(state.latents.float().flatten(1).cpu().numpy())
        clean.append(state.clean.float().flatten(1).cpu().numpy())

    pictures = engine.draw(request, Schedule(solver, grid), controller=keep)
    stats = pictures[0].stats
    if stats.plain:
        raise InvalidInput(f"no trajectory: {'; '.join(stats.notes)}")
    (alpha, sigma), (alpha_end, sigma_end) = (noise.parts(level) for level in grid.sigmas[-2:])
    remains = sigma_end / sigma
    latents.append(remains * latents[-1] + (alpha_end - alpha * remains) * clean[-1])
    trajectory = Trajectory(grid, noise, np.stack(latents).astype(np.float32), np.stack(clean))
    if not (np.isfinite(trajectory.latents).all() and np.isfinite(trajectory.clean).all()):
        raise InvalidInput("its latents aren't finite numbers", hint="try `dtype` float32")
    return pictures, trajectory


def noise_floor(engine: Engine, request: Request, schedule: Schedule | None = None) -> Tails:
    """Return the SSIM between pictures drawn in a batch and one by one, an upper bound for any other run.

    Raises InvalidInput for fewer than two pictures.
    """
    if len(request) < 2:
        raise InvalidInput("the noise floor takes two pictures at least")
    together = engine.draw(request, schedule)
    values = []
    for i, one in enumerate(together):
        this = slice(i, i + 1)
        single = replace(request, prompts=request.prompts[this], seeds=request.seeds[this], starts=request.starts[this])
        alone = engine.draw(single, schedule)[0]
        if one.pixels is None or alone.pixels is None:
            raise InvalidInput(f"no noise floor: {one.error or alone.error}")
        values.append(compare(one.pixels, alone.pixels).ssim)
    return tails(values)
