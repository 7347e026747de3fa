"""The questions that every peer answers: as many of each kind of Spec-Bench, evenly spaced over its file.

MT-bench's eight categories count as one kind, so there are six.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
"""The kinds of questions; a category that is none of them is one of MT-bench's."""


@dataclass(frozen=True)
class Question:
    """One question: its id and kind, and its text or its prompt's token ids."""

    id: str
    kind: str
    text: str


def read(path: Path) -> list[Question]:
    """Return all questions of a file, with the first turn of each."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [Question(str(row["question_id"]), _kind(row["category"]), row["turns"][0]) for row in rows]


def choose(questions: list[Question], count: int) -> list[Question]:
    """Return `count` of them, the same number of each kind as far as it divides, kinds in turn."""
    found: list[Question] = []
    kinds = [kind for kind in KINDS if any(q.kind == kind for q in questions)]
    for at, kind in enumerate(kinds):
        own = [q for q in questions if q.kind == kind]
        share = min(len(own), count // len(kinds) + (at < count % len(kinds)))
        found += [own[i * len(own) // share] for i in range(share)]
    # Kinds in turn, so that a run that stops early has some of each.
    turns: dict[str, int] = {}
    order = {}
    for question in found:
        order[question.id] = turns[question.kind] = turns.get(question.kind, -1) + 1
    return sorted(found, key=lambda q: (order[q.id], KINDS.index(q.kind)))


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a question as a chat, or as it stands where the model has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        return list(tokenizer(text)["input_ids"])
    messages = [{"role": "user", "content": text}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])


def long_prompt(tokenizer: Any, questions: list[Question], length: int) -> list[int]:
    """Return a prompt of exactly `length` ids: a chat about as much of the questions' texts as fits."""
    texts = "\n\n".join(q.text for q in questions if q.kind in ("summarization", "rag"))
    body = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids = prompt_ids(tokenizer, "")
    if not getattr(tokenizer, "chat_template", None):
        return [*ids, *body][:length]
    marked = prompt_ids(tokenizer, "\u0001")
    at = next(i for i, (a, b) in enumerate(zip(ids, marked, strict=False)) if a != b)
    return [*ids[:at], *body[: length - len(ids)], *ids[at:]]


def _kind(category: str) -> str:
    return category if category in KINDS else "mt_bench"
