"""An alarm that may be trusted, and rules certified on the job itself."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import stats

from dynx.early_exit.audit import Audit, audited, certify_sample, draw_sample
from dynx.errors import UsageError

EPS, DELTA = 0.02, 0.05


def alarms(rates: list[float], streams: int, eps: float = EPS, delta: float = DELTA) -> list[int | None]:
    """For each random stream with these rates of disagreement, row by row: the row of the alarm."""
    out: list[int | None] = []
    for seed in range(streams):
        rng, audit = random.Random(seed), Audit(eps, delta)
        out.append(next((t for t, rate in enumerate(rates, 1) if audit.update(rng.random() < rate)), None))
    return out


def test_false_alarms_are_as_rare_as_promised() -> None:
    """At a rate of exactly eps over 3000 rows, alarms come in at most delta of 400 streams, with binomial slack."""
    false = sum(a is not None for a in alarms([EPS] * 3000, 400))

    assert stats.binom.sf(false - 1, 400, DELTA) > 0.01


def test_a_mean_in_place_of_a_bet_would_cry_wolf() -> None:
    """The same streams judged by an exact test after every row: far more false alarms, so the test above can fail."""
    rng = np.random.default_rng(0)
    counts = np.cumsum(rng.random((200, 3000)) < EPS, axis=1)
    p = stats.binom.sf(counts - 1, np.arange(1, 3001), EPS)
    false = int((p <= DELTA).any(axis=1).sum())

    assert stats.binom.sf(false - 1, 200, DELTA) < 1e-6


def test_wealth_is_fair_by_enumeration() -> None:
    """Over all 2^12 streams at rate eps the expected wealth is exactly 1; below eps it is less, even if rates follow the past."""
    for rate, expected in ((0.1, 1.0), (0.05, None)):
        total = 0.0
        for bits in range(2**12):
            audit, chance = Audit(0.1, DELTA), 1.0
            for i in range(12):
                x = bool(bits >> i & 1)
                here = rate / (1 + audit.disagreements) if expected is None else rate
                chance *= here if x else 1 - here
                audit.update(x)
            total += chance * audit.wealth
        assert total == pytest.approx(expected, rel=1e-9) if expected else total < 1


@pytest.mark.parametrize(
    ("before", "rate", "within"), [(0, 0.06, 400), (0, 0.10, 150), (1000, 0.06, 800), (1000, 0.2, 150)]
)
def test_it_notices(before: int, rate: float, within: int) -> None:
    """Power: at three times eps and more the alarm comes within the rows stated, in nine streams of ten."""
    found = alarms([EPS / 2] * before + [rate] * within, 100)

    assert sum(a is not None and a > before for a in found) >= 90


def test_an_alarm_stays() -> None:
    """Once raised it is not taken back, whatever follows; wealth stays finite."""
    audit = Audit(EPS, DELTA)
    assert audit.wealth == pytest.approx(1)
    for _ in range(5000):
        audit.update(True)
    assert all(audit.update(False) for _ in range(3000))
    assert np.isfinite(audit.wealth)
    assert "doesn't hold" in str(audit)


def test_high_risks_keep_wealth_positive() -> None:
    """Alternatives are cut off below 1, so no single agreement ruins a bet."""
    audit = Audit(0.6, DELTA)
    for _ in range(50):
        audit.update(False)
    assert audit.wealth > 0
    assert not audit.alarmed
    assert "no sign" in str(audit)


def test_audited_rows_are_chosen_by_seed_and_number() -> None:
    """A share p of rows, the same on every run, others for another seed."""
    chosen = [row for row in range(20_000) if audited(row, 0.02, seed=1)]

    assert stats.binomtest(len(chosen), 20_000, 0.02).pvalue > 0.001
    assert chosen == [row for row in range(20_000) if audited(row, 0.02, seed=1)]
    assert set(chosen) != {row for row in range(20_000) if audited(row, 0.02, seed=2)}
    assert all(audited(row, 1.0, 0) and not audited(row, 0.0, 0) for row in range(100))


def test_a_sample_is_uniform() -> None:
    """Every row is drawn about equally often over seeds, none twice."""
    counts = np.zeros(20)
    for seed in range(2000):
        rows = draw_sample(20, 5, seed)
        assert len(set(rows)) == 5
        assert rows == sorted(rows)
        counts[rows] += 1
    assert stats.chisquare(counts).pvalue > 0.001


def test_a_job_certifies_itself() -> None:
    """Over 500 samples of one job, more than eps of the rest differ at most delta of the time; a plain share does far worse."""
    rng = np.random.default_rng(0)
    total, drawn, levels = 3000, 600, 40
    hard = rng.random((total, 1)) + 0.01 * rng.standard_normal((total, levels))  # not nested: each rule errs on its own
    path = hard < np.linspace(-0.03, 0.06, levels)  # (N, G) disagreements, strict to loose
    broken = naive = used = 0
    for _ in range(500):
        sample = np.zeros(total, dtype=bool)
        sample[rng.choice(total, drawn, replace=False)] = True
        found = certify_sample(path[sample].T, total, drawn, EPS, DELTA)
        if found.rule is not None:
            rest = path[~sample, found.rule]
            used += 1
            broken += rest.mean() > EPS
            assert found.disagreements == path[sample, found.rule].sum()
            assert found.bound <= EPS * (total - drawn)
        passed = np.flatnonzero(path[sample].mean(0) <= EPS)
        naive += bool(len(passed)) and path[~sample, passed[-1]].mean() > EPS

    assert used > 450
    assert stats.binom.sf(broken - 1, 500, DELTA) > 0.01
    assert stats.binom.sf(naive - 1, 500, DELTA) < 1e-9


def test_a_job_too_small_is_run_in_full() -> None:
    """Where the sample can't show it, the rule is None and the words say so; the walk stops at the first failure."""
    small = certify_sample([[False] * 20], 100, 20, EPS, DELTA)
    assert small.rule is None
    assert "full depth" in small.words

    good, bad = [False] * 500, [True] * 20 + [False] * 480
    assert certify_sample([good, bad, good], 2000, 500, EPS, DELTA).rule == 0
    assert "95 % confidence at most 30 of the other 1,500" in certify_sample([good], 2000, 500, EPS, DELTA).words


def test_nonsense_is_refused() -> None:
    """Shares, counts and shapes that can't be are a UsageError."""
    for call in (
        lambda: Audit(0.0, DELTA),
        lambda: Audit(EPS, 1.0),
        lambda: audited(1, 1.5, 0),
        lambda: draw_sample(5, 6, 0),
        lambda: certify_sample([], 5, 6, EPS, DELTA),
        lambda: certify_sample([[True]], 100, 20, EPS, DELTA),
    ):
        with pytest.raises(UsageError):
            call()
