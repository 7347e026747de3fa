"""What rounds cost on this machine: passes of target and drafters by number of tokens and context, and changes of width.

Times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dynx.runtime.backends.padding import MAX_PADDED_TOKENS
from dynx.runtime.costs import MAX_SLOWDOWN, CostCurve, Drift

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.speculation.types import DraftSource

FIRST_PASS_COST_FACTOR = 2.0
"""Cost of a pass wider than any before on this machine, in passes of the widest: it allocates, at an unknown slope."""

UNMEASURED_DRAFT_COST_SHARE = 0.25
"""Cost of a model's draft, as a share of a target pass, until it has been measured."""


STAYING = 0.5
"""Probability that the pass after one of a width never run before has the same width."""

STAYING_RATE = 0.1
"""Step of the running mean of that probability, of each width."""

SWITCHING_RATE = 0.02
"""Least step of the running mean of what a change of width costs; the first steps are wider."""

LAG_RATE = 0.1
"""Step of the running mean of how far expectations lag behind the machine."""

CALIBRATED_SWITCHES = 50
"""Changes of width that a calibrated time of one counts as."""

REPLAY_RATE = 0.1
"""Step of the running mean of what it costs to read accepted tokens again."""

SETTLED_PASSES = 8
"""Passes of a width after which what a pass takes beyond them is taken for the change."""

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
    switching: float = 0.0  # seconds more for a pass of another width than the one before
    replays: bool = False  # whether the target reads accepted tokens again after a rejection, as it restores its state
    replay_share: float = 1.0  # seconds of that, over those of a pass of as many tokens
    first_wide: float = FIRST_PASS_COST_FACTOR  # plain passes that the first pass of several tokens may take
    lag: float = 0.0  # seconds more than expected that passes of the width before take at the moment
    switches: int = 0  # changes of width that `switching` was learned from
    width: int = 0  # tokens of the target's last pass, with padding; 0 before the first
    staying: dict[int, float] = field(default_factory=dict)  # by width, how often the next pass has it too
    prepared: Callable[[], int] | None = None  # returns the tokens that the target's last pass was padded to

    def __post_init__(self) -> None:
        self.target, self.complete = CostCurve(self.drift), CostCurve(self.drift)
        self.draft = {origin: CostCurve(self.drift) for origin in ("draft", "self", "lookup", "table")}

    def verify(self, origin: DraftSource, n: int, context: int, *, drafted: int | None = None) -> float:
        """Return the seconds to verify `n` of `drafted` drafts, of exactly `n` by default, and to change the width for it."""
        change = self.switch(n + 1, context) if origin != "self" else 0.0
        return self.verifying_pass(origin, n, context, drafted=drafted) + change

    def verifying_pass(self, origin: DraftSource, n: int, context: int, *, drafted: int | None = None) -> float:
        """Return the seconds of the pass alone that verifies `n` of `drafted` drafts."""
        if origin != "self":
            return self.target(n + 1, context)
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
            return [t + self.changes(n, context, t) for n, t in enumerate(passes, start=1)]
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

    def switch(self, n: int, context: int, seconds: float | None = None) -> float:
        """Return the seconds that a pass of `n` tokens takes besides its own `seconds`, since the last had another width.

        A target that is prepared for a longer pass may be given padding instead.
        """
        n = self.target.padded.get(n, n)
        if not self.switching or n == self.width or not self.width:
            return 0.0
        change = self.switching * self.drift.factor
        if self.prepared is None or n > self.width:
            return change
        seconds = self.target(n, context) if seconds is None else seconds
        return min(change, max(0.0, self.target(self.width, context) - seconds))

    @property
    def change_passes(self) -> float:
        """What a change of width takes, in plain passes."""
        plain = self.target(1)
        return self.switching * self.drift.factor / plain if plain > 0 else 0.0

    @property
    def feared_change(self) -> float:
        """The most, in plain passes, that a plain pass may take now for a change of width of which little is known."""
        wider = self.width > self.target.padded.get(1, 1)
        return MAX_SWITCHING_SHARE if wider and self.switches < SETTLED_PASSES else 0.0

    def changes(self, n: int, context: int, seconds: float | None = None) -> float:
        """Return `switch`, and what is expected for the change of width that a pass of `n` tokens causes afterwards."""
        if not self.switching:
            return 0.0
        again = 1 - self.staying.get(self.target.padded.get(n, n), STAYING)
        return self.switch(n, context, seconds) + again * self.switching * self.drift.factor

    def ran(self, n: int) -> None:
        """Remember that the target's last pass had `n` tokens."""
        n = self.target.padded.get(n, n)
        if self.width:
            share = self.staying.get(self.width, STAYING)
            self.staying[self.width] = share + STAYING_RATE * ((n == self.width) - share)
        self.width = n

    def observe(self, n: int, context: int, seconds: float) -> None:
        """Learn from a target pass of `n` tokens: its cost by width, or where the width is a change what changing costs."""
        curve, n = self.target, self.target.padded.get(n, n)
        if self.prepared is not None and n <= (ran := self.prepared()) <= MAX_PADDED_TOKENS:
            n = ran
        if not self.width and self.switching and n in curve.table:
            pass  # after a prompt any width is a change, and memory is new
        elif self.replays and n > 1 and 1 in curve.table and curve.widest < 2:
            # Several tokens take another path through a recurrent model than one, so that one's time says little.
            curve.observe(n, context, seconds, limit=max(self.first_wide, MAX_SLOWDOWN))
        else:
            settled = curve.table.get(n, (0.0, 0.0))[1] >= SETTLED_PASSES
            changed = settled and self.width not in (0, n)
            if self.width and settled:
                most = MAX_SWITCHING_SHARE * curve(1, context)
                more = min(max(seconds - curve(n, context), -most), most) / self.drift.factor
                if n == self.width:
                    self.lag += LAG_RATE * (more - self.lag)
                else:
                    self.switches += 1
                    rate = max(SWITCHING_RATE, 1 / (self.switches + 4))
                    self.switching = max(0.0, self.switching + rate * (more - self.lag - self.switching))
            own = seconds - self.switch(n, context)
            if changed and self.switches < SETTLED_PASSES:
                own = min(own, curve(n, context))  # what the change takes isn't known, so the width mustn't be blamed
            curve.observe(n, context, own)
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
        plain = self.target(1, context)
        if not wider and not unmeasured:
            return 0.0
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
