"""The draw of a whole job is uniform, its certificate holds over several kinds of machines, and order decides its alarm."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import binom, chisquare

from dynx.jobs.inputs import count, find
from dynx.jobs.promise import OrderedAudit, audit_statement, certify, draw, pick

if TYPE_CHECKING:
    from pathlib import Path

REPETITIONS = 200


def test_the_draw_is_uniform_and_cheap() -> None:
    """Each number is drawn equally often, none twice; ten billion rows are drawn from at once."""
    total, drawn = 50, 10
    counts = np.zeros(total)
    for seed in range(2000):
        chosen = draw(total, drawn, seed)
        assert len(set(chosen)) == drawn
        counts[chosen] += 1
    assert chisquare(counts).pvalue > 1e-3
    pairs = sum({3, 4} <= set(draw(total, drawn, seed)) for seed in range(4000))  # no number repels another
    expected = drawn * (drawn - 1) / (total * (total - 1))
    assert binom.cdf(pairs, 4000, expected) > 1e-3
    assert binom.sf(pairs, 4000, expected) > 1e-3
    assert len(draw(10**10, 5000)) == 5000
    assert draw(7, 7) == list(range(7))


def test_drawn_rows_are_picked_from_their_files(tmp_path: Path) -> None:
    """Numbers count through all files."""
    for name, first in (("a", 0), ("b", 3000)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{first + i}\n" for i in range(3000)))
    sources = count(find([str(tmp_path)]), None)
    numbers = draw(6000, 100)
    assert pick(sources, numbers) == [str(n) for n in numbers]


@pytest.mark.parametrize("overlap", [0.0, 0.5, 1.0])
def test_a_certificate_over_two_kinds_of_machines(overlap: float) -> None:
    """Just above the limit it is given wrongly in at most δ of repetitions, whichever machine answers which row."""
    total, drawn, eps, delta = 20_000, 800, 0.02, 0.05
    limit = int(eps * (total - drawn))
    bad = limit + 1  # rows that differ on one machine or the other
    generator = np.random.default_rng(0)
    wrong = 0
    for seed in range(REPETITIONS):
        rows = generator.permutation(total)[:bad]
        shared = int(overlap * bad)
        own = (bad - shared) // 2
        kinds = [np.zeros(total, dtype=bool) for _ in range(2)]
        for kind, part in zip(kinds, (rows[shared : shared + own], rows[shared + own :]), strict=True):
            kind[rows[:shared]] = True
            kind[part] = True
        sample = draw(total, drawn, seed)
        strict = np.zeros((1, drawn), dtype=bool)  # a rule by which nothing differs, and the rule in question
        differs = [np.concatenate([strict, kind[sample][None]]) for kind in kinds]
        found = certify(differs, [[0.9], [0.5]], [True, True], total, eps, delta)
        wrong += found["rule"] == 1
    assert binom.sf(wrong - 1, REPETITIONS, delta) > 1e-3


def test_a_certificate_is_given_where_few_rows_differ() -> None:
    """The same test passes a rule that keeps well within the limit, and takes the union of both machines."""
    one, two = np.zeros((2, 800), dtype=bool), np.zeros((2, 800), dtype=bool)
    one[1, 0], two[1, 1] = True, True
    found = certify([one, two], [[0.9], [0.5]], [True, True], 20_000, 0.02, 0.05)
    assert (found["rule"], found["differ"], found["thresholds"]) == (1, 2, [0.5])
    assert certify([one, two], [[0.9], [0.5]], [True, False], 20_000, 0.02, 0.05)["thresholds"] is None


def test_shards_in_any_order_give_one_alarm() -> None:
    """It comes with the same shard, and is raised once."""
    shards = [(i * 10, 10, [(i * 10 + k, i >= 8) for k in range(10)]) for i in range(20)]
    alarms = set()
    for seed in range(30):
        order = random.Random(seed).sample(shards, len(shards))
        audit = OrderedAudit(0.02, 0.05)
        assert sum(audit.add(*shard) for shard in order) == 1
        alarms.add(audit.alarm)
    assert alarms == {80}


def test_the_statement_of_an_audit() -> None:
    """It is about all answers, and loose where few are audited."""
    few, many = (audit_statement(10_000, [False] * n, 0.05)["most_in_job"] for n in (50, 1000))
    assert many < few < 10_000
    assert audit_statement(10_000, [], 0.05)["most_in_job"] is None
