"""What a run draws with follows from its length: the start is paid once, and nobody starts what doesn't win that back."""

from __future__ import annotations

import pytest

from dynx.diffusion.runs import LONG_RUN, Pending, RunCost, Seconds, begin, choose, why
from dynx.runtime.plan import BackendSpec

LOADED = RunCost(BackendSpec("torch-eager", "float32"), {1: Seconds(0.01, 0.02, 0.0), 8: Seconds(0.01, 0.01, 0.0)})
FAST = RunCost(
    BackendSpec("openvino", "float32"),
    {
        1: Seconds(0.01, 0.008, 0.5, (("", "one"),)),
        8: Seconds(0.005, 0.004, 0.6, (("", "eight"), ("vae.decoder", "d"))),
    },
    ("vae.decoder",),
)
COSTS = [LOADED, FAST]
CALLS = 5.0


def test_the_shortest_run_is_chosen_whatever_its_length() -> None:
    """Over all backends and numbers of pictures in a call, counted by hand; the last call is filled up."""
    for pictures in range(1, 70):
        chosen = choose(COSTS, pictures, CALLS)
        everything = {}
        for cost in COSTS:
            for batch, each in cost.by_batch.items():
                if batch <= max(1, pictures):
                    drawn = -(-pictures // batch) * batch
                    everything[cost.spec.backend, batch] = each.start + drawn * (each.fixed + CALLS * each.call)
        assert everything[chosen.cost.spec.backend, chosen.batch] == pytest.approx(min(everything.values()))
    assert choose(COSTS, 1, CALLS).cost is LOADED
    assert choose(COSTS, 64, CALLS).cost is FAST


def test_steps_count_too() -> None:
    """Many calls of one picture win a start back that few don't."""
    assert choose(COSTS, 1, 5).cost is LOADED
    assert choose(COSTS, 1, 100).cost is FAST


def test_a_run_of_unknown_length_costs_at_most_twice_the_best() -> None:
    """It begins with what is over first for one picture, and moves over once it has spent what the move costs."""
    now, pending = begin(COSTS, CALLS)
    assert now.cost is LOADED
    assert pending is not None
    assert pending.later == choose(COSTS, LONG_RUN, CALLS)
    for pictures in (1, 2, 5, 9, 20, 100, 1000):
        spent, moved = 0.0, False
        for _ in range(pictures):
            if not moved and pending.pays(spent):
                spent, moved = spent + pending.later.times.start, True
            spent += (pending.later if moved else now).times.picture(CALLS)
        best = min(
            start + pictures * each
            for start, each in (
                (0.0, now.times.picture(CALLS)),
                (pending.later.times.start, pending.later.times.picture(CALLS)),
            )
        )
        assert spent <= 2 * best + now.times.picture(CALLS)


def test_pictures_that_are_known_to_come_count_at_once() -> None:
    """Lines that have arrived already are as good as a known number."""
    pending = begin(COSTS, CALLS)[1]
    assert isinstance(pending, Pending)
    assert not pending.pays(0.0)
    assert pending.pays(0.0, ahead=64)


def test_where_one_backend_is_best_at_all_lengths_nothing_is_pending() -> None:
    """Without a start to win back."""
    free = RunCost(BackendSpec("openvino", "bfloat16"), {1: Seconds(0.0, 0.001, 0.0)})
    now, pending = begin([LOADED, free], CALLS)
    assert (now.cost, pending) == (free, None)


def test_a_profile_keeps_it_all() -> None:
    """There and back; what can't be used is refused."""
    assert [RunCost.from_json(cost.to_json()) for cost in COSTS] == COSTS
    good = FAST.to_json()
    for broken in ({"batches": {"8": [0, 1, 0]}}, {"batches": {"1": [0, 0, 0]}}, {"batches": {"1": [0]}}, {"files": 3}):
        with pytest.raises((ValueError, IndexError, TypeError, AttributeError)):
            RunCost.from_json(good | broken)


def test_the_reason_names_all_times() -> None:
    """Of the chosen one first, with the start in them."""
    said = why(COSTS, choose(COSTS, 64, CALLS), 64, CALLS)
    assert said.startswith(
        "measured for 64 pictures of 5.0 network calls, the start included: OpenVINO in float32, 8 pictures"
    )
    assert "PyTorch in float32" in said
