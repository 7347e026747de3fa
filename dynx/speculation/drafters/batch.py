"""The draft model of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynx.runtime.backends.batch_rows import open_batch
from dynx.runtime.backends.interface import Part
from dynx.runtime.torch_on_use import torch
from dynx.speculation.drafters.draft_sampler import OTHER_CHOICES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.runtime.backends.interface import Backend
    from dynx.speculation.drafters.base import BatchSequence
    from dynx.speculation.drafters.draft import Draft
    from dynx.speculation.drafters.draft_sampler import DraftSampler
    from dynx.speculation.types import DraftSource


class BatchDrafter:
    """Drafts for all sequences of a batch at once with a draft model."""

    def __init__(self, backend: Backend, vocab: int) -> None:
        self._backend, self._vocab = backend, vocab
        self._batch = open_batch(backend)
        self.fed = 0  # tokens that the last pass computed
        self._held: dict[int, tuple[Any, list[int]]] = {}  # by sequence: its session and the tokens that this holds

    def tokens_behind(self, row: BatchSequence, length: int) -> int:
        """Return the tokens to read before the first draft of a text of `length` tokens."""
        return max(1, length - len(self._held.get(id(row), (None, ()))[1]))

    def leave(self, row: BatchSequence) -> None:
        """Forget a sequence."""
        session, _ = self._held.pop(id(row), (None, None))
        if session is not None:
            session.close()

    def mute(self, row: BatchSequence) -> bool:
        """Whether the model can't read this text: a token that only the target knows, or more tokens than its context."""
        limit = self._backend.context
        return max(row.text) >= self._backend.vocab or (limit is not None and len(row.text) >= limit)

    def sync(self, rows: Sequence[BatchSequence]) -> None:
        """Bring each sequence's session to a prefix of its text; reads the texts of new ones."""
        for row in rows:
            if id(row) not in self._held:
                known = list(row.text[:-1])
                if not known or self.mute(row):
                    continue
                session = self._batch.open()
                self._batch.read(session, known)
                self._held[id(row)] = session, known
            session, held = self._held[id(row)]
            # What it holds is a prefix of the text but for draft tokens that were rejected, so compare from the end.
            same = min(len(held), len(row.text) - 1)
            while same and held[same - 1] != row.text[same - 1]:
                same -= 1
            del held[same:]
            session.rollback(same)

    def propose(
        self, rows: Sequence[BatchSequence], drafted: Sequence[Sequence[Draft]], asked: Sequence[bool]
    ) -> list[Draft | None]:
        """Return the next draft of each row that is `asked`, after the `drafted` of this round."""
        limit = self._backend.context
        parts: list[Part] = []
        speaking: list[int] = []
        for r, (row, drafts, wanted) in enumerate(zip(rows, drafted, asked, strict=True)):
            if not wanted or id(row) not in self._held or self.mute(row):
                continue
            session, held = self._held[id(row)]
            text = [*row.text, *(d.token for d in drafts)] if drafts else row.text
            if (limit is not None and len(text) > limit) or (drafts and drafts[-1].token >= self._backend.vocab):
                continue
            feed = list(text[len(held) :])
            parts.append(Part(session, feed, 1))
            held.extend(feed)
            speaking.append(r)
        out: list[Draft | None] = [None] * len(rows)
        self.fed = self._batch.tokens([len(part.tokens) for part in parts])
        if not parts:
            return out
        last = torch.cat([torch.as_tensor(row) for row in self._batch.forward(parts)])[:, : self._vocab].float()
        for r, row in zip(speaking, last, strict=True):
            out[r] = rows[r].sample_draft(row, rows[r].text, [d.token for d in drafted[r]], OTHER_CHOICES)
        return out


class SharedModelDrafter:
    """One sequence's place in a `BatchDrafter`; by itself it drafts in passes of its own."""

    origin: DraftSource = "draft"

    def __init__(self, model: BatchDrafter, sample_draft: DraftSampler) -> None:
        self.model, self.sample_draft = model, sample_draft
        self.text: list[int] = []
        self._drafted: list[Draft] = []

    def reset(self) -> None:
        """See `Drafter.reset`; its place is free again."""
        self.model.leave(self)

    def tokens_behind(self, length: int) -> int:
        """See `Drafter.tokens_behind`."""
        return self.model.tokens_behind(self, length)

    def peek_confidence(self, tokens: Sequence[int]) -> float | None:
        """Return None: unknown before the pass."""
        return None

    def sync(self, tokens: Sequence[int]) -> None:
        """See `Drafter.sync`; the model itself is brought up to date for all of its sequences at once."""
        self.text, self._drafted = list(tokens), []

    def propose(self) -> Draft | None:
        """See `Drafter.propose`."""
        if not self._drafted:
            self.model.sync([self])
        draft = self.model.propose([self], [self._drafted], [True])[0]
        if draft is not None:
            self._drafted.append(draft)
        return draft

    def accept(self, count: int) -> None:
        """Do nothing: the next `sync` compares."""
