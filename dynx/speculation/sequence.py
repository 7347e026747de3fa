"""One answer of a batch: its text, its acceptance rule, and its share of the time that it spends in company."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dynx.speculation.drafters.draft_sampler import DraftSampler
from dynx.speculation.drafters.prompt_lookup import LookupDrafter
from dynx.speculation.engine import Run
from dynx.speculation.policy import Plain, Round
from dynx.speculation.sampling import LogitsProcessors
from dynx.speculation.verifier import noise_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dynx.runtime.backends.batch_rows import Rows
    from dynx.speculation.drafters.base import Draft
    from dynx.speculation.engine import Engine
    from dynx.speculation.types import Receipt, Request, Token


class SequenceRun(Run):
    """One answer of a batch; iterating over it advances the whole batch."""

    def __init__(self, step: Callable[[], None], engine: Engine, request: Request) -> None:
        super().__init__(engine, request, Plain(), {})
        self._step = step  # moves the whole batch by a round
        self._ready: deque[Token] = deque()
        self.lookup = (
            LookupDrafter(engine.drafters.library, request.sampling.own.new_ngrams) if engine.drafters.lookup else None
        )
        generator = torch.Generator().manual_seed(engine.entropy())
        vocab = engine.target.vocab
        processors = LogitsProcessors.for_request(request, vocab)
        self.sample_draft = DraftSampler(processors, noise_for(request, vocab), generator)
        self.simple = request.sampling.greedy and processors.is_identity
        self.session: Any = None  # of the target, while the sequence is in the batch
        self.company: list[int] = []  # rows of each pass that this one was in

    @property
    def text(self) -> list[int]:
        """Prompt and answer so far."""
        return self._tokens

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self.finish_reason != "interrupted"

    @property
    def room(self) -> int:
        """Drafts that could still be used; negative when not even a plain pass fits."""
        return self._room()

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

    def take_first(self, kept: Sequence[int], now: float) -> None:
        """Append the token after the prompt."""
        self._first = now
        self._ready.extend(self._emit(kept, None))

    def spend_on_prompt(self, seconds: float) -> None:
        """Record this sequence's share of a pass that read some of its text."""
        self._prefilled += seconds

    def stop_if_full(self) -> bool:
        """End the answer if the context leaves no room for another pass; returns whether it did."""
        if self.room >= 0:
            return False
        self.finish_reason = "context"
        self._ready.extend(self._flush())
        return True

    def verify(self, drafts: Sequence[Draft], rows: Rows) -> list[int]:
        """Return the tokens to append, by the target's `rows` (len(drafts) + 1) of logits or picks."""
        return self._verifier.keep(drafts, rows, self._tokens)

    def append(self, kept: Sequence[int], done: Round, rows: int) -> None:
        """Append the tokens of a round; `done` has this sequence's share of its time."""
        self._forwards += 1
        self.company.append(rows)
        self._tally(done)
        self.rounds.append(done)
        self._plain_seconds += done.tokens * self._engine.acceptance_profile.costs.target(1, done.context)
        self._ready.extend(self._emit(kept, done.origin))

    def receipt(self) -> Receipt:
        """Return the receipt, with this answer's share of each pass's time and the mean number of sequences in `sequences`."""
        mean = sum(self.company) / len(self.company) if self.company else 1.0
        return replace(super().receipt(), sequences=mean)
