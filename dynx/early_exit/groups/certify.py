"""Rules for leaving groups early, and the certificate that the results of at most a share ε of groups differ.

It is the test of `runtime.certify` with a group as the unit: rules are listed from strict to loose on one part of the groups, and
on another part, seen once, the loosest is kept up to which every rule passes an exact binomial test. What a rule does to a group
is found by running it on estimates that were computed for every row at every exit.

Letters: n groups, D rows of the largest, K exits, N rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dynx.early_exit.groups.engine import leave
from dynx.early_exit.groups.rule import padded, valid_places
from dynx.errors import InvalidInput
from dynx.runtime.binomial import binomial_tail, fixed_sequence, most_failures, percent, smallest_sample, supports
from dynx.runtime.certify import Certificate, Rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.groups.rule import GroupRule
    from dynx.runtime.certify import Costs

RULE_COUNT, FEW_RULES = 80, 24
"""Rules in a list that a certificate is chosen from, and in those by which exits are compared."""


@dataclass(frozen=True)
class GroupEvidence:
    """What every exit, full depth and the full model say of the rows of n groups.

    estimates (K, R), final (R,) at full depth as computed here, full (R,) by the full float32 model; sizes (n,) count the rows.
    """

    estimates: NDArray[np.float64]
    final: NDArray[np.float64]
    full: NDArray[np.float64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sizes)

    def at(self, kept: Sequence[int]) -> GroupEvidence:
        """Select exits."""
        return GroupEvidence(self.estimates[list(kept)], self.final, self.full, self.sizes)

    def errors(self) -> NDArray[np.float64]:
        """Return the usual error (K,) of each exit's estimates within a group."""
        n = np.repeat(np.arange(len(self.sizes)), self.sizes)
        off = self.estimates - self.final
        means = np.stack([np.bincount(n, row, len(self.sizes)) for row in off]) / np.maximum(self.sizes, 1)
        spread: NDArray[np.float64] = np.sqrt(((off - means[:, n]) ** 2).mean(axis=1))
        return np.maximum(spread, 1e-6)

    def differs_at_full_depth(self, rule: GroupRule) -> NDArray[np.bool_]:
        """Tell for each group (n,) whether the result differs where no row leaves."""
        places = valid_places(self.sizes)
        chosen = rule.chosen(padded(self.final, self.sizes, np.nan), places)
        return ~rule.agrees(chosen, padded(self.full, self.sizes), places)


@dataclass(frozen=True)
class GroupOutcome:
    """What a rule would have done: exits (R,) that rows left at, K for none; whether the results (n,) differ."""

    exits: NDArray[np.int64]
    differs: NDArray[np.bool_]
    cost: float  # mean of a row
    full_cost: float

    @property
    def speedup(self) -> float:
        """Speed-up by cost, against the full model."""
        return self.full_cost / self.cost


def simulate(
    rule: GroupRule,
    thresholds: NDArray[np.float64],
    errors: NDArray[np.float64],
    seen: GroupEvidence,
    costs: Costs,
) -> GroupOutcome:
    """Run one rule, thresholds (K,), on groups for which every exit was computed."""
    places = valid_places(seen.sizes)
    active, running = places.copy(), places.copy()
    left = np.full(places.shape, len(thresholds))
    values = padded(seen.final, seen.sizes, np.nan)
    for k, threshold in enumerate(thresholds.tolist()):
        at = padded(seen.estimates[k], seen.sizes, np.nan)
        active, after = leave(rule, float(errors[k]), threshold, at, active, running)
        gone = running & ~after
        left[gone], values[gone] = k, at[gone]
        running = after
    chosen = rule.chosen(values, active)
    differs = ~rule.agrees(chosen, padded(seen.full, seen.sizes), places)
    exits = left[places]
    cost = float(costs.of(np.isfinite(thresholds))[exits].mean()) if len(exits) else costs.full
    return GroupOutcome(exits, differs, cost, costs.full)


def choose_rules(
    rule: GroupRule,
    errors: NDArray[np.float64],
    seen: GroupEvidence,
    costs: Costs,
    eps: float,
    delta: float,
    n: int,
    *,
    prune: bool = True,
) -> Rules:
    """Draw up the list of rules on one part, for a certificate on n other groups.

    A rule is one threshold, in usual errors, for all exits in use. Exits that don't pay for their own check are dropped, one at a
    time, as long as the mean cost falls at the risk that n groups can certify.
    """
    allowed = most_failures(n, eps, delta)
    target = 0.0 if not allowed else allowed / n
    used = np.ones(len(errors), dtype=bool)

    def cost_of(which: NDArray[np.bool_]) -> float:
        best = costs.full
        for thresholds in _grid(rule, which, errors, seen, FEW_RULES):
            found = simulate(rule, thresholds, errors, seen, costs)
            if found.differs.mean() > target:
                break
            best = found.cost
        return best

    cost = cost_of(used)
    while prune and used.sum() > 1:
        tries = [(cost_of(used & (np.arange(len(used)) != k)), k) for k in np.flatnonzero(used).tolist()]
        least, drop = min(tries)
        if least > cost:
            break
        used, cost = used & (np.arange(len(used)) != drop), least
    kept = tuple(int(k) for k in np.flatnonzero(used))
    if cost >= costs.full:
        return Rules(np.full((1, len(errors)), np.inf), "common", kept, "no exit pays")
    words = f"{len(kept)} of {len(used)} exits pay; one margin for all, in usual errors"
    return Rules(_grid(rule, used, errors, seen, RULE_COUNT), "common", kept, words)


def _grid(
    rule: GroupRule, used: NDArray[np.bool_], errors: NDArray[np.float64], seen: GroupEvidence, levels: int
) -> NDArray[np.float64]:
    """Return thresholds (N, K) from strict to loose: quantiles of the margins that rows have at the exits in use."""
    places = valid_places(seen.sizes)
    margins = [
        rule.margins(padded(seen.estimates[k], seen.sizes, np.nan), places)[places] / errors[k]
        for k in np.flatnonzero(used)
    ]
    found = np.sort(np.concatenate(margins))[::-1] if margins else np.empty(0)
    found = found[found > 0]
    if not len(found):
        return np.full((1, len(used)), np.inf)
    at = np.unique(np.round(np.linspace(0, len(found) - 1, levels)).astype(int))
    steps = np.unique(np.maximum(found[at], 1e-9))[::-1]
    return np.where(used, steps[:, None], np.inf)


def certify(
    rule: GroupRule,
    rules: Rules,
    errors: NDArray[np.float64],
    seen: GroupEvidence,
    costs: Costs,
    eps: float,
    delta: float,
) -> Certificate:
    """Certify the loosest rule for which the groups show that at most ε of results differ, at confidence 1-δ.

    The groups must be independent of those that made heads, errors and rules. InvalidInput: there are none.
    """
    n = len(seen)
    if not n:
        raise InvalidInput("there are no groups to certify with")

    def made(thresholds: NDArray[np.float64], words: str) -> Certificate:
        found = simulate(rule, thresholds, errors, seen, costs)
        left = np.bincount(found.exits, minlength=len(thresholds) + 1)
        return Certificate(
            eps,
            delta,
            n,
            int(found.differs.sum()),
            tuple(map(float, thresholds)),
            found.cost,
            found.full_cost,
            tuple(int(count) for count in left),
            (),
            words,
        )

    never = np.full(rules.thresholds.shape[1], np.inf)
    if n < smallest_sample(eps, delta):
        return made(never, f"full depth: {supports(n, eps, delta)}")

    def p_values() -> Iterable[float]:
        for thresholds in rules.thresholds:
            found = simulate(rule, thresholds, errors, seen, costs)
            yield binomial_tail(n, int(found.differs.sum()), eps)

    last = fixed_sequence(p_values(), delta)
    if last is None:
        differ = int(simulate(rule, rules.thresholds[0], errors, seen, costs).differs.sum())
        why = f"even the strictest rule changes {differ:,} of {n:,} results"
        return made(never, f"full depth: {why}; {supports(n, eps, delta)}")
    found = made(rules.thresholds[last], "")
    if found.cost >= found.full_cost:
        return made(never, f"full depth: exits within {percent(eps)} would cost more than they save")
    words = (
        f"with {percent(1 - delta)} confidence at most {percent(eps)} of results differ from the full model's: "
        f"{found.disagreements:,} of {n:,} did (exact binomial test, rule {last + 1} of {len(rules.thresholds)})"
    )
    return made(rules.thresholds[last], words)


def group_bounds(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return where the rows of each group begin and end among all rows."""
    return list(pairwise([0, *np.cumsum(np.asarray(sizes, dtype=np.int64)).tolist()]))
