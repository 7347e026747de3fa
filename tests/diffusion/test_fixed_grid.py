"""The lines that `calibrate --show` prints draw in diffusers what the profile's grid draws in dynx."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline

from dynx import shipped
from dynx.diffusion.engine import Engine
from dynx.diffusion.fixed_grid import as_arguments, fixed_steps
from dynx.diffusion.profile_data import from_profile
from dynx.diffusion.similarity import ssim
from dynx.diffusion.types import Request
from dynx.runtime.profile import read_arrays, unpack


def test_the_lines_draw_with_diffusers_alone() -> None:
    """The pictures are those of dynx in the same fixed grid, up to rounded timesteps."""
    folder = shipped.folder("emoji")
    assert folder is not None
    profile, blob = unpack((folder / "steps.json").read_bytes())
    arrays = read_arrays(blob or b"")
    lines = as_arguments(profile, arrays)
    assert lines is not None

    fitted = from_profile(profile.fitted, profile.measured, arrays)
    found = fixed_steps(fitted, 0.95)
    assert found is not None
    steps, share = found
    assert share >= 0.95

    pipe: Any = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    request = Request(("red heart",), (7,), guidance=2.5)
    want = Engine(pipe).draw(request, fitted.schedules.schedule(steps))[0].pixels

    *setting, call = lines.splitlines()
    assert call.startswith("pipe(prompt, timesteps=[")
    names: dict[str, Any] = {"pipe": pipe, "prompt": "red heart"}
    exec("\n".join(setting), names)  # noqa: S102 - as a reader would paste it
    names["options"] = {"generator": torch.Generator().manual_seed(7), "output_type": "np"}
    exec(f"got = {call[:-1]}, **options)", names)  # noqa: S102
    got = names["got"].images[0]

    assert want is not None
    assert ssim(got, want) > 0.97
