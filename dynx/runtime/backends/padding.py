"""Pads forward passes to a number of tokens that costs less; the rows of the padding are computed and dropped.

OpenVINO prepares every layer anew when a pass has another number of tokens than the one before. On two cores of an EPYC that
took 5 ms where the pass itself took 25 and one more token 0.5 (287 M parameters, bfloat16); for 5 M parameters 0.8, 1.3 and
0.06 ms. So passes are padded to the current length until the padding in a row would have paid for a change (`PaddedLength`).

A change may be cheaper than little padding, though: in int8 SmolLM2-135M takes 12 ms for one token, 19 for four, and 5 more for
any pass of another number than before. Where passes were timed (`PaddedLength.price`), padding counts with its time.

And short passes aren't always the cheapest: there, one token took 30 ms, two 34 and four to six 25, by kernels made for other
shapes. Passes of two or more tokens gave the same bits whatever their length; only a pass of one didn't. So a length measured to
cost no more than a shorter one is run in its place (`padded_lengths`), and plain decoding then rounds as longer passes do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_PADDED_TOKENS = 32
"""Longest pass, in tokens, that is padded; longer ones are prefill."""

CHANGE_COST_TOKENS = 10
"""Cost of a change of length, in tokens of padding."""

CHANGE_COST_SHARE = 0.35
"""The same as a share of the time of a pass of one token, for passes that were timed; 0.2 to 0.6 on three models."""

SAME_COST = 0.03
"""Share of a pass's time by which two lengths may differ and count as equal."""

MAX_EXACTNESS_COST = 0.03
"""Share of the time of a pass of one token that padding it may cost; it then rounds as longer passes do."""


def padded_lengths(seconds: Mapping[int, float]) -> dict[int, int]:
    """Map each number of tokens that is better padded to the number to run, given the `seconds` of passes by number of tokens."""
    found: dict[int, int] = {}
    for asked in sorted(seconds, reverse=True):
        longer = [length for length in seconds if asked < length <= MAX_PADDED_TOKENS and length not in found]
        least = min((seconds[length] for length in longer), default=0.0)
        # Of lengths that cost the same the longest: passes of all that run as one length change it less often.
        best = max((length for length in longer if seconds[length] <= (1 + SAME_COST) * least), default=asked)
        most = 1 + (MAX_EXACTNESS_COST if asked == 1 else SAME_COST)
        if best != asked and seconds[best] <= most * seconds[asked]:
            found[asked] = best
    return found


class PaddedLength:
    """The number of tokens that a graph is prepared for; a call with the tokens of a pass returns how many to run.

    `lengths` is the result of `padded_lengths`.
    """

    def __init__(self) -> None:
        self.current = 0
        self.lengths: Mapping[int, int] = {}
        self._padding = 0.0  # tokens of padding since the current length was last used in full
        self._longest = 0  # longest pass since then
        self._seconds: Mapping[int, float] = {}
        self._change = 0.0

    def price(self, seconds: Mapping[int, float], change: float = 0.0) -> None:
        """Take the `seconds` of passes by number of tokens, and of a `change` of it, to count padding by its time.

        A change that wasn't timed counts as `CHANGE_COST_SHARE` says.
        """
        self._seconds = dict(seconds) if 1 in seconds else {}
        self._change = change or CHANGE_COST_SHARE * self._seconds.get(1, 0.0)

    def set(self, count: int) -> None:
        """Prepare for passes of `count` tokens."""
        self.current, self._padding, self._longest = self.lengths.get(count, count), 0.0, 0

    def __call__(self, count: int) -> int:
        """Return how many tokens to run for a pass of `count`."""
        if count > MAX_PADDED_TOKENS:
            return count
        count = self.lengths.get(count, count)
        if count >= self.current:
            self.set(count)
            return count
        self._padding += self._cost(count)
        self._longest = max(self._longest, count)
        if self._padding > CHANGE_COST_TOKENS:
            self.set(self._longest)
        return self.current

    def _cost(self, count: int) -> float:
        """Return the padding of a pass of `count` tokens, in tokens, or as many as take its time."""
        known = self._seconds
        if not known:
            return float(self.current - count)
        more = self._at(self.current) - self._at(count)
        return CHANGE_COST_TOKENS * max(0.0, more) / self._change

    def _at(self, count: int) -> float:
        """Return the seconds of a pass of `count` tokens, or of the nearest number that was timed."""
        return self._seconds[min(self._seconds, key=lambda n: abs(n - count))]
