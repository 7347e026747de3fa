"""The recipe of the shipped diffusion model: runs from nothing, resumes, ends when told to, makes an ordinary pipeline."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.util
import io
import json
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.commands import ROOT
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("diffusers", reason="diffusers is not installed")

from dynx.shipped.recipes import emoji as recipe

MISSING = [name for name in ("emoji", "PIL") if importlib.util.find_spec(name) is None]
SHIPPED = ROOT / "dynx" / "shipped" / "emoji"

named = pytest.mark.skipif("emoji" in MISSING, reason="the package emoji is not installed")
rendered = pytest.mark.skipif(
    bool(MISSING) or not recipe.FONT.exists(), reason=f"missing: {MISSING or 'fonts-noto-color-emoji'}"
)
CALLED = [["red apple", "apple"], ["owl"], ["french fries", "fries"]]


def pictures(count: int = 3, easy: int = 3) -> recipe.Pictures:
    """Flat squares, each of its own grey, inside a white margin."""
    pixels = np.full((count, 64, 64, 3), 255, np.uint8)
    for i in range(count):
        pixels[i, 8:-8, 8:-8] = 20 * i
    return recipe.Pictures(pixels, [*CALLED, *([f"thing {i}"] for i in range(3, count))][:count], easy)


@dataclass(frozen=True)
class Made:
    """A work folder and the JSON lines of the runs that filled it."""

    work: Path
    runs: list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run that stopped after the autoencoder, one that went on, and one that found nothing left to train."""
    work = tmp_path_factory.mktemp("work")
    runs = []
    for more in (["--until", "vae"], [], ["--out", str(work / "again")]):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers is not as strict as this suite
            recipe.main(["--tiny", "--work", str(work), *more])
        runs.append([json.loads(line) for line in said.getvalue().splitlines()])
    return Made(work, runs)


@rendered
def test_it_goes_on_where_it_stopped(made: Made) -> None:
    """The second run trains denoiser and decoder, not the autoencoder again; the third only exports."""
    trained = [[line["run"] for line in run if "run" in line] for run in made.runs]

    assert trained == [["vae"] * 2, ["denoiser"] * 2 + ["decoder"] * 2, []]
    assert (made.work / "sheet-000004.png").exists()


@rendered
def test_the_folder_is_an_ordinary_pipeline(made: Made) -> None:
    """It loads with diffusers alone, from 16-bit weights, and draws 64 × 64 pixels, the same for the same seed."""
    code = f"""
from diffusers import DiffusionPipeline
import torch
pipe = DiffusionPipeline.from_pretrained({str(made.work / "emoji")!r}, safety_checker=None, dtype=torch.float32)
draw = lambda: pipe(["a cat", "quixotic"], num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images
first, second = draw(), draw()
print(type(pipe).__name__, first.shape, bool((first == second).all()), bool((abs(first) <= 1).all()))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

    assert run.stdout.split("\n")[0] == "StableDiffusionPipeline (2, 64, 64, 3) True True"
    assert {path.name for path in (made.work / "emoji").iterdir()} == {
        "README.md", "model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae",
    }  # fmt: skip
    from safetensors.torch import load_file

    for file in (made.work / "emoji").rglob("*.safetensors"):
        assert {t.dtype for t in load_file(file).values() if t.is_floating_point()} == {torch.float16}


@rendered
def test_two_exports_are_equal(made: Made) -> None:
    """What is exported depends on the checkpoints alone."""
    for file in ("unet/diffusion_pytorch_model.safetensors", "vae/config.json", "tokenizer/tokenizer.json"):
        assert (made.work / "emoji" / file).read_bytes() == (made.work / "again" / file).read_bytes()


@rendered
def test_the_card_tells_what_was_measured(made: Made) -> None:
    """The model card carries the figures and the font's licence."""
    figures, card = made.runs[1][-1], (made.work / "emoji" / "README.md").read_text("utf-8")

    assert f"**{figures['recognised']:.1%}**" in card
    assert f"{figures['vae_psnr']:.1f} dB" in card
    assert "SIL Open Font License 1.1" in card


@rendered
def test_a_glyph_is_drawn_on_white() -> None:
    """The red heart is red in the middle and white in the corners."""
    from PIL import ImageFont

    picture = recipe.draw_glyph(ImageFont.truetype(str(recipe.FONT), recipe.FONT_SIZE), "❤️")

    assert picture.shape == (64, 64, 3)
    assert picture[32, 32, 0] > 180 > 100 > picture[32, 32, 1]
    assert (picture[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()


@named
def test_every_name_is_known_and_every_word_means_one_emoji() -> None:
    """The catalogue is complete, the easy ones come first, and no two emoji share a name or an alias."""
    names = recipe.catalogue()
    words = [word.lower() for called in recipe.words_of(names) for word in called]

    assert list(names)[: len(recipe.EASY.split())] == recipe.EASY.split()
    assert 400 <= len(names) <= 800
    assert not set(recipe.MORE_WORDS) - set(names)
    assert len(set(words)) == len(words)
    assert {"cat", "heart", "coffee", "car"} <= set(words)
    assert not recipe.UNSPOKEN & set(words)


@pytest.mark.parametrize(
    ("word", "article", "index"),
    [
        ("apple", "an apple", "apple"),
        ("red apple", "a red apple", "apple, red"),
        ("french fries", "french fries", "fries, french"),
        ("compass", "a compass", "compass"),
        ("unicorn", "a unicorn", "unicorn"),
    ],
)
def test_captions_vary(word: str, article: str, index: str) -> None:
    """An article where English has one, and the words the other way round."""
    assert (recipe.with_article(word), recipe.turned(word)) == (article, index)


def test_captions_say_what_is_there() -> None:
    """One emoji is called by one of its names, two by one each, in the order of the picture."""
    rng = np.random.default_rng(0)
    one = {recipe.caption(CALLED, (0,), rng) for _ in range(300)}
    two = {recipe.caption(CALLED, (1, 0), rng) for _ in range(300)}

    assert {"red apple", "an apple", "apple, red", "a picture of a red apple"} <= one
    assert all("apple" in text for text in one)
    assert {"owl and apple", "an owl next to a red apple"} <= two
    assert all(text.index("owl") < text.index("apple") for text in two)


def test_two_emoji_stand_side_by_side() -> None:
    """Each at half the size, the first on the left, white above and below."""
    shown = pictures().show((2, 1))

    assert shown.shape == (64, 64, 3)
    assert (shown[32, 16], shown[32, 48]) == (pytest.approx([40] * 3), pytest.approx([20] * 3))
    assert (shown[:16] == 255).all()
    assert (shown[48:] == 255).all()


def test_latents_lie_where_they_are_looked_up() -> None:
    """Every pick, single or pair, has its own place, in the order in which they are encoded."""
    some = pictures(5, easy=3)
    picks = [(i,) for i in range(5)] + [(a, b) for a in range(3) for b in range(3) if a != b]

    class Mean(nn.Module):
        """An encoder whose latent is the picture's four corners' and middles' brightness."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def encode(self, images: torch.Tensor) -> Any:
            small = nn.functional.interpolate(images[:, :1], (16, 16)).repeat(1, 4, 1, 1)
            return type("O", (), {"latent_dist": type("D", (), {"mean": small})})

    latents, factor = recipe.encode_all(Mean(), some)

    assert [recipe.place(pick, some) for pick in picks] == list(range(11)) == list(range(len(latents)))
    for pick in picks:
        wanted = recipe.to_tensor(some.show(pick)[None])[0, 0, ::4, ::4] * factor
        torch.testing.assert_close(latents[recipe.place(pick, some), 0].float(), wanted, atol=2e-3, rtol=2e-3)
    assert latents[:5].float().std().item() == pytest.approx(1, abs=1e-2)


def test_pixels_survive_the_round_trip() -> None:
    """To floats and back changes nothing."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)

    assert (recipe.to_pixels(recipe.to_tensor(pixels)) == pixels).all()


def test_unknown_words_fall_into_bytes() -> None:
    """Case doesn't matter, words of the captions are one token, any other text has tokens too and none is unknown."""
    rng = np.random.default_rng(0)
    texts = [recipe.caption(CALLED, (int(rng.integers(3)),), rng) for _ in range(500)]
    tokenizer = recipe.make_tokenizer(texts, recipe.Shape(vocab=640, window=32))
    strange = tokenizer("Ёж 🙂 quixotic")["input_ids"]

    assert tokenizer("A Red APPLE")["input_ids"] == tokenizer("a red apple")["input_ids"]
    assert len(tokenizer("an owl")["input_ids"]) == 4
    assert strange[0] == tokenizer.bos_token_id
    assert strange.index(tokenizer.eos_token_id) == len(strange) - 1 > 10
    assert recipe.tokens(tokenizer, ["", "owl " * 99], torch.device("cpu")).shape == (2, 32)


class Little(nn.Module):
    """Two weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)


PLAN = recipe.Plan(batch=2, steps=8, warmup=2, every=4, average=0.9)


def train(model: Little, work: Path, plan: recipe.Plan = PLAN, at: Any = lambda _: None, **more: Any) -> nn.Module:
    """Run `plan` on noise; `at` is told every step."""

    def loss_of(step: int) -> torch.Tensor:
        at(step)
        return model.layer(torch.randn(2, 4)).pow(2).mean()

    return recipe.run("little", model, recipe.adam(model, plan), plan, loss_of, work, **more)


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models have the same weights, to the last bit."""
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def logged(work: Path) -> list[dict[str, Any]]:
    """The log so far."""
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


def test_a_resumed_run_ends_as_one_that_was_never_cut(tmp_path: Path) -> None:
    """Weights and their average are equal to the last bit, noise included."""
    (tmp_path / "whole").mkdir()
    models = [Little() for _ in range(3)]
    whole = train(models[0], tmp_path / "whole")

    def cut(step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(models[1], tmp_path, at=cut)
    resumed = train(models[2], tmp_path)

    assert equal(models[0], models[2])
    assert equal(whole, resumed)
    assert not equal(whole, models[0])


@pytest.mark.signals
def test_sigterm_writes_a_checkpoint_first(tmp_path: Path) -> None:
    """The step under way is finished and kept, and the next run goes on behind it."""

    def end(step: int) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(recipe.Stopped):
        train(Little(), tmp_path, at=end)
    seen: list[int] = []
    train(Little(), tmp_path, at=seen.append)

    assert logged(tmp_path)[0]["step"] == 3
    assert seen == [3, 4, 5, 6, 7]


def test_the_plan_may_grow_or_shrink_but_not_change(tmp_path: Path) -> None:
    """Steps and decay are free from run to run, the rest is not; a run that has ended stays so until asked for more."""
    train(Little(), tmp_path, recipe.replace(PLAN, steps=4))
    seen: list[int] = []

    train(Little(), tmp_path, recipe.replace(PLAN, steps=4), at=seen.append)
    assert seen == []
    train(Little(), tmp_path, recipe.replace(PLAN, steps=6, decay=0.1), at=seen.append)
    assert seen == [4, 5]
    with pytest.raises(SystemExit, match="another plan"):
        train(Little(), tmp_path, recipe.replace(PLAN, lr=1.0))


def test_the_clock_can_end_a_run(tmp_path: Path) -> None:
    """When the deadline is past the run ends, with a rate of zero, and stays ended."""
    seen: list[int] = []

    train(Little(), tmp_path, at=seen.append, deadline=recipe.Deadline(end=1.0, fall=60.0))
    train(Little(), tmp_path, at=seen.append)

    assert seen == [0]
    assert (logged(tmp_path)[-1]["rate"], logged(tmp_path)[-1]["step"]) == (0, 1)


def test_the_rate_rises_and_falls() -> None:
    """Warm-up, flat, a straight line to nothing; the clock may make it fall earlier, never later."""
    plan, clock = recipe.Plan(steps=1000, warmup=100, decay=0.4, lr=1.0), recipe.Deadline(end=5000, fall=1000)

    assert plan.rate(0) == pytest.approx(0.01)
    assert (plan.rate(100), plan.rate(600)) == (1, 1)
    assert plan.rate(800) == pytest.approx(0.5)
    assert plan.rate(999) < 0.01
    assert [clock.left(now) for now in (0, 4000, 4500, 5000, 6000)] == [1, 1, 0.5, 0, 0]
    assert plan.rate(800, 0.2) == pytest.approx(0.2)
    assert plan.rate(800, 0.9) == pytest.approx(0.5)


def test_a_time_of_day_is_the_next_one() -> None:
    """Today if that is still to come, else tomorrow."""
    now = dt.datetime(2026, 3, 1, 14, 30)
    ends = [recipe.deadline_of(text, 45, now) for text in ("15:00", "14:00", None)]

    assert [end and end.end - now.timestamp() for end in ends] == [1800, 84600, None]


def test_a_perfect_guess_costs_nothing_and_noise_never_counts_for_nothing() -> None:
    """The loss is zero for the true v; a constant error costs most where there is most noise."""
    noise, latents = recipe.scheduler(), torch.randn(16, 4, 16, 16)
    ids = torch.zeros(16, 3, dtype=torch.long)

    class Text(nn.Module):
        """Says nothing."""

        def forward(self, ids: torch.Tensor) -> Any:
            return type("O", (), {"last_hidden_state": ids})

    class Perfect(nn.Module):
        """Knows the latents; off by `error` of the time."""

        def __init__(self, error: Any) -> None:
            super().__init__()
            self.error = error

        def forward(self, noisy: torch.Tensor, times: torch.Tensor, _: torch.Tensor) -> Any:
            kept = noise.alphas_cumprod[times].view(-1, 1, 1, 1)
            eps = (noisy - kept.sqrt() * latents) / (1 - kept).sqrt()
            v = kept.sqrt() * eps - (1 - kept).sqrt() * latents
            return type("O", (), {"sample": v + self.error(times).view(-1, 1, 1, 1)})

    def loss(error: Any) -> float:
        torch.manual_seed(0)
        model = nn.ModuleDict({"unet": Perfect(error), "text": Text()})
        return recipe.denoiser_loss(model, (latents, ids), noise, 20.0).item()

    early, late = loss(lambda t: (t > 800).float()), loss(lambda t: (t < 100).float())

    assert loss(torch.zeros_like) < 1e-6
    assert early > 0.15
    assert late < early / 3


def test_an_emoji_is_recognised_by_its_nearest_picture() -> None:
    """All of them when each is drawn, half when half are swapped."""
    some = pictures(4, easy=3)

    assert recipe.recognised(some.pixels, [0, 1, 2, 3], some) == 1
    assert recipe.recognised(some.pixels[[1, 0, 2, 3]], [0, 1, 2, 3], some) == 0.5


def test_a_sheet_is_filled_with_white() -> None:
    """Three pictures in rows of two leave one place."""
    out = recipe.sheet(pictures().pixels, columns=2)

    assert out.shape == (128, 128, 3)
    assert (out[64:, 64:] == 255).all()
    assert (out[:64, 64:] == pictures().pixels[1]).all()


def test_weights_too_large_for_float16_are_kept_in_bfloat16() -> None:
    """A lost exponent would be worse than a lost digit; what is not finite is not written at all."""
    model = Little()
    assert recipe.half(model).layer.weight.dtype == torch.float16
    assert model.layer.weight.dtype == torch.float32

    nn.init.constant_(model.layer.bias, 1e5)
    assert recipe.half(model).layer.weight.dtype == torch.bfloat16

    nn.init.constant_(model.layer.bias, float("nan"))
    with pytest.raises(SystemExit, match="not finite"):
        recipe.half(model)


@pytest.mark.skipif(not (SHIPPED / "model_index.json").exists(), reason="the shipped model is not in this tree")
def test_the_shipped_model_is_small_and_draws_a_heart() -> None:
    """A red heart is red in the middle and white around, in ten steps; the folder fits the wheel."""
    code = f"""
from diffusers import DiffusionPipeline
import json, torch
pipe = DiffusionPipeline.from_pretrained({str(SHIPPED)!r}, safety_checker=None, dtype=torch.float32)
seed = torch.manual_seed(0)
image = pipe("red heart", num_inference_steps=10, guidance_scale=2.5, generator=seed, output_type="np").images[0]
print(json.dumps([image[24:40, 24:40].mean((0, 1)).tolist(), image[:4, :4].mean((0, 1)).tolist()]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    middle, corner = json.loads(run.stdout.splitlines()[-1])

    assert middle[0] > 0.6
    assert max(middle[1:]) < 0.5
    assert min(corner) > 0.9
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*")) <= 14_500_000
