"""Finds the longest suffix of a growing text that occurred before, and the latest place where it did.

For every sequence of one, two and three tokens the index knows where it last ended, and for each end where the same three
tokens ended before. The candidates for a longer match are followed from the latest back; a match of fewer than three tokens
needs none. Texts are read with NumPy's help, at two million tokens a second; a suffix automaton in Python, which finds the
same, read 1.0 million of a prompt of a thousand and 0.4 million of one of ten thousand. Finding takes some ten microseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

ORDER = 3
"""Tokens whose earlier occurrences are all known; of shorter sequences only the latest is."""

KEY_BITS = 21
"""Bits of a token in the key of a sequence: `ORDER` tokens fit 64."""

MAX_CANDIDATES = 256
"""Earlier occurrences of the last `ORDER` tokens that are compared: the most recent ones. What is in a text more often than that
is a loop, in which the latest occurrences are the longest."""

COMPARED_TOKENS = 32
"""Tokens compared at a time while a match is extended."""

MIN_BULK_TOKENS = 48
"""Tokens from which NumPy reads faster than Python does."""


class NgramIndex:
    """An index of the text `base` followed by its own; `base` stays as it is and may be shared."""

    def __init__(self, base: NgramIndex | None = None) -> None:
        self._base = base
        self.text: list[int] = [] if base is None else list(base.text)
        self._start: int = 0 if base is None else base._recorded
        self._recorded: int = self._start  # ends up to here are recorded
        self._latest: tuple[dict[int, int], ...] = tuple({} for _ in range(ORDER))  # end by key, of 1, 2, … tokens
        self._before: list[int] = []  # by end, from `_start` on: where the same ORDER tokens ended before; 0: nowhere

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        self.text.extend(tokens)
        last = len(self.text) - 1  # the whole text's own end is recorded once something follows it
        if last - self._recorded < MIN_BULK_TOKENS:
            for end in range(self._recorded + 1, last + 1):
                self._record(end)
        else:
            self._record_all(self._recorded + 1, last)
        self._recorded = max(self._recorded, last)

    def _record(self, end: int) -> None:
        text, key = self.text, 0
        for n in range(min(ORDER, end)):
            key |= text[end - 1 - n] << (n * KEY_BITS)
            if n == ORDER - 1:
                self._before.append(self._find(n, key))
            self._latest[n][key] = end
        if end < ORDER:
            self._before.append(0)

    def _record_all(self, first: int, last: int) -> None:
        """Record the ends `first` … `last`."""
        offset = max(0, first - ORDER)  # of the first token that matters
        tokens = np.array(self.text[offset:last], np.int64)
        keys, before = np.zeros_like(tokens), np.zeros(last + 1 - first, np.int64)
        for n in range(ORDER):
            keys[n:] |= tokens[: len(tokens) - n] << (n * KEY_BITS)
            begin = max(first, n + 1)  # the first end with so many tokens before it
            found = keys[begin - 1 - offset :]
            if n == ORDER - 1:
                before[begin - first :] = self._previous(found, begin)
            self._latest[n].update(zip(found.tolist(), range(begin, last + 1), strict=True))
        self._before.extend(before.tolist())

    def _previous(
        self, keys: np.ndarray[tuple[int], np.dtype[np.int64]], begin: int
    ) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return for each of `keys`, which end at `begin`, `begin` + 1, …, where the same key ended before."""
        order = np.argsort(keys, kind="stable")
        repeated = np.zeros(len(keys), bool)
        repeated[1:] = keys[order[1:]] == keys[order[:-1]]
        out = np.zeros_like(keys)
        out[order[repeated]] = order[np.flatnonzero(repeated) - 1] + begin
        if self._base is not None or self._latest[ORDER - 1]:
            new = order[~repeated]
            out[new] = [self._find(ORDER - 1, key) for key in keys[new].tolist()]
        return out

    def _find(self, n: int, key: int) -> int:
        """Return the latest end of the n + 1 tokens of a key; 0 where there is none."""
        end = self._latest[n].get(key)
        if end is None:
            end = 0 if self._base is None else self._base._find(n, key)
        return end

    def _end_before(self, end: int) -> int:
        if end > self._start:
            return self._before[end - self._start - 1]
        return 0 if self._base is None else self._base._end_before(end)

    def match(self) -> tuple[int, int]:
        """Return (length, end) of the longest suffix that occurred before; `end` is the position after its latest occurrence.

        Length 0 where the last token is new.
        """
        text, size, key = self.text, len(self.text), 0
        length = at = 0
        for n in range(min(ORDER, size - 1)):
            key |= text[size - 1 - n] << (n * KEY_BITS)
            end = self._find(n, key)
            if not end:
                return length, at
            length, at = n + 1, end
        return self._longest(at) if length == ORDER else (length, at)

    def followers(self, tail: Sequence[int]) -> list[tuple[int, int]]:
        """Return (n, the token after the latest occurrence of the last n tokens of `tail`) for n from `ORDER` down to 1."""
        text, key, out = self.text, 0, []
        for n in range(min(ORDER, len(tail))):
            key |= tail[-1 - n] << (n * KEY_BITS)
            end = self._find(n, key)
            if not end:
                break
            out.append((n + 1, text[end]))
        return out[::-1]

    def _longest(self, end: int) -> tuple[int, int]:
        """Return the longest match, and of those the latest, among ends of the last `ORDER` tokens from `end` back."""
        text, size = self.text, len(self.text)
        length = at = 0
        for _ in range(MAX_CANDIDATES):
            if end <= length:
                break  # nor can one before it be longer
            if not length or text[end - length - 1] == text[size - length - 1]:
                found = self._extended(end)
                if found > length:
                    length, at = found, end
            end = self._end_before(end)
        return length, at

    def _extended(self, end: int) -> int:
        """Return how many tokens before `end` are those before the end of the text."""
        text, size, length = self.text, len(self.text), ORDER
        while (
            end - length >= COMPARED_TOKENS
            and text[end - length - COMPARED_TOKENS : end - length]
            == text[size - length - COMPARED_TOKENS : size - length]
        ):
            length += COMPARED_TOKENS
        while length < end and text[end - length - 1] == text[size - length - 1]:
            length += 1
        return length
