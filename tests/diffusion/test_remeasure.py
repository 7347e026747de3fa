"""Evidence is taken over and times are measured: a promise stays, and further precisions have evidence of their own."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.pipelines import assembly_of, smooth

from dynx.diffusion import backends, remeasure, schedule_search, setup
from dynx.diffusion import calibrate as learning
from dynx.diffusion.apply_profile import read_further, read_step_profile
from dynx.diffusion.assembly import LoadedImageGenerator
from dynx.diffusion.backends import Candidate
from dynx.diffusion.profile_data import CertifiedSteps, from_profile, further_specs
from dynx.diffusion.remeasure import Known
from dynx.diffusion.runs import RunCost, Seconds
from dynx.runtime.plan import BackendSpec
from dynx.runtime.profile import Profile

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")

LOW = BackendSpec("openvino", "bfloat16")
QUALITY = 0.9
PICTURES = 120


class Rounding:
    """Kernels that compute as the network does and round to bfloat16, with an error beside."""

    own_threads = False
    passed = 0
    kept: tuple[str, ...] = ()

    def __init__(self, error: float = 0.0) -> None:
        self.error = error

    def __call__(self, forward: Any, args: Any, kwargs: Any) -> Any:
        """Compute a call."""
        output = forward(*args, **kwargs)
        first = output[0] if isinstance(output, tuple) else output.sample
        made = first.to(torch.bfloat16).to(first.dtype)
        made = made + self.error * torch.sin(31 * torch.arange(made.numel(), dtype=made.dtype)).view_as(made)
        return (made,) if isinstance(output, tuple) else type(output)(sample=made)

    def prepare(self, *_: Any) -> None:
        """Nothing to do."""

    def __str__(self) -> str:
        return "OpenVINO in bfloat16"


@pytest.fixture(scope="module")
def learned() -> learning.Findings:
    """The perfect denoiser, calibrated in full precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "MAX_PICTURES", PICTURES)
        patch.setattr(schedule_search, "TRIED_SKIP_THRESHOLDS", ())
        patch.setattr(backends, "candidate_specs", lambda *_: [])
        return learning.calibrate(assembly_of(smooth(), quality=QUALITY), [], budget=1e6, clock=time.perf_counter)


def known_of(found: learning.Findings) -> Known:
    profile = Profile.from_json(found.profile.to_json().encode())
    return Known(profile, found.arrays)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Rounding:
    """A backend in bfloat16 that is faster by the clock."""
    kernels = Rounding()
    candidates = [Candidate(backends.AS_LOADED, None, 0.02, 0.0), Candidate(LOW, kernels, 0.005, 0.5)]
    costs = {
        spec: Seconds(0.0, call, start) for spec, call, start in ((backends.AS_LOADED, 0.02, 0.0), (LOW, 0.005, 0.5))
    }
    monkeypatch.setattr(backends, "candidate_specs", lambda *_: [backends.AS_LOADED, LOW])
    monkeypatch.setattr(backends, "race", lambda *_: (candidates, {}))
    monkeypatch.setattr(
        remeasure, "measure_loaded", lambda *_: RunCost(backends.AS_LOADED, {1: costs[backends.AS_LOADED]})
    )
    monkeypatch.setattr(remeasure, "measure_run", lambda _, one, *__: RunCost(one.spec, {1: costs[one.spec]}))
    return kernels


def measured(known: Known, budget: float = 1e6) -> tuple[LoadedImageGenerator, learning.Findings, list[str]]:
    assembly, said = assembly_of(smooth(), quality=QUALITY), list[str]()
    found = remeasure.remeasure(assembly, known, [], budget=budget, clock=time.perf_counter, say=said.append)
    assert (assembly.engine.kernels, assembly.engine.parts.kernels) == (None, {})
    return assembly, found, said


def used(assembly: LoadedImageGenerator, found: learning.Findings, pictures: int) -> LoadedImageGenerator:
    """The pipeline as a run of so many pictures opens it, up to its kernels."""
    profile = Profile.from_json(found.profile.to_json().encode())
    plan = replace(assembly.plan, profile=profile, arrays=found.arrays, decisions=replace(assembly.decisions))
    made = LoadedImageGenerator(plan, assembly.engine, None)
    made.step_profile = read_step_profile(made, pytest.fail)
    assert made.step_profile is not None
    made.in_full = CertifiedSteps(made.step_profile, plan.decisions.steps)
    made.further = read_further(made, pytest.fail)
    setup.choose_run(made, pictures, together=True)
    return made


def test_times_are_new_and_evidence_stays(learned: learning.Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn but to be timed; the promise says that it was measured elsewhere."""
    monkeypatch.setattr(backends, "candidate_specs", lambda *_: [])
    drawn: list[Any] = []
    real = remeasure.time_steps
    monkeypatch.setattr(remeasure, "time_steps", lambda *a: drawn.append(a) or real(*a))  # type: ignore[func-returns-value]
    assembly, found, said = measured(known_of(learned))

    assert len(drawn) == 1
    assert said == []
    assert {name: values.tobytes() for name, values in found.arrays.items()} == {
        name: np.asarray(values).tobytes() for name, values in learned.arrays.items()
    }
    assert found.profile.evidence["basis"] == "model"
    assert found.profile.measured["seconds"] != learned.profile.measured["seconds"]
    assert found.profile.fitted["ladder"] == learned.profile.fitted["ladder"]
    made = used(assembly, found, 1)
    assert made.step_profile is not None
    assert made.step_profile.guarantee.json()["basis"] == "model"


def test_a_faster_precision_gets_evidence_of_its_own(learned: learning.Findings, fast: Rounding) -> None:
    """On as many pictures as the profile has; long runs then draw in it, short ones in full."""
    assembly, found, _ = measured(known_of(learned))
    profile = found.profile

    assert further_specs(profile.fitted) == [LOW]
    low = from_profile(profile.fitted, profile.measured, found.arrays, LOW)
    full = from_profile(profile.fitted, profile.measured, found.arrays)
    assert len(low.certifying) == len(full.certifying)
    assert not np.array_equal(low.certifying.likeness, full.certifying.likeness)
    assert np.abs(low.certifying.likeness - full.certifying.likeness).max() < 0.05
    short, long = (used(assembly, found, pictures) for pictures in (1, 1000))
    assert (short.plan.spec, long.plan.spec) == (backends.AS_LOADED, LOW)
    assert short.step_profile is short.in_full.profile  # type: ignore[union-attr]
    assert long.step_profile is long.further[LOW].profile
    assert long.plan.decisions.dtype.reason.startswith("the promise is certified in it too")
    again = used(assembly, found, 1000)
    setup._adopt(again, choice_of(again, backends.AS_LOADED), "by hand", (1,))
    assert (again.plan.spec, again.step_profile) == (backends.AS_LOADED, again.in_full.profile)  # type: ignore[union-attr]


def choice_of(made: LoadedImageGenerator, spec: BackendSpec) -> Any:
    """What a run on one backend is."""
    costs = setup._costs(made.plan, {LOW: 5.0}, together=True)
    return next(cost for cost in costs if cost.spec == spec).best(1, 5.0)


def test_what_was_asked_for_is_in_full_precision(learned: learning.Findings, fast: Rounding) -> None:
    """A fixed number of steps, or a precision, has no promise in another."""
    assembly, found, _ = measured(known_of(learned))
    profile = Profile.from_json(found.profile.to_json().encode())
    for asked in ({"steps": 6}, {"dtype": "float32"}):
        request = replace(assembly.plan.request, **asked)
        plan = replace(assembly.plan, profile=profile, request=request, decisions=replace(assembly.decisions))
        assert not setup._may_reduce(plan)
        assert setup._further_calls(plan) == {}
        assert {cost.spec for cost in setup._costs(plan, {}, together=True)} == {backends.AS_LOADED}


def test_evidence_that_does_not_hold_here_is_left(learned: learning.Findings, fast: Rounding) -> None:
    """A few pictures refute it; they are counted in the reason."""
    _, found, _ = measured(known_of(learned))
    known = known_of(found)
    assert list(known.further) == [LOW]
    fast.error = 0.8

    _, again, said = measured(known)

    assert further_specs(again.profile.fitted) == []
    assert len(said) == 1
    assert "OpenVINO in bfloat16 isn't used: " in said[0]
    assert "of 16 pictures fall below SSIM 0.9 here" in said[0]
    fast.error = 0.0
    _, third, said = measured(known)
    assert said == []
    assert further_specs(third.profile.fitted) == [LOW]


def test_a_small_budget_draws_no_evidence(learned: learning.Findings, fast: Rounding) -> None:
    """Times alone, and a line that says what is missing."""
    _, found, said = measured(known_of(learned), budget=0.1)

    assert further_specs(found.profile.fitted) == []
    assert said == ["OpenVINO in bfloat16 is faster, and the budget is too small to certify it"]


def test_which_evidence_fits(learned: learning.Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same prompts, quality and settings, in full precision; anything else is measured anew."""
    profile = Profile.from_json(learned.profile.to_json().encode())

    def found(changed: Profile = profile, arrays: Any = None, **wish: Any) -> Known | None:
        given = learned.arrays if arrays is None else arrays
        monkeypatch.setattr(remeasure, "measured_elsewhere", lambda *_: iter([(changed, given)]))
        return Known.of(assembly_of(smooth(), **({"quality": QUALITY} | wish)), [])

    same = found()
    assert same is not None
    assert same.pictures == PICTURES
    assert found(quality=0.95) is None
    assert found(guidance=3.0) is None
    assert found(replace(profile, fitted=profile.fitted | {"precision": "bfloat16"})) is None
    assert found(replace(profile, evidence=profile.evidence | {"data": "others"})) is None
    assert found(arrays={}) is None
