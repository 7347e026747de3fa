"""Tiny random classifiers on disk, as anybody's: weights, tokenizer or image processor, and inputs for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from support.classifiers import SIDE, classifier
from support.commands import SENTENCES, train_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

VOCAB = 400
WORDS = " ".join(SENTENCES).split()


def write_text_classifier(folder: Path, kind: str = "bert", **changes: Any) -> Path:
    """A classifier of texts with a byte-level tokenizer that pads."""
    tokenizer = train_tokenizer(VOCAB)
    tokenizer.pad_token = tokenizer.eos_token
    classifier(kind, vocab_size=VOCAB, pad_token_id=tokenizer.pad_token_id, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_image_classifier(folder: Path, kind: str = "vit") -> Path:
    """A classifier of images with its processor."""
    from transformers import ViTImageProcessor

    classifier(kind).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different texts of 1 to 12 words."""
    rng = np.random.default_rng(seed)
    return [f"{i} " + " ".join(rng.choice(WORDS, int(rng.integers(1, 12)))) for i in range(count)]


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Pictures of noise, their names in order."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{i:03}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return paths
