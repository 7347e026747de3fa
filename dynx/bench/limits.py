"""What is wrapped around an arm: threads, and the slow-down that the gates are tested with.

Nothing here knows what an arm does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.bench.runner import Arm, Case, Outcome


def threaded(arm: Arm[Case], threads: int, usual: int) -> Arm[Case]:
    """The arm, computing with so many threads where the others have another number."""
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
    """The arm, sleeping for this share of each run's time: what a gate must notice."""

    def run(case: Case) -> Outcome:
        began = clock()
        outcome = arm.run(case)
        ended = clock()
        seconds = ended - began if outcome.seconds is None else outcome.seconds
        sleep(share * seconds)
        return replace(outcome, seconds=seconds + clock() - ended)

    return replace(arm, run=run)


def parse_slow(text: str) -> tuple[str, float]:
    """An arm and a share from "dynamic=15%". Raises UsageError."""
    name, _, share = text.partition("=")
    try:
        value = float(share.strip().removesuffix("%")) / (100 if share.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not name or not 0 < value < 100:
        raise UsageError(f"DYNX_BENCH_SLOW={text}: an arm and how much slower it is, like dynamic=15%")
    return name, value
