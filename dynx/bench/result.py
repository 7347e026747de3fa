"""The result of a benchmark as data: arms, comparisons, gates and their verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dynx.bench.measurements import JSON, Failure, Group, Sample, Stop
    from dynx.bench.statistics import RatioEstimate

SCHEMA, SUITE = "dynx.bench/1", "dynx.bench.suite/1"
"""Names of the JSON documents: one result, and several."""

BEST_STATIC = "the best static"
"""Words for the static arm that dynamic ones are compared with by default."""


class Verdict(StrEnum):
    """What a gate concluded; the value is what JSON says."""

    PASS = "pass"  # noqa: S105 -- a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Gate:
    """One judged claim: what was measured, the bar it had to reach, and why the verdict is what it is."""

    name: str
    verdict: Verdict
    measured: float | None
    bar: float
    reason: str
    advisory: bool = False
    """Whether it only informs, and neither passes nor fails a build."""


def overall(gates: Iterable[Gate]) -> Verdict | None:
    """Return the worst verdict: fail, then inconclusive, then pass; None when nothing was judged.

    A gate that is only advisory counts as inconclusive: it neither passes nor fails a build.
    """
    verdicts = {Verdict.INCONCLUSIVE if gate.advisory else gate.verdict for gate in gates}
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS):
        if verdict in verdicts:
            return verdict
    return None


@dataclass(frozen=True)
class ArmResult:
    """One arm, condensed.

    `speed` is the median over rounds of units per second of the whole task; `identical` the share of outputs equal to
    the reference's; `outliers` index into `samples`. An arm that failed has a `failure` and no figures; `ratio` is also
    None when a round produced no units.
    """

    name: str
    group: Group
    reference: bool
    speed: float | None
    ratio: RatioEstimate | None
    identical: float | None
    samples: Sequence[Sample]
    outliers: Sequence[int]
    facts: Mapping[str, JSON]
    failure: Failure | None = None


@dataclass(frozen=True)
class Comparison:
    """A dynamic arm against a static one, paired like every other ratio."""

    arm: str
    baseline: str
    ratio: RatioEstimate
    basis: str = BEST_STATIC
    """Which of the static arms the baseline is, in words."""


@dataclass(frozen=True)
class Category:
    """One kind of inputs: the same arms, condensed over its cases alone."""

    name: str
    cases: int
    arms: Sequence[ArmResult]
    comparisons: Sequence[Comparison]


@dataclass(frozen=True)
class BenchResult:
    """Everything that one benchmark found; `header` holds device, threads, dtype, versions and model hashes."""

    task: str
    unit: str
    header: Mapping[str, JSON]
    cases: int
    rounds: int
    elapsed: float
    stopped: Stop
    arms: Sequence[ArmResult]
    comparisons: Sequence[Comparison]
    gates: Sequence[Gate] = ()
    notes: Sequence[str] = ()
    """Further sentences of the task."""
    case: str = "input"
    """Name of a case: an input, or a part of the inputs."""
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Further columns of tables, by title: a cell for each arm by its name."""
    categories: Sequence[Category] = ()
    """Kinds of inputs, where they have any."""

    @property
    def verdict(self) -> Verdict | None:
        """The worst verdict of all gates, None without gates."""
        return overall(self.gates)

    @property
    def reference(self) -> ArmResult:
        """The arm that every ratio is taken to."""
        return next(arm for arm in self.arms if arm.reference)

    def arm(self, name: str) -> ArmResult:
        """Return the arm called `name`; raises KeyError when there is none."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)

    def judged(self, gates: Sequence[Gate]) -> BenchResult:
        """Return the same result with these gates."""
        return replace(self, gates=tuple(gates))
