"""Make prompts from the vocabulary of a pipeline, for calibration without the user's prompts."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynx.diffusion.engine import Engine

MIN_WORD_LETTERS = 3
"""Least letters of a word; shorter tokens are mostly word pieces."""

CALIBRATION_PROMPTS = 420
"""Number of prompts that calibration makes from a vocabulary."""

WORD_TOKEN = re.compile(r"(?:[Ġ▁ ])?([a-z]+)(?:</w>)?")
"""Pattern of a token that is a whole lower-case word."""

WORD_START_MARKS = frozenset("Ġ▁ ")
"""Characters with which tokenizers mark the start of a word."""


def words(tokenizer: Any) -> list[str]:
    """List the whole words among a tokenizer's tokens by token id, which usually sorts them from frequent to rare.

    Vocabularies mark the ends of words (CLIP's), their beginnings (Ġ, ▁), or only the pieces that go on (##).
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    ends = any(token.endswith("</w>") for token, _ in vocabulary)
    begins = not ends and any(token[:1] in WORD_START_MARKS for token, _ in vocabulary if token)
    found = []
    for token, _ in vocabulary:
        whole = token.endswith("</w>") if ends else token[:1] in WORD_START_MARKS if begins else True
        match = WORD_TOKEN.fullmatch(token)
        if token and match and whole and len(match[1]) >= MIN_WORD_LETTERS:
            found.append(match[1])
    return list(dict.fromkeys(found))


def prompts(tokenizer: Any, count: int, seed: int = 0) -> list[str]:
    """Make `count` prompts of one to three words, reproducible by seed; numbered ones where the vocabulary has no words."""
    known = words(tokenizer)[:4000]
    rng = random.Random(seed)  # noqa: S311 - no secret
    if not known:
        return [f"picture {i + 1}" for i in range(count)]
    return [" ".join(rng.choice(known) for _ in range(rng.choice((1, 1, 2, 3)))) for _ in range(count)]


def own_prompts(engine: Engine, count: int = CALIBRATION_PROMPTS) -> list[str]:
    """Make `count` prompts from the words of a pipeline's own tokenizer; none for a pipeline that takes no prompt."""
    pipe = engine.pipe
    tokenizer = next((t for name in ("tokenizer", "tokenizer_2") if (t := getattr(pipe, name, None)) is not None), None)
    if tokenizer is None or not engine.adapter.prompted:
        return []
    return prompts(tokenizer, count)
