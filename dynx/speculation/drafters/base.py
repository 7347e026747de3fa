"""What the engine asks of anything that guesses tokens.

One round, seen from the engine:

    drafter.sync(tokens)              # the text so far, prompt included
    while policy.should_draft_more(signals):
        draft = drafter.propose()     # None: nothing (more) to say
    ...the target judges a prefix...
    drafter.accept(count)              # how many of the proposed tokens stayed

A drafter knows nothing of costs or policy; it only says, with each token, how sure it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, overload

from dynx.speculation.policy import DrafterCandidate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dynx.speculation.drafters.draft_sampler import DraftSampler
    from dynx.speculation.types import DraftSource


@dataclass(frozen=True)
class Draft:
    """A guessed token.

    `signal` rises with the drafter's confidence. `row` (V,) is the distribution it was drawn from, kept only where the
    acceptance rule needs it; None stands for certainty.
    """

    token: int
    signal: float
    row: Tensor | None = None


class Drafter(Protocol):
    """Guesses the next tokens, one at a time."""

    origin: DraftSource

    def sync(self, tokens: Sequence[int]) -> None:
        """Start a round: `tokens` is everything so far; what follows is to be guessed."""

    def propose(self) -> Draft | None:
        """The next guess after those of this round, or None."""

    def accept(self, count: int) -> None:
        """The round is over: the first `kept` guesses stayed."""

    def tokens_behind(self, length: int) -> int:
        """Tokens to read before the first guess when the text has `length` tokens: 1 is up to date."""

    def peek_confidence(self, tokens: Sequence[int]) -> float | None:
        """The signal of the first guess if it is known without making it; None otherwise."""

    def reset(self) -> None:
        """Forget the text: another one begins."""


class DrafterCandidates(Sequence[DrafterCandidate]):
    """The drafters' positions before a round, found out when first asked for: a policy that can't afford a draft doesn't ask."""

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
        """A prospect, or some."""
        return self._found[index]

    def __len__(self) -> int:
        """How many drafters there are."""
        return len(self._drafters)


class BatchSequence(Protocol):
    """What a drafter of a whole batch reads of one of its sequences."""

    sample_draft: DraftSampler
    simple: bool
    """Whether its next token is the likeliest one, whatever came before."""

    @property
    def text(self) -> list[int]:
        """Token ids of the prompt and the answer so far."""
