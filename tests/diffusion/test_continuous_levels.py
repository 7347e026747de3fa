"""Noise levels that are functions of sigma (EDM, and Euler's continuous timesteps): schedules draw what diffusers draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from support import pipelines

from dynx.diffusion.editing import Start
from dynx.diffusion.engine import Engine
from dynx.diffusion.fixed_grid import as_arguments
from dynx.diffusion.pipelines import adapter_for, noise_of
from dynx.diffusion.schedule import Grid, Schedule
from dynx.diffusion.solver import Carry, clean_picture
from dynx.diffusion.types import Request
from dynx.runtime.profile import Profile, ProfileKey

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")

STEPS = 12

SCHEDULERS: dict[str, Callable[[], Any]] = {
    "edm euler": diffusers.EDMEulerScheduler,
    "edm euler, velocity": lambda: diffusers.EDMEulerScheduler(prediction_type="v_prediction", sigma_data=1.0),
    "edm dpm++": lambda: diffusers.EDMDPMSolverMultistepScheduler(solver_order=1),
    "continuous": lambda: diffusers.EulerDiscreteScheduler(
        timestep_type="continuous",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=120.0,
        use_karras_sigmas=True,
    ),
}


def pipe_of(name: str) -> Any:
    return pipelines.stable_diffusion_xl(SCHEDULERS[name]())


def by_diffusers(pipe: Any, asked: Request, **given: Any) -> np.ndarray:
    generator = [torch.Generator().manual_seed(seed) for seed in asked.seeds]
    found: np.ndarray = pipe(
        prompt=list(asked.prompts),
        generator=generator,
        output_type="np",
        num_inference_steps=STEPS,
        **asked.options,
        **given,
    ).images
    return found


@pytest.mark.parametrize("name", SCHEDULERS)
def test_plain_is_the_pipeline_bit_for_bit(name: str) -> None:
    """It's observed, and nothing else."""
    pipe, asked = pipe_of(name), pipelines.request("stable-diffusion-xl", steps=STEPS)

    assert np.array_equal(pipelines.pixels(Engine(pipe).draw(asked)), by_diffusers(pipe, asked))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_authors_grid_gives_the_authors_picture(name: str) -> None:
    """Noise, scaling of the data, prediction and the end of the loop are all understood."""
    pipe, asked = pipe_of(name), pipelines.request("stable-diffusion-xl", steps=STEPS)
    engine = Engine(pipe)
    assert engine.adapter.adaptive.value, engine.adapter.adaptive.reason

    drawn = engine.draw(asked, Schedule("euler", engine.initial_call(asked).grid))

    assert not drawn[0].stats.plain, drawn[0].stats.notes
    assert drawn[0].stats.calls == STEPS
    assert np.abs(pipelines.pixels(drawn) - by_diffusers(pipe, asked)).max() < 1e-3


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_run_that_ends_early_ends_in_the_clean_picture(name: str) -> None:
    """Stopped before its last step, whether plain or on a grid, it decodes the same estimate."""
    pipe, asked = pipe_of(name), pipelines.request("stable-diffusion-xl", steps=STEPS)
    engine = Engine(pipe)
    grid = engine.initial_call(asked).grid

    def stop_after(steps: int) -> Callable[[], bool]:
        seen: list[int] = []
        return lambda: seen.append(1) or len(seen) >= steps  # type: ignore[func-returns-value]

    plain = engine.draw(asked, stop=stop_after(8))
    dynamic = engine.draw(asked, Schedule("euler", grid), stop=stop_after(8))

    assert plain[0].stats.finished_early
    assert dynamic[0].stats.finished_early
    assert plain[0].stats.calls == dynamic[0].stats.calls == 8
    assert np.abs(pipelines.pixels(plain) - pipelines.pixels(dynamic)).max() < 1e-3


def test_pictures_to_start_from_are_scaled_too() -> None:
    """The latents of the picture get the noise that diffusers would add."""
    pipe = pipe_of("edm euler")
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    start = Start(image, None, 0.5, "it.png", "0")
    other = diffusers.StableDiffusionXLImg2ImgPipeline(**pipe.components, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    asked = Request(("a red cat",), (3,), steps=STEPS, starts=(start,))
    engine = Engine(other)
    engine.start = start

    plain = engine.draw(asked)
    drawn = engine.draw(asked, Schedule("euler", engine.initial_call(asked).grid))

    assert not drawn[0].stats.plain, drawn[0].stats.notes
    assert plain[0].stats.calls == drawn[0].stats.calls == STEPS // 2
    assert np.abs(pipelines.pixels(plain) - pipelines.pixels(drawn)).max() < 1e-3


def test_a_prediction_is_carried_along_a_straight_trajectory() -> None:
    """Of noise that stays the same: the clean picture is the same before and after."""
    noise = noise_of(diffusers.EDMEulerScheduler())
    assert noise is not None
    made = torch.Generator().manual_seed(0)
    clean, spread = (torch.randn(1, 4, 8, 8, generator=made) for _ in range(2))

    def at(sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        a, s = noise.parts(sigma)
        return a * clean + s * spread, -(a * spread - s * clean)

    (x, output), (there, wanted) = at(5.0), at(0.7)

    assert torch.allclose(clean_picture("negative_v", noise, output, x, 5.0), clean, atol=1e-5)
    assert torch.allclose(Carry("negative_v", noise)(output, x, 5.0, there, 0.7), wanted, atol=1e-4)


def test_levels_are_those_of_the_scheduler() -> None:
    """σ over the data's deviation, by the logarithm; and no lines for diffusers alone, which takes no such grid."""
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(STEPS)
    noise = noise_of(scheduler)

    assert noise is not None
    assert not noise.flow
    assert noise.sigmas([float(t) for t in scheduler.timesteps]) == pytest.approx(
        scheduler.sigmas[:-1].numpy() / 0.5, rel=1e-5
    )
    assert Grid((0.5, -1.5), (14.0, 0.005, 0.0)).timesteps[-1] == -1.5
    wrong = diffusers.EDMDPMSolverMultistepScheduler(prediction_type="sample")
    assert "predicts something" in adapter_for(pipelines.stable_diffusion_xl(wrong)).adaptive.reason
    key = ProfileKey(task="draw", model="0", companion=None, device="d", dtype="float32")
    empty: Any = {name: {} for name in ("versions", "device", "measured", "fitted", "evidence", "decision")}
    assert as_arguments(Profile(key, "m", "2026-01-01T00:00:00+00:00", **empty), {}) is None
