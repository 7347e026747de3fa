"""Entities of untouched models are what transformers' pipeline finds, and texts that leave early keep the promise."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.exits import fix_costs, keep
from support.pair_folders import KINDS
from support.token_folders import STRATEGIES, sentences, write_token_classifier
from transformers import pipeline

import dynx
from dynx.early_exit import assemble, make_plan
from dynx.early_exit.calibrate import calibrate
from dynx.early_exit.classifier import Classifier
from dynx.early_exit.entities.labels import EntityLabels, entity_set
from dynx.early_exit.entities.preprocessing import counted_of
from dynx.early_exit.features import Inputs, collect_any
from dynx.early_exit.plan import ClassifierRequest
from dynx.early_exit.preprocessing import Example
from dynx.early_exit.sample_certificate import certify
from dynx.early_exit.token_features import TokenFeatures
from dynx.errors import InvalidInput
from dynx.runtime.certify import leaves_at

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.types import Entities

EPS = 0.1

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


@pytest.fixture
def calibrated(tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch) -> LoadedClassifier:
    """A model that knows most labels early, under the profile of its calibration."""
    fix_costs(monkeypatch)
    folder = write_token_classifier(tmp_path / "m", easy=True)
    request = ClassifierRequest(str(folder), threads=1, max_disagreement=EPS, profile="none", backend="torch")
    assembly = assemble(make_plan(request), calibrating=True)
    texts = sentences(400)
    found = calibrate(assembly, Inputs(texts, texts), budget=1.0, clock=iter(range(10**6)).__next__)
    keep(found)
    return loaded(folder)


def loaded(folder: Path, **wish: Any) -> LoadedClassifier:
    wish = {"backend": "torch", **wish}
    return assemble(make_plan(ClassifierRequest(str(folder), threads=1, max_disagreement=EPS, **wish)))


def sets_of(results: list[Entities]) -> list[Any]:
    """What the promise is about."""
    return [entity_set(each.entities) for each in results]


FRESH = sentences(120, seed=9)


def test_texts_leave_early_and_keep_the_promise(calibrated: LoadedClassifier) -> None:
    """Fewer layers than all; of fresh texts at most the share promised has other entities, and the certificate counts those."""
    assert calibrated.exit_profile is not None, calibrated.why_full_depth
    job = Classifier(calibrated)
    full = Classifier(loaded(calibrated.plan.source.folder, profile="none"))
    mine, theirs = job.window(FRESH), full.window(FRESH)
    differ = [a != b for a, b in zip(sets_of(mine), sets_of(theirs), strict=True)]
    assert sum(differ) <= EPS * len(FRESH)
    assert job.receipt.layers < 0.9 * full.receipt.layers
    assert sum(job.receipt.exit_counts.values()) == len(FRESH)
    assert job.receipt.guarantee is not None
    assert job.receipt.guarantee.eps == EPS
    certificate = calibrated.exit_profile.certificate
    assert certificate.disagreements <= EPS * certificate.n


def test_the_engine_does_what_was_simulated(calibrated: LoadedClassifier) -> None:
    """In batches of mixed lengths, with rows parked and merged, texts leave where their evidence says, with those entities."""
    known = calibrated.exit_profile
    assert known is not None
    rows = [row for row in calibrated.preprocessor.rows(FRESH) if isinstance(row, Example)]
    seen = collect_any(calibrated, rows, known.fitted.depths, None)
    assert isinstance(seen, TokenFeatures)
    scores, agree = seen.evaluate(known.fitted.heads, known.fitted.score, 0.0)
    exits = leaves_at(np.asarray(known.certificate.thresholds), scores)
    answers = calibrated.engine(known.exits(), batch=7).window(rows)
    found = [len(known.fitted.depths) if a.exit is None else a.exit for a in answers]
    assert sum(a != b for a, b in zip(found, exits.tolist(), strict=True)) <= 2  # rounding of a score, in other batches
    labels = calibrated.labels
    assert isinstance(labels, EntityLabels)
    same = [a == b for a, b in zip(labels.sets(rows, [a.logits for a in answers]), seen.truth, strict=True)]
    wrong = [i for i, own in enumerate(found) if own == exits[i] and same[i] != agree[i, own]]
    assert not wrong


def test_another_strategy_has_no_profile(calibrated: LoadedClassifier) -> None:
    """What was certified of one strategy's entities says nothing of another's."""
    other = loaded(calibrated.plan.source.folder, aggregation_strategy="max")
    assert other.exit_profile is None
    assert "aggregation strategy simple" in other.why_full_depth


def test_an_audit_counts_texts_with_other_entities(
    calibrated: LoadedClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each audited text is compared with the full model's; where most differ, the alarm comes and exits end."""
    alarms: list[str] = []
    job = Classifier(calibrated, audit=1.0, on_alarm=alarms.append)
    job.window(FRESH)
    assert job.audit is not None
    assert job.audit.n == len(FRESH)
    assert not alarms
    assert job.receipt.audit_layers == 4 * len(FRESH)

    broken = Classifier(calibrated, audit=1.0, on_alarm=alarms.append)
    monkeypatch.setattr(EntityLabels, "same", lambda self, rows, *_: [False] * len(rows))
    broken.window(FRESH)
    assert len(alarms) == 1
    assert not broken.exiting
    assert broken.receipt.guarantee is None


def test_a_sample_of_a_run_certifies_its_exits(calibrated: LoadedClassifier) -> None:
    """The sampled texts get the full model's entities, and the bound is about the others."""
    job = Classifier(calibrated)
    texts = sentences(1200, seed=4)
    words = certify(job, texts)
    guarantee = job.receipt.guarantee
    assert guarantee is not None
    full = sets_of(Classifier(loaded(calibrated.plan.source.folder, profile="none")).window(texts))
    differ = sum(a != b for a, b in zip(sets_of(job.window(texts)), full, strict=True))
    assert (guarantee.basis == "job") == ("of the other" in words), words
    assert differ <= EPS * len(texts)


def test_only_first_pieces_count_where_only_they_are_looked_at(tmp_path: Path) -> None:
    """With the strategy first, the labels of later pieces of words neither keep a text back nor change its entities."""
    folder = write_token_classifier(tmp_path / "m")
    text = "1 king queen apples golden"
    counts = {}
    for strategy in ("first", "simple"):
        assembly = loaded(folder, aggregation_strategy=strategy, profile="none")
        (row,) = assembly.preprocessor.rows([text])
        assert isinstance(row, Example)
        counts[strategy] = int(counted_of(row).sum())
        if strategy == "first":
            (answer,) = assembly.engine().window([row])
            hidden = np.where(counted_of(row)[:, None], answer.logits, np.nan)
            labels = assembly.labels
            assert isinstance(labels, EntityLabels)
            assert labels.sets([row], [hidden]) == labels.sets([row], [answer.logits])
    assert counts["first"] == len(text.split()) < counts["simple"]


def test_evidence_of_whole_texts_certifies_none_that_are_cut(calibrated: LoadedClassifier) -> None:
    """A run that cuts texts shorter than calibration did promises nothing, with exits or without."""
    cut = loaded(calibrated.plan.source.folder, max_length=8)
    assert cut.exit_profile is None
    assert cut.certified is None
    assert Classifier(cut).receipt.guarantee is None
