"""Interleaving, pairing, failures, budget and interruption, on a clock that only moves when told."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from dynx.bench.deadline import OutOfTime
from dynx.bench.measurements import Failure, Measurements, Outcome
from dynx.bench.runner import Arm, Progress, measure
from dynx.errors import DeviceError, DynxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class FakeClock:
    """A clock that stands still between the durations that arms add; `log` says who ran what."""

    def __init__(self) -> None:
        self.now = 100.0
        self.log: list[tuple[str, str]] = []

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self.now

    def arm(
        self,
        name: str,
        seconds: float | Sequence[float | BaseException],
        *,
        output: Callable[[str], object] = str.upper,
        reference: bool = False,
    ) -> Arm[str]:
        """Return an arm whose runs take the scripted seconds in turn (one number: always), or raise."""
        script = iter(()) if isinstance(seconds, float) else iter(seconds)

        def run(case: str) -> Outcome:
            self.log.append((name, case))
            step = seconds if isinstance(seconds, float) else next(script)
            if isinstance(step, BaseException):
                raise step
            self.now += step
            return Outcome(units=len(case), seconds=None, output=output(case), facts={"length": len(case)})

        return Arm(name, run, "plain" if reference else "dynamic", reference=reference)


def measured(
    clock: FakeClock, arms: Sequence[Arm[str]], cases: Sequence[str] = ("ab", "abcd"), **options: object
) -> Measurements:
    settings: dict[str, object] = {"rounds": 2, "warmup": 0, "rng": random.Random(1), **options}
    return measure(arms, cases, clock=clock, **settings)  # type: ignore[arg-type]


def test_every_round_runs_every_case_on_every_arm_side_by_side() -> None:
    """All arms run one case before any runs the next, in every round."""
    clock = FakeClock()
    arms = [clock.arm("plain", 2.0, reference=True), clock.arm("fast", 1.0), clock.arm("slow", 4.0)]
    measured(clock, arms, rounds=3)
    blocks = [clock.log[start : start + 3] for start in range(0, len(clock.log), 3)]
    assert [block[0][1] for block in blocks] == ["ab", "abcd"] * 3
    for block in blocks:
        assert {name for name, _ in block} == {"plain", "fast", "slow"}
        assert len({case for _, case in block}) == 1


def test_each_arm_takes_each_place_equally_often() -> None:
    """The order is drawn anew for each round and case, so no arm keeps the warm or the cold place."""
    clock = FakeClock()
    arms = [clock.arm("plain", 1.0, reference=True), clock.arm("other", 1.0)]
    result = measured(clock, arms, rounds=200)
    places = Counter(sample.position for sample in result.samples["other"])
    assert places[0] + places[1] == 400
    assert 160 <= places[0] <= 240  # 4 standard deviations
    assert all(a.position + b.position == 1 for a, b in zip(*result.samples.values(), strict=True))


def test_a_seed_fixes_the_order() -> None:
    """The same generator state gives the same order of runs."""
    logs = []
    for _ in range(2):
        clock = FakeClock()
        measured(clock, [clock.arm("plain", 1.0, reference=True), clock.arm("other", 1.0)], rounds=5)
        logs.append(clock.log)
    assert logs[0] == logs[1]


def test_samples_carry_the_scripted_seconds_by_round_and_case() -> None:
    """Each sample is the clock's advance during its own run, filed under its round and case."""
    clock = FakeClock()
    arms = [clock.arm("plain", [4.0, 8.0, 4.5, 8.5], reference=True), clock.arm("fast", [1.0, 2.0, 1.5, 2.5])]
    result = measured(clock, arms)
    assert result.series("plain").seconds == ((4.0, 8.0), (4.5, 8.5))
    assert result.series("fast").seconds == ((1.0, 2.0), (1.5, 2.5))
    assert result.series("fast").units == ((2, 4), (2, 4))
    assert [(sample.round, sample.case) for sample in result.samples["fast"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert (result.rounds, result.cases, result.stopped, result.elapsed) == (2, 2, "rounds", 32.0)
    assert result.groups == {"plain": "plain", "fast": "dynamic"}


def test_an_arms_own_seconds_win_over_the_clock() -> None:
    """An arm that times its own work part isn't charged for the rest of the call."""
    clock = FakeClock()

    def run(case: str) -> Outcome:
        clock.now += 50.0
        return Outcome(units=1, seconds=0.25, output=case)

    result = measured(clock, [clock.arm("plain", 1.0, reference=True), Arm("own", run, "external")])
    assert result.series("own").seconds == ((0.25, 0.25), (0.25, 0.25))


def test_warm_up_runs_are_not_samples() -> None:
    """Warm-up takes the first cases in turn, on every arm, and leaves no trace in the figures."""
    clock = FakeClock()
    arms = [clock.arm("plain", [9.0, 9.0, 9.0, 1.0, 1.0], reference=True), clock.arm("fast", 0.5)]
    result = measured(clock, arms, rounds=1, warmup=3)
    assert [case for name, case in clock.log if name == "plain"] == ["ab", "abcd", "ab", "ab", "abcd"]
    assert result.series("plain").seconds == ((1.0, 1.0),)


def test_identity_compares_outputs_of_the_same_round_and_case() -> None:
    """One differing output of four gives a rate of 0.75 and is found again by round and case."""
    clock = FakeClock()
    outputs = iter(["AB", "ABCD", "AB", "other"])
    arms = [clock.arm("plain", 1.0, reference=True), clock.arm("fast", 1.0, output=lambda _: next(outputs))]
    result = measured(clock, arms)
    assert result.identical_rate("fast") == 0.75
    assert [(sample.round, sample.case) for sample in result.mismatches("fast")] == [(1, 1)]
    assert result.identical_rate("plain") == 1.0


def test_a_failing_arm_is_dropped_and_the_others_go_on() -> None:
    """A crash costs its own arm all figures, says where and why, and costs the others nothing."""
    clock = FakeClock()
    arms = [clock.arm("plain", 1.0, reference=True), clock.arm("bad", [1.0, 1.0, ValueError("no such head")])]
    result = measured(clock, arms, rounds=3)
    assert result.failures == {"bad": Failure("ValueError: no such head", round=1, case=0)}
    assert set(result.samples) == {"plain"}
    assert result.identical_rate("bad") is None
    assert result.rounds == 3
    assert [name for name, _ in clock.log].count("bad") == 3


def test_an_arm_that_fails_in_warm_up_is_never_timed() -> None:
    """Failing before the first round is told apart by a round of None."""
    clock = FakeClock()
    arms = [clock.arm("plain", 1.0, reference=True), clock.arm("bad", [DynxError("needs a drafter")])]
    result = measured(clock, arms, warmup=1)
    assert result.failures == {"bad": Failure("needs a drafter", round=None, case=0)}


@pytest.mark.parametrize(("units", "seconds"), [(1, 0.0), (1, -1.0), (1, float("nan")), (1, float("inf")), (-1, 1.0)])
def test_impossible_measurements_fail_the_arm(units: int, seconds: float) -> None:
    """Zero, negative or non-finite seconds and negative units never become a speed."""
    clock = FakeClock()
    broken = Arm("broken", lambda case: Outcome(units, seconds, case), "external")
    result = measured(clock, [clock.arm("plain", 1.0, reference=True), broken])
    assert result.failures["broken"].message == f"measured {units} units in {seconds} seconds"


def test_a_failing_reference_ends_the_measurement() -> None:
    """Without a denominator nothing can be compared: a foreign error is named, dynx's own passes with its exit code."""
    clock = FakeClock()
    with pytest.raises(DynxError, match="the reference arm 'plain' failed: ValueError: boom"):
        measured(clock, [clock.arm("plain", [ValueError("boom")], reference=True)])
    with pytest.raises(DeviceError, match="out of memory"):
        measured(clock, [clock.arm("plain", [DeviceError("out of memory")], reference=True)])


def test_interruption_keeps_complete_rounds_only() -> None:
    """Ctrl-C in the second round leaves the first whole and the second out, for every arm."""
    clock = FakeClock()
    arms = [clock.arm("plain", 1.0, reference=True), clock.arm("fast", [0.5, 0.5, 0.5, KeyboardInterrupt()])]
    result = measured(clock, arms, rounds=9)
    assert result.interrupted
    assert (result.rounds, result.stopped) == (1, "interrupt")
    assert result.series("fast").seconds == ((0.5, 0.5),)
    assert result.series("plain").seconds == ((1.0, 1.0),)


def test_interruption_in_warm_up_leaves_no_rounds() -> None:
    """Ctrl-C before the first complete round still returns, with nothing measured."""
    clock = FakeClock()
    result = measured(clock, [clock.arm("plain", [KeyboardInterrupt()], reference=True)], warmup=1)
    assert result.interrupted
    assert result.rounds == 0
    assert result.identical_rate("plain") is None
    assert result.series("plain").seconds == ()


@pytest.mark.parametrize(("budget", "rounds"), [(0.5, 1), (7.9, 1), (8.0, 2), (12.0, 3), (1000.0, 5)])
def test_no_round_starts_that_would_overrun_the_budget(budget: float, rounds: int) -> None:
    """Rounds of 4 s: another starts only if it would end within the budget, and the first always runs."""
    clock = FakeClock()
    arms = [clock.arm("plain", 1.0, reference=True), clock.arm("fast", 1.0)]
    result = measured(clock, arms, rounds=5, budget_s=budget)
    assert result.rounds == rounds
    assert result.stopped == ("rounds" if rounds == 5 else "budget")


def test_the_budget_counts_warm_up() -> None:
    """Seconds spent warming up are spent."""
    clock = FakeClock()
    result = measured(clock, [clock.arm("plain", 1.0, reference=True)], rounds=9, warmup=4, budget_s=10.0)
    assert result.rounds == 3


def test_a_typical_round_predicts_the_next() -> None:
    """One stalled round neither ends the measurement nor lets a typical one overrun: the prediction is the median."""
    clock = FakeClock()
    plain = clock.arm("plain", [1.0, 1.0, 1.0, 1.0, 9.0, 9.0, 1.0, 1.0], reference=True)
    assert measured(clock, [plain], rounds=4, budget_s=24.0).rounds == 4
    clock = FakeClock()
    plain = clock.arm("plain", [1.0, 1.0, 1.0, 1.0, 9.0, 9.0, 1.0, 1.0], reference=True)
    assert measured(clock, [plain], rounds=4, budget_s=23.0).rounds == 3


def test_arms_that_decide_nothing_stop_early_where_time_is_short() -> None:
    """The first look is brought forward when it would come too late, once; the looks that were planned follow."""
    clock, seen = FakeClock(), []

    def judge(so_far: Measurements) -> list[str]:
        seen.append((so_far.rounds, so_far.analyzed, so_far.ended))
        return ["dynamic"]

    arms = [clock.arm("plain", 1.0, reference=True), clock.arm("dynamic", 1.0), clock.arm("idle", 3.0)]
    result = measured(clock, arms, rounds=8, analyses=(4, 8), judge=judge, early_analysis_s=15.0)
    assert seen == [(2, (2,), False), (4, (2, 4), False), (8, (2, 4, 8), False)]
    assert {name: result.rounds_of(name) for name in result.samples} == {"plain": 8, "dynamic": 8, "idle": 2}
    assert (result.analyses, result.ended) == (3, True)


@pytest.mark.parametrize(
    ("deadline", "rounds", "cases"),
    [(0.0, 0, 2), (2.0, 1, 1), (3.0, 1, 1), (4.0, 1, 2), (7.0, 1, 2), (8.0, 2, 2), (99.0, 5, 2)],
)
def test_a_deadline_ends_a_round_between_two_runs(deadline: float, rounds: int, cases: int) -> None:
    """Runs of 1 s, four a round: what was complete counts, and of an incomplete first round the cases that all arms ran."""
    clock = FakeClock()
    arms = [clock.arm("plain", 1.0, reference=True), clock.arm("fast", 1.0)]
    result = measured(clock, arms, rounds=5, deadline_s=deadline)
    assert (result.rounds, result.cases) == (rounds, cases)
    assert result.stopped == ("rounds" if rounds == 5 else "budget")
    assert result.elapsed <= min(deadline + 1.0, 20.0)
    assert result.cut_short == (deadline < 4.0)
    assert [len(result.samples[name]) for name in ("plain", "fast")] == [rounds * cases] * 2


def test_a_deadline_counts_the_warm_up() -> None:
    """A warm-up that takes all the time there is leaves nothing measured, and nothing runs after it."""
    clock = FakeClock()
    arms = [clock.arm("plain", 5.0, reference=True), clock.arm("other", 5.0)]
    result = measured(clock, arms, warmup=9, deadline_s=12.0)
    assert (result.rounds, result.stopped, result.cut_short) == (0, "budget", True)
    assert len(clock.log) == 3
    assert result.identical_rate("plain") is None


def test_a_deadline_ends_a_run_in_progress() -> None:
    """What the guard raises is no failure of the arm that happened to run, whose earlier rounds count."""
    clock = FakeClock()
    heard: list[float] = []

    @contextmanager
    def guard(seconds: float) -> Iterator[None]:
        heard.append(seconds)
        yield

    plain = clock.arm("plain", [1.0, 1.0, 1.0, OutOfTime()], reference=True)
    result = measured(clock, [plain], rounds=5, deadline_s=100.0, guard=guard)
    assert heard == [100.0]
    assert (result.rounds, result.stopped, result.failures, result.cut_short) == (1, "budget", {}, False)
    assert len(result.samples["plain"]) == 2


def test_a_deadline_within_the_first_case_keeps_the_arms_that_ran_it() -> None:
    """An arm that wasn't reached has no samples and hasn't failed."""
    clock = FakeClock()
    arms = [clock.arm(name, 1.0, reference=name == "plain") for name in ("plain", "a", "b", "c")]
    result = measured(clock, arms, rounds=5, deadline_s=3.0)
    ran = {name for name, _ in clock.log}
    assert len(ran) == 3
    assert result.failures == {}
    if "plain" in ran:
        assert (result.rounds, result.cases) == (1, 1)
        assert {name for name, samples in result.samples.items() if samples} == ran
    else:
        assert result.rounds == 0


def test_progress_counts_every_run_up_to_the_total() -> None:
    """The callback sees each finished run, warm-up included, and ends at the total."""
    clock, seen = FakeClock(), []
    arms = [clock.arm("plain", 1.0, reference=True), clock.arm("fast", 0.5)]
    measured(clock, arms, rounds=2, warmup=1, progress=seen.append)
    assert [event.done for event in seen] == list(range(1, 11))
    assert seen[-1] == Progress(arm=clock.log[-1][0], done=10, total=10, elapsed=7.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "at least one round"),
        ({"warmup": -1}, "can't be negative"),
        ({"budget_s": 0.0}, "above zero"),
        ({"budget_s": float("nan")}, "above zero"),
        ({"cases": ()}, "nothing to measure"),
    ],
)
def test_counts_that_make_no_sense_are_usage_errors(change: dict[str, object], message: str) -> None:
    """Nonsense is told before anything runs."""
    clock = FakeClock()
    with pytest.raises(UsageError, match=message):
        measured(clock, [clock.arm("plain", 1.0, reference=True)], **change)  # type: ignore[arg-type]
    assert clock.log == []


def test_arms_need_distinct_names_and_one_reference() -> None:
    """Two arms of one name, no reference and two references are refused."""
    clock = FakeClock()
    plain, fast = clock.arm("plain", 1.0, reference=True), clock.arm("fast", 1.0)
    with pytest.raises(UsageError, match="two arms are called 'fast'"):
        measured(clock, [plain, fast, fast])
    for arms in ([fast], [plain, clock.arm("also", 1.0, reference=True)]):
        with pytest.raises(UsageError, match="exactly one arm must be the reference"):
            measured(clock, arms)
