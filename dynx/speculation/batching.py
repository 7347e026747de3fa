"""Many answers at once: the decode loop over rows of a batch, each written as if it were alone.

A round drafts, verifies and rolls back like `engine`'s, for all rows together: every row submits its own guesses, keeps what its
own acceptance rule keeps, and goes on at its own length. A place that becomes free is taken by the next answer at once. What is
shared is time, so what is decided together is how far to guess:

    batch = Batch(engine, rows=8, more=next_row_or_none)
    row = batch.row(request)
    batch.admit([row])
    for token in row:        # moves the whole batch as far as this row's next token
        ...

With B rows a pass of n tokens each carries B·n; a column of further guesses is made while the rows together expect more
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
from dynx.speculation.acceptance import keep_picked
from dynx.speculation.drafters.batch import BatchDrafter
from dynx.speculation.drafters.draft_sampler import Chooser
from dynx.speculation.drafters.prompt_lookup import LookupDrafter
from dynx.speculation.engine import Run, noise_of
from dynx.speculation.policy import DEPOSIT, HORIZON, LONGEST_DRAFT, PATIENCE, REGRET, UNMEASURED, Plain, Round
from dynx.speculation.sampling import Warp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from dynx.runtime.backends.eager import EagerBackend
    from dynx.speculation.acceptance_model import Reliability
    from dynx.speculation.drafters.base import Draft
    from dynx.speculation.engine import Engine
    from dynx.speculation.types import Origin, Receipt, Request, Token

GRANT = 2.0
"""Passes that may be lost by guessing before anything is known of it in this batch."""


@dataclass
class BatchCosts:
    """Seconds of passes by the tokens they carry, all rows counted; the target's and the draft model's, one drift for both."""

    drift: Drift = field(default_factory=Drift)
    target: CostCurve = field(init=False)
    draft: CostCurve = field(init=False)

    def __post_init__(self) -> None:
        self.target, self.draft = CostCurve(self.drift), CostCurve(self.drift)

    def drafting(self, count: int, rows: int, lag: int) -> float:
        """Seconds for `count` columns of drafts, the first after reading `lag` tokens."""
        if not self.draft.known:
            return count * UNMEASURED * self.target(rows)
        return self.draft(rows * lag) + (count - 1) * self.draft(rows) if count else 0.0


class Row(Run):
    """One answer of a batch; iterating it moves the batch."""

    def __init__(self, batch: Batch, engine: Engine, request: Request) -> None:
        super().__init__(engine, request, Plain(), {})
        self._batch = batch
        self._ready: deque[Token] = deque()
        self.lookup = (
            LookupDrafter(engine.drafters.library, request.sampling.own.new_ngrams) if engine.drafters.lookup else None
        )
        generator = torch.Generator().manual_seed(engine.entropy())
        vocab = engine.target.vocab
        warp = Warp.of(request, vocab)
        self.choose = Chooser(warp, noise_of(request, vocab), generator)
        self.simple = request.sampling.greedy and warp.idle
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
        """Its tokens, as they become certain."""
        while True:
            while self._ready:
                yield self._ready.popleft()
            if self.done:
                return
            self._batch.step()

    def begin(self) -> BatchSession | None:
        """Read the prompt by itself and choose the first token; None if that is all."""
        if self.request.max_new_tokens < 1:
            self.finish_reason = "length"
            return None
        self._began = self._clock()
        session = BatchSession(cast("EagerBackend", self._engine.target))
        rows = session.prefill(self._tokens)[None]
        kept = self._target_choice.keep([], rows, self._tokens)
        self._prefilled = self._first = self._clock()
        self._ready.extend(self._emit(kept, None))
        return None if self.done or self.stop_if_full() else session

    def stop_if_full(self) -> bool:
        """Whether the context leaves no room for another pass; then the answer ends here."""
        if self.room >= 0:
            return False
        self.finish_reason = "context"
        self._ready.extend(self._flush())
        return True

    def judge(self, drafts: Sequence[Draft], rows: Tensor, picks: Sequence[int] | None) -> list[int]:
        """What to append, by the target's `rows` (len(drafts) + 1, V), or by their most likely tokens where that is the rule."""
        if picks is not None:
            return keep_picked([d.token for d in drafts], picks.__getitem__)
        return self._target_choice.keep(drafts, rows, self._tokens)

    def append(self, kept: Sequence[int], done: Round, rows: int) -> None:
        """Write what a round kept; `done` has this row's share of its time."""
        self._forwards += 1
        self.company.append(rows)
        self._tally(done)
        self.rounds.append(done)
        self._plain_seconds += done.tokens * self._engine.knowledge.costs.target(1, done.context)
        self._ready.extend(self._emit(kept, done.origin))

    def receipt(self) -> Receipt:
        """As alone, but times are this answer's share of each pass, and `rows` says how many shared it."""
        mean = sum(self.company) / len(self.company) if self.company else 1.0
        return replace(super().receipt(), rows=mean)


@dataclass
class _Pace:
    """λ and the account that keeps guessing from costing more than it may, as in `policy`, for the rows together."""

    costs: BatchCosts
    tokens: float = 0.0
    seconds: float = 0.0
    account: float = GRANT  # plain passes of the batch
    between: dict[bool, float] = field(
        default_factory=dict
    )  # by whether there were guesses: a row's seconds outside passes

    def price(self, rows: int) -> float:
        """λ in tokens per second."""
        plain = self.plain(rows)
        achieved = self.tokens / self.seconds if self.seconds > 0 else 0.0
        return max(achieved, rows / plain if plain > 0 else 0.0)

    def plain(self, rows: int) -> float:
        """Seconds of a round without guesses."""
        return self.costs.target(rows) + rows * self.between.get(False, 0.0)

    def overhead(self, rows: int) -> float:
        """Seconds that a round with guesses takes longer outside its passes."""
        return rows * max(0.0, self.between.get(True, 0.0) - self.between.get(False, 0.0))

    def book(self, rows: int, tokens: int, seconds: float, passes: float, *, guessed: bool) -> None:
        """A round is over that spent `passes` of its seconds in passes and on their rows."""
        spare = max(0.0, seconds - passes) / rows
        self.between[guessed] = min(self.between.get(guessed, spare) * 0.9 + spare * 0.1, 2 * spare)
        plain = self.plain(rows)
        spent = min(seconds / plain, DEPOSIT) if plain > 0 else 1.0
        change = REGRET * spent + (tokens / rows - spent if guessed else 0.0)
        self.account = min(self.account + change, DEPOSIT)
        keep = 1 - 1 / HORIZON
        self.tokens, self.seconds = self.tokens * keep + tokens, self.seconds * keep + seconds


class Batch:
    """Up to `rows` answers in progress on an engine's target; `more` gives the next one, or None while there is none."""

    def __init__(
        self,
        engine: Engine,
        rows: int,
        *,
        more: Callable[[], Row | None] = lambda: None,
        costs: BatchCosts | None = None,
        guess: bool = True,
    ) -> None:
        able = can_batch(engine.target)
        if not able.value:
            raise InvalidInput(f"no batches: {able.reason}")
        self._engine, self._most, self._more = engine, rows, more
        self.costs = costs or BatchCosts()
        self._pace = _Pace(self.costs)
        self._drafting = 0.0  # seconds of this round in the draft model's passes
        self._guess = guess
        self._target = BatchSession(cast("EagerBackend", engine.target))
        small = engine.drafters.model if guess else None
        self._drafter = (
            BatchDrafter(cast("EagerBackend", small), engine.target.vocab)
            if small is not None and can_batch(small).value
            else None
        )
        self._rows: list[Row] = []

    def row(self, request: Request) -> Row:
        """An answer to be, not yet in the batch. Raises InvalidInput as `Engine.start` does."""
        self._engine.check(request)
        return Row(self, self._engine, request)

    @property
    def size(self) -> int:
        """Answers in progress."""
        return len(self._rows)

    def admit(self, rows: Sequence[Row]) -> None:
        """Read their prompts and put them in."""
        begun = [(row, session) for row in rows if (session := row.begin()) is not None]
        if begun:
            self._target.admit([session for _, session in begun])
            self._rows.extend(row for row, _ in begun)

    def step(self) -> None:
        """Fill what is free, and one round."""
        self._refill()
        if self._rows:
            self._round()

    def _refill(self) -> None:
        for at in reversed(range(len(self._rows))):
            if self._rows[at].done or self._rows[at].stop_if_full():
                session, row = None, None
                while session is None and (row := self._more()) is not None:
                    session = row.begin()
                if session is None or row is None:
                    del self._rows[at]
                    self._target.remove(at)
                    if self._drafter is not None:
                        self._drafter.removed(at)
                else:
                    self._rows[at] = row
                    self._target.replace(at, session)
                    if self._drafter is not None:
                        self._drafter.replaced(at)
        fresh: list[Row] = []
        while len(self._rows) + len(fresh) < self._most and (row := self._more()) is not None:
            fresh.append(row)
        self.admit(fresh)

    def _round(self) -> None:
        rows, clock, count = self._rows, self._engine.clock, len(self._rows)
        start = clock()
        guesses, origins, lag, most = self._drafts()
        drafted = clock()
        drafts = [own[:most] for own in guesses]
        width = max(map(len, drafts))
        logits = self._target.forward(
            [[row.text[-1], *(d.token for d in own)] for row, own in zip(rows, drafts, strict=True)]
        )
        picks = logits.float().argmax(-1).tolist() if all(row.simple for row in rows) else None
        kept = [
            row.judge(own, logits[r, : len(own) + 1], picks[r] if picks is not None else None)
            for r, (row, own) in enumerate(zip(rows, drafts, strict=True))
        ]
        verified = clock()
        self._target.rollback([len(row.text) - 1 + len(new) for row, new in zip(rows, kept, strict=True)])
        self.costs.target.observe(count * (width + 1), 0, verified - drafted)
        for row, made, own, origin, new in zip(rows, guesses, drafts, origins, kept, strict=True):
            if made and origin is not None:
                self._learn(self._reliability(row, origin), made, len(own), len(new) - 1)
            done = Round(
                len(row.text) - 1,
                origin if made else None,
                lag,
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
        self._pace.book(count, tokens, clock() - start, passes, guessed=any(guesses))

    @staticmethod
    def _learn(reliability: Reliability, made: Sequence[Draft], submitted: int, kept: int) -> None:
        for i in range(min(kept + 1, submitted)):
            reliability.observe(made[i].signal, i + 1, 1.0 if i < kept else 0.0)
        if kept == submitted < len(made):
            reliability.expect(reliability(made[kept].signal, kept + 1))

    def _reliability(self, row: Row, origin: Origin) -> Reliability:
        return self._engine.knowledge.of(origin, greedy=row.request.sampling.greedy)

    def _drafts(self) -> tuple[list[list[Draft]], list[Origin | None], int, int]:
        """Guesses of every row, who made them, what the draft model had to read first, and how many to submit."""
        rows, count = self._rows, len(self._rows)
        self._drafting = 0.0
        nothing: tuple[list[list[Draft]], list[Origin | None], int, int] = ([[] for _ in rows], [None] * count, 1, 0)
        if not self._guess or not self.costs.target.known:
            return nothing
        rooms = [max(0, row.room) for row in rows]
        wide = self._target.room
        most = min(max(rooms), LONGEST_DRAFT, LONGEST_DRAFT if wide is None else wide - 1)
        most = min(most, 2 * max(1, self.costs.target.widest // count))  # nothing much wider than was tried
        origins, ahead = self._sources()
        modelled = "draft" in origins
        lag = self._drafter.lag(rows) if modelled and self._drafter is not None else 1
        price = self._pace.price(count)
        if most < 1 or not self._worthwhile(ahead, rooms, most, price, lag if modelled else 0):
            return nothing
        drafts, survival = nothing[0], [1.0] * count
        gains: list[float] = []  # by column: guesses expected to stay
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
                self.costs.draft.observe(count * (lag if k == 1 else 1), 0, spent)
                self._drafting += spent
            for r, (row, origin) in enumerate(zip(rows, origins, strict=True)):
                if asked[r] and origin == "lookup" and row.lookup is not None:
                    found[r] = row.lookup.propose()
                draft = found[r]
                if draft is None or origin is None:
                    survival[r] = 0.0
                    continue
                drafts[r].append(draft)
                survival[r] *= self._reliability(row, origin)(draft.signal, k)
            if not any(survival):
                break
            width = k
            gains.append(sum(survival))
            if not self._another(survival, ahead, rooms, width, most, price, modelled):
                break
        prefixes = all(r.request.sampling.greedy or r.request.sampling.seed is not None for r in rows)
        return drafts, origins, lag, self._submitted(gains, price) if prefixes else len(gains)

    def _submitted(self, gains: Sequence[float], price: float) -> int:
        """The columns worth judging."""
        count, best, worth, total = len(self._rows), 0, -price * self.costs.target(len(self._rows)), 0.0
        for n, gain in enumerate(gains, start=1):
            total += gain
            if total - price * self.costs.target(count * (n + 1)) > worth:
                best, worth = n, total - price * self.costs.target(count * (n + 1))
        return best

    def _sources(self) -> tuple[list[Origin | None], list[float]]:
        """Who guesses for each row, and the share of guesses expected to stay."""
        origins: list[Origin | None] = []
        ahead: list[float] = []
        for row in self._rows:
            origin: Origin | None = None
            chance = 0.0
            if self._drafter is not None and not self._drafter.mute(row):
                origin, chance = "draft", self._reliability(row, "draft").typical
            signal = row.lookup.outlook(row.text) if row.lookup is not None else None
            if signal is not None and (found := self._reliability(row, "lookup")(signal, 1)) > chance:
                origin, chance = "lookup", found
            origins.append(origin)
            ahead.append(chance)
        return origins, ahead

    def _worthwhile(self, ahead: Sequence[float], rooms: Sequence[int], most: int, price: float, lag: int) -> bool:
        """Whether some number of columns is worth more than a plain pass, and what could be lost is there."""
        count, costs = len(ahead), self.costs
        plain, survival, gain = costs.target(count), list(ahead), 0.0
        for k in range(1, most + 1):
            gain += sum(s for s, room in zip(survival, rooms, strict=True) if k <= room)
            survival = [s * a for s, a in zip(survival, ahead, strict=True)]
            extra = self._pace.overhead(count) + costs.target(count * (k + 1)) - plain
            extra += costs.drafting(k, count, lag) if lag else 0.0
            if extra > (self._pace.account + gain / count) * plain:
                return False
            if gain > price * extra:
                return True
        return False

    def _another(
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
        for j in range(1, min(most - width, PATIENCE) + 1):
            left = [s * a for s, a in zip(left, ahead, strict=True)]
            gain += sum(s for s, room in zip(left, rooms, strict=True) if width + j <= room)
            extra = costs.target(count * (width + j + 1)) - here + (costs.drafting(j, count, 1) if modelled else 0.0)
            if gain > price * extra:
                return True
        return False
