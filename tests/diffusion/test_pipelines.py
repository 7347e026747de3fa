"""What dynx knows of a pipeline from its parts."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
from support.pipelines import (
    ADAPTIVE,
    FEW_STEP,
    SCALED,
    consistency,
    flux,
    pipeline,
    stable_diffusion,
    stable_diffusion_3,
)

from dynx.diffusion.pipelines import adapter_for, few_step, noise_of

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")

KNOWN = {
    "stable-diffusion": ("unet", "epsilon", "batched", 50, 7.5, False),
    "stable-diffusion-xl": ("unet", "epsilon", "batched", 50, 5.0, False),
    "stable-diffusion-3": ("transformer", "flow_prediction", "batched", 28, 7.0, False),
    "pixart": ("transformer", "epsilon", "batched", 20, 4.5, False),
    "flux": ("transformer", "flow_prediction", "embedded", 28, 3.5, False),
    "ddpm": ("unet", "epsilon", "none", 1000, None, True),
    "ddim": ("unet", "epsilon", "none", 50, None, False),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_families_are_known_by_their_parts(name: str) -> None:
    """Network, prediction, guidance, and what its author would run."""
    adapter = adapter_for(pipeline(name))

    found = (
        adapter.slot,
        adapter.prediction,
        adapter.guidance,
        adapter.default_steps,
        adapter.default_guidance,
        adapter.random,
    )
    assert found == KNOWN[name]
    assert adapter.adaptive.value
    assert adapter.noise is not None
    assert adapter.noise.flow == (adapter.prediction == "flow_prediction")
    assert adapter.prompted == adapter.latent == (name not in ("ddpm", "ddim"))


def test_sizes_must_be_divisible_by_what_network_and_decoder_halve() -> None:
    """The tiny decoders halve once, patches and packing once more."""
    sides = {name: adapter_for(pipeline(name)).multiple for name in ADAPTIVE}

    assert sides == {
        "stable-diffusion": 2,
        "stable-diffusion-xl": 2,
        "stable-diffusion-3": 2,
        "pixart": 4,
        "flux": 4,
        "ddpm": 1,
        "ddim": 1,
    }


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(**SCALED),
        diffusers.DPMSolverMultistepScheduler(**SCALED),
        diffusers.EulerDiscreteScheduler(**SCALED),
        diffusers.DDIMScheduler(**SCALED, rescale_betas_zero_snr=True),
    ],
    ids=["ddim", "dpm", "euler", "zero-snr"],
)
def test_noise_is_what_the_scheduler_adds(scheduler: Any) -> None:
    """α and σ of every timestep are those that diffusers itself mixes picture and noise with."""
    import torch

    noise = noise_of(scheduler)
    assert noise is not None
    reference = diffusers.DDPMScheduler(
        **SCALED,
        rescale_betas_zero_snr="zero" in str(scheduler.config) and bool(scheduler.config.get("rescale_betas_zero_snr")),
    )
    for t in (0, 10, 500, 999):
        alpha, sigma = noise.parts(float(noise.sigmas([t])[0]))
        mixed = reference.add_noise(torch.tensor([[3.0]]), torch.tensor([[5.0]]), torch.tensor([t]))
        assert float(mixed) == pytest.approx(3 * alpha + 5 * sigma, abs=2e-3)


def test_flow_is_a_share_of_time() -> None:
    """Sigma is the timestep over their number, whatever the shift."""
    noise = noise_of(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))

    assert noise is not None
    assert noise.sigmas([1000.0, 250.0]) == pytest.approx(np.asarray([1.0, 0.25]))
    assert noise_of(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)) is None


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="epsilon"),
        diffusers.DDIMScheduler(prediction_type="score"),
    ],
    ids=["continuous", "score"],
)
def test_what_is_unknown_stays_plain_with_a_reason(scheduler: Any) -> None:
    """One line that says what."""
    pipe = pipeline("stable-diffusion")
    own, pipe.scheduler = pipe.scheduler, scheduler
    try:
        adaptive = adapter_for(pipe).adaptive
    finally:
        pipe.scheduler = own

    assert not adaptive.value
    assert "know" in adaptive.reason
    continuous = scheduler.config.get("timestep_type") == "continuous"
    assert ("continuous noise levels" in adaptive.reason) == continuous
    assert "\n" not in adaptive.reason


def test_pipelines_of_other_kinds_stay_plain() -> None:
    """Those that edit a picture by other means than a strength, or run two networks."""
    pipe = pipeline("stable-diffusion")
    other = diffusers.StableDiffusionInstructPix2PixPipeline(**pipe.components, requires_safety_checker=False)
    assert (
        adapter_for(other).adaptive.reason == "it can start from an image, and dynx knows loops that start from noise"
    )
    assert adapter_for(
        diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    ).starts

    two = stable_diffusion()
    two.transformer = two.unet
    adapter = adapter_for(two)
    assert (adapter.slot, adapter.slots) == (None, ("unet", "transformer"))
    assert adapter.adaptive.reason == "it runs 2 networks (unet, transformer), and dynx knows schedules of one"


@pytest.mark.parametrize("name", FEW_STEP)
def test_few_step_models_are_found(name: str) -> None:
    """By scheduler, or by how they're run."""
    assert few_step(pipeline(name), steps=4, guidance=0.0)


@pytest.mark.parametrize(
    ("name", "few"),
    [
        ("stabilityai/sd-turbo", True),
        ("ByteDance/SDXL-Lightning", True),
        ("black-forest-labs/FLUX.1-schnell", True),
        ("some/model-4step", True),
        ("some/model-4-steps", True),
        ("SimianLuo/LCM_Dreamshaper", True),
        ("/home/turbo/models/emoji", False),
        ("stable-diffusion-v1-5", False),
        ("some/model-50-steps", False),
        ("model-14steps", False),
        ("emoji", False),
    ],
)
def test_names_that_say_few_steps(name: str, few: bool) -> None:
    """The last part of a model's name, not the folders it's in."""
    pipe = stable_diffusion()
    pipe.register_to_config(_name_or_path=name)

    assert bool(few_step(pipe)) == few


def test_few_step_models_by_their_config() -> None:
    """A distilled transformer, a network that is told the guidance, few planned steps."""
    pipe = stable_diffusion_3()
    assert few_step(pipe) is None
    assert "6 steps are few" in str(few_step(pipe, steps=6))
    pipe.register_to_config(is_distilled=True)
    assert "distilled" in str(few_step(pipe))
    swapped = consistency()
    swapped.scheduler = diffusers.DDIMScheduler(**SCALED)
    assert "takes the guidance scale" in str(few_step(swapped))
    assert few_step(flux()) is None
