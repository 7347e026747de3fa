"""The recipe of the shipped classifier: runs from nothing, resumes, keeps its held-out texts out, makes ordinary folders."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from support.commands import ROOT
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

from dynx.shipped.recipes import mood

if TYPE_CHECKING:
    from pathlib import Path

GOOD = ["bright", "funny", "lovely", "warm", "clever"]
BAD = ["dull", "awful", "bleak", "tedious", "stale"]
WORDS = ["the", "film", "plot", "is", "and", "a", "with", "story", "actor", "of", "don", "n", "'", "t", "##s", "##ed"]
SHIPPED = ROOT / "dynx" / "shipped" / "mood"


def lines(rng: np.random.Generator, count: int) -> list[str]:
    """`text<TAB>label` lines of made-up reviews."""
    out = []
    for _ in range(count):
        label = int(rng.integers(2))
        words = [*rng.choice(WORDS[:10], int(rng.integers(3, 9))), rng.choice(GOOD if label else BAD)]
        out.append(f"{' '.join(words)}\t{label}")
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reviews and tales laid out as the recipe wants them; a few sentences stand in several files."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    train, dev = lines(rng, 80), lines(rng, 20)
    train += [*train[:10], *dev[:5]]
    (folder / "sst2").mkdir()
    (folder / "sst2" / "train.tsv").write_text("\n".join(train) + "\n", "utf-8")
    (folder / "sst2" / "dev.tsv").write_text("\n".join(dev) + "\n", "utf-8")
    (folder / "tales").mkdir()
    with lzma.open(folder / "tales" / "train.txt.xz", "wt", encoding="utf-8") as file:
        file.write("\n".join(" ".join(rng.choice(WORDS[:10], 8)) + "." for _ in range(60)))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of three layers that knows nothing, with tokenizer.json beside it."""
    folder = tmp_path_factory.mktemp("teacher")
    letters = [p + c for c in "abcdefghijklmnopqrstuvwxyz.,!" for p in ("", "##")]
    pieces = list(dict.fromkeys([*mood.SPECIALS, *letters, *WORDS, *GOOD, *BAD]))
    mood.make_tokenizer(pieces, 64).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 3}
    BertModel(BertConfig(vocab_size=len(pieces), max_position_embeddings=64, **shape)).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Made:
    """A work folder and the JSON lines of the runs that filled it."""

    work: Path
    runs: list[list[dict[str, object]]]


@pytest.fixture(scope="module")
def made(data: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run that stopped after the teacher, one that went on, one of the large model."""
    work = tmp_path_factory.mktemp("work")
    command = [sys.executable, "-m", "dynx.shipped.recipes.mood", "--tiny", "--threads", "1"]
    command += ["--data", str(data), "--work", str(work), "--teacher", str(teacher)]
    runs = []
    for more in (["--until", "teacher"], [], ["--size", "large"]):
        run = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        runs.append([json.loads(line) for line in run.stdout.splitlines()])
    return Made(work, runs)


def test_it_goes_on_where_it_stopped(made: Made) -> None:
    """The second run trains the student and not the teacher again."""
    trained = [[line["run"] for line in run if "run" in line] for run in made.runs]

    assert trained == [["teacher"], ["student"], ["large"]]


@pytest.mark.parametrize(("name", "layers"), [("mood", 3), ("large", 6)])
def test_the_folders_are_ordinary(made: Made, name: str, layers: int) -> None:
    """They load with transformers alone, in bfloat16, and name the labels."""
    folder = made.work / name
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)

    logits = model(**tokenizer("a bright, clever film", return_tensors="pt")).logits

    assert type(model).__name__ == "BertForSequenceClassification"
    assert (model.dtype, model.config.num_hidden_layers) == (torch.bfloat16, layers)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert logits.shape == (1, 2)
    assert logits.isfinite().all()


def test_the_tokenizer_is_uncased_and_spells_what_it_does_not_know(made: Made) -> None:
    """Case doesn't matter, and an unknown English word falls into letters."""
    tokenizer = AutoTokenizer.from_pretrained(made.work / "mood")

    assert tokenizer("The FILM")["input_ids"] == tokenizer("the film")["input_ids"]
    assert mood.UNK not in tokenizer("quixotic")["input_ids"]
    assert tokenizer.convert_ids_to_tokens([mood.PAD, mood.CLS, mood.SEP]) == ["[PAD]", "[CLS]", "[SEP]"]


def test_the_card_tells_what_was_measured(made: Made) -> None:
    """The model card carries the accuracy and a row for every layer."""
    figures, card = made.runs[1][-1], (made.work / "mood" / "README.md").read_text("utf-8")

    assert f"**{figures['dev_accuracy']:.1%}**" in card
    assert [card.count(f"| {i} of 3 |") for i in (1, 2, 3)] == [1, 1, 1]
    assert figures["layer_agreement"][-1] == 1


def test_held_out_texts_are_not_trained_on(data: Path, made: Made) -> None:
    """Neither they nor dev's, even where the file repeats a sentence; the list is the one that was written."""
    out = mood.held_out(data)
    dev = [text for text, _ in mood.read_tsv(data / "sst2" / "dev.tsv")]
    never = {mood.key(text) for text in [*out, *dev]}
    train = [mood.key(text) for text, _ in mood.training(data)]

    assert len(out) == 28  # 30 % of a file this short
    assert not never & set(train)
    assert len(set(train)) == len(train) > 30
    assert not never & {mood.key(text) for text in mood.tales(data, 1000)}
    assert (made.work / "heldout.txt").read_text("utf-8").splitlines() == out == mood.held_out(data)


@pytest.fixture
def little(teacher: Path) -> mood.BertForSequenceClassification:
    """A classifier with dropout, the same at every call."""
    return mood.load_teacher(teacher)


def steps(model: mood.BertForSequenceClassification, work: Path, until: int) -> None:
    """Train for eight steps with a checkpoint after every four; break off at step `until`."""

    def loss_of(step: int) -> torch.Tensor:
        if step == until:
            raise KeyboardInterrupt
        ids = torch.from_numpy(np.random.default_rng(step).integers(5, 60, (4, 7)))
        return model(ids, labels=ids[:, 0] % 2).loss

    mood.run("cut", model, mood.Plan(steps=8, warmup=2), loss_of, lambda: 0.0, work, every=4)


def test_a_resumed_run_ends_as_one_that_was_never_cut(teacher: Path, tmp_path: Path) -> None:
    """Weights are equal to the last bit, dropout included."""
    whole, cut, resumed = (mood.load_teacher(teacher) for _ in range(3))
    (tmp_path / "whole").mkdir()

    steps(whole, tmp_path / "whole", until=99)
    with pytest.raises(KeyboardInterrupt):
        steps(cut, tmp_path, until=6)
    steps(resumed, tmp_path, until=99)

    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_another_plan_does_not_resume(little: mood.BertForSequenceClassification, tmp_path: Path) -> None:
    """A checkpoint of another plan is refused rather than continued."""
    steps(little, tmp_path, until=99)

    with pytest.raises(SystemExit, match="another plan"):
        mood.run("cut", little, mood.Plan(steps=9), lambda _: torch.zeros(()), lambda: 0.0, tmp_path)


def test_a_batch_depends_on_its_step_alone() -> None:
    """Step 7 sees the same rows in a resumed run; every row is framed, within the window, and free of other specials."""
    alike = np.arange(100)[:, None]
    pool, plan = mood.Pool([[10, 11, 12], [20] * 30], [[30, 31]], alike), mood.Plan(window=16, batch=32)

    ids, mask = mood.student_batch(pool, plan, 7, torch.device("cpu"))

    assert torch.equal(ids, mood.student_batch(pool, plan, 7, torch.device("cpu"))[0])
    assert not torch.equal(ids, mood.student_batch(pool, plan, 8, torch.device("cpu"))[0][:, : ids.shape[1]])
    assert (ids.shape[0], ids.shape[1] <= 16) == (32, True)
    assert (ids[:, 0] == mood.CLS).all()
    assert ((ids == mood.SEP).sum(1) == 1).all()
    assert torch.equal(ids != mood.PAD, mask.bool())


def test_a_pass_takes_each_row_once() -> None:
    """Labelled batches of one pass don't overlap, and the next pass has another order."""
    rows = [[0] * (1 + i % 9) for i in range(40)]
    plan = mood.Plan(batch=8)

    first, second = ([list(mood.labelled_batch(rows, plan, s)) for s in range(a, a + 5)] for a in (0, 5))

    assert sorted(i for picks in first for i in picks) == list(range(40))
    assert first != second


def test_a_student_as_wide_as_its_teacher_is_its_teacher(little: mood.BertForSequenceClassification) -> None:
    """Carving along the coordinate axes with every head and unit kept changes nothing."""
    little.eval()
    ids = torch.arange(5, 45).view(4, 10)
    _, use = mood.survey(little, ids, torch.ones_like(ids))
    plan = mood.Plan(hidden=32, mlp=48, positions=64)

    student = mood.carve(little, plan, torch.eye(32), use).eval()

    torch.testing.assert_close(student(ids).logits, little(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_hidden_size_between_two_heads_is_refused(little: mood.BertForSequenceClassification) -> None:
    """The student's heads are the teacher's, so its width is a multiple of theirs."""
    with pytest.raises(ValueError, match="multiple of the teacher's head size, 8"):
        mood.carve(little, mood.Plan(hidden=20), torch.eye(32), [])


@pytest.mark.parametrize(
    ("split", "natural"),
    [("i do n't care", "i don't care"), ("it 's a film", "it's a film"), ("the 's' key", "the 's' key")],
)
def test_contractions_are_joined(split: str, natural: str) -> None:
    """The corpus writes `do n't`; people don't."""
    assert mood.natural(split) == natural


def test_the_rate_rises_and_falls() -> None:
    """Warm-up, then a straight line to nothing; the hidden states' weight is gone at half-time."""
    plan = mood.Plan(steps=1000, warmup=100, lr=1.0)

    assert plan.rate(0) == pytest.approx(0.01)
    assert plan.rate(100) == 1
    assert plan.rate(550) == pytest.approx(0.5)
    assert plan.rate(999) < 0.01
    assert (plan.align(0), plan.align(500)) == (1, 0)


@pytest.mark.skipif(not (SHIPPED / "model.safetensors").exists(), reason="the shipped model is not in this tree")
def test_the_shipped_model_tells_praise_from_blame() -> None:
    """It is small, has six layers, and is right about two sentences that leave no doubt."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    model = AutoModelForSequenceClassification.from_pretrained(SHIPPED)
    texts = ["A wonderful, moving film with superb acting.", "A dull, tedious mess that I regret having watched."]

    answers = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.argmax(-1).tolist()

    assert [model.config.id2label[a] for a in answers] == ["positive", "negative"]
    assert model.config.num_hidden_layers >= 6
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*")) <= 12_000_000
