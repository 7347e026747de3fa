"""Passes are padded to the width that the kernels stand at, while that is cheaper than a change."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from dynx.runtime.backends.widths import CHANGE, WIDEST, Width

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOM = 1000


def run(counts: Sequence[int], room: int = ROOM) -> list[int]:
    """Widths of passes in a row."""
    width = Width()
    return [width(count, room) for count in counts]


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
    assert run([4, WIDEST + 1, 4, 3]) == [4, WIDEST + 1, 4, 4]


def test_no_pass_leaves_the_context() -> None:
    """Where there is no room for padding, there is none."""
    assert run([6, 3], room=5) == [6, 3]


def test_settled_is_settled() -> None:
    """What came before is forgotten."""
    width = Width()
    width(8, ROOM)
    width.settle(2)
    assert (width(2, ROOM), width(1, ROOM)) == (2, 2)


@given(st.lists(st.integers(1, WIDEST), min_size=1, max_size=200))
def test_it_is_never_thrice_as_dear_as_changing_every_time(counts: list[int]) -> None:
    """Tokens of padding, and changes at their price, against the changes that passes as wide as asked would make."""
    widths = run(counts)

    def changes(row: list[int]) -> int:
        return sum(a != b for a, b in itertools.pairwise(row))

    assert all(w >= c for w, c in zip(widths, counts, strict=True))
    assert changes(widths) <= changes(counts)
    assert sum(widths) - sum(counts) + CHANGE * changes(widths) <= 3 * CHANGE * changes(counts)
