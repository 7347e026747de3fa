"""Shared parts of the tasks of `dynx bench`: a prepared task, its settings, budgets, and the header of a result."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dynx.bench.measurements import JSON, Measurements
    from dynx.bench.result import BenchResult
    from dynx.bench.runner import Arm
    from dynx.cli.console import Terminal
    from dynx.cli.options.bench import Request
    from dynx.runtime.plan import Plan

Own = TypeVar("Own")

SUITE_BUDGET_SECONDS = 50.0
"""Budget of each of several models, unless --budget is given."""

SPEED_GATE_BUDGET_SECONDS = 120.0
"""Budget of a speed gate, unless --budget is given; on a loaded machine deciding takes most of it."""

GATE_BUDGET_SECONDS = 300.0
"""Budget of other gates, and of a speed gate with --runs; a gate that isn't decided by then is inconclusive."""

LOADING_TIMEOUT_SECONDS = 120.0
"""Longest time to load a model before a gate gives up; the budget, if longer, replaces it."""

EARLY_ANALYSIS_SHARE = 0.1
"""Share of the budget after which the first interim analysis is brought forward, to stop slow arms that decide no gate."""

TASKS = ("generate", "classify", "draw")
ALL = "all"


@dataclass
class Prepared:
    """A task that is ready to run: its arms, its cases, and how measurements become a result."""

    task: str
    arms: Sequence[Arm[Any]]
    cases: Sequence[Any]
    header: dict[str, Any]
    rounds: int
    """Number of rounds to measure, unless a gate needs more."""
    conclude: Callable[[Measurements, float], BenchResult]
    """Summarizes complete rounds, given the confidence level of the intervals, and decides the task's own gates."""


PlannedRun: TypeAlias = "Plan[Any, Any]"


class TaskModule(Protocol):
    """A module that measures the models of one task."""

    TASK: str
    MODELS: str
    """Name of its models, in the plural."""
    MODEL_IS: str
    """Predicate about one model, as in "NAME is a classifier"."""

    @property
    def Settings(self) -> type[Any]:  # noqa: N802 - a class of the module
        """The options that only this task has, with its defaults."""

    def prepare(self, request: Request, terminal: Terminal) -> Prepared:
        """Load the model, build the arms and choose the inputs."""

    def make_plan(self, request: Request, terminal: Terminal) -> PlannedRun:
        """Resolve a plan without loading anything."""


def names_of(kind: type[Any]) -> list[str]:
    """Return the options that a task has of its own."""
    return [f.name for f in fields(kind)]


def settings(request: Request, kind: type[Own]) -> Own:
    """Return a task's own settings: the given ones, and its defaults for the rest."""
    given = {name: value for name, value in vars(request).items() if value is not None}
    return kind(**{name: given[name] for name in names_of(kind) if name in given})


def conditions(plan: PlannedRun, *, library: str = "transformers", **details: Any) -> dict[str, Any]:
    """Return the header of a result: device and versions.

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
