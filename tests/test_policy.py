"""The three decisions: as good as the best fixed choice where one is best, better where none is, never much worse than plain."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_replay import costs_of, invented

from dynx.runtime.costs import CostCurve
from dynx.speculation.confidence import Reliability
from dynx.speculation.policy import Costs, Dynamic, Plain, Prospect, Round, Static
from dynx.speculation.replay import Guess, Recording, simulate

if TYPE_CHECKING:
    from dynx.speculation.events import Origin


def constant(acceptance: float, tokens: int, seed: int = 0, origin: Origin = "draft") -> Recording:
    """Every draft stays with the same probability, and its signal says nothing."""
    rng = random.Random(seed)
    right = [rng.random() < acceptance for _ in range(tokens + 24)]
    guesses = []
    for t in range(tokens):
        depth = min(24, tokens - t)
        run = right[t : t + depth]
        guesses.append(Guess((0.0,) * depth, run.index(False) if False in run else depth))
    return Recording(8, {origin: guesses})


def informed(recording: Recording, costs: Costs, **options: float) -> Dynamic:
    """The dynamic policy after a calibration: measured costs, acceptance taught by another text of the same kind."""
    taught = {}
    for origin in recording.guesses:
        taught[origin] = Reliability()
        taught[origin].fit(recording.judged(origin))
    return Dynamic(deepcopy(costs), taught, grant=0.5, **options)


@pytest.mark.parametrize("acceptance", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("draft", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("slope", [0.0, 0.05, 0.2])
def test_with_constant_acceptance_it_finds_the_best_length(acceptance: float, draft: float, slope: float) -> None:
    """Where one length is right for good, dynamic reaches 96 % of the best length's rate, chosen with hindsight, or plain's."""
    recording, costs = constant(acceptance, 2000), costs_of(draft, slope)
    fixed = [simulate(recording, Static("draft", k), costs).rate for k in range(1, 16)]
    best = max(1.0, *fixed)

    assert simulate(recording, informed(recording, costs), costs).rate >= 0.96 * best


@pytest.mark.parametrize("seed", range(4))
def test_where_the_signal_tells_easy_from_hard_it_beats_every_fixed_length(seed: int) -> None:
    """On text with easy and hard stretches dynamic is at least 3 % faster than the best fixed length."""
    recording, costs = invented(seed, 1500), costs_of(0.1, 0.05)
    best = max(simulate(recording, Static("draft", k), costs).rate for k in range(1, 16))

    assert simulate(recording, informed(recording, costs), costs).rate >= 1.03 * best


@pytest.mark.parametrize("draft", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("tokens", [100, 400])
def test_a_hostile_drafter_costs_next_to_nothing(draft: float, tokens: int) -> None:
    """Nothing measured, no draft ever right: the loss against plain is what was granted and 2 % at most."""
    recording, costs = constant(0.0, tokens), costs_of(draft, 0.05)
    policy = Dynamic(Costs(), {"draft": Reliability()})

    walked = simulate(recording, policy, costs)

    assert walked.seconds <= tokens * 1.02 + 2.0 + 1.0


def test_a_profile_that_lies_costs_next_to_nothing() -> None:
    """A profile that promises acceptance of 0.9 where none is left loses half a pass and 2 %, reading apart."""
    recording, costs = constant(0.0, 400), costs_of(0.2, 0.05)
    hopeful = Reliability()
    hopeful.fit((0.0, 1, float(i % 10 > 0)) for i in range(300))

    walked = simulate(recording, Dynamic(deepcopy(costs), {"draft": hopeful}, grant=0.5), costs)

    assert walked.seconds <= 400 * 1.02 + 2.0


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
    rows: dict[Origin, list[Guess]] = {"draft": [], "lookup": []}
    for t in range(1200):
        copying = (t // 60) % 2 == 0
        depth = min(12, 1200 - t)
        rows["draft"].append(Guess((0.0,) * depth, min(depth, 0 if copying else rng.randint(1, 4))))
        match = 4.0 if copying else 1.0
        rows["lookup"].append(Guess((match,) * depth, min(depth, rng.randint(4, 12) if copying else 0)))
    both, costs = Recording(8, rows), costs_of(0.1, 0.05)
    alone = [Recording(8, {o: g}) for o, g in rows.items()]

    together = simulate(both, informed(both, costs), costs).rate

    assert together > 1.1 * max(simulate(r, informed(r, costs), costs).rate for r in alone)


def test_a_machine_that_slows_down_changes_no_mind() -> None:
    """Everything taking twice as long from the middle on leaves the share of rounds that draft as it was."""
    recording, costs = constant(0.8, 1600), costs_of(0.1, 0.05)

    walked = simulate(recording, informed(recording, costs), costs, pace=lambda t: 2.0 if t > 800 else 1.0)

    half = [[r for r in walked.rounds if (r.context > 808) is late] for late in (False, True)]
    shares = [sum(r.submitted for r in rounds) / len(rounds) for rounds in half]
    assert shares[1] == pytest.approx(shares[0], rel=0.15)


def test_noise_in_the_timings_costs_little() -> None:
    """With every timing off by some 10 %, at most 4 % of the speed is lost."""
    recording, costs = invented(5, 1500), costs_of(0.1, 0.05)
    quiet = simulate(recording, informed(recording, costs), costs)
    rng = random.Random(2)

    noisy = simulate(recording, informed(recording, costs), costs, pace=lambda _: rng.lognormvariate(0, 0.1))

    spent = sum(
        costs.target(1, r.context)
        if r.origin is None
        else costs.drafts("draft", len(r.signals), r.lag, r.context) + costs.verify("draft", r.submitted, r.context)
        for r in noisy.rounds
    )
    assert quiet.seconds / spent >= 0.96


@given(st.integers(0, 10_000), st.integers(0, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_sequence_of_rounds_is_legal(seed: int, room: int, prefixes: bool) -> None:
    """Never more drafts than room, never more submitted than made, all of them where prefixes are forbidden."""
    rng = random.Random(seed)
    origins: tuple[Origin, ...] = ("draft", "self", "lookup")
    policy = Dynamic(Costs(), {o: Reliability() for o in origins}, submit_prefixes=prefixes)
    for at in range(40):
        offered = [Prospect(o, rng.randint(1, 9), rng.choice([None, 2.0]) if o == "lookup" else None) for o in origins]
        chosen = policy.choose(offered, at, room)
        if chosen is None:
            spent = rng.uniform(0.5, 2)
            policy.learn(Round(at, None, verify_seconds=spent, seconds=spent))
            continue
        assert room >= 1
        signals: list[float] = []
        while policy.another(signals):
            signals.append(rng.uniform(-6, 6))
            assert len(signals) <= room
        submitted = policy.submit(signals)
        assert 0 <= submitted <= len(signals)
        assert prefixes or submitted == len(signals)
        a, b, c = (rng.uniform(0.01, 1) for _ in range(3))
        policy.learn(Round(at, chosen, 1, signals, submitted, rng.randint(0, submitted), a, b, a + b + c))


def test_the_first_round_measures_a_plain_pass() -> None:
    """With nothing known there is nothing to compare a draft with."""
    policy = Dynamic(Costs(), {"draft": Reliability()})

    assert policy.choose([Prospect("draft")], 5, 10) is None


def test_plain_and_static_do_as_they_say() -> None:
    """Plain never drafts; static always makes its number, unless there is no room or nothing to look up."""
    assert Plain().choose([Prospect("draft")], 5, 10) is None
    fixed = Static("draft", 3)
    assert fixed.choose([Prospect("draft")], 5, 2) == "draft"
    assert [fixed.another([0.0] * k) for k in range(3)] == [True, True, False]
    assert Static("lookup", 3).choose([Prospect("lookup", signal=None)], 5, 9) is None
    assert Static("lookup", 3).choose([Prospect("lookup", signal=1.0)], 5, 9) == "lookup"
