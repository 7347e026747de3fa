"""Decide which steps a profile allows a loaded pipeline under the requested quality."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.diffusion.control import SCALE
from dynx.diffusion.profile_data import CertifiedSteps, Guarantee, StepProfile, from_profile, further_specs
from dynx.errors import InvalidInput
from dynx.runtime.binomial import most_failures, percent, smallest_sample
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.engine import Engine
    from dynx.diffusion.plan import ImageGeneratorPlan
    from dynx.diffusion.profile_data import Fitted
    from dynx.runtime.certify import Certificate
    from dynx.runtime.plan import BackendSpec

    Array = NDArray[np.float64]


def read_step_profile(assembly: LoadedImageGenerator, warn: Callable[[str], None]) -> StepProfile | None:
    """Return the steps that the profile certifies for the requested quality, or None with the reason in the decisions."""
    plan = assembly.plan
    profile = plan.profile
    if profile is None:
        return None
    try:
        fitted = from_profile(profile.fitted, profile.measured, plan.arrays)
        int(profile.fitted["full_steps"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, InvalidInput) as e:
        warn(f"profile {profile.key.id} ignored: its contents can't be used ({type(e).__name__}: {e})")
        plan.decisions.steps = Decision("plain", f"profile {profile.key.id} can't be used")
        return None
    if refusal := other_setting(assembly, profile.fitted):
        warn(refusal)
        plan.decisions.steps = Decision("plain", refusal)
        return None
    found, plan.decisions.steps = _certified(plan, fitted)
    return found


def read_further(assembly: LoadedImageGenerator, warn: Callable[[str], None]) -> dict[BackendSpec, CertifiedSteps]:
    """Return the steps that the profile certifies on further backends in reduced precision, those worth it."""
    plan = assembly.plan
    profile = plan.profile
    if profile is None or assembly.step_profile is None:
        return {}
    found = {}
    try:
        for spec in further_specs(profile.fitted):
            steps, decision = _certified(plan, from_profile(profile.fitted, profile.measured, plan.arrays, spec))
            if steps is not None:
                found[spec] = CertifiedSteps(steps, decision)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, InvalidInput) as e:
        warn(f"further precisions of profile {profile.key.id} ignored: they can't be used ({type(e).__name__}: {e})")
        return {}
    return found


def _certified(plan: ImageGeneratorPlan, fitted: Fitted) -> tuple[StepProfile | None, Decision[str]]:
    """Certify for the quality that a plan asks for; return None with the reason where no fewer steps are worth it."""
    from dynx.diffusion.plan import ERROR_PROBABILITY, PICTURE_SHARE

    profile: Any = plan.profile
    quality, full_steps = plan.request.quality, int(profile.fitted["full_steps"])
    certificate = fitted.certify(quality, PICTURE_SHARE, ERROR_PROBABILITY)
    if not fitted.pays(certificate):
        return None, Decision("plain", why_plain(fitted, certificate, quality))
    reached = fitted.reached(certificate, quality)
    p5 = float(np.quantile(reached, 0.05, method="lower"))
    guarantee = Guarantee(
        quality,
        PICTURE_SHARE,
        ERROR_PROBABILITY,
        certificate.n,
        certificate.disagreements,
        p5,
        float(reached.min()),
        plan.bundled or profile.evidence.get("basis") == "model",
    )
    steps = np.repeat(fitted.schedules.steps, certificate.exits)
    decision = Decision(
        f"{steps.min()} to {steps.max()}, {steps.mean():.1f} on average",
        f"{fitted.speedup(certificate):.2f}x of {full_steps} steps expected; {guarantee}: "
        f"{certificate.disagreements} of {certificate.n} were below, p5 {p5:.3f}, worst {reached.min():.3f}",
    )
    return StepProfile(fitted, certificate, guarantee, full_steps, plan.arrays.get("colours")), decision


def why_plain(fitted: Fitted, certificate: Certificate, quality: float) -> str:
    """Explain why a certificate lets no picture take fewer steps."""
    if certificate.active:
        return f"fewer steps would be {fitted.speedup(certificate):.2f}x as fast, which isn't worth it"
    eps, n = round(1 - certificate.eps, 12), certificate.n
    most = most_failures(n, certificate.eps, certificate.delta)
    if most is None:
        least = smallest_sample(certificate.eps, certificate.delta)
        return f"{n} pictures can't show SSIM {quality:g} in {percent(eps)} of them; {least} could, all of them good"
    return (
        f"no fewer steps were seen to reach SSIM {quality:g} in {percent(eps)} of pictures "
        f"(of {n}, {most or 'none'} may fall below)"
    )


def other_setting(assembly: LoadedImageGenerator, fitted: Mapping[str, Any]) -> str | None:
    """Return how the settings of the profile differ from the requested ones, or None."""
    request, adapter = assembly.plan.request, assembly.engine.adapter
    size = None if request.size is None else list(request.size)
    if size == fitted.get("pixels"):  # asked for what the pipeline draws by itself
        size = fitted.get("size")
    guidance = adapter.default_guidance if request.guidance is None else request.guidance
    for what, measured, asked in (
        ("guidance", fitted.get("guidance"), guidance),
        ("negative prompt", fitted.get("negative"), request.negative),
        ("size", fitted.get("size"), size),
        ("scheduler", fitted.get("scheduler"), adapter.scheduler),
        ("strength", fitted.get("strength"), strength_of(assembly.engine)),
        ("control scale", fitted.get("control_scale"), control_scale_of(assembly.engine)),
    ):
        if measured != asked:
            return (
                f"the profile was measured with {_setting(what, measured)}, not {_setting(what, asked)}; drawing plain"
            )
    return None


def strength_of(engine: Engine) -> float | None:
    """Return how much of the noise pictures start with; None where they start from noise alone."""
    if engine.start is None:
        return None
    if engine.start.strength is not None:
        return engine.start.strength
    return float(inspect.signature(engine.pipe.__call__).parameters["strength"].default)


def control_scale_of(engine: Engine) -> float | None:
    """Return how much the control picture counts; None without one."""
    if engine.control is None:
        return None
    if engine.control.scale is not None:
        return engine.control.scale
    return float(inspect.signature(engine.pipe.__call__).parameters[SCALE].default)


def _setting(what: str, value: Any) -> str:
    if what == "control scale":
        return "no control picture" if value is None else f"a control scale of {value:g}"
    if what == "strength":
        return "pictures drawn from noise alone" if value is None else f"strength {value:g}"
    if what == "size":
        return "the pipeline's own size" if value is None else f"size {value[0]}x{value[1]}"
    if what == "guidance":
        return f"guidance {value:g}" if isinstance(value, int | float) else f"guidance {value}"
    if what == "negative prompt":
        return "no negative prompt" if value is None else f"the negative prompt {value!r}"
    return f"{what} {value}"
