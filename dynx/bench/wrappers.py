"""Wrappers around an arm: another number of threads, and the slow-down that gates are tested with."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from dynx.bench.runner import OutOfTime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dynx.bench.measurements import Outcome
    from dynx.bench.runner import Arm, Case


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block once it has taken so long, by the alarm signal.

    It reaches whatever runs Python code now and then, on the main thread of systems that have the signal; elsewhere nothing is
    interrupted.

    It is raised again every second until the block is left, since Python drops what is raised in a callback or a finalizer.
    """
    with _alarm(seconds, OutOfTime, repeat=1.0):
        yield


@contextmanager
def _alarm(seconds: float, error: Callable[[], BaseException], repeat: float = 0.0) -> Iterator[None]:
    """Raise `error` after so many seconds. An alarm that is set already keeps its time, and comes first where it is earlier."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def alarm(_number: int, _frame: object) -> None:
        raise error()

    began = time.monotonic()
    left, every = signal.getitimer(signal.ITIMER_REAL)
    if 0 < left <= seconds:
        yield
        return
    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6), repeat)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-6), every)


def threaded(arm: Arm[Case], threads: int, usual: int) -> Arm[Case]:
    """Return the arm computing with `threads` threads, where the others have the `usual` number."""
    if threads == usual:
        return arm

    def run(case: Case) -> Outcome:
        import torch

        torch.set_num_threads(threads)
        try:
            return arm.run(case)
        finally:
            torch.set_num_threads(usual)

    return replace(arm, run=run)


def slowed(arm: Arm[Case], share: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> Arm[Case]:
    """Return the arm sleeping for this share of each run's time, which a gate must detect."""

    def run(case: Case) -> Outcome:
        began = clock()
        outcome = arm.run(case)
        ended = clock()
        seconds = ended - began if outcome.seconds is None else outcome.seconds
        sleep(share * seconds)
        return replace(outcome, seconds=seconds + clock() - ended)

    return replace(arm, run=run)
