"""A job that certifies itself: the draw alone makes it true, whatever the inputs are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.classifier_folders import sentences
from support.exits import EPS, LAYERS, assembled

from dynx.early_exit import sample_certificate
from dynx.early_exit.audit import certify_sample
from dynx.early_exit.classifier import Classifier
from dynx.early_exit.profile_data import Evidence, FittedExits
from dynx.early_exit.types import EXACT_GUARANTEE
from dynx.errors import UsageError
from dynx.runtime.certify import Costs, Rules, leaves_at

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.early_exit.calibrate import Findings

pytestmark = pytest.mark.usefixtures("alone")

TOTAL, DRAWN, RISK, DELTA = 1500, 300, 0.03, 0.1


def world() -> tuple[Evidence, FittedExits]:
    """A job whose every answer is known, and rules of which the looser differ too often."""
    rng = np.random.default_rng(0)
    scores = rng.random((TOTAL, 2))
    agree = np.concatenate([rng.random((TOTAL, 2)) < 0.75 + 0.25 * scores, np.ones((TOTAL, 1), dtype=bool)], axis=1)
    levels = np.linspace(1, 0.2, 60)
    rules = Rules(np.stack([levels, levels], axis=1), "common", (0, 1), "")
    missing: Any = None
    fitted = FittedExits((1, 2), missing, missing, rules, {1: Costs((0.3, 0.6), 1.0, (0.0, 0.0))})
    return Evidence(scores, agree, None), fitted


def rest_differs(evidence: Evidence, thresholds: np.ndarray[Any, Any], rest: np.ndarray[Any, Any]) -> float:
    """Share of the job's other rows whose answer differs."""
    exits = leaves_at(thresholds, evidence.scores[rest])
    return float((~evidence.agree[rest][np.arange(len(rest)), exits]).mean())


def test_the_guarantee_by_simulation() -> None:
    """Over many draws, more than ε of the rest differ in at most δ of them; taking the sample's own word for it doesn't."""
    evidence, fitted = world()
    rng = np.random.default_rng(1)
    broken, naive, used, draws = 0, 0, 0, 300
    for _ in range(draws):
        order = rng.permutation(TOTAL)
        drawn, rest = order[:DRAWN], order[DRAWN:]
        seen = Evidence(evidence.scores[drawn], evidence.agree[drawn], None)
        columns = list(sample_certificate._differences(fitted, seen, range(DRAWN), DRAWN))
        found = certify_sample(columns, TOTAL, DRAWN, RISK, DELTA)
        if found.rule is not None:
            used += 1
            broken += rest_differs(evidence, fitted.rules.thresholds[found.rule], rest) > RISK
        tempting = max(i for i, column in enumerate(columns) if np.mean(column) <= RISK)
        naive += rest_differs(evidence, fitted.rules.thresholds[tempting], rest) > RISK

    assert used == draws
    assert broken <= DELTA * draws
    assert naive > 2 * DELTA * draws


def test_inputs_that_cannot_be_read_differ_from_nothing() -> None:
    """They were drawn, so they count as drawn."""
    evidence, fitted = world()
    seen = Evidence(evidence.scores[:3], evidence.agree[:3], None)
    loosest = list(sample_certificate._differences(fitted, seen, [0, 2, 4], 5))[-1]

    assert len(loosest) == 5
    assert loosest[1] is loosest[3] is False


@pytest.mark.parametrize(("total", "drawn"), [(0, 0), (1000, 0), (1191, 0), (1192, 298), (4000, 745), (100_000, 2000)])
def test_how_many_are_drawn(total: int, drawn: int) -> None:
    """A quarter at most, 2 % of a large job, and none where they could show nothing."""
    assert sample_certificate.sample_size(total, 0.02, 0.05) == drawn


def test_a_job_certifies_itself(known: Findings, easy: Path) -> None:
    """The sample is answered by the full model and the rest within the promise, in the order of the inputs."""
    texts = sentences(900, seed=2)
    classifier = Classifier(assembled(easy, max_disagreement=EPS))
    words = sample_certificate.certify(classifier, texts)
    answers = [answer for at in range(0, 900, 250) for answer in classifier.window(texts[at : at + 250])]
    full = Classifier(assembled(easy, plain=True)).window(texts)
    guarantee = classifier.receipt.guarantee
    drawn = sample_certificate._draw(900, sample_certificate.sample_size(900, EPS, 0.05))

    assert "exact hypergeometric bound" in words
    assert guarantee is not None
    assert (guarantee.basis, guarantee.n) == ("job", len(drawn))
    assert str(guarantee).startswith("at most 10 % of the others differ")
    assert all(answers[i].exit is None and answers[i].label == full[i].label for i in drawn)
    assert sum(a.label != b.label for a, b in zip(answers, full, strict=True)) <= EPS * (900 - len(drawn))
    assert classifier.receipt.mean_layers < 0.9 * LAYERS  # type: ignore[operator]


def test_a_job_learns_exits_of_its_own(steady: None, easy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a profile; broken rows don't shift the others' answers."""
    monkeypatch.setattr(sample_certificate, "LEARNING_INPUTS", 250)
    texts, runs, run = sentences(1700, seed=3), list[set[int]](), sample_certificate._run
    monkeypatch.setattr(sample_certificate, "_run", lambda *a: runs.append(set(a[2])) or run(*a))  # type: ignore[func-returns-value]
    classifier = Classifier(assembled(easy, max_disagreement=EPS))
    words = sample_certificate.certify(classifier, texts)
    answers = classifier.window(texts)
    full = Classifier(assembled(easy, plain=True)).window(texts)

    assert "exact hypergeometric bound" in words
    assert [len(numbers) for numbers in runs] == [250, sample_certificate.sample_size(1450, EPS, 0.05)]
    assert runs[0].isdisjoint(runs[1])
    assert classifier.exiting
    assert any(answer.exit is not None for answer in answers)
    assert sum(a.label != b.label for a, b in zip(answers, full, strict=True)) <= EPS * 1700


def test_jobs_that_run_at_full_depth(steady: None, easy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few inputs, too few different ones, or exits that don't pay: said in words, and every answer the model's own."""
    monkeypatch.setattr(sample_certificate, "LEARNING_INPUTS", 250)
    alike = [f"{i % 20} foxes" for i in range(1700)]
    for texts, words in (
        (sentences(50), "50 inputs are too few; from 1,232 on"),
        (alike, "no exit that can be learned"),
    ):
        classifier = Classifier(assembled(easy, max_disagreement=EPS))
        assert words in sample_certificate.certify(classifier, texts)
        assert classifier.receipt.guarantee == EXACT_GUARANTEE
        assert {answer.exit for answer in classifier.window(texts)} == {None}


def test_a_regression_needs_a_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything runs."""
    from support import classifiers
    from support.exits import write_easy

    monkeypatch.setattr(classifiers, "CLASSES", 1)
    with pytest.raises(UsageError, match="gives numbers"):
        sample_certificate.certify(Classifier(assembled(write_easy(tmp_path / "number"))), sentences(5))


def test_scores_near_their_thresholds_count_both_ways() -> None:
    """Without noise a row leaves where it leaves; with it, at every exit that a change of the scores by as much could lead to."""
    scores = np.asarray([[0.2, 0.9], [0.49, 0.9], [0.51, 0.2], [0.8, 0.1], [0.2, 0.3]])
    thresholds = np.asarray([0.5, 0.5])
    exact = sample_certificate.may_leave_at(thresholds, scores, 0.0)
    assert exact.argmax(-1).tolist() == leaves_at(thresholds, scores).tolist()
    assert exact.sum(-1).tolist() == [1] * 5
    found = sample_certificate.may_leave_at(thresholds, scores, 0.05)
    assert [np.flatnonzero(row).tolist() for row in found] == [[1], [0, 1], [0, 2], [0], [2]]
    never = sample_certificate.may_leave_at(np.asarray([np.inf, 0.5]), scores, 0.05)
    assert not never[:, 0].any()


def test_the_noise_of_scores_is_rounding(known: Findings, easy: Path) -> None:
    """Rows that run alone have nearly the scores that they have in batches."""
    assembly = assembled(easy, max_disagreement=EPS)
    assert assembly.exit_profile is not None
    items, fitted = sentences(60, seed=4), assembly.exit_profile.fitted
    seen, present = sample_certificate._run(assembly, items, range(60), fitted.depths, {})
    evidence = sample_certificate.collect_evidence(fitted, seen, assembly)
    assert 0 <= sample_certificate.score_noise(assembly, items, present, seen, evidence) < 1e-4
