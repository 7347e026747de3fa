"""Kernels for pipelines that draw: what is decided and why, what is raced, and that one promise covers them."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
from support import pipelines

from dynx.cli.remedy import calibrate_command
from dynx.diffusion import backend_search, backends, make_plan
from dynx.diffusion import calibrate as learning
from dynx.diffusion.backends import AS_LOADED, Candidate
from dynx.diffusion.engine import Engine
from dynx.diffusion.plan import ImageGeneratorRequest
from dynx.diffusion.profile_data import StepSchedules
from dynx.diffusion.schedule import Schedule
from dynx.diffusion.setup import measured_with
from dynx.errors import DeviceError, NoProfileError, UnsupportedModelError, UsageError
from dynx.runtime.backends.network import NetworkBackend
from dynx.runtime.decision import Decision
from dynx.runtime.device import Device
from dynx.runtime.profile import Profile
from dynx.runtime.profile_store import ProfileStore, profiles_folder
from dynx.runtime.weights import weights_hash

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.usefixtures("alone"),
    pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning"),
]
MACHINE = Device(cpu="test", usable_cores=1, isa=("avx512_bf16",))
OLD = replace(MACHINE, isa=("avx2",))
LOW = ("torch-eager", "bfloat16")


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> dict[str, Decision[bool]]:
    """Which backends can be had: all that pictures are drawn with, until a test changes it."""
    found = {name: Decision(True, "it is here") for name in ("torch-eager", "torch-compiled", "openvino", "ipex")}
    monkeypatch.setattr("dynx.runtime.backends.registry.usable", lambda *_: found)
    monkeypatch.setattr(backends, "usable", lambda *_: found)
    return found


def lowered(
    pipe: Any, request: Any, schedule: Schedule | None = None, *, guidance_interval: bool = False
) -> NetworkBackend:
    """Its network in bfloat16 for such requests."""
    made = NetworkBackend(pipe.unet, "torch-eager", dtype="bfloat16", threads=1, cache=None)
    backends.prepare(made, Engine(pipe), request, schedule, guidance_interval=guidance_interval)
    return made


@pytest.mark.usefixtures("there")
def test_decisions_and_their_reasons() -> None:
    """Asked for is asked for; else what was measured, with its precision; else PyTorch in full."""

    def decided(backend: str = "auto", dtype: str = "auto", measured: Any = None, device: str = "cpu") -> Any:
        return tuple(d.value for d in backends.decide(backend, dtype, device, MACHINE, measured))

    assert decided() == AS_LOADED
    assert decided("openvino") == ("openvino", "float32")
    assert decided("compiled", "bfloat16") == ("torch-compiled", "bfloat16")
    assert decided(measured=("openvino", "bfloat16")) == ("openvino", "bfloat16")
    assert decided("torch", measured=("openvino", "bfloat16")) == AS_LOADED
    assert decided(dtype="float32", measured=("openvino", "bfloat16")) == ("openvino", "float32")
    reasons = [d.reason for d in backends.decide("auto", "auto", "cpu", MACHINE, ("openvino", "bfloat16"))]
    assert reasons == ["measured to be the fastest here", "measured: the promise holds with it, and it is faster"]


def test_what_cannot_be_had_is_one_sentence(there: dict[str, Decision[bool]]) -> None:
    """A missing backend, another device, IPEX and unknown names each say why."""
    there["openvino"] = Decision(False, "OpenVINO isn't installed")
    with pytest.raises(DeviceError, match=r"^`backend` openvino: OpenVINO isn't installed$"):
        backends.decide("openvino", "auto", "cpu", MACHINE, None)
    with pytest.raises(DeviceError, match="pipelines that draw aren't run on it"):
        backends.decide("ipex", "auto", "cpu", MACHINE, None)
    with pytest.raises(DeviceError, match="prepared for the processor, and this runs on cuda"):
        backends.decide("compiled", "auto", "cuda", MACHINE, None)
    with pytest.raises(UsageError, match="one of auto"):
        backends.decide("abacus", "auto", "cpu", MACHINE, None)


def test_what_is_raced(there: dict[str, Decision[bool]]) -> None:
    """All that isn't ruled out; the slow compiler only where there's no OpenVINO; low precision where the processor has it."""
    assert backends.candidate_specs("auto", "auto", "cpu", MACHINE) == [
        AS_LOADED,
        LOW,
        ("openvino", "float32"),
        ("openvino", "bfloat16"),
    ]
    assert backends.candidate_specs("openvino", "bfloat16", "cpu", MACHINE) == [("openvino", "bfloat16")]
    assert backends.candidate_specs("auto", "float32", "cuda", MACHINE) == []
    there["openvino"] = Decision(False, "not installed")
    assert backends.candidate_specs("auto", "auto", "cpu", OLD) == [AS_LOADED, ("torch-compiled", "float32")]


def test_the_network_alone_is_lowered() -> None:
    """With a schedule too, and for half the rows; the reference runs as it was loaded, bit for bit; other shapes are told of."""
    pipe, one = pipelines.stable_diffusion(), pipelines.request("stable-diffusion", (1,))
    before = pipelines.own_state(pipe)
    engine = Engine(pipe)
    own = pipelines.pixels(engine.draw(one))
    schedule = Schedule("dpm++2m", engine.initial_call(one).grid.thinned(8), guided_steps=4)
    want = pipelines.pixels(engine.draw(one, schedule))
    engine.kernels = lowered(pipe, one, schedule, guidance_interval=True)
    pictures = engine.draw(one, schedule)

    assert 0 < np.abs(pipelines.pixels(pictures) - want).max() < 0.3
    assert (pictures[0].stats.notes, pictures[0].stats.unguided, engine.kernels.passed) == ((), 4, 0)
    assert np.array_equal(pipelines.pixels(engine.reference.draw(one)), own)
    assert pipelines.own_state(pipe) == before
    two = engine.draw(pipelines.request("stable-diffusion", (1, 2)))
    assert two[0].stats.notes == ("12 network calls of another shape than was prepared for ran on PyTorch",)


def test_features_are_not_cached_on_other_kernels() -> None:
    """The cache lives inside the network as its author wrote it; a schedule that asks for it goes without, and says so."""
    pipe, one = pipelines.stable_diffusion(), pipelines.request("stable-diffusion", (1,))
    engine = Engine(pipe)
    engine.kernels = lowered(pipe, one)
    assert not engine.cacheable
    schedule = Schedule("dpm++2m", engine.initial_call(one).grid.thinned(8), cache=0.1)

    assert "not cached: it runs on other kernels" in engine.draw(one, schedule)[0].stats.notes


def plan_step_schedules(engine: Engine, **others: Any) -> StepSchedules:
    fine = engine.initial_call(pipelines.request("stable-diffusion", (1,), steps=12)).grid
    return StepSchedules(fine, {4: (0, 1, 5, 9, 12), 6: (0, 1, 3, 6, 9, 11, 12)}, "dpm++2m", **others)


def entry(steps: int, tail: float, cache: float = 0.0, rows: float = 0.0) -> dict[str, Any]:
    return {
        "solver": "dpm++2m",
        "guided": None,
        "skip": 0.0,
        "cache": cache,
        "steps": steps,
        "rows": rows,
        "tail": tail,
    }


@pytest.mark.parametrize(
    ("candidates", "found", "chosen"),
    [
        ({AS_LOADED: (0.10, 0.0), ("openvino", "float32"): (0.05, 0.4)}, None, ("openvino", "float32")),
        (
            {AS_LOADED: (0.10, 0.0), ("openvino", "float32"): (0.05, 9.0)},
            None,
            ("openvino", "float32"),
        ),  # runs weigh starts
        ({AS_LOADED: (0.10, 0.0), LOW: (0.05, 0.0)}, 4, LOW),
        ({AS_LOADED: (0.10, 0.0), LOW: (0.08, 0.0)}, 6, AS_LOADED),  # it needs more steps
        ({AS_LOADED: (0.10, 0.0), LOW: (0.095, 0.0)}, 4, AS_LOADED),  # it gains too little
        ({AS_LOADED: (0.10, 0.0), LOW: (0.05, 0.0)}, None, AS_LOADED),  # it doesn't reach the quality
        ({LOW: (0.20, 0.0)}, None, LOW),
    ],
)
@pytest.mark.usefixtures("there")
def test_who_wins(
    candidates: dict[Any, tuple[float, float]], found: int | None, chosen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least time of a picture: its calls, and in low precision the steps that the quality then takes."""
    assembly = pipelines.assembly_of(pipelines.pipeline("stable-diffusion"))
    made = [Candidate(way, None, call, start) for way, (call, start) in candidates.items()]
    monkeypatch.setattr(backends, "race", lambda *_: (made, {"compiled PyTorch float32": "no compiler"}))
    monkeypatch.setattr(backend_search, "_steps_in_precision", lambda *_: found)
    schedules = plan_step_schedules(assembly.engine)
    settled, _ = backend_search.choose_backend(
        assembly, schedules, [entry(4, 0.97), entry(6, 0.98)], [], [], lambda: 0.0, lambda _: None
    )

    assert assembly.plan.spec == chosen
    assert settled == schedules
    assert "compiled PyTorch float32 can't run it: no compiler" in assembly.decisions.backend.reason


@pytest.mark.usefixtures("there")
def test_the_cache_weighs_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch saves by caching counts for it; whoever wins in spite of that draws without."""
    assembly = pipelines.assembly_of(pipelines.pipeline("stable-diffusion"))
    schedules = plan_step_schedules(assembly.engine, cache=0.1)
    tried = [entry(4, 0.99, rows=8), entry(4, 0.98, cache=0.1, rows=4)]
    for call, way in ((0.06, AS_LOADED), (0.04, ("openvino", "float32"))):
        made = [Candidate(AS_LOADED, None, 0.1, 0.0), Candidate(("openvino", "float32"), None, call, 0.0)]
        monkeypatch.setattr(backends, "race", lambda *_, made=made: (made, {}))
        settled, _ = backend_search.choose_backend(
            assembly, schedules, list(tried), [], [], lambda: 0.0, lambda _: None
        )

        assert assembly.plan.spec == way
        assert settled.cache == (0.1 if way == AS_LOADED else 0.0)
    assert assembly.decisions.cache.value == "off"


@pytest.mark.usefixtures("there")
def test_a_race_times_calls_and_starts() -> None:
    """Each in turns; who can't run the network is told of by name and doesn't end the race."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.25
        return now[0]

    assembly = pipelines.assembly_of(pipelines.exact())
    request = pipelines.request("ddim", (1,))
    candidates, refused = backends.race(
        assembly.plan, assembly.engine, request, [AS_LOADED, ("torch-eager", "float16")], clock
    )
    assert [(r.spec, r.call_seconds) for r in candidates] == [(AS_LOADED, 0.25), (("torch-eager", "float16"), 0.25)]
    assert refused == {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NetworkBackend, "_function", refusing("it is shy"))
        candidates, refused = backends.race(assembly.plan, assembly.engine, request, [AS_LOADED, LOW], clock)
    assert [r.spec for r in candidates] == [AS_LOADED]
    assert refused == {"PyTorch bfloat16": "Exact isn't computed by PyTorch: it is shy"}


def refusing(why: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise UnsupportedModelError(why)

    return refuse


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline that draws from prompts."""
    pipelines.stable_diffusion().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.usefixtures("there")
def test_a_profile_of_other_kernels_is_passed_over(folder: Path) -> None:
    """With a warning and the command that measures what was asked for; an error where a profile is required; else it decides."""
    wish = ImageGeneratorRequest(model=str(folder))
    key = make_plan(wish).key
    fitted = {"backend": "openvino", "precision": "bfloat16"}
    versions = {"torch": metadata.version("torch")}
    blank: Any = {name: {} for name in ("device", "measured", "evidence")}
    stored = Profile(
        key, "tiny", "2026-01-01T00:00:00+00:00", versions, fitted=fitted, decision={"summary": ""}, **blank
    )
    stored = replace(stored, weights=weights_hash(folder))
    assert measured_with(stored) == ("openvino", "bfloat16")
    ProfileStore(profiles_folder(), lambda _: None).save(stored, {"x": np.zeros(1)})
    assert make_plan(wish).spec == ("openvino", "bfloat16")
    heard: list[str] = []
    plan = make_plan(replace(wish, backend="torch"), warn=heard.append)
    assert (plan.spec, plan.profile) == (AS_LOADED, None)
    assert heard == [f"profile {key.id} isn't used: it was measured with OpenVINO in bfloat16, not PyTorch in float32"]
    with pytest.raises(NoProfileError):
        make_plan(replace(wish, backend="torch", require_profile=True))
    assert "--backend torch" in calibrate_command(replace(wish, backend="torch"))


def test_one_promise_for_steps_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures in bfloat16 are compared with the full run in float32; the profile says what they were drawn on."""
    pipelines.hurry(monkeypatch)
    monkeypatch.setattr(backends, "candidate_specs", lambda *_: [LOW])
    drawn: list[tuple[bool, bool]] = []
    own = Engine.draw

    def watched(self: Engine, request: Any, schedule: Any = None, **others: Any) -> Any:
        drawn.append((schedule is None, self.kernels is None))
        return own(self, request, schedule, **others)

    monkeypatch.setattr(Engine, "draw", watched)
    scheduler = diffusers.DDIMScheduler(**pipelines.SCALED, clip_sample=False, timestep_spacing="trailing")
    pipe = diffusers.DDIMPipeline(unet=pipelines.Exact(sample_size=16), scheduler=scheduler)
    assembly = pipelines.assembly_of(pipe, quality=0.1)
    ticks = iter(range(10**6))
    found = learning.calibrate(assembly, [], budget=1e6, clock=lambda: next(ticks) / 100)

    assert (found.profile.fitted["backend"], found.profile.fitted["precision"]) == LOW
    runs = found.profile.measured["runs"]
    assert [(run["backend"], run["precision"]) for run in runs] == [
        LOW
    ]  # what was certified in bfloat16 is about that alone
    assert "1" in runs[0]["batches"]
    assert {on_loaded for plain, on_loaded in drawn if plain} == {True}
    assert (False, False) in drawn
    assert found.likeness[12].worst < 1
    assert "on PyTorch, bfloat16" in found.summary or found.summary.startswith("plain")


@pytest.mark.parametrize("error", [RuntimeError("same dtype"), KeyError("weight"), AssertionError()])
@pytest.mark.parametrize("calls", [0, 3, backends.TIMED_CALLS + 3])
def test_kernels_that_raise_are_left_out(monkeypatch: pytest.MonkeyPatch, error: Exception, calls: int) -> None:
    """At once, while they are timed or on a trial picture: calibration goes on with the pipeline as it was loaded."""
    pipelines.hurry(monkeypatch)
    monkeypatch.setattr(backends, "candidate_specs", lambda *_: [LOW, AS_LOADED])
    own, made = NetworkBackend.__call__, [0]

    def failing(self: NetworkBackend, *args: Any) -> Any:
        made[0] += 1
        if made[0] > calls:
            raise error
        return own(self, *args)

    monkeypatch.setattr(NetworkBackend, "__call__", failing)
    scheduler = diffusers.DDIMScheduler(**pipelines.SCALED, clip_sample=False, timestep_spacing="trailing")
    pipe = diffusers.DDIMPipeline(unet=pipelines.Exact(sample_size=16), scheduler=scheduler)
    assembly = pipelines.assembly_of(pipe, quality=0.1)
    ticks = iter(range(10**6))
    found = learning.calibrate(assembly, [], budget=1e6, clock=lambda: next(ticks) / 100)

    assert (found.profile.fitted["backend"], found.profile.fitted["precision"]) == AS_LOADED
    said = assembly.plan.decisions.backend.reason
    assert "PyTorch bfloat16 can't run it: " in said
    assert f"fails on PyTorch ({type(error).__name__}: {str(error) or 'no message'})" in said


def test_memory_that_ran_out_is_no_fault_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends a race as it ends a run, while they are prepared and while they are timed; so does Ctrl-C."""
    assembly = pipelines.assembly_of(pipelines.stable_diffusion())
    request = backend_search.sample_of(assembly.plan.request, assembly.engine)
    for method in ("_function", "__call__"):
        for error in (MemoryError(), RuntimeError("not enough memory"), KeyboardInterrupt()):

            def failing(*_: Any, error: BaseException = error) -> Any:
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(NetworkBackend, method, failing)
                with pytest.raises(type(error)) as caught:
                    backends.race(assembly.plan, assembly.engine, request, [AS_LOADED, LOW], lambda: 0.0)
                assert caught.value is error
