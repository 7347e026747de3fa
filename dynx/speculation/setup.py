"""Resolves a request into a loaded engine: device, precision, models, drafters and their acceptance profile.

`make_plan` decides what can be decided without loading; `assemble` loads. Every choice is a `Decision`, with its reason.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from dynx.errors import InvalidInput, ModelError
from dynx.runtime import loading
from dynx.runtime.backends.padding import MAX_PADDED_TOKENS
from dynx.runtime.backends.registry import OPENVINO, TITLES, TORCH, Quantization, choose
from dynx.runtime.decision import Decision
from dynx.runtime.device import choose_dtype, probe
from dynx.runtime.gguf.describe import types_of
from dynx.runtime.gguf.header import INTEGER_TYPES
from dynx.runtime.hashing import model_hash
from dynx.runtime.heads.formats import MTP, head_format, own_head
from dynx.runtime.plan import BackendSpec, TaskRules, resolve
from dynx.runtime.threads import beside, set_torch_threads
from dynx.runtime.utf8 import read
from dynx.speculation.assembly import LoadedGenerator
from dynx.speculation.backends import ModelBackends, verifier
from dynx.speculation.formats import EXPORTED, adapters_said, exported_execution, part_said, stored_weights
from dynx.speculation.known_drafters import known_drafter
from dynx.speculation.model_settings import end_tokens, in_words, read_settings, sampling_asked
from dynx.speculation.plan import BUNDLED, DRAFT_KINDS, TASK, GeneratorDecisions, GeneratorPlan
from dynx.speculation.plan_drafters import describe_drafters, exit_layers, load_drafter

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.runtime.backends.interface import Backend
    from dynx.runtime.device import Device
    from dynx.runtime.loading import Source
    from dynx.runtime.profile import Profile
    from dynx.speculation.engine import AcceptanceProfile, Engine
    from dynx.speculation.plan import GeneratorRequest
    from dynx.speculation.types import ModelSettings

UNASKED_REGRET_BUDGET_PASSES = 1.0
"""Regret budget at the start of work without a profile, for drafters that nobody asked for, in plain passes: one first try."""

MAX_CACHED_WEIGHTS_BYTES = 96 << 20
"""Largest float32 weights, in bytes, that stay in a processor's caches: halving them gains nothing and costs exactness."""


def make_plan(
    request: GeneratorRequest, *, warn: Callable[[str], None] = lambda _: None, machine: Device | None = None
) -> GeneratorPlan:
    """Decide all that can be decided without loading anything. Raises DynxError."""
    source = request.find(request.model, TASK)
    if request.adapters:
        source = loading.with_adapters(
            source, request.adapters, offline=request.offline, allow_pickle=request.allow_pickle
        )
    kinds, drafter, auto = _parse_draft(request, source)
    is_head = drafter is not None and head_format(drafter) is not None
    for each in (source, None if is_head else drafter):
        if each is not None:
            loading.check_causal_lm(each, allow_pickle=request.allow_pickle)
    request = replace(request, quantize=_quantization(request, source))
    for_head = is_head and not auto and request.backend == "auto"
    if for_head:
        request = replace(request, backend=TORCH)
    stored = stored_weights(request, source, machine := machine or probe())
    packed = stored is not None and stored.value == loading.PACKED
    resolved = partial(
        resolve,
        request,
        source,
        RULES,
        warn=warn,
        machine=machine,
        stored=loading.PACKED if packed else EXPORTED if source.is_exported else None,
        form="chat" if request.chat else "text",
        wants_bundled=request.draft == "auto" and request.lookup is None,
    )
    found = resolved(companion=_hash(drafter))
    if auto and drafter is None and request.profile is None:
        drafter = known_drafter(found.key, partial(replace(request, offline=True).find, task=TASK))
        if drafter is not None:
            kinds, found = kinds | {"draft"}, resolved(companion=_hash(drafter))
    plan = GeneratorPlan(
        request,
        source,
        found.machine,
        found.key,
        found.profile,
        found.arrays,
        found.bundled,
        GeneratorDecisions(**found.common),
        RULES.excluded,
        packed,
        drafter,
        kinds,
        auto,
        _drafter_dtype(drafter, found.device.value, found.dtype.value),
    )
    if found.mismatch is not None:
        plan.drop_profile(found.mismatch, warn)
    plan.decisions.adapters = adapters_said(source, warn)
    plan.decisions.weights = stored
    plan.decisions.part = part_said(source)
    if for_head and drafter is not None:
        plan.decisions.backend = Decision(TORCH, f"{drafter.name} reads hidden states, which PyTorch hands over")
    if packed:
        plan.decisions.backend = Decision(TORCH, "packed weights run on PyTorch alone")
    if request.quantize == "file":
        plan.decisions.quantize = Decision("file", _stored_in_words(plan))
    elif request.quantize != "none":
        plan.decisions.quantize = Decision(request.quantize, _quantization_reason(plan.own_profile, request.quantize))
    return plan


def _hash(drafter: Source | None) -> str | None:
    return None if drafter is None else model_hash(drafter.folder, code=drafter.trusted)


def _execution(
    request: GeneratorRequest, source: Source, device: str, machine: Device, profile: Profile | None
) -> tuple[Decision[str], Decision[str]]:
    """Choose backend and precision."""
    if source.is_exported:
        return exported_execution(request, source, device, machine)
    measured = None if profile is None else measured_with(profile).backend
    backend = choose(request.backend, request.quantize, device, measured)
    return backend, _dtype(request, source, device, machine)


def measured_with(profile: Profile) -> BackendSpec:
    """Return the backend and precision that a profile was measured with."""
    return BackendSpec(str(profile.fitted.get("backend", TORCH)), profile.key.dtype)


RULES: TaskRules[GeneratorRequest] = TaskRules(
    TASK, BUNDLED, _execution, measured_with, excluded=(loading.DRAFTER_FOLDER,), needs_own_costs=True
)


def _quantization(request: GeneratorRequest, source: Source) -> str:
    """Decide how weights are stored: by default a GGUF file's as they are in it. Raises InvalidInput."""
    names = ("auto", *get_args(Quantization))
    if request.quantize not in names:
        raise InvalidInput(f"`quantize` {request.quantize}: one of {', '.join(names)}")
    if request.quantize == "file" and source.file is None:
        raise InvalidInput(f"`quantize` file: {source.name} is no GGUF file")
    if request.quantize == "file" and source.adapters:
        raise InvalidInput("`quantize` file: adapters change the file's values")
    if request.quantize != "auto":
        return request.quantize
    if source.file is None or request.dtype != "auto" or source.adapters:
        return "none"
    return "none" if INTEGER_TYPES.isdisjoint(types_of(source.folder)) else "file"


def _stored_in_words(plan: GeneratorPlan) -> str:
    """Describe the types of a GGUF file's weights, and how they run."""
    types = types_of(plan.source.folder)
    whole = sum(types.values()) or 1
    shares = ", ".join(f"{kind} {count / whole:.0%}" for kind, count in types.items() if count >= 0.005 * whole)
    if plan.backend != OPENVINO:
        return (
            f"the file's weights ({shares}) unpacked to {plan.dtype}; speculation is lossless relative to these values"
        )
    return (
        f"the file's own integers ({shares}), inputs in 8 bits; speculation is lossless relative to the file's values; other "
        "precisions round those again, so they run only where `dtype` or `quantize` asks for one"
    )


def _quantization_reason(profile: Profile | None, quantize: str) -> str:
    """Describe a quantized model's answers, by a profile's evidence if there is one."""
    found = None if profile is None else profile.evidence.get("quantization")
    if not isinstance(found, dict):
        return f"weights in {quantize[3:]} bits; speculation is lossless relative to this quantized model"
    return (
        f"lossless relative to the {quantize} model; of {found['tokens']} tokens of its texts {found['agreement']:.1%} are "
        f"{found['reference']}'s first choice too, perplexity {found['perplexity_ratio']:.3f}x"
    )


def _parse_draft(request: GeneratorRequest, source: Source) -> tuple[frozenset[str], Source | None, bool]:
    words = [w.strip() for w in request.draft.split(",") if w.strip()]
    if not words:
        raise InvalidInput("`draft` is empty", hint=f"one of {', '.join(DRAFT_KINDS)}, or a model")
    if request.plain or words == ["none"]:
        return frozenset(), None, False
    if "none" in words or ("auto" in words and len(words) > 1):
        raise InvalidInput(f"`draft` {request.draft}: none and auto stand alone")
    if words == ["auto"]:
        drafter = source.bundled_drafter or own_head(source)
        return frozenset({"self", "lookup"} | ({"draft"} if drafter else set())), drafter, True
    models = [w for w in words if w not in DRAFT_KINDS or w == MTP]
    if len(models) > 1:
        raise InvalidInput(f"`draft` {request.draft}: one draft model at a time")
    kinds = {w for w in words if w in DRAFT_KINDS and w != MTP}
    if request.lookup is not None:
        kinds.add("lookup")
    if models == [MTP]:
        found = own_head(source)
        if found is None:
            raise InvalidInput(f"`draft` {MTP}: {source.name} has no multi-token prediction that dynx reads")
    else:
        found = request.find(models[0], TASK) if models else None
    return frozenset(kinds | ({"draft"} if found else set())), found, False


def _dtype(request: GeneratorRequest, source: Source, device: str, machine: Device) -> Decision[str]:
    stored = loading.stored_dtype(source)
    if request.dtype == "auto" and (small := _in_cache(source, stored, device)):
        return small
    return choose_dtype(None if request.dtype == "auto" else request.dtype, device, machine, stored)


def _drafter_dtype(drafter: Source | None, device: str, dtype: str) -> str:
    """Choose the draft model's precision.

    Where its weights stay in cache that is float32: on two cores a draft token of 0.4 M parameters beside a bfloat16 target took
    0.4 ms with it, 1.5 ms in bfloat16.
    """
    if drafter is None:
        return dtype
    small = _in_cache(drafter, loading.stored_dtype(drafter), device)
    return dtype if small is None else small.value


def _in_cache(source: Source, stored: str | None, device: str) -> Decision[str] | None:
    """Choose float32 for weights so few that a processor's caches hold them."""
    if source.file is not None:
        full = 4 * sum(types_of(source.folder).values())
    elif loading.needs_unpacking(source):
        full = 4 * loading.elements(source)
    else:
        size = sum(f.stat().st_size for f in source.folder.glob("*.safetensors"))
        full = size * (2 if stored in ("bfloat16", "float16") else 1)
    if device != "cpu" or not 0 < full <= MAX_CACHED_WEIGHTS_BYTES:
        return None
    return Decision("float32", f"{full >> 20} MiB of weights stay in cache, so exactness is free")


def assemble(
    plan: GeneratorPlan,
    *,
    stages: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] | None = None,
    put_off: bool = False,
    sampling: bool = False,
) -> LoadedGenerator:
    """Load what the plan names and put the engine together. Raises DynxError.

    `stages` is called with what is being done, for a progress line. With a `clock`, in seconds, backends are timed against each
    other, unless one was requested, and the fastest is kept. With `put_off` a draft model that was neither requested nor
    recommended by a profile is loaded when the work has become long enough to pay for it. With `sampling` PyTorch is imported
    beside the rest even where greedy answers do without it.
    """
    request, decisions = plan.request, plan.decisions
    if clock is not None:
        _ = plan.weights  # before they are read
    library_text = _library(request)
    fitted = plan.fitted
    began = time.perf_counter()
    tokenizer, own, kernels, target = _load_target(plan, stages, warn, clock, sampling)
    loading_seconds = time.perf_counter() - began  # the draft model is smaller
    from dynx.speculation.drafters.followers import from_arrays
    from dynx.speculation.drafters.late import LateDrafter
    from dynx.speculation.engine import Drafters, Engine
    from dynx.speculation.own_candidates import from_json
    from dynx.speculation.sampling import check_processors

    acceptance_profile = _acceptance_profile(plan, warn)
    if request.quantize == "file":
        decisions.quantize = Decision("file", _stored_in_words(plan))  # by the backend that runs it after all
    padded_lengths = padded_lengths_of(plan.own_profile) if plan.own_profile else {}
    check_processors(own, target.vocab)
    timed = acceptance_profile.costs.target.table if plan.own_profile else {}
    target.set_pass_seconds({n: seconds for n, (seconds, _) in timed.items()}, acceptance_profile.costs.switching)
    acceptance_profile.costs.target.pad(padded_lengths if target.set_padded_lengths(padded_lengths) else {})
    stages(f"trying {plan.source.name}")
    drafters = Drafters(lookup=False)
    if (state := target.state) is not None:
        decisions.state = state
    if plan.kinds and not target.can_rollback.value:
        decisions.draft = Decision("none", target.can_rollback.reason)
    elif plan.kinds:
        worth = fitted.get("origins")  # a drafter that calibration found useless isn't even loaded
        small = late = None
        if plan.drafter and put_off and plan.auto and worth is None and not plan.drafter.part:
            load = lambda: load_drafter(plan, tokenizer, kernels, target, lambda _: None, warn)  # noqa: E731
            late = LateDrafter(load, loading_seconds, began, time.perf_counter)
        elif plan.drafter and (worth is None or "draft" in worth):
            small = load_drafter(plan, tokenizer, kernels, target, stages, warn)
        layers = exit_layers(plan, fitted, target.layers)
        if layers and not target.can_exit.value:
            if not plan.auto:
                raise ModelError(f"`draft` self: {target.can_exit.reason}")
            layers = None
        library = tokenizer(library_text, add_special_tokens=False)["input_ids"] if library_text else []
        looking = "lookup" in plan.kinds and (not plan.auto or fitted.get("lookup", True))
        drafters = Drafters(small, layers, looking, library, late, _trees(plan, target))
        decisions.draft = describe_drafters(plan, drafters)
    else:
        decisions.draft = Decision("none", "plain decoding was asked for")
    acceptance_profile.next_tokens = from_json(fitted.get("own_candidates"), target.vocab)
    acceptance_profile.followers = from_arrays(plan.arrays, target.vocab)
    engine = Engine(target, drafters, tokenizer=tokenizer, acceptance_profile=acceptance_profile, threads=plan.threads)
    if target.own_threads:
        decisions.threads = beside(TITLES[target.name], decisions.threads)
    engine.batch_invariant = not drafters.present  # one token at a time is plain decoding
    if request.exact:
        _make_exact(plan, engine, stages, padded_lengths)
    elif plan.own_profile is not None:
        from dynx.speculation.exactness import is_batch_invariant

        engine.batch_invariant |= is_batch_invariant(plan.own_profile.measured.get("noise"), padded_lengths)
    return LoadedGenerator(plan, engine, tokenizer, own, lambda: verifier(plan, engine.target))


def _load_target(
    plan: GeneratorPlan,
    stages: Callable[[str], None],
    warn: Callable[[str], None],
    clock: Callable[[], float] | None,
    sampling: bool,
) -> tuple[Any, ModelSettings, ModelBackends, Backend]:
    """Load tokenizer, settings and target.

    A model kept for OpenVINO is compiled in a thread, and PyTorch isn't imported at all unless the request will need it.
    """
    kernels = ModelBackends(plan, stages, warn, clock)
    with loading.importing():
        begun = kernels.begin()
        torch_ahead = loading.Ahead(*(("torch",) if sampling or not begun else ()), "dynx.speculation.engine")
        try:
            if not begun:
                stages("importing torch")
                torch_ahead.join()
            stages("reading the tokenizer")
            tokenizer = loading.load_text_tokenizer(plan.source)
            own = _own_settings(plan, tokenizer)
            torch_ahead.join()
            stages(f"loading {plan.source.name}")
            target = kernels.target()
        finally:
            torch_ahead.join()  # a process that ends in the middle of an import may crash
        set_torch_threads(plan.threads)
    return tokenizer, own, kernels, target


def _own_settings(plan: GeneratorPlan, tokenizer: Any) -> ModelSettings:
    """Read the model's own decoding settings. Raises ModelError, or UnsupportedModelError for settings that aren't supported."""
    config = loading.generation_config(plan.source)
    own = read_settings(config, end_tokens(config, tokenizer))
    if words := in_words(own):
        plan.decisions.decoding = Decision(words, "the model's own settings, which plain decoding has as well")
    if asked := sampling_asked(config):
        plan.decisions.sampling = Decision(
            "as the caller says", f"greedy by default; the model's own settings aren't used: {asked}"
        )
    return own


def _make_exact(
    plan: GeneratorPlan, engine: Engine, stages: Callable[[str], None], padded_lengths: dict[int, int]
) -> None:
    """Make the engine's greedy text identical to plain decoding's."""
    from dynx.speculation.exactness import make_batch_invariant, prepare

    if not engine.drafters.present:
        make_batch_invariant(engine.target, padded_lengths)
        plan.decisions.exact = Decision("by every pass", "it is plain decoding")
        return

    stages("measuring how passes round")
    known = plan.own_profile.measured.get("noise") if plan.own_profile else None
    engine.exact, plan.decisions.exact = prepare(engine.target, engine.drafters.exit_layers, known, padded_lengths)


def _trees(plan: GeneratorPlan, target: Backend) -> bool:
    """Whether passes may verify trees, which need a table of candidates, a trial and a gain: calibration finds these."""
    found = plan.fitted.get("trees") is True and not plan.bundled
    if found:
        target.trust_trees()
    return found


def _library(request: GeneratorRequest) -> str:
    """Read the lookup text, before anything slow."""
    if request.lookup is None:
        return ""
    try:
        return read(request.lookup.read_bytes(), str(request.lookup))
    except OSError as e:
        raise InvalidInput(f"`lookup` {request.lookup} can't be read: {e.strerror}") from None


def _acceptance_profile(plan: GeneratorPlan, warn: Callable[[str], None]) -> AcceptanceProfile:
    """Read the plan's profile into an acceptance profile; one that can't be used is dropped from the plan.

    Without any the regret budget starts at one pass, for all texts together; with one of another machine at none. A drafter or a
    lookup text that was requested has its own for each text.
    """
    acceptance_profile = acceptance_profile_of(plan.profile, warn=warn, foreign=plan.bundled)
    if plan.profile is not None and not (acceptance_profile.costs.foreign or acceptance_profile.from_profile):
        plan.drop_profile("its contents can't be used", lambda _: None)
    if plan.of_other_prompts:
        acceptance_profile.rate = None
    if plan.auto and plan.request.lookup is None:
        acceptance_profile.regret_budget = 0.0
        if plan.profile is None:
            acceptance_profile.first_regret_budget = UNASKED_REGRET_BUDGET_PASSES
    return acceptance_profile


def padded_lengths_of(profile: Profile) -> dict[int, int]:
    """Return the padded lengths of passes, by requested length, as calibration measured; none where they aren't written."""
    try:
        found = {int(asked): int(run) for asked, run in profile.fitted.get("widened", {}).items()}
    except (AttributeError, TypeError, ValueError):
        return {}
    return {asked: run for asked, run in found.items() if 0 < asked < run <= MAX_PADDED_TOKENS}


def acceptance_profile_of(
    profile: Profile | None, *, warn: Callable[[str], None] = lambda _: None, foreign: bool = False
) -> AcceptanceProfile:
    """Read a profile into an acceptance profile; one whose contents don't parse counts as none.

    A `foreign` profile, measured on another machine, gives acceptance and ratios of costs, but no rate.
    """
    from dynx.runtime.costs import FOREIGN_WEIGHT, CostCurve
    from dynx.speculation.acceptance_model import AcceptanceModel
    from dynx.speculation.engine import AcceptanceProfile
    from dynx.speculation.round_costs import CALIBRATED_SWITCHES, Costs

    if profile is None:
        return AcceptanceProfile()
    try:
        costs = Costs()
        measured, fitted = profile.measured, profile.fitted
        costs.target = CostCurve.from_json(measured["target"], costs.drift)
        if measured.get("complete"):
            costs.complete = CostCurve.from_json(measured["complete"], costs.drift)
        for origin, curve in measured.get("draft", {}).items():
            costs.draft[origin] = CostCurve.from_json(curve, costs.drift)
        for origin, seconds in measured.get("overhead", {}).items():
            costs.overhead[origin] = float(seconds)
        costs.switching, costs.switches = max(0.0, float(measured.get("change", 0.0))), CALIBRATED_SWITCHES
        acceptance_models = {(o, True): AcceptanceModel.from_json(r) for o, r in fitted.get("reliability", {}).items()}
        if foreign:
            for curve in (costs.target, costs.complete, *costs.draft.values()):
                curve.table = {n: (seconds, FOREIGN_WEIGHT) for n, (seconds, _) in curve.table.items()}
            costs.foreign = True
            return AcceptanceProfile(costs, acceptance_models)
        rate = fitted.get("tokens_per_second")
        return AcceptanceProfile(costs, acceptance_models, float(rate) if rate else None, from_profile=True)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        warn(f"profile {profile.key.id} ignored: its contents can't be used ({type(e).__name__}: {e})")
        return AcceptanceProfile()
