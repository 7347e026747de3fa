"""Texts that share passes: each pays an equal part of what all need and all of what its drafts add, at one price of a second."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dynx.runtime.costs import CostCurve
from dynx.speculation.acceptance_model import AcceptanceModel
from dynx.speculation.drafters.draft import Draft
from dynx.speculation.policy import Dynamic, Pace, Round
from dynx.speculation.run import Proposal
from dynx.speculation.shared_costs import BatchCosts, SharedCosts
from dynx.speculation.types import DrafterCandidate, Request, Sampling

TIMES = {1: 10.0, 8: 12.0, 16: 20.0, 64: 68.0}


def shared(*, ragged: bool = True, sequences: int = 8, times: dict[int, float] | None = None) -> SharedCosts:
    """Costs of a pass of so many sequences."""
    whole = BatchCosts()
    whole.target.table = {n: (seconds, 8.0) for n, seconds in (times or TIMES).items()}
    costs = SharedCosts(whole, Pace(), ragged=ragged)
    costs.begin(sequences)
    return costs


def test_drafts_cost_what_they_add_to_the_pass() -> None:
    """An equal part of the plain pass, and the difference of the times with and without one's own drafts."""
    costs = shared()
    assert costs.target(1) == pytest.approx(12 / 8)
    assert costs.verifying("lookup", 4, 0) == pytest.approx([12 / 8 + k for k in range(5)])
    costs.add(8)
    assert costs.target(1) == pytest.approx(12 / 8), "others' drafts are theirs to pay"
    assert costs.target(3) == pytest.approx(12 / 8 + 2)
    assert costs.beside(8).target(9) == pytest.approx(12 / 8 + 8)
    alone = shared(sequences=1)
    whole = CostCurve(table={n: (seconds, 8.0) for n, seconds in TIMES.items()})
    assert alone.verifying("lookup", 20, 0) == pytest.approx(whole.upto(21))


def test_tokens_of_drafts_are_never_cheaper_than_those_of_plain_passes() -> None:
    """A wider pass that held a prompt took less than the plain one of now: drafts wouldn't, and don't look free."""
    costs = shared(sequences=60, times={1: 10.0, 60: 128.0, 90: 100.0})
    more = costs.verifying("lookup", 4, 0)
    assert more == pytest.approx([128 / 60 + 2.0 * k for k in range(5)])


def test_first_times_beyond_those_known_are_taken_as_they_are() -> None:
    """Prompts are read first, by wide passes; from these nothing follows for narrower ones, nor the other way round."""
    whole = BatchCosts()
    took = {512: 512.0, 366: 370.0, 85: 90.0, 30: 40.0, 1: 10.0, 800: 830.0}
    for tokens, seconds in took.items():
        whole.observe(tokens, seconds)
    assert {n: whole.target(n) for n in took} == pytest.approx(took)
    whole.observe(180, 5000.0)
    assert whole.target(180) < 400.0, "between those known an outlier is one"


def test_padded_passes_cost_by_the_widest() -> None:
    """As wide as another already is costs nothing more; wider is an equal part of all rows being so."""
    costs = shared(ragged=False)
    assert [costs.target(n) for n in (1, 2, 8)] == pytest.approx([12 / 8, 20 / 8, 68 / 8])
    costs.add(1)
    assert [costs.target(n) for n in (1, 2, 8)] == pytest.approx([20 / 8, 20 / 8, 68 / 8])


def test_a_draft_must_earn_what_a_row_of_a_full_pass_costs() -> None:
    """The same match is drafted from where a pass has room, and not where each token costs a full share of it."""
    match = [DrafterCandidate("lookup", 1, 1.0)]
    chosen = {}
    for name, times in {"room": {1: 10.0, 200: 11.0}, "full": {1: 1.0, 200: 200.0}}.items():
        costs = shared(times=times)
        policy = Dynamic(costs, {"lookup": AcceptanceModel((0.0, 0.5, 0.0))}, regret_budget=8.0, pace=costs.pace)
        chosen[name] = policy.choose(match, 50, 20)
    assert chosen == {"room": "lookup", "full": None}


def test_the_price_of_a_second_is_the_same_for_all() -> None:
    """What one text achieves raises the price at which its neighbours weigh their drafts."""
    costs = shared()
    one, other = (
        Dynamic(costs, {"lookup": AcceptanceModel().branch()}, pace=costs.pace, regret_budget=9.0) for _ in range(2)
    )
    before = other.rate
    for _ in range(64):
        one.learn(Round(50, "lookup", 1, [3.0] * 4, 4, 4, 0.0, 2.0, 2.0))
    assert before == pytest.approx(8 / 12)
    assert other.rate == one.rate > 2 * before


def test_beliefs_are_each_texts_own() -> None:
    """What a text's drafts show counts for itself at once, and for those that begin later."""
    known = AcceptanceModel((0.0, 0.5, 0.0))
    right, wrong = known.branch(), known.branch()
    for _ in range(30):
        right.observe(2.0, 1, 1.0)
        wrong.observe(2.0, 1, 0.0)
        wrong.expect(0.0)
    assert right(2.0, 1) > 0.85
    assert wrong(2.0, 1) < 0.3
    assert wrong(2.0, 1) + 0.1 < known(2.0, 1) < right(2.0, 1) - 0.1
    assert (known.observed, right.observed) == (60, 30)
    assert known.branch()(2.0, 1) == known(2.0, 1)


@pytest.mark.parametrize(
    ("chances", "seed", "kept"), [((0.9, 0.9, 0.9), 1, 1), ((0.9, 0.1, 0.1), 1, 0), ((0.9, 0.1, 0.1), None, 1)]
)
def test_columns_of_padded_passes_are_cut_together(chances: tuple[float, ...], seed: int | None, kept: int) -> None:
    """A column is verified where its drafts are worth it in sum; none is cut where drafts were drawn without a seed."""
    costs = shared(ragged=False, sequences=3, times={3: 10.0, 6: 15.0})
    runs, proposals = [], []
    for chance in chances:
        policy: Any = Dynamic(costs, {"draft": AcceptanceModel()}, pace=costs.pace)
        policy._survival = [chance]
        runs.append(SimpleNamespace(policy=policy, request=Request([1], sampling=Sampling(temperature=1.0, seed=seed))))
        draft = Draft(5, 0.0)
        proposals.append(Proposal(1, 9, 9, "draft", drafts=[draft], submitted=[draft]))
    costs.trim(runs, proposals)  # type: ignore[arg-type]
    assert [len(p.submitted) for p in proposals] == [kept] * 3
