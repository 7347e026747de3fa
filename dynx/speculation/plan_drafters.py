"""The drafters of a plan: loads its draft model, and says which drafters there are and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynx.errors import ModelError, UnsupportedModelError
from dynx.runtime import loading
from dynx.runtime.decision import Decision
from dynx.runtime.heads.formats import head_format
from dynx.speculation.disk_drafters import drafters_for, named
from dynx.speculation.known_drafters import place_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.runtime.backends.interface import Backend
    from dynx.runtime.heads.formats import HeadFormat
    from dynx.runtime.loading import Source
    from dynx.speculation.backends import ModelBackends
    from dynx.speculation.plan import GeneratorPlan


def load_drafter(
    plan: GeneratorPlan,
    tokenizer: Any,
    kernels: ModelBackends,
    target: Backend,
    stages: Callable[[str], None],
    warn: Callable[[str], None],
) -> Any:
    """Load the plan's draft model, with its output head cut and its tokens translated where that is due.

    Returns None for the model's own head where nobody asked for it and it can't be used. Raises ModelError.
    """
    from dynx.speculation.drafters.translated import TranslatedBackend
    from dynx.speculation.drafters.translation import translation_between

    source = plan.drafter
    if source is None:
        raise RuntimeError("there is no draft model to load")
    stages(f"loading {source.name}")
    if (kind := head_format(source)) is not None:
        return _load_head(plan, source, kind, target, warn)
    try:
        translation = translation_between(tokenizer, loading.load_text_tokenizer(source))
    except UnsupportedModelError as e:
        raise ModelError(
            f"{source.name} can't draft for {plan.source.name}: another vocabulary, and {e}",
            hint=_others(plan) or "`draft` self and `draft` lookup need no tokenizer",
        ) from None
    backend = kernels.drafter(source)
    if not backend.can_rollback.value:
        raise ModelError(f"{source.name} can't draft: {backend.can_rollback.reason}", hint=_others(plan))
    _trim(plan, backend)
    return backend if translation is None else TranslatedBackend(backend, translation)


def _trim(plan: GeneratorPlan, backend: Any) -> None:
    """Cut a drafter's output head to the tokens that its profile names, if it names any."""
    from dynx.runtime.backends.trimmed import can_trim, trim

    kept = plan.fitted.get("draft_vocabulary")
    if isinstance(kept, list) and all(type(token) is int for token in kept) and can_trim(backend):
        trim(backend, kept)


def _load_head(
    plan: GeneratorPlan, source: Source, kind: HeadFormat, target: Backend, warn: Callable[[str], None]
) -> Any:
    from dynx.runtime.heads.load import load_head
    from dynx.speculation.drafters.head import HeadBackend

    if not target.can_record.value:
        plan.without_head = target.can_record.reason
        if plan.auto:
            return None
        raise ModelError(f"{source.name} can't draft: {target.can_record.reason}", hint=_others(plan))
    try:
        head, layers = load_head(source, kind, target, allow_pickle=plan.request.allow_pickle)
        backend = HeadBackend(head, target, layers, kind.title)
    except (ModelError, UnsupportedModelError) as e:
        if not plan.auto:
            raise
        plan.without_head = str(e)
        warn(f"{source.name} is ignored: {e}")
        return None
    _trim(plan, backend)
    return backend


def _others(plan: GeneratorPlan) -> str | None:
    """Name the models on disk that could draft instead of the plan's drafter."""
    own = None if plan.drafter is None else place_of(plan.drafter)
    found = named([each for each in drafters_for(plan.source) if each.name != own])
    return f"on this disk: {found}" if found else None


def exit_layers(plan: GeneratorPlan, fitted: dict[str, Any], layers: int) -> int | None:
    """Return a profile's exit layer; without a profile a third of the depth, and only if requested by name."""
    if "self" not in plan.kinds:
        return None
    known = fitted.get("exit_layers")
    if isinstance(known, int) and 0 < known < layers:
        return known
    if "origins" in fitted:
        return None  # calibration looked, and no exit was worth it
    return None if plan.auto else max(1, layers // 3)


def describe_drafters(plan: GeneratorPlan, drafters: Any) -> Decision[str]:
    """Name the drafters and say why these."""
    names = []
    known = plan.profile
    dropped = known is not None and (
        (plan.drafter is not None and drafters.model is None) or ("self" in plan.kinds and not drafters.exit_layers)
    )
    if drafters.model is not None and plan.drafter is not None:
        how = getattr(drafters.model, "how", "")
        kind = "head" if getattr(drafters.model, "head", None) is not None else "model"
        names.append(f"{kind} {plan.drafter.name}{how and f' ({how})'}")
    if drafters.exit_layers:
        names.append(f"self after layer {drafters.exit_layers}")
    if drafters.lookup:
        names.append("lookup")
    why = "asked for"
    if plan.auto:
        why = (
            "weighed each round by measured costs"
            if plan.own_profile
            else "tried where that can't cost more than one pass and 1 %: nothing is measured here yet"
        )
    if plan.without_head and plan.drafter is not None:
        why += f"; {plan.drafter.name} isn't used: {plan.without_head}"
    elif dropped and known is not None:
        why = f"{'came with the model' if plan.bundled else 'calibration'}: {known.decision['summary']}"
    elif drafters.late is not None and plan.drafter is not None:
        why += f"; {plan.drafter.name} isn't loaded before the work is long enough to pay for that"
    return Decision(", ".join(names) or "none", why)
