"""The three decisions: as good as the best fixed choice where one is best, better where none is, never much worse than plain."""

from __future__ import annotations

import math
import random
from copy import deepcopy
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from speculation.test_simulate import costs_of, invented

from dynx.runtime.costs import FOREIGN_WEIGHT, CostCurve
from dynx.speculation.acceptance_model import AcceptanceModel
from dynx.speculation.engine import ACCEPTANCE_PRIORS
from dynx.speculation.policy import (
    MAX_DRAFT_TOKENS,
    REGRET_BUDGET_SHARE,
    Dynamic,
    Plain,
    Round,
    Static,
)
from dynx.speculation.round_costs import Costs
from dynx.speculation.simulate import DraftTrace, Outcome, Recording, simulate
from dynx.speculation.types import DrafterCandidate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dynx.speculation.types import DraftSource


def constant(acceptance: float, tokens: int, seed: int = 0, origin: DraftSource = "draft") -> Recording:
    """Every draft stays with the same probability, and its signal says nothing."""
    rng = random.Random(seed)
    right = [rng.random() < acceptance for _ in range(tokens + 24)]
    guesses = []
    for t in range(tokens):
        depth = min(24, tokens - t)
        run = right[t : t + depth]
        guesses.append(DraftTrace((0.0,) * depth, run.index(False) if False in run else depth))
    return Recording(8, {origin: guesses})


def informed(recording: Recording, costs: Costs) -> Dynamic:
    """The dynamic policy after a calibration: measured costs, acceptance taught by another text of the same kind."""
    taught = {}
    for origin in recording.traces:
        taught[origin] = AcceptanceModel()
        taught[origin].fit(recording.verified_drafts(origin))
    return Dynamic(deepcopy(costs), taught, regret_budget=0.5)


def settled_rate(walked: Outcome, acceptance: float, after: int = 200) -> float:
    """Tokens per second past the first `after` tokens, each round counted with the tokens it may expect, luck left out."""
    rounds, seen = [], 0
    for r in walked.rounds:
        if seen >= after:
            rounds.append(r)
        seen += r.tokens
    return sum(yielded(acceptance, r.submitted) for r in rounds) / sum(r.seconds for r in rounds)


def yielded(acceptance: float, length: int) -> float:
    """(1 - a^(g+1)) / (1 - a): the tokens that a round of `length` drafts may expect (Leviathan et al. 2023)."""
    return sum(acceptance**i for i in range(length + 1))


@pytest.mark.parametrize("acceptance", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("draft", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("slope", [0.0, 0.05, 0.2, 0.5])
def test_with_constant_acceptance_it_settles_at_the_best_length(acceptance: float, draft: float, slope: float) -> None:
    """From priors alone, dynamic comes within 2 % of the closed form's best length, or of plain where no length pays."""
    recording, costs = constant(acceptance, 2000), costs_of(draft, slope)
    best = max(yielded(acceptance, k) / (1 + k * (draft + slope)) for k in range(MAX_DRAFT_TOKENS + 1))

    walked = simulate(recording, Dynamic(deepcopy(costs), {"draft": AcceptanceModel()}), costs)

    assert settled_rate(walked, acceptance) >= 0.98 * best


@pytest.mark.parametrize("seed", range(4))
def test_where_the_signal_tells_easy_from_hard_it_beats_every_fixed_length(seed: int) -> None:
    """On text with easy and hard stretches dynamic is at least 3 % faster than the best fixed length."""
    recording, costs = invented(seed, 1500), costs_of(0.1, 0.05)
    best = max(simulate(recording, Static("draft", k), costs).rate for k in range(1, 16))

    assert simulate(recording, informed(recording, costs), costs).rate >= 1.03 * best


def by_sight(tokens: int, seed: int = 0) -> Recording:
    """Half the tokens easy, half hard, one by one, and the signal says which: no fixed length suits them."""
    rng = random.Random(seed)
    easy = [rng.random() < 0.5 for _ in range(tokens + 24)]
    right = [rng.random() < (0.95 if e else 0.05) for e in easy]
    rows = []
    for t in range(tokens):
        depth = min(12, tokens - t)
        run = right[t : t + depth]
        signals = tuple(3.0 if e else -3.0 for e in easy[t : t + depth])
        rows.append(DraftTrace(signals, run.index(False) if False in run else depth))
    return Recording(8, {"draft": rows})


def test_where_only_choosing_by_sight_pays_it_drafts_all_the_same() -> None:
    """No fixed length beats plain by 2 % here; submitting the promising drafts alone gains 10 % at least."""
    recording, costs = by_sight(2000), costs_of(0.1, 0.4)
    assert max(simulate(recording, Static("draft", k), costs).rate for k in range(1, 11)) < 1.02

    walked = simulate(recording, Dynamic(deepcopy(costs), {"draft": AcceptanceModel()}), costs)

    assert walked.rate >= 1.1


OPTIMIST = AcceptanceModel((2.0, 1.0, 0.0), typical=0.95)


@pytest.mark.parametrize("origin", ["draft", "self", "lookup"])
@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("belief", [AcceptanceModel(), OPTIMIST])
@pytest.mark.parametrize(("tokens", "loss"), [(100, 0.04), (400, 0.02)])
def test_a_hostile_drafter_costs_next_to_nothing(
    origin: DraftSource, measured: bool, belief: AcceptanceModel, tokens: int, loss: float
) -> None:
    """No draft is ever right: whatever was believed or measured before, 400 tokens lose 2 % against plain at most."""
    recording = Recording(8, {origin: [DraftTrace((5.0,) * 24, 0)] * tokens})
    for draft in (0.02, 0.3):
        for slope in (0.0, 0.05, 0.5):
            costs = costs_of(draft, slope)
            costs.draft["self"], costs.draft["lookup"] = costs.draft["draft"], CostCurve(costs.drift, {1: (1e-4, 16.0)})
            costs.complete.table = {n: ((1 - draft) * t, w) for n, (t, w) in costs.target.table.items()}
            known = deepcopy(costs) if measured else Costs()

            walked = simulate(recording, Dynamic(known, {origin: deepcopy(belief)}), costs)

            assert walked.seconds <= tokens * (1 + loss)


def test_a_profile_that_lies_costs_next_to_nothing() -> None:
    """A profile that promises acceptance of 0.9 where none is left loses 2 %, the prompt's reading apart."""
    recording, costs = constant(0.0, 400), costs_of(0.2, 0.05)
    hopeful = AcceptanceModel()
    hopeful.fit((0.0, 1, float(i % 10 > 0)) for i in range(300))

    walked = simulate(recording, Dynamic(deepcopy(costs), {"draft": hopeful}, rate=2.0, regret_budget=0.5), costs)

    assert walked.seconds <= 400 * 1.02 + 0.2


@given(
    st.lists(st.tuples(st.integers(0, 12), st.floats(-6, 6)), min_size=20, max_size=120),
    st.floats(0.01, 1.0),
    st.floats(0.0, 0.6),
    st.floats(0.0, 8.0),
)
@settings(max_examples=60, deadline=None)
def test_the_account_is_never_overdrawn(
    rows: list[tuple[int, float]], draft: float, slope: float, regret_budget: float
) -> None:
    """With costs known, no text and no drafts whatever lose more than the grant and `REGRET_BUDGET_SHARE` of the time."""
    recording = Recording(8, {"draft": [DraftTrace((signal,) * 12, kept) for kept, signal in rows]})
    costs = costs_of(draft, slope)

    walked = simulate(
        recording, Dynamic(deepcopy(costs), {"draft": deepcopy(OPTIMIST)}, regret_budget=regret_budget), costs
    )

    assert walked.seconds * (1 - REGRET_BUDGET_SHARE) <= walked.tokens + regret_budget + 1e-6


def cold(origins: Sequence[DraftSource], costs: Costs | None = None) -> Dynamic:
    """The policy of a first run: nothing measured here, nothing staked."""
    reliability = {o: AcceptanceModel(ACCEPTANCE_PRIORS[o][0], typical=ACCEPTANCE_PRIORS[o][1]) for o in origins}
    return Dynamic(costs or Costs(), reliability, regret_budget=0.0)


def never_slower(rounds: Sequence[Round], share: float) -> None:
    """Up to any round, at most this share of the time went beyond plain passes of a second each."""
    seconds = tokens = 0.0
    for r in rounds:
        seconds, tokens = seconds + r.seconds, tokens + r.tokens
        assert seconds <= tokens / (1 - share) + 1e-9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("slope", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("draft", [0.0, 0.1, 0.25])
def test_a_cold_start_is_never_slower_than_its_regret(seed: int, acceptance: float, slope: float, draft: float) -> None:
    """At no point of the first 400 tokens, also where each further token of a pass costs as much as the first."""
    rows = {o: constant(acceptance, 400, seed + i, o).traces[o] for i, o in enumerate(("draft", "lookup"))}
    costs = costs_of(draft, slope)
    costs.draft["lookup"] = CostCurve(costs.drift, {1: (1e-9, 16.0)})

    walked = simulate(Recording(8, rows), cold(("draft", "lookup")), costs)

    never_slower(walked.rounds, REGRET_BUDGET_SHARE)
    assert walked.rounds[0].origin is None
    if acceptance == 1.0 and slope == 0.0:
        assert walked.rate > 1.5


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("acceptance", [0.0, 0.9])
@pytest.mark.parametrize("slope", [0.05, 1.0])
def test_costs_of_another_machine_promise_nothing(scale: float, acceptance: float, slope: float) -> None:
    """A table from a machine of any speed where wide passes are free loses no more than none; where it is right it gains."""
    told = costs_of(0.0, 0.0)
    for curve in (told.target, told.draft["draft"], told.draft["lookup"]):
        curve.table = {n: (scale * seconds, FOREIGN_WEIGHT) for n, (seconds, _) in curve.table.items()}
    told.foreign = True
    recording, costs = constant(acceptance, 400, origin="lookup"), costs_of(0.0, slope)
    costs.draft["lookup"] = CostCurve(costs.drift, {1: (1e-9, 16.0)})

    walked = simulate(recording, cold(("lookup",), told), costs)

    never_slower(walked.rounds, REGRET_BUDGET_SHARE)
    if acceptance and slope < 1:
        assert walked.rate > 1.5


def test_nothing_is_looked_up_before_a_draft_can_be_afforded() -> None:
    """The first 60 passes of a cold start ask no drafter anything, and what deciding takes is charged."""

    class Untouched(list[DrafterCandidate]):
        def __iter__(self) -> Iterator[DrafterCandidate]:
            raise AssertionError("a drafter was asked")

    policy = cold(("lookup",))
    for context in range(8, 68):
        assert policy.choose(Untouched(), context, 64) is None
        policy.learn(Round(context, None, verify_seconds=1.0, seconds=1.0))

    slow, quick = cold(("lookup",)), cold(("lookup",))
    chosen = {}
    for name, each, deciding in (("slow", slow, 0.02), ("quick", quick, 0.0)):
        for context in range(8, 208):
            chosen.setdefault(name, []).append(each.choose([DrafterCandidate("lookup", 1, 5.0)], context, 64))
            each.learn(Round(context, None, verify_seconds=1.0, seconds=1.0 + deciding))
    assert set(chosen["slow"]) == {None}
    assert "lookup" in chosen["quick"]


def test_a_hiccup_does_not_end_drafting() -> None:
    """One round that takes a thousand times as long (a page fault) is booked as twice its cost; the next one drafts again."""
    recording, costs = constant(0.8, 600), costs_of(0.1, 0.05)

    walked = simulate(recording, informed(recording, costs), costs, pace=lambda t: 1000.0 if 300 <= t < 306 else 1.0)

    after = [r for r in walked.rounds if 320 < r.context < 420]
    assert sum(r.origin is not None for r in after) > 0.8 * len(after)


def test_an_unmeasured_drafter_starts_with_one_draft_and_widens() -> None:
    """With nothing measured no pass is more than twice as wide as any before it, however sure the drafts look."""
    recording, costs = Recording(8, {"draft": [DraftTrace((6.0,) * 24, 24)] * 400}), costs_of(0.05, 0.02)

    walked = simulate(recording, Dynamic(Costs(), {"draft": deepcopy(OPTIMIST)}), costs)

    widest, widths = 1, [r.submitted + 1 for r in walked.rounds]
    for width in widths:
        assert width <= 2 * widest
        widest = max(widest, width)
    assert widest > 16


def test_reading_a_long_prompt_needs_a_promise() -> None:
    """A drafter that must first read for ten passes' time stays out until a profile promises that it is worth it."""
    costs = costs_of(0.1, 0.02)
    costs.draft["draft"].table[1000] = (10.0, 16.0)
    recording = Recording(1000, constant(0.8, 300).traces)

    def drafting(rate: float | None) -> bool:
        policy = Dynamic(deepcopy(costs), {"draft": AcceptanceModel()}, rate=rate)
        return any(r.origin for r in simulate(recording, policy, costs).rounds[:20])

    assert not drafting(None)
    assert drafting(2.0)


def test_it_uses_a_plateau_and_stays_below_a_step() -> None:
    """Where passes of up to 5 tokens cost the same and 6 cost double, rounds of middling drafts fill the plateau, no more."""
    costs = costs_of(0.01)
    costs.target = CostCurve(costs.drift, {n: (1.0 if n <= 5 else 2.0, 16.0) for n in range(1, 33)})
    recording = constant(0.6, 800)

    walked = simulate(recording, informed(recording, costs), costs)

    submitted = [r.submitted for r in walked.rounds if r.origin and r is not walked.rounds[-1]]
    assert sum(s == 4 for s in submitted) > 0.9 * len(submitted)


def test_two_drafters_whose_merits_alternate_beat_each_alone() -> None:
    """Lookup right in one half of the stretches and the model in the other: choosing each round beats either."""
    rng = random.Random(1)
    rows: dict[DraftSource, list[DraftTrace]] = {"draft": [], "lookup": []}
    for t in range(1200):
        copying = (t // 60) % 2 == 0
        depth = min(12, 1200 - t)
        rows["draft"].append(DraftTrace((0.0,) * depth, min(depth, 0 if copying else rng.randint(1, 4))))
        match = 4.0 if copying else 1.0
        rows["lookup"].append(DraftTrace((match,) * depth, min(depth, rng.randint(4, 12) if copying else 0)))
    both, costs = Recording(8, rows), costs_of(0.1, 0.05)
    alone = [Recording(8, {o: g}) for o, g in rows.items()]

    together = simulate(both, informed(both, costs), costs).rate

    assert together > 1.1 * max(simulate(r, informed(r, costs), costs).rate for r in alone)


def test_merits_that_alternate_unseen_are_found_by_trying() -> None:
    """Two models, good and bad by turns of 200 tokens with nothing known beforehand: trials pay, dynamic beats each alone."""
    rng = random.Random(4)
    rows: dict[DraftSource, list[DraftTrace]] = {"draft": [], "self": []}
    for t in range(2400):
        for origin in rows:
            good = (t // 200) % 2 == (origin == "self")
            kept = int(math.log(rng.random()) / math.log(0.9 if good else 0.3))
            rows[origin].append(DraftTrace((1.5 if good else 0.0,) * 24, min(kept, 24)))
    costs = costs_of(0.1, 0.1)
    costs.draft["self"], costs.complete = costs.draft["draft"], costs.target

    def rate(*origins: DraftSource) -> float:
        policy = Dynamic(deepcopy(costs), {o: AcceptanceModel() for o in origins})
        return simulate(Recording(8, {o: rows[o] for o in origins}), policy, costs).rate

    assert rate("draft", "self") > 1.15 * max(rate("draft"), rate("self"))


def test_the_price_of_a_second_follows_the_rate() -> None:
    """λ is within 15 % of what the last rounds achieved, before and after acceptance changes, and at least plain's."""
    easy, hard = constant(0.9, 600), constant(0.0, 600)
    costs = costs_of(0.05, 0.05)
    policy = Dynamic(deepcopy(costs), {"draft": AcceptanceModel()})

    for recording in (easy, hard):
        rounds = simulate(recording, policy, costs).rounds[-40:]
        assert policy.rate == pytest.approx(sum(r.tokens for r in rounds) / sum(r.seconds for r in rounds), rel=0.15)
        assert policy.rate >= 1.0


def test_the_exit_is_charged_once_for_each_pass_it_makes() -> None:
    """From nothing, early exit's two costs are learned apart: its own layers' pass, and what remains for n tokens."""
    costs = costs_of(0.0, 0.1)
    costs.draft["self"] = CostCurve(costs.drift, {1: (0.3, 16.0)})
    costs.complete.table = {n: (0.7 * t, w) for n, (t, w) in costs.target.table.items()}
    recording = constant(0.8, 1500, origin="self")
    policy = Dynamic(Costs(), {"self": AcceptanceModel()})

    walked = simulate(recording, policy, costs)

    used = max({r.submitted for r in walked.rounds}, key=[r.submitted for r in walked.rounds if r.origin].count)
    learned = policy.costs
    assert learned.draft["self"](1) == pytest.approx(0.3, rel=0.1)
    assert learned.complete(used + 1) == pytest.approx(costs.complete(used + 1), rel=0.1)
    assert learned.verify("self", 2, 0, drafted=3) == pytest.approx(learned.complete(3))
    assert learned.verify("self", 2, 0) == pytest.approx(learned.complete(3) + learned.draft["self"](1))


def test_a_machine_that_slows_down_changes_no_mind() -> None:
    """Everything taking twice as long from the middle on leaves the drafts per round, and what they yield, as they were."""
    recording, costs = constant(0.8, 3000), costs_of(0.1, 0.05)
    pace = {False: lambda _: 1.0, True: lambda t: 2.0 if t > 1000 else 1.0}
    late = {}
    for slowing, speed in pace.items():
        walked = simulate(recording, informed(recording, costs), costs, pace=speed)
        late[slowing] = [r for r in walked.rounds if r.context > 1208]

    def mean(rounds: list[Round]) -> float:
        return sum(r.submitted for r in rounds) / len(rounds)

    def worth(rounds: list[Round]) -> float:
        spent = sum(1 + 0.1 * len(r.signals) + 0.05 * r.submitted for r in rounds)
        return sum(yielded(0.8, r.submitted) for r in rounds) / spent

    assert mean(late[True]) == pytest.approx(mean(late[False]), rel=0.1)
    assert worth(late[True]) == pytest.approx(worth(late[False]), rel=0.01)


def test_noise_in_the_timings_costs_little() -> None:
    """With every timing off by some 10 % (lognormal), the choices made are worth 3 % less at most."""
    recording, costs = invented(5, 1500), costs_of(0.1, 0.05)
    rng = random.Random(2)
    noisy, quiet = (
        simulate(recording, informed(recording, costs), costs, pace=pace)
        for pace in (lambda _: rng.lognormvariate(0, 0.1), lambda _: 1.0)
    )

    truly = sum(1 + 0.1 * len(r.signals) + 0.05 * r.submitted for r in noisy.rounds)

    assert quiet.seconds / truly >= 0.97


@given(st.integers(0, 10_000), st.integers(0, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_sequence_of_rounds_is_legal(seed: int, room: int, prefixes: bool) -> None:
    """Never more drafts than room, never more submitted than made, all of them where prefixes are forbidden."""
    rng = random.Random(seed)
    origins: tuple[DraftSource, ...] = ("draft", "self", "lookup")
    policy = Dynamic(Costs(), {o: AcceptanceModel() for o in origins}, verify_prefixes=prefixes)
    for at in range(40):
        offered = [
            DrafterCandidate(o, rng.randint(1, 9), rng.choice([None, 2.0]) if o == "lookup" else None) for o in origins
        ]
        chosen = policy.choose(offered, at, room)
        if chosen is None:
            spent = rng.uniform(0.5, 2)
            policy.learn(Round(at, None, verify_seconds=spent, seconds=spent))
            continue
        assert room >= 1
        signals: list[float] = []
        while policy.should_draft_more(signals):
            signals.append(rng.uniform(-6, 6))
            assert len(signals) <= room
        submitted = policy.verify_length(signals)
        assert 0 <= submitted <= len(signals)
        assert prefixes or submitted == len(signals)
        a, b, c = (rng.uniform(0.01, 1) for _ in range(3))
        policy.learn(Round(at, chosen, 1, signals, submitted, rng.randint(0, submitted), a, b, a + b + c))


def test_the_first_round_measures_a_plain_pass() -> None:
    """With nothing known there is nothing to compare a draft with."""
    policy = Dynamic(Costs(), {"draft": AcceptanceModel()})

    assert policy.choose([DrafterCandidate("draft")], 5, 10) is None


def test_plain_and_static_do_as_they_say() -> None:
    """Plain never drafts; static always makes its number, unless there is no room or nothing to look up."""
    assert Plain().choose([DrafterCandidate("draft")], 5, 10) is None
    fixed = Static("draft", 3)
    assert fixed.choose([DrafterCandidate("draft")], 5, 2) == "draft"
    assert [fixed.should_draft_more([0.0] * k) for k in range(3)] == [True, True, False]
    assert Static("lookup", 3).choose([DrafterCandidate("lookup", signal=None)], 5, 9) is None
    assert Static("lookup", 3).choose([DrafterCandidate("lookup", signal=1.0)], 5, 9) == "lookup"


def test_widths_that_cost_to_change_to_are_changed_less() -> None:
    """Where a pass of another width than the one before costs a third more, that is learned from a run and fewer are used."""

    class Changing(Costs):
        def ran(self, n: int) -> None:
            super().ran(n)
            self.switching = 0.35

    recording, plain = invented(3, 1500), costs_of(0.01, 0.03)
    costs = Changing()
    costs.target, costs.draft = plain.target, plain.draft
    costs.switching = 0.35
    policy = informed(recording, plain)

    walked = simulate(recording, policy, costs)

    assert policy.costs.switching == pytest.approx(0.35, rel=0.35)

    def changes(outcome: Outcome) -> int:
        widths = [r.submitted + 1 for r in outcome.rounds]
        return sum(a != b for a, b in pairwise(widths))

    free = simulate(recording, informed(recording, plain), plain)
    assert changes(walked) < 0.8 * changes(free)
    assert simulate(recording, informed(recording, plain), costs).seconds <= free.seconds + 0.35 * changes(free)


def test_a_change_of_width_that_must_be_undone_costs_twice() -> None:
    """A width that the next pass seldom has is charged the change back; padding instead of a change costs what it takes."""
    costs = costs_of(0.01, 0.03)
    costs.switching = 0.4
    for _ in range(40):
        costs.ran(1)
    assert costs.changes(1, 0) == pytest.approx(0.0, abs=0.02)
    assert costs.changes(6, 0) == pytest.approx(0.4 * 1.5)  # nothing is known of it
    for _ in range(40):
        costs.ran(6)
        costs.ran(1)
    assert costs.changes(6, 0) == pytest.approx(0.8, rel=0.02)

    costs.ran(6)
    assert costs.switch(1, 0) == 0.4
    costs.prepared = lambda: 6
    assert costs.switch(1, 0) == pytest.approx(min(0.4, costs.target(6) - costs.target(1)))


def test_the_pass_that_verifies_is_priced_without_its_change_of_width() -> None:
    """A finished round counts its change once, as it was before the pass: padding may hold another width afterwards."""
    costs = costs_of(0.01, 0.2)
    costs.switching, costs.width = 0.4, 9
    costs.prepared = lambda: 9
    assert costs.switch(6, 0) > 0
    assert costs.verifying_pass("lookup", 5, 0) == costs.target(6)
    assert costs.verify("lookup", 5, 0) == costs.target(6) + costs.switch(6, 0)


def test_what_a_pass_was_padded_to_is_what_its_time_is_learned_for() -> None:
    """The time of a pass of one token that ran as one of six says nothing of passes of one token."""
    costs = costs_of(0.01, 0.2)
    costs.prepared = lambda: 6
    one, six = costs.target(1), costs.target(6)
    costs.ran(6)
    costs.observe(1, 0, six)
    assert (costs.target(1), costs.target(6), costs.switching) == (one, six, 0.0)


def test_a_long_lookup_needs_a_proof() -> None:
    """However long the match, a first draft is short; it doubles with each that is accepted whole, no other does."""
    costs = costs_of(0.0, 0.1)
    costs.draft["lookup"] = CostCurve(costs.drift, {1: (1e-9, 16.0)})
    rows = [DraftTrace(tuple(5.0 + i / 100 for i in range(24)), 24)] * 200 + [DraftTrace((5.0,) * 24, 3)] * 200
    model = AcceptanceModel((0.0, 0.6, 0.0))

    walked = simulate(Recording(8, {"lookup": rows}), Dynamic(deepcopy(costs), {"lookup": model}), costs)

    looping = [r for r in walked.rounds if r.context < 200]
    parting = [r for r in walked.rounds if 208 <= r.context < 400]
    first = next(r.submitted for r in looping if r.submitted)
    assert first <= 8
    assert max(r.submitted for r in looping) > 15
    assert all(r.submitted <= first for r in parting[1:] if r.submitted)
