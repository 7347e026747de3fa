"""Finds where a text begins to repeat itself over and over, as greedy decoding of small models often does.

Prompt lookup is right about every token of a loop, and nobody wants the text: speed measured on it says nothing about other text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_LOOP_TOKENS, MIN_LOOP_PERIODS = 24, 3
"""Tokens and repetitions from which a run of repetitions counts as a loop: lists and tables repeat less at a stretch."""


def loop_start(tokens: Sequence[int]) -> int | None:
    """Return the number of tokens up to the end of the first period of the first loop; None without a loop."""
    starts = (_start(tokens, period) for period in range(1, len(tokens) // MIN_LOOP_PERIODS + 1))
    return min((start for start in starts if start is not None), default=None)


def _start(tokens: Sequence[int], period: int) -> int | None:
    """Return where the first loop of this period has been written once."""
    needed = max(MIN_LOOP_TOKENS, MIN_LOOP_PERIODS * period) - period
    equal = 0
    for at in range(period, len(tokens)):
        equal = equal + 1 if tokens[at] == tokens[at - period] else 0
        if equal == needed:
            return at - needed + 1
    return None
