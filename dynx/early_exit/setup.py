"""Turn a request into a classifier that runs: device, precision, model, exits and their guarantee.

`make_plan` decides what can be decided without loading; `assemble` loads. Every choice is a `Decision`, with its reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.early_exit import backends
from dynx.early_exit.assembly import (
    BlockBackend,
    LoadedClassifier,
    attach_exits,
    is_reference,
    labels_for,
    load_model,
)
from dynx.early_exit.items import GROUPED
from dynx.early_exit.plan import AGGREGATION_STRATEGIES, BUNDLED, TASK, ClassifierDecisions, ClassifierPlan
from dynx.errors import InvalidInput, NoProfileError, UnsupportedModelError
from dynx.runtime import loading
from dynx.runtime.backends.registry import OPENVINO, TITLES, TORCH, attempt
from dynx.runtime.decision import Decision
from dynx.runtime.device import choose_dtype
from dynx.runtime.plan import BackendSpec, TaskRules, resolve
from dynx.runtime.profile import FORMS
from dynx.runtime.threads import beside, set_torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.early_exit.plan import ClassifierRequest
    from dynx.runtime.device import Device
    from dynx.runtime.loading import Source
    from dynx.runtime.profile import Profile


def make_plan(
    request: ClassifierRequest, *, warn: Callable[[str], None] = lambda _: None, machine: Device | None = None
) -> ClassifierPlan:
    """Decide all that can be decided without loading anything. Raises DynxError."""
    if not 0 < request.max_disagreement < 1:
        raise InvalidInput(f"`max_disagreement` {request.max_disagreement:g} must lie between 0 and 1")
    if not 0 < request.confidence < 1:
        raise InvalidInput(f"`confidence` {request.confidence:g} must lie between 0 and 1")
    if request.quantize not in backends.QUANTIZATIONS:
        raise InvalidInput(f"`quantize` {request.quantize}: classifiers have {' and '.join(backends.QUANTIZATIONS)}")
    source = request.find(request.model, TASK)
    kind = loading.check_classifier(source, allow_pickle=request.allow_pickle)
    _check_groups(request)
    if request.form != "text" and kind != "text":
        takes = "takes images" if kind == "image" else "labels the tokens of single texts"
        raise InvalidInput(f"{source.name} {takes}, and the inputs are {FORMS[request.form]}")
    _check_tokens(request, source, tokens=kind == "tokens")
    found = resolve(request, source, RULES, warn=warn, machine=machine, form=request.form)
    decisions = ClassifierDecisions(**found.common)
    plan = ClassifierPlan(
        request, source, found.machine, found.key, found.profile, found.arrays, found.bundled, decisions, kind=kind
    )
    if found.mismatch is not None:
        plan.drop_profile(found.mismatch, warn)
    if request.quantize != "none":
        decisions.quantize = Decision(request.quantize, "asked for")
    return plan


def _check_tokens(request: ClassifierRequest, source: Source, *, tokens: bool) -> None:
    """Raise InvalidInput for settings that don't fit whether the model labels tokens."""
    strategy = request.aggregation_strategy
    if not tokens:
        if strategy is not None:
            raise InvalidInput(f"`aggregation_strategy` is for models that label tokens, and {source.name} doesn't")
        return
    if strategy is not None and strategy not in AGGREGATION_STRATEGIES:
        raise InvalidInput(f"`aggregation_strategy` {strategy}: one of {', '.join(AGGREGATION_STRATEGIES)}")
    if request.per_class or request.within is not None:
        what = "per_class" if request.per_class else "within"
        raise InvalidInput(f"`{what}` is for models with one answer per input, and {source.name} labels tokens")


def _check_groups(request: ClassifierRequest) -> None:
    """Raise InvalidInput for settings of groups that don't fit each other."""
    if request.form == "ranking" and request.top_k is not None and request.top_k < 1:
        raise InvalidInput(f"`top_k` {request.top_k}: at least 1")
    if request.form != "zero-shot":
        if request.candidates:
            raise InvalidInput("`candidates` are for the form zero-shot")
        return
    if not request.candidates or not all(label.strip() for label in request.candidates):
        raise InvalidInput("`candidates` are the labels to choose from: at least one, and none empty")
    if len(set(request.candidates)) < len(request.candidates):
        twice = next(label for label in request.candidates if request.candidates.count(label) > 1)
        raise InvalidInput(f"`candidates` has {twice} twice")
    try:
        made = request.hypothesis.format(request.candidates[0])
    except (IndexError, KeyError, ValueError) as e:
        raise InvalidInput(f"`hypothesis` {request.hypothesis!r} can't take a label: {e}") from None
    if made == request.hypothesis:
        raise InvalidInput(f"`hypothesis` {request.hypothesis!r} has no {{}} for the label")


def _execution(
    request: ClassifierRequest, _: Source, device: str, machine: Device, profile: Profile | None
) -> tuple[Decision[str], Decision[str]]:
    """Choose backend and precision."""
    backend = backends.choose(request, device, profile)
    if request.dtype == "auto" and device == "cpu":
        return backend, Decision("float32", "the promise is about float32 answers")
    return backend, choose_dtype(None if request.dtype == "auto" else request.dtype, device, machine)


def _measured_backend(profile: Profile) -> BackendSpec:
    """Return the backend and precision that a profile's evidence and costs were measured with."""
    return BackendSpec(backends.measured_backend(profile), profile.key.dtype)


RULES: TaskRules[ClassifierRequest] = TaskRules(TASK, BUNDLED, _execution, _measured_backend)


def assemble(
    plan: ClassifierPlan,
    *,
    stages: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    calibrating: bool = False,
    quick_start: bool = False,
) -> LoadedClassifier:
    """Load what the plan names and attach exits. Raises DynxError.

    `stages` is called with what is being done, for a progress line. When `calibrating`, a backend that needs activation ranges
    isn't set up yet. `quick_start`: a model that has to be converted first may start on PyTorch, and turn to what the profile
    measured once that pays (`LoadedClassifier.pending`).
    """
    unknown = plan.backend == OPENVINO and plan.request.quantize != "none"
    if unknown and not backends.ranges_of(plan) and not calibrating:
        raise NoProfileError(
            "OpenVINO multiplies in int8 only where calibration has seen how large numbers get",
        )
    if calibrating:
        _ = plan.weights  # before they are read
    stages("importing torch and transformers")
    with loading.importing():
        set_torch_threads(plan.threads)
        from dynx.early_exit.apply_profile import apply_profile

    stages(f"loading {plan.source.name}")
    quick_start = quick_start and plan.request.form not in GROUPED
    assembly = None if calibrating else _load_segments(plan, stages, warn, quick_start)
    if assembly is None:
        assembly = _load_on_backend(plan, stages, warn)
    if assembly.block_backend.backend == OPENVINO:
        plan.decisions.threads = beside(TITLES[OPENVINO], plan.decisions.threads)
    if plan.profile is not None:
        _certify_full_depth(assembly, warn)
    if plan.profile is None:
        plan.decisions.exits = plan.decisions.exits or Decision("none", _reason_without_profile(plan.request))
    elif plan.decisions.exits is None:
        if plan.request.form in GROUPED:
            from dynx.early_exit.group_setup import apply_profile as apply_group_profile

            assembly.group_profile = apply_group_profile(assembly, warn)
        else:
            assembly.exit_profile = apply_profile(assembly, warn)
        if not assembly.exits_early and plan.request.require_profile:
            raise NoProfileError(
                f"profile {plan.profile.key.id} can't be used: {assembly.why_full_depth}",
            )
    return assembly


def _load_segments(
    plan: ClassifierPlan,
    stages: Callable[[str], None],
    warn: Callable[[str], None],
    quick_start: bool,
) -> LoadedClassifier | None:
    """Load the segments that the profile measured; None where it has none, or OpenVINO can't run them here."""
    from dynx.early_exit import segment_setup as segments

    try:
        cut = segments.cut_of(plan)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        why = f"its contents can't be used ({type(e).__name__}: {e})"
    else:
        if cut is None:
            return None
        why = segments.precision_mismatch(plan, cut) or ""
        if not why:
            try:
                with attempt(OPENVINO, plan.source.name):
                    if quick_start and plan.request.quantize == "none" and not segments.is_ready(plan, cut):
                        started = _load_on_backend(plan, stages, warn, TORCH)
                        started.pending = segments.pending_segments(started, cut)
                        if started.pending is not None:
                            plan.decisions.backend = Decision(
                                TORCH, f"it starts at once; OpenVINO ({cut}) takes over when converting has paid"
                            )
                            return started
                    return segments.load_segments(plan, cut, stages)
            except UnsupportedModelError as e:
                why = f"OpenVINO can't run it: {e}"
    plan.drop_profile(why, warn)
    if plan.request.backend == "auto":
        plan.decisions.backend = Decision(TORCH, why)
    return None


def _load_on_backend(
    plan: ClassifierPlan,
    stages: Callable[[str], None],
    warn: Callable[[str], None],
    backend: str | None = None,
) -> LoadedClassifier:
    """Load the model on a backend, by default the plan's, or on PyTorch where that one can't run it and wasn't requested."""
    backend, ranges = backend or plan.backend, backends.ranges_of(plan)
    stages(f"loading {plan.source.name}")
    if backend == OPENVINO and plan.request.quantize != "none" and not ranges:
        backend = TORCH  # as calibration begins
    block_backend = backends.requested_blocks(plan, backend, ranges)
    model, preprocessor = load_model(plan, dtype=backends.load_dtype(plan, backend), max_length=plan.request.max_length)
    labels = labels_for(plan, model.config)
    if plan.request.within is not None and labels.problem != "regression":
        raise InvalidInput(f"`within` is for models that give numbers, and {plan.source.name} gives labels")
    if plan.request.per_class and labels.problem != "single":
        raise InvalidInput(f"`per_class` is for models with one label per input, and {plan.source.name} isn't one")
    stages(f"trying {plan.source.name}")
    attached = attach_exits(model, preprocessor)
    exit_model = attached.model
    plan.decisions.exits, plan.decisions.batch = attached.exits, attached.batch
    try:
        with attempt(backend, plan.source.name):
            exit_model = backends.replace_blocks(exit_model, preprocessor, block_backend, plan.threads)
    except UnsupportedModelError as e:
        if plan.request.backend != "auto" or backend == TORCH:
            raise
        why = f"OpenVINO can't run it: {e}"
        plan.drop_profile(why, warn)
        plan.decisions.backend = Decision(TORCH, why)
        return _load_on_backend(plan, stages, warn)
    return LoadedClassifier(plan, exit_model, preprocessor, labels, None, block_backend)


def _certify_full_depth(assembly: LoadedClassifier, warn: Callable[[str], None]) -> None:
    """Set the guarantee of full-depth answers that the profile certifies.

    Where there is none, a quantized model is replaced by the unquantized one.
    """
    from dynx.early_exit.apply_profile import certify_full_depth

    plan = assembly.plan
    if is_reference(assembly):
        return
    if plan.request.form in GROUPED:
        from dynx.early_exit.group_setup import certify_full_depth
    assembly.certified, words = certify_full_depth(assembly)
    if assembly.certified is not None or (plan.request.quantize == "none" and assembly.segments is None):
        return
    plan.drop_profile(words, warn)
    if plan.request.quantize != "none":
        plan.decisions.quantize = Decision("none", words)
    plan.decisions.backend = Decision(TORCH, "the model as it is")
    plan.decisions.exits = Decision("none", words)
    model, preprocessor = load_model(plan, dtype=plan.dtype, max_length=plan.request.max_length)
    assembly.exit_model, assembly.preprocessor = attach_exits(model, preprocessor).model, preprocessor
    assembly.block_backend, assembly.segments = BlockBackend(precision=plan.dtype), None


def _reason_without_profile(request: ClassifierRequest) -> str:
    if request.plain:
        return "plain execution was asked for"
    if request.profile == "none":
        return "no profile was asked for"
    return "no profile; calibrating learns exits from inputs of yours"
