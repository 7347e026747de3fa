"""A promise about exits holds as often as it says, on data whose truth is known; and mutants of the method are caught."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dynx.errors import UsageError
from dynx.runtime import certify as certification
from dynx.runtime.binomial import binomial_tail
from dynx.runtime.certify import (
    Certificate,
    Costs,
    Rules,
    certify,
    choose_rules,
    deduplicate,
    leaves_at,
    simulate,
    split,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

EPS, DELTA, N = 0.02, 0.05, 500
K = 4
COSTS = Costs(reach=(0.2, 0.4, 0.6, 0.8), full=1.0, check=(0.005,) * K)


def world(n: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Rows of latent difficulty: an exit deeper than it mostly agrees, and the score knows so only roughly."""
    rng = np.random.default_rng(seed)
    lead = np.linspace(0.5, 2.5, K) - rng.normal(size=(n, 1)) + 0.6 * rng.normal(size=(n, K))
    agree = rng.random((n, K)) < 1 / (1 + np.exp(-3 * lead - 1))
    return 1 / (1 + np.exp(-(3 * lead + 0.8 * rng.normal(size=(n, K))))), agree


TRUTH = world(20_000, 1)


def true_risk(thresholds: object) -> float:
    """Disagreement over the whole population."""
    return simulate(thresholds, *TRUTH, COSTS).disagreements / len(TRUTH[0])


def part(rng: np.random.Generator, n: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Independent rows of the population."""
    rows = rng.integers(0, len(TRUTH[0]), n)
    return TRUTH[0][rows], TRUTH[1][rows]


@pytest.fixture(scope="module")
def repeats() -> list[tuple[Rules, NDArray[np.float64], NDArray[np.bool_]]]:
    """500 random splits: 50 lists of rules, each to be certified on 10 other parts."""
    out = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        rules = choose_rules(*part(rng, 300), COSTS, EPS, DELTA, N)
        out += [(rules, *part(rng, N)) for _ in range(10)]
    return out


def violations(repeats: list[tuple[Rules, NDArray[np.float64], NDArray[np.bool_]]]) -> tuple[int, float]:
    """How many certificates are false, and the mean speed-up."""
    false, speed = 0, 0.0
    for rules, s, agree in repeats:
        found = certify(rules, s, agree, COSTS, EPS, DELTA)
        false += true_risk(found.thresholds) > EPS
        speed += found.speedup
    return false, speed / len(repeats)


def naive(rules: Rules, s: NDArray[np.float64], agree: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The loosest rule whose observed disagreement is within eps: what one would do without this module."""
    passed = [t for t in rules.thresholds if simulate(t, s, agree, COSTS).disagreements <= EPS * len(s)]
    return passed[-1] if passed else np.full(K, math.inf)


def test_the_promise_is_kept_and_thresholds_by_eye_break_it(repeats: list) -> None:
    """Over 500 splits at most delta of the certificates are false (with binomial slack); by eye far more; and it still pays."""
    false, speed = violations(repeats)
    by_eye = sum(true_risk(naive(*r)) > EPS for r in repeats)

    assert stats.binom.sf(false - 1, len(repeats), DELTA) > 0.01
    assert stats.binom.sf(by_eye - 1, len(repeats), DELTA) < 1e-9
    assert by_eye > 3 * max(false, 1) + 50
    assert speed > 1.3


def test_a_sequence_that_returns_the_failed_rule_is_caught(repeats: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the first threshold that failed in place of the last that passed. On coarse lists it breaks the promise."""

    def off_by_one(p_values: Iterable[float], delta: float) -> int | None:
        for i, p in enumerate(p_values):
            if p > delta:
                return i
        return None

    coarse = [(Rules(r.thresholds[::5], r.family, r.kept, r.words), s, agree) for r, s, agree in repeats]
    false, _ = violations(coarse)
    monkeypatch.setattr(certification, "fixed_sequence", off_by_one)
    mutant, _ = violations(coarse)

    assert stats.binom.sf(false - 1, len(coarse), DELTA) > 0.01
    assert stats.binom.sf(mutant - 1, len(coarse), DELTA) < 1e-6


def edge(n: int, bad: int) -> tuple[Rules, NDArray[np.float64], NDArray[np.bool_]]:
    """One rule, always to leave at the first exit, and rows of which `bad` would differ."""
    agree = np.ones((n, K), dtype=bool)
    agree[:bad] = False
    return Rules(np.array([[0.5, math.inf, math.inf, math.inf]]), "common", (0,), ""), np.full((n, K), 0.9), agree


@pytest.mark.parametrize(("n", "bad"), [(149, 0), (236, 1), (523, 5), (2000, 29)])
def test_the_edge_of_the_test_is_exact(n: int, bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many disagreements pass, one row less or one disagreement more doesn't; the mutant that tests with n+1 differs."""
    assert certify(*edge(n, bad), COSTS, EPS, DELTA).active
    assert not certify(*edge(n, bad + 1), COSTS, EPS, DELTA).active
    below = n - 1 if n < 2000 else min(m for m in range(1900, 2001) if binomial_tail(m, bad, EPS) <= DELTA) - 1
    assert not certify(*edge(below, bad), COSTS, EPS, DELTA).active

    monkeypatch.setattr(certification, "binomial_tail", lambda n, k, p: binomial_tail(n + 1, k, p))
    monkeypatch.setattr(certification, "smallest_sample", lambda *_: 1)
    assert certify(*edge(below, bad), COSTS, EPS, DELTA).active


def test_rules_from_the_certifying_rows_are_caught() -> None:
    """Mutant: thresholds picked on the rows that certify them, each exit just above what differed there, break the promise."""
    false = 0
    for seed in range(200):
        s, agree = part(np.random.default_rng(seed), N)
        picked = np.where(agree, 0.0, s).max(axis=0) + 1e-9
        found = certify(Rules(picked[None], "common", tuple(range(K)), ""), s, agree, COSTS, 0.004, 0.2)
        false += found.active and true_risk(found.thresholds) > 0.004

    assert stats.binom.sf(false - 1, 200, 0.2) < 1e-6


def test_rules_come_from_one_part_and_the_choice_from_another(repeats: list) -> None:
    """A certificate's thresholds are one of the rules drawn up before, whatever the certifying rows score."""
    for rules, s, agree in repeats[::25]:
        found = certify(rules, s, agree, COSTS, EPS, DELTA)
        assert not found.active or (rules.thresholds == np.array(found.thresholds)).all(axis=1).any()


def test_candidates_share_delta() -> None:
    """Of ten candidates each must pass at delta/10: 149 good rows are enough for one alone, and 263 for one of ten."""
    assert certify(*edge(149, 0), COSTS, EPS, DELTA).active
    few = certify(*edge(262, 0), COSTS, EPS, DELTA, candidates=10)
    assert not few.active
    assert "263 inputs are the fewest" in few.words
    assert certify(*edge(263, 0), COSTS, EPS, DELTA, candidates=10).active


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 5))
def test_simulating_equals_walking(seed: int, n: int, exits: int) -> None:
    """Row by row and exit by exit, the slow way gives the same exits, disagreements and cost."""
    rng = np.random.default_rng(seed)
    s, agree = rng.integers(0, 5, (n, exits)) / 4, rng.random((n, exits)) < 0.5
    t = np.where(rng.random(exits) < 0.3, math.inf, rng.integers(0, 5, exits) / 4)
    costs = Costs(tuple(np.arange(exits) / exits), 1.0, tuple(rng.random(exits)))
    at, differ, total = [], 0, 0.0
    for row in range(n):
        spent = 0.0
        for k in range(exits):
            spent += costs.check[k] if t[k] < math.inf else 0
            if s[row, k] >= t[k] and s[row, k] > 0:
                at.append(k)
                differ += not agree[row, k]
                total += spent + costs.reach[k]
                break
        else:
            at.append(exits)
            total += spent + costs.full
    found = simulate(t, s, agree, costs)

    assert found.exits.tolist() == at
    assert found.disagreements == differ == found.differs.sum()
    assert found.cost == pytest.approx(total / n)


def test_rules_run_from_strict_to_loose() -> None:
    """Each further rule's thresholds are no higher anywhere, and more rows leave at each or earlier."""
    s, agree = world(400, 5)
    rules = choose_rules(s, agree, COSTS, EPS, DELTA, N)
    exits = leaves_at(rules.thresholds, s)

    assert (np.diff(rules.thresholds[:, list(rules.kept)], axis=0) <= 0).all()
    assert (np.diff(exits, axis=0) <= 0).all()
    assert (exits[0] == K).mean() > 0.9
    assert rules.thresholds.min() > 0


def test_exits_that_never_pay_are_dropped() -> None:
    """An exit that knows nothing and costs to check is out; one that answers all is all there is."""
    s, agree = world(400, 5)
    s[:, 0] = 0.0
    dear = Costs(COSTS.reach, 1.0, (0.1, 0.005, 0.005, 0.005))
    assert 0 not in choose_rules(s, agree, dear, EPS, DELTA, N).kept

    s[:, 0], agree[:, 0] = np.linspace(0.98, 0.999, 400), True
    rules = choose_rules(s, agree, COSTS, EPS, DELTA, N)
    assert rules.kept == (0,)
    assert np.isinf(rules.thresholds[:, 1:]).all()
    assert "1 of 4 exits" in rules.words


def test_what_an_exit_saves_sets_its_threshold() -> None:
    """In the family by cost an exit that saves less asks for more, in proportion: (1 - t) / saved is one number."""
    grid = certification._grid("cost", np.ones(K, bool), world(400, 5)[0], COSTS, 20)
    mu = (1 - grid) / (1 - np.array(COSTS.reach))
    free = grid > certification.MIN_THRESHOLD
    assert all(np.allclose(row[ok], row[ok][0]) for row, ok in zip(mu, free, strict=True) if ok.any())


def test_too_little_data_means_full_depth_and_says_why() -> None:
    """Fewer rows than could ever show it, rules that all fail, exits that don't pay: no row leaves early, and the words tell."""
    few = certify(*edge(100, 0), COSTS, EPS, DELTA)
    assert not few.active
    assert few.disagreements == 0
    assert few.words == "full depth: 149 inputs are the fewest for 2 % at 95 %; 100 are too few."

    bad = certify(*edge(500, 100), COSTS, EPS, DELTA)
    assert not bad.active
    assert "even the strictest rule differs on 100 of 500" in bad.words

    dear = Costs(COSTS.reach, 1.0, (0.9,) * K)
    useless = certify(*edge(500, 0), dear, EPS, DELTA)
    assert not useless.active
    assert "more than they save" in useless.words
    assert useless.speedup == 1.0


def test_no_exit_ever_scores() -> None:
    """Scores of 0 mean never: the rules are empty, the certificate is full depth, nothing breaks."""
    s, agree = np.zeros((300, K)), np.ones((300, K), dtype=bool)
    rules = choose_rules(s, agree, COSTS, EPS, DELTA, 300)
    assert not certify(rules, s, agree, COSTS, EPS, DELTA).active


def test_a_certificate_tells_per_class_and_survives_json() -> None:
    """Rows and disagreements add up over classes and exits; JSON without infinities brings back the same."""
    rng = np.random.default_rng(0)
    rules = choose_rules(*part(rng, 300), COSTS, EPS, DELTA, 2000)
    s, agree = part(rng, 2000)
    found = certify(rules, s, agree, COSTS, EPS, DELTA, classes=rng.integers(0, 3, 2000))

    assert found.active
    assert len(found.by_class) == 3
    assert sum(rows for rows, _ in found.by_class) == found.n == sum(found.exits) == 2000
    assert sum(bad for _, bad in found.by_class) == found.disagreements
    assert found.words.startswith("with 95 % confidence at most 2 % of answers differ")
    text = json.dumps(found.to_json(), allow_nan=False)
    assert Certificate.from_json(json.loads(text)) == found
    with pytest.raises(ValueError, match="above 0"):
        Certificate.from_json({**found.to_json(), "thresholds": [0.0]})
    with pytest.raises(KeyError):
        Certificate.from_json({})


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 2**32))
def test_a_split_is_a_partition(n: int, seed: int) -> None:
    """Three disjoint parts hold every row once, the last about half, the same for the same seed."""
    parts = split(n, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    assert len(parts) == 3
    assert abs(len(parts[2]) - n / 2) <= 1
    assert all(np.array_equal(a, b) for a, b in zip(parts, split(n, seed), strict=True))


def test_the_same_text_counts_once() -> None:
    """First occurrences are kept, in order; white space and composed letters don't make a difference, case does."""
    texts = ["a b", "c", " a  b\n", "caf\u00e9", "cafe\u0301", "C", "", " ", "\ud800"]
    assert deduplicate(texts).tolist() == [0, 1, 3, 5, 6, 8]
    assert deduplicate([]).tolist() == []


def test_nonsense_is_refused() -> None:
    """Shapes, costs and scores that can't be are a UsageError."""
    s, agree = world(10, 0)
    rules = Rules(np.full((1, 2), 0.5), "common", (0, 1), "")
    nan = np.where(s > 0, math.nan, s)
    for call in (
        lambda: Costs((), 1.0, ()),
        lambda: Costs((0.1,), 1.0, (0.1, 0.2)),
        lambda: Costs((math.nan,), 1.0, (0.1,)),
        lambda: simulate([0.5], s, agree, COSTS),
        lambda: simulate([math.nan] * K, s, agree, COSTS),
        lambda: simulate([0.5] * K, nan, agree, COSTS),
        lambda: simulate([0.5] * K, s, agree[:5], COSTS),
        lambda: simulate([0.5] * K, s, agree.astype(int), COSTS),
        lambda: simulate([0.5] * K, s[:0], agree[:0], COSTS),
        lambda: certify(rules, s, agree, COSTS, EPS, DELTA),
        lambda: certify(*edge(200, 0), COSTS, 0.0, DELTA),
        lambda: certify(*edge(200, 0), COSTS, EPS, DELTA, candidates=0),
        lambda: certify(*edge(200, 0), COSTS, EPS, DELTA, classes=np.zeros(3, int)),
        lambda: split(10, 0, (0.5, 0.6)),
        lambda: split(-1, 0),
    ):
        with pytest.raises(UsageError):
            call()


def test_full_depth_may_differ_too() -> None:
    """A column more says it of full depth, as of another precision: it counts for every row that never leaves."""
    s, agree = world(400, 5)
    deep = np.random.default_rng(0).random(400) < 0.97
    wide = np.concatenate([agree, deep[:, None]], axis=1)
    never = np.full(K, math.inf)

    assert simulate(never, s, agree, COSTS).disagreements == 0
    assert simulate(never, s, wide, COSTS).disagreements == (~deep).sum()
    some = simulate(np.full(K, 0.9), s, wide, COSTS)
    expected = [not wide[i, k] for i, k in enumerate(some.exits)]
    assert some.differs.tolist() == expected
    same = np.concatenate([agree, np.ones((400, 1), dtype=bool)], axis=1)
    assert simulate(np.full(K, 0.9), s, same, COSTS).differs.tolist() == (
        simulate(np.full(K, 0.9), s, agree, COSTS).differs.tolist()
    )


def test_a_full_depth_that_differs_too_often_certifies_nothing() -> None:
    """No rule can be stricter than full depth, so where that breaks the promise there is no certificate."""
    s, agree = world(2000, 6)
    deep = np.arange(2000) % 20 > 0  # 5 % differ
    rules = choose_rules(*world(500, 7), COSTS, EPS, DELTA, 2000)
    wide = np.concatenate([agree, deep[:, None]], axis=1)

    assert certify(rules, s, agree, COSTS, EPS, DELTA).active
    assert not certify(rules, s, wide, COSTS, EPS, DELTA).active


def test_shapes_of_agreements() -> None:
    """As many columns as exits, or one more; nothing else."""
    s, _ = world(50, 8)
    for columns in (K - 1, K + 2):
        wrong = np.ones((50, columns), dtype=bool)
        with pytest.raises(UsageError, match="don't fit each other"):
            simulate(np.full(K, 0.5), s, wrong, COSTS)


def test_exits_are_dropped_only_if_asked() -> None:
    """Looks that cost a tenth each don't all pay; without pruning every exit stays in the rules."""
    dear = Costs(COSTS.reach, COSTS.full, (0.1,) * K)
    pruned = choose_rules(*world(2000, 9), dear, EPS, DELTA, N)
    whole = choose_rules(*world(2000, 9), dear, EPS, DELTA, N, prune=False)

    assert len(pruned.kept) < K
    assert whole.kept == tuple(range(K))
    assert np.isfinite(whole.thresholds).any(axis=0).all()
    dropped = [k for k in range(K) if k not in pruned.kept]
    assert np.isinf(pruned.thresholds[:, dropped]).all()


def test_costs_of_some_exits() -> None:
    """In the order asked for, with the same full cost."""
    costs = Costs((0.1, 0.2, 0.3), 1.0, (0.01, 0.02, 0.03))

    assert costs.at((0, 2)) == Costs((0.1, 0.3), 1.0, (0.01, 0.03))
    with pytest.raises(UsageError):
        costs.at(())


def test_a_bound_for_each_class_protects_the_rare_one() -> None:
    """A rule that loses half of a rare class passes in total, and not for each class; with too few rows of a class none does."""
    rng = np.random.default_rng(7)
    n = 4000
    classes = (rng.random(n) < 0.08).astype(np.int64)
    scores = rng.random((n, 1))
    agree = np.ones((n, 2), dtype=bool)
    agree[:, 0] = (classes == 0) | (scores[:, 0] > 0.9) | (rng.random(n) < 0.85)
    costs = Costs((0.5,), 1.0, (0.01,))
    rules = Rules(np.asarray([[0.999], [0.95], [0.5], [0.01]]), "common", (0,), "")
    total = certify(rules, scores, agree, costs, EPS, DELTA, classes=classes)
    each = certify(rules, scores, agree, costs, EPS, DELTA, classes=classes, each=("common", "rare"))
    assert total.thresholds == (0.01,)
    assert each.thresholds == (0.95,)
    assert "each label" in each.words
    rows, bad = total.by_class[1]
    assert bad / rows > 5 * EPS

    few = certify(
        rules, scores[:1500], agree[:1500], costs, EPS, DELTA, classes=classes[:1500], each=("common", "rare")
    )
    assert not few.active
    assert "the label rare" in few.words
    missing = certify(rules, scores, agree, costs, EPS, DELTA, classes=classes, each=("common", "rare", "never seen"))
    assert not missing.active
    assert "never seen" in missing.words


def test_the_bound_for_each_class_is_kept_without_a_correction() -> None:
    """With three classes at just above ε each, a rule passes for all of them in far fewer than δ of the draws, and never more."""
    rng = np.random.default_rng(8)
    rules = Rules(np.asarray([[0.5]]), "common", (0,), "")
    costs = Costs((0.5,), 1.0, (0.01,))
    classes = np.arange(3).repeat(300)
    for risks, most in (((0.0201, 0.0, 0.0), DELTA), ((0.0201,) * 3, DELTA**2)):
        passed = 0
        for _ in range(400):
            agree = np.ones((900, 2), dtype=bool)
            agree[:, 0] = rng.random(900) >= np.asarray(risks)[classes]
            found = certify(rules, np.ones((900, 1)), agree, costs, EPS, DELTA, classes=classes, each=("a", "b", "c"))
            passed += found.active
        assert passed <= stats.binom.ppf(0.999, 400, most)
