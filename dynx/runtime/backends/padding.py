"""How wide to run passes, where a pass may be run wider than asked: the rows behind it are computed and forgotten.

Two things speak for it. OpenVINO prepares every layer anew when a pass has another number of tokens than the one before. On two
cores of an EPYC that took 5 ms where the pass itself took 25 and one more token 0.5 (287 M parameters, bfloat16); for 5 M
parameters 0.8, 1.3 and 0.06 ms. So passes are padded to the width that the kernels stand at, until what was padded in a row would
have paid for a change.

And narrow passes aren't always the cheapest: there, one token took 30 ms, two 34 and four to six 25, by kernels made for other
shapes. Two or more tokens, however many, gave the same bits; only a pass of one didn't. So a width that is measured to cost no
more than a narrower one is run in its place (`cheapest`), and plain decoding then rounds as wide passes do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDEST = 32
"""Tokens of a pass beyond which it is part of a prompt, and no width to stay at."""

CHANGE = 10
"""Tokens that cost as much as a change of width."""

GAIN = 0.03
"""The part of a pass that must be saved for another width to be run in its place."""

EXACTNESS = 0.03
"""The part of a pass of one token that may be paid for running it wider, so that it rounds as the others do."""


def cheapest(seconds: Mapping[int, float]) -> dict[int, int]:
    """The width to run for a width asked for, where that is another; of those measured (tokens to seconds)."""
    found = {}
    for asked in seconds:
        wider = [width for width in seconds if asked < width <= WIDEST]
        best = min(wider, key=seconds.__getitem__, default=asked)
        most = 1 + EXACTNESS if asked == 1 else 1 - GAIN
        if best != asked and seconds[best] <= most * seconds[asked]:
            found[asked] = best
    return found


class Width:
    """The width that a graph stands at; calling it with the tokens of a pass gives the width to run.

    `instead` is what `cheapest` found.
    """

    def __init__(self) -> None:
        self.now = 0
        self.instead: Mapping[int, int] = {}
        self._padded = 0  # tokens since the width was last used in full
        self._wanted = 0  # most tokens of a pass since then

    def settle(self, count: int) -> None:
        """Stand at `count` tokens."""
        self.now, self._padded, self._wanted = self.instead.get(count, count), 0, 0

    def __call__(self, count: int) -> int:
        """Of a pass of `count` tokens."""
        if count > WIDEST:
            return count
        count = self.instead.get(count, count)
        if count >= self.now:
            self.settle(count)
            return count
        self._padded += self.now - count
        self._wanted = max(self._wanted, count)
        if self._padded > CHANGE:
            self.settle(self._wanted)
        return self.now
