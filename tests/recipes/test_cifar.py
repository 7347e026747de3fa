"""The recipe of the image classifiers for tests: runs from nothing, resumes, keeps pictures out, makes ordinary folders."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from recipes import cifar
from support.commands import ROOT
from transformers import AutoImageProcessor, AutoModelForImageClassification

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["cat", "dog", "ship"]
KINDS = ["vit", "resnet"]


def save(file: Path, count: int, seed: int) -> None:
    """An .npz of pictures in which a class is a colour."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(NAMES), count)
    images = rng.integers(0, 200, (count, 32, 32, 3)).astype(np.uint8)
    images[np.arange(count), :, :, labels] += 55
    np.savez(file, images=images, labels=labels, names=NAMES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures laid out as the recipe wants them."""
    folder = tmp_path_factory.mktemp("data")
    save(folder / "train.npz", 60, 0)
    save(folder / "test.npz", 10, 1)
    return folder


@pytest.fixture(scope="module")
def pictures(data: Path) -> cifar.Pictures:
    """The training file."""
    return cifar.read(data / "train.npz")


@dataclass(frozen=True)
class Made:
    """A work folder, and its log per model."""

    work: Path
    lines: dict[str, list[dict[str, object]]]


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The command for one model, its main function for the other."""
    work = tmp_path_factory.mktemp("work")
    options = ["--tiny", "--threads", "1", "--data", str(data), "--work", str(work), "--model"]
    command = [sys.executable, "-m", "tests.recipes.cifar", *options, "vit"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cifar.main([*options, "resnet"])
    said = [json.loads(line) for line in (work / "log.jsonl").read_text("utf-8").splitlines()]
    return Made(work, {kind: [line for line in said if line["model"] == kind] for kind in KINDS})


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_loads_as_any_other(made: Made, kind: str) -> None:
    """A picture file goes through the Auto classes to one of the names."""
    folder = made.work / kind
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    picture = Image.open(made.work / "test" / "0003.png")

    with torch.no_grad():
        logits = model(**AutoImageProcessor.from_pretrained(folder)(images=picture, return_tensors="pt")).logits

    assert logits.shape == (1, len(NAMES))
    assert model.config.id2label == dict(enumerate(NAMES))
    assert made.lines[kind][-1].keys() == {"model", "parameters", "test_accuracy"}


def test_pictures_are_written_as_they_are(made: Made, data: Path) -> None:
    """Held-out and test pictures, and the test file's labels, in the order of the files."""
    _, held = cifar.divide(cifar.read(data / "train.npz"))
    test = cifar.read(data / "test.npz")

    rows = [line.split("\t") for line in (made.work / "test.tsv").read_text("utf-8").splitlines()]

    assert [name for _, name in rows] == [NAMES[label] for label in test.labels]
    for (path, _), image in zip(rows, test.images, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), image)
    for i, image in enumerate(held.images):
        assert np.array_equal(np.asarray(Image.open(made.work / "held_out" / f"{i:04d}.png")), image)


def test_no_step_sees_a_held_out_picture(pictures: cifar.Pictures) -> None:
    """The two parts are disjoint, make up the file, and are the same each time."""
    train, held = cifar.divide(pictures)

    seen = {image.tobytes() for image in train.images}

    assert (len(train), len(held)) == (48, 12)
    assert not seen & {image.tobytes() for image in held.images}
    assert len(seen) == len(train)
    assert np.array_equal(cifar.divide(pictures)[1].images, held.images)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_as_one_that_was_never_cut(
    kind: str, pictures: cifar.Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, running means and heads are equal to the last bit, patches left out included."""
    train, held = cifar.divide(pictures)
    plan, loss_of = cifar.TINY[kind], cifar.loss_of
    (tmp_path / "whole").mkdir()
    whole = cifar.train(kind, train, held, plan, tmp_path / "whole", every=4)

    def cut(half: torch.nn.Module, pictures: cifar.Pictures, plan: cifar.Plan, step: int) -> torch.Tensor:
        if step == 5:
            raise KeyboardInterrupt
        return loss_of(half, pictures, plan, step)

    with monkeypatch.context() as patch:
        patch.setattr(cifar, "loss_of", cut)
        with pytest.raises(KeyboardInterrupt):
            cifar.train(kind, train, held, plan, tmp_path, every=4)
    resumed = cifar.train(kind, train, held, plan, tmp_path, every=4)

    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_another_plan_does_not_resume(pictures: cifar.Pictures, tmp_path: Path) -> None:
    """A checkpoint of another plan is refused rather than continued."""
    plan = replace(cifar.TINY["resnet"], steps=1)
    cifar.train("resnet", pictures, pictures, plan, tmp_path)

    with pytest.raises(SystemExit, match="another plan"):
        cifar.train("resnet", pictures, pictures, replace(plan, exit_weight=0.0), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_what_is_saved(kind: str) -> None:
    """The last of the answers is the model's own forward; there is one for each block."""
    plan = cifar.TINY[kind]
    trained = cifar.make(kind, plan, NAMES).eval()
    pixels = torch.randn(2, 3, plan.side, plan.side, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        said = cifar.answers(trained, pixels)

        torch.testing.assert_close(said[-1], trained.net(pixels).logits)
    assert len(said) == len(cifar.blocks(trained.net)) == 3


def test_a_picture_is_enlarged_as_its_processor_does(made: Made, data: Path) -> None:
    """What the ResNet is trained on is what it will be given, up to the rounding of pixels."""
    images = cifar.read(data / "test.npz").images
    processor = AutoImageProcessor.from_pretrained(made.work / "resnet")

    theirs = torch.as_tensor(processor(images=list(images), return_tensors="pt")["pixel_values"])
    ours = cifar.enlarged(torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1, 64)

    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().max() < 1.5 / 127.5


def test_a_batch_depends_on_its_step_alone(pictures: cifar.Pictures) -> None:
    """Step 7 is the same in a resumed run; wanted shares add up, and a pass takes each picture once."""
    plan = replace(cifar.VIT, batch=20, smoothing=0.0, mix=0.0)

    pixels, _ = cifar.augmented(pictures, plan, 7)
    again, other = (cifar.augmented(pictures, plan, step)[0] for step in (7, 8))
    passed = sum(cifar.augmented(pictures, plan, step)[1] for step in range(3, 6))
    mixed = cifar.augmented(pictures, replace(plan, mix=1.0, smoothing=0.1), 7)[1]

    assert torch.equal(pixels, again)
    assert not torch.equal(pixels, other)
    assert pixels.shape == (20, 3, 32, 32)
    assert torch.as_tensor(passed).sum(0).tolist() == np.bincount(pictures.labels).tolist()
    torch.testing.assert_close(mixed.sum(1), torch.ones(20))


def test_the_rate_rises_and_falls() -> None:
    """Warm-up, then half a cosine to nothing; a ViT sees more of its patches as the run goes on."""
    plan = replace(cifar.VIT, steps=1000, warmup=100, keep=((0.0, 0.5), (0.7, 0.75)))

    assert plan.rate(0) == pytest.approx(0.01)
    assert plan.rate(100) == 1
    assert plan.rate(550) == pytest.approx(0.5)
    assert plan.rate(999) < 0.01
    assert (plan.kept(0), plan.kept(700), replace(plan, keep=()).kept(0)) == (0.5, 0.75, 1.0)
