"""Workers as actors of a Ray cluster: the one that RAY_ADDRESS names, or a private one on this machine.

Ray starts processes, on which machine there is room, and notices when they die. Rows don't travel through it: a worker reads and
writes files by itself, and a call takes and returns about a kilobyte.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.errors import DeviceError, InvalidInput, UsageError
from dynx.jobs.pool import Event

if TYPE_CHECKING:
    from dynx.jobs.worker import Work


SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # instead of 15, by which whatever else runs on a core goes first
}
"""Settings of a cluster that is started here, unless the environment has others."""


def load() -> Any:
    """Return Ray. Raises UsageError where it isn't installed."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise UsageError("Ray isn't installed", hint="pip install 'dynx[ray]'") from None
    return ray


class RayPool:
    """Actors, `workers` of them, or as many as the cluster has room for; each takes `cores` cores, by default a machine's all."""

    def __init__(self, workers: int | None = None, cores: int | None = None) -> None:
        ray = self._ray = load()
        self._ours = not ray.is_initialized()
        if self._ours:
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            address = os.environ.get("RAY_ADDRESS")
            try:
                ray.init(address, **quiet) if address else ray.init("local", include_dashboard=False, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as e:
                raise DeviceError(f"no Ray cluster: {next(iter(str(e).splitlines()), type(e).__name__)}") from None
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if not cpus:
            raise DeviceError("no machine of the Ray cluster has a free core")
        if cores is not None and cores > max(cpus):
            raise InvalidInput(f"`threads` {cores}: the largest machine of the cluster has {max(cpus)} cores")
        share = max(1, sum(cpus) // workers) if workers else min(cpus)
        self._cores = cores or min(share, max(cpus))
        self._gpus = 1 if gpus else 0
        self.size = workers or gpus or sum(n // self._cores for n in cpus)
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}
        self._started = 0

    def start(self, work: Work) -> int:
        """Start a worker wherever there is room, now or later, and return its number."""
        options = {"num_cpus": self._cores, "num_gpus": self._gpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        actor = self._ray.remote(Actor).options(**options)
        self._started += 1
        self._actors[self._started] = actor.remote(work, self._cores)
        return self._started

    def call(self, worker: int, method: str, *arguments: Any) -> None:
        """Have an idle worker call a method; `wait` returns the result."""
        self._calls[self._actors[worker].call.remote(method, *arguments)] = worker

    def wait(self, seconds: float) -> list[Event]:
        """Return what workers have answered, after at most `seconds` without any, and which have died."""
        ray = self._ray
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        events = []
        for call in ready:
            worker = self._calls.pop(call)
            try:
                events.append(Event(worker, *ray.get(call)))
            except ray.exceptions.RayTaskError as e:
                events.append(Event(worker, False, e))
            except ray.exceptions.RayError as e:
                del self._actors[worker]
                events.append(Event(worker, None, next(iter(str(e).splitlines()), type(e).__name__)))
        return events

    def kill(self, worker: int) -> None:
        """End a busy worker at once; `wait` returns that it died."""
        self._ray.kill(self._actors[worker])

    def close(self) -> None:
        """End all workers, and a private cluster with them."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._calls.clear()
        if self._ours:
            self._ray.shutdown()


class Actor:
    """A worker in a process of Ray's, on cores that no other worker of its machine takes."""

    def __init__(self, work: Work, cores: int) -> None:
        from dynx.jobs.worker import Worker

        with suppress(OSError):
            os.chdir(work.folder)
        self._lock = take_cores(cores)
        self._worker = Worker(work)

    def call(self, method: str, *arguments: Any) -> tuple[bool, Any]:
        """Call a method of the worker."""
        return self._worker.call(method, *arguments)


def take_cores(cores: int) -> Any:
    """Bind this process to cores that no worker holds, before PyTorch counts them; return the lock that holds them.

    Where there are more workers than cores, they share them evenly.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    from filelock import FileLock, Timeout

    there = sorted(os.sched_getaffinity(0))
    folder = Path(tempfile.gettempdir()) / f"dynx-cores-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for place in count():
        lock = FileLock(folder / str(place))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        os.sched_setaffinity(0, {there[(place * cores + i) % len(there)] for i in range(cores)})
        return lock
    return None
