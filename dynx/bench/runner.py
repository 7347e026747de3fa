"""Runs arms interleaved and records their outcomes, times and failures within a budget.

An arm is a name and a function from a case to an outcome; cases are whatever the arms take. Within each round every case is run
by all arms one after another, in a new random order, so that slow drift and the order of running affect all arms alike. The clock
and the random generator are passed in.

    measurements = measure(arms, prompts, rounds=5, warmup=1, clock=time.perf_counter, rng=random.Random(0))
    measurements.series("dynamic").speeds()      # units per second, round by round
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from dynx.bench.deadline import OutOfTime
from dynx.bench.measurements import Failure, Group, Measurements, Outcome, Sample, Stop
from dynx.bench.statistics import median
from dynx.errors import DynxError, UsageError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection, Sequence
    from contextlib import AbstractContextManager

Case = TypeVar("Case")


@dataclass(frozen=True)
class Arm(Generic[Case]):
    """One way of computing the cases; the reference is the denominator of every ratio."""

    name: str
    run: Callable[[Case], Outcome]
    group: Group
    reference: bool = False


@dataclass(frozen=True)
class Progress:
    """One finished run of `total`, warm-up included; `elapsed` in seconds since the start."""

    arm: str
    done: int
    total: int
    elapsed: float


Judge: TypeAlias = "Callable[[Measurements], Collection[str]]"
"""Interim analysis of complete rounds: returns the arms that must go on, none where everything is decided."""


def measure(
    arms: Sequence[Arm[Case]],
    cases: Sequence[Case],
    *,
    rounds: int,
    warmup: int,
    clock: Callable[[], float],
    rng: random.Random,
    budget_s: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    analyses: Collection[int] = (),
    judge: Judge | None = None,
    early_analysis_s: float | None = None,
    deadline_s: float | None = None,
    guard: Callable[[float], AbstractContextManager[object]] = nullcontext,
) -> Measurements:
    """Run every arm on every case, `rounds` times, interleaved.

    `warmup` is how often each arm runs before timing, on the first case, the second, and so on. An arm that raises is
    dropped with its message and the others go on. After a complete round no further one starts that would, lasting as
    long as they typically do, end past `budget_s` seconds after the start; the first round always runs. Ctrl-C
    keeps the complete rounds and sets `interrupted`.

    After each number of rounds in `analyses`, `judge` gets the measurements so far. Only the arms that it returns go on, with the
    reference; with none returned the measurement is over ("decided"). Where the first analysis isn't reached in
    `early_analysis_s` seconds it is brought forward, so that arms which decide nothing don't use up the time of those that do.

    `deadline_s` seconds after the start the measurement ends in any case ("budget"), also within a round: complete rounds count,
    and of an incomplete first one the cases that all arms ran. The clock is read before each run. `guard` is entered with
    the seconds that are left and may raise OutOfTime after them, which ends a run in progress.

    Raises UsageError for arms, cases or counts that can't be measured; DynxError when the reference fails (its own
    error unchanged, if it is one of dynx's).
    """
    _check(arms, cases, rounds, warmup, budget_s)
    measurement = _Measurement(
        arms, len(cases), (warmup + rounds * len(cases)) * len(arms), clock, rng, progress, deadline_s
    )

    def due(number: int) -> bool:
        """Whether an interim analysis follows this many rounds."""
        behind = (
            early_analysis_s is not None
            and not measurement.analyzed
            and clock() - measurement.started > early_analysis_s
        )
        return number in analyses or behind

    def run_rounds() -> Stop:
        for turn in range(warmup):
            measurement.block(None, turn % len(cases), cases[turn % len(cases)])
        for number in range(rounds):
            if budget_s is not None and measurement.would_end_after(budget_s):
                return "budget"
            measurement.round(number, cases)
            if judge is not None and due(number + 1):
                measurement.analyzed.append(number + 1)
                needed = judge(measurement.so_far("rounds", ended=False))
                if not needed:
                    return "decided"
                measurement.narrow(needed)
        return "rounds"

    try:
        with guard(deadline_s) if deadline_s is not None else nullcontext():
            stopped = run_rounds()
    except OutOfTime:
        return measurement.so_far("budget", ended=True, late=True)
    except KeyboardInterrupt:
        stopped = "interrupt"
    return measurement.so_far(stopped, ended=True)


class _Measurement(Generic[Case]):
    """Arms still running, the failures of the others, and the rounds so far."""

    def __init__(
        self,
        arms: Sequence[Arm[Case]],
        cases: int,
        total: int,
        clock: Callable[[], float],
        rng: random.Random,
        progress: Callable[[Progress], None] | None,
        deadline_s: float | None,
    ) -> None:
        self.live = list(arms)
        self.failures: dict[str, Failure] = {}
        self.analyzed: list[int] = []  # numbers of rounds after which an interim analysis was made
        self._arms, self._cases = list(arms), cases
        self._complete: list[list[tuple[str, Sample]]] = []
        self._lasted: list[float] = []  # seconds of each round, as the arms that are left would take
        self.started = clock()
        self.busy = 0.0
        self._clock, self._rng, self._progress = clock, rng, progress
        self._done, self._total = 0, total
        self._ends = math.inf if deadline_s is None else self.started + deadline_s
        self._begun: list[tuple[str, Sample]] = []  # of the round in progress

    def would_end_after(self, budget_s: float) -> bool:
        """Return whether another round of typical length would end more than `budget_s` seconds after the start."""
        return bool(self._complete) and self._clock() - self.started + median(self._lasted) > budget_s

    def round(self, number: int, cases: Sequence[Case]) -> None:
        """Run every case on all live arms."""
        began, self._begun = self._clock(), []
        for index, case in enumerate(cases):
            self.block(number, index, case)
        self._complete.append(self._begun)
        self._lasted.append(self._clock() - began)

    def so_far(self, stopped: Stop, *, ended: bool, late: bool = False) -> Measurements:
        """Return what was measured; `late` where the deadline ended it, so that part of a first round counts too."""
        samples: dict[str, list[Sample]] = {arm.name: [] for arm in self._arms if arm.name not in self.failures}
        for name, sample in (pair for one_round in self._complete for pair in one_round):
            if name in samples:
                samples[name].append(sample)
        rounds, cases = len(self._complete), self._cases
        if late and not rounds:
            cases, samples = self._begun_round(samples)
            rounds = min(1, cases)
        return Measurements(
            groups={arm.name: arm.group for arm in self._arms},
            reference=next(arm.name for arm in self._arms if arm.reference),
            cases=cases or self._cases,
            rounds=rounds,
            samples=samples,
            failures=self.failures,
            stopped=stopped,
            elapsed=self._clock() - self.started,
            busy=self.busy,
            analyzed=tuple(self.analyzed),
            ended=ended,
            planned_cases=self._cases if cases < self._cases else None,
        )

    def _begun_round(self, arms: Collection[str]) -> tuple[int, dict[str, list[Sample]]]:
        """Return how many cases of the round in progress count, and the samples of them of each of `arms`.

        Those are the cases that all arms ran; where that is none, the first one, with the arms that ran it, if the reference
        did. An arm that ran fewer has no samples.
        """
        found = {name: [s for arm, s in self._begun if arm == name] for name in arms}
        reference = next(arm.name for arm in self.live if arm.reference)
        count = min(len(found[arm.name]) for arm in self.live) or min(1, len(found[reference]))
        return count, {name: own[:count] if len(own) >= count else [] for name, own in found.items()}

    def block(self, number: int | None, index: int, case: Case) -> None:
        """Run one case on all live arms in a fresh random order; `number` is the round, None for warm-up."""
        for position, arm in enumerate(self._rng.sample(self.live, len(self.live))):
            if self._clock() >= self._ends:
                raise OutOfTime
            try:
                outcome, seconds = self._timed(arm, case)
            except Exception as error:  # noqa: BLE001 -- whatever one arm does wrong, the others still get measured
                self._drop(arm, error, number, index)
            else:
                if number is not None:
                    sample = Sample(number, index, position, outcome.units, seconds, outcome.output, outcome.facts)
                    self._begun.append((arm.name, sample))
            self._report(arm)

    def narrow(self, needed: Collection[str]) -> None:
        """Go on with only these arms and the reference."""
        before = len(self.live)
        self.live = [arm for arm in self.live if arm.reference or arm.name in needed]
        self._lasted = [seconds * len(self.live) / before for seconds in self._lasted]
        self._total = self._done + (self._total - self._done) * len(self.live) // before

    def _timed(self, arm: Arm[Case], case: Case) -> tuple[Outcome, float]:
        began = self._clock()
        try:
            outcome = arm.run(case)
        finally:
            whole = self._clock() - began
            self.busy += whole
        seconds = whole if outcome.seconds is None else outcome.seconds
        if not (0 < seconds < math.inf) or outcome.units < 0:
            raise DynxError(f"measured {outcome.units} units in {seconds} seconds")
        return outcome, seconds

    def _drop(self, arm: Arm[Case], error: Exception, number: int | None, index: int) -> None:
        message = str(error) if isinstance(error, DynxError) else f"{type(error).__name__}: {error}"
        if arm.reference:
            if isinstance(error, DynxError):
                raise error
            raise DynxError(f"the reference arm {arm.name!r} failed: {message}") from error
        self.failures[arm.name] = Failure(message, number, index)
        self.live.remove(arm)

    def _report(self, arm: Arm[Case]) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(Progress(arm.name, self._done, self._total, self._clock() - self.started))


def _check(arms: Sequence[Arm[Case]], cases: Sequence[Case], rounds: int, warmup: int, budget_s: float | None) -> None:
    names = [arm.name for arm in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two arms are called {twice[0]!r}", hint="give each arm its own name")
    if sum(arm.reference for arm in arms) != 1:
        raise UsageError("exactly one arm must be the reference that the others are compared with")
    if not cases:
        raise UsageError("there is nothing to measure: no input was given")
    if rounds < 1:
        raise UsageError(f"at least one round is needed, not {rounds}")
    if warmup < 0:
        raise UsageError(f"warm-up runs can't be negative: {warmup}")
    if budget_s is not None and not budget_s > 0:
        raise UsageError(f"the time budget must be above zero seconds, not {budget_s}")
