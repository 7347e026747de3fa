"""Pipelines of two stages: SDXL's refiner starts from a picture as others do; two denoisers in one loop stay plain."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from support import pipelines

from dynx.diffusion.editing import Start
from dynx.diffusion.engine import Engine
from dynx.diffusion.pipelines import adapter_for
from dynx.diffusion.schedule import Schedule
from dynx.diffusion.types import Request

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")

STEPS = 12


def refiner() -> Any:
    """SDXL's second stage: one text encoder, and an aesthetic score among what the network is told."""
    torch.manual_seed(9)
    unet = pipelines._unet(
        cross_attention_dim=pipelines.WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=pipelines.WIDTH + 5 * 4,
    )
    made = diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=pipelines._vae(4),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=pipelines._clip(projected=True),
        tokenizer_2=pipelines.tokenizer(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**pipelines.SCALED, timestep_spacing="leading", steps_offset=1),
        requires_aesthetics_score=True,
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def test_a_refiner_is_adaptive() -> None:
    """Plain is diffusers' own bit for bit, and the author's grid gives the author's picture."""
    pipe = refiner()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    start = Start(image, None, 0.5, "base.png", "0")
    asked = Request(("a red cat",), (3,), steps=STEPS, starts=(start,))
    engine = Engine(pipe)
    engine.start = start
    theirs = pipe(
        prompt="a red cat",
        image=image,
        strength=0.5,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images

    plain = engine.draw(asked)
    drawn = engine.draw(asked, Schedule("euler", engine.initial_call(asked).grid))

    assert engine.adapter.adaptive.value, engine.adapter.adaptive.reason
    assert np.array_equal(pipelines.pixels(plain), theirs)
    assert not drawn[0].stats.plain, drawn[0].stats.notes
    assert drawn[0].stats.calls == STEPS // 2
    assert np.abs(pipelines.pixels(drawn) - theirs).max() < 5e-4


def test_two_experts_in_one_loop_say_why_they_are_plain() -> None:
    """As Wan 2.2 has them, one for high and one for low noise."""

    def call(prompt: str, num_inference_steps: int = 50, guidance_scale: float = 5.0) -> None:
        """Nothing."""

    network = SimpleNamespace(config={})
    pipe = SimpleNamespace(
        __call__=call,
        transformer=network,
        transformer_2=network,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        config={},
    )

    adaptive = adapter_for(pipe).adaptive

    assert not adaptive.value
    assert adaptive.reason == "it runs 2 networks (transformer, transformer_2), and dynx knows schedules of one"
