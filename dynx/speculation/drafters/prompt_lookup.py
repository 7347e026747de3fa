"""Prompt lookup: drafts what followed the last occurrence of the text's longest repeated suffix.

The longest suffix of the text that occurred before, in the prompt, in the answer so far or in a text given for the
purpose, is found with a suffix automaton (Blumer et al. 1985) that grows by one token at a time in amortised constant time:
the suffix link of the state of the whole text *is* that longest earlier suffix. Each state remembers where its strings
last ended, so the draft is the most recent continuation on record.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dynx.speculation.drafters.base import Draft

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dynx.speculation.types import DraftSource

MAX_REFRESHED_STATES = 32
"""Suffix states whose latest occurrence is brought up to date per token; shorter contexts are the ones nearest the root."""


class SuffixAutomaton:
    """An index of all substrings of a growing token sequence."""

    def __init__(self) -> None:
        self.text: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._end = [-1]  # position after the latest known occurrence, for each state
        self._last = 0

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        for token in tokens:
            self._append(token)

    def _append(self, token: int) -> None:
        new = self._state({}, self._length[self._last] + 1, len(self.text) + 1)
        at = self._last
        while at != -1 and token not in self._next[at]:
            self._next[at][token] = new
            at = self._link[at]
        if at == -1:
            self._link[new] = 0
        else:
            old = self._next[at][token]
            if self._length[at] + 1 == self._length[old]:
                self._link[new] = old
            else:
                self._link[new] = self._split(at, token, old)
        self.text.append(token)
        self._last = new

    def _split(self, at: int, token: int, old: int) -> int:
        clone = self._state(dict(self._next[old]), self._length[at] + 1, self._end[old])
        self._link[clone] = self._link[old]
        self._link[old] = clone
        while at != -1 and self._next[at].get(token) == old:
            self._next[at][token] = clone
            at = self._link[at]
        return clone

    def _state(self, following: dict[int, int], length: int, end: int) -> int:
        self._next.append(following)
        self._link.append(-1)
        self._length.append(length)
        self._end.append(end)
        return len(self._next) - 1

    def match(self) -> tuple[int, int]:
        """Return (length, end) of the longest suffix that occurred before; `end` is the position after its latest occurrence.

        Length 0 where the last token is new.
        """
        state = self._link[self._last] if self._last else 0
        return (self._length[state], self._end[state]) if state > 0 else (0, 0)

    def record_ends(self) -> None:
        """Record that every suffix of the text now also ends here; call after `match` was read."""
        state, end = self._link[self._last] if self._last else 0, len(self.text)
        for _ in range(MAX_REFRESHED_STATES):
            if state <= 0:
                return
            self._end[state] = end
            state = self._link[state]


class LookupDrafter:
    """Drafts by copying. `library` is text (token ids) to look in besides the text at hand.

    `new_ngrams`, if given, is how many tokens in a row the answer may not repeat: copying stops before that many.
    """

    origin: DraftSource = "lookup"

    def __init__(self, library: Sequence[int] = (), new_ngrams: int | None = None) -> None:
        self._library = list(library)
        self._new_ngrams = new_ngrams
        self._index = SuffixAutomaton()
        self._seen = 0  # tokens of the text at hand in the index
        self._length = 0
        self._at = 0
        self._drafted: list[int] = []
        self.reset()

    def reset(self) -> None:
        """See `Drafter.reset`. The library is indexed anew only if something was added behind it."""
        if len(self._index.text) != len(self._library):
            self._index = SuffixAutomaton()
            for token in self._library:
                self._index.extend([token])
                self._index.record_ends()
        self._seen, self._length = 0, 0

    def tokens_behind(self, length: int) -> int:
        """Return 1: reading is free."""
        return 1

    def _read(self, tokens: Sequence[int]) -> None:
        for i in range(self._seen, len(tokens)):
            self._index.extend([tokens[i]])
            self._length, self._at = self._index.match()
            self._index.record_ends()
        self._seen = len(tokens)

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
        return size is not None and copied >= size and self._at + drafted + 1 - size >= len(self._library)

    def _signal(self, drafted: int) -> float:
        return math.log2(self._length + drafted + 1)

    def accept(self, count: int) -> None:
        """Do nothing: the next `sync` reads what was accepted."""
