"""What a round costs a text whose passes are shared: its part of the pass, by all tokens that the pass holds.

The times of passes are known by their tokens (`BatchCosts`). A text's part is an equal share of the plain pass, and all of what
its drafts add to the pass as it is planned so far. Where the rows of a pass are as wide as the widest, it is an equal share of a
pass in which all are as wide as this one; whether that many drafts are worth the width is decided at the end, together (`trim`).
Policies see these parts as costs like any other.

Times are seconds. Letters: B sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynx.runtime.costs import MAX_SLOWDOWN, CostCurve, Drift
from dynx.speculation.policy import Dynamic
from dynx.speculation.round_costs import FIRST_PASS_COST_FACTOR, Costs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.speculation.policy import Pace
    from dynx.speculation.run import Proposal, Run
    from dynx.speculation.types import DraftSource

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
        """Learn from a pass of the target over `tokens` in all; it corrects the time of the nearest size that is known.

        A size beyond those known is taken as it is: what is expected there may be several times too little or too much.
        """
        curve = self.target
        near = min(curve.table, key=lambda n: max(n, tokens) / min(n, tokens), default=tokens)
        if max(near, tokens) >= NEW_SIZE * min(near, tokens) or not curve.known:
            near = tokens
            if not min(curve.table, default=tokens) < tokens < curve.widest:
                curve.begin(tokens, seconds)
                return
        curve.observe(near, 0, seconds if near == tokens else seconds * curve(near) / curve(tokens))

    def drafting(self, count: int, rows: int, tokens_behind: int) -> float:
        """Return the seconds for `count` columns of drafts, the first after reading `tokens_behind` tokens."""
        return self.draft(rows * tokens_behind) + (count - 1) * self.draft(rows) if count else 0.0


class _Part(CostCurve):
    """A text's part of a pass of `whole` of which it has n tokens."""

    def __init__(self, costs: SharedCosts, whole: CostCurve) -> None:
        super().__init__(whole.drift)
        self._costs, self._whole = costs, whole

    @property
    def known(self) -> bool:
        """Whether anything has been measured."""
        return self._whole.known

    @property
    def widest(self) -> int:
        """Tokens that the text may have in a pass no larger than those measured."""
        return max(0, self._costs.left(self._whole.widest))

    def __call__(self, n: int, context: int = 0) -> float:
        """Return the seconds expected for a pass in which the text has `n` tokens."""
        return self._costs.parts(self._whole, n, n)[0] if n > 0 and self._whole.known else 0.0

    def upto(self, n: int, context: int = 0) -> list[float]:
        """Return the same for 1 … n tokens."""
        return self._costs.parts(self._whole, n)

    def observe(self, n: int, context: int, seconds: float, *, limit: float = MAX_SLOWDOWN) -> None:
        """Do nothing: the time of the pass is learned once for all of its texts."""


class SharedCosts(Costs):
    """The costs of every text of a batch; `begin` and `add` tell what the pass in question holds."""

    def __init__(self, whole: BatchCosts, pace: Pace, *, ragged: bool) -> None:
        super().__init__(whole.drift)
        self.whole, self.pace, self._ragged = whole, pace, ragged
        self.sequences = self._tokens = self._planned = self._widest = 1
        self._line: list[float] = []  # of passes of 1, 2, … tokens, as expected in this round
        self.target = _Part(self, whole.target)
        self.draft["draft"] = _Part(self, whole.draft)

    def begin(self, sequences: int) -> None:
        """Begin to plan a pass, with a token of each of the sequences."""
        self.sequences = self._tokens = self._planned = max(1, sequences)
        self._widest = 1
        self._line = []

    def add(self, drafts: int) -> None:
        """Add drafts of one of them."""
        self._tokens += drafts
        self._planned = self._tokens
        self._widest = max(self._widest, drafts + 1)

    def beside(self, drafts: int) -> SharedCosts:
        """Leave the drafts of one of them out of the plan, to price them; return itself."""
        self._planned = self._tokens - drafts
        return self

    def left(self, tokens: int) -> int:
        """Return how many of a pass's `tokens` are left for one text beside the others."""
        return tokens - self._planned + 1 if self._ragged else tokens // self.sequences

    def parts(self, whole: CostCurve, last: int, first: int = 1) -> list[float]:
        """Return the seconds of a text's part of a pass with `first` … `last` tokens of its own besides those of the others.

        In ragged passes a further token costs no less than those of the plain pass did on average beyond its first. Times of
        wider passes may be of prompts, whose tokens are cheaper: they have no logits, and share the reading of their context.
        """
        count, planned = self.sequences, self._planned
        if not whole.known:
            return [0.0] * (last + 1 - first)
        if whole is self.whole.draft:  # all read and draft together
            return [whole(count * n) / count for n in range(first, last + 1)]
        if not self._ragged:
            return [whole(count * max(n, self._widest)) / count for n in range(first, last + 1)]
        if len(self._line) < planned + last:
            self._line = whole.upto(2 * (planned + last))
        line = self._line
        mine, plain = line[count - 1] / count, line[planned - 1]
        least = max(0.0, plain - line[0]) / max(1, planned - 1)
        wider = line[planned + first - 2 : planned + last - 1]
        return [mine + max(each - plain, more * least) for more, each in enumerate(wider, start=first - 1)]

    def observe(self, n: int, context: int, seconds: float) -> None:
        """Do nothing: `BatchCosts` learns from passes as a whole."""

    def extra_risk(self, origin: DraftSource, n: int, context: int) -> float:
        """See `Costs.extra_risk`: the text's share of it."""
        widest = self.target.widest
        if n + 1 <= widest and (origin == "lookup" or self.draft[origin].known):
            return 0.0
        more = max(0.0, FIRST_PASS_COST_FACTOR * self.target(max(1, widest)) - self.target(n + 1))
        return more if origin == "lookup" or self.draft[origin].known else more + self.target(1)

    def trim(self, runs: Sequence[Run], proposals: Sequence[Proposal]) -> None:
        """Cut what is submitted to the number of columns that is worth most for all texts together.

        What a model drew for a text that samples freely is verified whole: to drop drafts once they were drawn biases the text.
        """
        drawn = any(
            p.origin == "draft" and p.submitted and not run.request.any_prefix
            for run, p in zip(runs, proposals, strict=True)
        )
        policies = [run.policy for run in runs]
        if drawn or not all(isinstance(policy, Dynamic) for policy in policies):
            return
        count, price = len(runs), self.pace.rate(self.whole.target(len(runs)) / len(runs), self.drift.factor)
        survival = [
            p.survival[: len(q.submitted)] for p, q in zip(policies, proposals, strict=True) if isinstance(p, Dynamic)
        ]
        best, worth, total = 0, -price * self.whole.target(count), 0.0
        for n in range(1, max(map(len, survival), default=0) + 1):
            total += sum(own[n - 1] for own in survival if len(own) >= n)
            if total - price * self.whole.target(count * (n + 1)) > worth:
                best, worth = n, total - price * self.whole.target(count * (n + 1))
        for proposal in proposals:
            proposal.submitted = proposal.submitted[:best]
        self._widest = best + 1
