"""Prompt lookup: drafts what followed the last occurrence of the text's longest repeated suffix.

The longest suffix of the text that occurred before, in the prompt, in the answer so far or in a text given for the
purpose, is found with an index of its n-grams, and the draft is its most recent continuation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dynx.speculation.drafters.draft import Draft
from dynx.speculation.drafters.ngram_index import NgramIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.speculation.types import DraftSource


class LookupDrafter:
    """Drafts by copying. `library` is text (token ids, or their index) to look in besides the text at hand.

    `new_ngrams`, if given, is how many tokens in a row the answer may not repeat: copying stops before that many.
    """

    origin: DraftSource = "lookup"

    def __init__(self, library: Sequence[int] | NgramIndex = (), new_ngrams: int | None = None) -> None:
        if not isinstance(library, NgramIndex):
            tokens, library = library, NgramIndex()
            library.extend(tokens)
        self._library = library
        self._new_ngrams = new_ngrams
        self._index = NgramIndex(library)
        self._seen = 0  # tokens of the text at hand in the index
        self._length = 0
        self._at = 0
        self._drafted: list[int] = []

    def reset(self) -> None:
        """See `Drafter.reset`. The library stays indexed."""
        if self._seen:
            self._index = NgramIndex(self._library)
        self._seen, self._length = 0, 0

    def tokens_behind(self, length: int) -> int:
        """Return 1: reading is free."""
        return 1

    def _read(self, tokens: Sequence[int]) -> None:
        if len(tokens) > self._seen:
            self._index.extend(tokens[self._seen :])
            self._seen = len(tokens)
            self._length, self._at = self._index.match()

    def peek_confidence(self, tokens: Sequence[int]) -> float | None:
        """Return the signal that `propose` would give, or None where nothing matches."""
        self._read(tokens)
        return self._signal(0) if self._length and not self._repeats(0) else None

    def sync(self, tokens: Sequence[int]) -> None:
        """See `Drafter.sync`."""
        self._read(tokens)
        self._drafted = []

    def propose(self) -> Draft | None:
        """See `Drafter.propose`. Past the end of the record it goes on with its own drafts, as a loop would."""
        if not self._length or self._repeats(len(self._drafted)):
            return None
        at = self._at + len(self._drafted)
        text = self._index.text
        token = text[at] if at < len(text) else self._drafted[at - len(text)]
        signal = self._signal(len(self._drafted))
        self._drafted.append(token)
        return Draft(token, signal)

    def _repeats(self, drafted: int) -> bool:
        """Whether one more token after `drafted` more would repeat a sequence of the text that may not come again."""
        size = self._new_ngrams
        copied = self._length + drafted + 1
        return size is not None and copied >= size and self._at + drafted + 1 - size >= len(self._library.text)

    def _signal(self, drafted: int) -> float:
        return math.log2(self._length + drafted + 1)

    def followers(self, tail: Sequence[int]) -> list[tuple[int, int]]:
        """Return what followed the last tokens of `tail` where they were last: (tokens matched, token), longest match first."""
        return [] if self._new_ngrams is not None else self._index.followers(tail)

    def accept(self, count: int) -> None:
        """Do nothing: the next `sync` reads what was accepted."""
