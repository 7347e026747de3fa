"""A key-value cache that outlives its answer, so that the next turn of a conversation reads only what is new."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.runtime.backends.interface import Session


@dataclass(frozen=True)
class KeptCache:
    """A session of an earlier answer, and the tokens behind its positions."""

    session: Session
    tokens: Sequence[int]

    def resume(self, prompt: Sequence[int]) -> int:
        """Roll back to what the session shares with `prompt`, and return its length: at most all but the last token.

        The last token is read again for the logits after it. Needs a target that can roll back.
        """
        most = min(len(self.tokens), len(prompt) - 1)
        shared = next((i for i in range(most) if self.tokens[i] != prompt[i]), most)
        shared = self.session.reachable(shared)
        self.session.rollback(shared)
        return shared
