"""Spending less on a picture: skipped steps, dropped guidance, landings, grids changed on the way; for every family."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support.pipelines import (
    ADAPTIVE,
    FEW_STEP,
    GUIDED,
    UNPROMPTED,
    directly,
    exact,
    grid,
    own_state,
    pipeline,
    pixels,
    request,
)

from dynx.diffusion.engine import Engine
from dynx.diffusion.sampler import RestOfSchedule
from dynx.diffusion.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.diffusion.sampler import StepState
    from dynx.diffusion.types import Step

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")
"""Of diffusers' schedulers, under NumPy 2."""

ALL = [*ADAPTIVE, *FEW_STEP]


def after(n: int) -> Callable[[], bool]:
    """A stop that says so when asked for the n-th time."""
    asked = [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] >= n

    return stop


@pytest.mark.parametrize("name", ADAPTIVE)
def test_skipping_is_bounded(name: str) -> None:
    """With an infinite threshold the first steps and the last are computed, and no more than so many skipped in a row."""
    engine = Engine(pipeline(name))
    steps: list[Step] = []
    schedule = Schedule("euler", grid(engine, name, 12), skip=math.inf, warmup=4, longest_skip=3)

    drawn = engine.draw(request(name), schedule, callback=steps.append)

    assert "".join("c" if s.computed else "s" for s in steps) == "ccccssscsssc"
    stats = drawn[0].stats
    assert (stats.calls, stats.run, stats.skipped) == (6, 6, 6)
    assert steps[-1].calls == 6
    assert np.isfinite(pixels(drawn)).all()


@pytest.mark.parametrize("solver", ["euler", "dpm++2m"])
def test_skipping_does_not_depend_on_what_is_predicted(solver: str) -> None:
    """One model told as noise, velocity or picture skips the same steps and draws the same picture."""
    drawn = []
    for kind in ("epsilon", "v_prediction", "sample"):
        engine = Engine(exact(kind))
        asked = request("ddim", (1, 2), steps=50)
        drawn.append(engine.draw(asked, Schedule(solver, engine.initial_call(asked).grid, skip=0.02)))

    calls = {pictures[0].stats.calls for pictures in drawn}
    assert len(calls) == 1
    assert 14 < calls.pop() < 40
    for other in drawn[1:]:
        assert np.abs(pixels(other) - pixels(drawn[0])).max() < 2e-3


def test_no_threshold_skips_nothing_and_a_low_one_little() -> None:
    """δ grows from no skipped step to all that may be."""
    engine = Engine(pipeline("stable-diffusion"))
    own = grid(engine, "stable-diffusion", 24)

    def skipped(threshold: float) -> int:
        schedule = Schedule("euler", own, skip=threshold)
        return engine.draw(request("stable-diffusion"), schedule)[0].stats.skipped

    counts = [skipped(t) for t in (0.0, 0.003, 0.03, math.inf)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[1] < counts[-1]


@pytest.mark.parametrize("name", GUIDED)
def test_dropping_guidance_halves_the_rows(name: str) -> None:
    """After so many steps only the conditional half is computed."""
    engine = Engine(pipeline(name))
    steps: list[Step] = []
    schedule = Schedule("euler", grid(engine, name, 12), guided_steps=5)

    drawn = engine.draw(request(name), schedule, callback=steps.append)

    stats = drawn[0].stats
    assert (stats.calls, stats.rows, stats.unguided) == (12, 5 * 4 + 7 * 2, 7)
    assert [s.guided for s in steps] == [True] * 5 + [False] * 7
    assert stats.notes == ()
    assert np.isfinite(pixels(drawn)).all()


@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-xl"])
def test_dropping_guidance_is_what_diffusers_cutoff_does(name: str) -> None:
    """The same picture as diffusers' own callback makes, which slices the prompts instead."""
    from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback

    engine, asked = Engine(pipeline(name)), request(name, (4,))
    cutoff = SDXLCFGCutoffCallback if "xl" in name else SDCFGCutoffCallback
    callback = cutoff(cutoff_step_ratio=None, cutoff_step_index=4)

    drawn = engine.draw(asked, Schedule("euler", grid(engine, name, 12), guided_steps=5))

    assert np.abs(pixels(drawn) - directly(name, asked, callback_on_step_end=callback)).max() < 1e-4


@pytest.mark.parametrize("name", ["flux", *UNPROMPTED])
def test_guidance_that_costs_nothing_is_left_alone(name: str) -> None:
    """Where there's no second half nothing is dropped, and nothing said."""
    engine = Engine(pipeline(name))
    own = grid(engine, name, 12)

    drawn = engine.draw(request(name), Schedule("euler", own, guided_steps=1))

    assert drawn[0].stats.rows == 24
    assert np.array_equal(pixels(drawn), pixels(engine.draw(request(name), Schedule("euler", own))))


def test_guidance_of_another_formula_is_kept() -> None:
    """Rescaled guidance isn't what one half could stand for: both are computed, and the receipt says so."""
    engine = Engine(pipeline("stable-diffusion"))
    asked = request("stable-diffusion", options={"guidance_rescale": 0.7})

    drawn = engine.draw(asked, Schedule("euler", grid(engine, "stable-diffusion", 12), guided_steps=5))

    assert drawn[0].stats.rows == 48
    assert "guidance kept" in drawn[0].stats.notes[0]


def test_guidance_by_two_calls_is_kept_and_skipped_together() -> None:
    """Flux with a negative prompt calls twice a step: both are counted, both are skipped, none is dropped."""
    engine = Engine(pipeline("flux"))
    asked = request("flux", negative="blue", options={"true_cfg_scale": 2.0})
    own = engine.initial_call(asked).grid

    same = engine.draw(asked, Schedule("euler", own))
    assert same[0].stats.calls == 24
    expected = directly("flux", asked, true_cfg_scale=2.0, negative_prompt=["blue", "blue"])
    assert np.abs(pixels(same) - expected).max() < 1e-4
    drawn = engine.draw(asked, Schedule("euler", own, skip=math.inf, guided_steps=2))
    assert (drawn[0].stats.calls, drawn[0].stats.run, drawn[0].stats.skipped) == (12, 6, 6)
    assert "guidance kept" in drawn[0].stats.notes[0]


def test_guidance_by_a_call_more_on_the_way_is_kept() -> None:
    """SD3's skip-layer guidance calls a third half at some steps: the cut-off doesn't halve what it must not."""
    engine = Engine(pipeline("stable-diffusion-3"))
    options = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.1, "skip_layer_guidance_stop": 0.5}
    asked = request("stable-diffusion-3", options=options)

    drawn = engine.draw(asked, Schedule("euler", engine.initial_call(asked).grid, guided_steps=4))

    assert drawn[0].stats.calls == 12 + 4
    assert "guidance kept" in drawn[0].stats.notes[0]
    assert np.abs(pixels(drawn) - directly("stable-diffusion-3", asked)).max() < 1e-4


def test_guidance_of_one_or_none_runs_one_half() -> None:
    """A pipeline that was told not to guide isn't told to stop."""
    engine = Engine(pipeline("stable-diffusion"))
    for guidance in (0.0, 1.0):
        drawn = engine.draw(
            request("stable-diffusion", guidance=guidance),
            Schedule("euler", grid(engine, "stable-diffusion", 12), guided_steps=2),
        )
        assert (drawn[0].stats.rows, drawn[0].stats.unguided, drawn[0].stats.notes) == (24, 0, ())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("planned", [True, False], ids=["schedule", "plain"])
def test_a_stop_lands_on_the_clean_picture(name: str, planned: bool) -> None:
    """No call after the stop, and what is decoded is the picture the run was heading for: never a noisy one."""
    pipe = pipeline(name)
    engine = Engine(pipe)
    planned = planned and name in ADAPTIVE
    schedule = Schedule("dpm++2m", grid(engine, name, 12)) if planned else None
    steps: list[Step] = []

    drawn = engine.draw(request(name), schedule, callback=steps.append, stop=after(3))

    stats = drawn[0].stats
    assert stats.finished_early
    assert (stats.calls, stats.run, len(steps)) == (3, 3, 3)
    assert np.abs(pixels(drawn) - decoded(name, pipe, steps[-1].clean)).max() < 1e-3
    assert not engine.draw(request(name), schedule)[0].stats.finished_early


@pytest.mark.parametrize("name", [n for n in ADAPTIVE if n != "ddpm"])
def test_plain_runs_land_where_schedules_do(name: str) -> None:
    """The clean picture is the same whichever way the author's scheduler scales its latents."""
    engine = Engine(pipeline(name))
    schedule = Schedule("dpm++2m" if name == "pixart" else "euler", grid(engine, name, 12))

    plain = engine.draw(request(name), stop=after(4))
    planned = engine.draw(request(name), schedule, stop=after(4))

    assert plain[0].stats.plain
    assert np.abs(pixels(plain) - pixels(planned)).max() < 1e-3


def decoded(name: str, pipe: Any, latents: Any) -> Any:
    """What a family's own decoder makes of clean latents."""
    with torch.no_grad():
        if name not in UNPROMPTED:
            if name == "flux":
                latents = pipe._unpack_latents(latents, 16, 16, pipe.vae_scale_factor)
            shift = getattr(pipe.vae.config, "shift_factor", None) or 0.0
            latents = pipe.vae.decode(latents / pipe.vae.config.scaling_factor + shift, return_dict=False)[0]
    return (latents / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def test_landing_may_be_planned() -> None:
    """A schedule that lands after so many steps is a stop there."""
    engine = Engine(pipeline("stable-diffusion"))
    own = grid(engine, "stable-diffusion", 12)

    drawn = engine.draw(request("stable-diffusion"), Schedule("euler", own, finish_after_steps=3))

    stopped = engine.draw(request("stable-diffusion"), Schedule("euler", own), stop=after(3))
    assert np.array_equal(pixels(drawn), pixels(stopped))
    assert drawn[0].stats.calls == 3


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_pilot_may_plan_the_rest_anew(name: str) -> None:
    """A shorter rest chosen on the way is the run of that grid from the beginning, bit for bit, with no call more."""
    engine = Engine(pipeline(name))
    own = grid(engine, name, 12)
    short = own.pick((0, 1, 2, 6, 12))
    looks: list[StepState] = []

    def controller(state: StepState) -> Any:
        looks.append(state)
        return RestOfSchedule(short.timesteps[2:], short.sigmas[2:]) if state.index == 1 else None

    drawn = engine.draw(request(name), Schedule("dpm++2m", own), controller=controller)

    straight = engine.draw(request(name), Schedule("dpm++2m", short))
    assert np.array_equal(pixels(drawn), pixels(straight))
    assert drawn[0].stats.calls == 4
    assert [state.index for state in looks] == [0, 1, 2, 3]
    assert looks[3].sigma_next == short.sigmas[-1]


def test_a_pilot_with_a_bad_plan_is_told() -> None:
    """Levels that rise, or more of them than were left, are a mistake of the caller's; the pipeline is whole afterwards."""
    pipe = pipeline("stable-diffusion")
    engine = Engine(pipe)
    own = grid(engine, "stable-diffusion", 12)
    before = own_state(pipe)

    with pytest.raises(ValueError, match="no plan for after step 1"):
        engine.draw(
            request("stable-diffusion"),
            Schedule("euler", own),
            controller=lambda _: RestOfSchedule((900.0,), (99.0, 0.0)),
        )

    assert own_state(pipe) == before
