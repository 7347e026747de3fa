"""What calibration learned of a classifier's exits, in and out of a profile, and what follows for the promise asked for.

A profile keeps the list of rules and the scores of the inputs that certify, not one threshold: so a promise of another ε or
confidence than the calibration's is certified on the spot, by the same test on the same inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from dynx.early_exit.engine import Exits
from dynx.early_exit.heads import AgreementScore, ExitHeads
from dynx.early_exit.reference import is_reference
from dynx.early_exit.types import EXACT, Guarantee
from dynx.runtime.binomial import most_failures, percent
from dynx.runtime.certify import Certificate, Costs, Family, Rules, certify
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.setup import Assembly, Plan
    from dynx.runtime.profile import Profile

PAYS = 1.05
"""Expected speed-up from which exits are used: costs measured apart tend to promise a few percent too much."""

HEADS = "heads."


@dataclass(frozen=True)
class Evidence:
    """Inputs that no head, score or rule was made from, each seen at every exit and by the full float32 model.

    scores (n, K), agree (n, K+1): the last column is the answer at full depth. classes (n,): the full model's labels, None
    where there are no classes.
    """

    scores: NDArray[np.float64]
    agree: NDArray[np.bool_]
    classes: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Fitted:
    """Exits ready for a promise: where they are, their heads and score, the rules to choose from, and costs by batch size."""

    depths: tuple[int, ...]
    heads: ExitHeads
    score: AgreementScore
    rules: Rules
    costs: Mapping[int, Costs]

    def costs_at(self, batch: int) -> Costs:
        """Those measured at the batch size nearest to `batch`, by ratio."""
        return self.costs[min(self.costs, key=lambda size: (abs(math.log(size / batch)), size))]

    def certify(self, evidence: Evidence, batch: int, eps: float, delta: float) -> Certificate:
        """The loosest rule that the evidence supports."""
        return certify(
            self.rules, evidence.scores, evidence.agree, self.costs_at(batch), eps, delta, classes=evidence.classes
        )

    def exits(self, thresholds: Sequence[float] | NDArray[np.float64]) -> Exits:
        """For an engine, with these thresholds (K,)."""
        return Exits(self.depths, self.heads, self.score, np.asarray(thresholds, dtype=np.float64))


@dataclass(frozen=True)
class Knowledge:
    """Exits with the certificate they run under."""

    fitted: Fitted
    evidence: Evidence
    certificate: Certificate
    basis: str

    def exits(self) -> Exits:
        """For an engine."""
        return self.fitted.exits(self.certificate.thresholds)

    @property
    def guarantee(self) -> Guarantee:
        """What may be said of the answers."""
        c = self.certificate
        return Guarantee(c.eps, c.delta, c.n, c.disagreements, self.basis) if c.active else EXACT


def to_arrays(fitted: Fitted, evidence: Evidence) -> dict[str, NDArray[Any]]:
    """For a profile's safetensors file; `from_profile` gives the same back."""
    out: dict[str, NDArray[Any]] = {HEADS + name: array for name, array in fitted.heads.to_arrays().items()}
    out |= fitted.score.to_arrays()
    out["rules.thresholds"] = fitted.rules.thresholds
    out["evidence.scores"] = evidence.scores
    out["evidence.agree"] = evidence.agree
    if evidence.classes is not None:
        out["evidence.classes"] = evidence.classes
    return out


def to_json(fitted: Fitted) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rest of it: what was fitted and what was measured, as JSON."""
    rules = {"family": fitted.rules.family, "kept": list(fitted.rules.kept), "words": fitted.rules.words}
    costs = {
        str(size): {"reach": list(c.reach), "full": c.full, "check": list(c.check)} for size, c in fitted.costs.items()
    }
    return {"depths": list(fitted.depths), "rules": rules}, {"seconds_by_batch": costs}


def from_profile(
    fitted: Mapping[str, Any], measured: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> tuple[Fitted, Evidence]:
    """What `to_json` and `to_arrays` wrote. Raises KeyError, TypeError or ValueError on anything else."""
    depths = tuple(int(d) for d in fitted["depths"])
    heads = ExitHeads.from_arrays({n.removeprefix(HEADS): a for n, a in arrays.items() if n.startswith(HEADS)})
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
    return Fitted(depths, heads, score, rules, costs), Evidence(scores, agree, classes)


def knowledge_of(assembly: Assembly, warn: Callable[[str], None]) -> Knowledge | None:
    """The exits that the profile allows under the promise asked for; None where there are none, and the decisions say why."""
    plan, labels, depth, batch = assembly.plan, assembly.labels, assembly.attachment.depth, assembly.batch
    profile, wish = plan.profile, plan.wish
    if profile is None:
        return None
    try:
        if not profile.fitted.get("depths"):
            plan.decisions["exits"] = Decision("none", str(profile.decision["summary"]))
            return None
        fitted, evidence = from_profile(profile.fitted, profile.measured, plan.arrays)
        outputs = plan.arrays[f"{HEADS}0.bias"].shape[0]
        if fitted.depths[-1] >= depth or fitted.depths[0] < 1 or outputs != len(labels.names):
            raise ValueError("it was fitted to another model")
        fitted = replace(fitted, heads=fitted.heads.to(plan.device))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        warn(f"profile {profile.key.id} ignored: its contents can't be used ({type(e).__name__}: {e})")
        plan.decisions["exits"] = Decision("none", f"profile {profile.key.id} can't be used")
        return None
    if refusal := _other_promise(assembly, profile, fitted):
        plan.decisions["exits"] = Decision("none", refusal)
        return None
    if assembly.certified is None and not is_reference(assembly):
        plan.decisions["exits"] = Decision("none", certify_whole(plan)[1])
        return None
    certificate = fitted.certify(evidence, batch, wish.max_disagreement, wish.delta)
    if not certificate.active:
        plan.decisions["exits"] = Decision("none", certificate.words)
        return None
    if certificate.speedup < PAYS:
        why = f"at batches of {batch} they would make it {certificate.speedup:.2f}x as fast"
        plan.decisions["exits"] = Decision("none", why)
        return None
    if (clock := _slower(profile, batch, wish.max_disagreement)) is not None:
        why = f"they made it {clock:.2f}x as fast on the clock when it was calibrated"
        plan.decisions["exits"] = Decision("none", why)
        return None
    used = [str(d) for d, t in zip(fitted.depths, certificate.thresholds, strict=True) if t != math.inf]
    where = "elsewhere" if plan.bundled else "here"
    plan.decisions["exits"] = Decision(
        f"after layer {' and '.join(used)} of {depth}",
        f"{certificate.speedup:.2f}x expected by costs measured {where}; {certificate.words}",
    )
    return Knowledge(fitted, evidence, certificate, "model" if plan.bundled else "profile")


def certify_whole(plan: Plan) -> tuple[Guarantee | None, str]:
    """What the profile shows of answers at full depth by a model that isn't the reference, and in words.

    Tested before any exit rule, as the strictest of all: a rule is looked at only where this holds.
    """
    wish, profile = plan.wish, plan.profile
    agree = plan.arrays.get("evidence.agree")
    seen: Any = {} if profile is None else profile.evidence.get("full_depth", {})
    if agree is not None and agree.ndim == 2:
        seen = {"n": len(agree), "disagreements": int((~agree[:, -1].astype(np.bool_)).sum())}
    n, differ = int(seen.get("n", 0)), int(seen.get("disagreements", 0))
    if not n:
        return None, "the profile has no evidence of its answers at full depth"
    allowed = most_failures(n, wish.max_disagreement, wish.delta)
    said = f"{differ:,} of {n:,} answers at full depth differ from the full float32 model's"
    if allowed is None or differ > allowed:
        return None, f"{said}, which doesn't show {percent(wish.max_disagreement)}"
    basis = "model" if plan.bundled else "profile"
    return Guarantee(wish.max_disagreement, wish.delta, n, differ, basis), said


def _slower(profile: Profile, batch: int, eps: float) -> float | None:
    """Dynamic over plain as measured at calibration, if that was slower; None where it doesn't speak of this ε and batch."""
    clock, fitted = profile.measured.get("clock"), profile.fitted.get("max_disagreement")
    if clock is None or fitted is None or profile.measured.get("batch") != batch or eps > fitted:
        return None
    return float(clock[0]) if clock[0] < 1 else None


def _other_promise(assembly: Assembly, profile: Profile, fitted: Fitted) -> str | None:
    """Why the profile's evidence doesn't speak of what is asked for."""
    if profile.fitted.get("max_length") != assembly.cut:
        cut = profile.fitted.get("max_length") or "the model's own number of"
        return f"the profile is for texts cut to {cut} tokens"
    if assembly.labels.problem == "regression" and assembly.plan.wish.tolerance != fitted.score.tolerance:
        return f"the profile is for a tolerance of {fitted.score.tolerance:g}"
    return None
