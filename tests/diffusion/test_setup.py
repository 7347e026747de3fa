"""What a loaded pipeline draws with is decided by the profile's times, the number of pictures and what was asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support import pipelines

from dynx.diffusion import setup
from dynx.diffusion.runs import RunCost, Seconds
from dynx.runtime.decision import Decision
from dynx.runtime.plan import BackendSpec
from dynx.runtime.profile import Profile

if TYPE_CHECKING:
    from dynx.diffusion.assembly import LoadedImageGenerator

LOADED = RunCost(BackendSpec("torch-eager", "float32"), {1: Seconds(0.0, 0.02, 0.0), 8: Seconds(0.0, 0.015, 0.0)})
FAST = RunCost(BackendSpec("openvino", "float32"), {1: Seconds(0.0, 0.01, 3.0), 8: Seconds(0.0, 0.005, 4.0)})


def assembly(costs: list[RunCost], **asked: Any) -> LoadedImageGenerator:
    """A pipeline of 50 steps, with a profile that holds these times."""
    made = pipelines.assembly_of(pipelines.pipeline("stable-diffusion"), **asked)
    blank: Any = {name: {} for name in ("device", "evidence")}
    measured = {"runs": [cost.to_json() for cost in costs]}
    fitted = {"backend": "openvino", "precision": "float32"}
    made.plan.profile = Profile(
        made.plan.key, "tiny", "2026-01-01T00:00:00+00:00", {}, fitted=fitted, measured=measured, decision={}, **blank
    )
    made.plan.decisions.backend = Decision(asked.get("backend", "openvino").replace("torch", "torch-eager"), "")
    return made


@pytest.mark.parametrize(
    ("pictures", "together", "backend", "batches"),
    [
        (1, True, "torch-eager", (1,)),
        (64, True, "openvino", (8,)),
        (64, False, "openvino", (1,)),
        (3, True, "torch-eager", (1,)),
    ],
)
def test_the_run_decides(pictures: int, together: bool, backend: str, batches: tuple[int, ...]) -> None:
    """A start is won back or it isn't; the reason tells the times."""
    made = assembly([LOADED, FAST])
    setup.choose_run(made, pictures, together=together)
    assert (made.plan.backend, made.batches, made.pending) == (backend, batches, None)
    assert f"measured for {pictures} picture" in made.decisions.backend.reason


def test_nobody_knows_how_many() -> None:
    """It begins on what starts first, and is prepared for single pictures and for several."""
    made = assembly([LOADED, FAST])
    setup.choose_run(made, None, together=True)
    assert (made.plan.backend, made.batches) == ("torch-eager", (1,))
    assert made.pending is not None
    assert (made.pending.later.cost, made.pending.later.batch) == (FAST, 8)
    assert "takes over once that pays" in made.decisions.backend.reason


def test_what_was_asked_for_stays() -> None:
    """A named backend is never left, and other precisions' times aren't looked at."""
    made = assembly([LOADED, FAST], backend="torch")
    setup.choose_run(made, 1000, together=True)
    assert made.plan.backend == "torch-eager"
    low = replace(FAST, spec=BackendSpec("openvino", "bfloat16"))
    made = assembly([LOADED, low])
    setup.choose_run(made, 1000, together=True)
    assert made.plan.backend == "torch-eager"


@pytest.mark.parametrize("runs", [None, [], [{"backend": "openvino"}], "none", [3]])
def test_a_profile_without_times_leaves_the_backend(runs: Any) -> None:
    """Older profiles, and damaged ones."""
    made = assembly([])
    profile: Any = made.plan.profile
    made.plan.profile = replace(profile, measured={} if runs is None else {"runs": runs})
    before = made.decisions.backend
    setup.choose_run(made, 64, together=True)
    assert (made.decisions.backend, made.batches, made.run) == (before, (1,), None)


def test_float32_differs_by_rounding_alone() -> None:
    """A profile that was certified in float32 holds on any backend in float32; one in bfloat16 on its own alone."""
    made = assembly([LOADED, FAST], backend="torch")
    assert setup._both_in_full(made.plan)
    profile: Any = made.plan.profile
    made.plan.profile = replace(profile, fitted={"backend": "openvino", "precision": "bfloat16"})
    assert not setup._both_in_full(made.plan)
