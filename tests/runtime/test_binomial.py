"""Exact bounds on a rate of failures, against an independent implementation and by enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dynx.errors import UsageError
from dynx.runtime import binomial


@pytest.mark.parametrize("n", [1, 7, 50, 149, 500, 5000, 200_000])
@pytest.mark.parametrize("p", [1e-6, 0.005, 0.02, 0.3, 0.5, 0.98])
def test_the_binomial_tail_is_exact(n: int, p: float) -> None:
    """Around the mean and out in the tails the sum equals SciPy's to 1e-9 of itself."""
    for k in sorted({0, 1, n // 3, n // 2, n - 1, n, int(n * p), *(int(n * p * f) for f in (0.5, 0.8, 0.95))}):
        expected = stats.binom.cdf(k, n, p)
        assert binomial.binomial_tail(n, k, p) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_binomial_tail_sums_the_terms(data: st.DataObject) -> None:
    """For small n it is the sum of whole-number terms, whatever p is."""
    n = data.draw(st.integers(0, 60))
    k = data.draw(st.integers(-1, n))
    p = data.draw(st.floats(0.001, 0.999))
    plain = math.fsum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k + 1))

    assert binomial.binomial_tail(n, k, p) == pytest.approx(plain, rel=1e-11)


def test_certain_and_impossible_rates() -> None:
    """Rates of 0 and 1 and counts of none and all have their plain answers."""
    assert binomial.binomial_tail(5, 0, 0.0) == 1
    assert binomial.binomial_tail(5, 4, 1.0) == 0
    assert binomial.binomial_tail(5, 5, 1.0) == 1
    assert binomial.binomial_tail(5, -1, 0.5) == 0
    assert binomial.binomial_tail(0, 0, 0.5) == 1


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0.001, 0.5))
def test_clopper_and_pearson(n: int, share: float, delta: float) -> None:
    """Both bounds are the beta quantiles that define the interval."""
    k = round(n * share)
    upper = stats.beta.ppf(1 - delta, k + 1, n - k) if k < n else 1.0
    lower = stats.beta.ppf(delta, k, n - k + 1) if k else 0.0

    assert binomial.upper_bound(n, k, delta) == pytest.approx(upper, abs=1e-10)
    assert binomial.lower_bound(n, k, delta) == pytest.approx(lower, abs=1e-10)
    assert binomial.two_sided(n, k, delta)[1] == pytest.approx(binomial.upper_bound(n, k, delta / 2))
    assert binomial.two_sided(n, k, delta)[0] <= k / n <= binomial.two_sided(n, k, delta)[1]


TABLE = [
    # eps, fewest inputs with 0, 1, 5 failures, failures allowed of 500, 1000, 2000, 5000
    (0.005, (598, 947, 2100), (None, 1, 4, 16)),
    (0.01, (299, 473, 1049), (1, 4, 12, 38)),
    (0.02, (149, 236, 523), (4, 12, 29, 83)),
    (0.05, (59, 93, 208), (16, 38, 83, 224)),
]


@pytest.mark.parametrize(("eps", "fewest", "allowed"), TABLE)
def test_the_table_of_sample_sizes(eps: float, fewest: tuple[int, ...], allowed: tuple[int | None, ...]) -> None:
    """At 95 % confidence the fewest inputs and the most failures are those of the published plan."""
    assert tuple(binomial.smallest_sample(eps, 0.05, k) for k in (0, 1, 5)) == fewest
    assert tuple(binomial.most_failures(n, eps, 0.05) for n in (500, 1000, 2000, 5000)) == allowed
    assert binomial.smallest_sample(eps, 0.05) == math.ceil(math.log(0.05) / math.log1p(-eps))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2000), st.floats(0.003, 0.5), st.floats(0.001, 0.5))
def test_allowed_failures_sit_on_the_edge(n: int, eps: float, delta: float) -> None:
    """The most allowed failures pass the test and one more doesn't; so do sample sizes. A test of n+1 would pass too early."""
    k = binomial.most_failures(n, eps, delta)
    if k is None:
        assert binomial.binomial_tail(n, 0, eps) > delta
        return
    assert binomial.binomial_tail(n, k, eps) <= delta < binomial.binomial_tail(n, k + 1, eps)
    fewest = binomial.smallest_sample(eps, delta, k)
    assert fewest <= n
    assert binomial.binomial_tail(fewest, k, eps) <= delta < binomial.binomial_tail(fewest - 1, k, eps)


def test_the_guarantee_by_enumeration() -> None:
    """Whatever the true rate above eps, allowed counts occur with probability at most delta; the sum is over every count."""
    for n, eps, delta in itertools.product((60, 149, 700), (0.01, 0.02, 0.1), (0.01, 0.05, 0.2)):
        allowed = binomial.most_failures(n, eps, delta)
        for rate in np.linspace(eps, 3 * eps, 7):
            assert stats.binom.cdf(-1 if allowed is None else allowed, n, rate) <= delta * (1 + 1e-12)


def test_fixed_sequence_keeps_the_last_that_passed() -> None:
    """It stops at the first failure, ignores what would pass after it, and never returns the failed one."""
    assert binomial.fixed_sequence([0.01, 0.04, 0.06, 0.01], 0.05) == 1
    assert binomial.fixed_sequence([0.06, 0.0], 0.05) is None
    assert binomial.fixed_sequence([0.05], 0.05) == 0
    assert binomial.fixed_sequence([], 0.05) is None
    assert binomial.fixed_sequence([0.01, math.nan, 0.01], 0.05) == 0

    def lazily() -> object:
        yield 0.01
        yield 0.9
        raise AssertionError("read past the failure")

    assert binomial.fixed_sequence(lazily(), 0.05) == 0


def test_dividing_delta() -> None:
    """Candidates share delta evenly."""
    assert binomial.divide(0.05, 30) == pytest.approx(0.05 / 30)
    with pytest.raises(UsageError):
        binomial.divide(0.05, 0)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_hypergeometric_tail_is_exact(data: st.DataObject) -> None:
    """It equals the sum of whole-number counts of subsets."""
    total = data.draw(st.integers(0, 120))
    bad, drawn = data.draw(st.integers(0, total)), data.draw(st.integers(0, total))
    k = data.draw(st.integers(-1, drawn))
    ways = sum(math.comb(bad, j) * math.comb(total - bad, drawn - j) for j in range(min(k, bad) + 1))

    assert binomial.hypergeometric_tail(total, bad, drawn, k) == pytest.approx(
        ways / math.comb(total, drawn), rel=1e-10
    )


def test_the_hypergeometric_tail_of_a_large_job() -> None:
    """A million rows lose no accuracy."""
    for bad, k in ((20_000, 350), (20_000, 400), (300, 5), (5000, 70)):
        expected = stats.hypergeom.cdf(k, 1_000_000, bad, 20_000)
        assert binomial.hypergeometric_tail(1_000_000, bad, 20_000, k) == pytest.approx(expected, rel=1e-7)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_bound_on_the_rest_is_the_largest_compatible(data: st.DataObject) -> None:
    """A scan over every possible number of failures finds the same bound."""
    total = data.draw(st.integers(1, 150))
    drawn = data.draw(st.integers(0, total))
    k = data.draw(st.integers(0, drawn))
    delta = data.draw(st.sampled_from([0.01, 0.05, 0.3]))
    possible = range(k, total - (drawn - k) + 1)
    tails = {bad: stats.hypergeom.cdf(k, total, bad, drawn) for bad in possible}
    surely = max(bad for bad, tail in tails.items() if tail > delta * (1 + 1e-9))
    perhaps = max(bad for bad, tail in tails.items() if tail > delta * (1 - 1e-9))  # a tail of just δ: rounding decides

    assert surely <= binomial.most_failures_in_total(total, drawn, k, delta) <= perhaps
    assert (
        binomial.most_failures_in_rest(total, drawn, k, delta)
        == binomial.most_failures_in_total(total, drawn, k, delta) - k
    )


def test_the_rest_of_a_job_that_was_seen_whole() -> None:
    """With everything drawn nothing is left to fail; with nothing drawn everything may."""
    assert binomial.most_failures_in_rest(100, 100, 7, 0.05) == 0
    assert binomial.most_failures_in_rest(100, 0, 0, 0.05) == 100


def test_words() -> None:
    """The sentence names the floor, the sample and what it allows."""
    assert binomial.supports(300, 0.02, 0.05) == "149 inputs are the fewest for 2 % at 95 %; 300 allow 1 disagreement."
    assert binomial.supports(149, 0.02, 0.05).endswith("149 allow no disagreements.")
    assert binomial.supports(100, 0.02, 0.05).endswith("100 are too few.")
    assert binomial.supports(2000, 0.005, 0.1).startswith("460 inputs are the fewest for 0.5 % at 90 %")


@pytest.mark.parametrize(
    "call",
    [
        lambda: binomial.binomial_tail(5, 6, 0.1),
        lambda: binomial.binomial_tail(-1, 0, 0.1),
        lambda: binomial.binomial_tail(5, 1, 1.1),
        lambda: binomial.binomial_tail(5, 1, math.nan),
        lambda: binomial.upper_bound(5, -1, 0.05),
        lambda: binomial.upper_bound(5, 1, 0.0),
        lambda: binomial.lower_bound(5, 0, 1.5),
        lambda: binomial.most_failures(5, 0.0, 0.05),
        lambda: binomial.most_failures(5, 0.02, 1.0),
        lambda: binomial.smallest_sample(0.02, 0.05, -1),
        lambda: binomial.fixed_sequence([0.1], 0.0),
        lambda: binomial.hypergeometric_tail(10, 11, 5, 1),
        lambda: binomial.most_failures_in_total(10, 11, 1, 0.05),
    ],
)
def test_nonsense_is_refused(call: object) -> None:
    """Counts and probabilities that can't be are a UsageError."""
    with pytest.raises(UsageError):
        call()


def test_counts_are_whole_numbers() -> None:
    """A mean times n is no count: floats are refused, NumPy's integers are fine."""
    with pytest.raises(TypeError):
        binomial.binomial_tail(100, 2.0, 0.02)
    with pytest.raises(TypeError):
        binomial.most_failures(1e3, 0.02, 0.05)
    assert binomial.binomial_tail(np.int64(100), np.int32(2), 0.02) == binomial.binomial_tail(100, 2, 0.02)
