"""What the driver of a job needs of its workers, wherever they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from dynx.jobs.worker import Work


class Event(NamedTuple):
    """A worker has answered a call, or died."""

    worker: int
    ok: bool | None
    """None: it died. False: `value` is what was raised."""
    value: Any


class Pool(Protocol):
    """Workers, by number."""

    size: int
    """How many there should be."""

    def start(self, work: Work) -> int:
        """Start a worker and return its number."""

    def call(self, worker: int, method: str, *arguments: Any) -> None:
        """Have an idle worker call a method; `wait` returns the result."""

    def wait(self, seconds: float) -> list[Event]:
        """Return what workers have answered, after at most `seconds` without any, and which have died."""

    def kill(self, worker: int) -> None:
        """End a busy worker at once; `wait` returns that it died."""

    def close(self) -> None:
        """End all workers."""
