"""Promises about a whole job: a certificate from a random sample of its rows, and an audit of the answers that were given.

Both hold whatever computes a row. A sampled row counts as differing where it differs on any kind of machine, so the number of
such rows in the job bounds the answers that differ, however rows are scheduled. An audit's outcomes are columns of the output;
they are judged in the order of rows, whichever is answered first, so one worker and many end alike.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from dynx.early_exit.audit import Audit, certify_sample
from dynx.early_exit.types import Guarantee
from dynx.jobs.inputs import read, shards
from dynx.runtime.binomial import most_failures_in_total, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dynx.jobs.inputs import Source

MAX_SAMPLE = 5000
"""Most rows of a sample: more hardly loosen the exits that it certifies."""

READ_ROWS = 65_536
"""Rows that are read together to take those of the sample among them."""


def draw(total: int, drawn: int, seed: int = 0) -> list[int]:
    """Draw `drawn` of the numbers 0 … total-1 without replacement, sorted, the same for the same seed (Floyd's method).

    It takes time and memory for the drawn numbers alone.
    """
    chosen: set[int] = set()
    for last in range(total - drawn, total):
        digest = hashlib.blake2b(f"{seed}/{last}".encode(), digest_size=16).digest()
        one = int.from_bytes(digest, "big") % (last + 1)
        chosen.add(last if one in chosen else one)
    return sorted(chosen)


def pick(sources: Sequence[Source], numbers: Sequence[int]) -> list[Any]:
    """Return the inputs of the rows with these numbers in the job, sorted."""
    found: list[Any] = []
    at = 0
    for shard in shards(sources, READ_ROWS):
        inside = []
        while at < len(numbers) and numbers[at] < shard.start + shard.rows:
            inside.append(numbers[at] - shard.start)
            at += 1
        if inside:
            values = read(sources[shard.file], shard)
            found += [values[i] for i in inside]
    return found


def certify(
    differs: Iterable[NDArray[np.bool_]],
    thresholds: Sequence[Sequence[float]],
    pays: Sequence[bool],
    total: int,
    eps: float,
    delta: float,
) -> dict[str, Any]:
    """Certify the loosest rule by which at most ε of all rows differ; `differs` (G, m) is one array for each kind of machine."""
    anywhere = None
    for each in differs:
        anywhere = each if anywhere is None else anywhere | each
    if anywhere is None:
        raise ValueError("no kind of machine has answered the sample")
    found = certify_sample(anywhere, total, anywhere.shape[1], eps, delta)
    used = found.rule is not None and pays[found.rule]
    words = found.words
    if found.rule is not None and not used:
        words = f"full depth: exits within {percent(eps)} would cost more than they save here"
    return {
        "thresholds": list(thresholds[found.rule]) if found.rule is not None and used else None,
        "rule": found.rule if used else None,
        "sample": found.drawn,
        "differ": found.disagreements,
        "words": words,
        "guarantee": Guarantee(eps, delta, found.drawn, found.disagreements, "job").json(),
    }


class OrderedAudit:
    """An audit of rows in their order, whatever the order in which shards are finished."""

    def __init__(self, eps: float, delta: float) -> None:
        self._audit = Audit(eps, delta)
        self._next = 0  # the number of the first row that isn't counted yet
        self._early: dict[int, tuple[int, Sequence[tuple[int, bool]]]] = {}
        self.alarm: int | None = None
        """The first row of the shard in which the alarm came."""

    def add(self, first: int, rows: int, outcomes: Sequence[tuple[int, bool]]) -> bool:
        """Count a finished shard once all before it are; return whether that raises the alarm."""
        if self.alarm is not None:
            return False
        self._early[first] = rows, outcomes
        while self._next in self._early:
            begin = self._next
            rows, outcomes = self._early.pop(begin)
            for _, differs in outcomes:
                if self._audit.update(differs):
                    self.alarm = begin
                    return True
            self._next += rows
        return False

    def __str__(self) -> str:
        return str(self._audit)


def audit_statement(
    total: int, outcomes: Sequence[bool], delta: float, alarm: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return what an audit says of all `total` answers: counts, and without alarm the most that differ at confidence 1-δ."""
    n, k = len(outcomes), sum(outcomes)
    if alarm is not None or not n:
        words = "no row was audited" if alarm is None else alarm["words"]
        return {"audited": n, "differ": k, "most_in_job": None, "alarm": alarm, "words": words}
    most = most_failures_in_total(total, n, k, delta)
    words = f"with {percent(1 - delta)} confidence at most {most:,} of {total:,} answers differ from the full model's"
    words = f"{words}: {k:,} of {n:,} audited do"
    return {"audited": n, "differ": k, "most_in_job": most, "alarm": None, "words": words}
