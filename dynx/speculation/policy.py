"""Decides whether to draft, how many tokens to draft, and how many of them to verify.

Decoding is a renewal process: each round spends time and yields tokens, so the best long-run rate λ (tokens per second) prices
every second (λ is the Dinkelbach multiplier of "maximise tokens/time", tracked from the rounds themselves). With S_i the
probability that the first i drafts are all accepted, D the cost of a draft, T(n) that of a target pass of n tokens, o a round's
fixed overhead, all measured:

1. draft one more while some number of further drafts is expected to yield more tokens than λ times what they cost;
2. verify the prefix n that maximises 1 + Σ_{i≤n} S_i - λ·T(n+1);
3. use the drafter whose round is worth most, 1 + Σ S_i - λ·(drafts + T(n+1) + o), if that beats plain's 1 - λ·T(1).

"Never slower" is kept by a regret budget in plain passes: a round faster than plain adds to it, a slower one takes from it, and
no round is begun that could lose more than is left. It starts with a given amount and grows by `REGRET_BUDGET_SHARE` of all
time, so that is the most that can be lost however wrong the estimates are. A pass that was never run on this machine counts at
more than its expected cost, and the time of deciding is charged too. A second, smaller budget pays for exploring the second best.

Where a rejection takes time besides (recurrent models read what was accepted again), it counts in all of this: in 1 to 3 by its
probability, in the budget as if it were certain.

The policy works on numbers only, not on tensors or text. Times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import TYPE_CHECKING, Protocol

from dynx.runtime.costs import MAX_SLOWDOWN
from dynx.speculation.tree import best_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynx.speculation.acceptance_model import AcceptanceModel
    from dynx.speculation.round_costs import Costs
    from dynx.speculation.types import DrafterCandidate, DraftSource

MAX_DRAFT_TOKENS = 24
"""Longest draft; only prompt lookup in verbatim copies gets here, other drafters' prefix probabilities vanish before."""

AVERAGING_ROUNDS = 32.0
"""Rounds over which λ and each drafter's surplus are averaged."""

REGRET_BUDGET_SHARE = 0.0125
"""Share of all time that may be lost against plain, and as much against the best drafter by exploring others."""

MAX_REGRET_BUDGET_PASSES = 16.0
"""Largest regret budget, in plain passes: what a change for the worse may cost before drafting stops."""

MAX_EXPLORATION_BUDGET_PASSES = 2.0
"""Largest exploration budget, in plain passes; a larger one would be spent in bursts."""

PLAIN_STRETCH_TOKENS = 8
"""Tokens decoded plainly before the drafters are weighed again, unless a lookup matches well enough."""

LOOKAHEAD_DRAFT_TOKENS = 8
"""Drafts considered past the best number so far, enough to look over a step of T onto the next plateau."""

MIN_SURVIVAL_PROBABILITY = 0.02
"""Probability that all drafts so far are accepted below which no further one is considered."""

UNPROVEN_LOOKUP_DRAFTS = 5
"""Drafts of a lookup that are believed as its match says, until a whole draft is accepted; then twice that draft's."""

UNPROVEN_BELIEF = 0.5
"""Factor of the believed acceptance of further ones: text that quotes parts with what is copied, text that loops doesn't."""

HICCUP_FACTOR = 1.25
"""Factor over its expected time from which a round was disturbed, or is priced wrongly."""

CATCH_UP_ROUNDS = 64
"""Most rounds over which the cost of catching up with the text is spread."""


@dataclass(frozen=True)
class Round:
    """A finished round and its costs, for the policy to learn from."""

    context: int
    origin: DraftSource | None  # None: plain
    tokens_behind: int = 1
    signals: Sequence[float] = ()  # of all drafts made
    submitted: int = 0
    kept: int = 0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    seconds: float = 0.0  # of the whole round
    replay_seconds: float = 0.0  # of it, to read accepted tokens again after a rejection
    chain: tuple[int, int] | None = None  # where a tree was verified: those submitted and kept that the drafter made

    @property
    def drafted(self) -> tuple[int, int]:
        """Drafts submitted and kept that the drafter made one after the other."""
        return (self.submitted, self.kept) if self.chain is None else self.chain

    @property
    def tokens(self) -> int:
        """Tokens the round appended."""
        return self.kept + 1


class Policy(Protocol):
    """Decides a round; the engine calls its methods in this order and reports with `learn`."""

    def choose(self, candidates: Sequence[DrafterCandidate], context: int, room: int) -> DraftSource | None:
        """Choose the drafter of this round, or None for a plain pass. `room`: drafts that could still be used."""

    def should_draft_more(self, signals: Sequence[float]) -> bool:
        """Whether to make one more draft after those with `signals`."""

    def verify_length(self, signals: Sequence[float]) -> int:
        """Return how many of the drafts to verify."""

    def learn(self, done: Round) -> None:
        """Learn from a finished round."""


class Plain:
    """Never drafts."""

    def choose(self, candidates: Sequence[DrafterCandidate], context: int, room: int) -> DraftSource | None:
        """Return None."""
        return None

    def should_draft_more(self, signals: Sequence[float]) -> bool:
        """Return False."""
        return False

    def verify_length(self, signals: Sequence[float]) -> int:
        """Return the number of drafts."""
        return len(signals)

    def learn(self, done: Round) -> None:
        """Do nothing."""


class Static(Plain):
    """Always `length` drafts from one drafter: what other tools let the user set, and the bar for the dynamic policy."""

    def __init__(self, origin: DraftSource, length: int) -> None:
        self.origin, self.length = origin, length
        self._room = 0

    def choose(self, candidates: Sequence[DrafterCandidate], context: int, room: int) -> DraftSource | None:
        """Return its drafter, if that can draft."""
        self._room = min(room, self.length)
        here = any(p.origin == self.origin and (p.origin != "lookup" or p.signal is not None) for p in candidates)
        return self.origin if here and self._room else None

    def should_draft_more(self, signals: Sequence[float]) -> bool:
        """Whether the length isn't reached yet."""
        return len(signals) < self._room


@dataclass(slots=True)
class _Plan:
    """A drafter's expected round, in the machine's current seconds."""

    origin: DraftSource
    signal: float | None  # of its first draft, if known
    each: float  # one draft
    reading: float  # more for the first, which must read what the drafter missed
    resubmit: float  # more if everything drafted is submitted
    verifying: list[float]  # by drafts submitted
    extra_risk: list[float]  # that the round may take besides, by drafts submitted
    replaying: list[float]  # more if a draft is rejected, by drafts accepted before it; none where that takes nothing
    overhead: float
    most: float  # that the round may take
    amortized: float  # of `reading`: later rounds' share
    expected_worth: float = float("-inf")  # 1 + Σ S_i - λ·cost, best over numbers of drafts
    worth: float = float("-inf")  # that, and what the expectation lately missed

    def drafting(self, k: int) -> float:
        """Return the seconds of a round with `k` drafts before verification."""
        return k * self.each + self.reading + self.overhead

    def seconds(self, k: int) -> float:
        """Return the seconds of a round in which `k` drafts are made and all verified."""
        return self.drafting(k) + self.resubmit + self.verifying[k]

    def replay(self, k: int, before: float, after: float) -> float:
        """Return the seconds expected for a rejection of draft k, given the survivals of k - 1 drafts and of k."""
        return (before - after) * self.replaying[k - 1] if self.replaying else 0.0


@dataclass
class Pace:
    """Tokens and seconds of the rounds so far, of which about the last `rounds` count; λ is their ratio.

    The texts of a batch share one: a second of a pass is worth the same to each.
    """

    tokens: float = AVERAGING_ROUNDS * 0.5
    seconds: float = 0.0
    rounds: float = AVERAGING_ROUNDS

    def add(self, tokens: int, seconds: float) -> None:
        """Count a round; its seconds are without the drift of its moment."""
        if self.seconds > 0:
            keep = 1 - 1 / self.rounds
            self.tokens, self.seconds = self.tokens * keep + tokens, self.seconds * keep + seconds
        else:
            self.seconds = seconds * self.tokens / tokens

    def rate(self, plain: float, drift: float = 1.0) -> float:
        """Return the tokens per second of now, no less than those of plain passes of `plain` seconds."""
        achieved = self.tokens / (self.seconds * drift) if self.seconds > 0 else 0.0
        return max(achieved, 1 / plain if plain > 0 else 0.0)


class Dynamic:
    """The three decisions, from `costs` and `acceptance_model`, both of which go on learning.

    `verify_prefixes` is off where the acceptance rule forbids dropping drafts after the fact (see `acceptance`). `rate`
    (tokens per second) starts λ where a profile knows it; `pace` is λ where it is that of several texts.
    """

    def __init__(
        self,
        costs: Costs,
        acceptance_models: Mapping[DraftSource, AcceptanceModel],
        *,
        verify_prefixes: bool = True,
        rate: float | None = None,
        regret_budget: float = 2.0,
        pace: Pace | None = None,
    ) -> None:
        self.costs = costs
        self.acceptance_models = acceptance_models
        self._verify_prefixes = verify_prefixes
        self._pace = Pace() if pace is None else pace
        if pace is None and rate:
            self._pace.seconds = self._pace.tokens / rate
        self._regret_budget = regret_budget  # plain passes
        self._exploration_budget = 0.0  # plain passes
        # Where a profile promises a gain, reading the prompt is an investment; else the account must bear it too.
        self._free_prefill = set(acceptance_models) if rate else set()
        self._surplus: dict[DraftSource, tuple[float, float]] = {}  # tokens, and rounds behind them
        self._proven = UNPROVEN_LOOKUP_DRAFTS
        self._plain_rounds_left = 0
        self._min_lookup_signal = 0.0
        self._context = 0
        self._price = 0.0  # λ in this round
        self._plan: _Plan | None = None
        self._trying = False
        self._late = True  # whether the last round with drafts took much longer than expected
        self._survival: list[float] = []

    def resume(self, earlier: Dynamic, *, at_least: float = 0.0) -> None:
        """Go on with the regret budget that the text before ended with."""
        self._regret_budget = max(earlier._regret_budget, at_least)

    @property
    def rate(self) -> float:
        """λ in tokens per second of now: the rate achieved lately, and no less than plain's."""
        return self._pace.rate(self.costs.target(1, self._context), self.costs.drift.factor)

    @property
    def survival(self) -> Sequence[float]:
        """The probability that all drafts of this round up to each are accepted."""
        return self._survival

    def choose(self, candidates: Sequence[DrafterCandidate], context: int, room: int) -> DraftSource | None:
        """Decide whether to draft and with what (3); now and then explore the second best."""
        self._context, self._plan, self._trying, self._survival = context, None, False, []
        if room < 1 or not self.costs.target.known or (self.costs.foreign and not self.costs.widest_here):
            return None  # measure a plain pass first
        if not self._free_prefill and self._regret_budget + 1 < self.costs.cheapest_round(context):
            return None  # so that nothing is looked up that can't be used
        if self._plain_rounds_left > 0:
            self._plain_rounds_left -= 1
            if not any(p.signal is not None and p.signal >= self._min_lookup_signal for p in candidates):
                return None
        self._price = self.rate
        ready = [p for p in candidates if p.origin != "lookup" or p.signal is not None]
        plans = sorted((self._evaluate(p, room) for p in ready), key=lambda plan: -plan.worth)
        self._plan = self._pick(plans)
        if self._plan is None:
            self._plain_rounds_left = PLAIN_STRETCH_TOKENS
            self._min_lookup_signal = min((p.signal for p in ready if p.signal is not None), default=0.0) + 1
            return None
        return self._plan.origin

    def _pick(self, plans: Sequence[_Plan]) -> _Plan | None:
        """Pick the best of `plans` (best first) or plain; or the next best, if the exploration budget covers the loss."""
        plain = self._price * (self.costs.target(1, self._context) + self.costs.changes(1, self._context))
        best = plans[0] if plans and plans[0].worth > 1 - plain else None
        others = plans[1:] if best else plans
        if others:
            loss = ((best.worth if best else 1 - plain) - others[0].worth) / plain
            if loss < self._exploration_budget:
                self._exploration_budget -= loss
                self._trying = True
                return others[0]
        return best

    def _evaluate(self, candidate: DrafterCandidate, room: int) -> _Plan:
        costs, origin, context, price = self.costs, candidate.origin, self._context, self._price
        drafts = min(room, MAX_DRAFT_TOKENS, costs.max_drafts(origin))
        each = costs.reading(origin, 1, context)
        reading = costs.reading(origin, candidate.tokens_behind, context) - each if candidate.tokens_behind > 1 else 0.0
        plan = _Plan(
            origin,
            candidate.signal,
            each,
            reading,
            resubmit=each if origin == "self" else 0.0,
            verifying=costs.verifying(origin, drafts, context),
            extra_risk=self._extra_risk(origin, drafts),
            replaying=costs.replaying(drafts, context),
            overhead=costs.overhead.get(origin, 0.0) * costs.drift.factor,
            most=(self._regret_budget + 1) * costs.target(1, context)
            + (reading if origin in self._free_prefill else 0.0),
            amortized=reading * (1 - 1 / max(1, min(CATCH_UP_ROUNDS, room / 4))),
        )
        fixed, verifying = plan.drafting(0) + plan.resubmit, plan.verifying
        best, at, tokens, survival, ahead, again = plan.expected_worth, 0, 1.0, 1.0, 0.0, 0.0
        for k in range(1, drafts + 1):
            seconds = fixed + k * each + verifying[k]
            if (
                seconds + plan.extra_risk[k] > plan.most
                or k - at > LOOKAHEAD_DRAFT_TOKENS
                or survival < MIN_SURVIVAL_PROBABILITY
            ):
                break
            if k & (k - 1) == 0 or k == self._proven + 1:  # it changes slowly: between these it is taken as it was
                ahead = self._ahead(plan, k)
            again += plan.replay(k, survival, survival * ahead)
            survival *= ahead
            tokens += survival
            worth = tokens - price * (seconds + again - plan.amortized)
            if worth > best:
                best, at = worth, k
        plan.expected_worth, plan.worth = best, best + self._surplus.get(origin, (0.0, 0.0))[0]
        return plan

    def _extra_risk(self, origin: DraftSource, drafts: int) -> list[float]:
        """Return the seconds that a round may take beyond its expected cost, by drafts: what never ran, and a rejection.

        Of the rejections that one counts which costs most beyond the plain passes that the drafts accepted before it save.
        """
        costs, context = self.costs, self._context
        risk = [costs.extra_risk(origin, k, context) for k in range(drafts + 1)]
        plain, worst = costs.target(1, context), 0.0
        for k, again in enumerate(costs.replaying(drafts, context)[:drafts]):
            worst = max(worst, again - k * plain)
            risk[k + 1] += worst
        return risk

    def _ahead(self, plan: _Plan, k: int) -> float:
        """Return the expected acceptance of draft k before it is made."""
        if plan.signal is None:
            return self.acceptance_models[plan.origin].typical
        return self._believed(plan.origin, log2(2**plan.signal + k - 1), k)  # a match grows by one with each draft

    def _believed(self, origin: DraftSource, signal: float, k: int) -> float:
        """Return the expected acceptance of draft k with `signal`."""
        chance = self.acceptance_models[origin](signal, k)
        return chance * UNPROVEN_BELIEF if origin == "lookup" and k > self._proven else chance

    def should_draft_more(self, signals: Sequence[float]) -> bool:
        """Decide whether to draft one more token (1)."""
        plan, k = self._plan, len(signals)
        if plan is None or k + 1 >= len(plan.verifying):
            return False
        if k == 0:
            return True
        if plan.seconds(k + 1) + plan.extra_risk[k + 1] > plan.most:
            return False
        self._update_survival(plan, signals)
        gain, ahead, here = 0.0, self._survival[-1], plan.verifying[k]
        for j in range(1, min(len(plan.verifying) - 1 - k, LOOKAHEAD_DRAFT_TOKENS) + 1):
            before, ahead = ahead, ahead * self._ahead(plan, k + j)
            gain += ahead - self._price * plan.replay(k + j, before, ahead)
            if gain > self._price * (j * plan.each + plan.verifying[k + j] - here):
                return True
            if ahead < MIN_SURVIVAL_PROBABILITY:
                break
        return False

    def verify_length(self, signals: Sequence[float]) -> int:
        """Decide how many drafts to verify (2)."""
        plan, k = self._plan, len(signals)
        if plan is None or k == 0:
            return 0
        self._update_survival(plan, signals)
        best, best_worth, tokens, before = 0, 1 - self._price * plan.verifying[0], 1.0, 1.0
        for n, survival in enumerate(self._survival, start=1):
            tokens += survival - self._price * plan.replay(n, before, survival)
            before = survival
            worth = tokens - self._price * (plan.verifying[n] + (plan.resubmit if n == k else 0.0))
            if worth > best_worth or (n == k and not self._verify_prefixes):
                best, best_worth = n, worth
        self._compare(plan, best_worth - self._price * (plan.drafting(k) - plan.amortized))
        return max(best, 1) if self._trying else best

    def survival_of(self, drafts: int) -> Sequence[float]:
        """Return the probability that all of the round's first `drafts` drafts up to each are accepted."""
        return self._survival[:drafts]

    def tree_size(self, beliefs: Sequence[float], survival: Sequence[float], context: int) -> int:
        """Decide how many nodes of a tree to verify, the likeliest first; 0: the chain of drafts with `survival` as it is."""
        return best_size(self.costs, self.rate, self._regret_budget, beliefs, survival, context)

    def _update_survival(self, plan: _Plan, signals: Sequence[float]) -> None:
        for i in range(len(self._survival), len(signals)):
            before = self._survival[-1] if self._survival else 1.0
            self._survival.append(before * self._believed(plan.origin, signals[i], i + 1))

    def _compare(self, plan: _Plan, worth: float) -> None:
        """Update the drafter's surplus: the value of stopping at a doubtful draft, which no fixed number of drafts has."""
        surplus, rounds = self._surplus.get(plan.origin, (0.0, 0.0))
        rounds = min(rounds + 1, AVERAGING_ROUNDS)
        self._surplus[plan.origin] = surplus + (worth - plan.expected_worth - surplus) / (rounds + 4), rounds

    def learn(self, done: Round) -> None:
        """Update costs, acceptance, λ and the budgets from a finished round."""
        costs, origin, context = self.costs, done.origin, done.context
        change = 0.0 if origin == "self" else costs.switch(done.submitted + 1, context)
        feared, first = costs.feared_change, not costs.width and costs.switching > 0
        if costs.foreign and not costs.widest_here:
            costs.adopt(done.verify_seconds, context)
        costs.widest_here = max(costs.widest_here, done.submitted + 1)
        if origin is None:
            costs.observe(1, context, done.verify_seconds)
            plain = costs.target(1, context)
            expected = plain + change
        else:
            self._learn_costs(origin, done)
            self._learn_acceptance(origin, done)
            submitted, kept = done.drafted
            if origin == "lookup" and submitted:
                self._proven = max(UNPROVEN_LOOKUP_DRAFTS, 2 * submitted if kept == submitted else 0)
            plain = costs.target(1, context)
            expected = costs.drafts(origin, len(done.signals), done.tokens_behind, context) + costs.overhead[origin]
            expected += costs.verifying_pass(origin, done.submitted, context, drafted=len(done.signals)) + change
            expected += costs.replay(done.submitted, done.kept, context)
        # One outlier is nobody's fault, plain passes have them too; two rounds in a row are what drafting costs.
        late = done.seconds > HICCUP_FACTOR * expected and not first
        seconds = min(
            done.seconds,
            expected if first else (MAX_SLOWDOWN if self._late or origin is None else HICCUP_FACTOR) * expected,
        )
        self._late = late if origin is not None else self._late
        passes, changing = (seconds / plain, max(feared, change / plain)) if plain > 0 else (1.0, 0.0)
        self._update_budgets(done, passes, changing)
        self._pace.add(done.tokens, seconds / costs.drift.factor)

    def _update_budgets(self, done: Round, passes: float, changing: float) -> None:
        """Update both budgets by a round that took as long as `passes` plain passes, at most `changing` to change the width."""
        change = REGRET_BUDGET_SHARE * passes
        self._exploration_budget = min(self._exploration_budget + change, MAX_EXPLORATION_BUDGET_PASSES)
        if done.origin is None:
            deciding = done.seconds - done.verify_seconds
            change -= passes * min(max(deciding / done.seconds, 0.0), 1.0) if done.seconds > 0 else 0.0
            # Without the drafts before there would have been no other width.
            change -= min(changing, max(0.0, passes - 1))
        else:
            change += done.tokens - passes
            if done.origin in self._free_prefill and done.signals:
                self._free_prefill.remove(done.origin)
                costs, plain = self.costs, self.costs.target(1, done.context)
                change += (
                    costs.drafts(done.origin, 1, done.tokens_behind, done.context)
                    - costs.drafts(done.origin, 1, 1, done.context)
                ) / plain
        self._regret_budget = min(self._regret_budget + change, MAX_REGRET_BUDGET_PASSES)

    def _learn_acceptance(self, origin: DraftSource, done: Round) -> None:
        acceptance_model = self.acceptance_models.get(origin)
        submitted, kept = done.drafted
        for i in range(min(kept + 1, submitted)):
            if acceptance_model is not None:
                acceptance_model.observe(done.signals[i], i + 1, 1.0 if i < kept else 0.0)
        if acceptance_model is not None and kept == submitted < len(done.signals) and done.chain is None:
            # Or `typical` would cover only drafts that were good enough to verify.
            acceptance_model.expect(acceptance_model(done.signals[kept], kept + 1))
        for other, theirs in self.acceptance_models.items():
            if other != origin:
                theirs.fade()

    def _learn_costs(self, origin: DraftSource, done: Round) -> None:
        costs, drafted, verifying = self.costs, len(done.signals), done.verify_seconds
        if drafted:
            curve, spent = costs.draft[origin], done.draft_seconds
            if done.tokens_behind <= 2 or origin != "draft":
                curve.observe(1, done.context, spent / drafted)
            else:
                rest = (drafted - 1) * curve(1, done.context)
                curve.observe(done.tokens_behind, done.context, max(spent - rest, 0.2 * spent))
        if origin == "self" and drafted:
            resubmit = costs.reading(origin, 1, done.context) if done.submitted == drafted else 0.0
            costs.complete.observe(done.submitted + 1, done.context, max(verifying - resubmit, 0.2 * verifying))
        else:
            costs.observe(done.submitted + 1, done.context, verifying)
        if costs.replays and done.kept < done.submitted:
            costs.observe_replay(done.kept, done.context, done.replay_seconds)
        rest = max(0.0, done.seconds - done.draft_seconds - verifying - done.replay_seconds) / costs.drift.factor
        costs.overhead[origin] = costs.overhead.get(origin, rest) * 0.9 + rest * 0.1
