"""Drawing with every family: plain is the pipeline itself, schedules are followed, calls are counted, landings are pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from support.pipelines import (
    ADAPTIVE,
    FEW_STEP,
    GUIDED,
    SCALED,
    UNPROMPTED,
    directly,
    grid,
    own_state,
    pipeline,
    pixels,
    request,
    stable_diffusion,
    turbo,
)

from dynx.diffusion.engine import Engine
from dynx.diffusion.schedule import Schedule
from dynx.diffusion.types import Request, Step
from dynx.errors import DeviceError, UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")
"""Of diffusers' schedulers, under NumPy 2."""

ALL = [*ADAPTIVE, *FEW_STEP]
SCHEDULE_OF_THEIR_OWN = ("euler", "euler", "euler", "dpm++2m", "euler", "euler")
"""The solver that the author's scheduler is, for each family whose scheduler draws no noise."""


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seeds", [(3,), (1, 2)], ids=["one", "two"])
def test_plain_is_the_pipeline_bit_for_bit(name: str, seeds: tuple[int, ...]) -> None:
    """Without a schedule the pixels are those of the pipeline called directly, with its own number of calls."""
    asked = request(name, seeds)
    pipe = pipeline(name)
    before = own_state(pipe)
    steps: list[Step] = []

    drawn = Engine(pipe).draw(asked, callback=steps.append)

    assert np.array_equal(pixels(drawn), directly(name, asked))
    stats = drawn[0].stats
    assert (stats.calls, stats.run, stats.planned, stats.skipped) == (12, 12, 12, 0)
    halves = 2 if name in GUIDED or name == "turbo" else 1
    assert stats.rows == 12 * len(seeds) * halves
    assert [(s.index, s.total, s.calls, s.computed) for s in steps] == [(i, 12, i, True) for i in range(1, 13)]
    assert stats.plain
    assert stats.solver == type(pipe.scheduler).__name__
    assert own_state(pipe) == before


def test_plain_runs_the_pipelines_own_number_of_steps() -> None:
    """Steps and guidance that a request doesn't say are the author's."""
    pipe = pipeline("stable-diffusion")
    asked = request("stable-diffusion", (1,), steps=None)

    drawn = Engine(pipe).draw(asked)

    assert drawn[0].stats.calls == 50
    assert np.array_equal(pixels(drawn), directly("stable-diffusion", asked))
    assert np.array_equal(drawn[0].bytes8(), (directly("stable-diffusion", asked)[0] * 255).round().astype("uint8"))


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("solver", ["euler", "dpm++2m", "dpm++3m"])
def test_a_grid_of_n_steps_makes_n_calls_along_it(name: str, solver: str) -> None:
    """The network is told the grid's timesteps, once each, for every picture and half."""
    pipe = pipeline(name)
    engine = Engine(pipe)
    chosen = grid(engine, name, 12).pick((0, 2, 3, 7, 11, 12))
    steps: list[Step] = []
    before = own_state(pipe)

    drawn = engine.draw(request(name), Schedule(solver, chosen), callback=steps.append)

    stats = drawn[0].stats
    assert (stats.calls, stats.rows) == (5, 5 * 2 * (2 if name in GUIDED else 1))
    told = np.asarray(stats.timesteps) * (1000 if name == "flux" else 1)  # Flux counts from 0 to 1
    assert told == pytest.approx(chosen.timesteps, rel=1e-6)
    assert [s.index for s in steps] == [1, 2, 3, 4, 5]
    assert np.isfinite(pixels(drawn)).all()
    assert own_state(pipe) == before


@pytest.mark.parametrize(
    ("name", "solver"), list(zip([n for n in ADAPTIVE if n != "ddpm"], SCHEDULE_OF_THEIR_OWN, strict=True))
)
def test_the_authors_grid_with_the_authors_solver_gives_the_authors_picture(name: str, solver: str) -> None:
    """DDIM, Euler, DPM++ and flow matching are reproduced within rounding: noise, shift, end and clipping are all understood."""
    engine = Engine(pipeline(name))
    asked = request(name)

    drawn = engine.draw(asked, Schedule(solver, grid(engine, name, 12)))

    assert drawn[0].stats.solver == solver
    assert np.abs(pixels(drawn) - directly(name, asked)).max() < 1e-4


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(**SCALED, clip_sample=False, set_alpha_to_one=True, steps_offset=1),
        diffusers.DDIMScheduler(
            **SCALED, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"
        ),
        diffusers.DDIMScheduler(
            **SCALED,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
        diffusers.DDIMScheduler(
            **SCALED, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="sample"
        ),
        diffusers.EulerDiscreteScheduler(**SCALED, steps_offset=1),
        diffusers.EulerDiscreteScheduler(**SCALED, steps_offset=1, use_karras_sigmas=True),
        diffusers.EulerDiscreteScheduler(**SCALED, steps_offset=1, prediction_type="v_prediction"),
        diffusers.EulerDiscreteScheduler(**SCALED, steps_offset=1, final_sigmas_type="sigma_min"),
        diffusers.DPMSolverMultistepScheduler(**SCALED, steps_offset=1, solver_order=1),
    ],
    ids=["ddim", "ddim-v", "ddim-v-zero-snr", "ddim-sample", "euler", "karras", "euler-v", "sigma-min", "dpm-1"],
)
def test_first_order_schedulers_are_euler(scheduler: Any) -> None:
    """Whatever is predicted and however the latents are scaled, the same levels give the same picture."""
    pipe = stable_diffusion(scheduler)
    engine = Engine(pipe)
    asked = request("stable-diffusion", guidance=3.0)
    own = engine.initial_call(asked).grid

    drawn = engine.draw(asked, Schedule("euler", own))

    # Where a model starts from pure noise diffusers' own floor of α is 2⁻¹², and DDIM alone takes 0.
    assert np.abs(pixels(drawn) - directly("", asked, pipe)).max() < (5e-3 if own.sigmas[0] > 1000 else 5e-4)


@pytest.mark.parametrize(
    "kind",
    [
        diffusers.PNDMScheduler,
        diffusers.UniPCMultistepScheduler,
        diffusers.HeunDiscreteScheduler,
        diffusers.DEISMultistepScheduler,
        diffusers.LMSDiscreteScheduler,
        diffusers.KDPM2DiscreteScheduler,
        diffusers.EulerAncestralDiscreteScheduler,
        diffusers.DPMSolverSinglestepScheduler,
    ],
    ids=lambda kind: kind.__name__.removesuffix("Scheduler"),
)
def test_schedulers_without_a_grid_of_ones_choice_give_way_to_a_solver(kind: Any) -> None:
    """Their own course is known, and another solver follows any part of it; the receipt names the solver."""
    usual = {"steps_offset": 1}
    special: dict[Any, Any] = {
        diffusers.PNDMScheduler: {"skip_prk_steps": True, **usual},
        diffusers.DPMSolverSinglestepScheduler: {},
    }
    engine = Engine(stable_diffusion(kind(**SCALED, **special.get(kind, usual))))
    asked = request("stable-diffusion", (1,))
    own = engine.initial_call(asked).grid

    drawn = engine.draw(asked, Schedule("dpm++2m", own.thinned(6)))

    stats = drawn[0].stats
    assert len(own) == (23 if kind is diffusers.KDPM2DiscreteScheduler else 12)  # it looks between, too
    assert stats.timesteps == pytest.approx(own.thinned(6).timesteps)
    assert stats.solver == "dpm++2m"
    assert np.isfinite(pixels(drawn)).all()
    assert bool(stats.notes) == engine.adapter.random


def test_a_grid_means_the_same_to_diffusers() -> None:
    """A grid's timesteps or sigmas, handed to diffusers' own schedulers, give the same picture: other tools can use them."""
    engine = Engine(pipeline("stable-diffusion"))
    asked = request("stable-diffusion", steps=None)
    own = engine.initial_call(request("stable-diffusion")).grid.pick((0, 1, 4, 8, 10))
    euler = diffusers.EulerDiscreteScheduler(**SCALED, steps_offset=1, timestep_spacing="leading")
    sampler = diffusers.DPMSolverMultistepScheduler(**SCALED, steps_offset=1)
    to_zero = type(own)(own.timesteps, (*own.sigmas[:-1], 0.0))

    drawn = pixels(engine.draw(asked, Schedule("euler", to_zero)))
    second = pixels(engine.draw(asked, Schedule("dpm++2m", to_zero)))

    pipe = stable_diffusion(euler)
    assert np.abs(drawn - directly("", asked, pipe, timesteps=list(own.timesteps))).max() < 1e-3
    assert np.abs(drawn - directly("", asked, pipe, sigmas=list(to_zero.sigmas))).max() < 1e-3
    pipe = stable_diffusion(sampler)
    assert np.abs(second - directly("", asked, pipe, timesteps=[int(t) for t in own.timesteps])).max() < 1e-3


@pytest.mark.parametrize("name", ["stable-diffusion", "flux", "pixart"])
def test_half_precision(name: str) -> None:
    """In bfloat16 plain is still the pipeline, and a schedule runs in it with the solver's steps in float32."""
    pipe = ADAPTIVE[name]().to(torch.bfloat16)
    engine, asked = Engine(pipe), request(name)

    assert np.array_equal(pixels(engine.draw(asked)), directly(name, asked, pipe))
    schedule = Schedule("dpm++2m" if name == "pixart" else "euler", engine.initial_call(asked).grid, guided_steps=12)
    drawn = pixels(engine.draw(asked, schedule))
    assert np.abs(drawn - directly(name, asked, pipe)).mean() < 0.03
    halved = engine.draw(asked, Schedule("euler", schedule.grid, guided_steps=3))[0].stats
    assert halved.notes == ()
    assert halved.unguided == (0 if name == "flux" else 9)


@pytest.mark.parametrize("name", FEW_STEP)
def test_few_step_models_are_left_alone(name: str) -> None:
    """A schedule for a distilled model changes no pixel: it runs plain and says why."""
    pipe = pipeline(name)
    asked = request(name, steps=4, guidance=0.0 if name == "turbo" else None)
    other = Engine(pipeline("stable-diffusion"))
    schedule = Schedule("euler", grid(other, "stable-diffusion", 12), skip=math.inf, guided_steps=1)

    drawn = Engine(pipe).draw(asked, schedule)

    assert np.array_equal(pixels(drawn), directly(name, asked))
    assert drawn[0].stats.plain
    assert drawn[0].stats.calls == 4
    assert drawn[0].stats.notes[0].startswith("plain: ")


def test_unknown_schedulers_run_plain() -> None:
    """Somebody's own scheduler may scale noise in its own way: the pipeline's own run, and the reason."""

    class OwnScheduler(diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
        """Somebody's own."""

    pipe = stable_diffusion(OwnScheduler())
    asked = request("stable-diffusion", (1,))
    schedule = Schedule("euler", grid(Engine(pipeline("stable-diffusion")), "stable-diffusion", 12))

    drawn = Engine(pipe).draw(asked, schedule)

    assert np.array_equal(pixels(drawn), directly("", asked, pipe))
    assert drawn[0].stats.notes == ("plain: OwnScheduler is not a scheduler that dynx knows",)


def test_a_loop_that_changes_its_latents_runs_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """What isn't the loop it looks like is noticed at the first step, which is counted too."""
    from dynx.diffusion.solver import Solver

    monkeypatch.setattr(Solver, "scale_model_input", lambda self, sample, *_: sample * 0.9)
    engine = Engine(pipeline("stable-diffusion"))
    asked = request("stable-diffusion", (1,))

    drawn = engine.draw(asked, Schedule("euler", grid(engine, "stable-diffusion", 12)))

    assert np.array_equal(pixels(drawn), directly("stable-diffusion", asked))
    assert drawn[0].stats.calls == 13
    assert drawn[0].stats.notes == ("plain: StableDiffusionPipeline changes its latents before its network sees them",)


@pytest.mark.parametrize("planned", [True, False], ids=["schedule", "plain"])
def test_whatever_happens_the_pipeline_is_whole_again(planned: bool) -> None:
    """An exception on the way passes through and leaves network, scheduler and config as they were."""
    pipe = pipeline("stable-diffusion")
    engine = Engine(pipe)
    schedule = Schedule("euler", grid(engine, "stable-diffusion", 12)) if planned else None
    before = own_state(pipe)

    def callback(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.draw(request("stable-diffusion"), schedule, callback=callback)

    assert own_state(pipe) == before
    assert np.array_equal(
        pixels(engine.draw(request("stable-diffusion"))), directly("stable-diffusion", request("stable-diffusion"))
    )


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_course_is_found_without_the_network(name: str) -> None:
    """Grid, first latents and text of a request, in no call at all."""
    pipe = pipeline(name)
    network = getattr(pipe, "unet", None) or pipe.transformer
    ran: list[Any] = []
    handle = network.register_forward_hook(lambda *_: ran.append(1))

    initial_call = Engine(pipe).initial_call(request(name, steps=20))

    handle.remove()
    assert not ran
    assert len(initial_call.grid) == 20
    assert (initial_call.embedding is None) == (name in UNPROMPTED)
    assert initial_call.latents.shape[0] == (4 if name in GUIDED else 2)
    assert "forward" not in network.__dict__


def test_pictures_that_are_not_numbers_are_told() -> None:
    """A picture of NaN is an error with a reason, not a black picture."""
    pipe = stable_diffusion()
    with torch.no_grad():
        pipe.vae.post_quant_conv.weight.fill_(torch.nan)

    drawn = Engine(pipe).draw(request("stable-diffusion", (1,)))

    assert drawn[0].pixels is None
    assert drawn[0].error == "all of its pixels are not numbers"
    with pytest.raises(UsageError, match="no picture: all of its pixels"):
        drawn[0].bytes8()


def test_running_out_of_memory_is_a_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told in a line with what to try."""
    pipe = stable_diffusion()

    def forward(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(pipe.unet, "forward", forward)
    with pytest.raises(DeviceError, match="out of memory"):
        Engine(pipe).draw(request("stable-diffusion"))
    assert pipe.unet.forward is forward


def test_what_a_pipeline_cannot_be_told_is_a_usage_error() -> None:
    """Prompts for pipelines that take none, none for those that need one, sizes of pixel pipelines."""
    text, plain = Engine(pipeline("stable-diffusion")), Engine(pipeline("ddim"))
    with pytest.raises(UsageError, match="draws from a prompt"):
        text.draw(Request((), (1,)))
    with pytest.raises(UsageError, match="takes no prompt"):
        plain.draw(Request(("cat",), (1,)))
    with pytest.raises(UsageError, match="can't be told width, height"):
        plain.draw(Request((), (1,), size=(8, 8)))
    with pytest.raises(UsageError, match="don't go together"):
        Request(("cat",), (1, 2))
    with pytest.raises(UsageError, match="0 steps"):
        Request(("cat",), (1,), steps=0)


def test_requests_reach_the_pipeline() -> None:
    """Negative prompt, size and guidance are the pipeline's own."""
    asked = request("stable-diffusion", (5,), negative="blue", size=(24, 16), guidance=2.0)

    drawn = Engine(pipeline("stable-diffusion")).draw(asked)

    expected = directly("stable-diffusion", asked, negative_prompt=["blue"], width=24, height=16)
    assert np.array_equal(pixels(drawn), expected)
    assert drawn[0].pixels is not None
    assert drawn[0].pixels.shape == (16, 24, 3)


def test_turbo_is_a_normal_model_to_who_guides_it() -> None:
    """Trailing timesteps alone don't make a few-step model."""
    engine = Engine(turbo())
    assert engine.plain_reason(request("turbo", steps=30)) is None
    assert engine.plain_reason(request("turbo", steps=30, guidance=1.0))
    assert engine.plain_reason(request("turbo", steps=4))


def test_seconds_come_from_the_clock() -> None:
    """Time is passed in."""
    ticks = iter([10.0, 12.5])

    drawn = Engine(pipeline("ddim"), clock=lambda: next(ticks)).draw(request("ddim"))

    assert drawn[0].stats.seconds == 2.5


def test_a_receipt_is_a_document() -> None:
    """What was done, in JSON."""
    engine = Engine(pipeline("stable-diffusion"))
    schedule = Schedule("euler", grid(engine, "stable-diffusion", 12).thinned(4), skip=0.5)

    found = engine.draw(request("stable-diffusion"), schedule)[0].stats.json()

    assert found["calls"] == 4
    assert found["steps"] == {"planned": 4, "run": 4, "skipped": 0, "cached": 0, "unguided": 0}
    assert Schedule.from_json(found["schedule"]) == schedule


def kin(kind: type, **others: Any) -> Any:
    """Another pipeline of the parts of Stable Diffusion."""
    made = kind(**stable_diffusion().components, requires_safety_checker=False, **others)
    made.set_progress_bar_config(disable=True)
    return made


def labelled() -> Any:
    """A pipeline that draws from the numbers of classes."""
    torch.manual_seed(9)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8
    )
    made = diffusers.DiTPipeline(transformer, stable_diffusion().vae, diffusers.DDIMScheduler())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: kin(diffusers.StableDiffusionImg2ImgPipeline), "StableDiffusionImg2ImgPipeline needs image, and"),
        (lambda: kin(diffusers.StableDiffusionInpaintPipeline), "needs image and mask_image, and"),
        (lambda: kin(diffusers.StableDiffusionInstructPix2PixPipeline), "needs image, and"),
        (labelled, "DiTPipeline needs class_labels, and"),
    ],
    ids=["img2img", "inpainting", "pix2pix", "labels"],
)
def test_what_needs_more_than_a_prompt_is_refused(make: Callable[[], Any], words: str) -> None:
    """With what is missing, and before its network runs; the pipeline is whole afterwards."""
    pipe = make()
    engine, before = Engine(pipe), own_state(pipe)
    asked = Request(("a cat",) if engine.adapter.prompted else (), (1,))

    with pytest.raises(UnsupportedModelError, match=f"{words} dynx draws from prompts alone"):
        engine.check(asked)
    assert own_state(pipe) == before


@pytest.mark.parametrize("name", ALL)
def test_what_needs_no_more_than_a_prompt_passes(name: str) -> None:
    """Every family that is drawn."""
    Engine(pipeline(name)).check(request(name))


def test_an_image_that_may_be_left_out_is() -> None:
    """A pipeline that edits pictures and draws without one: plain, with the reason, pixel for pixel its own."""
    pipe = diffusers.FluxKontextPipeline(**pipeline("flux").components)
    pipe.set_progress_bar_config(disable=True)
    pipe.default_sample_size = 8
    asked = request("flux", (3,), size=(16, 16), options={"max_area": 256, "_auto_resize": False})
    engine = Engine(pipe)

    engine.check(asked)
    drawn = engine.draw(asked, Schedule("euler", grid(Engine(pipeline("flux")), "flux", 6)))

    assert np.array_equal(pixels(drawn), directly("flux", asked, pipe, width=16, height=16))
    assert drawn[0].stats.notes == ("plain: it can start from an image, and dynx knows loops that start from noise",)
