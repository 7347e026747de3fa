"""What a measurement consists of: outcomes of single runs, timed samples, failures, and all complete rounds of all arms."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from dynx.bench.statistics import Series

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Group: TypeAlias = Literal["plain", "static", "dynamic", "external"]
Stop: TypeAlias = Literal["rounds", "budget", "interrupt", "decided"]


@dataclass(frozen=True)
class Outcome:
    """Output of one run of an arm.

    `units` are the tokens, images or labels. `seconds` is the arm's own measurement of the part that counts, or None to
    have the whole call timed. `output` is compared with the reference's for identity. `facts` are further counters.
    """

    units: int
    seconds: float | None
    output: Hashable
    facts: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One timed run: which round and case, its place in the order of that block, and its outcome."""

    round: int
    case: int
    position: int
    units: int
    seconds: float
    output: Hashable
    facts: Mapping[str, JSON]


@dataclass(frozen=True)
class Failure:
    """Why an arm was dropped; `round` is None when it failed during warm-up."""

    message: str
    round: int | None
    case: int


@dataclass(frozen=True)
class Measurements:
    """Complete rounds only: for each arm that never failed, its samples ordered by round, then case.

    `rounds` is the reference's number of them; an arm that an interim analysis dropped has fewer, the first ones. Where a
    deadline passed in the first round, that round counts with the `cases` that were run, fewer than `planned_cases`; an arm that
    didn't run them all has no samples.
    """

    groups: Mapping[str, Group]
    reference: str
    cases: int
    rounds: int
    samples: Mapping[str, Sequence[Sample]]
    failures: Mapping[str, Failure]
    stopped: Stop
    elapsed: float
    busy: float = 0.0
    """Seconds of `elapsed` inside arms; the rest is the runner's and its judge's."""
    analyzed: tuple[int, ...] = ()
    """Numbers of rounds after which an interim analysis was made."""
    ended: bool = True
    """Whether the measurement is over; False at an interim analysis."""
    planned_cases: int | None = None
    """Cases of a whole round; None where all of them were run."""

    @property
    def cut_short(self) -> bool:
        """Whether the deadline passed before every case was run once."""
        return self.planned_cases is not None

    @property
    def analyses(self) -> int:
        """Number of interim analyses."""
        return len(self.analyzed)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the measurement."""
        return self.stopped == "interrupt"

    @property
    def overhead(self) -> float | None:
        """Share of the time that wasn't spent in arms; None before any was."""
        return 1 - self.busy / self.elapsed if self.busy > 0 and self.elapsed > 0 else None

    def rounds_of(self, arm: str) -> int:
        """Return the number of rounds that the arm took part in."""
        return len(self.samples[arm]) // self.cases

    def paired(self, arm: str, reference: str) -> tuple[Series, Series]:
        """Return both arms' series over the rounds that both took part in."""
        shared = min(self.rounds_of(arm), self.rounds_of(reference))
        return self.series(arm, shared), self.series(reference, shared)

    def series(self, arm: str, rounds: int | None = None) -> Series:
        """Return units and seconds of the arm's (first) rounds, rounds × cases; raises KeyError for an arm that failed."""
        count = self.rounds_of(arm) if rounds is None else rounds
        rows = [self.samples[arm][start : start + self.cases] for start in range(0, count * self.cases, self.cases)]
        return Series(
            units=tuple(tuple(sample.units for sample in row) for row in rows),
            seconds=tuple(tuple(sample.seconds for sample in row) for row in rows),
        )

    def only(self, cases: Sequence[int]) -> Measurements:
        """Return the measurements of these cases alone, numbered anew in this order."""
        place = {case: number for number, case in enumerate(cases)}
        samples = {
            arm: sorted(
                (replace(sample, case=place[sample.case]) for sample in own if sample.case in place),
                key=lambda sample: (sample.round, sample.case),
            )
            for arm, own in self.samples.items()
        }
        return replace(self, cases=len(cases), samples=samples, planned_cases=None)

    def mismatches(self, arm: str) -> tuple[Sample, ...]:
        """Return the arm's samples whose output differs from the reference's of the same round and case."""
        pairs = zip(self.samples[arm], self.samples[self.reference], strict=False)  # an arm may have fewer rounds
        return tuple(ours for ours, theirs in pairs if ours.output != theirs.output)

    def identical_rate(self, arm: str) -> float | None:
        """Return the share of the arm's outputs equal to the reference's; None when nothing was measured."""
        count = len(self.samples.get(arm, ()))
        return 1 - len(self.mismatches(arm)) / count if count else None
