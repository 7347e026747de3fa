"""The recipe of the shipped pair: runs from nothing, resumes, and makes folders that anybody's code loads."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from support.commands import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from dynx.shipped.recipes import story

if TYPE_CHECKING:
    from pathlib import Path

WORDS = [
    "the",
    "old",
    "fox",
    "ran",
    "over",
    "a",
    "hill",
    "and",
    "saw",
    "his",
    "brother",
    "who",
    "lived",
    "in",
    "the",
    "wood",
    "near",
    "an",
    "empty",
    "mill",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small books for training, one for validation, as the recipe wants them."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for split, books in (("train", 2), ("val", 1)):
        texts = ["\n".join(" ".join(rng.choice(WORDS, 30)) + "." for _ in range(60)) for _ in range(books)]
        with lzma.open(folder / f"{split}.txt.xz", "wt", encoding="utf-8") as file:
            file.write("\n\n".join(texts))
    return folder


def recipe(corpus: Path, work: Path, *arguments: str) -> list[dict[str, object]]:
    """Run the recipe at its smallest; returns the JSON lines that it printed."""
    command = [sys.executable, "-m", "dynx.shipped.recipes.story", "--data", str(corpus), "--work", str(work), "--tiny"]
    run = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.fixture(scope="module")
def made(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[dict[str, object]]]]:
    """A work folder after a run that stopped early and one that went on."""
    work = tmp_path_factory.mktemp("work")
    return work, [recipe(corpus, work, "--until", "target"), recipe(corpus, work)]


def test_it_goes_on_where_it_stopped(made: tuple[Path, list[list[dict[str, object]]]]) -> None:
    """The second run trains the drafter and not the target again."""
    _, (first, second) = made

    assert [line["run"] for line in first if "run" in line] == ["target"]
    assert [line["run"] for line in second if "run" in line] == ["drafter"]


def test_the_folders_are_ordinary(made: tuple[Path, list[list[dict[str, object]]]]) -> None:
    """Both load with transformers alone, in bfloat16, with one vocabulary, and write."""
    folder = made[0] / "story"
    tokenizer, other = (AutoTokenizer.from_pretrained(f) for f in (folder, folder / "drafter"))
    target = AutoModelForCausalLM.from_pretrained(folder)

    assert tokenizer.get_vocab() == other.get_vocab()
    assert target.dtype == torch.bfloat16
    assert target.generation_config.repetition_penalty == story.PENALTY
    text = "Häuser, 家 and 🙂"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert target.generate(**tokenizer("the fox", return_tensors="pt"), max_new_tokens=4, min_new_tokens=4).shape[1] > 4


def test_the_card_tells_what_was_measured(made: tuple[Path, list[list[dict[str, object]]]]) -> None:
    """The model card carries the held-out losses and the agreement of each exit that the run printed."""
    work, (_, second) = made
    figures, card = second[-1], (work / "story" / "README.md").read_text("utf-8")

    assert f"{figures['target_loss']:.3f}" in card
    assert f"{figures['drafter_loss']:.3f}" in card
    assert card.count("| 1 of 3 |") == 1


def test_another_plan_does_not_resume(made: tuple[Path, list[list[dict[str, object]]]]) -> None:
    """A checkpoint of another plan is refused rather than continued."""
    plan = story.Plan(vocab=512, hidden=32, mlp=64, heads=2, kv_heads=1, layers=3)

    with pytest.raises(SystemExit, match="another plan"):
        story.run("target", story.build(plan), plan, lambda _: torch.zeros(()), lambda: 0.0, made[0])


def test_a_batch_depends_on_its_step_alone() -> None:
    """Step 7 sees the same rows in a resumed run as in one that was never cut."""
    ids, plan = np.arange(5000, dtype=np.uint16), story.Plan(batch=2, window=16)

    again = story.windows(ids, plan, 7, torch.device("cpu"))

    assert torch.equal(again, story.windows(ids, plan, 7, torch.device("cpu")))
    assert not torch.equal(again, story.windows(ids, plan, 8, torch.device("cpu")))
    assert torch.equal(again[:, 1:], again[:, :-1] + 1)


def test_the_rate_rises_stays_and_falls() -> None:
    """Warm-up, plateau, linear decay to nothing over the last 40 %."""
    plan = story.Plan(tokens=1000 * 2048)

    assert plan.rate(0) == pytest.approx(plan.lr / 30)
    assert plan.rate(500) == plan.lr
    assert plan.rate(800) == pytest.approx(plan.lr / 2)
    assert plan.rate(plan.steps - 1) < plan.lr / 100
