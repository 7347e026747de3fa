"""Finds where a text begins to repeat itself over and over, as greedy decoding of small models often does.

Prompt lookup is right about every token of a loop, and nobody wants the text: speed measured on it says nothing about other text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_REPEATED_TOKENS = 24
"""Tokens in a row, and no less than the whole period, that repeat what is a period before them: lists and tables repeat less."""


def loop_start(tokens: Sequence[int]) -> int | None:
    """Return the number of tokens up to the end of the first period of the first loop; None without a loop."""
    starts = (_start(tokens, period) for period in range(1, len(tokens) // 2 + 1))
    return min((start for start in starts if start is not None), default=None)


def _start(tokens: Sequence[int], period: int) -> int | None:
    """Return where the first loop of this period has been written once."""
    needed, equal = max(MIN_REPEATED_TOKENS, period), 0
    for at in range(period, len(tokens)):
        equal = equal + 1 if tokens[at] == tokens[at - period] else 0
        if equal == needed:
            return at - needed + 1
    return None
