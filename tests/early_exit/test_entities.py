"""Entities of untouched models are what transformers' pipeline finds, and texts that leave early keep the promise."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
from support.pair_folders import KINDS
from support.token_folders import STRATEGIES, sentences, write_token_classifier
from transformers import pipeline

import dynx
from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

CLOSE = 2e-5
"""Largest difference of a probability: batches are padded in other ways."""


def found_by_pipeline(folder: Path, texts: list[str], strategy: str) -> list[list[dict[str, Any]]]:
    """What transformers' pipeline finds, text by text."""
    pipe = pipeline("token-classification", str(folder), aggregation_strategy=strategy)
    with warnings.catch_warnings(action="ignore"):
        return [pipe(text) for text in texts]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_entities_are_those_of_the_pipeline(kind: str, strategy: str, tmp_path: Path) -> None:
    """Labels, words, places and scores, of texts that fit and of texts that are truncated."""
    folder = write_token_classifier(tmp_path / kind, kind, limit=14)
    texts = sentences(24)
    expected = found_by_pipeline(folder, texts, strategy)
    model = dynx.load_classifier(str(folder), threads=1, aggregation_strategy=strategy)
    found = list(model.classify(texts))
    assert model.stats.truncated > 0
    assert sum(map(len, expected)) > 5
    for mine, theirs in zip(found, expected, strict=True):
        key = "entity" if strategy == "none" else "entity_group"
        assert [(e.label, e.word, e.start, e.end, e.index) for e in mine.entities] == [
            (e[key], e["word"], e["start"], e["end"], e.get("index")) for e in theirs
        ]
        assert [e.score for e in mine.entities] == pytest.approx([float(e["score"]) for e in theirs], abs=CLOSE)


def test_a_model_of_tokens_has_its_own_settings(tmp_path: Path) -> None:
    """What is about one answer per input is refused, and so is the setting for other models."""
    folder = str(write_token_classifier(tmp_path / "m"))
    for given in ({"per_class": True}, {"within": 0.1}, {"form": "pair"}, {"aggregation_strategy": "mean"}):
        with pytest.raises(InvalidInput):
            dynx.load_classifier(folder, threads=1, **given)
    with pytest.raises(InvalidInput, match="label tokens"):
        dynx.load_classifier(threads=1, aggregation_strategy="simple")
    (empty,) = dynx.load_classifier(folder, threads=1).classify([""])
    assert empty.entities == []
    assert empty.error is None
