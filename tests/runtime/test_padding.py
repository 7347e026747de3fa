"""Passes are padded to the width that the kernels stand at, while that is cheaper than a change."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from dynx.runtime.backends.padding import (
    CHANGE_COST_TOKENS,
    MAX_EXACTNESS_COST,
    MAX_PADDED_TOKENS,
    SAME_COST,
    PaddedLength,
    padded_lengths,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PLATEAU = {1: 30.0, 2: 34.0, 4: 25.0, 6: 25.2, 8: 29.0, 9: 29.1, 13: 33.0, 25: 60.0, 40: 1.0}
"""Milliseconds of passes on an EPYC, and one that is no width to pad to."""


def run(counts: Sequence[int], instead: Mapping[int, int] | None = None) -> list[int]:
    """Widths of passes in a row."""
    width = PaddedLength()
    width.lengths = instead or {}
    return [width(count) for count in counts]


def test_wider_passes_are_as_wide_as_they_are() -> None:
    """There is nothing to pad."""
    assert run([1, 2, 5, 5, 9]) == [1, 2, 5, 5, 9]


def test_narrower_passes_are_padded_until_a_change_would_have_been_cheaper() -> None:
    """And then the graph stands at the widest of those that were padded."""
    assert run([9, 5, 9, 3, 9]) == [9] * 5
    assert run([9, 5, 4, 2, 4, 4]) == [9, 9, 9, 5, 5, 5]
    assert run([9, 1, 1, 1]) == [9, 9, 1, 1]
    assert run([6, 2, 3, 2, 2]) == [6, 6, 6, 3, 3]


def test_a_prompt_is_no_width_to_stay_at() -> None:
    """Decoding goes on as wide as before it."""
    assert run([4, MAX_PADDED_TOKENS + 1, 4, 3]) == [4, MAX_PADDED_TOKENS + 1, 4, 4]


def test_settled_is_settled() -> None:
    """What came before is forgotten."""
    width = PaddedLength()
    width(8)
    width.set(2)
    assert (width(2), width(1)) == (2, 2)


def test_a_cheaper_width_is_run_instead() -> None:
    """Of lengths that cost no more the longest is run, so that the number of tokens changes seldom; prompts aren't padded."""
    found = padded_lengths(PLATEAU)
    assert found == {1: 6, 2: 6, 4: 6, 8: 9}
    assert run([1, 1, 2, 4, 8, 2, 40, 1], found) == [6, 6, 6, 6, 9, 9, 40, 9]


def test_one_token_is_run_wider_where_that_costs_next_to_nothing() -> None:
    """It then rounds as the others do; where it costs more, a pass of one stays one."""
    assert padded_lengths({1: 1.0, 2: 1.03, 4: 1.2}) == {1: 2}
    assert padded_lengths({1: 1.0, 2: 1.04, 4: 1.2}) == {}
    assert padded_lengths({1: 1.0}) == {}


@given(st.dictionaries(st.integers(1, 40), st.floats(1e-4, 1.0), min_size=1))
def test_what_is_run_instead_is_run_as_it_is(seconds: dict[int, float]) -> None:
    """Never narrower than asked, never a width that has another to be run instead, and at most 3 % dearer, for one token."""
    found = padded_lengths(seconds)
    for asked, width in found.items():
        assert asked < width <= MAX_PADDED_TOKENS
        assert width not in found
        assert seconds[width] <= (1 + (MAX_EXACTNESS_COST if asked == 1 else SAME_COST)) * seconds[asked]


def test_settling_takes_the_width_that_is_run() -> None:
    """So that plain passes after a prompt don't change it."""
    width = PaddedLength()
    width.lengths = {1: 4}
    width.set(1)
    assert (width.current, width(1), width(3)) == (4, 4, 4)


@given(st.lists(st.integers(1, MAX_PADDED_TOKENS), min_size=1, max_size=200))
def test_it_is_never_thrice_as_dear_as_changing_every_time(counts: list[int]) -> None:
    """Tokens of padding, and changes at their price, against the changes that passes as wide as asked would make."""
    widths = run(counts)

    def changes(row: list[int]) -> int:
        return sum(a != b for a, b in itertools.pairwise(row))

    assert all(w >= c for w, c in zip(widths, counts, strict=True))
    assert changes(widths) <= changes(counts)
    assert sum(widths) - sum(counts) + CHANGE_COST_TOKENS * changes(widths) <= 3 * CHANGE_COST_TOKENS * changes(counts)


def test_padding_counts_with_its_time_where_passes_were_timed() -> None:
    """Where more tokens take as long the padded length stays, where they take half as long again the first pass narrows it."""
    flat, steep = PaddedLength(), PaddedLength()
    flat.price({1: 0.0143, 4: 0.0143, 6: 0.0144})
    steep.price({1: 0.0124, 4: 0.0195, 6: 0.0213})
    for padded in (flat, steep):
        padded.set(6)
    assert [flat(1) for _ in range(50)] == [6] * 50
    assert [steep(1) for _ in range(3)] == [1, 1, 1]
    assert steep(4) == 4
    unpriced = PaddedLength()
    unpriced.price({4: 0.02})  # without the time of one token there is nothing to compare with
    unpriced.set(4)
    assert [unpriced(1) for _ in range(5)] == [4, 4, 4, 1, 1]
