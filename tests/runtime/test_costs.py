"""Cost curves: exact between measurements, one drift for the machine, a slow correction for a width."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynx.runtime.costs import CALIBRATED_WEIGHT, MAX_SLOWDOWN, PRIOR_SLOPE, CostCurve, Drift
from dynx.speculation.timing import TARGET_PASS_TOKENS


def curve(**table: float) -> CostCurve:
    """A curve well established at widths given as w1=…, w4=… and so on."""
    return CostCurve(Drift(), {int(k[1:]): (v, 16.0) for k, v in table.items()})


def test_between_two_widths_it_is_a_line() -> None:
    """An unmeasured width costs what the line between its neighbours says; the call and `upto` agree."""
    c = curve(w1=10.0, w5=18.0, w9=20.0)

    assert c(3) == pytest.approx(14.0)
    assert c(7) == pytest.approx(19.0)
    assert c.upto(9) == pytest.approx([c(n) for n in range(1, 10)])


def test_beyond_the_measured_widths_the_prior_slope_holds() -> None:
    """Wider than any measured: 3 % of the widest for each token more; narrower: as much less."""
    c = curve(w4=10.0, w8=12.0)

    assert c(10) == pytest.approx(12.0 * (1 + 2 * PRIOR_SLOPE))
    assert c(1) == pytest.approx(10.0 / (1 + 3 * PRIOR_SLOPE))
    assert c.upto(10) == pytest.approx([c(n) for n in range(1, 11)])


@given(
    st.dictionaries(st.integers(1, 30), st.floats(0.1, 2.0), min_size=1, max_size=9),
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 9), st.floats(0.01, 5.0), st.integers(1, 30)), max_size=30),
    st.sampled_from([0.0, 0.01, -0.001]),
)
def test_asking_for_many_widths_is_asking_for_each(
    table: dict[int, float], passes: list[tuple[int, int, float, int]], per_context: float
) -> None:
    """However passes and questions follow each other, `upto` says what the single calls say, and it is more than nothing."""
    c = CostCurve(table={n: (v, 16.0) for n, v in table.items()}, per_context=per_context, reference=4)
    for n, context, seconds, asked in passes:
        c.observe(n, context, seconds)
        assert c.upto(asked, context) == pytest.approx([c(i, context) for i in range(1, asked + 1)])
        assert min(c.upto(asked, context)) > 0


def test_context_adds_in_proportion() -> None:
    """Each token of context beyond the reference costs the same at every width."""
    c = curve(w1=10.0, w2=11.0)
    c.per_context, c.reference = 0.01, 100

    assert c(1, 600) == pytest.approx(15.0)
    assert c(2, 600) - c(1, 600) == pytest.approx(1.0)


def test_an_empty_curve_knows_nothing() -> None:
    """Nothing measured: zero seconds, and it says so."""
    c = CostCurve()

    assert not c.known
    assert c(3) == 0.0
    assert c.upto(3) == [0.0, 0.0, 0.0]


def test_a_slow_machine_slows_all_widths_alike() -> None:
    """Passes of one width that all take twice as long move the others too, by way of the shared drift."""
    drift = Drift()
    target, small = CostCurve(drift, {1: (10.0, 16.0), 5: (12.0, 16.0)}), CostCurve(drift, {1: (1.0, 16.0)})
    for _ in range(60):
        target.observe(5, 0, 24.0)

    assert drift.factor > 1.3
    assert target(5) == pytest.approx(24.0, rel=0.02)
    assert small(1) > 1.3
    assert target(1) > 13.0


def test_one_width_that_is_dearer_than_its_table_is_corrected() -> None:
    """Among passes as expected, one width that keeps costing twice its entry ends near twice, and the others stay."""
    c = curve(w1=10.0, w5=12.0)
    for _ in range(200):
        c.observe(1, 0, 10.0)
        c.observe(5, 0, 24.0)

    assert c(5) == pytest.approx(24.0, rel=0.1)
    assert c(1) == pytest.approx(10.0, rel=0.1)


def test_a_hiccup_counts_as_twice_at_most() -> None:
    """A pass that took a thousand times as long moves the curve no further than one that took twice."""
    once, twice = curve(w1=10.0), curve(w1=10.0)
    once.observe(1, 0, 10_000.0)
    twice.observe(1, 0, 10.0 * MAX_SLOWDOWN)

    assert once(1) == pytest.approx(twice(1))


def test_what_takes_no_time_says_nothing_about_the_pace() -> None:
    """Passes that the clock doesn't show leave the drift alone."""
    c = CostCurve()
    for _ in range(50):
        c.observe(1, 0, 0.0)

    assert c.drift.factor == 1.0


@pytest.mark.parametrize(("seconds", "taken"), [(1000.0, 2 * 13.0), (0.001, 13.0 / 2)])
def test_a_first_sample_is_trusted_within_bounds(seconds: float, taken: float) -> None:
    """A width that was never measured moves from its interpolation by a factor of two at most."""
    c = curve(w1=10.0, w5=16.0)
    assert c(3) == pytest.approx(13.0)

    c.observe(3, 0, seconds)

    assert c(3) == pytest.approx(taken)
    assert c.widest == 5


def test_a_change_of_pace_is_hardly_mistaken_for_one_of_widths() -> None:
    """A machine twice as slow, seen at two widths for 300 passes, leaves the ratio to a third within 10 % of its table's."""
    c = CostCurve(table={1: (10.0, CALIBRATED_WEIGHT), 3: (12.0, CALIBRATED_WEIGHT), 5: (14.0, CALIBRATED_WEIGHT)})
    for _ in range(150):
        c.observe(3, 0, 24.0)
        c.observe(5, 0, 28.0)

    assert c(5) / c(1) == pytest.approx(1.4, rel=0.1)
    assert c.drift.factor == pytest.approx(2.0, rel=0.1)


def test_fit_takes_medians_and_robust_slopes() -> None:
    """Cells are medians of their samples, and an outlier among them moves neither their width's slope nor their base."""
    samples = [(1, 0, s) for s in (10.0, 10.0, 99.0)] + [(1, 100, s) for s in (12.0, 1.0, 12.0)]
    samples += [(4, 0, 11.0), (4, 100, 13.0)]

    c = CostCurve.fit(samples)

    assert c.per_context == pytest.approx(0.02)
    assert c(1, 0) == pytest.approx(10.0)
    assert c(1, 100) == pytest.approx(12.0)
    assert c(4, 100) == pytest.approx(13.0)


@given(
    st.lists(st.floats(0.0, 0.05), min_size=5, max_size=5),
    st.floats(0.0, 0.01),
    st.integers(0, 4),
    st.integers(0, 2),
    st.booleans(),
)
def test_passes_of_one_token_have_a_slope_of_their_own(
    steps: list[float], single: float, which: int, where: int, rough: bool
) -> None:
    """Wider passes read the cache by another kernel: both slopes are found, whatever a busy moment did to one cell of those."""
    widths, contexts = (2, 3, 5, 8, 13), (32, 512, 1536)
    base = dict(zip(widths, itertools.accumulate(steps, initial=1.0), strict=False))
    samples = [(1, c, 1.0 + single * (c - 32)) for c in contexts]
    for i, n in enumerate(widths):
        for j, c in enumerate(contexts):
            slow = 3.0 if rough and (i, j) == (which, where) else 1.0
            samples += [(n, c, slow * (base[n] + 0.02 * (c - 32)))] * 3

    found = CostCurve.fit(samples)

    assert found.slope(1) == pytest.approx(single, abs=1e-9)
    assert all(found.slope(n) == pytest.approx(0.02, rel=1e-6) for n in (3, 4, 5, 6, 8))
    if not rough:
        assert found.upto(13, 900) == pytest.approx([found(n, 900) for n in range(1, 14)])
        assert found(5, 900) == pytest.approx(base[5] + 0.02 * (900 - 32))


def test_costs_that_jump_keep_their_steps() -> None:
    """Kernels that take four rows at a time: measured beside each step the curve is the machine's, also between them."""
    machine = {n: 10.0 * (1 + 0.5 * ((n - 1) // 4)) for n in range(1, 18)}

    found = CostCurve.fit((n, 32, machine[n]) for n in TARGET_PASS_TOKENS if n in machine)

    assert found.upto(17, 32) == pytest.approx(list(machine.values()))


def test_json_round_trip() -> None:
    """What a profile stores comes back, without the moment's drift."""
    c = curve(w1=10.0, w5=12.0)
    c.per_context, c.reference, c.drift.factor = 0.5, 32, 3.0

    back = CostCurve.from_json(c.to_json(), Drift())

    assert back(5, 40) == pytest.approx(16.0)
    assert "seconds_per_context_token_by_width" not in c.to_json()
    c.slopes = {1: 0.5, 5: 1.5}
    back = CostCurve.from_json(json.loads(json.dumps(c.to_json())), Drift())
    assert back(5, 40) == pytest.approx(24.0)
    assert back.upto(9, 40) == pytest.approx([back(n, 40) for n in range(1, 10)])


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"seconds_by_width": [], "seconds_per_context_token": 0, "reference_context": 0},
        {"seconds_by_width": {"a": 1}, "seconds_per_context_token": 0, "reference_context": 0},
        {"seconds_by_width": {"1": None}, "seconds_per_context_token": 0, "reference_context": 0},
        {"seconds_by_width": {"1": 1.0}, "seconds_per_context_token": "0", "reference_context": 0},
        {"seconds_by_width": {"1": 1.0}, "seconds_per_context_token": True, "reference_context": 0},
        {
            "seconds_by_width": {"1": 1.0},
            "seconds_per_context_token": 0,
            "reference_context": 0,
            "seconds_per_context_token_by_width": {"1": "0"},
        },
    ],
)
def test_other_json_is_refused(data: dict[str, Any]) -> None:
    """A missing field, another type, a width that is no number: an error, never a curve."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        CostCurve.from_json(data, Drift())


def test_widths_that_run_as_another_have_its_time():
    curve = CostCurve(table={1: (0.010, 100), 2: (0.011, 100), 3: (0.0101, 100), 5: (0.009, 100), 8: (0.012, 100)})
    curve.pad({1: 5, 2: 5})
    assert curve(1) == curve(2) == curve(5) == pytest.approx(0.009)
    assert curve.upto(8)[:3] == pytest.approx([0.009, 0.009, 0.0101])
    for _ in range(300):
        curve.observe(1, 0, 0.018)  # the machine is slower now
    assert curve(1) == curve(5) == pytest.approx(0.018, rel=0.02)
    assert curve.upto(5)[0] == pytest.approx(curve(5))
    assert curve(8) > curve(5)
