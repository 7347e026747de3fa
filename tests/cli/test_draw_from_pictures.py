"""`dynx draw` and `dynx calibrate` with --image, --mask, --strength and --lora, as a user meets them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import pipelines

from dynx.cli.draw import png

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]

pytestmark = [
    pytest.mark.usefixtures("alone"),
    pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning"),
]

STEPS = 10


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that draws 16 × 16 pixels from prompts."""
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    pipelines.stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photo of 32 × 32, a mask of its right half, one of another size, and an adapter."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save("photo.png")
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:, 16:] = 255
    Image.fromarray(mask).save("mask.png")
    Image.new("L", (8, 8), 255).save("other.png")
    pipelines.write_lora(folder / "tone.safetensors")
    return folder


@pytest.fixture
def draw(cli: Cli, tiny: Path, here: Path) -> Cli:
    """`dynx draw` with the tiny pipeline in few steps."""
    return lambda *words: cli("draw", "-m", tiny, "--steps", STEPS, "--seed", 1, *words)


def by_diffusers(kind: str, **given: Any) -> np.ndarray:
    """The picture of diffusers' own pipeline, as bytes."""
    import diffusers

    parts = pipelines.stable_diffusion().components
    pipe = getattr(diffusers, kind)(**parts, requires_safety_checker=False)
    generator = torch.Generator().manual_seed(1)
    found = pipe("a red cat", num_inference_steps=STEPS, generator=generator, output_type="np", **given).images[0]
    made: np.ndarray = (found * 255).round().astype("uint8")
    return made


@pytest.mark.parametrize("masked", [False, True], ids=["image", "mask"])
def test_the_picture_is_diffusers_own(draw: Cli, here: Path, masked: bool) -> None:
    """From the photo in the pipeline's size; the file says what it started from, and needs that to be drawn again."""
    extra = ("--mask", "mask.png") if masked else ()
    result = draw("a red cat", "--image", "photo.png", "--strength", 0.5, *extra, "-o", "out.png")
    small = Image.open("photo.png").convert("RGB").resize((16, 16), Image.Resampling.LANCZOS)
    grey = Image.open("mask.png").resize((16, 16), Image.Resampling.LANCZOS)
    kind = "StableDiffusionInpaintPipeline" if masked else "StableDiffusionImg2ImgPipeline"
    given = {"mask_image": grey, "width": 16, "height": 16} if masked else {}

    assert (result.code, result.out) == (0, "out.png\n")
    facts = png.read(here / "out.png")
    np.testing.assert_array_equal(
        np.asarray(Image.open("out.png")), by_diffusers(kind, image=small, strength=0.5, **given)
    )
    assert (facts["calls"], facts["start"]["image"]) == (STEPS // 2, "photo.png")
    assert (facts["start"]["strength"], facts["start"]["mask"]) == (0.5, masked)
    again = draw("--finish", "out.png", "-o", "again.png")
    assert again.code == 2


def test_the_file_that_started_from_a_picture_says_so(draw: Cli, cli: Cli, here: Path) -> None:
    """--info shows it, and --finish tells that it lacks the picture."""
    draw("a red cat", "--image", "photo.png", "--strength", 0.5, "-o", "out.png")
    assert "photo.png, strength 0.5" in cli("draw", "--info", "out.png").out
    refused = cli("draw", "--finish", "out.png")
    assert refused.code == 2
    assert "started from a picture, photo.png" in refused.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--image", "none.png"), "--image: none.png: no such file"),
        (("--image", "photo.png", "--mask", "other.png"), "a mask must have the picture's size"),
        (("--mask", "mask.png"), "--mask is for pictures that start from a picture"),
        (("--strength", 0.5), "--strength is for pictures that start from a picture"),
        (("--image", "photo.png", "--strength", 0.01), "--strength 0.01 of 10 steps leaves none"),
        (("--lora", "none.safetensors"), "there is no adapter none.safetensors"),
        (("--lora", "tone.safetensors:much"), "--lora: 'much' is no weight"),
    ],
)
def test_mistakes_are_one_line(draw: Cli, words: tuple[object, ...], said: str) -> None:
    """With the option's name, and no traceback."""
    result = draw("a red cat", *words)
    assert result.code != 0
    assert said in result.err
    assert "Traceback" not in result.err


def test_an_adapter_changes_the_picture_and_the_weights_hash(draw: Cli, here: Path) -> None:
    """The next picture without it is as if there had been none."""
    names = ["plain.png", "toned.png", "half.png", "again.png"]
    for name, lora in zip(names, ((), ("tone.safetensors",), ("tone.safetensors:0.5",), ()), strict=True):
        draw("a red cat", "-o", name, *(word for each in lora for word in ("--lora", each)))
    plain, toned, half, again = ((here / name).read_bytes() for name in names)
    assert plain == again
    assert len({plain, toned, half}) == 3
    assert len({png.read(here / name)["weights"] for name in names}) == 3


def test_calibrating_and_drawing_from_pictures(
    cli: Cli, tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profile is about that strength; another one is drawn plainly, and so are pictures from noise alone."""
    pipelines.hurry(monkeypatch)
    (here / "prompts.txt").write_text("a red cat\nblue moon\nthe apple\n")
    (here / "photos").mkdir()
    for seed in (1, 2):
        values = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(values).save(f"photos/{seed}.png")
    options = ("-m", tiny, "--data", "prompts.txt", "--quality", 0.1, "--budget", 600, "--strength", 0.5)
    made = cli("calibrate", *options, "--image", "photos")
    assert made.code == 0, made.err

    def drawn(*words: object) -> Any:
        return cli("draw", "-m", tiny, "a red cat", "--seed", 1, "--quality", 0.1, "--json", "--force", *words).document

    found = drawn("--image", "photo.png", "--strength", 0.5)
    assert found["receipt"]["calls"] < 25
    assert found["guarantee"]["ssim"] == 0.1
    for words in (("--image", "photo.png", "--strength", 0.8), ()):
        plain = drawn(*words)
        assert plain["guarantee"] is None
        assert plain["receipt"]["calls"] == (40 if words else 50)
