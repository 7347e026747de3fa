"""How far to guess, how much of the guess to submit, and whether to guess at all.

Decoding is a renewal process: each round spends time and yields tokens, so the best long-run rate λ (tokens per second) prices
every second (λ is the Dinkelbach multiplier of "maximise tokens/time", tracked from the rounds themselves). With S_i the
probability that the first i drafts all stay, D the cost of a draft, T(n) that of a target pass of n tokens, o a round's fixed
overhead, all measured:

1. draft one more while some number of further drafts is expected to yield more tokens than λ times what they cost;
2. submit the prefix n that maximises 1 + Σ_{i≤n} S_i - λ·T(n+1);
3. use the drafter whose round is worth most, 1 + Σ S_i - λ·(drafts + T(n+1) + o), if that beats plain's 1 - λ·T(1).

"Never slower" is kept by an account: what the policy doesn't believe in may still be tried, but only with time saved up at
`REGRET` of all time spent.

The policy sees numbers only, no tensors and no text. Times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log2
from typing import Protocol

from dynx.runtime.costs import CostCurve, Drift
from dynx.speculation.confidence import Reliability
from dynx.speculation.events import Origin

LONGEST_DRAFT = 24
"""Beyond this the prefix probabilities of real drafters are spent; lookup of verbatim copies is what gets here."""

HORIZON = 32.0
"""Rounds over which λ is averaged."""

REGRET = 0.01
"""Share of all time that may be lost to trying what is not believed to pay."""

STRETCH = 8
"""Tokens decoded plainly before the drafters are weighed again, unless a lookup matches well enough."""


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

    def __post_init__(self) -> None:
        self.target, self.complete = CostCurve(self.drift), CostCurve(self.drift)
        self.draft = {"draft": CostCurve(self.drift), "self": CostCurve(self.drift), "lookup": CostCurve(self.drift)}

    def verify(self, origin: Origin, n: int, context: int) -> float:
        """Seconds to have `n` drafts judged."""
        return (self.complete if origin == "self" else self.target)(n + 1, context)

    def drafts(self, origin: Origin, count: int, lag: int, context: int) -> float:
        """Seconds to make `count` drafts, the first after reading `lag` tokens."""
        if count == 0:
            return 0.0
        curve = self.draft[origin]
        # A draft by the first layers must pass through them once more before it can be judged.
        again = 1 if origin == "self" else 0
        return curve(lag, context) + (count - 1 + again) * curve(1, context)


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
        self._account = 0.0
        self._grant = grant  # plain passes' worth of time that may be risked at the start
        self._plain_left = 0
        self._lookup_bar = 0.0
        self._origin: Origin | None = None
        self._context = self._room = 0
        self._lag = 1
        self._probing = False
        self._survival: list[float] = []

    @property
    def rate(self) -> float:
        """λ in tokens per second of the tables' time: the achieved rate, and no less than plain's."""
        plain = self.costs.target(1, self._context) / self.costs.drift.factor
        achieved = self._tokens / self._seconds if self._seconds > 0 else 0.0
        return max(achieved, 1 / plain if plain > 0 else 0.0) / self.costs.drift.factor

    def choose(self, prospects: Sequence[Prospect], context: int, room: int) -> Origin | None:
        """Decision 3, and now and then a trial of what was decided against."""
        self._context, self._room = context, min(room, LONGEST_DRAFT)
        self._origin, self._survival, self._probing = None, [], False
        if not self.costs.target.known or self._room < 1:
            return None  # measure a plain pass first
        if self._plain_left > 0:
            self._plain_left -= 1
            if not any(p.signal is not None and p.signal >= self._lookup_bar for p in prospects):
                return None
        rate = self.rate
        plain = 1 - rate * self.costs.target(1, context)
        best, best_worth, second, second_worth = None, plain, None, float("-inf")
        for prospect in prospects:
            worth = self._worth(prospect, rate)
            if worth > best_worth:
                best, best_worth = prospect, worth
            if worth > second_worth and worth < plain:
                second, second_worth = prospect, worth
        if best is None:
            self._plain_left = STRETCH
            self._lookup_bar = min((p.signal for p in prospects if p.signal is not None), default=0.0) + 1
            loss = (plain - second_worth) / rate
            if second is not None and loss < self._account:
                best, self._probing = second, True
        if best is None:
            return None
        self._origin, self._lag = best.origin, best.lag
        return best.origin

    def _worth(self, prospect: Prospect, rate: float) -> float:
        """The best 1 + Σ S_i - λ·cost over numbers of drafts."""
        origin, best, survival, total = prospect.origin, float("-inf"), 1.0, 1.0
        if origin == "lookup" and prospect.signal is None:
            return best
        overhead = self.costs.overhead.get(origin, 0.0) * self.costs.drift.factor
        for k in range(1, self._room + 1):
            survival *= self._foresee(origin, prospect.signal, k)
            if survival < 0.01 and k > 1:
                break
            total += survival
            spent = self.costs.drafts(origin, k, prospect.lag, self._context)
            worth = total - rate * (spent + self.costs.verify(origin, k, self._context) + overhead)
            if worth > best:
                best = worth
            elif k > 8:
                break
        return best

    def _foresee(self, origin: Origin, first_signal: float | None, k: int) -> float:
        """Acceptance of draft k before it is made."""
        reliability = self.reliability[origin]
        if first_signal is None:
            return reliability.typical
        return reliability(log2(2**first_signal + k - 1), k)  # a match grows by one with each guess that holds

    def another(self, signals: Sequence[float]) -> bool:
        """Decision 1."""
        origin = self._origin
        if origin is None or len(signals) >= self._room:
            return False
        k = len(signals)
        self._update(origin, signals)
        if k == 0:
            return True
        survival, rate, context = self._survival[-1], self.rate, self._context
        if self._probing and k >= 2:
            return False
        draft = self.costs.draft[origin](1, context)
        here, gain, ahead = self.costs.verify(origin, k, context), 0.0, survival
        for j in range(1, min(self._room - k, 8) + 1):
            ahead *= self._foresee(origin, signals[0] if origin == "lookup" else None, k + j)
            gain += ahead
            if gain > rate * (j * draft + self.costs.verify(origin, k + j, context) - here):
                return True
            if ahead < 0.02:
                break
        return False

    def submit(self, signals: Sequence[float]) -> int:
        """Decision 2."""
        origin = self._origin
        if origin is None or not signals:
            return 0
        self._update(origin, signals)
        if not self._submit_prefixes:
            return len(signals)
        rate, context = self.rate, self._context
        best, best_worth, total = 0, 1 - rate * self.costs.verify(origin, 0, context), 1.0
        for n, survival in enumerate(self._survival, start=1):
            total += survival
            worth = total - rate * self.costs.verify(origin, n, context)
            if worth > best_worth:
                best, best_worth = n, worth
        return max(best, 1) if self._probing else best

    def _update(self, origin: Origin, signals: Sequence[float]) -> None:
        reliability = self.reliability[origin]
        for i in range(len(self._survival), len(signals)):
            before = self._survival[-1] if self._survival else 1.0
            self._survival.append(before * reliability(signals[i], i + 1))

    def learn(self, done: Round) -> None:
        """Costs, acceptance, λ and the account, from a finished round."""
        costs, origin = self.costs, done.origin
        drafted = len(done.signals)
        if origin is None:
            costs.target.observe(1, done.context, done.verify_seconds)
        else:
            curve = costs.complete if origin == "self" else costs.target
            curve.observe(done.submitted + 1, done.context, done.verify_seconds)
            if drafted:
                self._learn_draft(origin, done, drafted)
            reliability = self.reliability[origin]
            for i in range(min(done.kept + 1, done.submitted)):
                reliability.observe(done.signals[i], i + 1, 1.0 if i < done.kept else 0.0)
            rest = max(0.0, done.seconds - done.draft_seconds - done.verify_seconds) / costs.drift.factor
            costs.overhead[origin] = costs.overhead.get(origin, rest) * 0.9 + rest * 0.1
        keep = 1 - 1 / HORIZON
        seconds = done.seconds / costs.drift.factor
        self._tokens = self._tokens * keep + done.tokens
        if self._seconds == 0.0:
            self._seconds = seconds * self._tokens / done.tokens
            self._account += self._grant * seconds
        else:
            self._seconds = self._seconds * keep + seconds
        if self._probing:
            self._account -= max(0.0, seconds - done.tokens * costs.target(1, done.context) / costs.drift.factor)
        else:
            self._account += REGRET * seconds

    def _learn_draft(self, origin: Origin, done: Round, drafted: int) -> None:
        curve = self.costs.draft[origin]
        if origin == "self":
            curve.observe(1, done.context, done.draft_seconds / (drafted + (done.submitted == drafted)))
        elif done.lag <= 2:
            curve.observe(1, done.context, done.draft_seconds / drafted)
        elif drafted == 1:
            curve.observe(done.lag, done.context, done.draft_seconds)
        elif curve.known:
            rest = (drafted - 1) * curve(1, done.context)
            curve.observe(done.lag, done.context, max(done.draft_seconds - rest, 0.2 * done.draft_seconds))
