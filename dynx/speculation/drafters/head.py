"""Drafting with a head that reads the target's hidden states: multi-token prediction, EAGLE, EAGLE-3, Medusa.

With each token that the target has read come states from which it gave the next one. A chained head takes such pairs, a token and
the states before it, into a cache of its own; its own states stand in for the target's behind the first draft. What it took of
drafts is dropped at the end of the round, and read again from the target's states where they were accepted.

Letters: T tokens, F features of a token, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.interface import Backend, Session
from dynx.runtime.decision import Decision
from dynx.runtime.heads.networks import ChainHead, ParallelHeads
from dynx.speculation.drafters.base import SessionDrafter
from dynx.speculation.drafters.draft_sampler import OTHER_CHOICES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.runtime.heads.networks import Head
    from dynx.speculation.drafters.base import Drafter
    from dynx.speculation.drafters.draft import Draft
    from dynx.speculation.drafters.draft_sampler import DraftSampler
    from dynx.speculation.types import DraftSource


class HeadBackend(Backend):
    """A head together with the target whose states it reads; `target` keeps them from now on."""

    name = "torch-eager"

    def __init__(self, head: Head, target: Any, layers: Sequence[int], how: str) -> None:
        """Let `target` keep what enters the blocks numbered `layers`; raises UnsupportedModelError where it can't."""
        self.head, self.target, self.how = head, target, how
        target.record(layers)
        self.model = head
        self.precision, self.vocab, self.context = target.precision, target.vocab, target.context
        self.layers = 1
        weight: Any = head.embeddings.weight
        self.features = len(layers) * int(weight.shape[-1])

    @property
    def can_rollback(self) -> Decision[bool]:
        """See `Backend.can_rollback`."""
        return Decision(True, "a head's cache is cut at any length")

    @property
    def can_exit(self) -> Decision[bool]:
        """See `Backend.can_exit`."""
        return Decision(False, "a head has one layer")

    @property
    def can_batch(self) -> Decision[bool]:
        """See `Backend.can_batch`."""
        return Decision(False, "a head drafts for one text at a time")

    def open(self) -> HeadSession:
        """Start an empty sequence for measuring passes, with made-up states."""
        return HeadSession(self)

    def drafter(self, sampler: DraftSampler, vocab: int) -> Drafter:
        """Open a drafter for one text of the target."""
        if isinstance(self.head, ChainHead):
            return ChainDrafter(self.head, sampler)
        assert isinstance(self.head, ParallelHeads)  # noqa: S101 - there are no others
        return ParallelDrafter(self.head, sampler)


class HeadSession(Session):
    """Passes of a head by itself, as many tokens long as asked: what a draft costs doesn't depend on the states it is made of."""

    pending = 0
    length = 0

    def __init__(self, backend: HeadBackend) -> None:
        self._backend = backend
        self._cache = backend.head.open() if isinstance(backend.head, ChainHead) else None

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """See `Session.forward`."""
        head, count = self._backend.head, len(tokens)
        weight: Any = head.embeddings.weight
        features = torch.ones(count, self._backend.features, dtype=weight.dtype, device=weight.device)
        self.length += count
        if isinstance(head, ChainHead):
            assert self._cache is not None  # noqa: S101 - opened above
            self._cache.position = self.length - count
            states = head(tokens, head.fuse(features), self._cache)
            return head.logits(states if keep is None else states[-keep:])
        assert isinstance(head, ParallelHeads)  # noqa: S101
        return head.logits(features if keep is None else features[-keep:], 0)

    def rollback(self, length: int) -> None:
        """See `Session.rollback`."""
        self.length = length

    def forward_early(self, tokens: Sequence[int], layers: int, *, logits: bool = True) -> Tensor | None:
        """Refuse."""
        raise UnsupportedModelError(self._backend.can_exit.reason)

    def complete(self, count: int | None = None) -> Tensor:
        """Refuse."""
        raise UnsupportedModelError(self._backend.can_exit.reason)


class _HeadDrafter(SessionDrafter):
    """What drafters with heads have in common."""

    origin: DraftSource = "draft"

    def __init__(self, sampler: DraftSampler) -> None:
        self._sample = sampler
        self._context: Sequence[int] = ()
        self._drafted: list[int] = []

    def reset(self) -> None:
        """See `Drafter.reset`."""
        self.session = None

    def peek_confidence(self, tokens: Sequence[int]) -> float | None:
        """Return None: unknown before the pass."""
        return None

    def sync(self, tokens: Sequence[int]) -> None:
        """See `Drafter.sync`."""
        self._context, self._drafted = tokens, []

    def accept(self, count: int) -> None:
        """Do nothing: the next `sync` drops the drafts."""

    def _draft(self, row: Tensor) -> Draft:
        draft = self._sample(row, self._context, self._drafted, OTHER_CHOICES)
        self._drafted.append(draft.token)
        return draft


class ChainDrafter(_HeadDrafter):
    """Drafts token after token."""

    def __init__(self, head: ChainHead, sampler: DraftSampler) -> None:
        super().__init__(sampler)
        self._head = head
        self._forget()

    def _forget(self) -> None:
        self._cache = self._head.open()
        self._read = 0  # pairs of the text that are in the cache, or were passed over since their states are gone
        self._held = 0  # pairs in the cache
        self._state: Tensor | None = None  # (1, D), after the last draft

    def reset(self) -> None:
        """See `Drafter.reset`."""
        super().reset()
        self._forget()

    def tokens_behind(self, length: int) -> int:
        """See `Drafter.tokens_behind`."""
        return max(1, length - 1 - self._read)

    def sync(self, tokens: Sequence[int]) -> None:
        """See `Drafter.sync`."""
        super().sync(tokens)
        self._cache.position, self._state = self._held, None

    @torch.inference_mode()
    def propose(self) -> Draft | None:
        """See `Drafter.propose`. None where the target's states of the text's end aren't known."""
        head = self._head
        known = self._state
        states = self._read_on() if known is None else head(self._drafted[-1:], known, self._cache)
        if states is None:
            return None
        self._state = states[-1:]
        return self._draft(head.logits(self._state)[0])

    def _read_on(self) -> Tensor | None:
        """Take the pairs that are new since the last round; returns the head's states (T, D)."""
        found = None if self.session is None else self.session.hidden_states(self._read)
        if found is None:
            return None
        first, features = found
        tokens = self._context[first + 1 :]
        if len(tokens) != len(features):
            return None
        if first > self._read:  # states between are gone, so the cache begins anew
            self._forget()
        states: Tensor = self._head(tokens, self._head.fuse(features), self._cache)
        self._held += len(tokens)
        self._read = first + len(tokens)
        return states


class ParallelDrafter(_HeadDrafter):
    """Drafts with one head for each token to come, all of which read the states of the last token that the target has read."""

    def __init__(self, head: ParallelHeads, sampler: DraftSampler) -> None:
        super().__init__(sampler)
        self._head = head

    def tokens_behind(self, length: int) -> int:
        """Return 1: there is nothing to catch up with."""
        return 1

    @torch.inference_mode()
    def propose(self) -> Draft | None:
        """See `Drafter.propose`. None behind the last head, or where the target's states aren't known."""
        number, last = len(self._drafted), len(self._context) - 2
        if number >= len(self._head.heads) or self.session is None or last < 0:
            return None
        found = self.session.hidden_states(last)
        if found is None or found[0] != last:
            return None
        return self._draft(self._head.logits(found[1][-1:], number)[0])
