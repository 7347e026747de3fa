"""What rounds cost on this machine: passes of target and drafters by number of tokens and context, and changes of width.

Times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynx.runtime.costs import MAX_SLOWDOWN, CostCurve, Drift

if TYPE_CHECKING:
    from dynx.speculation.types import DraftSource

FIRST_PASS_COST_FACTOR = 2.0
"""Cost of a pass wider than any before on this machine, in passes of the widest: it allocates, at an unknown slope."""

UNMEASURED_DRAFT_COST_SHARE = 0.25
"""Cost of a model's draft, as a share of a target pass, until it has been measured."""


RECENT_WIDTHS = 2
"""Widths between which passes alternate freely; another one costs what changing the width does."""

RETURNS = 2.0
"""Changes of width that a new one causes: to it, and back to what it drove out."""

SWITCHING_RATE = 0.1
"""Step of the running mean of what a change of width costs."""

REPLAY_RATE = 0.1
"""Step of the running mean of what it costs to read accepted tokens again."""

MAX_SWITCHING_SHARE = 0.5
"""Most that one change of width counts for, as a share of a plain pass: the rest is the machine's."""


@dataclass
class Costs:
    """All that the dynamic policy has measured, under one drift."""

    drift: Drift = field(default_factory=Drift)
    target: CostCurve = field(init=False)
    complete: CostCurve = field(init=False)  # the layers behind the exit, for n positions
    draft: dict[DraftSource, CostCurve] = field(init=False)
    overhead: dict[DraftSource, float] = field(default_factory=dict)  # of a round, beyond its passes
    foreign: bool = False  # whether the tables were measured on another machine: then only their ratios mean something
    widest_here: int = 0  # tokens of the widest target pass seen on this machine, where the tables are foreign
    switching: float = 0.0  # seconds more for a pass of a width that isn't one of the last ones
    replays: bool = False  # whether the target reads accepted tokens again after a rejection, as it restores its state
    replay_share: float = 1.0  # seconds of that, over those of a pass of as many tokens
    first_wide: float = FIRST_PASS_COST_FACTOR  # plain passes that the first pass of several tokens may take
    recent: tuple[int, ...] = ()  # the last different widths of target passes, the latest last

    def __post_init__(self) -> None:
        self.target, self.complete = CostCurve(self.drift), CostCurve(self.drift)
        self.draft = {origin: CostCurve(self.drift) for origin in ("draft", "self", "lookup", "table")}

    def verify(self, origin: DraftSource, n: int, context: int, *, drafted: int | None = None) -> float:
        """Return the seconds to verify `n` of `drafted` drafts; of exactly `n` by default."""
        if origin != "self":
            return self.target(n + 1, context) + self.switch(n + 1)
        # The last draft of the first layers must pass through them once more before it can be verified.
        resubmit = self.reading("self", 1, context) if drafted is None or n == drafted else 0.0
        known = self.complete.known
        return resubmit + (
            self.complete(n + 1, context) if known else (1 - UNMEASURED_DRAFT_COST_SHARE) * self.target(n + 1, context)
        )

    def verifying(self, origin: DraftSource, most: int, context: int) -> list[float]:
        """Return the seconds to verify 0, 1 … `most` drafts, if more than those were made."""
        if origin == "self" and self.complete.known:
            return self.complete.upto(most + 1, context)
        passes = self.target.upto(most + 1, context)
        if self.switching and origin != "self":
            again = RETURNS * self.switching * self.drift.factor
            run = self.target.padded
            return [t if run.get(n, n) in self.recent else t + again for n, t in enumerate(passes, start=1)]
        return [(1 - UNMEASURED_DRAFT_COST_SHARE) * t for t in passes] if origin == "self" else passes

    def replaying(self, most: int, context: int) -> list[float]:
        """Return the seconds that a rejection after 0, 1 … `most` accepted drafts takes besides; no times where it takes none."""
        if not self.replays:
            return []
        return [self.replay_share * t for t in self.target.upto(most + 1, context)]

    def replay(self, submitted: int, kept: int, context: int) -> float:
        """Return the seconds to read again what stays of a round in which `kept` drafts of those `submitted` were accepted."""
        if not self.replays or kept >= submitted:
            return 0.0
        return self.replay_share * self.target(kept + 1, context)

    def observe_replay(self, kept: int, context: int, seconds: float) -> None:
        """Learn from a rejection after `kept` accepted drafts."""
        expected = self.target(kept + 1, context)
        if expected > 0:
            share = min(seconds / expected, MAX_SLOWDOWN * self.replay_share)
            self.replay_share += REPLAY_RATE * (share - self.replay_share)

    def switch(self, n: int) -> float:
        """Return the seconds that a pass of `n` tokens takes besides, since the last ones had other widths."""
        same = self.target.padded.get(n, n) in self.recent
        return 0.0 if not self.switching or same else self.switching * self.drift.factor

    def ran(self, n: int) -> None:
        """Remember that the target's last pass had `n` tokens."""
        n = self.target.padded.get(n, n)
        if not self.recent or self.recent[-1] != n:
            self.recent = (*[width for width in self.recent if width != n][1 - RECENT_WIDTHS :], n)

    def observe(self, n: int, context: int, seconds: float) -> None:
        """Learn from a target pass of `n` tokens: its cost by width, or where the width is a change what changing costs."""
        curve, n = self.target, self.target.padded.get(n, n)
        if self.replays and n > 1 and 1 in curve.table and curve.widest < 2:
            # Several tokens take another path through a recurrent model than one, so that one's time says little.
            curve.observe(n, context, seconds, limit=max(self.first_wide, MAX_SLOWDOWN))
        elif n in self.recent or len(self.recent) < RECENT_WIDTHS or n not in curve.table:
            curve.observe(n, context, seconds)
        else:
            most = MAX_SWITCHING_SHARE * curve(1, context)
            more = min(max(seconds - curve(n, context), -most), most) / self.drift.factor
            self.switching = max(0.0, self.switching + SWITCHING_RATE * (more - self.switching))
        self.ran(n)

    def max_drafts(self, origin: DraftSource) -> int:
        """Return the most drafts worth the risk: one at first, then as many as a pass twice as wide as any before carries."""
        if origin != "lookup" and not self.draft[origin].known:
            return 1
        return max(1, 2 * self._widest_pass(origin) - 1)

    def _widest_pass(self, origin: DraftSource) -> int:
        """Return the tokens of the widest pass that verified drafts on this machine, or in its profile."""
        return self.widest_here if self.foreign else (self.complete if origin == "self" else self.target).widest

    def extra_risk(self, origin: DraftSource, n: int, context: int) -> float:
        """Return the seconds by which a round with `n` drafts may exceed its expected cost, as part of it was never run here.

        A pass at most twice as wide as any before takes at most twice as long, as its work is at most proportional.
        """
        wider = n + 1 > self._widest_pass(origin)
        unmeasured = origin != "lookup" and not self.draft[origin].known
        if not wider and not unmeasured:
            return 0.0
        plain = self.target(1, context)
        widest = self.target(max(1, self._widest_pass(origin)), context)
        factor = self.first_wide if self._widest_pass(origin) < 2 else FIRST_PASS_COST_FACTOR
        more = max(0.0, factor * widest - self.target(n + 1, context)) if wider else 0.0
        return more + (1 - UNMEASURED_DRAFT_COST_SHARE) * plain if unmeasured else more

    def cheapest_round(self, context: int) -> float:
        """Return the plain passes that the cheapest drafting round may take: prompt lookup and a pass of two tokens."""
        plain = self.target(1, context)
        return (
            (self.target(2, context) + self.extra_risk("lookup", 1, context) + self.replay(1, 0, context)) / plain
            if plain > 0
            else FIRST_PASS_COST_FACTOR
        )

    def adopt(self, seconds: float, context: int) -> None:
        """Scale a foreign table to this machine, on which a plain pass took `seconds`."""
        expected = self.target(1, context)
        if expected > 0:
            self.drift.factor *= seconds / expected
        self.widest_here = 1

    def reading(self, origin: DraftSource, n: int, context: int) -> float:
        """Return the seconds of a drafter's pass over `n` tokens, which ends in one draft."""
        curve = self.draft[origin]
        return (
            curve(n, context)
            if curve.known or origin in ("lookup", "table")
            else UNMEASURED_DRAFT_COST_SHARE * self.target(n, context)
        )

    def drafts(self, origin: DraftSource, count: int, tokens_behind: int, context: int) -> float:
        """Return the seconds to make `count` drafts, the first after reading `tokens_behind` tokens."""
        if count == 0:
            return 0.0
        return self.reading(origin, tokens_behind, context) + (count - 1) * self.reading(origin, 1, context)
