"""Calibrate with evidence that exists: time a profile's steps on this device, on every backend on which its promise holds.

A profile consists of evidence, which depends on pipeline, precision and prompts (grids, predictor, SSIM of every picture at every
number of steps), and of times, which depend on the machine. Evidence takes most of a calibration. A profile that came with the
model, or that another machine measured, brings it along; here the times are measured, and evidence is drawn only for a backend
in reduced precision that is faster here and has none yet. What is taken over is spot-checked on pictures of its own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.diffusion import backends
from dynx.diffusion.apply_profile import other_setting
from dynx.diffusion.assembly import sample_of
from dynx.diffusion.backend_search import set_backend
from dynx.diffusion.calibrate import TIMED_PICTURES, findings, seconds_of
from dynx.diffusion.evidence import PICTURES_PER_BATCH, TRIAL_PICTURES, fit, requests_for, sweep
from dynx.diffusion.plan import BUNDLED, ERROR_PROBABILITY, PICTURE_SHARE
from dynx.diffusion.profile_data import from_profile, further_specs
from dynx.diffusion.run_costs import Starts, measure_loaded, measure_run
from dynx.diffusion.schedule_search import one_by_one
from dynx.diffusion.step_sweep import sweep_steps, time_steps
from dynx.errors import InvalidInput, UnsupportedModelError
from dynx.runtime.backends.registry import TITLES, attempt
from dynx.runtime.binomial import binomial_tail
from dynx.runtime.certify import leaves_at
from dynx.runtime.decision import Decision
from dynx.runtime.hashing import text_hash
from dynx.runtime.identity import weights_key
from dynx.runtime.profile_selection import measured_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.backends import Candidate
    from dynx.diffusion.calibrate import Findings
    from dynx.diffusion.profile_data import Fitted
    from dynx.diffusion.runs import RunCost
    from dynx.diffusion.step_sweep import Partial
    from dynx.diffusion.types import Request
    from dynx.runtime.plan import BackendSpec
    from dynx.runtime.profile import Profile

MIN_SAVING = 0.05
"""Least share of a network call's time that a backend has to save to be looked at."""


class Known:
    """Hold a profile whose evidence is taken over; `Known.of` finds it."""

    def __init__(self, profile: Profile, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Read it. Raises KeyError, TypeError, ValueError or InvalidInput for what can't be used."""
        self.profile, self.arrays = profile, arrays
        self.fitted = from_profile(profile.fitted, profile.measured, arrays)
        self.further: dict[BackendSpec, Fitted] = {
            spec: from_profile(profile.fitted, profile.measured, arrays, spec) for spec in further_specs(profile.fitted)
        }
        self.full_steps = int(profile.fitted["full_steps"])
        self.pixels = list(profile.fitted["pixels"])

    @property
    def pictures(self) -> int:
        """The number of pictures of its evidence."""
        return len(self.fitted.choosing) + len(self.fitted.certifying)

    @classmethod
    def of(
        cls, assembly: LoadedImageGenerator, prompts: Sequence[str], warn: Callable[[str], None] = lambda _: None
    ) -> Known | None:
        """Return the evidence that fits a calibration, or None: of the same weights, settings, quality and prompts."""
        plan, request = assembly.plan, assembly.plan.request
        if (
            assembly.starts
            or assembly.controls
            or plan.start is not None
            or plan.control is not None
            or not assembly.engine.adapter.adaptive.value
        ):
            return None
        file = plan.source.folder / BUNDLED
        for profile, arrays in measured_elsewhere(plan.key, file, lambda: weights_key(plan.source), warn):
            if (
                profile.evidence.get("data") != text_hash(prompts)
                or profile.fitted.get("quality") != request.quality
                or profile.fitted.get("precision", profile.key.dtype) != "float32"
                or other_setting(assembly, profile.fitted) is not None
            ):
                continue
            try:
                return cls(profile, arrays)
            except (KeyError, TypeError, ValueError, AttributeError, InvalidInput) as e:
                warn(f"profile {profile.key.id} can't be taken over ({type(e).__name__}: {e})")
        return None


def remeasure(
    assembly: LoadedImageGenerator,
    known: Known,
    prompts: Sequence[str],
    *,
    budget: float,
    clock: Callable[[], float],
    progress: Callable[[float, str], None] = lambda _share, _what: None,
    partial: Partial | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Findings:
    """Measure times for a profile's evidence, and draw what evidence is missing within about `budget` seconds.

    Raises UnsupportedModelError if a backend that was asked for can't run the network.
    """
    engine, plan, request = assembly.engine, assembly.plan, assembly.plan.request
    began = clock()
    requests = requests_for(assembly, prompts)
    trials = requests[: TRIAL_PICTURES // PICTURES_PER_BATCH]
    fitted, schedules = known.fitted, known.fitted.schedules
    progress(0.0, "timing the pipeline as it was loaded")
    timed = one_by_one(trials[0])[:TIMED_PICTURES]
    fitted = _with_times(fitted, *time_steps(engine, timed, schedules, clock))
    choices = backends.candidate_specs(request.backend, request.dtype, plan.device, plan.machine)
    candidates: list[Candidate] = []
    notes: list[str] = []
    if engine.adapter.slot is not None and choices not in ([], [backends.AS_LOADED]):
        named = [backends.AS_LOADED, *choices] if backends.AS_LOADED not in choices else choices
        candidates, refused = backends.race(
            plan, engine, sample_of(request, engine), named, clock, lambda what: progress(0.1, what)
        )
        notes += [f"{who} can't run it: {why}" for who, why in refused.items()]
    runs: list[RunCost] = []
    starts = Starts(plan)
    further: dict[BackendSpec, Fitted] = {}
    if candidates:
        progress(0.2, "timing runs of the pipeline as it was loaded")
        runs.append(measure_loaded(assembly, schedules, clock))
    for candidate in _worth_it(candidates):
        spec = candidate.spec
        progress(0.3, f"preparing {spec}")
        try:
            with attempt(spec.backend, plan.source.name):
                set_backend(assembly, candidate.kernels, schedules)
                if spec.dtype != "float32":
                    evidence = known.further.get(spec)
                    if evidence is None:
                        left = budget - (clock() - began)
                        evidence = _draw_evidence(
                            assembly, requests, known.pictures, spec, left, fitted, clock, progress, partial
                        )
                    elif why := _broken(assembly, trials, evidence):
                        notes.append(f"{spec} isn't used: {why}")
                        continue
                    if evidence is None:
                        notes.append(f"{spec} is faster, and the budget is too small to certify it")
                        continue
                    set_backend(assembly, candidate.kernels, schedules)
                    further[spec] = _with_times(evidence, *time_steps(engine, timed, schedules, clock))
                progress(0.9, f"timing runs on {spec}")
                runs.append(measure_run(assembly, candidate, schedules, clock, starts))
        except UnsupportedModelError as e:
            notes.append(f"{spec} can't run it: {e}")
        finally:
            engine.kernels, engine.parts.kernels = None, {}
    why_backend = "; ".join([*(f"{each}" for each in candidates), *notes])
    plan.decisions.backend = Decision(backends.AS_LOADED.backend, f"a network call: {why_backend}")
    for note in notes:
        say(note)
    state = seconds_of(fitted) | {
        "full_steps": known.full_steps,
        "pixels": known.pixels,
        "tried": known.profile.measured.get("tried", []),
        "why": {"backend": plan.decisions.backend.reason},
        "runs": [run.to_json() for run in runs],
        "spec": list(backends.AS_LOADED),
        "basis": "model",
    }
    found = findings(assembly, prompts, fitted, state, known.arrays.get("colours"), further)
    progress(1.0, "done")
    return found


def _worth_it(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the fastest backend of each precision, those that save time beside the loaded pipeline and in full precision."""
    loaded = next((each for each in candidates if each.spec == backends.AS_LOADED), None)
    if loaded is None:
        return []
    found, least = [], loaded.call_seconds
    for dtype in dict.fromkeys(each.spec.dtype for each in sorted(candidates, key=lambda c: c.spec.dtype != "float32")):
        best = min((each for each in candidates if each.spec.dtype == dtype), key=lambda c: c.call_seconds)
        if best is not loaded and best.call_seconds <= (1 - MIN_SAVING) * least:
            found.append(best)
            least = best.call_seconds
    return found


def _with_times(fitted: Fitted, costs: Any, plain: float) -> Fitted:
    return replace(fitted, costs=costs, plain=plain)


def _broken(assembly: LoadedImageGenerator, trials: Sequence[Request], evidence: Fitted) -> str | None:
    """Draw a few pictures on the engine's backend, and return why evidence from elsewhere doesn't hold here, or None.

    They refute a promise, and certify nothing.
    """
    quality = assembly.plan.request.quality
    certificate = evidence.certify(quality, PICTURE_SHARE, ERROR_PROBABILITY)
    swept = [sweep_steps(assembly.engine, request, evidence.schedules) for request in trials]
    shown = np.concatenate([each.likeness for each in swept])
    looks, texts = (np.concatenate([getattr(each, name) for each in swept]) for name in ("looks", "texts"))
    chances = evidence.predictor.chances(evidence.predictor(looks, texts), quality)
    at = leaves_at(np.asarray(certificate.thresholds), chances)
    below = int((shown[np.arange(len(shown)), at] < quality).sum())
    by_chance = 1 - binomial_tail(len(shown), below - 1, round(1 - PICTURE_SHARE, 12))
    if by_chance >= ERROR_PROBABILITY:
        return None
    return f"{below} of {len(shown)} pictures fall below SSIM {quality:g} here"


def _draw_evidence(
    assembly: LoadedImageGenerator,
    requests: Sequence[Request],
    count: int,
    spec: BackendSpec,
    left: float,
    fitted: Fitted,
    clock: Callable[[], float],
    progress: Callable[[float, str], None],
    partial: Partial | None,
) -> Fitted | None:
    """Draw as many pictures as the profile's evidence has on a further backend; None where the time doesn't suffice.

    Raises UnsupportedModelError for a backend that can't run several pictures in a call.
    """
    schedules = fitted.schedules
    kept = partial.load() if partial else None
    made = kept[1] if kept is not None and kept[0].get("further") == list(spec) else None
    done = 0 if made is None else len(made)
    if (count - done) * (fitted.plain + sum(fitted.costs.reach) + fitted.costs.full) / 2 > left:
        return None
    engine = assembly.engine
    kernels = engine.kernels
    together = not schedules.alone
    if together:
        set_backend(assembly, kernels, schedules, PICTURES_PER_BATCH)
    state = {"further": list(spec), "ladder": schedules.to_json()}
    began = clock()

    def drawn(now: Any) -> None:
        if partial is not None:
            partial.save(state, now)
        each = (clock() - began) / max(1, len(now) - done)
        minutes = math.ceil(each * (count - len(now)) / 60)
        what = f"{TITLES[spec.backend]} {spec.dtype}: {len(now)} of {count} pictures; {minutes} min left"
        progress(0.3 + 0.6 * len(now) / count, what)

    later = requests[TRIAL_PICTURES // PICTURES_PER_BATCH :]
    made = sweep(assembly, later, schedules, count, made, together=together, drawn=drawn)
    return fit(made, schedules, fitted.costs, fitted.plain)
