"""The decode loop over a batch of sequences; each answer is the one that decoding it alone gives.

A round drafts, verifies and rolls back like `engine`'s, for all rows together: every row has its own draft tokens, its own
acceptance rule and its own length. The next answer takes a free place at once. Time is shared, so the number of draft tokens
is decided together:

    batch = Batch(engine, sequences=8, more=next_row_or_none)
    row = batch.sequence(request)
    batch.admit([row])
    for token in row:        # moves the whole batch as far as this row's next token
        ...

With B rows a pass of n tokens each carries B·n; a column of further draft tokens is made while the rows together expect more
tokens of it than the batch's own rate λ times what it costs. Times are seconds. Letters: B rows, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import torch

from dynx.errors import InvalidInput
from dynx.runtime.backends.batch import BatchSession, can_batch
from dynx.runtime.costs import CostCurve, Drift
from dynx.speculation.acceptance import verify_greedy
from dynx.speculation.drafters.batch import BatchDrafter
from dynx.speculation.drafters.draft_sampler import DraftSampler
from dynx.speculation.drafters.prompt_lookup import LookupDrafter
from dynx.speculation.engine import Run
from dynx.speculation.policy import (
    AVERAGING_ROUNDS,
    LOOKAHEAD_DRAFT_TOKENS,
    MAX_DRAFT_TOKENS,
    MAX_REGRET_BUDGET_PASSES,
    REGRET_BUDGET_SHARE,
    Plain,
    Round,
)
from dynx.speculation.round_costs import UNMEASURED_DRAFT_COST_SHARE
from dynx.speculation.sampling import LogitsProcessors
from dynx.speculation.verifier import noise_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from dynx.runtime.backends.eager import EagerBackend
    from dynx.speculation.acceptance_model import AcceptanceModel
    from dynx.speculation.drafters.base import Draft
    from dynx.speculation.engine import Engine
    from dynx.speculation.types import DraftSource, Receipt, Request, Token

INITIAL_REGRET_BUDGET_PASSES = 2.0
"""Plain passes that drafting may lose at the start of a batch, before anything is measured in it."""


@dataclass
class BatchCosts:
    """Seconds of passes by the tokens they carry, all rows counted; the target's and the draft model's, one drift for both."""

    drift: Drift = field(default_factory=Drift)
    target: CostCurve = field(init=False)
    draft: CostCurve = field(init=False)

    def __post_init__(self) -> None:
        self.target, self.draft = CostCurve(self.drift), CostCurve(self.drift)

    def drafting(self, count: int, rows: int, tokens_behind: int) -> float:
        """Return the seconds for `count` columns of drafts, the first after reading `tokens_behind` tokens."""
        if not self.draft.known:
            return count * UNMEASURED_DRAFT_COST_SHARE * self.target(rows)
        return self.draft(rows * tokens_behind) + (count - 1) * self.draft(rows) if count else 0.0


class SequenceRun(Run):
    """One answer of a batch; iterating over it advances the whole batch."""

    def __init__(self, batch: Batch, engine: Engine, request: Request) -> None:
        super().__init__(engine, request, Plain(), {})
        self._batch = batch
        self._ready: deque[Token] = deque()
        self.lookup = (
            LookupDrafter(engine.drafters.library, request.sampling.own.new_ngrams) if engine.drafters.lookup else None
        )
        generator = torch.Generator().manual_seed(engine.entropy())
        vocab = engine.target.vocab
        processors = LogitsProcessors.for_request(request, vocab)
        self.sample_draft = DraftSampler(processors, noise_for(request, vocab), generator)
        self.simple = request.sampling.greedy and processors.is_identity
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
            self._batch.step()

    def begin(self) -> BatchSession | None:
        """Prefill the prompt and choose the first token; None if the answer ends there."""
        if self.request.max_new_tokens < 1:
            self.finish_reason = "length"
            return None
        self._began = self._clock()
        session = BatchSession(cast("EagerBackend", self._engine.target))
        rows = session.prefill(self._tokens)[None]
        kept = self._verifier.keep([], rows, self._tokens)
        self._prefilled = self._first = self._clock()
        self._ready.extend(self._emit(kept, None))
        return None if self.done or self.stop_if_full() else session

    def stop_if_full(self) -> bool:
        """End the answer if the context leaves no room for another pass; returns whether it did."""
        if self.room >= 0:
            return False
        self.finish_reason = "context"
        self._ready.extend(self._flush())
        return True

    def verify(self, drafts: Sequence[Draft], rows: Tensor, picks: Sequence[int] | None) -> list[int]:
        """Return the tokens to append, by the target's logits `rows` (len(drafts) + 1, V) or their argmax `picks` if given."""
        if picks is not None:
            return verify_greedy([d.token for d in drafts], picks.__getitem__)
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


@dataclass
class _Pace:
    """Tracks λ and the regret budget of a whole batch, as `policy` does for one sequence."""

    costs: BatchCosts
    tokens: float = 0.0
    seconds: float = 0.0
    regret_budget: float = INITIAL_REGRET_BUDGET_PASSES  # plain passes of the batch
    between: dict[bool, float] = field(
        default_factory=dict
    )  # by whether there were drafts: a row's seconds outside passes

    def price(self, rows: int) -> float:
        """Return λ in tokens per second."""
        plain = self.plain(rows)
        achieved = self.tokens / self.seconds if self.seconds > 0 else 0.0
        return max(achieved, rows / plain if plain > 0 else 0.0)

    def plain(self, rows: int) -> float:
        """Return the seconds of a round without drafts."""
        return self.costs.target(rows) + rows * self.between.get(False, 0.0)

    def overhead(self, rows: int) -> float:
        """Return the extra seconds that a round with drafts spends outside its passes."""
        return rows * max(0.0, self.between.get(True, 0.0) - self.between.get(False, 0.0))

    def book(self, rows: int, tokens: int, seconds: float, passes: float, *, speculated: bool) -> None:
        """Record a finished round that spent `passes` of its `seconds` in passes and on their rows."""
        spare = max(0.0, seconds - passes) / rows
        self.between[speculated] = min(self.between.get(speculated, spare) * 0.9 + spare * 0.1, 2 * spare)
        plain = self.plain(rows)
        spent = min(seconds / plain, MAX_REGRET_BUDGET_PASSES) if plain > 0 else 1.0
        change = REGRET_BUDGET_SHARE * spent + (tokens / rows - spent if speculated else 0.0)
        self.regret_budget = min(self.regret_budget + change, MAX_REGRET_BUDGET_PASSES)
        keep = 1 - 1 / AVERAGING_ROUNDS
        self.tokens, self.seconds = self.tokens * keep + tokens, self.seconds * keep + seconds


class Batch:
    """Up to `rows` answers in progress on an engine's target; `more` gives the next one, or None while there is none."""

    def __init__(
        self,
        engine: Engine,
        sequences: int,
        *,
        more: Callable[[], SequenceRun | None] = lambda: None,
        costs: BatchCosts | None = None,
        speculate: bool = True,
    ) -> None:
        able = can_batch(engine.target)
        if not able.value:
            raise InvalidInput(f"no batches: {able.reason}")
        self._engine, self._most, self._more = engine, sequences, more
        self.costs = costs or BatchCosts()
        self._pace = _Pace(self.costs)
        self._drafting = 0.0  # seconds of this round in the draft model's passes
        self._speculate = speculate
        self._target = BatchSession(cast("EagerBackend", engine.target))
        small = engine.drafters.model if speculate else None
        self._drafter = (
            BatchDrafter(cast("EagerBackend", small), engine.target.vocab)
            if small is not None and can_batch(small).value
            else None
        )
        self._sequences: list[SequenceRun] = []

    def sequence(self, request: Request) -> SequenceRun:
        """Create an answer that is not yet in the batch. Raises InvalidInput as `Engine.start` does."""
        self._engine.check(request)
        return SequenceRun(self, self._engine, request)

    @property
    def size(self) -> int:
        """Answers in progress."""
        return len(self._sequences)

    def admit(self, sequences: Sequence[SequenceRun]) -> None:
        """Prefill the prompts of `sequences` and add them to the batch."""
        begun = [(row, session) for row in sequences if (session := row.begin()) is not None]
        if begun:
            self._target.admit([session for _, session in begun])
            self._sequences.extend(row for row, _ in begun)

    def step(self) -> None:
        """Fill free places and run one round."""
        self._refill()
        if self._sequences:
            self._round()

    def _refill(self) -> None:
        for at in reversed(range(len(self._sequences))):
            if self._sequences[at].done or self._sequences[at].stop_if_full():
                session, row = None, None
                while session is None and (row := self._more()) is not None:
                    session = row.begin()
                if session is None or row is None:
                    del self._sequences[at]
                    self._target.remove(at)
                    if self._drafter is not None:
                        self._drafter.removed(at)
                else:
                    self._sequences[at] = row
                    self._target.replace(at, session)
                    if self._drafter is not None:
                        self._drafter.replaced(at)
        fresh: list[SequenceRun] = []
        while len(self._sequences) + len(fresh) < self._most and (row := self._more()) is not None:
            fresh.append(row)
        self.admit(fresh)

    def _round(self) -> None:
        rows, clock, count = self._sequences, self._engine.clock, len(self._sequences)
        start = clock()
        proposed, origins, tokens_behind, most = self._drafts()
        drafted = clock()
        drafts = [own[:most] for own in proposed]
        width = max(map(len, drafts))
        logits = self._target.forward(
            [[row.text[-1], *(d.token for d in own)] for row, own in zip(rows, drafts, strict=True)]
        )
        picks = logits.float().argmax(-1).tolist() if all(row.simple for row in rows) else None
        kept = [
            row.verify(own, logits[r, : len(own) + 1], picks[r] if picks is not None else None)
            for r, (row, own) in enumerate(zip(rows, drafts, strict=True))
        ]
        verified = clock()
        self._target.rollback([len(row.text) - 1 + len(new) for row, new in zip(rows, kept, strict=True)])
        self.costs.target.observe(count * (width + 1), 0, verified - drafted)
        for row, made, own, origin, new in zip(rows, proposed, drafts, origins, kept, strict=True):
            if made and origin is not None:
                self._learn(self._acceptance_model(row, origin), made, len(own), len(new) - 1)
            done = Round(
                len(row.text) - 1,
                origin if made else None,
                tokens_behind,
                [d.signal for d in made],
                len(own),
                len(new) - 1,
                (drafted - start) / count if made else 0.0,
                (verified - drafted) / count,
                (clock() - start) / count,
            )
            row.append(new, done, count)
        tokens = sum(map(len, kept))
        passes = self._drafting + verified - drafted
        self._pace.book(count, tokens, clock() - start, passes, speculated=any(proposed))

    @staticmethod
    def _learn(acceptance_model: AcceptanceModel, made: Sequence[Draft], submitted: int, kept: int) -> None:
        for i in range(min(kept + 1, submitted)):
            acceptance_model.observe(made[i].signal, i + 1, 1.0 if i < kept else 0.0)
        if kept == submitted < len(made):
            acceptance_model.expect(acceptance_model(made[kept].signal, kept + 1))

    def _acceptance_model(self, row: SequenceRun, origin: DraftSource) -> AcceptanceModel:
        return self._engine.acceptance_profile.model_for(origin, greedy=row.request.sampling.greedy)

    def _drafts(self) -> tuple[list[list[Draft]], list[DraftSource | None], int, int]:
        """Return each row's drafts, their sources, the tokens that the draft model was behind, and how many drafts to verify."""
        rows, count = self._sequences, len(self._sequences)
        self._drafting = 0.0
        nothing: tuple[list[list[Draft]], list[DraftSource | None], int, int] = (
            [[] for _ in rows],
            [None] * count,
            1,
            0,
        )
        if not self._speculate or not self.costs.target.known:
            return nothing
        rooms = [max(0, row.room) for row in rows]
        wide = self._target.room
        most = min(max(rooms), MAX_DRAFT_TOKENS, MAX_DRAFT_TOKENS if wide is None else wide - 1)
        most = min(most, 2 * max(1, self.costs.target.widest // count))  # nothing much wider than was tried
        origins, ahead = self._sources()
        modelled = "draft" in origins
        tokens_behind = self._drafter.tokens_behind(rows) if modelled and self._drafter is not None else 1
        price = self._pace.price(count)
        if most < 1 or not self._worthwhile(ahead, rooms, most, price, tokens_behind if modelled else 0):
            return nothing
        drafts, survival = nothing[0], [1.0] * count
        gains: list[float] = []  # by column: drafts expected to be accepted
        if modelled and self._drafter is not None:
            self._drafter.sync(rows)
        for row, origin in zip(rows, origins, strict=True):
            if origin == "lookup" and row.lookup is not None:
                row.lookup.sync(row.text)
        clock, width = self._engine.clock, 0
        for k in range(1, most + 1):
            began = clock()
            asked = [len(own) == k - 1 and k <= room for own, room in zip(drafts, rooms, strict=True)]
            found: list[Draft | None] = [None] * count
            if modelled and self._drafter is not None:
                found = self._drafter.propose(
                    rows, drafts, [a and o == "draft" for a, o in zip(asked, origins, strict=True)]
                )
                spent = clock() - began
                self.costs.draft.observe(count * (tokens_behind if k == 1 else 1), 0, spent)
                self._drafting += spent
            for r, (row, origin) in enumerate(zip(rows, origins, strict=True)):
                if asked[r] and origin == "lookup" and row.lookup is not None:
                    found[r] = row.lookup.propose()
                draft = found[r]
                if draft is None or origin is None:
                    survival[r] = 0.0
                    continue
                drafts[r].append(draft)
                survival[r] *= self._acceptance_model(row, origin)(draft.signal, k)
            if not any(survival):
                break
            width = k
            gains.append(sum(survival))
            if not self._should_draft_more(survival, ahead, rooms, width, most, price, modelled):
                break
        prefixes = all(r.request.sampling.greedy or r.request.sampling.seed is not None for r in rows)
        return drafts, origins, tokens_behind, self._verify_length(gains, price) if prefixes else len(gains)

    def _verify_length(self, gains: Sequence[float], price: float) -> int:
        """Return how many columns of drafts are worth verifying."""
        count, best, worth, total = len(self._sequences), 0, -price * self.costs.target(len(self._sequences)), 0.0
        for n, gain in enumerate(gains, start=1):
            total += gain
            if total - price * self.costs.target(count * (n + 1)) > worth:
                best, worth = n, total - price * self.costs.target(count * (n + 1))
        return best

    def _sources(self) -> tuple[list[DraftSource | None], list[float]]:
        """Return each row's draft source and the share of its drafts expected to be accepted."""
        origins: list[DraftSource | None] = []
        ahead: list[float] = []
        for row in self._sequences:
            origin: DraftSource | None = None
            chance = 0.0
            if self._drafter is not None and not self._drafter.mute(row):
                origin, chance = "draft", self._acceptance_model(row, "draft").typical
            signal = row.lookup.peek_confidence(row.text) if row.lookup is not None else None
            if signal is not None and (found := self._acceptance_model(row, "lookup")(signal, 1)) > chance:
                origin, chance = "lookup", found
            origins.append(origin)
            ahead.append(chance)
        return origins, ahead

    def _worthwhile(
        self, ahead: Sequence[float], rooms: Sequence[int], most: int, price: float, tokens_behind: int
    ) -> bool:
        """Whether some number of columns is worth more than a plain pass and the regret budget covers the possible loss."""
        count, costs = len(ahead), self.costs
        plain, survival, gain = costs.target(count), list(ahead), 0.0
        for k in range(1, most + 1):
            gain += sum(s for s, room in zip(survival, rooms, strict=True) if k <= room)
            survival = [s * a for s, a in zip(survival, ahead, strict=True)]
            extra = self._pace.overhead(count) + costs.target(count * (k + 1)) - plain
            extra += costs.drafting(k, count, tokens_behind) if tokens_behind else 0.0
            if extra > (self._pace.regret_budget + gain / count) * plain:
                return False
            if gain > price * extra:
                return True
        return False

    def _should_draft_more(
        self,
        survival: Sequence[float],
        ahead: Sequence[float],
        rooms: Sequence[int],
        width: int,
        most: int,
        price: float,
        modelled: bool,
    ) -> bool:
        """Whether some number of further columns is expected to yield more than it costs."""
        count, costs = len(ahead), self.costs
        here, left, gain = costs.target(count * (width + 1)), list(survival), 0.0
        for j in range(1, min(most - width, LOOKAHEAD_DRAFT_TOKENS) + 1):
            left = [s * a for s, a in zip(left, ahead, strict=True)]
            gain += sum(s for s, room in zip(left, rooms, strict=True) if width + j <= room)
            extra = costs.target(count * (width + j + 1)) - here + (costs.drafting(j, count, 1) if modelled else 0.0)
            if gain > price * extra:
                return True
        return False
