"""Image-to-image and inpainting: files are read as they are meant, and pictures are those of diffusers' own pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from support import pipelines

from dynx.diffusion import editing
from dynx.diffusion.editing import read_start
from dynx.diffusion.engine import Engine
from dynx.diffusion.sampler import RestOfSchedule
from dynx.diffusion.schedule import Schedule
from dynx.diffusion.types import Request
from dynx.errors import InvalidInput, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dynx.diffusion.editing import Start

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")

STEPS, STRENGTH = 12, 0.5
FAMILIES = ["stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "flux"]
CASES = [
    (name, masked) for name in FAMILIES for masked in (False, True) if (name, masked) != ("stable-diffusion-3", True)
]
"""SD3's own inpainting refuses a network of fewer channels than its authors'."""


def picture(side: int = 16, seed: int = 0) -> Image.Image:
    made = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(made).resize((side, side), Image.Resampling.BILINEAR)


def mask(side: int = 16) -> Image.Image:
    made = np.zeros((side, side), dtype=np.uint8)
    made[:, side // 2 :] = 255
    return Image.fromarray(made)


def start_of(*, masked: bool = False, strength: float | None = STRENGTH, side: int = 16) -> Start:
    return editing.Start(picture(side), mask(side) if masked else None, strength, "it.png", "0")


def engine_of(pipe: Any, start: Start) -> Engine:
    engine = Engine(editing.converted(pipe, start, "tiny"))
    engine.start = start
    return engine


def request(name: str, start: Start, seeds: tuple[int, ...] = (1, 2)) -> Request:
    asked = pipelines.request(name, seeds, steps=STEPS)
    width, height = start.image.size
    size = {"width": width, "height": height} if name == "flux" else {}  # Flux draws 1024 pixels unasked
    options = {**asked.options, **size}
    return Request(asked.prompts, seeds, steps=STEPS, options=options, starts=(start,) * len(seeds))


def by_diffusers(pipe: Any, asked: Request, **others: Any) -> np.ndarray:
    """The same by the pipeline itself."""
    first = asked.starts[0]
    given: dict[str, Any] = {**asked.options, "num_inference_steps": STEPS, **others}
    if first.strength is not None:
        given["strength"] = first.strength
    if first.mask is not None:
        given["mask_image"] = [each.mask for each in asked.starts]
    generator = [torch.Generator().manual_seed(seed) for seed in asked.seeds]
    images = [each.image for each in asked.starts]
    found: np.ndarray = pipe(
        prompt=list(asked.prompts), image=images, generator=generator, output_type="np", **given
    ).images
    return found


def sd(scheduler: Any = None) -> Any:
    return pipelines.stable_diffusion(scheduler)


@pytest.mark.parametrize(("name", "masked"), CASES)
def test_plain_is_the_pipeline_bit_for_bit(name: str, masked: bool) -> None:
    """With the number of network calls that the strength leaves."""
    start = start_of(masked=masked)
    engine = engine_of(pipelines.pipeline(name), start)
    asked = request(name, start)

    drawn = engine.draw(asked)

    assert np.array_equal(pipelines.pixels(drawn), by_diffusers(engine.pipe, asked))
    assert drawn[0].stats.calls == drawn[0].stats.run == drawn[0].stats.planned == STEPS // 2


@pytest.mark.parametrize(("name", "masked"), CASES)
def test_the_authors_grid_gives_the_authors_picture(name: str, masked: bool) -> None:
    """From the strength on: noise, start and the blending of what isn't masked are all understood."""
    start = start_of(masked=masked)
    engine = engine_of(pipelines.pipeline(name), start)
    asked = request(name, start)
    first = engine.initial_call(asked)

    drawn = engine.draw(asked, Schedule("euler", first.grid))

    assert (len(first.grid), first.skipped) == (STEPS // 2, STEPS // 2)
    assert not drawn[0].stats.plain, drawn[0].stats.notes
    assert drawn[0].stats.calls == STEPS // 2
    assert np.abs(pipelines.pixels(drawn) - by_diffusers(engine.pipe, asked)).max() < 5e-4


@pytest.mark.parametrize("masked", [False, True], ids=["image", "mask"])
@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.EulerDiscreteScheduler(**pipelines.SCALED, steps_offset=1),
        diffusers.DDIMScheduler(**pipelines.SCALED, clip_sample=False, steps_offset=1, set_alpha_to_one=False),
        diffusers.DPMSolverMultistepScheduler(**pipelines.SCALED, steps_offset=1, solver_order=1),
    ],
    ids=["euler", "ddim", "dpm"],
)
def test_every_kind_of_noise(scheduler: Any, masked: bool) -> None:
    """Schedulers that scale their latents and those that don't; full strength with a mask starts from noise alone."""
    for strength in (0.3, 1.0):
        start = start_of(masked=masked, strength=strength)
        engine = engine_of(sd(scheduler), start)
        asked = request("stable-diffusion", start)
        drawn = engine.draw(asked, Schedule("euler", engine.initial_call(asked).grid))
        assert not drawn[0].stats.plain
        assert np.abs(pipelines.pixels(drawn) - by_diffusers(engine.pipe, asked)).max() < 2e-3


@pytest.mark.parametrize("masked", [False, True], ids=["image", "mask"])
def test_fewer_steps_that_are_chosen_on_the_way(masked: bool) -> None:
    """The rest of the grid is replaced after two calls; what isn't masked stays the picture's."""
    start = start_of(masked=masked, strength=0.9)
    engine = engine_of(pipelines.pipeline("stable-diffusion"), start)
    asked = request("stable-diffusion", start)
    grid = engine.initial_call(asked).grid
    few = grid.pick((0, 1, 4, 7, len(grid)))

    def choose(state: Any) -> RestOfSchedule | None:
        return RestOfSchedule(few.timesteps[2:], few.sigmas[2:]) if state.index == 1 else None

    changed = engine.draw(asked, Schedule("dpm++2m", grid), controller=choose)
    direct = engine.draw(asked, Schedule("dpm++2m", few))

    assert changed[0].stats.calls == direct[0].stats.calls == 4
    assert np.abs(pipelines.pixels(changed) - pipelines.pixels(direct)).max() < 1e-5
    if masked:
        kept = by_diffusers(engine.pipe, asked)[:, :, :4]
        assert np.abs(pipelines.pixels(changed)[:, :, :4] - kept).max() < 0.1


def test_a_network_that_takes_the_mask() -> None:
    """An inpainting network's nine channels: the first four are the latents."""
    pipe = pipelines.stable_diffusion(in_channels=9)
    start = start_of(masked=True, strength=1.0)
    parts = dict(pipe.components.items())
    engine = Engine(diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False))
    asked = request("stable-diffusion", start)
    drawn = engine.draw(asked, Schedule("euler", engine.initial_call(asked).grid))
    assert not drawn[0].stats.plain, drawn[0].stats.notes
    assert np.abs(pipelines.pixels(drawn) - by_diffusers(engine.pipe, asked)).max() < 5e-4


def saved(folder: Path, made: Image.Image, name: str = "it.png", **options: Any) -> str:
    made.save(folder / name, **options)
    return str(folder / name)


def rotated(folder: Path) -> str:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(folder, Image.fromarray(np.tile(np.arange(8, dtype=np.uint8) * 30, (4, 1))), "it.jpg", exif=exif)


ODD: dict[str, tuple[Callable[[Path], str], tuple[int, int], str]] = {
    "grey": (lambda f: saved(f, mask(8)), (8, 8), ""),
    "palette": (lambda f: saved(f, picture(8).convert("P")), (8, 8), ""),
    "cmyk": (lambda f: saved(f, picture(8).convert("CMYK"), "it.jpg"), (8, 8), ""),
    "alpha": (lambda f: saved(f, Image.new("RGBA", (8, 8), (255, 0, 0, 0))), (8, 8), "transparent in places"),
    "sixteen": (lambda f: saved(f, Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16))), (8, 8), ""),
    "rotated": (rotated, (4, 8), ""),
    "animated": (
        lambda f: saved(f, picture(8), "it.gif", save_all=True, append_images=[picture(8, 1)]),
        (8, 8),
        "2 frames",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_files_are_read_as_they_are_meant(kind: str, tmp_path: Path) -> None:
    """In RGB and upright; what is left out is said."""
    make, size, said = ODD[kind]
    heard: list[str] = []
    found = read_start(make(tmp_path), None, None, heard.append)
    assert found is not None
    assert (found.image.mode, found.image.size) == ("RGB", size)
    assert [said in line for line in heard] == ([True] if said else [])
    if kind == "sixteen":
        assert found.image.getpixel((0, 0)) == (128, 128, 128)


def test_what_cannot_be_used_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, torn and huge files, folders, masks of another size or of nothing, strengths out of range."""
    image, other = saved(tmp_path, picture(8)), saved(tmp_path, mask(16), "mask.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "it.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("no picture")
    dark = saved(tmp_path, Image.new("L", (8, 8)), "dark.png")
    for given, said in (
        ((str(tmp_path / "none.png"), None, None), "no such file"),
        ((str(tmp_path), None, None), "folder"),
        ((str(tmp_path / "torn.png"), None, None), "can't be read|not an image"),
        ((str(tmp_path / "text.png"), None, None), "not an image"),
        ((image, other, None), "must have the picture's size"),
        ((image, dark, None), "nothing may change"),
        ((image, None, 0.0), "above 0"),
        ((image, None, float("nan")), "above 0"),
        ((None, other, None), "`mask` is for"),
        ((None, None, 0.5), "`strength` is for"),
    ):
        with pytest.raises(InvalidInput, match=said) as caught:
            read_start(*given)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr("dynx.diffusion.pictures.MAX_PIXELS", 63)
    with pytest.raises(InvalidInput, match="pixels are more than"):
        read_start(image, None, None)


def test_the_size_is_the_pipelines_in_the_pictures_shape() -> None:
    """As many pixels as the pipeline draws by itself, in multiples that it can take."""
    pipe = pipelines.pipeline("stable-diffusion")
    wide = editing.Start(Image.new("RGB", (400, 100)), None, None, "", "")
    assert editing.size_for(start_of(side=300), pipe, 2) == (16, 16)
    assert editing.size_for(wide, pipe, 2) == (32, 8)


def test_pipelines_without_the_task_and_steps_that_a_strength_leaves() -> None:
    """Say what is missing."""
    with pytest.raises(UnsupportedModelError, match="has no image-to-image in diffusers"):
        editing.converted(pipelines.pipeline("ddim"), start_of(), "bare")
    start = start_of(strength=0.01)
    with pytest.raises(InvalidInput, match="leaves none"):
        engine_of(pipelines.pipeline("stable-diffusion"), start).draw(request("stable-diffusion", start))
