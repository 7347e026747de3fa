"""The draft model of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.runtime.backends.batch import BatchSession
from dynx.speculation.acceptance_model import log_odds
from dynx.speculation.drafters.base import Draft

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.runtime.backends.eager import EagerBackend
    from dynx.speculation.drafters.base import BatchSequence


class BatchDrafter:
    """Drafts for all sequences of a batch at once with a draft model."""

    def __init__(self, backend: EagerBackend, vocab: int) -> None:
        self._backend, self._vocab = backend, vocab
        self._session = BatchSession(backend)
        self._held: list[list[int]] = []  # by row: the tokens behind its positions

    def tokens_behind(self, rows: Sequence[BatchSequence]) -> int:
        """Return the tokens that the row furthest behind must read before its first draft."""
        held = [*map(len, self._held), *[0] * len(rows)]
        return max(1, *(len(row.text) - there for row, there in zip(rows, held, strict=False)))

    def replaced(self, at: int) -> None:
        """Note that another answer took the place of row `at`."""
        if at < len(self._held):
            self._held[at] = []

    def removed(self, at: int) -> None:
        """BatchRow `at` is gone."""
        if at < len(self._held):
            del self._held[at]
            self._session.remove(at)

    def mute(self, row: BatchSequence) -> bool:
        """Whether the model can't read this row: a token that only the target knows, or a text longer than its context."""
        limit = self._backend.context
        return max(row.text) >= self._backend.vocab or (limit is not None and len(row.text) >= limit)

    def sync(self, rows: Sequence[BatchSequence]) -> None:
        """Bring the session to a prefix of every row's text; prefills new rows."""
        fresh = []
        for at, row in enumerate(rows):
            new = at >= len(self._held)
            if new or not self._held[at]:
                other = BatchSession(self._backend)
                known = [0] if self.mute(row) else list(row.text[:-1]) or [0]
                other.prefill(known)
                if new:
                    self._held.append(known)
                    fresh.append(other)
                else:
                    self._held[at] = known
                    self._session.replace(at, other)
        if fresh:
            self._session.admit(fresh)
        for held, row in zip(self._held, rows, strict=True):
            same = min(len(held), len(row.text) - 1)
            while same and held[same - 1] != row.text[same - 1]:
                same -= 1
            del held[same:]
        self._session.rollback([len(held) for held in self._held])

    def propose(
        self, rows: Sequence[BatchSequence], drafted: Sequence[Sequence[Draft]], asked: Sequence[bool]
    ) -> list[Draft | None]:
        """Return the next draft of each row that is `asked`, after the `drafted` of this round."""
        limit = self._backend.context
        feeds: list[list[int]] = []
        for row, held, drafts, wanted in zip(rows, self._held, drafted, asked, strict=True):
            text = [*row.text, *(d.token for d in drafts)] if drafts else row.text
            able = wanted and not self.mute(row) and (limit is None or len(text) <= limit)
            able = able and (not drafts or drafts[-1].token < self._backend.vocab)
            feeds.append(list(text[len(held) :]) if able else [])
        if not any(feeds):
            return [None] * len(rows)
        logits = self._session.forward(feeds)[..., : self._vocab]
        for held, feed in zip(self._held, feeds, strict=True):
            held.extend(feed)
        speaking = [r for r, feed in enumerate(feeds) if feed]
        last = logits[speaking, [len(feeds[r]) - 1 for r in speaking]].float()  # (speaking, V)
        out: list[Draft | None] = [None] * len(rows)
        if all(rows[r].simple for r in speaking):
            best = last.softmax(-1).max(-1)
            for r, token, sure in zip(speaking, best.indices.tolist(), best.values.tolist(), strict=True):
                out[r] = Draft(token, log_odds(sure))
            return out
        for r, row in zip(speaking, last, strict=True):
            token, sure, kept = rows[r].sample_draft(row, rows[r].text, [d.token for d in drafted[r]])
            out[r] = Draft(token, log_odds(sure), kept)
        return out
