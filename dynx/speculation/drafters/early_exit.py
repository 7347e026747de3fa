"""Early-exit drafting (self-speculation): the target's first layers draft through its own norm and head.

It shares the target's session: the draft tokens' keys and values in the first layers are already where verification needs them,
and `Session.complete` runs only the layers that are left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.speculation.drafters.base import SessionDrafter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.speculation.drafters.draft import Draft
    from dynx.speculation.drafters.draft_sampler import DraftSampler
    from dynx.speculation.types import DraftSource


class EarlyExitDrafter(SessionDrafter):
    """Drafts with the first `layers` layers of the target whose session it shares."""

    origin: DraftSource = "self"

    def __init__(self, layers: int, sampler: DraftSampler) -> None:
        self.layers = layers
        self._sample = sampler
        self._context: Sequence[int] = ()
        self._drafted: list[int] = []

    def reset(self) -> None:
        """See `Drafter.reset`."""
        self.session = None

    def tokens_behind(self, length: int) -> int:
        """Return 1: the shared session is always up to date."""
        return 1

    def peek_confidence(self, tokens: Sequence[int]) -> float | None:
        """Return None: unknown before the pass."""
        return None

    def sync(self, tokens: Sequence[int]) -> None:
        """See `Drafter.sync`."""
        self._context, self._drafted = tokens, []

    def propose(self) -> Draft | None:
        """See `Drafter.propose`."""
        if self.session is None:
            raise RuntimeError("propose before the engine gave a session")
        last = self._drafted[-1] if self._drafted else self._context[-1]
        rows = self.session.forward_early([last], self.layers)
        if rows is None:
            raise RuntimeError("an early pass with a head gave no logits")
        draft = self._sample(rows[0], self._context, self._drafted)
        self._drafted.append(draft.token)
        return draft

    def accept(self, count: int) -> None:
        """Do nothing: the engine rolls the shared session back."""
