"""A classifier's calibrated exits, how a profile stores them, and their certificate for the requested guarantee.

A profile keeps the list of rules and the scores of the certifying inputs, not one threshold. So a guarantee with another ε or
confidence than the calibration's is certified when it is requested, by the same test on the same inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from dynx.early_exit.agreement import AgreementScore
from dynx.early_exit.engine import Exits
from dynx.early_exit.heads import ExitHeads
from dynx.early_exit.types import EXACT_GUARANTEE, Guarantee
from dynx.runtime.certify import Certificate, Costs, Family, Rules, certify

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


MIN_EXPECTED_SPEEDUP = 1.05
"""Smallest expected speed-up at which exits are used: costs measured separately overestimate it by a few percent."""

HEADS_PREFIX = "heads."
"""Prefix of a profile's arrays that hold exit heads."""


@dataclass(frozen=True)
class Evidence:
    """Scores and agreements of inputs that no head, score or rule was fitted to, at every exit and at full depth.

    scores (n, K), agree (n, K+1): the last column is the answer at full depth. classes (n,): the full model's labels, None
    where there are no classes.
    """

    scores: NDArray[np.float64]
    agree: NDArray[np.bool_]
    classes: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class FittedExits:
    """Fitted exits before certification: depths, heads, score, the rules to choose from, and costs by batch size."""

    depths: tuple[int, ...]
    heads: ExitHeads
    score: AgreementScore
    rules: Rules
    costs: Mapping[int, Costs]

    def costs_at(self, batch: int) -> Costs:
        """Return the costs measured at the batch size nearest to `batch`, by ratio."""
        return self.costs[min(self.costs, key=lambda size: (abs(math.log(size / batch)), size))]

    def certify(
        self, evidence: Evidence, batch: int, eps: float, delta: float, each: Sequence[str] = ()
    ) -> Certificate:
        """Certify the loosest rule that the evidence supports; for each of the labels named `each`, where there are any."""
        costs, classes = self.costs_at(batch), evidence.classes
        return certify(self.rules, evidence.scores, evidence.agree, costs, eps, delta, classes=classes, each=each)

    def exits(self, thresholds: Sequence[float] | NDArray[np.float64]) -> Exits:
        """Make an engine's exits with these thresholds (K,)."""
        return Exits(self.depths, self.heads, self.score, np.asarray(thresholds, dtype=np.float64))


@dataclass(frozen=True)
class ExitProfile:
    """Fitted exits and the certificate that they run under."""

    fitted: FittedExits
    evidence: Evidence
    certificate: Certificate
    basis: str
    per_class: bool = False
    """Whether the certificate is for each label."""

    def exits(self) -> Exits:
        """Make an engine's exits with the certified thresholds."""
        return self.fitted.exits(self.certificate.thresholds)

    @property
    def guarantee(self) -> Guarantee:
        """The guarantee that the certificate gives."""
        c = self.certificate
        if not c.active:
            return EXACT_GUARANTEE
        return Guarantee(c.eps, c.delta, c.n, c.disagreements, self.basis, self.per_class)


def to_arrays(fitted: FittedExits, evidence: Evidence) -> dict[str, NDArray[Any]]:
    """Return arrays for a profile's safetensors file; `from_profile` restores them."""
    out: dict[str, NDArray[Any]] = {HEADS_PREFIX + name: array for name, array in fitted.heads.to_arrays().items()}
    out |= fitted.score.to_arrays()
    out["rules.thresholds"] = fitted.rules.thresholds
    out["evidence.scores"] = evidence.scores
    out["evidence.agree"] = evidence.agree
    if evidence.classes is not None:
        out["evidence.classes"] = evidence.classes
    return out


def to_json(fitted: FittedExits) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what was fitted and what was measured, without arrays, as JSON."""
    rules = {"family": fitted.rules.family, "kept": list(fitted.rules.kept), "words": fitted.rules.words}
    costs = {
        str(size): {"reach": list(c.reach), "full": c.full, "check": list(c.check)} for size, c in fitted.costs.items()
    }
    return {"depths": list(fitted.depths), "rules": rules}, {"seconds_by_batch": costs}


def from_profile(
    fitted: Mapping[str, Any], measured: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> tuple[FittedExits, Evidence]:
    """Restore what `to_json` and `to_arrays` wrote. Raises KeyError, TypeError or ValueError on anything else."""
    depths = tuple(int(d) for d in fitted["depths"])
    heads = ExitHeads.from_arrays(
        {n.removeprefix(HEADS_PREFIX): a for n, a in arrays.items() if n.startswith(HEADS_PREFIX)}
    )
    score = AgreementScore.from_arrays(arrays)
    family: Family = fitted["rules"]["family"]
    thresholds = np.asarray(arrays["rules.thresholds"], dtype=np.float64)
    scores = np.asarray(arrays["evidence.scores"], dtype=np.float64)
    agree = np.asarray(arrays["evidence.agree"], dtype=np.bool_)
    classes = arrays.get("evidence.classes")
    costs = {
        int(size): Costs(tuple(map(float, c["reach"])), float(c["full"]), tuple(map(float, c["check"])))
        for size, c in measured["seconds_by_batch"].items()
    }
    k = len(depths)
    fits = (
        family in get_args(Family)
        and len(heads) == len(score) == k > 0
        and thresholds.ndim == 2
        and thresholds.shape[1] == scores.shape[1] == k
        and agree.shape == (len(scores), k + 1)
        and bool(costs)
        and all(len(c.reach) == k for c in costs.values())
        and (classes is None or classes.shape == (len(scores),))
    )
    if not fits or np.isnan(thresholds).any() or list(depths) != sorted(set(depths)):
        raise ValueError("its parts don't fit each other")
    rules = Rules(thresholds, family, tuple(int(i) for i in fitted["rules"]["kept"]), str(fitted["rules"]["words"]))
    return FittedExits(depths, heads, score, rules, costs), Evidence(scores, agree, classes)
