"""The simulator: a hand-worked walk, bounds that bound, and a file format that refuses what it can't read."""

from __future__ import annotations

import random
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynx.runtime.costs import CostCurve
from dynx.speculation.acceptance_model import AcceptanceModel
from dynx.speculation.policy import Dynamic, Plain, Static
from dynx.speculation.round_costs import Costs
from dynx.speculation.simulate import DraftTrace, Recording, oracle, simulate, speedup


def costs_of(draft: float = 0.1, slope: float = 0.05) -> Costs:
    """A pass of n tokens costs 1 + slope·(n-1) seconds, a draft `draft`."""
    costs = Costs()
    costs.target = CostCurve(costs.drift, {n: (1 + slope * (n - 1), 16.0) for n in range(1, 33)})
    costs.draft["draft"] = CostCurve(costs.drift, dict.fromkeys((1, 64), (draft, 16.0)))
    return costs


def invented(seed: int, tokens: int = 400) -> Recording:
    """Stretches of easy and of hard text; the drafter's signal tells them apart, with noise."""
    rng = random.Random(seed)
    easy, right, signals = True, [], []
    for _ in range(tokens + 24):
        easy = easy if rng.random() < 0.92 else not easy
        right.append(rng.random() < (0.93 if easy else 0.25))
        signals.append((2.5 if easy else -1.0) + rng.gauss(0, 0.7))
    guesses = []
    for t in range(tokens):
        depth = min(24, tokens - t)
        run = right[t : t + depth]
        guesses.append(DraftTrace(tuple(signals[t : t + depth]), run.index(False) if False in run else depth))
    return Recording(8, {"draft": guesses})


def test_a_walk_by_hand() -> None:
    """Four tokens, two drafts a round: one kept of two, then both of what room there is; passes and drafts add up."""
    rows = [DraftTrace((1.0, 1.0), 1), DraftTrace((1.0, 1.0), 0), DraftTrace((1.0,), 1), DraftTrace((), 0)]
    recording = Recording(5, {"draft": rows})

    walked = simulate(recording, Static("draft", 2), costs_of(draft=0.1, slope=0.1))

    # First round: 2 drafts, a pass of 3, one kept: two tokens. Second, with room for one: 1 draft, a pass of 2, kept.
    assert [(r.submitted, r.kept) for r in walked.rounds] == [(2, 1), (1, 1)]
    assert walked.tokens == 4
    assert walked.seconds == pytest.approx((0.1 + 0.1 + 1.2) + (0.1 + 1.1))


def test_plain_walks_at_plain_cost() -> None:
    """One pass of one token for each token, and a speed-up of one."""
    recording, costs = invented(0), costs_of()

    assert simulate(recording, Plain(), costs).seconds == pytest.approx(recording.tokens)
    assert speedup(recording, Plain(), costs) == 1.0


def test_rounds_are_charged_as_the_engine_measures_them() -> None:
    """Reading up, the exit's last draft passing its layers again, a round's overhead: each in its place."""
    costs = costs_of(draft=0.1, slope=0.0)
    costs.draft["draft"].table[6] = (0.4, 16.0)
    costs.draft["self"], costs.complete = CostCurve(costs.drift, {1: (0.3, 16.0)}), costs.target
    costs.overhead = {"draft": 0.05}
    rows = [DraftTrace((1.0, 1.0), 2)] * 9

    model, exit_ = (simulate(Recording(6, {o: rows}), Static(o, 2), costs).rounds for o in ("draft", "self"))

    assert [r.tokens_behind for r in model] == [6, 2, 2]  # the prompt; then its own last draft and the target's token
    assert model[0].draft_seconds == pytest.approx(0.4 + 0.1)
    assert model[0].seconds - model[0].draft_seconds - model[0].verify_seconds == pytest.approx(0.05)
    assert exit_[0].draft_seconds == pytest.approx(0.6)
    assert exit_[0].verify_seconds == pytest.approx(0.3 + 1.0)


def test_hindsight_by_hand() -> None:
    """Four tokens: two drafts that stay, then a plain token, is the quickest way; hindsight wastes no draft."""
    rows = [DraftTrace((1.0, 1.0), 2), DraftTrace((1.0,), 1), DraftTrace((1.0,), 0), DraftTrace((), 0)]

    best = oracle(Recording(1, {"draft": rows}), costs_of(draft=0.1, slope=0.1), informed=False)

    assert best.tokens == 4
    assert best.seconds == pytest.approx((0.2 + 1.2) + 1.0)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.floats(-3, 3)), min_size=1, max_size=60),
    st.floats(0.01, 0.5),
    st.floats(0.0, 0.5),
)
@settings(max_examples=40, deadline=None)
def test_hindsight_bounds_dynamic_too(rows: list[tuple[int, float]], draft: float, slope: float) -> None:
    """On any recording at all, whatever dynamic does takes at least as long as the clairvoyant walk."""
    recording = Recording(8, {"draft": [DraftTrace((signal,) * 6, kept) for kept, signal in rows]})
    costs = costs_of(draft, slope)

    walked = simulate(recording, Dynamic(deepcopy(costs), {"draft": AcceptanceModel()}), costs)

    assert walked.tokens == recording.tokens
    assert walked.seconds >= oracle(recording, costs, informed=False).seconds - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_no_policy_beats_hindsight(seed: int) -> None:
    """The clairvoyant bound is at least the informed one, and that is at least every static length and plain."""
    recording, costs = invented(seed), costs_of()
    clairvoyant, informed = (oracle(recording, costs, informed=i).rate for i in (False, True))

    assert clairvoyant >= informed
    for policy in (Plain(), *(Static("draft", k) for k in range(1, 11))):
        assert informed >= simulate(recording, policy, costs).rate - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_dynamic_comes_near_the_best_that_can_be_known(seed: int) -> None:
    """Taught on one text, on another it reaches 90 % of the optimum that knows all costs and acceptance beforehand."""
    taught = AcceptanceModel()
    taught.fit(invented(seed + 100).verified_drafts("draft"))
    recording, costs = invented(seed), costs_of()
    best = oracle(recording, costs, informed=True)

    policy = Dynamic(deepcopy(costs), {"draft": taught}, rate=best.rate, regret_budget=0.5)

    assert simulate(recording, policy, costs).rate >= 0.9 * best.rate
