"""A profile's grid as arguments of a pipeline's own call, in one number of steps for all pictures: diffusers alone runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dynx.diffusion.plan import DEFAULT_QUALITY, PICTURE_SHARE
from dynx.diffusion.profile_data import from_profile
from dynx.diffusion.schedule import SOLVER_ORDERS
from dynx.errors import InvalidInput
from dynx.runtime.binomial import percent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

    from dynx.diffusion.profile_data import Fitted
    from dynx.runtime.profile import Profile


def fixed_steps(fitted: Fitted, quality: float, share: float = PICTURE_SHARE) -> tuple[int, float] | None:
    """Return the fewest steps in which `share` of calibration's pictures reached `quality`, and how many did; or None."""
    for k, steps in enumerate(fitted.schedules.levels):
        reached = [float((each.likeness[:, k] >= quality).mean()) for each in (fitted.choosing, fitted.certifying)]
        if min(reached) >= share:
            return steps, min(reached)
    return None


def as_arguments(profile: Profile, arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """Return Python lines that draw in a profile's fixed grid with diffusers alone; None where no number of steps is worth it.

    The lines choose the scheduler that computes what the profile's solver does. Timesteps are rounded to whole numbers, as
    diffusers does.
    """
    try:
        fitted = from_profile(profile.fitted, profile.measured, arrays)
        quality = float(profile.fitted.get("quality", DEFAULT_QUALITY))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, InvalidInput):
        return None
    if (found := fixed_steps(fitted, quality)) is None:
        return None
    steps, reached = found
    schedule = fitted.schedules.schedule(steps)
    if min(schedule.grid.timesteps) < 0:  # continuous levels, which diffusers' solver doesn't take
        return None
    flow = str(profile.fitted.get("scheduler", "")).startswith("FlowMatch")
    if flow:
        name, settings = "FlowMatchEulerDiscreteScheduler", "shift=1.0, use_dynamic_shifting=False"
        grid = f"sigmas={[round(float(s), 5) for s in schedule.grid.sigmas[:-1]]}"
    else:
        name = "DPMSolverMultistepScheduler"
        settings = f'algorithm_type="dpmsolver++", solver_order={SOLVER_ORDERS[schedule.solver]}'
        grid = f"timesteps={_whole(schedule.grid.timesteps)}"
    guidance = profile.fitted.get("guidance")
    size = profile.fitted.get("size")
    others = "" if guidance is None else f", guidance_scale={guidance:g}"
    others += "" if size is None else f", width={size[0]}, height={size[1]}"
    return (
        f"# Without dynx, in {steps} steps for every picture: {percent(round(reached, 3))} of the calibration's reached SSIM "
        f"{quality:g} in as many.\n"
        f"from diffusers import {name}\n"
        f"pipe.scheduler = {name}.from_config(pipe.scheduler.config, {settings})\n"
        f"pipe(prompt, {grid}{others})"
    )


def _whole(timesteps: tuple[float, ...]) -> list[int]:
    """Round timesteps to whole numbers that still fall."""
    rounded = np.rint(timesteps).astype(int).tolist()
    for i in range(1, len(rounded)):
        rounded[i] = min(rounded[i], rounded[i - 1] - 1)
    return [max(0, t) for t in rounded]
