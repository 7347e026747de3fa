"""Checks of the guarantee on the inputs of a run: some of them are also answered at full depth.

A certificate holds for inputs like those it was made from. Two tests cover other inputs. `Audit` tests a stream: a random share
of rows also runs all layers, and a sequential test rejects "at most ε of answers differ" once the evidence is strong enough.
`certify_sample` needs no earlier data: a random sample of the inputs decides the exit rule for the rest of them.

Letters: ε (`eps`) the risk allowed, δ (`delta`) the chance of a false statement, N rows in the input, m of them sampled.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynx.errors import InvalidInput
from dynx.runtime.binomial import most_failures_in_rest, most_failures_in_total, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Audit", "SampleCertificate", "audited", "certify_sample", "draw_sample"]

BET_RATE_MULTIPLES = (1.5, 2.0, 3.0, 5.0, 10.0)
"""Rates that bets are made for, as multiples of ε: each bet is the one that grows fastest at its rate (Kelly)."""

MAX_WEALTH = 1e200
"""Cap on a bet's wealth: far above any alarm, and far below overflow."""


class Audit:
    """A test for "more than ε of answers differ", whose false alarm has probability at most δ however long it runs.

    A betting e-process (Waudby-Smith and Ramdas 2024, Estimating means of bounded random variables by betting): each bet
    multiplies its wealth by 1 + λ(x - ε), at most 1 in expectation while the rate is at most ε, so by Ville's
    inequality the mean over bets reaches 1/δ with probability at most δ. Bets are fixed beforehand, for the rates
    `BET_RATE_MULTIPLES`, and half of the money joins little by little later (`_waiting`): after a long stretch without
    disagreements some is left to detect a change with.

    At ε = 2 %, δ = 5 % and a rate of 6 % from the start, half of the alarms come within about 120 audited rows; where
    the change to 6 % comes after 1000 rows at 1 %, about 400 rows after it.
    """

    def __init__(self, eps: float, delta: float) -> None:
        if not 0 < eps < 1 or not 0 < delta < 1:
            raise InvalidInput(f"eps {eps} and delta {delta} must lie between 0 and 1")
        self.eps, self.delta = eps, delta
        rates = sorted({min(eps * w, (1 + eps) / 2) for w in BET_RATE_MULTIPLES})
        self._good = [(1 - r) / (1 - eps) for r in rates]  # 1 + λ(0 - ε), with λ = (r - ε) / (ε(1 - ε))
        self._bad = [r / eps for r in rates]
        self._early = [0.5 / len(rates)] * len(rates)  # staked at the start
        self._late = [0.0] * len(rates)  # joined since
        self._unit = 0.5 / len(rates)
        self.n = 0
        self.disagreements = 0
        self.alarmed = False

    @property
    def wealth(self) -> float:
        """The evidence against the promise (an e-value); starts at 1."""
        return sum(self._early) + sum(self._late) + 0.5 * _waiting(self.n)

    def update(self, disagrees: bool) -> bool:
        """Count one audited row, in order; return True from the alarm on."""
        self.n += 1
        self.disagreements += bool(disagrees)
        joins = self._unit * (_waiting(self.n - 1) - _waiting(self.n))
        for i, factor in enumerate(self._bad if disagrees else self._good):
            self._early[i] = min(MAX_WEALTH, self._early[i] * factor)
            self._late[i] = min(MAX_WEALTH, (self._late[i] + joins) * factor)
        self.alarmed = self.alarmed or self.wealth >= 1 / self.delta
        return self.alarmed

    def __str__(self) -> str:
        seen = f"{self.disagreements:,} of {self.n:,} audited answers differ from the full model's"
        if self.alarmed:
            return f"{seen}: the promise of {percent(self.eps)} doesn't hold here"
        return f"{seen}; no sign that more than {percent(self.eps)} do"


def audited(row: int, share: float, seed: int) -> bool:
    """Tell whether row `row` is audited; on average a share of all rows is.

    A hash of seed and row number decides, so the draw depends on neither batches nor contents and is the same in every run.
    Raises InvalidInput unless 0 ≤ share ≤ 1.
    """
    if not 0 <= share <= 1:
        raise InvalidInput(f"{share} is not a share")
    return _draw(row, seed) < share * 2**64


def draw_sample(total: int, drawn: int, seed: int) -> list[int]:
    """Draw `drawn` of the rows 0 … total-1 without replacement, sorted; the same seed gives the same rows."""
    if not 0 <= drawn <= total:
        raise InvalidInput(f"{drawn} can't be drawn from {total}")
    return sorted(sorted(range(total), key=lambda row: (_draw(row, seed), row))[:drawn])


def _draw(row: int, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{row}".encode(), digest_size=8).digest(), "big")


def _waiting(n: int) -> float:
    """Return the share of the late stake that hasn't joined after n rows; it falls slowly, to detect late changes."""
    return 1 / (1 + math.log1p(n))


@dataclass(frozen=True)
class SampleCertificate:
    """The rule that a sample certifies for the rest of the inputs."""

    rule: int | None  # index along the strict to loose path; None is full depth
    total: int
    drawn: int
    disagreements: int  # in the sample, by that rule
    bound: int  # at most so many of the rest differ
    eps: float
    delta: float
    words: str


def certify_sample(
    differs: Iterable[Sequence[bool]], total: int, drawn: int, eps: float, delta: float
) -> SampleCertificate:
    """Find the loosest rule that changes the answers of at most ε of the other rows, at confidence 1-δ.

    `differs` yields for each rule, strict to loose, the m disagreements in a random sample of `drawn` = m of the `total` = N
    rows (lists or arrays of m booleans); it is read up to the first rule that fails. The sample is answered at full depth,
    so only the rest can differ. Nothing is assumed of the rows: the chance is in the drawing of the sample alone, and the
    rules must have been listed before it. Raises InvalidInput on counts that don't fit.

    Tested is "more than ε(N-m) of *all* N rows would differ", a fixed number, by the exact hypergeometric bound. The number
    among the rest depends on the sample itself, and a walk over many rules could pick the one whose sample was lucky.
    """
    if not 0 < eps < 1 or not 0 < delta < 1 or not 0 <= drawn <= total:
        raise InvalidInput(f"{drawn} of {total} rows at eps {eps}, delta {delta} make no sense")
    limit = _floor(eps, total - drawn)
    chosen, found = None, 0
    for i, column in enumerate(differs):
        if len(column) != drawn:
            raise InvalidInput(f"rule {i} has {len(column)} answers for a sample of {drawn}")
        k = int(sum(bool(d) for d in column))
        if most_failures_in_total(total, drawn, k, delta) > limit:
            break
        chosen, found = i, k
    if chosen is None:
        words = (
            f"full depth: {drawn:,} of {total:,} rows don't show {percent(eps)} at {percent(1 - delta)} for any rule"
        )
        return SampleCertificate(None, total, drawn, 0, 0, eps, delta, words)
    bound = most_failures_in_rest(total, drawn, found, delta)
    words = (
        f"with {percent(1 - delta)} confidence at most {limit:,} of the other {total - drawn:,} answers differ from the full "
        f"model's ({percent(eps)}): {found:,} of a random {drawn:,} would have (exact hypergeometric bound)"
    )
    return SampleCertificate(chosen, total, drawn, found, bound, eps, delta, words)


def _floor(eps: float, rows: int) -> int:
    """Round ε·rows down, tolerating an error in the last bit of the product: 2 % of 50 is 1."""
    return int(eps * rows * (1 + 1e-12))
