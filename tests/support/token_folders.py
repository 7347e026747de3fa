"""Tiny random models that label tokens, as folders with tokenizers of words and of bytes, and sentences for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoModelForTokenClassification, BertTokenizerFast

from support.classifiers import classifier
from support.commands import SENTENCES
from support.pair_folders import VOCAB, damp, pair_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
STRATEGIES = ("none", "simple", "first", "average", "max")
WORDS = sorted(set(" ".join(SENTENCES).split()))


def word_tokenizer(folder: Path, limit: int) -> Any:
    """A WordPiece tokenizer whose pieces are the letters, alone and inside words, and a few whole words."""
    letters = sorted({letter for word in WORDS for letter in word.lower()} | set("0123456789"))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += [word.lower() for word in WORDS[::3] if word.isalpha() and len(word) > 1]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n")
    return BertTokenizerFast.from_pretrained(str(folder), model_max_length=limit)


def write_token_classifier(
    folder: Path, kind: str = "bert", *, limit: int = 60, easy: bool = False, **changes: Any
) -> Path:
    """A model that labels tokens; of a BERT with words as pieces. An `easy` one knows most labels early."""
    tokenizer = word_tokenizer(folder, limit) if kind == "bert" else pair_tokenizer(kind, limit)
    names = dict(enumerate(LABELS))
    settings = {"vocab_size": VOCAB, "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 512}
    settings |= {"num_labels": len(LABELS), "id2label": names, "label2id": {n: i for i, n in names.items()}}
    model = classifier(kind, maker=AutoModelForTokenClassification, **{**settings, "type_vocab_size": 2, **changes})
    if easy:
        damp(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0, *, longest: int = 12) -> list[str]:
    """Different sentences; the words are often cut into several pieces."""
    rng = np.random.default_rng(seed)
    return [f"{i} {' '.join(rng.choice(WORDS, int(rng.integers(1, longest))))}" for i in range(count)]
