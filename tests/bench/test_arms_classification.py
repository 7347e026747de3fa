"""The contestants for classifiers: all label the same inputs, and how many labels differ is counted exactly."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.classifier_folders import sentences, write_image_classifier, write_pictures, write_text_classifier

from dynx.bench.arms.classification import (
    MAX_CASE_INPUTS,
    Count,
    Quality,
    answer_of,
    cut,
    full_answers,
    judge_answers,
    own_arms,
    peer_arms,
    readable,
)
from dynx.bench.arms.classification import sentences as words_of
from dynx.bench.gates import max_disagreement
from dynx.bench.measurements import Measurements, Outcome
from dynx.bench.result import Verdict
from dynx.bench.runner import Arm, measure
from dynx.early_exit import assemble, make_plan
from dynx.early_exit.agreement import AgreementScore
from dynx.early_exit.assembly import LoadedClassifier
from dynx.early_exit.engine import Exits
from dynx.early_exit.features import collect
from dynx.early_exit.heads import ExitHeads
from dynx.early_exit.plan import ClassifierRequest
from dynx.early_exit.preprocessing import Example
from dynx.errors import ModelError, UsageError
from dynx.runtime.binomial import two_sided

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DEPTHS = (1, 3)


def open_(folder: Path, **wish: Any) -> LoadedClassifier:
    """A folder's classifier, without a profile."""
    return assemble(make_plan(ClassifierRequest(model=str(folder), device="cpu", threads=1, profile="none", **wish)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT."""
    return write_text_classifier(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def assembly(folder: Path) -> LoadedClassifier:
    """It, loaded."""
    return open_(folder, batch_size=4)


def with_exits(assembly: LoadedClassifier, share: float) -> LoadedClassifier:
    """The same model with exits after layers 1 and 3, each taken by this share of the texts that they were fitted on."""
    rows = [row for row in assembly.preprocessor.rows(sentences(80, seed=1)) if isinstance(row, Example)]
    seen = collect(assembly, rows, DEPTHS, None)
    heads = ExitHeads.fit(seen.pooled, seen.reference_logits, "single")
    score = AgreementScore.fit(heads.run(seen.pooled), seen.reference_logits, "single")
    scores, _ = seen.evaluate(heads, score, 0.0)
    thresholds = np.quantile(scores, 1 - share, axis=0) if share < 1 else np.zeros(2)
    exits = Exits(DEPTHS, heads, score, thresholds)
    exit_profile: Any = SimpleNamespace(exits=lambda: exits, guarantee=None)
    return LoadedClassifier(assembly.plan, assembly.exit_model, assembly.preprocessor, assembly.labels, exit_profile)


def outputs(arms: Sequence[Arm[Any]], items: Sequence[Any]) -> dict[str, Outcome]:
    """What each arm makes of one case."""
    return {arm.name: arm.run(items) for arm in arms}


def contest(arms: Sequence[Arm[Any]], cases: Sequence[Any], rounds: int = 1) -> Measurements:
    """The arms in turns, on a clock that ticks with every look."""
    ticks = iter(range(1_000_000))
    return measure(arms, cases, rounds=rounds, warmup=0, clock=lambda: float(next(ticks)), rng=random.Random(0))


@pytest.mark.parametrize(
    ("count", "batch", "cases"),
    [(1, 32, 1), (767, 32, 1), (768, 32, 4), (872, 32, 4), (2560, 32, 5), (10_000, 32, 10), (100, 1, 6), (5, 1, 1)],
)
def test_inputs_are_cut_into_cases_like_jobs(count: int, batch: int, cases: int) -> None:
    """Four to eight of at least six full batches where the inputs suffice, none larger than a window, and all in order."""
    items = list(range(count))
    parts = cut(items, batch)

    assert [item for part in parts for item in part] == items
    assert len(parts) == cases
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert max(map(len, parts)) <= MAX_CASE_INPUTS


def test_all_arms_give_the_full_model_s_labels(assembly: LoadedClassifier) -> None:
    """Without exits, plain, bucketed and dynamic compute all layers and agree, in the order of the inputs."""
    texts = sentences(11)
    found = outputs(own_arms(assembly), texts)

    assert [arm.group for arm in own_arms(assembly)] == ["plain", "static", "dynamic"]
    assert found["plain"].output == found["bucketed"].output == found["dynamic"].output
    assert len(set(found["plain"].output)) > 1  # type: ignore[arg-type]
    assert {outcome.facts["mean_layers"] for outcome in found.values()} == {4}
    assert {outcome.units for outcome in found.values()} == {11}


def test_repeated_inputs_are_computed_once_by_batches_and_labelled_each(assembly: LoadedClassifier) -> None:
    """As `dynx classify` does; plain computes them all, as the pipeline does."""
    found = outputs(own_arms(assembly), ["the fox", "the king", "the fox"])

    assert {name: outcome.facts["repeated"] for name, outcome in found.items()} == {
        "plain": 0,
        "bucketed": 1,
        "dynamic": 1,
    }
    assert {outcome.units for outcome in found.values()} == {3}
    assert found["plain"].output == found["dynamic"].output


def test_dynamic_leaves_by_the_profile_s_exits_and_differences_are_counted(assembly: LoadedClassifier) -> None:
    """With exits that everything takes, layers are few, and agreement is the share of equal labels, input by input."""
    leaving = with_exits(assembly, 1.0)
    texts = sentences(40)
    arms = own_arms(leaving)
    quality = judge_answers(contest(arms, [texts[:20], texts[20:]], rounds=2), full=None, gold=None, tolerance=0.0)
    found = outputs(arms, texts)
    equal = sum(a == b for a, b in zip(found["plain"].output, found["dynamic"].output, strict=True))  # type: ignore[call-overload]

    assert quality["dynamic"].mean_layers == 1
    assert quality["dynamic"].agreement == quality["dynamic"].same == Count(equal, 40)
    assert 0 < equal < 40, "the test needs some labels that differ"
    assert quality["bucketed"].agreement == Count(40, 40)
    assert quality["bucketed"].mean_layers == quality["plain"].mean_layers == 4


def test_mean_layers_are_those_of_all_inputs_whatever_the_cases(assembly: LoadedClassifier) -> None:
    """Cases of different sizes, with repeated inputs in one, give the mean over the inputs that were computed."""
    some = with_exits(assembly, 0.5)
    texts = sentences(30)
    arms = own_arms(some)
    parts = [[*texts[:7], *texts[:4]], texts[7:]]
    quality = judge_answers(contest(arms, parts), full=None, gold=None, tolerance=0.0)
    alone = [float(outputs(arms, [text])["dynamic"].facts["mean_layers"]) for text in texts]  # type: ignore[arg-type]

    assert len(set(alone)) > 1, "the test needs different depths"
    assert quality["dynamic"].mean_layers == pytest.approx(sum(alone) / len(alone))


def scripted(**answers: Sequence[Sequence[Any]]) -> Measurements:
    """Arms that give these answers to one case, round by round."""

    def arm(name: str, rounds: Sequence[Sequence[Any]]) -> Arm[int]:
        turns = iter(rounds)

        def run(_: int) -> Outcome:
            answer = tuple(next(turns))
            return Outcome(len(answer), 1.0, answer)

        return Arm(name, run, "plain" if name == "plain" else "static", reference=name == "plain")

    rounds = len(next(iter(answers.values())))
    return contest([arm(name, turns) for name, turns in answers.items()], [0], rounds)


def test_an_input_counts_once_however_many_rounds_there_were() -> None:
    """Two rounds of three inputs are three comparisons, and one that differs in either round differs."""
    measured = scripted(plain=["abc", "abc"], other=["abc", "abd"])
    quality = judge_answers(measured, full=None, gold=["a", "x", None], tolerance=0.0)

    assert quality["other"] == Quality(
        Count(2, 3), Count(2, 3), Count(1, 2), None, by_label={"a": Count(1, 1), "b": Count(1, 1), "c": Count(0, 1)}
    )


def test_agreement_is_with_the_full_model_where_plain_isn_t_it() -> None:
    """In another precision plain may differ from the full model too, and both comparisons are kept."""
    quality = judge_answers(scripted(plain=["ab"], other=["ac"]), full=["x", "c"], gold=None, tolerance=0.0)

    assert (quality["plain"].agreement, quality["plain"].same) == (Count(0, 2), Count(2, 2))
    assert (quality["other"].agreement, quality["other"].same) == (Count(1, 2), Count(1, 2))


def test_numbers_agree_within_the_tolerance() -> None:
    """A regression's answers are as good as equal when no number is off by more."""
    measured = scripted(plain=[[(1.0, 2.0), (0.0, 0.0)]], other=[[(1.05, 2.0), (0.0, 0.2)]])

    assert judge_answers(measured, full=None, gold=None, tolerance=0.1)["other"].agreement == Count(1, 2)


def test_nothing_measured_says_nothing() -> None:
    """An interruption before the first round leaves no quality."""
    empty = scripted(plain=["a"], other=["a"])
    gone = Measurements(empty.groups, "plain", 1, 0, {"plain": [], "other": []}, {}, "interrupt", 0.0)

    assert judge_answers(gone, full=None, gold=None, tolerance=0.0) == {}
    assert words_of({}, 4) == []


def test_what_two_answers_are_compared_by() -> None:
    """A label; the set of labels above one half, in any order; the numbers."""
    scores = [("a", 0.7), ("b", 0.6), ("c", 0.1)]

    def found(label: str, scores: list[tuple[str, float]]) -> Any:
        return SimpleNamespace(label=label, scores=scores)

    assert answer_of("single", found("a", scores)) == "a"
    multi = [answer_of("multi", found("a,b", each)) for each in (scores, scores[::-1])]
    assert multi == [frozenset("ab")] * 2
    assert answer_of("regression", found("a", scores[:1])) == (0.7,)


def test_the_full_model_answers_where_texts_are_cut_or_precision_is_lower(
    folder: Path, assembly: LoadedClassifier
) -> None:
    """Plain is the full model in float32 at its own length, and is asked a second time only when it isn't."""
    texts = sentences(60)

    assert full_answers(assembly, texts) is None
    short = open_(folder, max_length=8, batch_size=4)
    plain = outputs(own_arms(assembly), texts)["plain"].output
    assert tuple(full_answers(short, texts) or ()) == plain
    assert outputs(own_arms(short), texts)["plain"].output != plain


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_transformers_pipeline_is_a_peer(tmp_path: Path, problem: str) -> None:
    """At its defaults and with batches, over the same weights, it gives the same answers."""
    tiny = open_(write_text_classifier(tmp_path / "tiny", "roberta", problem_type=problem), batch_size=3)
    texts = sentences(7)
    arms = [*own_arms(tiny), *peer_arms(tiny, cutting=False)]
    quality = judge_answers(contest(arms, [texts]), full=None, gold=None, tolerance=1e-4)

    assert [arm.name for arm in arms] == ["plain", "bucketed", "dynamic", "hf pipeline", "hf batch 3"]
    assert {name: q.agreement for name, q in quality.items()} == {arm.name: Count(7, 7) for arm in arms}
    assert quality["hf pipeline"].mean_layers is None


def test_the_pipeline_cuts_texts_where_it_must(folder: Path, assembly: LoadedClassifier) -> None:
    """A text longer than the model takes is cut by it as by dynx; at its defaults it would fail."""
    texts = ["the fox " * 60, "the king"]

    assert readable(assembly, texts) == ([0, 1], 1)
    found = outputs([own_arms(assembly)[0], *peer_arms(assembly, cutting=True)], texts)
    assert found["hf pipeline"].output == found["plain"].output
    with pytest.raises((IndexError, RuntimeError)):
        peer_arms(assembly, cutting=False)[0].run(texts)


def test_images_by_path(tmp_path: Path) -> None:
    """An image classifier takes files, opened anew by each arm, and the pipeline gives the same labels."""
    vit = open_(write_image_classifier(tmp_path / "vit"), batch_size=4)
    paths = write_pictures(tmp_path / "pictures", 6)
    (tmp_path / "pictures" / "broken.png").write_text("no picture")
    broken = tmp_path / "pictures" / "broken.png"

    assert readable(vit, [paths[0], broken, paths[1]]) == ([0, 2], 0)
    found = outputs([*own_arms(vit), *peer_arms(vit, cutting=False)], paths)
    assert len({outcome.output for outcome in found.values()}) == 1
    for arm in own_arms(vit):
        with pytest.raises(ModelError, match="can't be read a second time"):
            arm.run([broken])


@pytest.mark.parametrize(
    ("differing", "of", "verdict"),
    [(0, 100, Verdict.PASS), (2, 100, Verdict.PASS), (3, 100, Verdict.INCONCLUSIVE), (30, 1000, Verdict.FAIL)],
)
def test_disagreement_is_judged_by_its_share_and_its_exact_interval(differing: int, of: int, verdict: Verdict) -> None:
    """Within the bar passes; beyond it fails only when the whole interval is, and the reason has the figures."""
    gate = max_disagreement(differing, of, 0.02)
    low, high = two_sided(of, differing, 0.05)

    assert (gate.verdict, gate.measured, gate.bar) == (verdict, differing / of, 0.02)
    assert f"{differing:,} of {of:,} answers differ" in gate.reason
    assert f"[{100 * low:.2f}, {100 * high:.2f}]" in gate.reason
    assert (low > 0.02) == (verdict is Verdict.FAIL)


def test_disagreement_that_was_not_measured() -> None:
    """A crashed arm fails, an interruption decides nothing, and a bar that is no share is wrong usage."""
    assert max_disagreement(0, 0, 0.1, failure="it broke").verdict is Verdict.FAIL
    assert max_disagreement(0, 0, 0.1).verdict is Verdict.INCONCLUSIVE
    with pytest.raises(UsageError, match="from 0 to 1"):
        max_disagreement(0, 1, 1.5)
