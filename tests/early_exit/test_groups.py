"""Rows of groups leave early only where the group's result stays, and the promise about results is certified."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.exits import keep
from support.pair_folders import NLI, fix_group_costs, queries, write_pair_classifier

import dynx
from dynx.early_exit import assemble, group_calibrate, make_plan
from dynx.early_exit.features import Inputs
from dynx.early_exit.group_certificate import certify as certify_run
from dynx.early_exit.group_classifier import GroupClassifier
from dynx.early_exit.groups.certify import GroupEvidence, certify, choose_rules, simulate
from dynx.early_exit.groups.rule import Positive, TopK
from dynx.early_exit.items import Query
from dynx.early_exit.plan import ClassifierRequest
from dynx.errors import InvalidInput, NoProfileError
from dynx.runtime.certify import Costs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.calibrate import Findings

EPS = 0.1
COSTS = Costs((0.3, 0.6), 1.0, (0.01, 0.01))
ASKED = [Query(query, tuple(documents)) for query, documents in queries(200, 8)]
FRESH = [Query(query, tuple(documents)) for query, documents in queries(120, 8, seed=9)]
LABELS = ("wood", "a king", "gold", "a fox", "the sea")
TEXTS = [query.query for query in ASKED]


def evidence(groups: int, rows: int, noise: float, seed: int = 0) -> GroupEvidence:
    """Values of random groups, and estimates of two exits that are off by `noise` and half of it."""
    rng = np.random.default_rng(seed)
    full = rng.normal(size=groups * rows)
    off = np.stack([full + noise * rng.normal(size=len(full)), full + noise / 2 * rng.normal(size=len(full))])
    return GroupEvidence(off, full, full, np.full(groups, rows))


def test_the_first_are_never_dropped_by_exact_estimates() -> None:
    """Where estimates are the final values, every rule keeps each result, and looser rules cost less."""
    seen = evidence(50, 12, 0.0)
    costs = []
    for margin in (3.0, 1.0, 0.1):
        found = simulate(TopK(3), np.asarray([margin, margin]), np.ones(2), seen, COSTS)
        assert not found.differs.any()
        costs.append(found.cost)
    assert costs[0] > costs[1] > costs[2]


def test_rows_of_the_result_run_all_layers() -> None:
    """However loose the rule, k rows of each group reach the end, and with `ends_decided` none has to."""
    seen = evidence(30, 10, 0.5)
    loose = np.asarray([1e-9, 1e-9])
    ends = simulate(TopK(4), loose, np.ones(2), seen, COSTS).exits.reshape(30, 10)
    assert ((ends == 2).sum(1) == 4).all()
    assert (simulate(TopK(1, ends_decided=True), loose, np.ones(2), seen, COSTS).exits == 0).all()


def test_ties_within_rounding_agree_and_others_do_not() -> None:
    """Documents whose scores differ by rounding may stand in for each other."""
    chosen = np.asarray([[True, False, False]])
    valid = np.ones((1, 3), dtype=bool)
    assert TopK(1).agrees(chosen, np.asarray([[1.0, 1.0 + 1e-7, 0.0]]), valid)[0]
    assert not TopK(1).agrees(chosen, np.asarray([[1.0, 1.01, 0.0]]), valid)[0]
    assert Positive().agrees(chosen, np.asarray([[2.0, -1.0, -3.0]]), valid)[0]
    assert not Positive().agrees(chosen, np.asarray([[2.0, 1.0, -3.0]]), valid)[0]


@pytest.mark.parametrize("rule", [TopK(3), TopK(1, ends_decided=True), Positive()], ids=["top", "best", "positive"])
def test_the_promise_holds_for_groups_that_were_not_seen(rule: Any) -> None:
    """Of 60 certificates at 95 %, each from some of 8,000 groups, hardly more than 5 % are broken by the share among all."""
    rng = np.random.default_rng(3)
    whole = evidence(8000, 8, 0.8, seed=5)

    def some(numbers: Any) -> GroupEvidence:
        rows = (numbers[:, None] * 8 + np.arange(8)).ravel()
        return GroupEvidence(whole.estimates[:, rows], whole.final[rows], whole.full[rows], np.full(len(numbers), 8))

    broken = used = 0
    for _ in range(60):
        order = rng.permutation(8000)
        part, last = some(order[:150]), some(order[150:550])
        errors = part.errors()
        rules = choose_rules(rule, errors, part, COSTS, 0.05, 0.05, 400)
        found = certify(rule, rules, errors, last, COSTS, 0.05, 0.05)
        used += found.active
        broken += simulate(rule, np.asarray(found.thresholds), errors, whole, COSTS).differs.mean() > 0.05
    assert used > 30
    assert broken <= 8  # of 60, 5 % are 3; more than 8 come with probability 0.3 %


@pytest.fixture
def fixed_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs and clock fixed."""
    fix_group_costs(monkeypatch)


def loaded(folder: Path, **wish: Any) -> LoadedClassifier:
    return assemble(make_plan(ClassifierRequest(str(folder), threads=1, max_disagreement=EPS, **wish)))


def learned(folder: Path, items: list[Any], **wish: Any) -> Findings:
    names = [item.name if isinstance(item, Query) else item for item in items]
    clock = iter(range(10**6)).__next__
    assembly = loaded(folder, profile="none", backend="torch", **wish)
    return group_calibrate.calibrate(assembly, Inputs(items, names), budget=1.0, clock=clock)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder that knows most scores early."""
    return write_pair_classifier(tmp_path_factory.mktemp("rank") / "m", easy=True)


@pytest.fixture
def ranked(ranker: Path, alone: None, fixed_costs: None) -> Iterator[Findings]:
    """Its calibration for the first three documents, stored in this test's cache."""
    found = learned(ranker, ASKED, form="ranking", top_k=3)
    keep(found)
    return found


@pytest.mark.usefixtures("ranked")
def test_documents_leave_early_and_the_first_are_the_full_models(ranker: Path) -> None:
    """Fewer layers than all; at most the share promised differs; the scores of what is printed are the full model's own."""
    assembly = loaded(ranker, form="ranking", top_k=3, backend="torch")
    assert assembly.group_profile is not None, assembly.why_full_depth
    job = GroupClassifier(assembly)
    full = GroupClassifier(loaded(ranker, form="ranking", top_k=3, profile="none"))
    mine, theirs = job.window(FRESH), full.window(FRESH)
    differ = [m != t for m, t in zip(mine, theirs, strict=True)]
    same = [{d.index for d in m.documents} == {d.index for d in t.documents} for m, t in zip(mine, theirs, strict=True)]
    assert sum(not each for each in same) <= EPS * len(FRESH)
    assert any(differ)  # by the layers, at least
    for m, t, equal in zip(mine, theirs, same, strict=True):
        if equal:
            assert [d.index for d in m.documents] == [d.index for d in t.documents]
            assert [d.score for d in m.documents] == pytest.approx([d.score for d in t.documents], abs=1e-5)
    assert job.receipt.rows == 8 * len(FRESH)
    assert job.receipt.layers < 0.8 * full.receipt.layers
    assert sum(job.receipt.exit_counts.values()) == job.receipt.rows
    assert job.receipt.guarantee is not None
    assert job.receipt.guarantee.eps == EPS


@pytest.mark.usefixtures("ranked")
def test_another_number_of_documents_is_certified_on_the_same_groups(ranker: Path) -> None:
    """The certificate is for the k that is requested; without k all documents count, and none leaves."""
    for k in (1, 5):
        assembly = loaded(ranker, form="ranking", top_k=k, backend="torch")
        known = assembly.group_profile
        if known is not None:
            errors, seen = known.fitted.errors, known.evidence
            again = simulate(TopK(k), np.asarray(known.certificate.thresholds), errors, seen, known.fitted.costs[32])
            assert int(again.differs.sum()) == known.certificate.disagreements
    whole = loaded(ranker, form="ranking", backend="torch")
    assert whole.group_profile is None
    assert "top_k" in whole.why_full_depth


@pytest.mark.usefixtures("ranked")
def test_a_profile_of_rankings_is_for_rankings(ranker: Path) -> None:
    """Pairs of the same model have no profile."""
    with pytest.raises(NoProfileError):
        loaded(ranker, form="pair", require_profile=True)
    assert loaded(ranker, form="ranking", top_k=3, require_profile=True, backend="torch").group_profile is not None


@pytest.mark.usefixtures("ranked")
def test_the_engine_does_what_was_simulated(ranker: Path) -> None:
    """Exits and results of the certifying rule, row by row, are those that the simulation finds on the same groups."""
    from dynx.early_exit.group_certificate import _run

    assembly = loaded(ranker, form="ranking", top_k=3, backend="torch", batch_size=7)
    known = assembly.group_profile
    assert known is not None
    seen, _ = _run(assembly, FRESH, known.fitted)
    thresholds = np.asarray(known.certificate.thresholds)
    expected = simulate(TopK(3), thresholds, known.fitted.errors, seen, known.fitted.costs_at(7))
    job = GroupClassifier(assembly)
    job.window(FRESH)
    depths = [*known.fitted.depths, assembly.exit_model.depth]
    counts = {depths[k]: int(n) for k, n in enumerate(np.bincount(expected.exits, minlength=len(depths))) if n}
    close = {d: abs(job.receipt.exit_counts[d] - counts.get(d, 0)) for d in depths}
    assert max(close.values()) <= 2, (counts, job.receipt.exit_counts)  # rounding of a margin, in other batches


@pytest.mark.usefixtures("ranked")
def test_an_audit_turns_exits_off_where_the_promise_is_broken(ranker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every query's result is compared with the full model's; where most differ, the alarm comes and exits end."""
    assembly = loaded(ranker, form="ranking", top_k=3, backend="torch")
    alarms: list[str] = []
    good = GroupClassifier(assembly, audit=1.0, on_alarm=alarms.append)
    good.window(FRESH)
    assert good.audit is not None
    assert good.audit.n == len(FRESH)
    assert not alarms
    monkeypatch.setattr(TopK, "agrees", lambda _, chosen, *__: np.zeros(len(chosen), dtype=bool))
    bad = GroupClassifier(assembly, audit=1.0, on_alarm=alarms.append)
    bad.window(FRESH)
    assert len(alarms) == 1
    assert not bad.exiting
    assert bad.receipt.guarantee is None


@pytest.mark.usefixtures("ranked")
def test_a_run_is_certified_on_a_sample_of_itself(ranker: Path) -> None:
    """By the profile's rules; with too few inputs all layers run."""
    job = GroupClassifier(loaded(ranker, form="ranking", top_k=3, backend="torch"))
    words = certify_run(job, FRESH * 3)
    assert "exact hypergeometric bound" in words or "full depth" in words
    few = GroupClassifier(loaded(ranker, form="ranking", top_k=3, backend="torch"))
    assert "too few" in certify_run(few, FRESH[:20])
    assert not few.exiting


@pytest.mark.usefixtures("alone", "fixed_costs")
@pytest.mark.parametrize("several", [False, True])
def test_labels_that_cannot_win_leave_early(tmp_path: Path, several: bool) -> None:
    """The label is the full model's for all but the share promised; another list of labels has no promise."""
    folder = write_pair_classifier(tmp_path / "nli", labels=NLI, easy=True)
    wish: dict[str, Any] = {"form": "zero-shot", "candidates": LABELS, "multi_label": several}
    keep(learned(folder, TEXTS, **wish))
    assembly = loaded(folder, backend="torch", **wish)
    assert assembly.group_profile is not None, assembly.why_full_depth
    fresh = [query.query for query in FRESH]
    job = GroupClassifier(assembly)
    full = GroupClassifier(loaded(folder, profile="none", **wish))
    pairs = list(zip(job.window(fresh), full.window(fresh), strict=True))
    assert sum(mine.label != theirs.label for mine, theirs in pairs) <= EPS * len(fresh)
    assert job.receipt.layers < full.receipt.layers
    other = loaded(folder, backend="torch", **(wish | {"candidates": (*LABELS[:-1], "the sky")}))
    assert other.group_profile is None
    assert "for the labels" in other.why_full_depth


@pytest.mark.usefixtures("alone")
def test_settings_that_make_no_sense(ranker: Path, tmp_path: Path) -> None:
    """One clear line each."""
    nli = write_pair_classifier(tmp_path / "nli", labels=NLI)
    wrong: list[tuple[Path, dict[str, Any], str]] = [
        (ranker, {"form": "ranking", "top_k": 0}, "top_k"),
        (nli, {"form": "zero-shot"}, "candidates"),
        (nli, {"form": "zero-shot", "candidates": ("a", "a")}, "twice"),
        (nli, {"form": "zero-shot", "candidates": ("a", " ")}, "empty"),
        (nli, {"form": "zero-shot", "candidates": ("a", "b"), "hypothesis": "no place"}, "hypothesis"),
        (nli, {"form": "zero-shot", "candidates": ("a", "b"), "hypothesis": "{x}"}, "hypothesis"),
        (nli, {"form": "text", "candidates": ("a", "b")}, "zero-shot"),
    ]
    for folder, wish, said in wrong:
        with pytest.raises(InvalidInput, match=said):
            dynx.load_classifier(str(folder), threads=1, **wish)


def test_a_query_without_documents_has_a_reason(ranker: Path) -> None:
    """And the others are ranked."""
    model = dynx.load_classifier(str(ranker), form="ranking", top_k=2, threads=1, profile="none")
    empty, good = model.classify([("a fox", []), {"query": "a fox", "documents": ["one", "two", "three"]}])
    assert empty.error == "there are no documents"
    assert [len(empty.documents), len(good.documents)] == [0, 2]
