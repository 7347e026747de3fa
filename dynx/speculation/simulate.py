"""Scores a policy without a model, by walking a recording of every drafter's drafts at every position.

A text is decoded once and, at each of its positions, each drafter drafts to full depth; the recording holds the signals and how
many drafts the target would have accepted. After that any policy can be walked over the recording with any costs, and so can two
yardsticks:

- the *clairvoyant* optimum, which knows what will be kept: no policy is faster;
- the *informed* optimum, which knows only what a policy may know, but all of it: costs, acceptance calibrated on the very
  recording, the rate it will reach. What a policy loses against it is the price of learning under way.

Times are seconds. Nothing here loads a tensor library.
"""

from __future__ import annotations

import math
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynx.speculation.acceptance_model import AcceptanceModel
from dynx.speculation.policy import Dynamic, Plain, Policy, Round, Static
from dynx.speculation.types import DrafterCandidate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dynx.speculation.round_costs import Costs
    from dynx.speculation.types import DraftSource

MAX_FIXED_POINT_STEPS = 6
"""Limit of Dinkelbach's iteration, which converges superlinearly: the third step moves the rate by less than 0.1 %."""

MAX_STATIC_DRAFT_TOKENS = 10
"""Longest static draft that the informed optimum is compared with; lengths that people set by hand are shorter."""

OPTIMISM_TOKENS = 1.0
"""Tokens by which the informed optimum overrates a drafter's first rounds, so that each is tried."""


@dataclass(frozen=True)
class DraftTrace:
    """One drafter's drafts at one position, to full depth, and how many of them the target accepts."""

    signals: tuple[float, ...] = ()
    kept: int = 0


@dataclass(frozen=True)
class Recording:
    """One decoded text. `traces[drafter][t]` is made when `prompt` + t tokens are written.

    `prompt` counts the token that the prompt's own pass gives; `t` runs over the tokens after it.
    """

    prompt: int
    traces: Mapping[DraftSource, Sequence[DraftTrace]]

    @property
    def tokens(self) -> int:
        """Tokens of the text after the prompt's pass, which is where drafting begins."""
        return min((len(g) for g in self.traces.values()), default=0)

    def verified_drafts(self, origin: DraftSource) -> Iterator[tuple[float, int, float]]:
        """(signal, position, accepted) of every draft verified with all before it accepted, as calibration fits them."""
        for trace in self.traces[origin]:
            for i, signal in enumerate(trace.signals[: trace.kept + 1]):
                yield signal, i + 1, 1.0 if i < trace.kept else 0.0


@dataclass(frozen=True)
class Outcome:
    """The tokens and time of a walk."""

    tokens: int
    seconds: float
    rounds: tuple[Round, ...]

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Bound:
    """The tokens and time of an oracle."""

    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def simulate(
    recording: Recording, policy: Policy, costs: Costs, *, pace: Callable[[int], float] = lambda _: 1.0
) -> Outcome:
    """Walk `recording` as the engine would, under `policy` and charging `costs`.

    `costs` is what things truly take and isn't changed; a policy that learns has its own. `pace(t)` multiplies each measured
    piece of the round at position t: noise, or a machine that slows down.
    """
    at, rounds = 0, []
    costs = copy(costs)  # so that the widths of this walk aren't those of the next
    costs.width, costs.staying = 0, {}
    held = dict.fromkeys(recording.traces, 0)  # tokens of the text that a drafter has read
    while at < recording.tokens:
        written = recording.prompt + at
        tokens_behind_by_drafter = {o: written - held[o] if o == "draft" else 1 for o in recording.traces}
        done = _round(recording, at, policy, costs, tokens_behind_by_drafter, pace)
        policy.learn(done)
        costs.ran(done.submitted + 1)
        if done.origin is not None and done.signals:
            # Its own last draft is the one token that a drafter hasn't read.
            held[done.origin] = written + min(done.kept, len(done.signals) - 1)
        rounds.append(done)
        at += done.tokens
    return Outcome(at, sum(r.seconds for r in rounds), tuple(rounds))


def _round(
    recording: Recording,
    at: int,
    policy: Policy,
    costs: Costs,
    tokens_behind_by_drafter: Mapping[DraftSource, int],
    pace: Callable[[int], float],
) -> Round:
    room, context = recording.tokens - at - 1, recording.prompt + at - 1
    candidates = [
        DrafterCandidate(o, tokens_behind_by_drafter[o], g[at].signals[0] if o == "lookup" and g[at].signals else None)
        for o, g in recording.traces.items()
    ]
    origin = policy.choose(candidates, context, room) if room and candidates else None
    if origin is None:
        spent = (costs.target(1, context) + costs.switch(1, context)) * pace(at)
        return Round(context, None, verify_seconds=spent, seconds=spent)
    trace = recording.traces[origin][at]
    signals: list[float] = []
    while len(signals) < room and policy.should_draft_more(signals) and len(signals) < len(trace.signals):
        signals.append(trace.signals[len(signals)])
    submitted = policy.verify_length(signals)
    drafting = costs.drafts(origin, len(signals), tokens_behind_by_drafter[origin], context) * pace(at)
    verifying = costs.verify(origin, submitted, context, drafted=len(signals)) * pace(at)
    kept = min(trace.kept, submitted)
    replaying = costs.replay(submitted, kept, context) * pace(at)
    seconds = drafting + verifying + replaying + costs.overhead.get(origin, 0.0) * pace(at)
    return Round(
        context,
        origin,
        tokens_behind_by_drafter[origin],
        signals,
        submitted,
        kept,
        drafting,
        verifying,
        seconds,
        replaying,
    )


def speedup(recording: Recording, policy: Policy, costs: Costs) -> float:
    """Return how many times faster than plain decoding `policy` walks `recording`."""
    return simulate(recording, Plain(), costs).seconds / simulate(recording, policy, costs).seconds


def oracle(recording: Recording, costs: Costs, *, informed: bool) -> Bound:
    """Return the best possible: with hindsight, or (`informed`) with all that can be known beforehand."""
    return _informed(recording, costs) if informed else _clairvoyant(recording, costs)


def _clairvoyant(recording: Recording, costs: Costs) -> Bound:
    """Find the quickest way through the positions by dynamic programming from the end.

    Drafters are taken to have read everything, so it is a bound that policies with a lagging drafter can't quite reach.
    """
    total = recording.tokens
    left = [0.0] * (total + 1)  # seconds from a position to the end
    for t in range(total - 1, -1, -1):
        context, room = recording.prompt + t - 1, total - t - 1
        best = costs.target(1, context) + left[t + 1]
        for origin, traces in recording.traces.items():
            trace, overhead = traces[t], costs.overhead.get(origin, 0.0)
            # More than will be kept is worth submitting only where a wider pass is a cheaper one: then too.
            for n in range(min(len(trace.signals), room) + 1):
                spent = costs.drafts(origin, n, 1, context) + costs.verify(origin, n, context, drafted=n) + overhead
                spent += costs.replay(n, min(n, trace.kept), context)
                best = min(best, spent + left[t + min(n, trace.kept) + 1])
        left[t] = best
    return Bound(total, left[0])


class _Informed(Dynamic):
    """The dynamic policy with calibration, costs and rate known, and an unlimited regret budget.

    With `follow` it tracks acceptance through the text; without, it uses signals alone.
    """

    def __init__(
        self, costs: Costs, acceptance_models: Mapping[DraftSource, AcceptanceModel], rate: float, *, follow: bool
    ) -> None:
        super().__init__(costs, deepcopy(acceptance_models), rate=rate, regret_budget=math.inf)
        self._fixed, self._follow = rate, follow
        self._surplus = dict.fromkeys(acceptance_models, (OPTIMISM_TOKENS, 0.0))  # so that each is tried at least once

    @property
    def rate(self) -> float:
        return self._fixed

    def learn(self, done: Round) -> None:
        if self._follow and done.origin is not None:
            for i in range(min(done.kept + 1, done.submitted)):
                self.acceptance_models[done.origin].expect(1.0 if i < done.kept else 0.0)


def _informed(recording: Recording, costs: Costs) -> Bound:
    """Run the dynamic policy at the fixed point of its rate, or plain or a static length where that is faster."""
    acceptance_models = {origin: AcceptanceModel() for origin in recording.traces}
    for origin, fitted in acceptance_models.items():
        fitted.fit(recording.verified_drafts(origin))
    fixed: list[Policy] = [Plain()]
    fixed += [Static(origin, length) for origin in recording.traces for length in range(1, MAX_STATIC_DRAFT_TOKENS + 1)]
    best = max((simulate(recording, policy, costs) for policy in fixed), key=lambda outcome: outcome.rate)
    for follow in (False, True):
        rate = best.rate
        for _ in range(MAX_FIXED_POINT_STEPS):
            tried = simulate(recording, _Informed(costs, acceptance_models, rate, follow=follow), costs)
            best = max(best, tried, key=lambda outcome: outcome.rate)
            if tried.rate <= rate:
                break
            rate = tried.rate
    return Bound(best.tokens, best.seconds)
