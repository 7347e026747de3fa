"""Reference runs: what is kept is where the pipeline went, and grids planned from it beat even ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.pipelines import ADAPTIVE, consistency, exact, pipeline, request

from dynx.diffusion.engine import Engine
from dynx.diffusion.grid import plan
from dynx.diffusion.schedule import Schedule
from dynx.diffusion.trajectory import noise_floor, record
from dynx.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_recorded_way_is_the_way_that_was_gone(name: str) -> None:
    """Nodes follow from each other by the solver's own step, and the pictures are those of an unrecorded run."""
    engine = Engine(pipeline(name))
    asked = request(name)
    grid = engine.initial_call(asked).grid

    pictures, way = record(engine, asked, grid, "euler")

    assert way.latents.shape[:2] == (13, 2)
    assert way.clean.shape == (12, *way.latents.shape[1:])
    unclipped = name not in ("ddim", "ddpm")  # whose steps go to clipped pictures
    errors = way.errors("euler")
    straight = [errors[0, i, i + 1] for i in range(12)]
    if unclipped:
        assert max(straight) < 1e-3
    plain = engine.draw(asked, Schedule("euler", grid))
    for a, b in zip(pictures, plain, strict=True):
        assert a.pixels is not None
        assert b.pixels is not None
        assert np.array_equal(a.pixels, b.pixels)


@pytest.mark.parametrize("solver", ["euler", "dpm++2m"])
def test_a_planned_grid_ends_nearer_than_an_even_one(solver: str) -> None:
    """With as many steps, on seeds that the plan wasn't made from."""
    engine = Engine(pipeline("stable-diffusion"))
    asked = request("stable-diffusion", tuple(range(6)), steps=40)
    fine = engine.initial_call(asked).grid
    _, way = record(engine, asked, fine)
    plans = plan(way.errors(solver), 1.1, most=10)
    others = request("stable-diffusion", (20, 21, 22, 23), steps=40)
    reference, _ = record(engine, others, fine)

    def distance(nodes: tuple[int, ...]) -> float:
        drawn = engine.draw(others, Schedule(solver, fine.pick(nodes)))
        assert drawn[0].stats.calls == len(nodes) - 1
        pairs = [(p.pixels, r.pixels) for p, r in zip(drawn, reference, strict=True)]
        return float(np.mean([np.sqrt(np.mean((a - b) ** 2)) for a, b in pairs if a is not None and b is not None]))

    even = tuple(round(k * 40 / 6) for k in range(7))
    assert distance(plans.nodes_for(6)) < distance(even)


def test_ten_planned_calls_are_better_than_twenty_even_ones() -> None:
    """Fewer steps stay close to the full run of the perfect denoiser, on seeds of which the plan knows nothing.

    Planning for the solver's memory is better than planning for Euler.
    """
    engine = Engine(exact())
    plan_from, others = (request("ddim", tuple(seeds), steps=50) for seeds in (range(20), range(100, 130)))
    fine = engine.initial_call(plan_from).grid
    _, way = record(engine, plan_from, fine)
    full = engine.draw(others)

    def distances(solver: str, nodes: tuple[int, ...]) -> np.ndarray:
        drawn = engine.draw(others, Schedule(solver, fine.pick(nodes)))
        assert drawn[0].stats.calls == len(nodes) - 1
        pairs = [(p.pixels, r.pixels) for p, r in zip(drawn, full, strict=True)]
        return np.asarray([np.sqrt(np.mean((a - b) ** 2)) for a, b in pairs if a is not None and b is not None])

    even = distances("euler", tuple(round(k * 50 / 20) for k in range(21)))
    planned = distances("dpm++2m", plan(way.errors("dpm++2m"), 1.0, most=10).nodes_for(10))
    for_euler = distances("dpm++2m", plan(way.errors("euler"), 1.0, most=10).nodes_for(10))
    assert np.median(planned) < np.median(even) / 5
    assert planned.mean() < even.mean()
    assert np.median(planned) < np.median(for_euler)


def test_the_noise_floor_is_what_rounding_does() -> None:
    """The same pictures together and alone differ by rounding, and the floor says so."""
    engine = Engine(pipeline("stable-diffusion"))
    found = noise_floor(engine, request("stable-diffusion", (1, 2, 3)))

    assert found.n == 3
    assert found.worst > 0.999
    with pytest.raises(UsageError, match="two pictures at least"):
        noise_floor(engine, request("stable-diffusion", (1,)))


def test_few_step_models_have_no_trajectory() -> None:
    """There's nothing to plan for them."""
    engine = Engine(consistency())
    other = Engine(pipeline("stable-diffusion"))
    grid = other.initial_call(request("stable-diffusion")).grid
    with pytest.raises(UsageError, match="no trajectory: a few-step model"):
        record(engine, request("consistency", steps=4), grid)


def test_latents_that_are_not_numbers_are_refused() -> None:
    """A broken network doesn't make a plan."""
    from support.pipelines import stable_diffusion

    pipe = stable_diffusion()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(torch.nan)
    engine = Engine(pipe)
    asked = request("stable-diffusion", (1,))
    with pytest.raises(UsageError, match="aren't finite"):
        record(engine, asked, engine.initial_call(asked).grid)
