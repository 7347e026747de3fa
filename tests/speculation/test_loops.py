"""Loops in answers are found where they begin to repeat, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from dynx.speculation.loops import MIN_REPEATED_TOKENS, loop_start


@pytest.mark.parametrize("period", [1, 2, 5, 11, 50])
@pytest.mark.parametrize("before", [0, 7])
def test_a_loop_is_cut_after_its_first_period(period: int, before: int) -> None:
    """What leads to it and one period stay; a token less and it isn't one."""
    repeats = 1 + -(-MIN_REPEATED_TOKENS // period)
    loop = [100 + i for i in range(period)] * repeats
    text = [*range(before), *loop[: period + max(period, MIN_REPEATED_TOKENS)]]

    assert loop_start(text) == before + period
    assert loop_start(text[:-1]) is None


def test_the_text_after_a_loop_does_not_hide_it() -> None:
    """Nor does a loop of loops."""
    assert loop_start([1, 2, *([7, 8] * 20), 3, 4, 5]) == 4
    assert loop_start(([7] * 30 + [8]) * 3) == 1


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [1],
        list(range(90)),
        [*range(40), 99, *range(40)],
        [token for row in range(9) for token in (1, 2, 3, 100 + row, 4, 5)],
        [1, *([5] * MIN_REPEATED_TOKENS), 2],
    ],
    ids=len,
)
def test_copies_and_short_repetitions_are_no_loops(tokens: list[int]) -> None:
    """A passage quoted again after a word is what lookup is for, and so is a table."""
    assert loop_start(tokens) is None
