"""Stages and engines of groups over a loaded classifier, and the profile's exits that they may use."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dynx.early_exit.apply_profile import other_length
from dynx.early_exit.assembly import is_reference
from dynx.early_exit.groups.engine import GroupEngine
from dynx.early_exit.groups.profile_data import GroupProfile, evidence_of, from_profile
from dynx.early_exit.groups.stages import SegmentStages, TorchStages
from dynx.early_exit.groups.values import rule_of, values_of
from dynx.early_exit.profile_data import MIN_EXPECTED_SPEEDUP
from dynx.early_exit.types import Guarantee
from dynx.runtime.backends.registry import OPENVINO
from dynx.runtime.binomial import most_failures, percent
from dynx.runtime.decision import Decision
from dynx.runtime.threads import BESIDE_ANOTHER_RUNTIME

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.groups.engine import GroupExits
    from dynx.early_exit.groups.stages import Stages
    from dynx.runtime.profile import Profile


def stages_of(assembly: LoadedClassifier, borders: Sequence[int], batch: int | None = None) -> Stages:
    """Return the model cut at borders, on what the assembly runs on."""
    collate, size = assembly.preprocessor.collate, batch or assembly.batch
    if assembly.segments is None:
        return TorchStages(assembly.exit_model, collate, borders)
    limit = getattr(assembly.preprocessor, "limit", None)
    segments = assembly.segments if assembly.segments.borders == tuple(borders) else assembly.segments.at(borders)
    return SegmentStages(segments.parts, collate, size, limit)


def threads_of(assembly: LoadedClassifier) -> int:
    """Return the threads that PyTorch computes with."""
    return BESIDE_ANOTHER_RUNTIME if assembly.block_backend.backend == OPENVINO else assembly.plan.threads


def engine_of(assembly: LoadedClassifier, exits: GroupExits) -> GroupEngine:
    """Return an engine with these exits."""
    request = assembly.plan.request
    rule = rule_of(request)
    if rule is None:
        raise ValueError("all rows are part of the result")
    return GroupEngine(
        stages_of(assembly, exits.depths),
        exits,
        rule,
        values_of(assembly.exit_model.model.config, request),
        batch=assembly.batch,
        threads=threads_of(assembly),
    )


def apply_profile(assembly: LoadedClassifier, warn: Callable[[str], None]) -> GroupProfile | None:
    """Return the profile's exits under the requested guarantee; None: the plan's decisions hold the reason."""
    plan = assembly.plan
    profile, request = plan.profile, plan.request
    if profile is None:
        return None
    rule = rule_of(request)
    if rule is None:
        plan.decisions.exits = Decision("none", "without `top_k` every document's score is part of the result")
        return None
    try:
        if not profile.fitted.get("depths"):
            plan.decisions.exits = Decision("none", str(profile.decision["summary"]))
            return None
        fitted, seen = from_profile(profile.fitted, profile.measured, plan.arrays)
        if fitted.depths[-1] >= assembly.exit_model.depth or fitted.depths[0] < 1:
            raise ValueError("it was fitted to another model")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        warn(f"profile {profile.key.id} ignored: its contents can't be used ({type(e).__name__}: {e})")
        plan.decisions.exits = Decision("none", f"profile {profile.key.id} can't be used")
        return None
    if refusal := _mismatch(assembly, profile):
        plan.decisions.exits = Decision("none", refusal)
        return None
    if assembly.certified is None and not is_reference(assembly):
        plan.decisions.exits = Decision("none", certify_full_depth(assembly)[1])
        return None
    certificate = fitted.certify(rule, seen, assembly.batch, request.max_disagreement, request.delta)
    if not certificate.active:
        plan.decisions.exits = Decision("none", certificate.words)
        return None
    if certificate.speedup < MIN_EXPECTED_SPEEDUP:
        why = f"at batches of {assembly.batch} they would make it {certificate.speedup:.2f}x as fast"
        plan.decisions.exits = Decision("none", why)
        return None
    clock = profile.measured.get("clock")
    if clock is not None and clock[0] < 1 and profile.fitted.get("top_k") == request.top_k:
        why = f"they made it {clock[0]:.2f}x as fast on the clock when it was calibrated"
        plan.decisions.exits = Decision("none", why)
        return None
    used = [str(d) for d, t in zip(fitted.depths, certificate.thresholds, strict=True) if t != math.inf]
    where = "elsewhere" if plan.bundled else "here"
    plan.decisions.exits = Decision(
        f"after layer {' and '.join(used)} of {assembly.exit_model.depth}",
        f"{certificate.speedup:.2f}x expected by costs measured {where}; {certificate.words}",
    )
    return GroupProfile(fitted, seen, certificate, "model" if plan.bundled else "profile")


def _mismatch(assembly: LoadedClassifier, profile: Profile) -> str | None:
    """Say why the profile's evidence isn't about what is requested; None where it is."""
    request, about = assembly.plan.request, profile.fitted
    if other := other_length(assembly):
        return other
    if request.form != "zero-shot":
        return None
    if list(about.get("candidates", ())) != list(request.candidates):
        return f"the profile is for the labels {', '.join(about.get('candidates', ()))}"
    if about.get("hypothesis") != request.hypothesis:
        return f"the profile is for the hypothesis {about.get('hypothesis')!r}"
    return None if bool(about.get("multi_label")) == request.multi_label else "the profile is for another `multi_label`"


def certify_full_depth(assembly: LoadedClassifier) -> tuple[Guarantee | None, str]:
    """Certify full-depth results of a model that isn't the reference; return the guarantee, if any, and a sentence."""
    plan, request = assembly.plan, assembly.plan.request
    if other := other_length(assembly):
        return None, other
    rule = rule_of(request)
    if rule is None:
        return None, "the profile says nothing of the order of all documents, only of the first `top_k`"
    try:
        seen = evidence_of(plan.arrays)
        n, differ = len(seen), int(seen.differs_at_full_depth(rule).sum())
    except (KeyError, ValueError):
        kept: Any = {} if plan.profile is None else plan.profile.evidence.get("full_depth", {})
        n, differ = int(kept.get("n", 0)), int(kept.get("disagreements", 0))
    if not n:
        return None, "the profile has no evidence of its results at full depth"
    allowed = most_failures(n, request.max_disagreement, request.delta)
    counts = f"{differ:,} of {n:,} results at full depth differ from the full float32 model's"
    if allowed is None or differ > allowed:
        return None, f"{counts}, which doesn't show {percent(request.max_disagreement)}"
    return Guarantee(request.max_disagreement, request.delta, n, differ, "model" if plan.bundled else "profile"), counts
