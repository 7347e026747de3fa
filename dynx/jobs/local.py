"""Workers as processes of this machine, each on cores of its own.

A worker is a process even where there is only one, so that a row that kills it ends neither the job nor the program that runs it.
It ends by itself when that program does, however that ends.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process
from typing import TYPE_CHECKING, Any

from dynx.jobs.pool import Event

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from dynx.jobs.worker import Work

EXIT_SECONDS = 5.0
"""Seconds that a worker has to end after SIGTERM."""


class LocalPool:
    """Up to `size` processes."""

    def __init__(self, size: int) -> None:
        self.size = size
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        each = max(1, len(cores) // size)
        self._cores = [cores[k * each % len(cores) :][:each] if cores else [] for k in range(size)]
        self._workers: dict[int, tuple[SpawnProcess, Connection, int]] = {}
        self._busy: set[int] = set()
        self._started = 0

    def start(self, work: Work) -> int:
        """Start a worker in a free place and return its number."""
        context = get_context("spawn")
        place = next(k for k in range(self.size) if all(p != k for _, _, p in self._workers.values()))
        ours, theirs = context.Pipe()
        cores = self._cores[place] if self.size > 1 else []
        process = context.Process(target=serve, args=(theirs, work, cores), daemon=True)
        process.start()
        theirs.close()
        self._started += 1
        self._workers[self._started] = process, ours, place
        return self._started

    def call(self, worker: int, method: str, *arguments: Any) -> None:
        """Have an idle worker call a method; `wait` returns the result."""
        self._busy.add(worker)
        with suppress(OSError):  # it has died, which `wait` tells
            self._workers[worker][1].send((method, arguments))

    def wait(self, seconds: float) -> list[Event]:
        """Return what workers have answered, after at most `seconds` without any, and which have died."""
        links = {link: number for number, (_, link, _) in self._workers.items()}
        events = []
        for link in connection.wait(list(links), seconds):
            number = links[link]  # type: ignore[index]
            self._busy.discard(number)
            try:
                events.append(Event(number, *self._workers[number][1].recv()))
            except (EOFError, OSError):
                process, dead, _ = self._workers.pop(number)
                dead.close()
                process.join()
                events.append(Event(number, None, f"exit code {process.exitcode}"))
        return events

    def kill(self, worker: int) -> None:
        """End a busy worker at once; `wait` returns that it died."""
        self._workers[worker][0].kill()

    def close(self) -> None:
        """End all workers: idle ones by closing their links, so that they clear up, others at once."""
        for number, (process, link, _) in self._workers.items():
            if number in self._busy:
                process.terminate()
            link.close()
        for process, _, _ in self._workers.values():
            process.join(EXIT_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        self._workers.clear()


def serve(link: Connection, work: Work, cores: list[int]) -> None:
    """Answer calls until the link or the parent process ends; the cores are taken before PyTorch counts them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    if cores:
        os.sched_setaffinity(0, cores)
    from dynx.jobs.worker import Worker
    from dynx.runtime import lazy_imports

    lazy_imports.install()
    worker = Worker(work)
    while True:
        try:
            method, arguments = link.recv()
        except EOFError:
            return
        link.send(worker.call(method, *arguments))


def end_with_parent() -> None:
    """Wait until the parent process has ended, and end this one at once."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
