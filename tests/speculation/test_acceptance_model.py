"""Acceptance as a function of confidence: learned, calibrated, never stuck, never broken by an extreme."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynx.speculation.acceptance_model import PRIOR_VARIANCE, AcceptanceModel, log_odds


def truth(weights: tuple[float, float, float], signal: float, position: int) -> float:
    """The logistic model that generates the data."""
    return 1 / (1 + math.exp(-(weights[0] + weights[1] * signal + weights[2] * math.log(position))))


def draws(weights: tuple[float, float, float], count: int, seed: int = 0) -> list[tuple[float, int, float]]:
    """(signal, position, accepted) as that model would have it."""
    rng = random.Random(seed)
    out = []
    for _ in range(count):
        signal, position = rng.gauss(0.5, 2.0), rng.randint(1, 6)
        out.append((signal, position, float(rng.random() < truth(weights, signal, position))))
    return out


@pytest.mark.parametrize("weights", [(0.0, 1.0, 0.0), (-1.0, 0.5, -0.4), (1.5, 0.0, 0.0)])
@pytest.mark.parametrize("how", ["fit", "observe"])
def test_it_finds_the_truth(weights: tuple[float, float, float], how: str) -> None:
    """After 2000 drafts the probability is within 0.1 of the truth wherever drafts are made."""
    model = AcceptanceModel()
    if how == "fit":
        model.fit(draws(weights, 2000))
    else:
        for draft in draws(weights, 2000):
            model.observe(*draft)

    for signal in (-2.0, 0.0, 2.0):
        for position in (1, 4):
            assert model(signal, position) == pytest.approx(truth(weights, signal, position), abs=0.1)


def test_it_is_calibrated() -> None:
    """Among drafts it has not seen, those given about p are accepted about p of the time: the gap is below 0.04."""
    model = AcceptanceModel()
    model.fit(draws((-0.5, 0.7, -0.3), 2000))
    bins: dict[int, list[tuple[float, float]]] = {}
    for signal, position, accepted in draws((-0.5, 0.7, -0.3), 4000, seed=1):
        p = model(signal, position)
        bins.setdefault(int(p * 10), []).append((p, accepted))

    total = sum(len(b) for b in bins.values())
    gap = sum(abs(sum(p - a for p, a in b)) for b in bins.values()) / total
    assert gap < 0.04


def test_it_follows_a_change() -> None:
    """A drafter that was always right and turns wrong is disbelieved within 100 drafts."""
    model = AcceptanceModel()
    for _ in range(500):
        model.observe(2.0, 1, 1.0)
    assert model(2.0, 1) > 0.9
    for _ in range(100):
        model.observe(2.0, 1, 0.0)

    assert model(2.0, 1) < 0.3
    assert model.typical < 0.3


@pytest.mark.parametrize("signal", [-2.0, 0.0, 2.0, 6.0, 12.0])
@pytest.mark.parametrize("before", [200, 5000])
def test_no_length_of_agreement_makes_it_deaf(signal: float, before: int) -> None:
    """After any number of drafts of one kind, 100 more of which one in five stays bring the estimate below a half.

    Stopping the slope at nought without moving the bias along once let rejections raise the estimate at signal 6, to 1.0.
    """
    model, rng = AcceptanceModel(), random.Random(5)
    for _ in range(before):
        model.observe(signal, 1, float(rng.random() < 0.9))
    for _ in range(100):
        model.observe(signal, 1, float(rng.random() < 0.2))

    assert model(signal, 1) < 0.5


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_doubt_stays_between_nothing_and_the_prior(seed: int) -> None:
    """Over 1500 drafts of any mixture, no variance turns negative (which once ended a long text) or much exceeds its start."""
    model, rng = AcceptanceModel(), random.Random(seed)
    spread, kept = rng.choice([0.0, 0.5, 5.0]), rng.random()
    for _ in range(1500):
        model.observe(rng.gauss(1, spread), rng.randint(1, 20), float(rng.random() < kept))
        assert all(0 <= model.variance[i][i] <= 2 * PRIOR_VARIANCE[i] for i in range(3))
    assert max(map(abs, model.weights)) < 10


def test_fitting_in_pieces_is_fitting_at_once() -> None:
    """A fit builds on what is known: ten recordings one after the other teach what they teach together."""
    together, apart, drafts = AcceptanceModel(), AcceptanceModel(), draws((-0.5, 0.7, -0.3), 1000)
    together.fit(drafts)
    for at in range(0, 1000, 100):
        apart.fit(drafts[at : at + 100])

    assert apart.weights == pytest.approx(together.weights, abs=0.1)
    assert apart.typical == pytest.approx(together.typical)
    assert apart.observed == together.observed == 1000


def test_an_outlook_that_was_not_heard_for_long_yields_sooner() -> None:
    """A drafter left aside for a hundred rounds changes its outlook at least twice as fast as one in use."""
    used, idle = AcceptanceModel(), AcceptanceModel()
    for model in (used, idle):
        for _ in range(100):
            model.observe(0.0, 1, 0.0)
    for _ in range(200):
        idle.fade()
    for model in (used, idle):
        for _ in range(3):
            model.expect(1.0)

    assert idle.typical > 2 * used.typical


def test_a_profile_is_a_start_and_not_an_end() -> None:
    """What a profile says comes back unchanged, and a hundred contrary drafts overturn it."""
    taught = AcceptanceModel()
    taught.fit(draws((1.0, 1.0, 0.0), 1000))

    back = AcceptanceModel.from_json(taught.to_json())

    assert back(0.0, 1) == pytest.approx(taught(0.0, 1), abs=1e-3)
    for _ in range(100):
        back.observe(0.0, 1, 0.0)
    assert back(0.0, 1) < 0.3


def test_confidence_is_never_held_against_a_draft() -> None:
    """Even where surer drafts fail more often, the slope stops at nought: the probability doesn't fall with the signal."""
    model = AcceptanceModel()
    rng = random.Random(3)
    for _ in range(300):
        signal = rng.gauss(0, 2)
        model.observe(signal, 1, float(signal < 0))

    assert model(3.0, 1) >= model(-3.0, 1)


def test_a_signal_that_never_changes_does_not_unhinge_it() -> None:
    """Five thousand drafts with one signal, nine of ten kept: still about 0.9, and no weight wanders off.

    An update that restored doubt along the observed direction only once let the bias run to thousands here.
    """
    model, rng = AcceptanceModel(), random.Random(4)
    for _ in range(5000):
        model.observe(0.0, rng.randint(1, 20), float(rng.random() < 0.9))

    assert model(0.0, 1) == pytest.approx(0.9, abs=0.12)
    assert model(0.0, 10) == pytest.approx(0.9, abs=0.08)
    assert max(map(abs, model.weights)) < 5


@given(
    st.lists(st.tuples(st.floats(allow_nan=False), st.integers(1, 64), st.sampled_from([0.0, 0.5, 1.0])), max_size=30)
)
def test_extremes_do_no_harm(drafts: list[tuple[float, int, float]]) -> None:
    """Whatever the signals, infinities included, every probability stays a number between 0 and 1."""
    model = AcceptanceModel()
    for draft in drafts:
        model.observe(*draft)

    for signal in (-math.inf, -5.0, 0.0, 5.0, math.inf):
        assert 0.0 <= model(signal, 1) <= 1.0
    assert 0.0 <= model.typical <= 1.0


@pytest.mark.parametrize("p", [0.0, 1.0, 0.5, 1e-30, 1 - 1e-16, math.nan])
def test_log_odds_are_bounded(p: float) -> None:
    """No probability, NaN included, gives more than six nats either way."""
    assert -6.0 <= log_odds(p) <= 6.0


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"weights": [1, 2], "typical": 0.5, "n": 1},
        {"weights": [1, 2, 3], "typical": "x", "n": 1},
        {"weights": [1, 2, math.inf], "typical": 0.5, "n": 1},
        {"weights": [1, 2, 3], "typical": 0.5, "n": 1.5},
        {"weights": [1, 2, "x"], "typical": 0.5, "n": 1},
    ],
)
def test_other_json_is_refused(data: dict[str, Any]) -> None:
    """A missing field, too few weights, something infinite: an error, never a model."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        AcceptanceModel.from_json(data)
