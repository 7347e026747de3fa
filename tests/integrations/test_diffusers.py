"""An attached pipeline draws what `dynx draw` draws, with its own call, or runs its own steps and says why."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from support import pipelines

import dynx
from dynx import shipped
from dynx.errors import InvalidInput, NoProfileError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("alone")

PROMPT = "red heart"
GUIDANCE = 2.5


def load() -> Any:
    """The shipped pipeline, as diffusers loads it."""
    pipe = DiffusionPipeline.from_pretrained(shipped.folder("emoji"), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def plain() -> Any:
    """One that nothing is attached to."""
    return load()


@pytest.fixture
def pipe() -> Any:
    """One with dynx attached."""
    return dynx.attach(load())


def draw(pipe: Any, seed: int = 7, **options: Any) -> Any:
    """A picture of a seed."""
    options = {"guidance_scale": GUIDANCE, "output_type": "np"} | options
    return pipe(PROMPT, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("seed", [3, 7])
def test_the_picture_is_that_of_dynx_draw(pipe: Any, seed: int) -> None:
    """Bit for bit, in as many steps, in the pipeline's own class of output."""
    out = draw(pipe, seed)
    want = dynx.load_image_generator("emoji", threads=torch.get_num_threads()).draw(PROMPT, seed)

    assert type(out) is StableDiffusionPipelineOutput
    assert np.array_equal(out.images[0], want.pixels)
    assert pipe.dynx.stats.reason is None
    assert pipe.dynx.stats.image.timesteps == want.stats.timesteps
    assert pipe.dynx.stats.image.run < 50
    assert str(pipe.dynx.guarantee).startswith("SSIM to the full run at least 0.95")


def test_callbacks_and_outputs_are_the_pipelines_own(pipe: Any) -> None:
    """A callback is called after every step, may end the run, and other kinds of output come out as ever."""
    steps: list[int] = []

    def count(_: Any, index: int, __: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        steps.append(index)
        assert set(kwargs) == {"latents"}
        return kwargs

    images, flagged = draw(pipe, output_type="pil", return_dict=False, callback_on_step_end=count)
    assert (images[0].size, flagged) == ((64, 64), None)
    assert steps == list(range(pipe.dynx.stats.image.run))

    def end(pipe: Any, _: int, __: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True
        return kwargs

    draw(pipe, callback_on_step_end=end)
    assert pipe.dynx.stats.image.run == 1


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "guidance": ({"guidance_scale": 7.5}, "the profile was measured with guidance 2.5, not guidance 7.5"),
    "steps": ({"num_inference_steps": 12}, "12 steps are asked for, and the profile is about 50"),
    "eta": ({"eta": 0.5, "num_inference_steps": 4}, "eta is given"),
    "several": (
        {"num_images_per_prompt": 2, "callback_on_step_end": lambda *given: given[-1]},
        "a callback expects the pictures of a call together",
    ),
    "negative": ({"negative_prompt": "blue"}, "the profile was measured with no negative prompt, not the negative"),
    "size": ({"width": 32, "height": 32}, "the profile was measured with the pipeline's own size, not size 32x32"),
    "latents": ({"latents": None, "num_inference_steps": 4}, "latents is given"),
    "cutoff": ({"callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.5)}, "SDCFGCutoffCallback changes"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_isnt_understood_runs_the_pipelines_own_steps(plain: Any, pipe: Any, name: str) -> None:
    """The same picture as without dynx, with the reason."""
    given, reason = OTHERS[name]
    if name == "latents":
        channels, side = plain.unet.config.in_channels, plain.unet.config.sample_size
        given = {**given, "latents": torch.zeros(1, channels, side, side)}
    options = {"num_inference_steps": 50, **given}
    want, got = draw(plain, **options), draw(pipe, **options)
    assert np.array_equal(got.images, want.images)
    assert str(pipe.dynx.stats.reason).startswith(reason)


def test_several_pictures_of_a_call(plain: Any, pipe: Any) -> None:
    """With a generator for each, every picture is the one that it is alone; lists of prompts and of outputs keep their order."""
    prompts, seeds = ["red heart", "blue circle", "a star"], [3, 7, 9]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    out = pipe(prompts, generator=generators, guidance_scale=GUIDANCE, output_type="np")
    assert pipe.dynx.stats.reason is None
    assert [each.run for each in pipe.dynx.stats.images] == [len(each.timesteps) for each in pipe.dynx.stats.images]
    assert type(out) is StableDiffusionPipelineOutput
    drawer = dynx.load_image_generator("emoji", threads=torch.get_num_threads())
    for image, prompt, seed in zip(out.images, prompts, seeds, strict=True):
        assert np.array_equal(image, drawer.draw(prompt, seed).pixels)
    options = {"num_images_per_prompt": 2, "guidance_scale": GUIDANCE, "return_dict": False}
    images, flagged = pipe(prompts[:2], output_type="pil", **options)
    assert (len(images), flagged, len(pipe.dynx.stats.images)) == (4, None, 4)


def test_several_pictures_of_one_generator(plain: Any, pipe: Any) -> None:
    """They begin with the noise that the pipeline draws for all of them at once, and leave the generator where it does."""
    calls = {}
    for name, each in (("own", plain), ("attached", pipe)):
        generator = torch.Generator().manual_seed(11)
        out = each(
            PROMPT, num_images_per_prompt=3, generator=generator, guidance_scale=GUIDANCE, output_type="pt"
        ).images
        calls[name] = (out, generator.get_state())
    assert pipe.dynx.stats.reason is None
    assert torch.equal(calls["own"][1], calls["attached"][1])
    own, attached = calls["own"][0], calls["attached"][0]
    near = [[float((a - b).abs().mean()) for b in own] for a in attached]
    assert [row.index(min(row)) for row in near] == [0, 1, 2]
    torch.manual_seed(5)
    first = pipe([PROMPT] * 2, guidance_scale=GUIDANCE, output_type="pt").images
    torch.manual_seed(5)
    assert torch.equal(pipe(PROMPT, guidance_scale=GUIDANCE, output_type="pt").images[0], first[0])
    with pytest.raises(ValueError, match="list of generators"):
        pipe(PROMPT, num_images_per_prompt=3, generator=[torch.Generator()] * 2)


def test_noise_that_depends_on_the_batch_runs_the_pipelines_own_steps() -> None:
    """What PyTorch draws for several pictures is what it draws in turn, where that is whole blocks."""
    from dynx.diffusion.sampler import Mismatch
    from dynx.integrations.diffusers.pictures import check_noise, checked_noise

    for shape, alike in (((4, 8, 8), True), ((3, 5, 5), False)):
        one, two = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
        together = torch.randn((3, *shape), generator=one)
        in_turn = torch.cat([torch.randn((1, *shape), generator=two) for _ in range(3)])
        assert torch.equal(together, in_turn) is alike
        if alike:
            check_noise(together[0])
        else:
            with pytest.raises(Mismatch):
                check_noise(together[0])
            network = torch.nn.Identity()
            with checked_noise(network), pytest.raises(Mismatch):
                network(together)
            assert network(together) is together


def test_a_changed_pipeline_runs_its_own_steps(pipe: Any) -> None:
    """Weights changed in place, another network, another scheduler."""
    from diffusers import EulerDiscreteScheduler

    unet, scheduler = pipe.unet, pipe.scheduler
    pipe.scheduler = EulerDiscreteScheduler.from_config(scheduler.config)
    draw(pipe)
    assert "the profile was measured with scheduler DDIMScheduler" in pipe.dynx.stats.reason
    pipe.scheduler = scheduler
    draw(pipe)
    assert pipe.dynx.stats.reason is None
    pipe.unet = copy.deepcopy(unet)
    draw(pipe)
    assert pipe.dynx.stats.reason == "a part of the pipeline was replaced since it was attached"
    pipe.unet = unet
    with torch.no_grad():
        unet.conv_out.bias.add_(0.01)
    draw(pipe)
    assert pipe.dynx.stats.reason == "its weights were changed or moved since it was attached"
    dynx.attach(dynx.detach(pipe))
    assert "unet: its weights aren't those in" in pipe.dynx.why_own_steps


def test_attaching_twice_is_one_attachment_and_detaching_restores(pipe: Any, tmp_path: Path) -> None:
    """The original class with its own call; copies aren't attached, and saving isn't disturbed."""
    own = StableDiffusionPipeline.__call__
    first = pipe.dynx
    assert dynx.attach(pipe).dynx is first
    assert isinstance(pipe, StableDiffusionPipeline)
    assert inspect.signature(pipe.__call__) == inspect.signature(own.__get__(pipe))
    assert type(copy.copy(pipe)) is StableDiffusionPipeline
    pipe.save_pretrained(tmp_path / "saved")
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "saved")) is StableDiffusionPipeline

    assert dynx.detach(pipe) is pipe
    assert type(pipe) is StableDiffusionPipeline
    assert type(pipe).__call__ is own
    assert "dynx" not in vars(pipe)
    assert dynx.detach(pipe) is pipe


def test_without_a_profile_every_call_is_the_pipelines_own(tmp_path: Path) -> None:
    """The reason is told, and an error where a profile is required."""
    pipe = pipelines.stable_diffusion()
    dynx.attach(pipe)
    assert pipe.dynx.why_own_steps == "it wasn't loaded from a folder or the hub"
    dynx.detach(pipe)
    pipe.save_pretrained(tmp_path)
    pipe = dynx.attach(DiffusionPipeline.from_pretrained(tmp_path))
    assert "no profile is used" in pipe.dynx.why_own_steps
    with pytest.raises(NoProfileError):
        dynx.attach(pipe, require_profile=True)
    with pytest.raises(InvalidInput, match="`lookup` is no option of an attached pipeline"):
        dynx.attach(pipe, lookup=True)
