"""Follow a given grid with a multistep solver, and convert network predictions to clean pictures.

The solver is diffusers' DPM-Solver++ with a given grid: nothing is spaced, shifted or rounded, and the arguments of
`set_timesteps` are ignored. First order is Euler, which is DDIM without noise. Latents are in the network's scaling at every
step, so pipelines that never scale them (pixel DDPM, DDIM) work too.

Letters: x the latents, x0 the clean picture, ε the noise; x = α·x0 + σ·ε.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from dynx.diffusion.schedule import SOLVER_ORDERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.diffusion.pipelines import PipelineAdapter, Prediction
    from dynx.diffusion.schedule import Grid, Noise

MIN_ALPHA = 1e-6
"""Smallest α used as a divisor; at pure noise α is 0."""


class Solver(DPMSolverMultistepScheduler):  # type: ignore[misc]  # diffusers is untyped
    """Follow the grid of one run as a diffusers scheduler; `solver_for` makes it."""

    grid: Grid
    clip: float | None = None
    """Bound ± of clean pictures, where the pipeline's own scheduler clips them; None for no clipping."""
    keeps_noise: bool = False
    """Whether clipping a picture keeps the predicted noise, as in DDIM; otherwise the noise is recomputed from x."""
    negated: bool = False
    """Whether the network predicts the velocity with the other sign."""
    data: float = 1.0
    """Standard deviation of the data, by which the pipeline's latents differ from the network's."""
    skipped: tuple[int, int] = (0, 0)
    """Steps that a pipeline leaves out at the beginning, by its strength, and of how many; the grid is without them."""

    def set_timesteps(
        self,
        num_inference_steps: Any = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: Any = None,
        **_: Any,
    ) -> None:
        """Set the grid's timesteps and ignore the arguments, whose names pipelines check for."""
        grid = self.grid
        whole = not self.config.use_flow_sigmas and all(t.is_integer() for t in grid.timesteps)
        left_out, total = self.skipped
        times = [*[grid.timesteps[0]] * left_out, *grid.timesteps]
        times += [grid.timesteps[-1]] * (total - len(times))  # some pipelines count them to know how many to leave out
        self.timesteps = torch.tensor(times, dtype=torch.int64 if whole else torch.float32, device=device)
        self.sigmas = torch.tensor(grid.sigmas, dtype=torch.float32)
        self.num_inference_steps = len(grid)
        self.model_outputs: list[Any] = [None] * self.config.solver_order
        self.lower_order_nums = 0
        self._step_index = self._begin_index = 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at the grid's first level: the pipeline has cut off as many steps as were put before it."""
        if self.skipped[1]:
            self.timesteps = self.timesteps[self.skipped[0] : self.skipped[0] + len(self.grid)]
        self._step_index = self._begin_index = 0

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return a picture with the noise of a level of the grid, in the network's scaling."""
        known = self.timesteps.to(device=timesteps.device, dtype=torch.float64)
        at = (known - float(timesteps.flatten()[0])).abs().argmin()
        alpha, spread = self._sigma_to_alpha_sigma_t(self.sigmas[int(at)])
        made: Tensor = alpha * original_samples / self.data + spread * noise
        return made.to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Return the same as `add_noise`, as pipelines with flow matching call it."""
        return self.add_noise(sample, noise, timestep)

    def replan(self, timesteps: Sequence[float], sigmas: Sequence[float]) -> None:
        """Replace the levels after the next step: timesteps (m,), sigmas (m+1,); m is at most the number of steps left.

        The loop holds views of the timesteps' storage, so they are written in place.
        """
        here = self._step_index + 1
        self.timesteps[here : here + len(timesteps)] = torch.tensor(timesteps).to(self.timesteps)
        self.timesteps = self.timesteps[: here + len(timesteps)]
        self.sigmas = torch.cat([self.sigmas[:here], torch.tensor(sigmas, dtype=torch.float32)])

    def convert_model_output(self, model_output: Tensor, *args: Any, sample: Tensor | None = None, **_: Any) -> Tensor:
        """Return the clean picture, clipped where the pipeline's own scheduler clips."""
        clean: Tensor = super().convert_model_output(model_output, *args, sample=sample)
        if self.clip is None:
            return clean
        clipped = clean.clamp(-self.clip, self.clip)
        self._clipped_off = clipped - clean
        return clipped

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        **_: Any,
    ) -> Any:
        """Make one step, in float32 whatever the network's precision."""
        output, latents = without_variance(model_output, sample).float(), sample.float()
        output = -output if self.negated else output
        alpha, spread = self._sigma_to_alpha_sigma_t(self.sigmas[self._step_index])
        _, spread_next = self._sigma_to_alpha_sigma_t(self.sigmas[self._step_index + 1])
        after = super().step(output, timestep, latents, return_dict=False)[0]
        if self.clip is not None and self.keeps_noise:
            after = after + spread_next / spread * alpha * self._clipped_off
        return as_step(after.to(sample.dtype), self.model_outputs[-1].to(sample.dtype), return_dict)


def solver_for(
    name: str, grid: Grid, adapter: PipelineAdapter, scheduler: Any, skipped: tuple[int, int] = (0, 0)
) -> Solver:
    """Make the solver that replaces the pipeline's `scheduler`. Raises ValueError for unknown noise.

    `skipped` is the number of steps that the pipeline leaves out at the beginning, by its strength, and of how many.
    """
    if adapter.noise is None or adapter.prediction is None:
        raise ValueError(f"no solver can stand in for {adapter.scheduler}")
    config = scheduler.config
    thresholds = {
        key: config[key]
        for key in ("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
        if key in config and not adapter.latent
    }
    solver = Solver(
        num_train_timesteps=adapter.noise.steps,
        solver_order=SOLVER_ORDERS[name],
        prediction_type="v_prediction" if adapter.prediction == "negative_v" else adapter.prediction,
        algorithm_type="dpmsolver++",
        use_flow_sigmas=adapter.noise.flow,
        final_sigmas_type="zero",
        **thresholds,
    )
    solver.grid, solver.skipped = grid, skipped
    solver.negated, solver.data = adapter.prediction == "negative_v", adapter.noise.data or 1.0
    solver.init_noise_sigma = grid.scale
    if config.get("clip_sample") and not adapter.latent:
        solver.clip = float(config.get("clip_sample_range") or 1.0)
        solver.keeps_noise = "DDIM" in adapter.scheduler
    return solver


def as_step(after: Tensor, clean: Tensor, return_dict: bool) -> Any:
    """Return the output of a scheduler's `step`."""
    if not return_dict:
        return after, clean
    from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

    return DDIMSchedulerOutput(prev_sample=after, pred_original_sample=clean)


def without_variance(output: Tensor, sample: Tensor) -> Tensor:
    """Return the prediction without the variance that some networks predict in as many further channels."""
    if output.dim() == sample.dim() and output.dim() > 1 and output.shape[1] == 2 * sample.shape[1]:
        return output[:, : sample.shape[1]]
    return output


def latents_of(noisy: Tensor, like: Tensor) -> Tensor:
    """Return a network's noisy input without the mask and the masked picture that inpainting adds as further channels."""
    extra = noisy.dim() == like.dim() == 4 and noisy.shape[1] > like.shape[1]
    return noisy[:, : like.shape[1]] if extra else noisy


def clean_picture(kind: Prediction, noise: Noise, output: Tensor, x: Tensor, sigma: float) -> Tensor:
    """Return the clean picture x0 from a prediction at x; all (B, …)."""
    alpha, spread = noise.parts(sigma)
    output, latents = without_variance(output, x).float(), x.float()
    if kind == "sample":
        clean = output
    elif kind == "flow_prediction":
        clean = latents - sigma * output
    elif kind in ("v_prediction", "negative_v"):
        clean = alpha * latents - spread * (output if kind == "v_prediction" else -output)
    else:
        clean = (latents - spread * output) / max(alpha, MIN_ALPHA)
    return clean.to(x.dtype)


class Carry:
    """Convert a prediction at x to another point of a straight trajectory, on which the noise is constant as in Euler's step."""

    def __init__(self, kind: Prediction, noise: Noise) -> None:
        self.kind, self.noise = kind, noise

    def __call__(self, output: Tensor, x: Tensor, sigma: float, there: Tensor, sigma_there: float) -> Tensor:
        """Return the prediction at `there` for the noise predicted at x. Noise and flow predictions are unchanged."""
        if self.kind in ("epsilon", "flow_prediction"):
            return output
        x, there = latents_of(x, output), latents_of(there, output)
        alpha, spread = self.noise.parts(sigma)
        alpha_there, spread_there = self.noise.parts(sigma_there)
        sign = -1 if self.kind == "negative_v" else 1
        velocity = self.kind in ("v_prediction", "negative_v")
        if velocity:
            noise = alpha * sign * output.float() + spread * x.float()
        else:
            noise = (x.float() - alpha * output.float()) / max(spread, MIN_ALPHA)
        clean = (there.float() - spread_there * noise) / max(alpha_there, MIN_ALPHA)
        made = sign * (alpha_there * noise - spread_there * clean) if velocity else clean
        return made.to(output.dtype)
