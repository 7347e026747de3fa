"""Drafting with a smaller model of the same vocabulary.

Its key-value cache follows the text by itself: `sync` rolls back to the longest prefix that it shares with the text, and the
first `propose` reads in one pass what was written while others drafted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.speculation.drafters.base import OpensDrafters
from dynx.speculation.drafters.draft_sampler import OTHER_CHOICES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.runtime.backends.interface import Backend, Session
    from dynx.speculation.drafters.base import Drafter
    from dynx.speculation.drafters.draft import Draft
    from dynx.speculation.drafters.draft_sampler import DraftSampler
    from dynx.speculation.types import DraftSource


def open_model_drafter(backend: Backend, sampler: DraftSampler, vocab: int) -> Drafter:
    """Open a drafter for one text of a target with `vocab` tokens, whatever the kind of draft model."""
    if isinstance(backend, OpensDrafters):
        return backend.drafter(sampler, vocab)
    return ModelDrafter(backend, sampler, vocab)


class ModelDrafter:
    """Drafts with a backend of its own."""

    origin: DraftSource = "draft"

    def __init__(self, backend: Backend, sampler: DraftSampler, vocab: int) -> None:
        self._backend = backend
        self._vocab = vocab  # the target's: heads of one family are padded to different sizes
        self._sample = sampler
        self._session: Session | None = None
        self._held: list[int] = []  # the tokens behind the session's positions
        self._context: Sequence[int] = ()
        self._drafted: list[int] = []

    def reset(self) -> None:
        """See `Drafter.reset`."""
        self._session, self._held = None, []

    def tokens_behind(self, length: int) -> int:
        """See `Drafter.tokens_behind`."""
        return max(1, length - len(self._held))

    def peek_confidence(self, tokens: Sequence[int]) -> float | None:
        """Return None: unknown before the pass."""
        return None

    def sync(self, tokens: Sequence[int]) -> None:
        """See `Drafter.sync`."""
        if self._session is None:
            self._session = self._backend.open()
        self._context, self._drafted = tokens, []
        # What it holds is a prefix of the text but for draft tokens that were rejected, so compare from the end.
        same = min(len(self._held), len(tokens) - 1)
        while same and self._held[same - 1] != tokens[same - 1]:
            same -= 1
        self._session.rollback(same)
        del self._held[same:]

    def propose(self) -> Draft | None:
        """See `Drafter.propose`."""
        session = self._session
        if session is None:
            raise RuntimeError("propose before sync")
        done = len(self._held)
        seen = len(self._context)
        limit = self._backend.context
        if limit is not None and seen + len(self._drafted) > limit:
            return None
        feed = [*self._context[done:], *self._drafted[max(0, done - seen) :]]
        if max(feed) >= self._backend.vocab:
            return None  # a token that only the target knows; nothing after it can be read
        row = session.forward(feed, keep=1)[0, : self._vocab]
        self._held.extend(feed)
        draft = self._sample(row, self._context, self._drafted, OTHER_CHOICES)
        self._drafted.append(draft.token)
        return draft

    def accept(self, count: int) -> None:
        """Do nothing: the next `sync` compares."""
