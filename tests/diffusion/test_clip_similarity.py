"""CLIP similarity by a vision tower that a pipeline carries: alike is alike, and without one there is no value."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.pipelines import stable_diffusion
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from dynx.bench.arms.drawing import PictureComparison, judge
from dynx.bench.measurements import Measurements, Sample
from dynx.diffusion.clip_similarity import vision_tower_of

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(3)]


def processor() -> Any:
    """For pictures of 16 pixels."""
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def encoder() -> Any:
    """A tower of random weights, as pipelines with image prompts carry it."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=8,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config).eval()


def checker() -> Any:
    """The same inside a safety checker."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(vision_config={**vision, "image_size": 16, "patch_size": 8}, projection_dim=8)
    return StableDiffusionSafetyChecker(config).eval()


@pytest.mark.parametrize(("place", "part"), [("image_encoder", encoder), ("safety_checker", checker)])
def test_a_tower_is_found_where_pipelines_have_it(place: str, part: Any) -> None:
    """Equal pictures have similarity 1, others less, the same both ways round."""
    tower = vision_tower_of(SimpleNamespace(feature_extractor=processor(), **{place: part()}))
    assert tower is not None
    same = tower.similarity(PICTURES[0], PICTURES[0].copy())
    other = tower.similarity(PICTURES[0], PICTURES[1])

    assert same == pytest.approx(1, abs=1e-5)
    assert -1 <= other < same
    assert other == pytest.approx(tower.similarity(PICTURES[1], PICTURES[0]), abs=1e-5)


def test_who_carries_none_has_none() -> None:
    """No tower, or no processor to feed it."""
    assert vision_tower_of(stable_diffusion()) is None
    assert vision_tower_of(SimpleNamespace(image_encoder=encoder(), feature_extractor=None)) is None


@pytest.mark.parametrize("alike", [None, lambda a, b: 0.25])
def test_bench_says_what_the_tower_says(alike: Any) -> None:
    """Each arm's worst for each pair, in its facts; null without a tower."""
    from dynx.bench.arms.drawing import Pair

    gallery = PictureComparison(alike=alike)
    pair = Pair("x", 1)
    prints = [
        gallery.add(arm, pair, SimpleNamespace(error=None, bytes8=lambda i=i: PICTURES[i]))  # type: ignore[arg-type]
        for i, arm in enumerate(("plain", "dynamic"))
    ]
    facts = {"calls": 1, "rows": 1}
    samples = {
        arm: [Sample(0, 0, 0, 1, 1.0, print_, facts)] for arm, print_ in zip(("plain", "dynamic"), prints, strict=True)
    }
    groups: Any = {"plain": "plain", "dynamic": "dynamic"}
    quality = judge(Measurements(groups, "plain", 1, 1, samples, {}, "rounds", 1.0), gallery)
    clip = quality["dynamic"].json()["clip"]

    assert clip is None if alike is None else clip["worst"] == 0.25  # type: ignore[call-overload, index]
    assert quality["plain"].json()["clip"] is None if alike is None else quality["plain"].json()["clip"]["p5"] == 1.0  # type: ignore[call-overload, index]
