"""What the parts of `dynx bench` share: a prepared task, its settings, budgets, and the header of a result."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dynx.bench.measurements import JSON, Measurements
    from dynx.bench.result import BenchResult
    from dynx.bench.runner import Arm
    from dynx.cli.bench.options import Request
    from dynx.cli.console import Terminal
    from dynx.runtime.plan import Plan

Own = TypeVar("Own")

SUITE_BUDGET_SECONDS = 50.0
"""Time for each of several models, unless asked otherwise."""

SPEED_GATE_BUDGET_SECONDS = 120.0
"""Time in which a gate on speed is decided, unless asked otherwise; on a loaded machine it takes most of it."""

GATE_BUDGET_SECONDS = 300.0
"""Time for any other gate, and for one on speed with --runs: what isn't measured by then is inconclusive."""

LOADING_TIMEOUT_SECONDS = 120.0
"""Time that a model may take to load before a gate gives up, or the budget where that is more."""

EARLY_ANALYSIS_SHARE = 0.1
"""Share of the budget after which the first interim analysis is brought forward, so that slow arms which decide no gate stop."""

TASKS = ("generate", "classify", "draw")
ALL = "all"


@dataclass
class Prepared:
    """A task made ready: what runs, on what, and how measurements become a result."""

    task: str
    arms: Sequence[Arm[Any]]
    cases: Sequence[Any]
    header: dict[str, Any]
    rounds: int
    """Rounds to measure, unless a gate wants more."""
    conclude: Callable[[Measurements, float], BenchResult]
    """Condenses complete rounds, with the confidence of intervals, and judges the task's own gates."""


PlannedRun: TypeAlias = "Plan[Any, Any]"


class TaskModule(Protocol):
    """A module that measures the models of one task."""

    TASK: str
    MODELS: str
    """What its models are called, in the plural."""
    MODEL_DOES: str
    """What one of them does, after its name."""

    @property
    def Settings(self) -> type[Any]:  # noqa: N802 - a class of the module
        """The options that only this task has, with its defaults."""

    def prepare(self, request: Request, terminal: Terminal) -> Prepared:
        """Load the model, build the arms and choose the inputs."""

    def make_plan(self, request: Request, terminal: Terminal) -> PlannedRun:
        """Decide what can be decided without loading anything."""


def names_of(kind: type[Any]) -> list[str]:
    """Return the options that a task has of its own."""
    return [f.name for f in fields(kind)]


def settings(request: Request, kind: type[Own]) -> Own:
    """Return a task's own settings: those that were given, and its defaults."""
    given = {name: value for name, value in vars(request).items() if value is not None}
    return kind(**{name: given[name] for name in names_of(kind) if name in given})


def conditions(plan: PlannedRun, *, library: str = "transformers", **details: Any) -> dict[str, Any]:
    """Return the header of a result: where and on what was measured.

    `library` is the one that the model comes from, `details` are the task's.
    """
    from dynx.bench.fingerprint import governor

    found: dict[str, JSON] = {
        "model": plan.source.name,
        "model_hash": plan.key.model,
        "profile": plan.profile_id,
        "device": plan.device,
        "processor": plan.machine.cpu,
        "threads": plan.threads,
        "governor": governor(),
        "dtype": plan.dtype,
        **details,
        "versions": versions(("dynx", "torch", library)),
    }
    return found


def versions(names: Sequence[str]) -> Mapping[str, str]:
    """Return the versions of those libraries that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
