"""Which kernels compute a model: what is asked for, else what was measured, and never silently something else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.models import Clock, Stub, TimedBackend, scripted, tiny

from dynx.errors import DeviceError, UnsupportedModelError, UsageError
from dynx.runtime.backends import registry
from dynx.runtime.backends.registry import (
    COMPILED,
    GRAPHS,
    IPEX,
    OPENVINO,
    TORCH,
    Race,
    choose,
    race,
    time_in_turns,
    usable,
)
from dynx.runtime.decision import Decision
from dynx.speculation import backends as speculation_backends
from dynx.speculation.backends import ModelBackends

if TYPE_CHECKING:
    from collections.abc import Callable

NO_OPENVINO = Decision(False, "OpenVINO isn't installed")
NO_IPEX = Decision(False, "IPEX isn't installed")
NO_COMPILER = Decision(False, "there is no C++ compiler here")


def having(
    monkeypatch: pytest.MonkeyPatch, *, openvino: bool = True, compiler: bool = True, ipex: bool = False
) -> None:
    """A machine with what is named beside PyTorch."""
    monkeypatch.setattr(registry, "available", lambda: Decision(True, "OpenVINO") if openvino else NO_OPENVINO)
    monkeypatch.setattr(
        registry, "can_compile", lambda _: Decision(True, "compiled by g++") if compiler else NO_COMPILER
    )
    monkeypatch.setattr(registry, "can_use_ipex", lambda _: Decision(True, "IPEX") if ipex else NO_IPEX)


@pytest.mark.parametrize(
    ("asked", "quantize", "measured", "name", "reason"),
    [
        ("torch", "none", OPENVINO, TORCH, "asked for"),
        ("eager", "none", None, TORCH, "asked for"),
        ("torch-eager", "int8", None, TORCH, "asked for"),
        ("compiled", "none", TORCH, COMPILED, "asked for"),
        ("torch-compiled", "int8", OPENVINO, COMPILED, "asked for"),
        ("openvino", "int4", None, OPENVINO, "asked for"),
        ("auto", "none", None, TORCH, "calibrating times compiled PyTorch and OpenVINO too"),
        ("auto", "none", TORCH, TORCH, "measured to be the fastest"),
        ("auto", "none", COMPILED, COMPILED, "measured to be the fastest"),
        ("auto", "none", OPENVINO, OPENVINO, "measured to be the fastest"),
        ("auto", "int8", None, OPENVINO, "it has int8 kernels; calibrating times the others"),
        ("auto", "int8", COMPILED, COMPILED, "measured to be the fastest"),
        ("auto", "int4", None, OPENVINO, "it has int4 kernels"),
        ("auto", "int4", TORCH, OPENVINO, "it has int4 kernels"),
        ("auto", "none", "a backend of the future", TORCH, "nothing is measured yet"),
    ],
)
def test_with_everything_there(
    asked: str, quantize: str, measured: str | None, name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked for by any of its names wins, then what was measured, then the best guess, with the reason."""
    having(monkeypatch)
    chosen = choose(asked, quantize, "cpu", measured)

    assert chosen.value == name
    assert reason in chosen.reason


@pytest.mark.parametrize(
    ("there", "quantize", "measured", "name", "reason"),
    [
        ({"openvino": False}, "none", None, TORCH, "calibrating times compiled PyTorch too"),
        ({"openvino": False, "compiler": False}, "none", None, TORCH, "the only one here"),
        ({"openvino": False}, "none", OPENVINO, TORCH, "OpenVINO isn't installed"),
        ({"compiler": False}, "none", COMPILED, TORCH, "no C++ compiler"),
        ({"openvino": False}, "int8", None, COMPILED, "it has int8 kernels"),
        ({"openvino": False, "compiler": False}, "int8", None, TORCH, "it has int8 kernels"),
        ({"openvino": False}, "int8", OPENVINO, COMPILED, "it has int8 kernels"),
        ({"openvino": False, "compiler": False, "ipex": True}, "none", None, TORCH, "calibrating times IPEX too"),
        ({"ipex": True}, "none", IPEX, IPEX, "measured to be the fastest"),
        ({}, "none", IPEX, TORCH, "IPEX isn't installed"),
        ({"ipex": True, "openvino": False, "compiler": False}, "int8", IPEX, TORCH, "it has int8 kernels"),
    ],
)
def test_with_something_missing(
    there: dict[str, bool],
    quantize: str,
    measured: str | None,
    name: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was measured and is gone is passed over with the reason; weights in 8 bits go to the best that is left."""
    having(monkeypatch, **there)
    chosen = choose("auto", quantize, "cpu", measured)

    assert chosen.value == name
    assert reason in chosen.reason


def test_what_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend asked for by name that isn't there or lacks the kernels is an error with the reason, never another one."""
    having(monkeypatch, openvino=False, compiler=False)
    for asked, quantize, device, said in (
        ("openvino", "none", "cpu", "`backend` openvino: OpenVINO isn't installed"),
        ("compiled", "none", "cpu", "`backend` compiled: there is no C"),
        ("torch", "int4", "cpu", "`backend` torch `quantize` int4: PyTorch has no fast kernels"),
        ("torch", "int8", "cuda:0", "processors only, not on cuda:0"),
        ("auto", "int4", "cpu", "`quantize` int4: OpenVINO isn't installed"),
        ("ipex", "none", "cpu", "`backend` ipex: IPEX isn't installed"),
        (
            "graphs",
            "none",
            "cpu",
            "`backend` graphs: CUDA graphs are captured on cuda and xpu devices, and this runs on cpu",
        ),
        (
            "graphs",
            "none",
            "mps",
            "`backend` graphs: CUDA graphs are captured on cuda and xpu devices, and this runs on mps",
        ),
        (
            "graphs",
            "int8",
            "cuda:0",
            "`backend` graphs `quantize` int8: CUDA graphs are captured with weights as they are",
        ),
        ("ipex", "int8", "cpu", "`backend` ipex `quantize` int8: IPEX is used for weights as they are, not in int8"),
    ):
        with pytest.raises(DeviceError, match=said):
            choose(asked, quantize, device, None)
    with pytest.raises(
        UsageError, match="`backend` fast: one of auto, torch-eager, torch-compiled, torch-graphs, openvino, ipex"
    ):
        choose("fast", "none", "cpu", None)


def test_on_an_accelerator_only_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager, or captured where calibration finds that faster; the others are for processors, and say so."""
    monkeypatch.setattr(registry, "available", lambda: Decision(True, "OpenVINO"))
    found = usable("cuda:0")

    assert [name for name, able in found.items() if able.value] == [TORCH, GRAPHS]
    assert all("cuda:0" in able.reason for name, able in found.items() if name != TORCH)
    unmeasured, measured, asked = (
        choose(wish, "none", "cuda:0", known) for wish, known in (("auto", None), ("auto", GRAPHS), ("graphs", TORCH))
    )
    assert (unmeasured.value, unmeasured.reason) == (
        TORCH,
        "nothing is measured yet; calibrating times PyTorch with CUDA graphs too",
    )
    assert (measured.value, asked.value) == (GRAPHS, GRAPHS)
    assert choose("auto", "none", "cpu", GRAPHS).value == TORCH


def test_a_race_is_won_by_the_least_time() -> None:
    """Medians of each backend's own time, at both widths, and the winner whatever the order."""
    clock = Clock()
    slow, fast = TimedBackend(tiny("llama"), clock, layer=2.0), TimedBackend(tiny("llama"), clock, layer=1.5)
    for order in ({"slow": slow, "fast": fast}, {"fast": fast, "slow": slow}):
        timed = race(order, clock)
        assert timed.winner == "fast"
        assert timed.passes["slow"] == pytest.approx({n: 1e3 * slow.price(n) for n in registry.RACE_TOKENS})
    assert "fast 4500.00, 5625.00" in str(timed)
    assert timed.passes["slow"][1] == pytest.approx(6000.0)


def test_jobs_are_timed_in_turns_per_unit() -> None:
    """The warm-up isn't timed, a slow first round doesn't decide, units count, and failing jobs leave the others alone."""
    now, calls = [0.0], []

    def job(name: str, seconds: float, units: int, fails_in: int | None = None) -> Callable[[int], int]:
        def run(number: int) -> int:
            calls.append((number, name))
            if number == fails_in:
                raise RuntimeError("no such kernel")
            now[0] += 100.0 if number < 2 else seconds
            return units

        return run

    jobs = {
        "a": job("a", 6.0, 3),
        "b": job("b", 4.0, 1),
        "c": job("c", 1.0, 1, fails_in=2),
        "d": job("d", 1.0, 1, fails_in=0),
    }
    seconds, failed = time_in_turns(jobs, lambda: now[0], rounds=5, backend_of=lambda _: TORCH, model="tiny")

    assert seconds == {"a": 2.0, "b": 4.0}
    assert {name: str(e) for name, e in failed.items()} == dict.fromkeys(
        ("d", "c"), "tiny fails on PyTorch (RuntimeError: no such kernel)"
    )
    assert [number for number, name in calls if name == "a"] == [0, 1, 2, 3, 4, 5]
    assert [number for number, name in calls if name == "c"] == [0, 1, 2]
    assert calls == sorted(calls, key=lambda call: call[0])


def test_a_race_fits_a_short_context() -> None:
    """A model with room for fewer tokens than a race likes is timed within its room."""
    longest: list[int] = []

    def row(prefix: Any) -> Any:
        longest.append(len(prefix))
        return scripted(8, [1, 2, 3])(prefix)

    race({"stub": Stub(8, row, context=20)}, Clock())
    assert max(longest) == 20


def ready(
    monkeypatch: pytest.MonkeyPatch,
    backends: dict[str, Any],
    *,
    backend: str = "auto",
    quantize: str = "none",
    chosen: str = TORCH,
    profile: Any = None,
    draft: str = "auto",
    clock: Callable[[], float] | None = None,
) -> tuple[ModelBackends, Any, list[str]]:
    """Kernels of a made-up plan on a machine where loading gives `backends`, or raises what stands there."""
    having(monkeypatch)

    def loaded(name: str) -> Any:
        found = backends[name]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(speculation_backends, "convert_to_openvino", lambda *_, **__: loaded(OPENVINO))
    monkeypatch.setattr(speculation_backends, "load_converted", lambda **_: None)
    monkeypatch.setattr(speculation_backends, "compile_model", lambda *_, **__: loaded(COMPILED))
    monkeypatch.setattr(speculation_backends, "load_ipex", lambda *_, **__: loaded(IPEX))
    monkeypatch.setattr(speculation_backends, "capture_model", lambda *_, **__: loaded(GRAPHS))
    monkeypatch.setattr(speculation_backends, "torch_backend", lambda *_, **__: loaded(TORCH))
    monkeypatch.setattr(speculation_backends, "import_backend", lambda _: None)
    monkeypatch.setattr(speculation_backends, "weights_key", lambda *_: "w")
    said: list[str] = []
    plan = SimpleNamespace(
        request=SimpleNamespace(backend=backend, quantize=quantize, allow_pickle=False),
        decisions=SimpleNamespace(backend=Decision(chosen, "so far")),
        device="cpu",
        dtype="float32",
        backend=chosen,
        threads=1,
        bundled=False,
        own_profile=profile,
        source=SimpleNamespace(name="tiny", folder=None, is_exported=False),
        packed=False,
        key=SimpleNamespace(model="m", companion=None),
        kinds=frozenset({"self"}),
        auto=draft == "auto",
    )

    def drop_profile(why: str, warn: Any) -> None:
        if plan.own_profile is not None:
            warn(f"profile {plan.own_profile.key.id} isn't used: {why}")
            plan.own_profile = None

    plan.drop_profile = drop_profile
    return ModelBackends(plan, lambda _: None, said.append, clock), plan, said  # type: ignore[arg-type]


def backends(clock: Clock) -> dict[str, Any]:
    """Three to race: OpenVINO the fastest, eager PyTorch the slowest."""
    speeds = {TORCH: 3.0, COMPILED: 2.0, OPENVINO: 1.0}
    return {name: TimedBackend(tiny("llama"), clock, layer=seconds) for name, seconds in speeds.items()}


def test_calibration_keeps_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends that nobody asked for are raced, and the decision says what each took."""
    clock = Clock()
    three = backends(clock)
    kernel, plan, _ = ready(monkeypatch, three, clock=clock)

    assert kernel.target() is three[OPENVINO]
    assert plan.decisions.backend.value == OPENVINO
    assert "torch-eager 9000.00" in plan.decisions.backend.reason
    assert "torch-compiled 6000.00" in plan.decisions.backend.reason


def test_calibration_races_ipex_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPEX runs in the race where it is installed, and is passed over with the reason where it can't run the model."""
    clock = Clock()
    four = backends(clock) | {IPEX: TimedBackend(tiny("llama"), clock, layer=0.5)}
    kernel, plan, _ = ready(monkeypatch, four, clock=clock)
    having(monkeypatch, ipex=True)

    assert kernel.target() is four[IPEX]
    assert plan.decisions.backend.value == IPEX
    assert "ipex 1500.00" in plan.decisions.backend.reason

    four[IPEX] = UnsupportedModelError("no AVX-512 here")
    assert kernel.target() is four[OPENVINO]
    assert "IPEX can't run it: no AVX-512 here" in plan.decisions.backend.reason


def test_a_late_start_is_weighed_against_shorter_passes() -> None:
    """What gains less over a typical run than it starts later loses, however fast its passes are, and the words say why."""
    close = {"eager": {1: 2.2, 6: 2.9}, "compiled": {1: 1.7, 6: 2.2}}
    far = {"eager": {1: 54.0, 6: 57.0}, "compiled": {1: 35.0, 6: 37.0}}
    starts = {"eager": 0.1, "compiled": 1.9}

    assert Race(close).winner == "compiled"
    assert Race(close, starts).winner == "eager"
    assert Race(far, starts).winner == "compiled"
    assert "with the start, a run of 256 passes takes eager 0.8 s, compiled 2.4 s" in str(Race(close, starts))


def test_calibration_times_the_start_from_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each backend is opened twice: what the first time compiles and converts isn't what later runs wait for."""
    clock = Clock()
    three = backends(clock)
    kernel, plan, _ = ready(monkeypatch, three, clock=clock)
    opened: list[tuple[str, bool]] = []

    def slow(name: str, made: float, kept: float) -> Callable[..., Any]:
        def load(*_: Any, **given: Any) -> Any:
            trusted = bool(given.get("trusted"))
            opened.append((name, trusted))
            clock.now += kept if trusted else made
            return three[name]

        return load

    monkeypatch.setattr(speculation_backends, "compile_model", slow(COMPILED, 9e6, 1.0))
    monkeypatch.setattr(speculation_backends, "convert_to_openvino", slow(OPENVINO, 9e6, 1.0))
    monkeypatch.setattr(speculation_backends, "load_converted", slow(OPENVINO, 2e6, 2e6))

    assert kernel.target() is three[COMPILED]
    assert opened[:2] == [(COMPILED, False), (COMPILED, True)]
    assert "a run of 256 passes takes" in plan.decisions.backend.reason


def test_calibration_counts_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long compiling took stands in the reason, where anything was compiled."""
    clock = Clock()
    three = backends(clock) | {OPENVINO: UnsupportedModelError("caps its scores")}
    three[COMPILED].compiled = 2
    kernel, plan, _ = ready(monkeypatch, three, clock=clock)

    assert kernel.target() is three[COMPILED]
    assert "compiling took 0.0 s, once (2 graphs)" in plan.decisions.backend.reason
    assert "OpenVINO can't run it: caps its scores" in plan.decisions.backend.reason


def test_calibration_leaves_out_what_cannot_exit_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where drafting by the model's own first layers was asked for by name, only backends that can do it race."""
    clock = Clock()
    three = backends(clock)
    three[OPENVINO].can_exit = Decision(False, "compiled as a whole")
    kernel, plan, _ = ready(monkeypatch, three, clock=clock, draft="self")

    assert kernel.target() is three[COMPILED]
    assert "OpenVINO is left out: compiled as a whole" in plan.decisions.backend.reason


@pytest.mark.parametrize("name", [COMPILED, GRAPHS, OPENVINO, IPEX])
def test_what_a_profile_names_may_not_run_any_more(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then eager PyTorch does, with the reason, and without the profile, whose costs are of something else."""
    given = backends(Clock()) | {name: UnsupportedModelError("it has changed")}
    profile = SimpleNamespace(key=SimpleNamespace(id="abc"))
    kernel, plan, said = ready(monkeypatch, given, chosen=name, profile=profile)

    assert kernel.target() is given[TORCH]
    assert plan.decisions.backend.value == TORCH
    assert plan.decisions.backend.reason == f"{registry.TITLES[name]} can't run it: it has changed"
    assert plan.own_profile is None
    assert said == [f"profile abc isn't used: {registry.TITLES[name]} can't run it: it has changed"]


@pytest.mark.parametrize(("backend", "quantize"), [("openvino", "none"), ("auto", "int4")])
def test_what_was_asked_for_is_not_replaced(backend: str, quantize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend asked for by name, or the only one with the kernels asked for, fails with its own reason."""
    given = backends(Clock()) | {OPENVINO: UnsupportedModelError("caps its scores")}
    kernel, _, _ = ready(monkeypatch, given, backend=backend, quantize=quantize, chosen=OPENVINO)
    with pytest.raises(UnsupportedModelError, match="caps its scores"):
        kernel.target()


WORDS = "expected m1 and m2 to have the same dtype"


def broken(error: BaseException) -> Any:
    """A backend that loads, and raises in its first pass."""

    class Broken(TimedBackend):
        def open(self) -> Any:
            raise error

    return Broken(tiny("llama"), Clock(), layer=0.5)


@pytest.mark.parametrize(
    "error", [RuntimeError(WORDS), KeyError("weight"), OSError("no such library"), AssertionError()]
)
@pytest.mark.parametrize("where", ["loading", "passes"])
def test_whatever_a_trial_raises_leaves_that_backend_out(
    error: Exception, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration goes on with the others and says why; the same on a plain run of a backend that a profile names."""
    clock = Clock()
    given = backends(clock) | {OPENVINO: error if where == "loading" else broken(error)}
    kernel, plan, _ = ready(monkeypatch, given, clock=clock)

    assert kernel.target() is given[COMPILED]
    said = f"OpenVINO can't run it: tiny fails on OpenVINO ({type(error).__name__}: {str(error) or 'no message'})"
    assert said in plan.decisions.backend.reason
    if where == "loading":
        kernel, plan, _ = ready(monkeypatch, given, chosen=OPENVINO)
        assert kernel.target() is given[TORCH]
        assert plan.decisions.backend.reason == said


def test_a_backend_asked_for_fails_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an error of dynx's own, whatever the library raised."""
    given = backends(Clock()) | {OPENVINO: RuntimeError(f"{WORDS}\nand a traceback")}
    kernel, _, _ = ready(monkeypatch, given, backend="openvino", chosen=OPENVINO)
    with pytest.raises(UnsupportedModelError) as caught:
        kernel.target()
    assert str(caught.value) == f"tiny fails on OpenVINO (RuntimeError: {WORDS})"


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(3), MemoryError(), RuntimeError("not enough memory"), DeviceError("out of")],
)
@pytest.mark.parametrize("where", ["loading", "passes"])
def test_what_is_no_failure_of_a_backend(error: BaseException, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, exits and memory that ran out end the command as ever."""
    clock = Clock()
    given = backends(clock) | {OPENVINO: broken(error)}
    kernel, _, _ = ready(monkeypatch, given, clock=clock)
    if where == "loading":

        def convert(*_: Any, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(speculation_backends, "convert_to_openvino", convert)
    with pytest.raises(type(error)) as caught:
        kernel.target()
    assert caught.value is error


def test_a_backend_that_fails_while_it_is_timed() -> None:
    """Passes that went well before don't count, and where all fail the first reason is the error."""
    clock, passes = Clock(), 0

    class Late(TimedBackend):
        def open(self) -> Any:
            session = super().open()
            forward = session.forward

            def counted(*args: Any, **kwargs: Any) -> Any:
                nonlocal passes
                passes += 1
                if passes > 8:
                    raise RuntimeError("worn out")
                return forward(*args, **kwargs)

            session.forward = counted
            return session

    late = Late(tiny("llama"), clock, layer=0.1)
    timed = race({OPENVINO: late, TORCH: TimedBackend(tiny("llama"), clock, layer=3.0)}, clock)
    assert timed.winner == TORCH
    assert str(timed.failed[OPENVINO]) == "the model fails on OpenVINO (RuntimeError: worn out)"
    with pytest.raises(UnsupportedModelError, match="worn out"):
        race({OPENVINO: late}, clock)
