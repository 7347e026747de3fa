"""Certifies early exits (risk control): at most a share ε of answers differ from the full model's, at confidence 1-δ.

An exit is any place where computing may end: after a layer of a classifier, after a number of steps. This module sees scores,
agreements and costs as arrays, and no models. The share that differs needs no labels, and it bounds the loss of
accuracy too. Three disjoint parts of unlabelled data, by `split`: one fits what answers and scores at each exit; one (B)
calibrates the score, and here `choose_rules` draws up a list of exit rules from strict to loose; the third (C) is seen once,
by `certify`, which walks down the list while an exact test passes and keeps the last rule that did (fixed-sequence testing:
Angelopoulos et al. 2021, Learn then Test). The list must not depend on C; picking thresholds on the data that certifies them
breaks about every other promise.

Letters: n rows, K exits, G rules. A row leaves at the first exit k with s[k] ≥ t[k]; t = inf is never, and so is a score of 0.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from dynx.errors import InvalidInput
from dynx.runtime.binomial import (
    binomial_tail,
    divide,
    fixed_sequence,
    most_failures,
    percent,
    smallest_sample,
    supports,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "Certificate",
    "Costs",
    "Outcome",
    "Rules",
    "certify",
    "choose_rules",
    "deduplicate",
    "leaves_at",
    "simulate",
    "split",
]

Family: TypeAlias = Literal["cost", "common"]

SPLIT_SHARES = (0.3, 0.2, 0.5)
"""Shares of the data for exit heads, for score and rules, and for certification. The last limits how close to ε a rule comes."""

RULE_COUNT = 100
"""Number of rules from strict to loose. More cost no confidence, since they are tested in order, and gain little."""

MIN_THRESHOLD = 1e-12
"""Smallest threshold, so that a score of 0 never exits."""

MAX_COMPARISONS = 4_000_000
"""Comparisons held in memory at once, a number of array elements."""


@dataclass(frozen=True)
class Costs:
    """What a row costs, in any one unit, usually seconds on this device.

    `reach[k]` is the cost of the layers up to exit k, `check[k]` of scoring exit k itself, `full` of all layers to the
    answer. A row that leaves at k pays reach[k] and the checks of all exits in use up to k; one that never leaves pays
    `full` and every check.
    """

    reach: tuple[float, ...]
    full: float
    check: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse costs that can't be: InvalidInput."""
        values = (*self.reach, *self.check, self.full)
        if not self.reach or len(self.reach) != len(self.check):
            raise InvalidInput(f"{len(self.reach)} exits have {len(self.check)} costs of checking them")
        if not all(math.isfinite(v) and v >= 0 for v in values) or self.full <= 0:
            raise InvalidInput("a cost is negative or not a number")

    def at(self, kept: Sequence[int]) -> Costs:
        """Select the costs of some exits."""
        return Costs(tuple(self.reach[k] for k in kept), self.full, tuple(self.check[k] for k in kept))

    def of(self, used: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Compute the cost of leaving at each exit, and last of not leaving: (…, K+1) for exits in use (…, K)."""
        checks = np.cumsum(np.where(used, self.check, 0.0), axis=-1)
        return np.concatenate([checks + self.reach, checks[..., -1:] + self.full], axis=-1)


@dataclass(frozen=True)
class Outcome:
    """What a rule would have done on n rows."""

    exits: NDArray[np.int64]  # (n,) the exit each row left at, K for none
    differs: NDArray[np.bool_]  # (n,) whether its answer would differ from the full model's
    disagreements: int
    cost: float  # mean of a row
    full_cost: float  # of a row of the plain model, without checks

    @property
    def speedup(self) -> float:
        """Speedup by cost, against the full model."""
        return self.full_cost / self.cost


@dataclass(frozen=True)
class Rules:
    """A list of exit rules from strict to loose, made without a look at the data that will certify one of them."""

    thresholds: NDArray[np.float64]  # (G, K)
    family: Family
    kept: tuple[int, ...]  # the exits in use
    words: str


@dataclass(frozen=True)
class Certificate:
    """The promise and the numbers behind it."""

    eps: float
    delta: float
    n: int
    disagreements: int
    thresholds: tuple[float, ...]  # per exit, inf is never
    cost: float
    full_cost: float
    exits: tuple[int, ...]  # rows that left at each exit, and last those that didn't
    by_class: tuple[tuple[int, int], ...]  # per class of the full model's answer: rows, disagreements; () if not told
    words: str

    @property
    def speedup(self) -> float:
        """Speedup by cost, against the full model, on the rows that certified it."""
        return self.full_cost / self.cost

    @property
    def active(self) -> bool:
        """Whether any row may leave early."""
        return any(t != math.inf for t in self.thresholds)

    def to_json(self) -> dict[str, Any]:
        """For a profile; a threshold of inf becomes null."""
        return {
            "eps": self.eps,
            "delta": self.delta,
            "n": self.n,
            "disagreements": self.disagreements,
            "thresholds": [None if t == math.inf else t for t in self.thresholds],
            "cost": self.cost,
            "full_cost": self.full_cost,
            "exits": list(self.exits),
            "by_class": [list(c) for c in self.by_class],
            "words": self.words,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Certificate:
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError on anything else."""
        thresholds = tuple(math.inf if t is None else float(t) for t in data["thresholds"])
        if not all(t >= MIN_THRESHOLD for t in thresholds):
            raise ValueError("a threshold is not above 0")
        return cls(
            eps=float(data["eps"]),
            delta=float(data["delta"]),
            n=int(data["n"]),
            disagreements=int(data["disagreements"]),
            thresholds=thresholds,
            cost=float(data["cost"]),
            full_cost=float(data["full_cost"]),
            exits=tuple(int(e) for e in data["exits"]),
            by_class=tuple((int(rows), int(bad)) for rows, bad in data["by_class"]),
            words=str(data["words"]),
        )


def split(n: int, seed: int, shares: Sequence[float] = SPLIT_SHARES) -> tuple[NDArray[np.int64], ...]:
    """Cut 0 … n-1 at random into disjoint sorted parts of these shares: heads, score and rules, certificate.

    The same for the same seed. The last part takes what rounding leaves. Raises InvalidInput on bad shares.
    """
    if n < 0 or not shares or min(shares) < 0 or not math.isclose(sum(shares), 1):
        raise InvalidInput(f"{n} rows can't be split into shares of {tuple(shares)}")
    order = np.random.default_rng(seed).permutation(n)
    cuts = [round(n * sum(shares[: i + 1])) for i in range(len(shares) - 1)]
    return tuple(np.sort(part) for part in np.split(order, cuts))


def deduplicate(texts: Iterable[str]) -> NDArray[np.int64]:
    """Return the index of the first occurrence of each text, in order; white space and Unicode normalisation don't matter.

    The same text in two parts of a split would make them dependent, and the promise void.
    """
    seen: set[bytes] = set()
    firsts = []
    for i, text in enumerate(texts):
        plain = " ".join(unicodedata.normalize("NFC", text).split())
        mark = hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if mark not in seen:
            seen.add(mark)
            firsts.append(i)
    return np.asarray(firsts, dtype=np.int64)


def leaves_at(thresholds: NDArray[np.float64], s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Compute the exit that each row leaves at, K for none: (n,) for thresholds (K,), or (G, n) for (G, K); s is (n, K)."""
    may = s >= thresholds[..., None, :]
    exits: NDArray[np.int64] = np.where(may.any(-1), may.argmax(-1), s.shape[1])
    return exits


def simulate(
    thresholds: Sequence[float] | NDArray[np.float64], s: NDArray[np.float64], agree: NDArray[np.bool_], costs: Costs
) -> Outcome:
    """Simulate one rule on rows for which every exit was computed.

    thresholds (K,), scores s (n, K), agree (n, K): whether the answer at exit k is the full model's. A further column says it
    of the answer at full depth, where that is another computation than the one promised (in another precision, of texts
    cut short); without it full depth can't differ. Raises InvalidInput on shapes that don't fit, no rows, NaN.
    """
    t = np.asarray(thresholds, dtype=np.float64)
    s, agree = _checked(s, agree, costs)
    if t.shape != (s.shape[1],) or np.isnan(t).any():
        raise InvalidInput(f"thresholds of shape {t.shape} don't fit {s.shape[1]} exits")
    t = np.maximum(t, MIN_THRESHOLD)
    exits = leaves_at(t, s)
    differs = _differs(exits, agree)
    cost = costs.of(np.isfinite(t))[exits].mean()
    return Outcome(exits, differs, int(differs.sum()), float(cost), costs.full)


def choose_rules(
    s: NDArray[np.float64],
    agree: NDArray[np.bool_],
    costs: Costs,
    eps: float,
    delta: float,
    n: int,
    *,
    levels: int = RULE_COUNT,
    prune: bool = True,
    every: bool = False,
) -> Rules:
    """Draw up the list of rules on part B, for a certificate on n other rows.

    Two one-parameter families are tried. "cost": leave at k iff 1 - s[k] < μ · (share of the cost that leaving saves), the
    optimal rule when a wrong answer has a price and s is the probability of a right one. "common": one threshold for all.
    Their grids are quantiles of what B's rows would need to leave. Exits that don't pay for their own check are dropped, one
    at a time, as long as the mean cost falls at the risk that n rows can certify; `prune` off keeps all. `every` takes the
    quantiles of what each exit would need, so that the list goes on to rules by which every row leaves early; without it the list
    ends where each row leaves somewhere, which is early where the last exit is nearly sure. Shapes and errors as in `simulate`.
    """
    s, agree = _checked(s, agree, costs)
    allowed = most_failures(n, eps, delta)
    target = 0.0 if not allowed else allowed / n
    everything = np.ones(s.shape[1], dtype=bool)
    best: tuple[float, Family, NDArray[np.bool_]] | None = None
    families: tuple[Family, ...] = ("common", "cost")
    for family in families:
        used, cost = everything, _best_cost(family, everything, s, agree, costs, target, levels, every)
        while prune and used.sum() > 1:
            tries = []
            for k in np.flatnonzero(used).tolist():
                without = used & (np.arange(len(used)) != k)
                tries.append((_best_cost(family, without, s, agree, costs, target, levels, every), k))
            least, drop = min(tries)
            if least > cost:
                break
            used, cost = used & (np.arange(len(used)) != drop), least
        if best is None or cost < best[0]:
            best = cost, family, used
    assert best is not None  # noqa: S101 - there are two families
    _, family, used = best
    kept = tuple(int(k) for k in np.flatnonzero(used))
    how = "one threshold for all" if family == "common" else "thresholds by what an exit saves"
    words = f"{len(kept)} of {len(used)} exits pay; {how}"
    return Rules(_grid(family, used, s, costs, levels, every), family, kept, words)


def certify(
    rules: Rules,
    s: NDArray[np.float64],
    agree: NDArray[np.bool_],
    costs: Costs,
    eps: float,
    delta: float,
    *,
    candidates: int = 1,
    classes: NDArray[np.int64] | None = None,
    each: Sequence[str] = (),
) -> Certificate:
    """Certify the loosest rule for which part C shows that at most ε of answers differ, at confidence 1-δ.

    Walks from strict to loose, tests each with the exact p-value P(Bin(n, ε) ≤ k), stops at the first failure and keeps
    the last that passed. Where none passes, the data is too little or exits don't pay, the certificate is for full depth
    and says why. Set `candidates` to the number of certificates from these same rows among which the best will be kept.
    `classes` (n,) are the full model's answers, for disagreements per class. `each` names the classes: the bound then holds for
    the rows of each of them. A rule passes if it passes for every class, which needs no correction for their number: where it
    fails the promise, it has to pass the test of a class that breaks it (intersection-union test, Berger 1982). The rows must
    be independent of those that made the rules. Shapes and errors as in `simulate`.
    """
    s, agree = _checked(s, agree, costs)
    n, exits_of = len(s), s.shape[1]
    if each and classes is None:
        raise InvalidInput("a bound for each class takes the classes of the rows")
    members = [np.flatnonzero(np.asarray(classes) == i) for i in range(len(each))] if each else [np.arange(n)]
    share = divide(delta, candidates)
    never = np.full(exits_of, math.inf)
    if rules.thresholds.shape[1] != exits_of:
        raise InvalidInput(f"rules for {rules.thresholds.shape[1]} exits don't fit {exits_of}")
    fewest = min(range(len(members)), key=lambda i: len(members[i]))
    if len(members[fewest]) < smallest_sample(eps, share):
        why = f"full depth: {supports(len(members[fewest]), eps, share)}"
        if each:
            why += f" for the label {each[fewest]}, which {len(members[fewest]):,} of {n:,} certifying inputs have"
        return _certificate(never, s, agree, costs, eps, delta, classes, why)

    def p_values() -> Iterable[float]:
        for t in rules.thresholds:
            differs = _differs(leaves_at(t, s), agree)
            yield max(binomial_tail(len(rows), int(differs[rows].sum()), eps) for rows in members)

    last = fixed_sequence(p_values(), share)
    if last is None:
        differ = simulate(rules.thresholds[0], s, agree, costs).disagreements
        why = f"full depth: even the strictest rule differs on {differ:,} of {n:,} inputs; {supports(n, eps, share)}"
        return _certificate(never, s, agree, costs, eps, delta, classes, why)
    chosen = rules.thresholds[last]
    found = simulate(chosen, s, agree, costs)
    if found.cost >= costs.full:
        why = f"full depth: exits within {percent(eps)} would cost more than they save"
        return _certificate(never, s, agree, costs, eps, delta, classes, why)
    words = (
        f"with {percent(1 - delta)} confidence at most {percent(eps)} of answers {'with each label ' if each else ''}differ "
        f"from the full model's: {found.disagreements:,} of {n:,} did (exact binomial test, rule {last + 1} of "
        f"{len(rules.thresholds)})"
    )
    return _certificate(chosen, s, agree, costs, eps, delta, classes, words)


def _certificate(
    thresholds: NDArray[np.float64],
    s: NDArray[np.float64],
    agree: NDArray[np.bool_],
    costs: Costs,
    eps: float,
    delta: float,
    classes: NDArray[np.int64] | None,
    words: str,
) -> Certificate:
    found = simulate(thresholds, s, agree, costs)
    by_class: tuple[tuple[int, int], ...] = ()
    if classes is not None:
        which = np.asarray(classes)
        if which.shape != (len(s),) or which.min() < 0:
            raise InvalidInput(f"classes of shape {which.shape} don't fit {len(s)} rows")
        rows, bad = np.bincount(which), np.bincount(which, weights=found.differs)
        by_class = tuple((int(r), int(b)) for r, b in zip(rows, bad, strict=True))
    return Certificate(
        eps=eps,
        delta=delta,
        n=len(s),
        disagreements=found.disagreements,
        thresholds=tuple(float(t) for t in thresholds),
        cost=found.cost,
        full_cost=costs.full,
        exits=tuple(int(e) for e in np.bincount(found.exits, minlength=s.shape[1] + 1)),
        by_class=by_class,
        words=words,
    )


def _differs(exits: NDArray[np.int64], agree: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the answer of each row would differ, for exits (…, n) and agree (n, K+1)."""
    differs: NDArray[np.bool_] = ~agree[np.arange(len(agree)), exits]
    return differs


def _weights(family: Family, costs: Costs) -> NDArray[np.float64]:
    """Compute the scale of 1 - s per exit."""
    if family == "common":
        return np.ones(len(costs.reach))
    saved: NDArray[np.float64] = 1 - np.asarray(costs.reach) / costs.full
    return np.maximum(saved, 1e-9)  # an exit that saves nothing is as good as never


def _grid(
    family: Family, used: NDArray[np.bool_], s: NDArray[np.float64], costs: Costs, levels: int, every: bool = False
) -> NDArray[np.float64]:
    """Thresholds (G, K) from strict to loose: quantiles of the μ at which a row of B would first leave, or at each exit."""
    weights = _weights(family, costs)
    with np.errstate(divide="ignore"):
        need = np.where(used & (s > 0), (1 - s) / weights, math.inf)
    need = need.ravel() if every else need.min(axis=1)
    need = np.sort(need[np.isfinite(need)])
    if not len(need):
        return np.full((1, s.shape[1]), math.inf)
    at = np.unique(np.round(np.linspace(0, len(need) - 1, levels)).astype(int))
    mu = np.unique(need[at])
    return np.where(used, np.maximum(1 - mu[:, None] * weights, MIN_THRESHOLD), math.inf)


def _best_cost(
    family: Family,
    used: NDArray[np.bool_],
    s: NDArray[np.float64],
    agree: NDArray[np.bool_],
    costs: Costs,
    target: float,
    levels: int,
    every: bool,
) -> float:
    """Mean cost on B of the loosest rule within the target, all stricter ones being so too; full depth if there's none."""
    rules = _grid(family, used, s, costs, levels, every)
    if not np.isfinite(rules).any():
        return costs.full
    by_exit = costs.of(used)
    best, step = costs.full, max(1, MAX_COMPARISONS // s.size)
    for start in range(0, len(rules), step):
        exits = leaves_at(rules[start : start + step], s)
        failed = _differs(exits, agree).sum(-1) > target * len(s)
        passed = len(failed) if not failed.any() else int(failed.argmax())
        if passed:
            best = float(by_exit[exits[passed - 1]].mean())
        if passed < len(failed):
            break
    return best


def _checked(
    s: NDArray[np.float64], agree: NDArray[np.bool_], costs: Costs
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    s, agree = np.asarray(s, dtype=np.float64), np.asarray(agree)
    if s.ndim == agree.ndim == 2 and s.shape == agree.shape:  # at full depth it can't differ
        agree = np.concatenate([agree, np.ones((len(agree), 1), dtype=agree.dtype)], axis=1)
    if s.ndim != 2 or not len(s) or (len(s), s.shape[1] + 1) != agree.shape or s.shape[1] != len(costs.reach):
        raise InvalidInput(
            f"scores {s.shape}, agreements {agree.shape} and {len(costs.reach)} exits don't fit each other"
        )
    if agree.dtype != np.bool_:
        raise InvalidInput("agreements must be true or false")
    if np.isnan(s).any():
        raise InvalidInput("a score is not a number")
    return s, agree
