"""Targets that read accepted tokens again after a rejection: what a round may lose is known before it is begun."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from speculation.test_policy import OPTIMIST, cold, constant, never_slower
from speculation.test_simulate import costs_of
from support.models import Clock, Stub, StubSession, scripted

from dynx.runtime.costs import CostCurve
from dynx.speculation.acceptance_model import AcceptanceModel
from dynx.speculation.engine import AcceptanceProfile, Drafters, Engine
from dynx.speculation.policy import REGRET_BUDGET_SHARE, Dynamic, Static
from dynx.speculation.round_costs import Costs
from dynx.speculation.setup import UNASKED_REGRET_BUDGET_PASSES
from dynx.speculation.simulate import DraftTrace, Recording, simulate
from dynx.speculation.types import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dynx.speculation.policy import Round

PLAIN_SECONDS = 1.0


def replaying(costs: Costs, wide: float = 1.0) -> Costs:
    """The same costs of a target that replays, where passes of several tokens cost `wide` times as much."""
    costs.replays = True
    costs.target = CostCurve(
        costs.drift, {n: (t * (wide if n > 1 else 1), w) for n, (t, w) in costs.target.table.items()}
    )
    costs.draft["lookup"] = CostCurve(costs.drift, {1: (1e-9, 16.0)})
    return costs


def within(rounds: Sequence[Round], budget: float) -> None:
    """At no point more was lost against plain passes than the budget and its share of the time."""
    seconds = tokens = 0.0
    for each in rounds:
        seconds, tokens = seconds + each.seconds, tokens + each.tokens
        assert seconds * (1 - REGRET_BUDGET_SHARE) <= tokens * PLAIN_SECONDS + budget + 1e-6


def test_a_walk_by_hand() -> None:
    """A rejection after one accepted draft costs a pass of two tokens more; where all are accepted there is none."""
    rows = [DraftTrace((1.0, 1.0), 1), DraftTrace((1.0, 1.0), 0), DraftTrace((1.0,), 1), DraftTrace((), 0)]

    walked = simulate(Recording(5, {"draft": rows}), Static("draft", 2), replaying(costs_of(draft=0.1, slope=0.1)))

    assert [r.replay_seconds for r in walked.rounds] == pytest.approx([1.1, 0.0])
    assert walked.seconds == pytest.approx((0.1 + 0.1 + 1.2 + 1.1) + (0.1 + 1.1))


@given(
    st.lists(st.tuples(st.integers(0, 12), st.floats(-6, 6)), min_size=20, max_size=120),
    st.floats(0.01, 1.0),
    st.floats(0.0, 0.6),
    st.floats(1.0, 4.0),
    st.floats(0.0, 8.0),
)
@settings(max_examples=60, deadline=None)
def test_the_account_is_never_overdrawn(
    rows: list[tuple[int, float]], draft: float, slope: float, wide: float, regret_budget: float
) -> None:
    """With costs known, no text and no drafts whatever lose more than the grant and `REGRET_BUDGET_SHARE` of the time."""
    recording = Recording(8, {"draft": [DraftTrace((signal,) * 12, kept) for kept, signal in rows]})
    costs = replaying(costs_of(draft, slope), wide)

    policy = Dynamic(deepcopy(costs), {"draft": deepcopy(OPTIMIST)}, regret_budget=regret_budget)
    within(simulate(recording, policy, costs).rounds, regret_budget)


@pytest.mark.parametrize("budget", [i / 10 for i in range(30)])
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_the_first_round_is_within_the_budget(budget: float, kept: int) -> None:
    """However sure the drafts look, no more are made than the budget covers with the replay."""
    costs = replaying(costs_of(0.02, 0.1))
    recording = Recording(8, {"draft": [DraftTrace((6.0,) * 24, kept)] * 60})

    policy = Dynamic(deepcopy(costs), {"draft": deepcopy(OPTIMIST)}, regret_budget=budget)
    walked = simulate(recording, policy, costs)

    within(walked.rounds, budget)
    assert any(r.submitted for r in walked.rounds[:1]) == (budget >= 1.2)


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("wide", [1.0, 2.0, 6.0])
@pytest.mark.parametrize("slope", [0.0, 0.4, 1.0])
def test_a_cold_start_is_never_slower_than_its_regret(acceptance: float, wide: float, slope: float) -> None:
    """At no point of the first 600 tokens, with nothing measured but by how much several tokens are dearer than one."""
    costs = replaying(costs_of(0.1, slope), wide)
    rows = {o: constant(acceptance, 600, i, o).traces[o] for i, o in enumerate(("draft", "lookup"))}
    known = Costs(replays=True, first_wide=max(2.0, wide * (1 + slope)))

    walked = simulate(Recording(8, rows), cold(("draft", "lookup"), known), costs)

    never_slower(walked.rounds, REGRET_BUDGET_SHARE)
    if acceptance == 1.0 and wide == 1.0 and slope == 0.0:
        assert walked.rate > 1.5


def test_one_pass_pays_for_no_try_in_a_short_text() -> None:
    """Without a profile the grant of a first text covers a wide pass and no replay: what isn't replayed is tried at once."""
    recording = constant(0.0, 64, origin="lookup")

    def tried(*, replays: bool) -> int:
        costs = replaying(costs_of(0.0, 0.05))
        costs.replays = replays
        policy = Dynamic(
            Costs(replays=replays), {"lookup": deepcopy(OPTIMIST)}, regret_budget=UNASKED_REGRET_BUDGET_PASSES
        )
        return sum(r.submitted for r in simulate(recording, policy, costs).rounds)

    assert tried(replays=False) > 0
    assert tried(replays=True) == 0


def test_rejections_are_weighed_by_their_probability() -> None:
    """Drafts whose gain a replay eats aren't made though the budget would pay: 0.6 accepted, wide passes dearer."""
    recording = constant(0.6, 800)

    def walked(*, replays: bool) -> float:
        costs = replaying(costs_of(0.1, 0.02), 1.15)
        costs.replays = replays
        fitted = AcceptanceModel()
        fitted.fit(recording.verified_drafts("draft"))
        return simulate(recording, Dynamic(deepcopy(costs), {"draft": fitted}, regret_budget=8.0), costs).rate

    assert walked(replays=False) > 1.3
    assert walked(replays=True) >= 0.985


class Restoring(Stub):
    """A stub on a clock that reads again what stays of a pass."""

    replays = True  # type: ignore[assignment]
    first_wide = 3.0  # type: ignore[assignment]

    def __init__(self, vocab: int, script: Sequence[int], clock: Clock) -> None:
        super().__init__(vocab, scripted(vocab, script))
        self.clock = clock

    def price(self, count: int) -> float:
        """Seconds of a pass of `count` tokens."""
        return PLAIN_SECONDS if count == 1 else 3.0 + 0.1 * (count - 2)

    def open(self) -> StubSession:
        """A fresh sequence."""
        return RestoringSession(self)


class RestoringSession(StubSession):
    """A sequence in it."""

    _backend: Restoring
    _before = 0  # the last pass

    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """See `Session`."""
        self._before = self.length
        self._backend.clock.now += self._backend.price(len(tokens))
        return super().forward(tokens, keep=keep)

    def rollback(self, length: int) -> None:
        """See `Session`."""
        if length < self.length:
            self._backend.clock.now += self._backend.price(length - self._before)
        super().rollback(length)


@pytest.mark.parametrize("budget", [0.0, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_run_loses_no_more_than_its_budget(budget: float, seed: int) -> None:
    """Where most lookups are wrong no more is lost at any point than was granted, and a replay counts as no overhead."""
    rng, clock = random.Random(seed), Clock()
    script = [rng.randrange(6) for _ in range(400)]  # pairs come back all the time, and say nothing
    target = Restoring(6, script, clock)
    known = AcceptanceProfile(regret_budget=0.0, first_regret_budget=budget)
    engine = Engine(target, Drafters(), acceptance_profile=known, clock=clock)
    run = engine.start(Request(script[:20], 300))

    assert [token.id for token in run] == script[20:320]
    within(run.rounds, budget)
    for each in run.rounds:
        rejected = each.kept < each.submitted
        assert each.replay_seconds == pytest.approx(target.price(each.tokens) if rejected else 0.0)
    first = next((at for at, each in enumerate(run.rounds) if each.submitted), len(run.rounds))
    granted = budget + REGRET_BUDGET_SHARE * first
    assert granted >= target.first_wide + PLAIN_SECONDS - 1 - 1e-6, (
        "the wide pass and the replay, less the token that it gives"
    )
    assert first < len(run.rounds) - 1
    assert known.costs.overhead.get("lookup", 0.0) == pytest.approx(0.0)
