"""A deadline for a block of code, by the alarm signal."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class OutOfTime(BaseException):
    """The deadline of a measurement has passed.

    Like KeyboardInterrupt it isn't an Exception, so that no handler inside an arm can take it for the arm's own failure.
    """


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
    """Raise `error` after `seconds`. An alarm that is already set keeps its time; the earlier of the two comes first."""
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
