"""Which exits of a profile a loaded classifier may use under the requested guarantee."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.early_exit.assembly import is_reference
from dynx.early_exit.plan import AGGREGATION_STRATEGY
from dynx.early_exit.profile_data import HEADS_PREFIX, MIN_EXPECTED_SPEEDUP, ExitProfile, FittedExits, from_profile
from dynx.early_exit.types import Guarantee
from dynx.runtime.binomial import most_failures, percent
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.plan import ClassifierPlan
    from dynx.runtime.profile import Profile


def apply_profile(assembly: LoadedClassifier, warn: Callable[[str], None]) -> ExitProfile | None:
    """Return the profile's exits under the requested guarantee; None: the plan's decisions hold the reason."""
    plan, labels, depth, batch = assembly.plan, assembly.labels, assembly.exit_model.depth, assembly.batch
    profile, request = plan.profile, plan.request
    if profile is None:
        return None
    try:
        if not profile.fitted.get("depths"):
            plan.decisions.exits = Decision("none", str(profile.decision["summary"]))
            return None
        fitted, evidence = from_profile(profile.fitted, profile.measured, plan.arrays)
        outputs = plan.arrays[f"{HEADS_PREFIX}0.bias"].shape[0]
        if fitted.depths[-1] >= depth or fitted.depths[0] < 1 or outputs != len(labels.names):
            raise ValueError("it was fitted to another model")
        fitted = replace(fitted, heads=fitted.heads.to(plan.device))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        warn(f"profile {profile.key.id} ignored: its contents can't be used ({type(e).__name__}: {e})")
        plan.decisions.exits = Decision("none", f"profile {profile.key.id} can't be used")
        return None
    if refusal := _promise_mismatch(assembly, fitted):
        plan.decisions.exits = Decision("none", refusal)
        return None
    if assembly.certified is None and not is_reference(assembly):
        plan.decisions.exits = Decision("none", certify_full_depth(assembly)[1])
        return None
    each = labels.names if request.per_class else ()
    certificate = fitted.certify(evidence, batch, request.max_disagreement, request.delta, each)
    if not certificate.active:
        plan.decisions.exits = Decision("none", certificate.words)
        return None
    if certificate.speedup < MIN_EXPECTED_SPEEDUP:
        why = f"at batches of {batch} they would make it {certificate.speedup:.2f}x as fast"
        plan.decisions.exits = Decision("none", why)
        return None
    if (clock := _measured_slowdown(profile, batch, request.max_disagreement)) is not None:
        why = f"they made it {clock:.2f}x as fast on the clock when it was calibrated"
        plan.decisions.exits = Decision("none", why)
        return None
    used = [str(d) for d, t in zip(fitted.depths, certificate.thresholds, strict=True) if t != math.inf]
    where = "elsewhere" if plan.bundled else "here"
    plan.decisions.exits = Decision(
        f"after layer {' and '.join(used)} of {depth}",
        f"{certificate.speedup:.2f}x expected by costs measured {where}; {certificate.words}",
    )
    return ExitProfile(fitted, evidence, certificate, "model" if plan.bundled else "profile", request.per_class)


def certify_full_depth(assembly: LoadedClassifier) -> tuple[Guarantee | None, str]:
    """Certify full-depth answers of a model that isn't the reference; return the guarantee, if any, and a sentence.

    This is tested before any exit rule, as the strictest of all: rules are tested only where it holds.
    """
    plan = assembly.plan
    request, profile = plan.request, plan.profile
    if other := (other_length(assembly) or _other_strategy(plan)):
        return None, other
    agree = plan.arrays.get("evidence.agree")
    seen: Any = {} if profile is None else profile.evidence.get("full_depth", {})
    n, differ = int(seen.get("n", 0)), int(seen.get("disagreements", 0))
    if agree is not None and agree.ndim == 2:
        last = int((~agree[:, -1].astype(np.bool_)).sum())
        whole = differ if n == len(agree) and profile is not None and "segments" in profile.fitted else 0
        n, differ = (
            len(agree),
            max(last, whole),
        )  # of a model in one piece and of its segments, which round in other ways
    if not n:
        return None, "the profile has no evidence of its answers at full depth"
    if request.per_class and (refused := _full_depth_of_each_class(plan)):
        return None, refused
    allowed = most_failures(n, request.max_disagreement, request.delta)
    counts = f"{differ:,} of {n:,} answers at full depth differ from the full float32 model's"
    if allowed is None or differ > allowed:
        return None, f"{counts}, which doesn't show {percent(request.max_disagreement)}"
    basis = "model" if plan.bundled else "profile"
    return Guarantee(request.max_disagreement, request.delta, n, differ, basis, request.per_class), counts


def other_length(assembly: LoadedClassifier) -> str | None:
    """Say that a profile's evidence is about texts cut to another length; None where it isn't."""
    profile = assembly.plan.profile
    if profile is None or profile.fitted.get("max_length") == assembly.truncation:
        return None
    cut = profile.fitted.get("max_length") or "the model's own number of"
    return f"the profile is for texts cut to {cut} tokens"


def _other_strategy(plan: ClassifierPlan) -> str | None:
    """Say that a profile's evidence is about other entities; None where it isn't."""
    if plan.kind != "tokens" or plan.profile is None:
        return None
    known, asked = (
        plan.profile.fitted.get("aggregation_strategy"),
        plan.request.aggregation_strategy or AGGREGATION_STRATEGY,
    )
    return None if known == asked else f"the profile is for the aggregation strategy {known}"


def _full_depth_of_each_class(plan: ClassifierPlan) -> str | None:
    """Say which label's answers at full depth the evidence doesn't bound; None where it bounds all that occur."""
    request, agree, classes = plan.request, plan.arrays.get("evidence.agree"), plan.arrays.get("evidence.classes")
    if agree is None or classes is None:
        return "the profile has no evidence of its answers at full depth for each label"
    for label in np.unique(classes).tolist():
        differs = ~agree[classes == label, -1].astype(np.bool_)
        allowed = most_failures(len(differs), request.max_disagreement, request.delta)
        if allowed is None or int(differs.sum()) > allowed:
            return f"{int(differs.sum()):,} of {len(differs):,} answers with label number {label} differ at full depth"
    return None


def _measured_slowdown(profile: Profile, batch: int, eps: float) -> float | None:
    """Return the speed-up measured at calibration if it was below 1; None where it isn't about this ε and batch size."""
    clock, fitted = profile.measured.get("clock"), profile.fitted.get("max_disagreement")
    if clock is None or fitted is None or profile.measured.get("batch") != batch or eps > fitted:
        return None
    return float(clock[0]) if clock[0] < 1 else None


def _promise_mismatch(assembly: LoadedClassifier, fitted: FittedExits) -> str | None:
    """Say why the profile's evidence isn't about what is requested; None where it is."""
    if other := other_length(assembly):
        return other
    if other := _other_strategy(assembly.plan):
        return other
    if assembly.labels.problem == "regression" and assembly.plan.request.within != fitted.score.tolerance:
        return f"the profile is for a tolerance of {fitted.score.tolerance:g}"
    return None
