"""Wrappers around an arm: another number of threads, and the slow-down that gates are tested with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.bench.measurements import Outcome
    from dynx.bench.runner import Arm, Case


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
