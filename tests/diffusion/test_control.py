"""Drawing under control of a picture: plain is diffusers' own, the ControlNet runs as often as the network, misfits are told."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import pipelines

from dynx.diffusion.control import Control, check_control, read_control
from dynx.diffusion.editing import Start, converted
from dynx.diffusion.engine import Engine
from dynx.diffusion.sampler import RestOfSchedule
from dynx.diffusion.schedule import Schedule
from dynx.diffusion.types import Request
from dynx.errors import InvalidInput, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")

STEPS = 12
FAMILIES = ["stable-diffusion", "stable-diffusion-xl"]


@functools.cache
def pipe_of(name: str) -> Any:
    return pipelines.controlled(name)


def picture(seed: int = 0, side: int = 16) -> Image.Image:
    made = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(made)


def control(seed: int = 0, scale: float | None = None) -> Control:
    return Control(picture(seed), scale, "edges.png", str(seed))


def request(name: str, *controls: Control, **others: Any) -> Request:
    asked = pipelines.request(name, (1, 2), steps=STEPS)
    each = controls if len(controls) == 2 else (controls[0],) * 2
    return Request(asked.prompts, asked.seeds, steps=STEPS, options=asked.options, controls=each, **others)


def by_diffusers(pipe: Any, asked: Request, **given: Any) -> np.ndarray:
    generator = [torch.Generator().manual_seed(seed) for seed in asked.seeds]
    found: np.ndarray = pipe(
        prompt=list(asked.prompts),
        generator=generator,
        output_type="np",
        num_inference_steps=STEPS,
        **{"image": [each.image for each in asked.controls], **asked.options, **given},
    ).images
    return found


@pytest.mark.parametrize("scale", [None, 0.4])
@pytest.mark.parametrize("name", FAMILIES)
def test_plain_is_the_pipeline_bit_for_bit(name: str, scale: float | None) -> None:
    """With a picture for each, at the scale that was asked for; another control gives another picture."""
    pipe = pipe_of(name)
    asked = request(name, control(0, scale), control(1, scale))
    given = {} if scale is None else {"controlnet_conditioning_scale": scale}

    drawn = Engine(pipe).draw(asked)

    assert np.array_equal(pipelines.pixels(drawn), by_diffusers(pipe, asked, **given))
    assert drawn[0].stats.calls == STEPS
    other = Engine(pipe).draw(request(name, control(2, scale), control(3, scale)))
    assert np.abs(pipelines.pixels(other) - pipelines.pixels(drawn)).max() > 0.005


@pytest.mark.parametrize("name", FAMILIES)
def test_the_authors_grid_gives_the_authors_picture(name: str) -> None:
    """A schedule over the pipeline's own grid draws what the pipeline draws."""
    pipe, asked = pipe_of(name), request(name, control())
    engine = Engine(pipe)

    drawn = engine.draw(asked, Schedule("euler", engine.initial_call(asked).grid))

    assert not drawn[0].stats.plain, drawn[0].stats.notes
    assert np.abs(pipelines.pixels(drawn) - by_diffusers(pipe, asked)).max() < 5e-4


def counted(pipe: Any, draw: Any) -> int:
    """How often the ControlNet's first layer ran."""
    ran: list[int] = []
    hook = pipe.controlnet.conv_in.register_forward_hook(lambda *_: ran.append(1))
    try:
        draw()
    finally:
        hook.remove()
    return len(ran)


def test_it_runs_in_the_steps_in_which_the_network_runs() -> None:
    """Whether a run is planned short, cut short on the way, or skips steps; and its `forward` is its own again."""
    name = "stable-diffusion"
    pipe, asked = pipe_of(name), request(name, control())
    engine = Engine(pipe)
    grid = engine.initial_call(asked).grid
    three = grid.thinned(3)

    def cut(state: Any) -> RestOfSchedule | None:
        return RestOfSchedule(three.timesteps[1:], three.sigmas[1:]) if state.index == 0 else None

    made: list[Any] = []
    assert counted(pipe, lambda: made.append(engine.draw(asked, Schedule("euler", three)))) == 3
    assert counted(pipe, lambda: made.append(engine.draw(asked, Schedule("euler", grid), controller=cut))) == 3
    assert np.abs(pipelines.pixels(made[0]) - pipelines.pixels(made[1])).max() < 1e-5
    skipping = Schedule("euler", grid, skip=float("inf"))
    runs = counted(pipe, lambda: made.append(engine.draw(asked, skipping)))
    assert runs == made[2][0].stats.calls < STEPS
    assert "forward" not in pipe.controlnet.__dict__


def test_it_goes_with_a_picture_to_start_from() -> None:
    """The pipeline is diffusers' own for both."""
    name = "stable-diffusion"
    start = Start(picture(5), None, 0.5, "it.png", "0")
    pipe = converted(pipe_of(name), start, "tiny")
    asked = request(name, control(), starts=(start,) * 2)
    engine = Engine(pipe)
    engine.start, engine.control = start, control()
    images = [each.image for each in asked.controls]

    drawn = engine.draw(asked)

    theirs = by_diffusers(pipe, asked, image=[start.image] * 2, control_image=images, strength=0.5)
    assert type(pipe).__name__ == "StableDiffusionControlNetImg2ImgPipeline"
    assert np.array_equal(pipelines.pixels(drawn), theirs)
    schedule = Schedule("euler", engine.initial_call(asked).grid)
    assert np.abs(pipelines.pixels(engine.draw(asked, schedule)) - theirs).max() < 5e-4


def test_misfits_are_told_in_a_line() -> None:
    """A control picture that is missing, one for a pipeline without a ControlNet, and several ControlNets."""
    with pytest.raises(InvalidInput, match="tiny draws under control of a picture"):
        check_control(pipe_of("stable-diffusion"), None, "tiny")
    with pytest.raises(InvalidInput, match=r"tiny \(StableDiffusionPipeline\) has no ControlNet"):
        check_control(pipelines.pipeline("stable-diffusion"), control(), "tiny")
    with pytest.raises(UnsupportedModelError, match="tiny has 2 ControlNets"):
        check_control(pipelines.controlled("stable-diffusion", several=True), control(), "tiny")


def test_files_are_read_as_pictures(tmp_path: Path) -> None:
    """In RGB; settings without a file and files that are no pictures are refused."""
    picture().convert("L").save(tmp_path / "edges.png")
    (tmp_path / "text.png").write_text("no picture")

    found = read_control(str(tmp_path / "edges.png"), 0.5)

    assert found is not None
    assert (found.image.mode, found.scale, found.name) == ("RGB", 0.5, "edges.png")
    assert found.fitted((8, 8)).image.size == (8, 8)
    assert read_control(None, None) is None
    for given, words in (((None, 0.5), "under control"), ((str(tmp_path / "text.png"), None), "`control_image`")):
        with pytest.raises(InvalidInput, match=words):
            read_control(*given)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="must be above 0"):
            read_control(str(tmp_path / "edges.png"), scale)
