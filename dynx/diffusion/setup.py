"""Turn a request into a loaded image generator: device, precision, model, and the steps that a profile allows.

`make_plan` decides what can be decided without loading; `assemble` loads. Every choice is a `Decision`, with its reason.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dynx.diffusion import backends
from dynx.diffusion.assembly import LoadedImageGenerator, check_size, sample_of
from dynx.diffusion.control import check_control, read_control
from dynx.diffusion.editing import converted, read_start, size_for
from dynx.diffusion.plan import BUNDLED, TASK, ImageGeneratorDecisions, ImageGeneratorPlan
from dynx.diffusion.runs import RunCost, begin, choose, why
from dynx.errors import InvalidInput, ModelError, NoProfileError, UnsupportedModelError
from dynx.runtime import loading, picture_lora
from dynx.runtime.adapters import said, unapplied
from dynx.runtime.backends.registry import OPENVINO, TORCH
from dynx.runtime.decision import Decision
from dynx.runtime.plan import BackendSpec, TaskRules, resolve
from dynx.runtime.profile import TEXT
from dynx.runtime.threads import set_torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dynx.diffusion.plan import ImageGeneratorRequest
    from dynx.diffusion.runs import Choice
    from dynx.runtime.device import Device
    from dynx.runtime.loading import Source
    from dynx.runtime.profile import Form, Profile

CONTROLLED: Mapping[Form, Form] = {"text": "control", "image": "control-image", "inpainting": "control-inpainting"}
"""What pictures are called that start from the same, and are drawn under control of a picture."""

DEFAULTS_FILE = "dynx.json"
"""File in a pipeline's folder with its preferred settings, such as {"guidance": 2.5}, which diffusers doesn't store."""


def make_plan(
    request: ImageGeneratorRequest, *, warn: Callable[[str], None] = lambda _: None, machine: Device | None = None
) -> ImageGeneratorPlan:
    """Decide all that can be decided without loading anything. Raises DynxError."""
    if not 0 < request.quality <= 1:
        raise InvalidInput(f"`quality` {request.quality:g} must lie between 0 and 1")
    source = request.find(request.model, TASK)
    loading.check_pipeline(source, allow_pickle=request.allow_pickle)
    if request.lora:
        source = replace(source, adapters=picture_lora.find(request.lora))
    loose = unapplied(source.folder)
    if loose:
        warn(f"{source.name}: {said(loose)}")
    start = read_start(request.image, request.mask, request.strength, warn)
    control = read_control(request.control_image, request.control_scale, warn)
    form: Form = TEXT if start is None else "image" if start.mask is None else "inpainting"
    if control is not None:
        form = CONTROLLED[form]
    preferred = preferred_guidance(source) if request.guidance is None else None
    if preferred is not None:
        request = replace(request, guidance=preferred)
    found = resolve(request, source, TASK_RULES, warn=warn, machine=machine, form=form, wants_bundled=form == TEXT)
    decisions = ImageGeneratorDecisions(**found.common)
    if loose:
        decisions.adapters = Decision("none", said(loose))
    if source.adapters:
        named = ", ".join(map(str, source.adapters))
        decisions.adapters = Decision(named, "asked for; folded into the weights, and part of what a profile is about")
    if preferred is not None:
        decisions.guidance = Decision(preferred, f"{DEFAULTS_FILE} beside the model asks for it")
    plan = ImageGeneratorPlan(
        request, source, found.machine, found.key, found.profile, found.arrays, found.bundled, decisions
    )
    plan.start, plan.control = start, control
    if plan.bundled and request.backend == "auto" and decisions.backend.value == TORCH:
        decisions.backend = Decision(
            TORCH, "the model's own profile has no times of this device; calibrating measures them, in a few minutes"
        )
    if found.mismatch is not None and not _both_in_full(plan):
        plan.drop_profile(found.mismatch, warn)
    return plan


def _both_in_full(plan: ImageGeneratorPlan) -> bool:
    """Whether a profile and a run of it differ in their backends alone, and both compute in float32 on the processor.

    Backends then differ by rounding, as two processors do.
    """
    measured = None if plan.profile is None else measured_with(plan.profile).dtype
    return plan.device == "cpu" and measured == plan.dtype == "float32"


def _execution(
    request: ImageGeneratorRequest, _: Source, device: str, machine: Device, profile: Profile | None
) -> tuple[Decision[str], Decision[str]]:
    """Choose backend and precision."""
    measured = None if profile is None else measured_with(profile)
    return backends.decide(request.backend, request.dtype, device, machine, measured)


def measured_with(profile: Profile) -> BackendSpec:
    """Return the backend and the precision that a profile was measured with."""
    fitted = profile.fitted
    return BackendSpec(str(fitted.get("backend", TORCH)), str(fitted.get("precision", profile.key.dtype)))


TASK_RULES: TaskRules[ImageGeneratorRequest] = TaskRules(TASK, BUNDLED, _execution, measured_with)


def preferred_guidance(source: Source) -> float | None:
    """Return the guidance that the folder prefers, or None. Raises ModelError for an invalid value."""
    path = source.folder / DEFAULTS_FILE
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get("guidance")
        guidance = None if value is None else float(value)
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise ModelError(f"{path} can't be read: {e}") from None
    if guidance is not None and not 0 <= guidance < 1000:
        raise ModelError(f"{path} asks for a guidance of {guidance:g}")
    return guidance


def assemble(
    plan: ImageGeneratorPlan,
    *,
    stages: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    racing: bool = False,
    pictures: int | None = None,
    together: bool = False,
) -> LoadedImageGenerator:
    """Load the pipeline of a plan. Raises DynxError.

    `stages` receives the current activity for a progress line. `racing` leaves the choice of backend to a calibration.
    `pictures` is how many will be drawn, None where nobody knows; `together` allows several of them in one network call.
    """
    _ = plan.weights  # before they are read: pictures say what drew them, and a draft is finished by the same
    _compile_ahead(plan, pictures, together=together)
    stages("importing torch and diffusers")
    with loading.importing():
        set_torch_threads(plan.threads)
        import dynx.diffusion.engine  # noqa: F401 - with all that it imports

    stages(f"loading {plan.source.name}")
    pipe = loading.load_pipeline(
        plan.source, device=plan.device, dtype=plan.loaded_dtype, allow_pickle=plan.request.allow_pickle
    )
    if adapters := [each for each in plan.source.adapters if isinstance(each, picture_lora.PictureAdapter)]:
        picture_lora.fold(pipe, adapters, plan.source.name)
    return assemble_over(plan, pipe, stages=stages, warn=warn, racing=racing, pictures=pictures, together=together)


def assemble_over(
    plan: ImageGeneratorPlan,
    pipe: Any,
    *,
    stages: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    racing: bool = False,
    pictures: int | None = None,
    together: bool = False,
) -> LoadedImageGenerator:
    """Carry out a plan with a pipeline that is loaded already, from the plan's folder. Raises DynxError."""
    from dynx.diffusion.apply_profile import read_further, read_step_profile
    from dynx.diffusion.engine import Engine
    from dynx.diffusion.profile_data import CertifiedSteps

    if plan.start is not None:
        pipe = converted(pipe, plan.start, plan.source.name)
    check_control(pipe, plan.control, plan.source.name)
    engine = Engine(pipe)
    if plan.request.size is not None:
        check_size(plan.request.size, engine)
    if plan.start is not None:
        size = plan.request.size or size_for(plan.start, pipe, engine.adapter.multiple)
        engine.start = plan.start.fitted(size)
        plan.request = replace(plan.request, size=size)
    if plan.control is not None:
        size = plan.request.size or size_for(plan.control, pipe, engine.adapter.multiple)
        engine.control = plan.control.fitted(size)
        plan.request = replace(plan.request, size=size)
    request = plan.request
    engine.check(sample_of(request, engine))
    assembly = LoadedImageGenerator(plan, engine, None, racing)
    if not engine.adapter.adaptive.value:
        plan.decisions.steps = Decision("plain", engine.adapter.adaptive.reason)
    elif request.plain:
        plan.decisions.steps = Decision("plain", "plain execution was asked for")
    elif request.steps is not None:
        plan.decisions.steps = Decision(request.steps, "asked for")
    elif plan.profile is None:
        plan.decisions.steps = Decision("plain", "no profile; calibrating measures how few steps suffice")
    else:
        assembly.step_profile = read_step_profile(assembly, warn)
        if assembly.step_profile is None and request.require_profile:
            raise NoProfileError(
                f"profile {plan.profile.key.id} can't be used: {assembly.why_plain}",
            )
        if assembly.step_profile is not None and plan.decisions.steps is not None and _may_reduce(plan):
            assembly.in_full = CertifiedSteps(assembly.step_profile, plan.decisions.steps)
            assembly.further = read_further(assembly, warn)
    if not racing:
        choose_run(assembly, pictures, together=together)
        _give_kernels(assembly, stages, warn)
    return assembly


def _compile_ahead(plan: ImageGeneratorPlan, pictures: int | None, *, together: bool) -> None:
    """Begin to compile what the run will draw with, in a thread, before PyTorch is imported."""
    costs = _costs(plan, _further_calls(plan), together=together)
    if not any(cost.spec.backend == OPENVINO for cost in costs):
        return
    calls = _usual_steps(plan)
    now = begin(costs, calls)[0] if pictures is None else choose(costs, max(1, pictures), calls)
    if now.cost.spec.backend != OPENVINO:
        return
    from dynx.runtime.backends.openvino import ahead

    batches = (now.batch,) if pictures is not None else sorted({1, now.batch})
    files = [file for batch in batches for file in now.cost.by_batch[batch].files]
    ahead.begin(backends.compiled_files(plan, files, now.cost.spec.dtype), plan.threads)


def _may_reduce(plan: ImageGeneratorPlan) -> bool:
    """Whether a run may be drawn in a further precision of its profile: where nothing else was asked for."""
    request = plan.request
    return plan.device == "cpu" and request.dtype == "auto" and request.steps is None and not request.plain


def _costs(plan: ImageGeneratorPlan, further: Mapping[BackendSpec, float], *, together: bool) -> list[RunCost]:
    """Return what runs cost here on the backends that a request allows; none where the profile doesn't tell.

    `further` are backends in reduced precision that have a certificate of their own, with the network calls of a picture there.
    """
    if plan.profile is None or plan.bundled:
        return []
    try:
        costs = [RunCost.from_json(each) for each in plan.profile.measured.get("runs", ())]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return []
    named = plan.request.backend != "auto"
    full = measured_with(plan.profile).dtype
    costs = [replace(c, calls=further.get(c.spec)) for c in costs if c.spec.dtype == full or c.spec in further]
    costs = [c for c in costs if c.spec.backend == plan.backend or not named]
    return costs if together else [replace(c, by_batch={1: c.by_batch[1]}) for c in costs]


def _usual_steps(plan: ImageGeneratorPlan, further: str | None = None) -> float:
    """Return the steps of a picture as certified when the profile was made, without loading it."""
    try:
        profile: Any = plan.profile
        ladder = profile.fitted["ladder"]
        steps = [*sorted(int(k) for k in ladder["nodes"]), len(ladder["fine"]["timesteps"])]
        evidence = profile.evidence if further is None else profile.evidence["further"][further]
        exits = evidence["certificate"]["exits"]
        return float(sum(n * k for n, k in zip(exits, steps, strict=True)) / sum(exits))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return 10.0


def _further_calls(plan: ImageGeneratorPlan) -> dict[BackendSpec, float]:
    """Return the steps of a picture on the further backends of a profile, as certified when it was made."""
    from dynx.diffusion.profile_data import further_name, further_specs

    if plan.profile is None or not _may_reduce(plan):
        return {}
    try:
        return {spec: _usual_steps(plan, further_name(spec)) for spec in further_specs(plan.profile.fitted)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def choose_run(assembly: LoadedImageGenerator, pictures: int | None, *, together: bool) -> None:
    """Decide by the number of pictures what a run draws with, where the profile tells what runs cost here."""
    plan, known = assembly.plan, assembly.step_profile
    further = {spec: each.profile.mean_steps for spec, each in assembly.further.items()}
    costs = _costs(plan, further, together=together and not (known is not None and known.fitted.schedules.alone))
    if not costs:
        return
    calls = float(assembly.engine.adapter.default_steps if plan.request.steps is None else plan.request.steps)
    if known is not None:
        calls = known.mean_steps
    if pictures is None:
        now, assembly.pending = begin(costs, calls)
        reason = why(costs, now, 1, calls)
        if assembly.pending is not None:
            reason = f"it starts first; {assembly.pending.later} takes over once that pays; {reason}"
    else:
        now = choose(costs, max(1, pictures), calls)
        reason = why(costs, now, max(1, pictures), calls)
    _adopt(assembly, now, reason, (now.batch,) if pictures is not None else tuple(sorted({1, now.batch})))


def _adopt(assembly: LoadedImageGenerator, choice: Choice, reason: str, batches: tuple[int, ...]) -> None:
    """Draw with a choice: its backend and precision, and the steps that are certified there."""
    decisions, spec = assembly.plan.decisions, choice.cost.spec
    assembly.run, assembly.batches = choice, batches
    decisions.backend = Decision(spec.backend, reason)
    known = assembly.further.get(spec, assembly.in_full)
    if known is not None:
        assembly.step_profile, decisions.steps = known
    if spec in assembly.further:
        decisions.dtype = Decision(spec.dtype, "the promise is certified in it too, and it is over first")
    elif assembly.further:
        decisions.dtype = Decision(spec.dtype, "it is over first")


def move_over(assembly: LoadedImageGenerator, reason: str) -> None:
    """Go on with the backend that the run of unknown length was to move over to; where that fails, with the one it is on."""
    pending, plan = assembly.pending, assembly.plan
    if pending is None:
        return
    assembly.pending = None
    later, before = pending.later, (assembly.run, assembly.batches, assembly.step_profile, replace(plan.decisions))
    _adopt(assembly, later, reason, tuple(sorted({1, later.batch})))
    try:
        _prepare_kernels(assembly, lambda _: None)
    except UnsupportedModelError as e:
        assembly.run, assembly.batches, assembly.step_profile, plan.decisions = before
        plan.decisions.backend = Decision(plan.backend, f"{plan.decisions.backend.reason}; {later} can't run it: {e}")


def _give_kernels(assembly: LoadedImageGenerator, stages: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Set the backend of the plan; if one chosen by a profile can't run the network, fall back to PyTorch.

    Raises UnsupportedModelError if a backend that the user asked for can't run it.
    """
    plan, known = assembly.plan, assembly.step_profile
    try:
        _prepare_kernels(assembly, stages)
    except UnsupportedModelError as e:
        if plan.request.backend != "auto" or (plan.request.dtype not in ("auto", "float32")):
            raise
        plan.decisions.backend, plan.decisions.dtype = Decision(TORCH, str(e)), Decision("float32", str(e))
        assembly.run, assembly.pending, assembly.batches = None, None, (1,)
        if _both_in_full(plan):
            if assembly.in_full is not None:  # the steps may be those of another precision
                assembly.step_profile, plan.decisions.steps = assembly.in_full
            assembly.further = {}
            return
        plan.drop_profile(str(e), warn)
        if known is not None:
            assembly.step_profile = None
            plan.decisions.steps = Decision("plain", str(e))


def _prepare_kernels(assembly: LoadedImageGenerator, stages: Callable[[str], None]) -> None:
    """Build and prepare the backends of network and parts, for as many pictures in a call as were decided."""
    plan, engine, known = assembly.plan, assembly.engine, assembly.step_profile
    made = backends.build_kernels(plan, engine, plan.spec)
    if made is None:
        return
    stages(f"preparing {made}")
    parts = () if assembly.run is None else assembly.run.cost.parts
    others = backends.build_parts(plan, engine, plan.spec) if parts else {}
    for batch in assembly.batches:
        sample = sample_of(plan.request, engine, batch)
        backends.prepare(
            made,
            engine,
            sample,
            known.longest if known else None,
            guidance_interval=known is not None and known.fitted.schedules.guided_share is not None,
        )
        if parts:
            others = backends.prepare_parts(others, backends.part_calls(engine, sample), parts)
    engine.kernels, engine.parts.kernels = made, others
