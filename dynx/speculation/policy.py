"""How far to guess, how much of the guess to submit, and whether to guess at all.

Decoding is a renewal process: each round spends time and yields tokens, so the best long-run rate λ (tokens per second) prices
every second (λ is the Dinkelbach multiplier of "maximise tokens/time", tracked from the rounds themselves). With S_i the
probability that the first i drafts all stay, D the cost of a draft, T(n) that of a target pass of n tokens, o a round's fixed
overhead, all measured:

1. draft one more while some number of further drafts is expected to yield more tokens than λ times what they cost;
2. submit the prefix n that maximises 1 + Σ_{i≤n} S_i - λ·T(n+1);
3. use the drafter whose round is worth most, 1 + Σ S_i - λ·(drafts + T(n+1) + o), if that beats plain's 1 - λ·T(1).

"Never slower" is kept by an account in plain passes: a round faster than plain pays in, a slower one draws out, and no round is
begun that could lose more than is there. It starts with a grant and earns `REGRET` of all time, so that is the most that can
be lost however wrong the beliefs are. What was never run on this machine is feared to cost more than it is expected to, and
deciding itself is charged too. A second, smaller account pays for trying what is believed to be second best.

The policy sees numbers only, no tensors and no text. Times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log2
from typing import TYPE_CHECKING, Protocol

from dynx.runtime.costs import MAX_SLOWDOWN, CostCurve, Drift

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynx.speculation.acceptance_model import Reliability
    from dynx.speculation.types import Origin

LONGEST_DRAFT = 24
"""Beyond this the prefix probabilities of real drafters are spent; lookup of verbatim copies is what gets here."""

HORIZON = 32.0
"""Rounds over which λ and each drafter's surplus are averaged."""

REGRET = 0.0125
"""Share of all time that may be lost against plain, and as much against the best drafter for trying others."""

DEPOSIT = 16.0
"""Plain passes that the account holds at most: what a change for the worse may cost before drafting stops."""

TRIAL_DEPOSIT = 2.0
"""Plain passes saved up at most for trials, or they would come in bursts."""

STRETCH = 8
"""Tokens decoded plainly before the drafters are weighed again, unless a lookup matches well enough."""

PATIENCE = 8
"""Drafts looked ahead past the best number so far: enough to see over a step of T onto the next plateau."""

SPENT = 0.02
"""Probability that all drafts so far stay, below which no further one is looked at."""

READING_ROUNDS = 64
"""At most so many rounds share what a drafter must read before its first guess."""

FIRST_PASS = 2.0
"""What a pass wider than any so far on this machine may take, in passes of that width: it allocates, at an unknown slope."""

UNMEASURED = 0.25
"""Cost of a model's draft against a target pass until it has been measured."""


@dataclass(frozen=True)
class Prospect:
    """One drafter's position before a round: tokens it must read first, and its first guess's signal if known."""

    origin: Origin
    lag: int = 1
    signal: float | None = None


@dataclass(frozen=True)
class Round:
    """What a round was and what it cost, for the policy to learn from."""

    context: int
    origin: Origin | None  # None: plain
    lag: int = 1
    signals: Sequence[float] = ()  # of all drafts made
    submitted: int = 0
    kept: int = 0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    seconds: float = 0.0  # of the whole round

    @property
    def tokens(self) -> int:
        """Tokens the round appended."""
        return self.kept + 1


class Policy(Protocol):
    """Decides a round; the engine asks in this order and reports with `learn`."""

    def choose(self, prospects: Sequence[Prospect], context: int, room: int) -> Origin | None:
        """The drafter of this round, or None for a plain pass. `room`: drafts that could still be used."""

    def another(self, signals: Sequence[float]) -> bool:
        """Whether to make one more draft after those with `signals`."""

    def submit(self, signals: Sequence[float]) -> int:
        """How many of the drafts to have judged."""

    def learn(self, done: Round) -> None:
        """Take note of a finished round."""


class Plain:
    """Never drafts."""

    def choose(self, prospects: Sequence[Prospect], context: int, room: int) -> Origin | None:
        """None."""
        return None

    def another(self, signals: Sequence[float]) -> bool:
        """Never."""
        return False

    def submit(self, signals: Sequence[float]) -> int:
        """Whatever there is."""
        return len(signals)

    def learn(self, done: Round) -> None:
        """Nothing."""


class Static(Plain):
    """Always `length` drafts from one drafter: what other tools let the user set, and the bar for the dynamic policy."""

    def __init__(self, origin: Origin, length: int) -> None:
        self.origin, self.length = origin, length
        self._room = 0

    def choose(self, prospects: Sequence[Prospect], context: int, room: int) -> Origin | None:
        """Its drafter, if that has anything to say."""
        self._room = min(room, self.length)
        here = any(p.origin == self.origin and (p.origin != "lookup" or p.signal is not None) for p in prospects)
        return self.origin if here and self._room else None

    def another(self, signals: Sequence[float]) -> bool:
        """Until the length is reached."""
        return len(signals) < self._room


@dataclass
class Costs:
    """Everything the dynamic policy has measured, one drift for all of it."""

    drift: Drift = field(default_factory=Drift)
    target: CostCurve = field(init=False)
    complete: CostCurve = field(init=False)  # the layers behind the exit, for n positions
    draft: dict[Origin, CostCurve] = field(init=False)
    overhead: dict[Origin, float] = field(default_factory=dict)  # of a round, beyond its passes
    foreign: bool = False  # whether the tables were measured on another machine: then only their ratios mean something
    widest_here: int = 0  # tokens of the widest target pass seen on this machine, where the tables are foreign

    def __post_init__(self) -> None:
        self.target, self.complete = CostCurve(self.drift), CostCurve(self.drift)
        self.draft = {"draft": CostCurve(self.drift), "self": CostCurve(self.drift), "lookup": CostCurve(self.drift)}

    def verify(self, origin: Origin, n: int, context: int, *, drafted: int | None = None) -> float:
        """Seconds to have `n` of `drafted` drafts judged; of exactly `n` by default."""
        if origin != "self":
            return self.target(n + 1, context)
        # The last draft of the first layers must pass through them once more before it can be judged.
        again = self.reading("self", 1, context) if drafted is None or n == drafted else 0.0
        known = self.complete.known
        return again + (self.complete(n + 1, context) if known else (1 - UNMEASURED) * self.target(n + 1, context))

    def judging(self, origin: Origin, most: int, context: int) -> list[float]:
        """Seconds to have 0, 1 … `most` drafts judged, if more than those were made."""
        if origin == "self" and self.complete.known:
            return self.complete.upto(most + 1, context)
        passes = self.target.upto(most + 1, context)
        return [(1 - UNMEASURED) * t for t in passes] if origin == "self" else passes

    def charted(self, origin: Origin) -> int:
        """Drafts whose cost is known well enough to risk: one at first, then what passes twice as wide as any so far carry."""
        if origin != "lookup" and not self.draft[origin].known:
            return 1
        return max(1, 2 * self._tried(origin) - 1)

    def _tried(self, origin: Origin) -> int:
        """Tokens of the widest pass that judged drafts on this machine, or in its profile."""
        return self.widest_here if self.foreign else (self.complete if origin == "self" else self.target).widest

    def feared(self, origin: Origin, n: int, context: int) -> float:
        """Seconds by which a round with `n` drafts may exceed what is expected of it, as part of it was never run here.

        A pass at most twice as wide as any before takes at most twice as long, as its work is at most proportional.
        """
        wider = n + 1 > self._tried(origin)
        unmeasured = origin != "lookup" and not self.draft[origin].known
        if not wider and not unmeasured:
            return 0.0
        plain = self.target(1, context)
        widest = self.target(max(1, self._tried(origin)), context)
        more = max(0.0, FIRST_PASS * widest - self.target(n + 1, context)) if wider else 0.0
        return more + (1 - UNMEASURED) * plain if unmeasured else more

    def cheapest_round(self, context: int) -> float:
        """Plain passes that the cheapest round with a draft may take: looked up, and judged by a pass of two tokens."""
        plain = self.target(1, context)
        return (self.target(2, context) + self.feared("lookup", 1, context)) / plain if plain > 0 else FIRST_PASS

    def adopt(self, seconds: float, context: int) -> None:
        """Take a foreign table's ratios to this machine, on which a plain pass took so long."""
        expected = self.target(1, context)
        if expected > 0:
            self.drift.factor *= seconds / expected
        self.widest_here = 1

    def reading(self, origin: Origin, n: int, context: int) -> float:
        """Seconds of a drafter's pass over `n` tokens, which ends in one draft."""
        curve = self.draft[origin]
        return curve(n, context) if curve.known or origin == "lookup" else UNMEASURED * self.target(n, context)

    def drafts(self, origin: Origin, count: int, lag: int, context: int) -> float:
        """Seconds to make `count` drafts, the first after reading `lag` tokens."""
        if count == 0:
            return 0.0
        return self.reading(origin, lag, context) + (count - 1) * self.reading(origin, 1, context)


@dataclass(slots=True)
class _Plan:
    """A drafter's round as foreseen, in seconds of now."""

    origin: Origin
    signal: float | None  # of its first guess, if known
    each: float  # one draft
    reading: float  # more for the first, which must read what the drafter missed
    again: float  # more if everything drafted is submitted
    judging: list[float]  # by drafts submitted
    feared: list[float]  # that the round may take besides, by drafts submitted
    overhead: float
    most: float  # that the round may take
    spared: float  # of `reading`: later rounds' share
    foreseen: float = float("-inf")  # 1 + Σ S_i - λ·cost, best over numbers of drafts
    worth: float = float("-inf")  # that, and what foresight lately missed

    def drafting(self, k: int) -> float:
        """Seconds up to the verdict on `k` drafts."""
        return k * self.each + self.reading + self.overhead

    def seconds(self, k: int) -> float:
        """Of the round if `k` drafts are made and all submitted."""
        return self.drafting(k) + self.again + self.judging[k]


class Dynamic:
    """The three decisions, from `costs` and `reliability`, both of which go on learning.

    `submit_prefixes` is off where the acceptance rule forbids dropping drafts after the fact (see `acceptance`). `rate`
    (tokens per second) starts λ where a profile knows it.
    """

    def __init__(
        self,
        costs: Costs,
        reliability: Mapping[Origin, Reliability],
        *,
        submit_prefixes: bool = True,
        rate: float | None = None,
        grant: float = 2.0,
    ) -> None:
        self.costs = costs
        self.reliability = reliability
        self._submit_prefixes = submit_prefixes
        self._tokens = HORIZON * 0.5
        self._seconds = self._tokens / rate if rate else 0.0
        self._account = grant  # plain passes
        self._trials = 0.0  # plain passes
        # Where a profile promises a gain, reading the prompt is an investment; else the account must bear it too.
        self._forgiven = set(reliability) if rate else set()
        self._surplus: dict[Origin, tuple[float, float]] = {}  # tokens, and rounds behind them
        self._plain_left = 0
        self._lookup_bar = 0.0
        self._context = 0
        self._price = 0.0  # λ in this round
        self._plan: _Plan | None = None
        self._trying = False
        self._survival: list[float] = []

    @property
    def rate(self) -> float:
        """λ in tokens per second of now: the rate achieved lately, and no less than plain's."""
        plain = self.costs.target(1, self._context)
        achieved = self._tokens / (self._seconds * self.costs.drift.factor) if self._seconds > 0 else 0.0
        return max(achieved, 1 / plain if plain > 0 else 0.0)

    def choose(self, prospects: Sequence[Prospect], context: int, room: int) -> Origin | None:
        """Decision 3, and now and then a trial of what was decided against."""
        self._context, self._plan, self._trying, self._survival = context, None, False, []
        if room < 1 or not self.costs.target.known or (self.costs.foreign and not self.costs.widest_here):
            return None  # measure a plain pass first
        if not self._forgiven and self._account + 1 < self.costs.cheapest_round(context):
            return None  # so that nothing is looked up that can't be used
        if self._plain_left > 0:
            self._plain_left -= 1
            if not any(p.signal is not None and p.signal >= self._lookup_bar for p in prospects):
                return None
        self._price = self.rate
        ready = [p for p in prospects if p.origin != "lookup" or p.signal is not None]
        plans = sorted((self._foresee(p, room) for p in ready), key=lambda plan: -plan.worth)
        self._plan = self._pick(plans)
        if self._plan is None:
            self._plain_left = STRETCH
            self._lookup_bar = min((p.signal for p in ready if p.signal is not None), default=0.0) + 1
            return None
        return self._plan.origin

    def _pick(self, plans: Sequence[_Plan]) -> _Plan | None:
        """The best of `plans` (best first) or plain; or the next best, if it costs no more than was saved up for trials."""
        plain = self._price * self.costs.target(1, self._context)
        best = plans[0] if plans and plans[0].worth > 1 - plain else None
        others = plans[1:] if best else plans
        if others:
            loss = ((best.worth if best else 1 - plain) - others[0].worth) / plain
            if loss < self._trials:
                self._trials -= loss
                self._trying = True
                return others[0]
        return best

    def _foresee(self, prospect: Prospect, room: int) -> _Plan:
        costs, origin, context, price = self.costs, prospect.origin, self._context, self._price
        drafts = min(room, LONGEST_DRAFT, costs.charted(origin))
        each = costs.reading(origin, 1, context)
        reading = costs.reading(origin, prospect.lag, context) - each if prospect.lag > 1 else 0.0
        plan = _Plan(
            origin,
            prospect.signal,
            each,
            reading,
            again=each if origin == "self" else 0.0,
            judging=costs.judging(origin, drafts, context),
            feared=[costs.feared(origin, k, context) for k in range(drafts + 1)],
            overhead=costs.overhead.get(origin, 0.0) * costs.drift.factor,
            most=(self._account + 1) * costs.target(1, context) + (reading if origin in self._forgiven else 0.0),
            spared=reading * (1 - 1 / max(1, min(READING_ROUNDS, room / 4))),
        )
        fixed, judging = plan.drafting(0) + plan.again, plan.judging
        best, at, tokens, survival, ahead = plan.foreseen, 0, 1.0, 1.0, 0.0
        for k in range(1, drafts + 1):
            seconds = fixed + k * each + judging[k]
            if seconds + plan.feared[k] > plan.most or k - at > PATIENCE or survival < SPENT:
                break
            if k & (k - 1) == 0:  # it changes slowly: between powers of two it is taken as it was
                ahead = self._ahead(plan, k)
            survival *= ahead
            tokens += survival
            worth = tokens - price * (seconds - plan.spared)
            if worth > best:
                best, at = worth, k
        plan.foreseen, plan.worth = best, best + self._surplus.get(origin, (0.0, 0.0))[0]
        return plan

    def _ahead(self, plan: _Plan, k: int) -> float:
        """Acceptance of draft k before it is made."""
        reliability = self.reliability[plan.origin]
        if plan.signal is None:
            return reliability.typical
        return reliability(log2(2**plan.signal + k - 1), k)  # a match grows by one with each guess that holds

    def another(self, signals: Sequence[float]) -> bool:
        """Decision 1."""
        plan, k = self._plan, len(signals)
        if plan is None or k + 1 >= len(plan.judging):
            return False
        if k == 0:
            return True
        if plan.seconds(k + 1) + plan.feared[k + 1] > plan.most:
            return False
        self._judge(plan, signals)
        gain, ahead, here = 0.0, self._survival[-1], plan.judging[k]
        for j in range(1, min(len(plan.judging) - 1 - k, PATIENCE) + 1):
            ahead *= self._ahead(plan, k + j)
            gain += ahead
            if gain > self._price * (j * plan.each + plan.judging[k + j] - here):
                return True
            if ahead < SPENT:
                break
        return False

    def submit(self, signals: Sequence[float]) -> int:
        """Decision 2."""
        plan, k = self._plan, len(signals)
        if plan is None or k == 0:
            return 0
        self._judge(plan, signals)
        best, best_worth, tokens = 0, 1 - self._price * plan.judging[0], 1.0
        for n, survival in enumerate(self._survival, start=1):
            tokens += survival
            worth = tokens - self._price * (plan.judging[n] + (plan.again if n == k else 0.0))
            if worth > best_worth or (n == k and not self._submit_prefixes):
                best, best_worth = n, worth
        self._compare(plan, best_worth - self._price * (plan.drafting(k) - plan.spared))
        return max(best, 1) if self._trying else best

    def _judge(self, plan: _Plan, signals: Sequence[float]) -> None:
        reliability = self.reliability[plan.origin]
        for i in range(len(self._survival), len(signals)):
            before = self._survival[-1] if self._survival else 1.0
            self._survival.append(before * reliability(signals[i], i + 1))

    def _compare(self, plan: _Plan, worth: float) -> None:
        """Note what seeing the drafts was worth: stopping at a doubtful one has a value that no fixed number foresees."""
        surplus, rounds = self._surplus.get(plan.origin, (0.0, 0.0))
        rounds = min(rounds + 1, HORIZON)
        self._surplus[plan.origin] = surplus + (worth - plan.foreseen - surplus) / (rounds + 4), rounds

    def learn(self, done: Round) -> None:
        """Costs, acceptance, λ and the accounts, from a finished round."""
        costs, origin, context = self.costs, done.origin, done.context
        if costs.foreign and not costs.widest_here:
            costs.adopt(done.verify_seconds, context)
        costs.widest_here = max(costs.widest_here, done.submitted + 1)
        if origin is None:
            costs.target.observe(1, context, done.verify_seconds)
            expected = plain = costs.target(1, context)
        else:
            self._learn_costs(origin, done)
            self._learn_acceptance(origin, done)
            plain = costs.target(1, context)
            expected = costs.drafts(origin, len(done.signals), done.lag, context) + costs.overhead[origin]
            expected += costs.verify(origin, done.submitted, context, drafted=len(done.signals))
        # A hiccup of the machine is nobody's fault: it counts as little here as it does in the curves.
        seconds = min(done.seconds, MAX_SLOWDOWN * expected)
        self._settle(done, seconds / plain if plain > 0 else 1.0)
        seconds /= costs.drift.factor
        if self._seconds > 0:
            keep = 1 - 1 / HORIZON
            self._tokens, self._seconds = self._tokens * keep + done.tokens, self._seconds * keep + seconds
        else:
            self._seconds = seconds * self._tokens / done.tokens

    def _settle(self, done: Round, passes: float) -> None:
        """Book a round that took as long as so many plain passes."""
        change = REGRET * passes
        self._trials = min(self._trials + change, TRIAL_DEPOSIT)
        if done.origin is None:
            deciding = done.seconds - done.verify_seconds
            change -= passes * min(max(deciding / done.seconds, 0.0), 1.0) if done.seconds > 0 else 0.0
        else:
            change += done.tokens - passes
            if done.origin in self._forgiven and done.signals:
                self._forgiven.remove(done.origin)
                costs, plain = self.costs, self.costs.target(1, done.context)
                change += (
                    costs.drafts(done.origin, 1, done.lag, done.context) - costs.drafts(done.origin, 1, 1, done.context)
                ) / plain
        self._account = min(self._account + change, DEPOSIT)

    def _learn_acceptance(self, origin: Origin, done: Round) -> None:
        reliability = self.reliability[origin]
        for i in range(min(done.kept + 1, done.submitted)):
            reliability.observe(done.signals[i], i + 1, 1.0 if i < done.kept else 0.0)
        if done.kept == done.submitted < len(done.signals):
            # Or the outlook would know only of drafts that were good enough to submit.
            reliability.expect(reliability(done.signals[done.kept], done.kept + 1))
        for other, theirs in self.reliability.items():
            if other != origin:
                theirs.fade()

    def _learn_costs(self, origin: Origin, done: Round) -> None:
        costs, drafted, judging = self.costs, len(done.signals), done.verify_seconds
        if drafted:
            curve, spent = costs.draft[origin], done.draft_seconds
            if done.lag <= 2 or origin != "draft":
                curve.observe(1, done.context, spent / drafted)
            else:
                rest = (drafted - 1) * curve(1, done.context)
                curve.observe(done.lag, done.context, max(spent - rest, 0.2 * spent))
        if origin == "self" and drafted:
            again = costs.reading(origin, 1, done.context) if done.submitted == drafted else 0.0
            costs.complete.observe(done.submitted + 1, done.context, max(judging - again, 0.2 * judging))
        else:
            costs.target.observe(done.submitted + 1, done.context, judging)
        rest = max(0.0, done.seconds - done.draft_seconds - judging) / costs.drift.factor
        costs.overhead[origin] = costs.overhead.get(origin, rest) * 0.9 + rest * 0.1
