"""Pairs, rankings and candidate labels of untouched models are what transformers' pipelines make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.pair_folders import KINDS, NLI, pairs, queries, write_pair_classifier
from transformers import pipeline

import dynx
from dynx.errors import UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

CLOSE = 2e-5
"""Largest difference of a probability: batches are padded in other ways."""

THREE = {0: "contradiction", 1: "entailment", 2: "neutral"}
SEVERAL = pairs(24)
LABELS = ["wood", "a king", "gold"]


def with_types(items: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"text": a, "text_pair": b} for a, b in items]


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_labelled_as_by_the_pipeline(kind: str, tmp_path: Path) -> None:
    """All scores, for pairs that fit and pairs that are truncated, in every form in which a pair may be given."""
    folder = write_pair_classifier(tmp_path / kind, kind, labels=NLI)
    expected = pipeline("text-classification", str(folder))(with_types(SEVERAL), truncation=True, top_k=None)
    model = dynx.load_classifier(str(folder), form="pair", threads=1)
    for given in (SEVERAL, [list(pair) for pair in SEVERAL], with_types(SEVERAL)):
        found = list(model.classify(given))
        assert [p.label for p in found] == [one[0]["label"] for one in expected]
        for mine, theirs in zip(found, expected, strict=True):
            scores = {one["label"]: one["score"] for one in theirs}
            assert dict(mine.scores) == pytest.approx(scores, abs=CLOSE)
    assert model.stats.truncated > 0


def test_what_is_no_pair_is_refused(tmp_path: Path) -> None:
    """A text alone, three texts, a number."""
    model = dynx.load_classifier(str(write_pair_classifier(tmp_path / "m", labels=NLI)), form="pair", threads=1)
    for value in ("a text", ("a", "b", "c"), 5, {"text": "a"}, ("a", None)):
        with pytest.raises(UsageError, match="is no pair"):
            list(model.classify([value]))


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_ranked_by_the_models_scores(kind: str, tmp_path: Path) -> None:
    """Order and scores of all documents, and of the first ones, are those of the pipeline's scores."""
    folder = write_pair_classifier(tmp_path / kind, kind)
    asked = queries(5, 9)
    pipe = pipeline("text-classification", str(folder))
    every, first = (
        list(dynx.load_classifier(str(folder), form="ranking", top_k=k, threads=1).classify(asked)) for k in (None, 3)
    )
    for (query, documents), ranking, top in zip(asked, every, first, strict=True):
        scores = [one["score"] for one in pipe(with_types([(query, d) for d in documents]), truncation=True)]
        order = np.argsort([-score for score in scores], kind="stable").tolist()
        assert [each.index for each in ranking.documents] == order
        assert [each.score for each in ranking.documents] == pytest.approx([scores[i] for i in order], abs=CLOSE)
        assert top.documents == ranking.documents[:3]


def test_rankings_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    """Of a folder as sentence-transformers saves it, with its activation and its own limit of tokens."""
    library: Any = pytest.importorskip("sentence_transformers")
    import torch

    folder = write_pair_classifier(tmp_path / "model")
    for activation in (None, torch.nn.Identity(), torch.nn.Tanh()):
        encoder = library.CrossEncoder(str(folder), device="cpu", activation_fn=activation, max_length=24)
        saved = tmp_path / type(activation).__name__
        encoder.save_pretrained(str(saved))
        ranker = dynx.load_classifier(str(saved), form="ranking", threads=1)
        for query, documents in queries(3, 8, seed=3):
            expected = library.CrossEncoder(str(saved), device="cpu").rank(query, documents)
            found = ranker.rank(query, documents)
            assert [each.index for each in found.documents] == [one["corpus_id"] for one in expected]
            assert [each.score for each in found.documents] == pytest.approx(
                [one["score"] for one in expected], abs=CLOSE
            )


def test_ranking_takes_models_with_one_score(tmp_path: Path) -> None:
    """A model that labels pairs is refused, in a line."""
    folder = write_pair_classifier(tmp_path / "nli", labels=NLI)
    with pytest.raises(UnsupportedModelError, match="3 outputs"):
        dynx.load_classifier(str(folder), form="ranking", threads=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [NLI, THREE])
@pytest.mark.parametrize("several", [False, True])
def test_candidate_labels_are_scored_as_by_the_pipeline(
    kind: str, names: dict[int, str], several: bool, tmp_path: Path
) -> None:
    """One label of several, or any number of them; entailment first among the outputs, or not."""
    folder = write_pair_classifier(tmp_path / kind, kind, labels=names)
    texts = [a for a, _ in SEVERAL[:6]]
    pipe = pipeline("zero-shot-classification", str(folder))
    expected = pipe(texts, LABELS, multi_label=several, hypothesis_template="It is about {}.")
    model = dynx.load_classifier(
        str(folder), form="zero-shot", candidates=LABELS, multi_label=several, hypothesis="It is about {}.", threads=1
    )
    for mine, theirs in zip(model.classify(texts), expected, strict=True):
        scores = dict(zip(theirs["labels"], theirs["scores"], strict=True))
        assert dict(mine.scores) == pytest.approx(scores, abs=CLOSE)
        if several:
            assert mine.label == ",".join(name for name in LABELS if scores[name] > 0.5)
        else:
            assert mine.label == theirs["labels"][0]


def test_a_model_without_entailment_has_no_candidates(tmp_path: Path) -> None:
    """The reason names its labels."""
    folder = write_pair_classifier(tmp_path / "other", labels={0: "bad", 1: "good"})
    with pytest.raises(UnsupportedModelError, match="bad, good"):
        dynx.load_classifier(str(folder), form="zero-shot", candidates=("a", "b"), threads=1)
