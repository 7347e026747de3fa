"""Which candidates make a tree, how many are worth their place, and what is learned of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from support.models import VOCAB, Bushy, tiny

from dynx.runtime.backends.eager import EagerBackend
from dynx.runtime.backends.picks import Picks, leading
from dynx.speculation.acceptance_model import AcceptanceModel
from dynx.speculation.drafters.draft import Draft
from dynx.speculation.drafters.next_tokens import NextTokens
from dynx.speculation.drafters.prompt_lookup import LookupDrafter
from dynx.speculation.engine import AcceptanceProfile, Drafters, Engine
from dynx.speculation.own_candidates import ask, can_pay, from_json, to_json
from dynx.speculation.policy import Dynamic
from dynx.speculation.round_costs import Costs
from dynx.speculation.traces import Text
from dynx.speculation.tree import best_size, is_chain
from dynx.speculation.tree_choice import Beliefs, Trees
from dynx.speculation.types import Request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FLAT = {1: 0.015, 6: 0.0153, 10: 0.026, 24: 0.046}
"""Seconds of passes that cost the same up to six tokens."""

STEEP = {n: 0.015 * n for n in (1, 2, 4, 8, 16, 24)}
"""Seconds of passes that cost by the token."""


def costs_of(seconds: Mapping[int, float]) -> Costs:
    costs = Costs()
    costs.target.table.update({n: (s, 100.0) for n, s in seconds.items()})
    return costs


class Fixed:
    """A policy that takes as many nodes as it is told, with drafts half as likely each."""

    def __init__(self, size: int) -> None:
        self.size = size

    def survival_of(self, drafts: int) -> Sequence[float]:
        """Half each time."""
        return [0.5 ** (i + 1) for i in range(drafts)]

    def tree_size(self, beliefs: Sequence[float], survival: Sequence[float], context: int) -> int:
        """The same however likely they are."""
        assert list(beliefs) == sorted(beliefs, reverse=True)
        return self.size


def test_candidates_come_from_the_text_and_from_the_target() -> None:
    """What followed the last tokens before comes with the target's own candidates, each token once under a parent."""
    lookup = LookupDrafter()
    text = [1, 2, 3, 4, 9, 2, 3, 5, 8, 3]
    lookup.sync(text)
    table = NextTokens({3: (5, 7), 5: (6,)})
    found = Trees(table, Beliefs(), lookup.followers).grow(Fixed(20), text, [], len(text) - 1, 8)

    assert found is not None
    drafts, branches = found
    under_root = [d.token for d, parent in zip(drafts, branches.parents, strict=True) if parent == 0]
    assert set(under_root) == {5, 7}
    assert len(set(zip((d.token for d in drafts), branches.parents, strict=True))) == len(drafts)
    assert is_chain(branches.parents[: branches.trunk])
    assert all(parent <= i for i, parent in enumerate(branches.parents))


def test_the_drafters_chain_is_the_trunk() -> None:
    """Drafts come first and in order; what is beside them has less of the probability the surer they are."""
    drafts = [Draft(4, 0.0), Draft(5, 0.0), Draft(6, 0.0)]
    found = Trees(NextTokens({2: (9, 4), 4: (8,)}), Beliefs()).grow(Fixed(5), [1, 2], drafts, 1, 8)

    assert found is not None
    chosen, branches = found
    assert [d.token for d in chosen[: branches.chain]] == [4, 5, 6][: branches.chain]
    assert branches.parents[: branches.chain] == tuple(range(branches.chain))
    assert 9 in [d.token for d, parent in zip(chosen, branches.parents, strict=True) if parent == 0]


def test_a_draft_models_next_choices_are_beside_its_drafts() -> None:
    """They are children of what the draft continues, and each has a rate of its own by its rank."""
    drafts = [Draft(4, 0.0, None, (9, 5)), Draft(6, 0.0, None, (4,))]
    beliefs = Beliefs()
    found = Trees(NextTokens(), beliefs).grow(Fixed(9), [1, 2], drafts, 1, 8)

    assert found is not None
    chosen, branches = found
    nodes = list(zip((d.token for d in chosen), branches.parents, strict=True))
    assert nodes[:2] == [(4, 0), (6, 1)]
    assert set(nodes[2:]) == {(9, 0), (5, 0), (4, 1)}
    assert (
        branches.kinds[nodes.index((9, 0))]
        == branches.kinds[nodes.index((4, 1))]
        != branches.kinds[nodes.index((5, 0))]
    )


def test_a_draft_model_tells_its_next_choices() -> None:
    """Those that its logits rank after the draft, where it drafts the likeliest."""
    small = EagerBackend(tiny("llama", seed=1))
    engine = Engine(EagerBackend(tiny("llama")), Drafters(small, lookup=False, trees=True))
    drafter = engine.start(Request((7, 30, 2, 51), 8)).drafters["draft"]
    drafter.sync([7, 30, 2, 51])
    draft = drafter.propose()

    assert draft is not None
    assert [draft.token, *draft.others] == small.open().forward([7, 30, 2, 51])[-1].topk(3).indices.tolist()


@pytest.mark.parametrize(("room", "deepest"), [(1, 1), (3, 3)])
def test_no_node_is_deeper_than_there_is_room(room: int, deepest: int) -> None:
    """Tokens beyond the last that may be written aren't verified."""
    table = NextTokens({t: ((t + 1) % 9,) for t in range(9)})
    beliefs = Beliefs()
    beliefs.rates = [0.9] * len(beliefs.rates)
    found = Trees(table, beliefs).grow(Fixed(20), [1], [], 0, room)

    assert found is not None
    assert len(found[0]) == deepest


def test_flat_passes_are_filled_and_steep_ones_stay_plain() -> None:
    """As many nodes as cost next to nothing, and none where each costs a pass."""
    beliefs = [0.3, 0.2, 0.12, 0.1, 0.08, 0.05, 0.04, 0.04]

    assert best_size(costs_of(FLAT), 1 / 0.015, 4.0, beliefs, [], 0) == 5
    assert best_size(costs_of(STEEP), 1 / 0.015, 4.0, beliefs, [], 0) == 0


def test_a_budget_bounds_the_pass() -> None:
    """A pass that could lose more than the budget holds isn't run."""
    beliefs = [0.9] * 20

    assert best_size(costs_of(FLAT), 1 / 0.015, 4.0, beliefs, [], 0) == 20
    assert best_size(costs_of(FLAT), 1 / 0.015, 0.1, beliefs, [], 0) == 5


def test_a_chain_that_is_as_good_stays() -> None:
    """A tree takes its place only where it brings more."""
    assert best_size(costs_of(FLAT), 1 / 0.015, 4.0, [0.9, 0.8, 0.7, 0.6, 0.5], [0.9, 0.8, 0.7, 0.6, 0.5], 0) == 0
    assert best_size(costs_of(FLAT), 1 / 0.015, 4.0, [0.9, 0.3, 0.2, 0.1, 0.1], [0.9, 0.1], 0) == 5


def test_rates_are_learned_where_the_parent_was_accepted() -> None:
    """A candidate of a parent that was rejected says nothing, nor one beside an accepted draft."""
    beliefs = Beliefs()
    trees = Trees(NextTokens({2: (9, 4), 4: (8,), 9: (7,)}), beliefs)
    found = trees.grow(Fixed(6), [1, 2], [Draft(4, 0.0)], 1, 8)
    assert found is not None
    drafts, branches = found
    row = {(d.token, parent): i + 1 for i, (d, parent) in enumerate(zip(drafts, branches.parents, strict=True))}
    before = list(beliefs.rates)
    trees.learn(branches, [0, row[4, 0]])
    beside = branches.kinds[row[9, 0] - 1]
    assert beliefs.rates[beside] == before[beside]
    trees.learn(branches, [0, row[9, 0]])
    assert beliefs.rates[beside] > before[beside]


def test_the_table_is_bounded_and_keeps_the_latest() -> None:
    """The least lately seen token is forgotten; one that wasn't seen has what the profile says."""
    table = NextTokens({1: (5,), 9: (6,)}, limit=2)
    for token in (1, 2, 1, 3):
        table.see(token, [token + 10])

    assert len(table) == 2
    assert (table.after(1), table.after(2), table.after(3), table.after(9)) == ((11,), (), (13,), (6,))


def test_leading_tokens_are_those_of_a_sort() -> None:
    """The likeliest of a row, with and without picks, and the row is as it was."""
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    want = rows.topk(4, -1).indices.tolist()
    picks = Picks(rows.numpy().copy())

    assert [leading(rows, i, 4) for i in range(3)] == want == [leading(picks, i, 4) for i in range(3)]
    assert list(picks) == [each[0] for each in want]
    assert (picks.logits == rows.numpy()).all()
    assert leading([1, 2, 3], 0, 4) == []


def test_a_target_is_asked_about_single_tokens() -> None:
    """Its candidates after a token are those of a pass over the root and that token, whatever else is in the tree."""
    backend = EagerBackend(tiny("llama"))
    found = ask(backend, [Text([5, 6, 7, 8], 2)], 3, budget=60, clock=lambda: 0.0)

    assert len(found) == VOCAB
    for token in (0, 7, 40):
        row = backend.open().forward([3, token])[-1]
        assert found[token] == row.topk(4).indices.tolist()
    assert from_json(to_json(found), VOCAB) == {token: tuple(each) for token, each in found.items()}


@pytest.mark.parametrize("stored", [None, 3, {"a": [1]}, {"1": 2}, {"1": ["x"]}])
def test_what_isnt_a_table_is_left_out(stored: object) -> None:
    """A profile's torn contents are no candidates."""
    assert from_json(stored, VOCAB) == {}


def test_tokens_that_the_model_lacks_are_left_out() -> None:
    """As those of another model would be."""
    assert from_json({"1": [2, 3], "70": [2], "3": [99], "-1": [2], "4": []}, VOCAB) == {1: (2, 3)}


def test_trees_can_pay_where_passes_are_flat() -> None:
    """Asking a target costs calibration's time, so it is only done where trees can come of it."""
    assert can_pay(costs_of(FLAT).target)
    assert not can_pay(costs_of(STEEP).target)


def test_the_receipt_names_the_trees() -> None:
    """Passes over trees, their candidates and the tokens that they gave; candidates have a tally and a source of their own."""
    engine = Engine(EagerBackend(tiny("llama")), Drafters(trees=True))
    for _ in range(2):
        run = engine.start(Request((7, 30, 2, 51, 18, 7, 30, 2, 44, 9, 51, 18), 64), Bushy(0))
        sources = {token.origin for token in run}
    receipt = run.receipt()

    assert 0 < receipt.tree_forwards <= receipt.target_forwards
    assert receipt.tree_forwards < receipt.tree_candidates
    assert receipt.tree_forwards <= receipt.tree_tokens <= receipt.tokens
    assert receipt.drafters["table"].accepted > 0
    assert "table" in sources
    assert sum(t.accepted for t in receipt.drafters.values()) + receipt.target_forwards >= receipt.tokens - 1


def test_the_dynamic_policy_makes_trees_where_nothing_can_be_looked_up() -> None:
    """On flat passes every pass carries candidates, and none on steep ones."""
    for seconds, some in ((FLAT, True), (STEEP, False)):
        policy = Dynamic(costs_of(seconds), {"lookup": AcceptanceModel()}, rate=1 / 0.015, regret_budget=4.0)
        trees = Trees(NextTokens({t: ((t + 1) % 9, (t + 2) % 9) for t in range(9)}), Beliefs())
        assert policy.choose([], 0, 30) is None
        assert (trees.grow(policy, [1], [], 0, 30) is not None) == some


def test_a_profile_begins_an_engines_trees() -> None:
    """The table of a profile is there from the first pass, and what is seen goes before it."""
    engine = Engine(EagerBackend(tiny("llama")), acceptance_profile=AcceptanceProfile(next_tokens={3: (4, 5)}))

    assert engine.next_tokens.after(3) == (4, 5)
    engine.know({3: [6]})
    assert engine.next_tokens.after(3) == (6,)
