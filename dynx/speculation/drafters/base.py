"""The interface between the engine and its drafters.

One round, seen from the engine:

    drafter.sync(tokens)              # the text so far, prompt included
    while policy.should_draft_more(signals):
        draft = drafter.propose()     # None: no (further) draft token
    ...the target verifies a prefix...
    drafter.accept(count)              # how many of the draft tokens were accepted

A drafter is independent of costs and policy; each draft token carries its confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, overload, runtime_checkable

from dynx.speculation.types import DrafterCandidate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynx.runtime.backends.interface import Session
    from dynx.speculation.drafters.draft import Draft
    from dynx.speculation.drafters.draft_sampler import DraftSampler
    from dynx.speculation.types import DraftSource


class Drafter(Protocol):
    """Proposes draft tokens, one at a time."""

    origin: DraftSource

    def sync(self, tokens: Sequence[int]) -> None:
        """Start a round: `tokens` is the text so far, and drafts continue it."""

    def propose(self) -> Draft | None:
        """Return the next draft token after those of this round, or None."""

    def accept(self, count: int) -> None:
        """End the round: the first `count` draft tokens were accepted."""

    def tokens_behind(self, length: int) -> int:
        """Return the tokens to read before the first draft of a text of `length` tokens; 1 is up to date."""

    def peek_confidence(self, tokens: Sequence[int]) -> float | None:
        """Return the first draft's signal if it is known without drafting; None otherwise."""

    def reset(self) -> None:
        """Forget the text, as another one begins."""


class SessionDrafter:
    """A drafter that works on the target's session, which the engine sets for each text."""

    session: Session | None = None


@runtime_checkable
class OpensDrafters(Protocol):
    """A draft model that has drafters of its own kind; each is for one text at a time."""

    def drafter(self, sampler: DraftSampler, vocab: int) -> Drafter:
        """Open a drafter for one text of a target with `vocab` tokens."""


class DrafterCandidates(Sequence[DrafterCandidate]):
    """The candidate drafters of a round, computed on first access: a policy that can't afford a draft makes none."""

    def __init__(self, drafters: Mapping[DraftSource, Drafter], tokens: Sequence[int]) -> None:
        self._drafters, self._tokens = drafters, tokens

    @cached_property
    def _found(self) -> list[DrafterCandidate]:
        tokens = self._tokens
        return [
            DrafterCandidate(o, d.tokens_behind(len(tokens)), d.peek_confidence(tokens))
            for o, d in self._drafters.items()
        ]

    @overload
    def __getitem__(self, index: int) -> DrafterCandidate: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[DrafterCandidate]: ...
    def __getitem__(self, index: int | slice) -> DrafterCandidate | Sequence[DrafterCandidate]:
        """Return one candidate, or a slice of them."""
        return self._found[index]

    def __len__(self) -> int:
        """Return the number of drafters."""
        return len(self._drafters)


class BatchSequence(Protocol):
    """One sequence of a batch as its drafter sees it."""

    sample_draft: DraftSampler
    text: list[int]
    """Token ids of the prompt and the answer so far."""
