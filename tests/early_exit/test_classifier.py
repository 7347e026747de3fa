"""A job's answers, its receipt, and the watch over its promise."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from support.classifier_folders import sentences, write_image_classifier, write_pictures
from support.exits import EPS, LAYERS, assembled
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dynx.early_exit.classifier import Classifier
from dynx.early_exit.types import EXACT_GUARANTEE, Guarantee, Prediction, Receipt
from dynx.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.calibrate import Findings

pytestmark = pytest.mark.usefixtures("alone")


def test_plain_answers_are_those_of_transformers(easy: Path) -> None:
    """Labels and probabilities of the untouched model, one text at a time, whatever was batched and padded."""
    texts = ["", *sentences(30), "a fox and a key " * 40]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(easy), AutoTokenizer.from_pretrained(easy)
    answers = Classifier(assembled(easy, plain=True)).window(texts)

    for text, answer in zip(texts[1:], answers[1:], strict=True):
        encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
        with torch.no_grad():
            p = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[0].softmax(0)
        assert answer.label == model.config.id2label[int(p.argmax())]
        assert [score for _, score in answer.scores] == pytest.approx(p.tolist(), abs=1e-5)


def test_the_receipt_adds_up(known: Findings, easy: Path) -> None:
    """Every input is counted once, in the layers that were computed for it."""
    texts = [*sentences(80, seed=4), "a fox", "a fox", "a fox and a key " * 40]
    classifier = Classifier(assembled(easy, max_disagreement=EPS))
    answers = [*classifier.window(texts[:50]), *classifier.window(texts[50:])]
    receipt = classifier.receipt

    assert (receipt.inputs, receipt.errors, receipt.truncated, receipt.repeated) == (83, 0, 1, 1)
    assert receipt.computed == 82
    assert receipt.layers == sum(answer.layers for answer in answers)
    assert receipt.exit_counts.total() == 82
    assert receipt.layers == sum(layer * count for layer, count in receipt.exit_counts.items())
    assert receipt.mean_layers == pytest.approx(receipt.layers / 82)
    assert {answer.exit for answer in answers} - {None} <= set(known.profile.fitted["depths"])
    assert answers[81].label == answers[80].label
    assert answers[81].layers == 0
    assert receipt.json()["left_after"] == {str(k): v for k, v in sorted(receipt.exit_counts.items())}


def test_what_cannot_be_read_stays_in_its_place(tmp_path: Path) -> None:
    """A broken picture is an error in the order of the inputs, and costs nothing."""
    good = write_pictures(tmp_path / "pictures", 3)
    vit = write_image_classifier(tmp_path / "vit")
    classifier = Classifier(assembled(vit))
    answers = classifier.window([good[0], tmp_path / "nowhere.png", good[1], tmp_path, good[2]])

    assert [answer.error for answer in answers] == [None, "no such file", None, "a folder, not an image", None]
    assert answers[1].label is answers[1].score is None
    assert (classifier.receipt.errors, classifier.receipt.computed) == (2, 3)
    assert [a.label for a in Classifier(assembled(vit)).window(good)] == [a.label for a in answers[::2]]
    assert [a.error for a in classifier.window([tmp_path])] == ["a folder, not an image"]
    assert classifier.window([]) == []


def broken(assembly: LoadedClassifier) -> LoadedClassifier:
    """With exits that everything takes at once, whatever is promised."""
    exit_profile = assembly.exit_profile
    assert exit_profile is not None
    first = (1e-12, *(float("inf") for _ in exit_profile.certificate.thresholds[1:]))
    assembly.exit_profile = replace(exit_profile, certificate=replace(exit_profile.certificate, thresholds=first))
    return assembly


def test_the_audit_ends_a_broken_promise(known: Findings, easy: Path) -> None:
    """It says so once; nothing is promised from then on, and every answer is the full model's."""
    heard: list[str] = []
    classifier = Classifier(broken(assembled(easy, max_disagreement=0.05)), audit=0.5, on_alarm=heard.append)
    texts = sentences(900, seed=5)
    assert classifier.exiting
    answers = [answer for at in range(0, 900, 100) for answer in classifier.window(texts[at : at + 100])]

    assert not classifier.exiting
    assert len(heard) == 1
    assert "the promise of 5 % doesn't hold here" in heard[0]
    assert classifier.receipt.guarantee is None
    assert answers[0].exit == 1
    assert {answer.layers for answer in answers[-100:]} == {LAYERS}
    assert classifier.receipt.audit_layers > 0


def test_the_audit_of_a_promise_that_holds(known: Findings, easy: Path) -> None:
    """Nothing is heard, a share is checked, and the answers are those of a run without it."""
    heard: list[str] = []
    texts = sentences(400, seed=6)
    watched = Classifier(assembled(easy, max_disagreement=EPS), audit=0.25, on_alarm=heard.append)
    answers = watched.window(texts)

    assert heard == []
    assert watched.exiting
    assert watched.audit is not None
    assert 50 < watched.audit.n < 150
    assert watched.receipt.audit_layers == LAYERS * watched.audit.n
    assert answers == Classifier(assembled(easy, max_disagreement=EPS)).window(texts)


def test_shares_of_an_audit(easy: Path) -> None:
    """Between 0 and 1."""
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="`audit`"):
            Classifier(assembled(easy), audit=share)


def test_a_guarantee_in_words() -> None:
    """What is promised, at which confidence, and of which answers."""
    assert str(EXACT_GUARANTEE) == "every answer is the full model's"
    assert str(Guarantee(0.02, 0.05)) == "at most 2 % differ from the full model's (95 % confidence)"
    assert "of the others" in str(Guarantee(0.02, 0.05, basis="job"))
    assert EXACT_GUARANTEE.json()["confidence"] == 1
    assert Guarantee(0.01, 0.1, 500, 2, "profile").json() == {
        "max_disagreement": 0.01,
        "confidence": 0.9,
        "certified_on": 500,
        "disagreements": 2,
        "basis": "profile",
    }


def test_a_receipt_of_nothing() -> None:
    """No figure is made up."""
    receipt = Receipt(4)

    assert receipt.mean_layers is receipt.per_second is None
    assert receipt.json()["mean_layers"] is None


def test_ranking() -> None:
    """The answer first, the others by score, though an exit's head may have scored another one higher by rounding."""
    prediction = Prediction("b", 0.4, [("a", 0.1), ("c", 0.4), ("b", 0.4)])

    assert [label for label, _ in prediction.ranked()] == ["b", "c", "a"]
