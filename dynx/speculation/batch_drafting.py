"""What a batch drafts in a round, and how much of it is verified.

Time is shared, so the number of draft tokens is decided together, at the batch's own rate λ (tokens per second of all sequences).
Where passes are ragged a draft token costs what one more token adds to the pass. With many sequences that is a full share of
its work, so only likely drafts are worth it; with few it is next to nothing. Of all drafts made, those are verified that
together are worth most, each sequence's from the first on. Where all sequences of a pass are as wide as the widest, with B
sequences a pass of n tokens each carries B·n, and whole columns of drafts are weighed instead.

Times are seconds. Letters: B sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynx.runtime.costs import CostCurve, Drift
from dynx.speculation.policy import (
    AVERAGING_ROUNDS,
    LOOKAHEAD_DRAFT_TOKENS,
    MAX_DRAFT_TOKENS,
    MAX_REGRET_BUDGET_PASSES,
    MIN_SURVIVAL_PROBABILITY,
    REGRET_BUDGET_SHARE,
)
from dynx.speculation.round_costs import UNMEASURED_DRAFT_COST_SHARE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.runtime.backends.batch_rows import EagerBatch, SessionBatch
    from dynx.speculation.acceptance_model import AcceptanceModel
    from dynx.speculation.drafters.base import Draft
    from dynx.speculation.drafters.batch import BatchDrafter
    from dynx.speculation.engine import Engine
    from dynx.speculation.sequence import SequenceRun
    from dynx.speculation.types import DraftSource

INITIAL_REGRET_BUDGET_PASSES = 2.0
"""Plain passes that drafting may lose at the start of a batch, before anything is measured in it."""

NEW_SIZE = 1.3
"""Factor between the sizes of passes whose times are kept apart: the slope between near ones would be noise."""


@dataclass
class BatchCosts:
    """Seconds of passes by the tokens they carry, all rows counted; the target's and the draft model's, one drift for both."""

    drift: Drift = field(default_factory=Drift)
    target: CostCurve = field(init=False)
    draft: CostCurve = field(init=False)

    def __post_init__(self) -> None:
        self.target, self.draft = CostCurve(self.drift), CostCurve(self.drift)

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from a pass of the target over `tokens` in all; it corrects the time of the nearest size that is known."""
        curve = self.target
        near = min(curve.table, key=lambda n: max(n, tokens) / min(n, tokens), default=tokens)
        if max(near, tokens) >= NEW_SIZE * min(near, tokens) or not curve.known:
            near = tokens
        curve.observe(near, 0, seconds if near == tokens else seconds * curve(near) / curve(tokens))

    def drafting(self, count: int, rows: int, tokens_behind: int) -> float:
        """Return the seconds for `count` columns of drafts, the first after reading `tokens_behind` tokens."""
        if not self.draft.known:
            return count * UNMEASURED_DRAFT_COST_SHARE * self.target(rows)
        return self.draft(rows * tokens_behind) + (count - 1) * self.draft(rows) if count else 0.0


@dataclass
class Pace:
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


class Drafting:
    """Drafts for the sequences of a batch."""

    def __init__(
        self,
        engine: Engine,
        target: EagerBatch | SessionBatch,
        drafter: BatchDrafter | None,
        costs: BatchCosts,
        *,
        speculate: bool,
    ) -> None:
        self._engine, self._target, self._drafter, self.costs = engine, target, drafter, costs
        self._speculate = speculate
        self._pace = Pace(costs)
        self._width = 0  # sequences of this round
        self._drafting = 0.0  # seconds of this round in the draft model's passes

    def _acceptance_model(self, row: SequenceRun, origin: DraftSource) -> AcceptanceModel:
        return self._engine.acceptance_profile.model_for(origin, greedy=row.request.sampling.greedy)

    def _drafts(
        self, rows: Sequence[SequenceRun]
    ) -> tuple[list[list[Draft]], list[DraftSource | None], int, list[int]]:
        """Return each row's drafts and their source, the tokens that the draft model was behind, and how many to verify."""
        count = len(rows)
        self._drafting = 0.0
        drafts: list[list[Draft]] = [[] for _ in rows]
        nothing: tuple[list[list[Draft]], list[DraftSource | None], int, list[int]] = (
            drafts,
            [None] * count,
            1,
            [0] * count,
        )
        if not rows or not self._speculate or not self.costs.target.known:
            return nothing
        rooms = [max(0, row.room) for row in rows]
        wide = self._target.room
        most = min(max(rooms), MAX_DRAFT_TOKENS, MAX_DRAFT_TOKENS if wide is None else wide - 1)
        most = min(most, 2 * max(1, self.costs.target.widest // count))  # nothing much wider than was tried
        origins, ahead = self._sources(rows)
        modelled = "draft" in origins
        tokens_behind = self._drafter.tokens_behind(rows) if modelled and self._drafter is not None else 1
        price = self._pace.price(count)
        if most < 1 or not self._worthwhile(ahead, rooms, most, price, tokens_behind if modelled else 0):
            return nothing
        self._width = count
        survival: list[list[float]] = [[] for _ in rows]  # by row and draft: whether all up to it are accepted
        if modelled and self._drafter is not None:
            self._drafter.sync([row for row, origin in zip(rows, origins, strict=True) if origin == "draft"])
        for row, origin in zip(rows, origins, strict=True):
            if origin == "lookup" and row.lookup is not None:
                row.lookup.sync(row.text)
        clock, least = self._engine.clock, self._least_chance(count, price)
        for k in range(1, most + 1):
            began = clock()
            asked = [
                len(own) == k - 1 and k <= room and (not chances or chances[-1] >= least)
                for own, room, chances in zip(drafts, rooms, survival, strict=True)
            ]
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
                    continue
                drafts[r].append(draft)
                before = survival[r][-1] if survival[r] else 1.0
                survival[r].append(before * self._acceptance_model(row, origin)(draft.signal, k))
            alive = [own[k - 1] if len(own) == k else 0.0 for own in survival]
            if not any(alive) or not self._should_draft_more(alive, ahead, rooms, k, most, price, modelled):
                break
        return drafts, origins, tokens_behind, self._verify_lengths(rows, origins, survival, price)

    def _verify_lengths(
        self,
        rows: Sequence[SequenceRun],
        origins: Sequence[DraftSource | None],
        survival: Sequence[Sequence[float]],
        price: float,
    ) -> list[int]:
        """Return how many drafts of each row to verify.

        What a model drew for a sequence that samples freely is verified whole: to drop drafts once they were drawn biases the
        text. What a lookup found was not drawn.
        """
        drawn = [
            origin == "draft" and not (row.request.sampling.greedy or row.request.sampling.seed is not None)
            for row, origin in zip(rows, origins, strict=True)
        ]
        if not self._target.ragged:
            width = max(map(len, survival), default=0)
            gains = [sum(own[k] for own in survival if len(own) > k) for k in range(width)]
            most = len(gains) if any(drawn) else self._verify_length(gains, price)
            return [min(len(own), most) for own in survival]
        lengths = [len(own) if whole else 0 for own, whole in zip(survival, drawn, strict=True)]
        left = [
            (chance, r)
            for r, (own, whole) in enumerate(zip(survival, drawn, strict=True))
            if not whole
            for chance in own
        ]
        left = sorted((item for item in left if item[0] >= MIN_SURVIVAL_PROBABILITY), key=lambda item: -item[0])
        size, count = len(rows) + sum(lengths), len(rows)
        times = self.costs.target.upto(size + len(left))  # by tokens, from one on
        plain, total = times[size - 1], 0.0
        best, at = (0.0 if sum(lengths) else price * self._pace.overhead(count)), 0
        for n, (chance, _) in enumerate(left, start=1):  # chances of a row only fall, and the order is stable
            total += chance
            extra = times[size + n - 1] - plain
            if total - price * extra > best and extra <= (self._pace.regret_budget + total / count) * plain:
                best, at = total - price * extra, n
        for _, r in left[:at]:
            lengths[r] += 1
        return lengths

    def _least_chance(self, count: int, price: float) -> float:
        """Return the probability of being kept below which a sequence's drafts aren't worth continuing."""
        if not self._target.ragged:
            return 0.0
        target = self.costs.target
        return max(MIN_SURVIVAL_PROBABILITY, 0.5 * price * (target(2 * count) - target(count)) / count)

    def _verify_length(self, gains: Sequence[float], price: float) -> int:
        """Return how many columns of drafts are worth verifying."""
        count = self._width
        best, worth, total = 0, -price * self.costs.target(count), 0.0
        for n, gain in enumerate(gains, start=1):
            total += gain
            if total - price * self.costs.target(count * (n + 1)) > worth:
                best, worth = n, total - price * self.costs.target(count * (n + 1))
        return best

    def _sources(self, rows: Sequence[SequenceRun]) -> tuple[list[DraftSource | None], list[float]]:
        """Return each row's draft source and the share of its drafts expected to be accepted."""
        origins: list[DraftSource | None] = []
        ahead: list[float] = []
        for row in rows:
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
        """Whether some number of drafts each is worth more than a plain pass and the regret budget covers the possible loss."""
        count, costs = len(ahead), self.costs
        if self._target.ragged and not tokens_behind:
            return any(ahead)  # drafts cost nothing before they are verified, and each is weighed then
        drafting = sum(a > 0 for a in ahead) if self._target.ragged else count
        plain, survival, gain = costs.target(count), list(ahead), 0.0
        for k in range(1, most + 1):
            gain += sum(s for s, room in zip(survival, rooms, strict=True) if k <= room)
            survival = [s * a for s, a in zip(survival, ahead, strict=True)]
            extra = self._pace.overhead(count) + costs.target(count + drafting * k) - plain
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
        costs = self.costs
        if self._target.ragged and not modelled:
            return max(survival) > MIN_SURVIVAL_PROBABILITY  # a lookup is free, and what isn't worth it isn't verified
        count = sum(s > 0 for s in survival) if self._target.ragged else len(ahead)
        here, left, gain = costs.target(len(ahead) + count * width), list(survival), 0.0
        for j in range(1, min(most - width, LOOKAHEAD_DRAFT_TOKENS) + 1):
            left = [s * a for s, a in zip(left, ahead, strict=True)]
            gain += sum(s for s, room in zip(left, rooms, strict=True) if width + j <= room)
            extra = (
                costs.target(len(ahead) + count * (width + j))
                - here
                + (costs.drafting(j, count, 1) if modelled else 0.0)
            )
            if gain > price * extra:
                return True
        return False
