"""The recipe of the model of entities: runs from nothing, continues where it was, and keeps names and sentences out."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from recipes import entities
from recipes.fine_tune import fine_tune
from support.commands import ROOT
from support.token_folders import word_tokenizer
from transformers import AutoModelForTokenClassification, BertConfig, BertModel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SENTENCE = "The {} fox saw the {} king in a wood of gold near the old mill."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Books laid out as the recipe wants them."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "tales").mkdir()
    words = ["old", "young", "sad", "good", "bad", "lost", "red", "wise", "late", "poor"]
    books = [
        "\n".join(" ".join(SENTENCE.format(f"{book}", f"{a} {b} {c}") for c in words[:3]) for a in words for b in words)
        for book in ("grey", "white")
    ]
    with lzma.open(folder / "tales" / "train.txt.xz", "wt") as file:
        file.write("\n\n".join(books))
    return folder


def test_it_runs_from_nothing(data: Path, tmp_path: Path) -> None:
    """An ordinary folder, sentences to calibrate and to measure on that differ, and the places of their entities."""
    base = tmp_path / "base"
    tokenizer = word_tokenizer(base, 60)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    order = [sys.executable, "-m", "tests.recipes.entities", "--data", data, "--work", tmp_path, "--base", base]
    subprocess.run([*map(str, order), "--steps", "2", "--inputs", "60"], cwd=ROOT, check=True, timeout=300)
    made = AutoModelForTokenClassification.from_pretrained(tmp_path / "entities")
    assert tuple(made.config.id2label.values()) == entities.LABELS
    learn, test = ((tmp_path / f"{part}.txt").read_text().splitlines() for part in ("learn", "test"))
    assert (len(learn), len(test)) == (60, 20)
    truth = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert [row["text"] for row in truth] == test
    kinds = {each["entity_group"] for row in truth for each in row["entities"]}
    assert kinds <= set(entities.KINDS)
    assert kinds


def test_names_and_sentences_to_measure_on_are_not_those_of_training(data: Path) -> None:
    """Neither occurs on both sides."""
    rng = np.random.default_rng(0)
    sides = [{entities.Namer(rng, test=test).name() for _ in range(2000)} for test in (False, True)]
    assert not sides[0] & sides[1]
    found = [set(entities.book_sentences(data, test=test)) for test in (False, True)]
    assert all(found)
    assert not found[0] & found[1]


def test_labels_are_those_of_first_tokens() -> None:
    """Each word's first token begins or continues an entity; later tokens, and those that were added, are left out."""
    row = entities.Tagged("go to Port Anbel now", ((6, 16, "LOC"),))
    offsets = [(0, 0), (0, 2), (3, 5), (6, 10), (11, 13), (13, 16), (17, 20), (0, 0)]
    begin, inside = entities.LABELS.index("B-LOC"), entities.LABELS.index("I-LOC")
    assert entities.targets(row, offsets) == [-100, 0, 0, begin, inside, -100, 0, -100]


def test_training_continues_where_it_was(tmp_path: Path) -> None:
    """An interrupted run that is started again ends with the weights of one that wasn't interrupted."""

    def batches(until: int | None) -> Iterator[Any]:
        draw = torch.Generator().manual_seed(1)
        number = 0
        while number != until:
            number += 1
            yield torch.randn(4, 3, generator=draw)
        raise KeyboardInterrupt

    def run(until: int | None, checkpoint: Path) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        fine_tune(model, batches(until), lambda m, x: m(x).square().mean(), steps=100, rate=0.01, checkpoint=checkpoint)
        return model.state_dict()

    whole = run(None, tmp_path / "a.pt")
    with pytest.raises(KeyboardInterrupt):
        run(67, tmp_path / "b.pt")
    assert (tmp_path / "b.pt").is_file()
    again = run(None, tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
