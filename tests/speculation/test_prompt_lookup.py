"""Lookup: the longest earlier occurrence of the text's end is found, and what followed it is guessed."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dynx.speculation.drafters import ngram_index
from dynx.speculation.drafters.ngram_index import NgramIndex
from dynx.speculation.drafters.prompt_lookup import LookupDrafter

if TYPE_CHECKING:
    from collections.abc import Sequence


def brute(text: Sequence[int]) -> tuple[int, int]:
    """Longest suffix that ends earlier too, and the latest such end, by trying everything."""
    for length in range(len(text) - 1, 0, -1):
        for end in range(len(text) - 1, length - 1, -1):
            if list(text[end - length : end]) == list(text[-length:]):
                return length, end
    return 0, 0


def indexed(text: Sequence[int]) -> tuple[NgramIndex, list[tuple[int, int]]]:
    """The index after reading token by token, and its match after each."""
    index, matches = NgramIndex(), []
    for token in text:
        index.extend([token])
        matches.append(index.match())
    return index, matches


@given(st.lists(st.integers(0, 2), max_size=60))
@example([0] * 12)
@example([0, 1] * 8)
@example([0, 0, 1, 0, 0, 2, 0, 0])
@settings(max_examples=400, deadline=None)
def test_match_is_longest_and_latest(text: list[int]) -> None:
    """After every token the match is the one that brute force finds: the longest, and of those the most recent."""
    _, matches = indexed(text)

    assert matches == [brute(text[: i + 1]) for i in range(len(text))]


@given(st.lists(st.sampled_from([0, 0, 0, 0, 1]), min_size=60, max_size=150))
@example([0] * 100 + [1, 0])
@example([0, 1, 1] * 50)
@settings(max_examples=40, deadline=None)
def test_long_repetitive_texts_match_as_long(text: list[int]) -> None:
    """Where a text repeats itself deeply, the match is still the longest and the latest."""
    index, matches = indexed(text)

    assert matches[-1] == brute(text)
    assert index.text == text


@given(
    st.lists(st.lists(st.integers(0, 4), max_size=90), min_size=1, max_size=5),
    st.lists(st.integers(0, 4), max_size=90),
    st.sampled_from([1, 7, 48]),
)
@example([[0, 1, 2], [0, 1, 2]], [], 1)
@example([[], [0], [1], [0]], [0, 1], 1)
@settings(max_examples=300, deadline=None)
def test_reading_at_once_is_reading_token_by_token(pieces: list[list[int]], library: list[int], bulk: int) -> None:
    """However a text and a library before it are cut into pieces, the match is that of one text, and the library stays."""
    before = ngram_index.MIN_BULK_TOKENS
    ngram_index.MIN_BULK_TOKENS = bulk
    try:
        shared = NgramIndex()
        shared.extend(library)
        for _ in range(2):  # nothing of the first text is left in the library
            index, text = NgramIndex(shared), list(library)
            for piece in pieces:
                index.extend(piece)
                text += piece
                assert index.match() == brute(text)
    finally:
        ngram_index.MIN_BULK_TOKENS = before


def test_more_occurrences_than_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more occurrences than are compared the most recent ones count, and the match is a true one."""
    monkeypatch.setattr(ngram_index, "MAX_CANDIDATES", 4)
    text = [9, 1, 2, 3, *[5, 1, 2, 3] * 6, 9, 1, 2, 3]
    _, matches = indexed(text)

    assert matches[-1] == (3, len(text) - 4)


def test_tokens_of_large_vocabularies_are_told_apart() -> None:
    """Three tokens of a vocabulary of two million have a key of their own."""
    top = 2**21 - 1
    _, matches = indexed([top, top, top, 0, top, 0, top, top, top])

    assert matches == [brute([top, top, top, 0, top, 0, top, top, top][: i + 1]) for i in range(9)]


def test_a_long_prompt_is_read_in_no_time() -> None:
    """A prompt of a hundred thousand tokens takes a fraction of a second, and a round on it fractions of a millisecond."""
    text = [i * i % 5003 % 997 for i in range(100_000)]
    index = NgramIndex()
    began = time.process_time()
    index.extend(text)
    read = time.process_time() - began
    for token in text[:200]:
        index.extend([token])
        index.match()
    rounds = time.process_time() - began - read

    assert read < 1.0  # 0.05 where nothing else runs
    assert rounds < 0.4


def guesses(drafter: LookupDrafter, text: Sequence[int], count: int) -> list[int]:
    """What the drafter says after `text`."""
    drafter.sync(text)
    out = []
    for _ in range(count):
        draft = drafter.propose()
        if draft is None:
            break
        out.append(draft.token)
    return out


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_loops_are_continued(period: int) -> None:
    """A text in a loop is continued in the loop, also beyond the end of what was read."""
    loop = list(range(10, 10 + period))
    text = [1, 2, 3, *loop * 3]

    assert guesses(LookupDrafter(), text, 4 * period) == loop * 4


def test_most_recent_continuation_wins() -> None:
    """Of two earlier occurrences of the same words the later one's continuation is guessed."""
    assert guesses(LookupDrafter(), [1, 2, 7, 9, 1, 2, 8, 6, 1, 2], 2) == [8, 6]


def test_longer_matches_win() -> None:
    """A longer match beats a more recent shorter one."""
    assert guesses(LookupDrafter(), [5, 1, 2, 7, 9, 1, 2, 8, 6, 5, 1, 2], 2) == [7, 9]


def test_nothing_known_nothing_said() -> None:
    """After a token that never occurred there is no guess and no outlook."""
    drafter = LookupDrafter()

    assert guesses(drafter, [1, 2, 1, 3], 3) == []
    assert drafter.peek_confidence([1, 2, 1, 3]) is None
    assert guesses(LookupDrafter(), [4], 3) == []


def test_library_is_searched() -> None:
    """A text given to look in is guessed from, though the text at hand never said it; the text at hand comes first."""
    drafter = LookupDrafter([1, 2, 3, 4, 5, 6])

    assert guesses(drafter, [9, 3, 4], 2) == [5, 6]
    drafter.reset()
    assert guesses(drafter, [3, 4, 8, 3, 4], 2) == [8, 3]


def test_reset_forgets_the_text_and_keeps_the_library() -> None:
    """Another text starts from the library alone, as a new drafter would."""
    drafter = LookupDrafter([1, 2, 3, 4])
    guesses(drafter, [7, 8, 7, 8, 7], 3)
    drafter.reset()

    assert guesses(drafter, [9, 8, 7], 2) == []
    drafter.reset()
    assert guesses(drafter, [9, 2], 2) == [3, 4]


def test_reset_forgets_a_text_as_long_as_nothing() -> None:
    """An empty text between two resets, or none at all, changes nothing."""
    drafter = LookupDrafter([1, 2, 3])
    drafter.reset()
    drafter.sync([])
    drafter.reset()

    assert guesses(drafter, [1], 2) == [2, 3]


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6),
    st.lists(st.integers(0, 2), max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_reading_in_pieces_is_reading_at_once(pieces: list[list[int]], library: list[int]) -> None:
    """However the text grew, and with guesses made on the way, the guesses are those of a drafter that read it at once."""
    grown, text = LookupDrafter(library), []
    for piece in pieces:
        text += piece
        grown.sync(text)
        grown.propose()
        grown.propose()
        grown.accept(0)
    fresh = LookupDrafter(library)

    assert grown.peek_confidence(text) == fresh.peek_confidence(text)
    assert guesses(grown, text, 6) == guesses(fresh, text, 6)


def test_signal_rises_with_the_match() -> None:
    """The signal is that of the match's length, grows by one token with each guess, and is known before the first."""
    drafter = LookupDrafter()
    text = [1, 2, 3, 4, 1, 2, 3]
    drafter.sync(text)
    signals = [draft.signal for draft in (drafter.propose(), drafter.propose()) if draft]

    assert signals == [math.log2(3 + 1), math.log2(4 + 1)]
    assert drafter.peek_confidence(text) == signals[0]  # also right after a round, before the next one is synced
    assert drafter.tokens_behind(len(text)) == 1
