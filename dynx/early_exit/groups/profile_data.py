"""What a profile holds of exits of groups, and the certificate for the promise that is requested.

A profile keeps the list of rules and what every exit says of the certifying groups. So another number of documents, share or
confidence than the calibration's is certified when it is requested, by the same test on the same groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.early_exit.groups.certify import GroupEvidence, certify
from dynx.early_exit.groups.engine import GroupExits
from dynx.early_exit.heads import ExitHeads
from dynx.early_exit.types import EXACT_GUARANTEE, Guarantee
from dynx.runtime.certify import Certificate, Costs, Rules

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.groups.rule import GroupRule

HEADS_PREFIX = "heads."


@dataclass(frozen=True)
class FittedGroupExits:
    """Fitted exits before certification: depths, heads, errors (K,), the rules to choose from, and costs by batch size."""

    depths: tuple[int, ...]
    heads: ExitHeads
    errors: NDArray[np.float64]
    rules: Rules
    costs: Mapping[int, Costs]

    def costs_at(self, batch: int) -> Costs:
        """Return the costs measured at the batch size nearest to `batch`, by ratio."""
        return self.costs[min(self.costs, key=lambda size: (abs(math.log(size / batch)), size))]

    def certify(self, rule: GroupRule, seen: GroupEvidence, batch: int, eps: float, delta: float) -> Certificate:
        """Certify the loosest rule that the evidence supports."""
        return certify(rule, self.rules, self.errors, seen, self.costs_at(batch), eps, delta)

    def exits(self, thresholds: Sequence[float] | NDArray[np.float64]) -> GroupExits:
        """Make an engine's exits with these thresholds (K,)."""
        return GroupExits(self.depths, self.heads, self.errors, np.asarray(thresholds, dtype=np.float64))


@dataclass(frozen=True)
class GroupProfile:
    """Fitted exits of groups and the certificate that they run under."""

    fitted: FittedGroupExits
    evidence: GroupEvidence
    certificate: Certificate
    basis: str

    def exits(self) -> GroupExits:
        """Make an engine's exits with the certified thresholds."""
        return self.fitted.exits(self.certificate.thresholds)

    @property
    def guarantee(self) -> Guarantee:
        """The guarantee that the certificate gives."""
        c = self.certificate
        return Guarantee(c.eps, c.delta, c.n, c.disagreements, self.basis) if c.active else EXACT_GUARANTEE


def evidence_arrays(seen: GroupEvidence) -> dict[str, NDArray[Any]]:
    """Return the arrays of the certifying groups."""
    return {
        "groups.estimates": seen.estimates.astype(np.float32),
        "groups.final": seen.final.astype(np.float32),
        "groups.full": seen.full.astype(np.float32),
        "groups.sizes": seen.sizes.astype(np.int64),
    }


def to_arrays(fitted: FittedGroupExits, seen: GroupEvidence) -> dict[str, NDArray[Any]]:
    """Return arrays for a profile's safetensors file; `from_profile` restores them."""
    out: dict[str, NDArray[Any]] = {HEADS_PREFIX + name: array for name, array in fitted.heads.to_arrays().items()}
    return out | {
        "groups.errors": fitted.errors,
        "rules.thresholds": fitted.rules.thresholds,
        **evidence_arrays(seen),
    }


def to_json(fitted: FittedGroupExits) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what was fitted and what was measured, without arrays, as JSON."""
    rules = {"family": fitted.rules.family, "kept": list(fitted.rules.kept), "words": fitted.rules.words}
    costs = {
        str(size): {"reach": list(c.reach), "full": c.full, "check": list(c.check)} for size, c in fitted.costs.items()
    }
    return {"depths": list(fitted.depths), "rules": rules}, {"seconds_by_batch": costs}


def evidence_of(arrays: Mapping[str, NDArray[Any]]) -> GroupEvidence:
    """Restore the certifying groups. Raises KeyError or ValueError."""
    estimates, final, full = (
        np.asarray(arrays[f"groups.{name}"], np.float64) for name in ("estimates", "final", "full")
    )
    sizes = np.asarray(arrays["groups.sizes"], dtype=np.int64)
    rows = int(sizes.sum())
    if estimates.ndim != 2 or estimates.shape[1:] != (rows,) or final.shape != (rows,) or full.shape != (rows,):
        raise ValueError("its groups don't fit their rows")
    return GroupEvidence(estimates, final, full, sizes)


def from_profile(
    fitted: Mapping[str, Any], measured: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> tuple[FittedGroupExits, GroupEvidence]:
    """Restore what `to_json` and `to_arrays` wrote. Raises KeyError, TypeError or ValueError on anything else."""
    depths = tuple(int(d) for d in fitted["depths"])
    heads = ExitHeads.from_arrays(
        {n.removeprefix(HEADS_PREFIX): a for n, a in arrays.items() if n.startswith(HEADS_PREFIX)}
    )
    errors = np.asarray(arrays["groups.errors"], dtype=np.float64)
    thresholds = np.asarray(arrays["rules.thresholds"], dtype=np.float64)
    costs = {
        int(size): Costs(tuple(map(float, c["reach"])), float(c["full"]), tuple(map(float, c["check"])))
        for size, c in measured["seconds_by_batch"].items()
    }
    seen, k = evidence_of(arrays), len(depths)
    fits = (
        len(heads) == k > 0
        and errors.shape == (k,)
        and bool((errors > 0).all())
        and thresholds.ndim == 2
        and thresholds.shape[1] == k == len(seen.estimates)
        and bool(costs)
        and all(len(c.reach) == k for c in costs.values())
        and fitted["rules"]["family"] == "common"
    )
    if not fits or np.isnan(thresholds).any() or list(depths) != sorted(set(depths)):
        raise ValueError("its parts don't fit each other")
    rules = Rules(thresholds, "common", tuple(int(i) for i in fitted["rules"]["kept"]), str(fitted["rules"]["words"]))
    return FittedGroupExits(depths, heads, errors, rules, costs), seen
