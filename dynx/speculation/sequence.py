"""One text of a batch: iterating over it moves all of them, and its times are its shares of what they take together."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dynx.speculation.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dynx.runtime.backends.batch_rows import Rows
    from dynx.speculation.drafters.base import Drafter
    from dynx.speculation.engine import Engine
    from dynx.speculation.policy import Policy
    from dynx.speculation.types import DraftSource, Request, Token


class SequenceRun(Run):
    """One answer of a batch; iterating over it advances the whole batch."""

    def __init__(
        self,
        step: Callable[[], None],
        engine: Engine,
        request: Request,
        policy: Policy,
        drafters: dict[DraftSource, Drafter],
    ) -> None:
        super().__init__(engine, request, policy, drafters)
        self._step = step  # moves the whole batch by a round
        self._ready: deque[Token] = deque()

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self.finish_reason != "interrupted"

    def __iter__(self) -> Iterator[Token]:
        """Yield its tokens as they are verified."""
        while True:
            while self._ready:
                yield self._ready.popleft()
            if self.done:
                return
            self._step()

    def begin(self) -> bool:
        """Start the clock; False if there is nothing to write."""
        if self.request.max_new_tokens < 1:
            self.finish_reason = "length"
            return False
        self._began = self._prefilled = self._clock()
        return True

    @property
    def unread(self) -> int:
        """Tokens that its session must hold before the next round and doesn't: the prompt, and all but the last of the answer."""
        held = 0 if self.session is None else self.session.length
        written = len(self._tokens) > len(self.request.prompt)
        return max(0, len(self._tokens) - written - held)

    def take_prompt(self, rows: Rows, seconds: float) -> None:
        """Record that some of the text was read in a pass, in its share of it; `rows` has the logits or the pick after it."""
        self._prefilled += seconds
        self.session.publish(self._tokens[: min(self.session.length, len(self.request.prompt))])
        if not self.tokens and self.session.length == len(self._tokens):
            kept = self._verifier.keep([], rows, self._tokens)
            self._first = self._clock()
            self._ready.extend(self._emit(kept, None))

    def stop_if_full(self) -> bool:
        """End the answer if the context leaves no room for another pass; returns whether it did."""
        if self.room >= 0:
            return False
        self.finish_reason = "context"
        self._ready.extend(self._flush())
        return True

    def append(self, kept: Sequence[int], origin: DraftSource | None) -> None:
        """Append the tokens of a round."""
        self._ready.extend(self._emit(kept, origin))

    def leave(self) -> None:
        """Give its place up; what it has written stays."""
        for drafter in self.drafters.values():
            drafter.reset()
        self.session.close()
        self.session = None
