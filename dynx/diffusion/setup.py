"""Turn a request into a loaded image generator: device, precision, model, and the steps that a profile allows.

`make_plan` decides what can be decided without loading; `assemble` loads. Every choice is a `Decision`, with its reason.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dynx.diffusion import backends
from dynx.diffusion.assembly import LoadedImageGenerator, check_size, sample_of
from dynx.diffusion.plan import BUNDLED, TASK, ImageGeneratorDecisions, ImageGeneratorPlan
from dynx.errors import InvalidInput, ModelError, NoProfileError, UnsupportedModelError
from dynx.runtime import loading
from dynx.runtime.adapters import said, unapplied
from dynx.runtime.backends.registry import TORCH
from dynx.runtime.decision import Decision
from dynx.runtime.plan import BackendSpec, TaskRules, resolve
from dynx.runtime.threads import set_torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.diffusion.plan import ImageGeneratorRequest
    from dynx.runtime.device import Device
    from dynx.runtime.loading import Source
    from dynx.runtime.profile import Profile

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
    loose = unapplied(source.folder)
    if loose:
        warn(f"{source.name}: {said(loose)}")
    preferred = preferred_guidance(source) if request.guidance is None else None
    if preferred is not None:
        request = replace(request, guidance=preferred)
    found = resolve(request, source, TASK_RULES, warn=warn, machine=machine)
    decisions = ImageGeneratorDecisions(**found.common)
    if loose:
        decisions.adapters = Decision("none", said(loose))
    if preferred is not None:
        decisions.guidance = Decision(preferred, f"{DEFAULTS_FILE} beside the model asks for it")
    plan = ImageGeneratorPlan(
        request, source, found.machine, found.key, found.profile, found.arrays, found.bundled, decisions
    )
    if found.mismatch is not None:
        plan.drop_profile(found.mismatch, warn)
    return plan


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
) -> LoadedImageGenerator:
    """Load the pipeline of a plan. Raises DynxError.

    `stages` receives the current activity for a progress line. `racing` leaves the choice of backend to a calibration.
    """
    _ = plan.weights  # before they are read: pictures say what drew them, and a draft is finished by the same
    stages("importing torch and diffusers")
    with loading.importing():
        set_torch_threads(plan.threads)
        import dynx.diffusion.engine  # noqa: F401 - with all that it imports

    stages(f"loading {plan.source.name}")
    pipe = loading.load_pipeline(
        plan.source, device=plan.device, dtype=plan.loaded_dtype, allow_pickle=plan.request.allow_pickle
    )
    return assemble_over(plan, pipe, stages=stages, warn=warn, racing=racing)


def assemble_over(
    plan: ImageGeneratorPlan,
    pipe: Any,
    *,
    stages: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    racing: bool = False,
) -> LoadedImageGenerator:
    """Carry out a plan with a pipeline that is loaded already, from the plan's folder. Raises DynxError."""
    from dynx.diffusion.apply_profile import read_step_profile
    from dynx.diffusion.engine import Engine

    request = plan.request
    engine = Engine(pipe)
    if request.size is not None:
        check_size(request.size, engine)
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
    if not racing:
        _give_kernels(assembly, stages, warn)
    return assembly


def _give_kernels(assembly: LoadedImageGenerator, stages: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Set the backend of the plan; if one chosen by a profile can't run the network, fall back to PyTorch.

    Raises UnsupportedModelError if a backend that the user asked for can't run it.
    """
    plan, engine, known = assembly.plan, assembly.engine, assembly.step_profile
    try:
        made = backends.build_kernels(plan, engine, plan.spec)
        if made is None:
            return
        stages(f"preparing {made}")
        sample = sample_of(plan.request, engine)
        schedule = known.longest if known else None
        backends.prepare(
            made,
            engine,
            sample,
            schedule,
            guidance_interval=known is not None and known.fitted.schedules.guided_share is not None,
        )
        engine.kernels = made
    except UnsupportedModelError as e:
        if plan.request.backend != "auto" or (plan.request.dtype not in ("auto", "float32")):
            raise
        plan.decisions.backend, plan.decisions.dtype = Decision(TORCH, str(e)), Decision("float32", str(e))
        plan.drop_profile(str(e), warn)
        if known is not None:
            assembly.step_profile = None
            plan.decisions.steps = Decision("plain", str(e))
