"""The recipe of the models of pairs: runs from nothing, keeps paragraphs and texts out, makes ordinary folders."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from recipes import pairs
from support.commands import ROOT, SENTENCES
from support.pair_folders import VOCAB, pair_tokenizer
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

if TYPE_CHECKING:
    from pathlib import Path


def paragraph(number: int) -> str:
    """Three sentences that no other paragraph has."""
    return " ".join(f"The {number} fox saw the {part} king in a wood of gold." for part in ("old", "young", "sad"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Books and reviews laid out as the recipe wants them."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "sst2").mkdir()
    (folder / "tales").mkdir()
    lines = "".join(f"{SENTENCES[i % len(SENTENCES)]} {i}\t{i % 2}\n" for i in range(60))
    (folder / "sst2" / "train.tsv").write_text(lines)
    books = ["\n".join(paragraph(100 * book + i) for i in range(120)) for book in range(2)]
    with lzma.open(folder / "tales" / "train.txt.xz", "wt") as file:
        file.write("\n\n".join(books))
    return folder


@pytest.mark.parametrize(("which", "outputs"), [("rank", 1), ("nli", 2)])
def test_it_runs_from_nothing(which: str, outputs: int, data: Path, tmp_path: Path) -> None:
    """An ordinary folder, and inputs to calibrate and to measure on that differ."""
    base = tmp_path / "base"
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=VOCAB, **shape)).save_pretrained(base)
    pair_tokenizer("bert").save_pretrained(base)
    order = [sys.executable, "-m", "tests.recipes.pairs", which, "--data", data, "--work", tmp_path, "--base", base]
    subprocess.run([*map(str, order), "--steps", "2", "--inputs", "8"], cwd=ROOT, check=True, timeout=300)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / which).config.num_labels == outputs
    learn, test = ((tmp_path / f"{which}.{part}.jsonl").read_text().splitlines() for part in ("learn", "test"))
    assert len(learn) == 4 * len(test) > 0
    assert not set(learn) & set(test)


def test_what_is_measured_on_was_not_trained_on() -> None:
    """Paragraphs of queries are other ones than those of training rows."""
    books = ["\n".join(paragraph(i) for i in range(200))]
    rows = pairs.rank_rows(books, np.random.default_rng(0))
    trained = {text for _ in range(300) for text in next(rows)[:2]}
    asked = pairs.rank_queries(books, np.random.default_rng(1), 5)
    assert not trained & {document for query in asked for document in query["documents"]}
    assert json.dumps(asked)
