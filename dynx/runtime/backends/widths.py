"""How wide to run passes where a change of their width costs more than a few tokens too many.

OpenVINO prepares every layer anew when a pass has another number of tokens than the one before. On two cores of an EPYC that took
5 ms where the pass itself took 25 and one more token 0.5 (287 M parameters, bfloat16); for 5 M parameters 0.8, 1.3 and 0.06 ms.
So passes are padded to the width that the kernels stand at, until what was padded in a row would have paid for a change.
"""

from __future__ import annotations

WIDEST = 32
"""Tokens of a pass beyond which it is part of a prompt, and no width to stay at."""

CHANGE = 10
"""Tokens that cost as much as a change of width."""


class Width:
    """The width that a graph stands at; calling it with the tokens of a pass gives the width to run."""

    def __init__(self) -> None:
        self.now = 0
        self._padded = 0  # tokens since the width was last used in full
        self._wanted = 0  # most tokens of a pass since then

    def settle(self, count: int) -> None:
        """Stand at `count` tokens."""
        self.now, self._padded, self._wanted = count, 0, 0

    def __call__(self, count: int, room: int) -> int:
        """Of a pass of `count` tokens that has `room` for so many."""
        if count > WIDEST:
            return count
        if count >= self.now or self.now > room:
            self.settle(count)
            return count
        self._padded += self.now - count
        self._wanted = max(self._wanted, count)
        if self._padded > CHANGE:
            self.settle(self._wanted)
        return self.now
