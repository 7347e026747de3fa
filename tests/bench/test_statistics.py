"""The arithmetic of comparisons: exact on scripted times, honest on simulated noise."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from dynx.bench import huber
from dynx.bench.gates import min_speedup
from dynx.bench.result import Verdict
from dynx.bench.statistics import RatioEstimate, Series, detectable_effect, median, outliers, ratio_of_speeds, spread

seconds_values = st.floats(min_value=1e-3, max_value=1e3)


@st.composite
def paired_seconds(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]]]:
    """Draw two matrices of seconds with the same rounds × cases."""
    rounds, cases = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    matrix = st.lists(st.lists(seconds_values, min_size=cases, max_size=cases), min_size=rounds, max_size=rounds)
    return draw(matrix), draw(matrix)


def series(seconds: object, units: int = 1) -> Series:
    """Return a series of `units` units for each run."""
    rows = np.asarray(seconds, dtype=float).tolist()
    return Series(units=[[units] * len(row) for row in rows], seconds=rows)


def estimated(arm: object, reference: object, **options: object) -> RatioEstimate:
    return ratio_of_speeds(series(arm), series(reference), rng=random.Random(7), resamples=400, **options)  # type: ignore[arg-type]


def simulated(
    generator: np.random.Generator,
    rounds: int,
    cases: int,
    *,
    noise: float = 0.05,
    case_effect: float = 0.0,
    stalls: float = 0.0,
) -> tuple[Series, Series]:
    """Return two equally fast arms, interleaved in random order on a machine that slows down by 30 % meanwhile.

    `case_effect`: log standard deviation of how much a case favours one arm; `stalls`: how often a run takes 1.5x.
    """
    drift = np.linspace(1.0, 1.3, rounds * cases * 2).reshape(rounds, cases, 2)
    drift = np.where(generator.random((rounds, cases, 1)) < 0.5, drift, drift[..., ::-1])
    length = generator.lognormal(0, 0.5, (cases, 1))
    times = drift * length * generator.lognormal(0, noise, (rounds, cases, 2))
    times = times * np.where(generator.random(times.shape) < stalls, 1.5, 1.0)
    favour = np.exp(generator.normal(0, case_effect, cases))
    return series(times[..., 0] * favour), series(times[..., 1])


def test_inputs_are_paired_and_count_by_their_time() -> None:
    """An input of 6 s at 2x and one of 2 s at 1x take 5 s in place of 8 s, however the machine's speed changes between rounds."""
    speed = [1.0, 2.0, 0.5]
    reference = [[6.0 * s, 2.0 * s] for s in speed]
    arm = [[3.0 * s, 2.0 * s] for s in speed]
    estimate = estimated(arm, reference)
    assert estimate.ratio == pytest.approx(8 / 5)
    assert (estimate.pairs, estimate.confidence, estimate.scope, estimate.estimator) == (6, 0.95, "cases", "huber")


def test_a_disturbed_run_counts_little() -> None:
    """One of forty runs a hundred times as long moves the ratio by less than a tenth of what it does to the totals' median."""
    generator = np.random.default_rng(6)
    arm, reference = simulated(generator, 10, 4)
    wild = [list(row) for row in arm.seconds]
    wild[3][2] *= 100
    before, after = (ratio_of_speeds(x, reference, rng=random.Random(0)) for x in (arm, Series(arm.units, wild)))
    assert after.ratio == pytest.approx(before.ratio, rel=0.01)
    assert after.on_these().low > 0.93


def test_one_round_has_total_times_and_what_one_input_changes() -> None:
    """The ratio is that of totals, and leaving out one input tells how much a single run can matter."""
    estimate = estimated([[1.0, 1.0, 8.0]], [[2.0, 2.0, 2.0]])
    assert estimate.ratio == pytest.approx(6 / 10)
    assert estimate.estimator == "totals"
    assert estimate.leaving_one_out == (pytest.approx(4 / 9), pytest.approx(2.0))
    assert estimated([[1.0, 1.0]] * 2, [[2.0, 2.0]] * 2).leaving_one_out is None


def test_speed_counts_units_not_runs() -> None:
    """Half the units in half the time is the same speed."""
    reference = Series(units=[[10, 30]] * 3, seconds=[[1.0, 3.0]] * 3)
    arm = Series(units=[[5, 15]] * 3, seconds=[[0.5, 1.5]] * 3)
    assert ratio_of_speeds(arm, reference, rng=random.Random(0)).ratio == pytest.approx(1.0)
    assert arm.speeds() == (10.0, 10.0, 10.0)


@given(paired_seconds(), st.floats(min_value=0.1, max_value=10))
@example(([[1.0, 58.0, 80.0, 1.0]], [[1.0, 1.0, 1.0, 203.0]]), 2.0)  # degrees of freedom once were 2.9999
@settings(max_examples=60, deadline=None)
def test_scaling_an_arm_scales_ratio_and_interval(pair: tuple[list[list[float]], list[list[float]]], c: float) -> None:
    """An arm c times as fast has c times the ratio, at both ends of the interval too."""
    arm, reference = pair
    before = estimated(arm, reference)
    after = estimated([[x / c for x in row] for row in arm], reference)
    assert after.ratio == pytest.approx(c * before.ratio, rel=1e-9)
    if before.bounded and after.bounded:
        assert after.low == pytest.approx(c * before.low, rel=1e-6)
        assert after.high == pytest.approx(c * before.high, rel=1e-6)


@given(paired_seconds(), st.sampled_from(["task", "cases"]), st.sampled_from([0.01, 0.5, 0.95]))
@settings(max_examples=100, deadline=None)
def test_the_interval_contains_the_estimate(
    pair: tuple[list[list[float]], list[list[float]]], scope: str, confidence: float
) -> None:
    """No sample, however odd, puts the estimate outside its own interval, at any confidence."""
    estimate = estimated(*pair, scope=scope, confidence=confidence)
    assert estimate.low <= estimate.ratio <= estimate.high


@given(paired_seconds())
@settings(max_examples=60, deadline=None)
def test_swapping_the_arms_inverts_the_ratio(pair: tuple[list[list[float]], list[list[float]]]) -> None:
    """How much faster and how much slower tell the same story."""
    arm, reference = pair
    assert estimated(arm, reference).ratio * estimated(reference, arm).ratio == pytest.approx(1.0)


def test_the_same_seed_gives_the_same_interval() -> None:
    """Chance enters through the generator passed in, and nowhere else."""
    arm, reference = simulated(np.random.default_rng(3), 5, 8)
    first, again = (ratio_of_speeds(arm, reference, rng=random.Random(11)) for _ in range(2))
    other = ratio_of_speeds(arm, reference, rng=random.Random(12))
    assert first == again
    assert first != other


def test_one_round_of_one_case_bounds_nothing() -> None:
    """A single pair has a ratio and no interval, and nothing could have been detected."""
    estimate = estimated([[1.0]], [[2.0]])
    assert (estimate.ratio, estimate.low, estimate.high) == (pytest.approx(2.0), 0.0, math.inf)
    assert not estimate.bounded
    assert str(estimate) == "2.00x [unknown]"
    assert detectable_effect(estimate) == math.inf


def test_one_round_of_several_cases_is_bounded_by_the_cases() -> None:
    """Five inputs measured once say something about the next one, and nothing about a repeat of themselves."""
    arm, reference = [[1.0, 1.1, 0.9, 1.0, 1.2]], [[2.0] * 5]
    assert estimated(arm, reference).bounded
    assert not estimated(arm, reference, scope="cases").bounded


def test_without_noise_the_interval_is_the_ratio() -> None:
    """Times that never vary leave no doubt."""
    estimate = estimated([[1.0] * 4] * 3, [[1.5] * 4] * 3)
    assert (estimate.low, estimate.high) == (pytest.approx(1.5), pytest.approx(1.5))
    assert estimate.scope == "task"
    assert detectable_effect(estimate) == pytest.approx(0.0, abs=1e-9)


def test_few_rounds_widen_to_students_interval() -> None:
    """With three rounds resampling can't reach 95 %, so the interval is Student's on the log ratios."""
    arm, reference = [[1.0], [1.1], [1.3]], [[2.0], [2.0], [2.0]]
    logs = np.log([2.0, 2.0 / 1.1, 2.0 / 1.3])
    low, high = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    estimate = estimated(arm, reference)
    assert (math.log(estimate.low), math.log(estimate.high)) == (pytest.approx(low), pytest.approx(high))


def test_scope_task_needs_four_cases() -> None:
    """Three inputs say too little about others: the interval then speaks of these inputs and says so."""
    generator = np.random.default_rng(5)
    scopes = [ratio_of_speeds(*simulated(generator, 4, cases), rng=random.Random(0)).scope for cases in (3, 4)]
    assert scopes == ["cases", "task"]


def test_inputs_that_disagree_widen_only_the_interval_of_the_task() -> None:
    """Half of the inputs at 1x and half at 2x, each time: certain for these inputs, uncertain for the next ones."""
    arm, reference = [[1.0, 2.0] * 4] * 6, [[2.0] * 8] * 6
    assert estimated(arm, reference, scope="cases").interval == "[1.33, 1.33]"
    task = estimated(arm, reference, scope="task")
    assert task.low < 1.15
    assert task.high > 1.6
    assert task.on_these().interval == "[1.33, 1.33]"


def test_inputs_like_four_that_disagree_may_lie_beyond_them() -> None:
    """Four inputs hold the next ones' mean seven times in eight, so the interval is Student's and reaches further."""
    logs = np.log([1.0, 1.2, 1.5, 2.0])
    estimate = estimated([(1 / np.exp(logs)).tolist()] * 6, [[1.0] * 4] * 6)
    assert estimate.low < 1.0
    assert estimate.high > 2.0


@pytest.mark.parametrize("case_effect", [0.1, 0.3])
@pytest.mark.parametrize("cases", [4, 5, 6, 12])
def test_intervals_hold_for_inputs_like_the_measured_ones(cases: int, case_effect: float) -> None:
    """Where inputs differ in what favours them, the 95 % interval holds the ratio of all inputs in nearly 95 % of runs."""
    generator, repeats, covered = np.random.default_rng(23), 300, 0
    for _ in range(repeats):
        arm, reference = simulated(generator, 4, cases, noise=0.02, case_effect=case_effect)
        estimate = ratio_of_speeds(arm, reference, resamples=400)
        truth = math.exp(-(case_effect**2) / 2)  # the mean of log-normal times
        covered += estimate.low <= truth <= estimate.high
    assert covered / repeats >= 0.91


@given(
    st.lists(st.lists(st.floats(-1, 1), min_size=2, max_size=2), min_size=3, max_size=30),
    st.floats(-50, 50),
)
@settings(max_examples=60, deadline=None)
def test_the_m_estimate_solves_hubers_equation(rows: list[list[float]], wild: float) -> None:
    """At the estimate the bent distances of a column add up to nothing, with one wild number among them too."""
    columns = [[*column, wild] for column in zip(*rows, strict=True)]
    scale = huber.spread_of(columns)
    for column, found in zip(columns, huber.locate(columns), strict=True):
        bent = [max(-huber.HUBER_K, min(huber.HUBER_K, (v - found.value) / scale)) if scale else 0.0 for v in column]
        assert sum(bent) == pytest.approx(0, abs=1e-5 * len(column))


def test_a_case_without_units_is_left_out_of_resamples() -> None:
    """An input that produced nothing costs time and never breaks the interval."""
    silent = Series(units=[[0, 4, 4, 4]] * 5, seconds=[[1.0] * 4] * 5)
    estimate = ratio_of_speeds(silent, silent, rng=random.Random(0))
    assert (estimate.low, estimate.ratio, estimate.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("arm", "reference"),
    [
        (series([[1.0, 1.0]]), series([[1.0]])),
        (series([[1.0], [1.0]]), series([[1.0]])),
        (Series([], []), Series([], [])),
        (series([[1.0]], units=0), series([[1.0]])),
    ],
    ids=["cases differ", "rounds differ", "empty", "no units"],
)
def test_series_that_do_not_pair_are_refused(arm: Series, reference: Series) -> None:
    """What can't be paired raises ValueError instead of giving a figure."""
    with pytest.raises(ValueError, match="round"):
        ratio_of_speeds(arm, reference, rng=random.Random(0))


@pytest.mark.parametrize(
    ("rounds", "cases", "scope", "case_effect", "stalls"),
    [
        (3, 1, "task", 0.0, 0.0),
        (5, 1, "task", 0.0, 0.08),
        (8, 1, "task", 0.0, 0.0),
        (3, 4, "task", 0.0, 0.0),
        (5, 8, "task", 0.0, 0.08),
        (5, 8, "task", 0.2, 0.0),
        (5, 8, "cases", 0.0, 0.0),
        (10, 4, "cases", 0.0, 0.08),
    ],
)
def test_identical_arms_are_told_apart_no_more_often_than_promised(
    rounds: int, cases: int, scope: str, case_effect: float, stalls: float
) -> None:
    """The 95 % interval of two equal arms holds 1 in at least as many of 300 noisy, drifting runs as chance allows."""
    generator, rng, repeats = np.random.default_rng(20), random.Random(20), 300
    covered = 0
    for _ in range(repeats):
        arm, reference = simulated(generator, rounds, cases, case_effect=case_effect, stalls=stalls)
        estimate = ratio_of_speeds(arm, reference, rng=rng, scope=scope, resamples=500)  # type: ignore[arg-type]
        covered += estimate.low <= 1 <= estimate.high
    assert covered >= stats.binom.ppf(0.001, repeats, 0.95)


def test_the_gate_sees_a_slow_down_and_stays_silent_without_one() -> None:
    """With 5 % noise per run, a bar at 0.95x never fails an equal arm more than 1 in 40, and always one 15 % slower."""
    generator, rng, repeats = np.random.default_rng(40), random.Random(40), 200
    alarms = caught = 0
    for _ in range(repeats):
        arm, reference = simulated(generator, 5, 8)
        slower = Series(arm.units, [[1.15 * x for x in row] for row in arm.seconds])
        for candidate in (arm, slower):
            estimate = ratio_of_speeds(candidate, reference, rng=rng, scope="cases", resamples=500)
            failed = min_speedup(estimate, 0.95).verdict is Verdict.FAIL
            alarms += failed and candidate is arm
            caught += failed and candidate is slower
    assert alarms <= repeats / 40
    assert caught >= 0.95 * repeats


def test_the_detectable_effect_follows_its_formula() -> None:
    """At 95 % and power 0.8 the half width grows by 1 + 0.8416/1.9600, on logarithms."""
    estimate = RatioEstimate(ratio=1.0, low=1 / 1.1, high=1.1, confidence=0.95, pairs=20)
    z = stats.norm.ppf([0.8, 0.975])
    assert detectable_effect(estimate) == pytest.approx(1.1 ** (1 + z[0] / z[1]) - 1)
    assert detectable_effect(estimate, power=0.5) == pytest.approx(0.1)


def test_an_effect_of_the_detectable_size_is_detected_as_often_as_said() -> None:
    """A change as large as reported at power 0.8 leaves 1 out of the interval in at least 80 % of simulated runs."""
    generator, rng, repeats = np.random.default_rng(9), random.Random(9), 200
    typical = median(
        detectable_effect(ratio_of_speeds(*simulated(generator, 10, 1), rng=rng, resamples=500)) for _ in range(50)
    )
    detected = 0
    for _ in range(repeats):
        arm, reference = simulated(generator, 10, 1)
        faster = Series(arm.units, [[x / (1 + typical) for x in row] for row in arm.seconds])
        detected += ratio_of_speeds(faster, reference, rng=rng, resamples=500).low > 1
    assert detected >= stats.binom.ppf(0.001, repeats, 0.8)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([], ()),
        ([1.0], ()),
        ([1.0, 9.0], ()),
        ([10.0, 10.1, 9.9, 10.05, 9.95, 10.0, 13.0], (6,)),
        ([10.0, 10.1, 9.9, 10.05, 9.95, 10.0, 7.0], (6,)),
        ([10.0, 10.2, 9.8, 10.1, 9.9], ()),
        ([5.0] * 8, ()),
        ([5.0] * 8 + [9.0], (8,)),
        ([1.0, 1.0, 1.0, 9.0], ()),
        ([5.0] * 8 + [5.0000001], ()),
        ([10.0, 10.001, 9.999, 10.0, 10.0, 10.09], ()),
    ],
    ids=[
        "empty",
        "one",
        "two",
        "slow",
        "fast",
        "calm",
        "constant",
        "MAD 0",
        "MAD 0, too few to tell",
        "rounding",
        "steady",
    ],
)
def test_outliers_by_modified_z_score(samples: list[float], expected: tuple[int, ...]) -> None:
    """Samples beyond 3.5 robust standard deviations are named, also at MAD 0; those within 1 % never."""
    assert outliers(samples) == expected


@given(st.lists(seconds_values, max_size=12), st.sampled_from([0.25, 2.0, 1024.0]))
def test_outliers_do_not_depend_on_the_unit(samples: list[float], factor: float) -> None:
    """Milliseconds and seconds have the same outliers."""
    assert outliers([factor * x for x in samples]) == outliers(samples)


def test_spread_is_a_robust_standard_deviation() -> None:
    """One wild sample leaves the spread alone, and a normal sample gives its standard deviation."""
    assert spread([1.0, 2.0, 3.0, 4.0, 1000.0]) == pytest.approx(1.4826)
    assert spread(np.random.default_rng(0).normal(5, 2, 20_001).tolist()) == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 7, 8, 30, 99])
@pytest.mark.parametrize("probability", [0.6, 0.95, 0.975, 0.9995])
def test_students_quantile_equals_scipys(dof: int, probability: float) -> None:
    """The finite sums of Abramowitz & Stegun give scipy's quantile, so scipy needn't be installed."""
    ours = huber.student_quantile(probability, dof)
    assert ours == pytest.approx(stats.t.ppf(probability, dof), rel=1e-9)


def test_importing_the_referee_loads_nothing_heavy() -> None:
    """The bench modules load neither torch nor numpy nor rich until they compute or draw."""
    code = (
        "import sys, dynx.bench.runner, dynx.bench.statistics, dynx.bench.gates, dynx.bench.report\n"
        "print(sorted({'torch', 'numpy', 'rich', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
