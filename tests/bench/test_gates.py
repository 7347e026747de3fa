"""The referee's own mistakes: false alarms, what it misses, stored results, and what is wrapped around arms. Nothing is timed."""

from __future__ import annotations

import contextlib
import json
import random
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats

from dynx.bench import baseline, fingerprint, wrappers
from dynx.bench.deadline import OutOfTime, deadline
from dynx.bench.interim import InterimPlan
from dynx.bench.measurements import Measurements, Outcome
from dynx.bench.result import Verdict
from dynx.bench.runner import Arm, measure
from dynx.bench.statistics import RatioEstimate
from dynx.cli.bench.values import parse_slow, parse_tolerance
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from dynx.bench.result import Gate

SPEEDUP, TOLERANCE = 2.0, 0.05
STORED_ROUNDS = 40
LOOKS = InterimPlan.doubling(5)


class Machine:
    """A noisy one: every run takes its time give or take 5 %, one in thirty thrice as long, and speed drifts. Has a clock."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = self.slept = 0.0
        self.drift = 1.0

    def clock(self) -> float:
        """Seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Only the clock moves."""
        self.now += seconds
        self.slept += seconds

    def arm(self, name: str, seconds: float) -> Arm[int]:
        """Takes so long, on average."""

        def run(_: int) -> Outcome:
            self.drift *= self.random.lognormvariate(0, 0.01)
            stall = 3.0 if self.random.random() < 1 / 30 else 1.0
            self.now += seconds * self.drift * stall * self.random.lognormvariate(0, 0.05)
            return Outcome(10, None, "same")

        return Arm(name, run, "plain" if name == "plain" else "dynamic", reference=name == "plain")

    def arms(self, slow: float = 0.0) -> list[Arm[int]]:
        """Plain and dynamic, the latter slowed down by the hook that real gates are tested with."""
        dynamic = self.arm("dynamic", 1 / SPEEDUP)
        if slow:
            dynamic = wrappers.slowed(dynamic, slow, self.clock, self.sleep)
        return [self.arm("plain", 1.0), dynamic]

    def measured(self, slow: float = 0.0, **options: Any) -> Measurements:
        """Two inputs, as often as the options say."""
        settings: dict[str, Any] = {"rounds": STORED_ROUNDS, "warmup": 1, **options}
        return measure(self.arms(slow), [0, 1], clock=self.clock, rng=self.random, **settings)


def stored(measured: Measurements, path: Path, **header: Any) -> Path:
    """A result of which --baseline reads as much as there is here."""
    arms = [
        {
            "name": name,
            "reference": name == measured.reference,
            "samples": [{"units": s.units, "seconds": s.seconds} for s in samples],
        }
        for name, samples in measured.samples.items()
    ]
    header = {"model": "mine", "threads": 1, **header}
    document = {"schema": baseline.SCHEMA, "task": "generate", "cases": measured.cases, "header": header, "arms": arms}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def sure(measured: Measurements) -> float:
    """As `dynx bench` has it."""
    if measured.stopped == "decided" or not measured.ended:
        return LOOKS.confidence_at(measured.analyzed, last=False)
    return LOOKS.confidence_at([*measured.analyzed, measured.rounds], last=True)


def verdict_of(
    machine: Machine, known: baseline.Baseline, slow: float, differing: tuple[str, ...] = ()
) -> tuple[Gate, int]:
    """One run of the gate as `dynx bench --baseline` does it: looked at until decided. Also how many rounds it took."""

    def gate(measured: Measurements) -> Gate:
        return baseline.no_slower(
            measured,
            "dynamic",
            known,
            tolerance=TOLERANCE,
            confidence=sure(measured),
            differing=differing,
        )

    def judge(measured: Measurements) -> Collection[str]:
        return ["dynamic"] if gate(measured).verdict is Verdict.INCONCLUSIVE else []

    measured = machine.measured(slow, rounds=LOOKS.last, analyses=LOOKS.rounds, judge=judge)
    return gate(measured), measured.rounds


def test_a_gate_on_the_same_build_alarms_no_more_often_than_stated(tmp_path: Path) -> None:
    """Against itself, looked at up to six times: of 100 noisy runs, each with a baseline of its own, at most 1 fails."""
    failed = passed = 0
    for seed in range(100):
        machine = Machine(seed)
        known = baseline.read(stored(machine.measured(), tmp_path / "own.json"))[0]
        found, _ = verdict_of(machine, known, 0.0)
        failed += found.verdict is Verdict.FAIL
        passed += found.verdict is Verdict.PASS
    assert failed <= 1
    assert passed >= 80


def test_a_build_at_the_bar_itself_alarms_within_the_stated_error(tmp_path: Path) -> None:
    """The worst case: exactly as slow as still passes. Both mistakes together stay within the 5 % of all looks."""
    runs, at_the_bar = 100, 1 / (1 - TOLERANCE) - 1
    failed = 0
    for seed in range(runs):
        machine = Machine(1000 + seed)
        known = baseline.read(stored(machine.measured(), tmp_path / "own.json"))[0]
        failed += verdict_of(machine, known, at_the_bar)[0].verdict is Verdict.FAIL
    assert failed <= stats.binom.ppf(0.999, runs, (1 - LOOKS.confidence) / 2)


def test_a_build_slower_by_15_percent_is_caught(tmp_path: Path) -> None:
    """With the hook's 15 %, at least 95 of 100 runs fail, and none passes."""
    found = []
    for seed in range(100):
        machine = Machine(2000 + seed)
        known = baseline.read(stored(machine.measured(), tmp_path / "own.json"))[0]
        found.append(verdict_of(machine, known, 0.15)[0].verdict)
    assert found.count(Verdict.FAIL) >= 95
    assert Verdict.PASS not in found


def test_a_clear_difference_is_decided_early(tmp_path: Path) -> None:
    """Half the speed takes fewer rounds to tell than a difference near the tolerance."""
    machine = Machine(7)
    known = baseline.read(stored(machine.measured(), tmp_path / "own.json"))[0]
    clear, early = verdict_of(machine, known, 1.0)
    _, late = verdict_of(machine, known, 1 / (1 - TOLERANCE) - 1)

    assert (clear.verdict, early < late) == (Verdict.FAIL, True)


def test_looks_share_the_error_among_them() -> None:
    """Each look has what accrued since the one before, the last has all that is left, and a single one has all of it."""
    looks = InterimPlan.doubling(5)
    assert looks.rounds == (5, 10, 20, 40, 80, 160)
    spent = [1 - looks.confidence_at(looks.rounds[: i + 1], last=False) for i in range(6)]
    assert sum(spent) == pytest.approx(0.05)
    assert spent[:2] == [pytest.approx(0.05 * 5 / 160)] * 2
    assert 1 - looks.confidence_at([5, 10, 17], last=True) == pytest.approx(0.05 * 150 / 160)
    assert 1 - looks.confidence_at([5, 10, 10], last=True) == pytest.approx(0.05 * 155 / 160)
    assert (
        looks.confidence_at([17], last=True)
        == InterimPlan.single(7).confidence_at([7], last=True)
        == pytest.approx(0.95)
    )
    assert "up to 6 times" in str(looks)


def test_arms_that_nobody_asks_for_stop() -> None:
    """What a judge doesn't name isn't run any more; the reference goes on."""
    machine = Machine(3)
    arms = [*machine.arms(), machine.arm("idle", 1.0)]
    measured = measure(
        arms,
        [0],
        rounds=8,
        warmup=0,
        clock=machine.clock,
        rng=machine.random,
        analyses=[2],
        judge=lambda _: ["dynamic"],
    )

    assert {name: measured.rounds_of(name) for name in measured.samples} == {"plain": 8, "dynamic": 8, "idle": 2}


def test_the_harness_knows_its_own_share() -> None:
    """Time outside of arms counts as overhead: none on a clock that only arms move, and what a judge takes otherwise."""
    machine = Machine(4)
    assert machine.measured().overhead == pytest.approx(0)

    def judge(_: Measurements) -> Collection[str]:
        machine.now += 1.0
        return ["dynamic"]

    slow = machine.measured(analyses=[1, 2], judge=judge)
    assert slow.overhead == pytest.approx(2.0 / slow.elapsed)


def test_the_hook_slows_down_by_as_much_as_it_says() -> None:
    """15 % more time, slept and counted, whether the clock or the arm itself times the run."""
    machine = Machine(5)
    own = Arm("own", lambda _: Outcome(1, 2.0, "x"), "dynamic")
    assert wrappers.slowed(own, 0.15, machine.clock, machine.sleep).run(0).seconds == pytest.approx(2.3)
    assert machine.slept == pytest.approx(0.3)
    assert parse_slow("dynamic=15%") == ("dynamic", 0.15)
    for text in ("dynamic", "=15%", "dynamic=-1%", "dynamic=much"):
        with pytest.raises(UsageError, match="DYNX_BENCH_SLOW"):
            parse_slow(text)


def test_two_intervals_combine_in_squares() -> None:
    """Of independent ratios the distances add up in squares on logarithms, at now's confidence."""
    now = RatioEstimate(2.0, 2.0 / 1.03, 2.0 * 1.03, 0.95, 5, "cases")
    then = RatioEstimate(2.0, 2.0 / 1.04, 2.0 * 1.04, 0.95, 5, "cases")
    both = baseline.relative(now, then)

    assert both.ratio == pytest.approx(1)
    assert np.log(both.high) == pytest.approx(np.hypot(np.log(1.03), np.log(1.04)))
    assert both.low == pytest.approx(1 / both.high)


def test_a_baseline_of_other_conditions_only_advises(tmp_path: Path) -> None:
    """A failing figure from another machine is said and decides nothing, with what differs."""
    machine = Machine(6)
    known = baseline.read(stored(machine.measured(), tmp_path / "other.json", threads=2))[0]
    differing = known.differences({"model": "mine", "threads": 1})
    found, _ = verdict_of(machine, known, 1.0, differing)

    assert differing == ("threads 1, not 2",)
    assert (found.verdict, found.advisory) == (Verdict.FAIL, True)
    assert found.reason.endswith("advisory only, as this isn't comparable: threads 1, not 2")


def test_the_fingerprint_is_all_that_matters_and_nothing_else() -> None:
    """Library versions and fresh processes matter; dynx's own version, names, joules and the harness's figures don't."""
    then = {"model": "a", "dtype": "float32", "versions": {"dynx": "1", "torch": "2"}, "harness": {"overhead": 0.1}}
    now = {"model": "b", "dtype": "float32", "versions": {"dynx": "2", "torch": "2"}, "energy": {"source": None}}
    assert fingerprint.differences(now, then) == ("fresh processes unknown, not False",)
    assert fingerprint.differences({**now, "harness": {"fresh_processes": False, "looks": 3}}, then) == ()
    fresh = {**now, "harness": {"fresh_processes": True}, "versions": {"torch": "3"}}
    assert fingerprint.differences(fresh, then) == ("torch 3, not 2", "fresh processes True, not False")


def test_governors_of_all_cores(tmp_path: Path) -> None:
    """One name where all cores have the same, all names where they differ, None where the system doesn't tell."""
    assert fingerprint.governor(tmp_path) is None
    for core, name in enumerate(("powersave", "performance", "powersave")):
        (tmp_path / f"cpu{core}" / "cpufreq").mkdir(parents=True)
        (tmp_path / f"cpu{core}" / "cpufreq" / "scaling_governor").write_text(f"{name}\n", encoding="ascii")
    assert fingerprint.governor(tmp_path) == "performance, powersave"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't be read: No such file"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is no result of dynx bench"),
        (b'{"schema": "dynx.bench/2"}', "is of schema 'dynx.bench/2', not 'dynx.bench/1'"),
        (b'{"schema": "dynx.bench/1"}', "is damaged"),
        (b'{"schema": "dynx.bench.suite/1", "results": [1]}', "is damaged"),
    ],
    ids=str,
)
def test_a_baseline_that_is_none_is_told(tmp_path: Path, content: bytes | None, words: str) -> None:
    """Missing, corrupt and foreign files are wrong usage, and the hint says how one is made."""
    path = tmp_path / "stored.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        baseline.read(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("harm", [{"seconds": 0}, {"seconds": -1.0}, {"units": 0}, {"seconds": "soon"}], ids=str)
def test_figures_that_are_none_are_damage(tmp_path: Path, harm: dict[str, Any]) -> None:
    """Times and counts that can't have been measured are refused."""
    path = stored(Machine(8).measured(rounds=2), tmp_path / "stored.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    for sample in document["arms"][0]["samples"]:
        sample.update(harm)
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UsageError, match="is damaged"):
        baseline.read(path)


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), (" 12.5 % ", 0.125), ("0", 0.0)])
def test_tolerances(text: str, share: float) -> None:
    """Per cent or a share."""
    assert parse_tolerance(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["5", "-1%", "100%", "much", "nan", ""])
def test_tolerances_that_are_none(text: str) -> None:
    """A bare 5 could be 5 % or five times: it is refused with the likely meaning."""
    with pytest.raises(UsageError) as caught:
        parse_tolerance(text)
    assert caught.value.hint == "--tolerance 5%"


def test_a_deadline_goes_through_handlers_and_around_others() -> None:
    """No handler of ordinary errors swallows it, and a deadline inside it neither delays nor cancels it."""
    before = signal.getitimer(signal.ITIMER_REAL)[0]  # the test runner's own

    def stubborn() -> None:
        while True:
            with contextlib.suppress(Exception):
                while True:
                    pass

    with pytest.raises(OutOfTime), deadline(0.1):
        stubborn()
    with pytest.raises(OutOfTime), deadline(0.05), deadline(30):
        stubborn()
    with deadline(30):
        with pytest.raises(OutOfTime), deadline(0.02):
            stubborn()
        assert 25 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    assert left == 0 if before == 0 else before - 30 < left <= before
