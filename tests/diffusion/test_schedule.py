"""Noise levels, grids and schedules as numbers; when a step is skipped."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynx.diffusion.schedule import Grid, Noise, Schedule
from dynx.diffusion.skipping import Skipping
from dynx.errors import UsageError

LEVELS = Noise(np.geomspace(0.03, 14.0, 1000))
FLOW = Noise(None)
GRID = LEVELS.grid((999.0, 700.0, 300.5, 40.0))


@pytest.mark.parametrize("noise", [LEVELS, FLOW], ids=["noise", "flow"])
@given(st.floats(1.0, 999.0))
def test_levels_are_shares_of_picture_and_noise(noise: Noise, timestep: float) -> None:
    """α² + σ² = 1 where noise is predicted, α + σ = 1 in flow matching."""
    alpha, sigma = noise.parts(float(noise.sigmas([timestep])[0]))

    assert (alpha + sigma if noise.flow else alpha**2 + sigma**2) == pytest.approx(1)
    assert noise.parts(0.0) == (1.0, 0.0)
    assert noise.arc(0.0) == 0.0


@given(st.sets(st.floats(0.5, 999.0), min_size=1, max_size=30), st.floats(0.5, 2.0))
def test_grids_survive_json(timesteps: set[float], scale: float) -> None:
    """Every number comes back as it was."""
    grid = FLOW.grid(sorted(timesteps, reverse=True), scale=scale)

    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule("euler", GRID),
        Schedule("dpm++2m", GRID, skip=0.013, warmup=2, longest_skip=3, guided_steps=4, finish_after_steps=3),
        Schedule("dpm++3m", GRID, skip=math.inf),
    ],
)
def test_schedules_survive_json(schedule: Schedule) -> None:
    """An infinite δ too, which JSON doesn't know."""
    text = json.dumps(schedule.to_json(), allow_nan=False)

    assert Schedule.from_json(json.loads(text)) == schedule


@pytest.mark.parametrize(
    ("timesteps", "sigmas"),
    [
        ((), (0.0,)),
        ((5.0, 5.0), (2.0, 1.0, 0.0)),
        ((5.0, 9.0), (2.0, 1.0, 0.0)),
        ((9.0, 5.0), (2.0, 1.0)),
        ((9.0, 5.0), (2.0, 1.0, 1.0)),
        ((9.0, 5.0), (2.0, 1.0, -0.1)),
        ((9.0, 5.0), (math.inf, 1.0, 0.0)),
        ((9.0, math.nan), (2.0, 1.0, 0.0)),
    ],
)
def test_levels_that_do_not_fall_are_refused(timesteps: tuple[float, ...], sigmas: tuple[float, ...]) -> None:
    """A grid goes from noise to picture, strictly, with one sigma more than timesteps."""
    with pytest.raises(UsageError, match="not a grid"):
        Grid(timesteps, sigmas)


@pytest.mark.parametrize(
    "wrong",
    [
        {"solver": "heun"},
        {"skip": -0.1},
        {"skip": math.nan},
        {"warmup": 0},
        {"longest_skip": 0},
        {"guided_steps": 0},
        {"finish_after_steps": 0},
        {"grid": GRID.pick((0, 1, 2))},
    ],
)
def test_schedules_that_can_not_be_run_are_refused(wrong: dict[str, Any]) -> None:
    """In a line."""
    with pytest.raises(UsageError):
        Schedule(**{"solver": "euler", "grid": GRID, **wrong})


def test_parts_of_a_grid() -> None:
    """Some of its nodes, or so many evenly, with the first level and the end kept."""
    assert GRID.pick((0, 2, 4)).timesteps == (999.0, 300.5)
    assert GRID.pick((0, 2, 4)).sigmas == (GRID.sigmas[0], GRID.sigmas[2], 0.0)
    assert GRID.thinned(4) == GRID
    assert GRID.thinned(2) == GRID.pick((0, 2, 4))
    with pytest.raises(UsageError, match="can't be taken"):
        GRID.thinned(5)


def skipping(noise: Noise = FLOW, **others: Any) -> Skipping:
    """Of a schedule with these thresholds."""
    return Skipping(Schedule("euler", GRID, **{"skip": 0.01, **others}), noise)


def drive(rule: Skipping, levels: list[float], at: Any) -> list[bool]:
    """The rule's word after every step between the levels; `at` (σ) is the latents there."""
    said = []
    for k in range(len(levels) - 1):
        rule.note(at(levels[k]), at(levels[k + 1]), levels[k], levels[k + 1])
        said.append(rule.next_is_skipped(last=False))
    return said


def test_straight_trajectories_are_skipped_on_uneven_grids() -> None:
    """Steps of unlike length aren't bends: speed is measured along the way."""
    levels = [1.0, 0.9, 0.85, 0.6, 0.55, 0.3, 0.25, 0.2, 0.1, 0.05]
    start, noise = torch.ones(1, 3), torch.full((1, 3), -2.0)

    said = drive(skipping(), levels, lambda s: (1 - s) * start + s * noise)

    assert said == [False] * 3 + [True] * 4 + [False] + [True]


def test_bends_are_computed() -> None:
    """Where the speed changes unevenly by more than δ of itself."""
    levels = [1 - k / 10 for k in range(10)]
    said = drive(skipping(), levels, lambda s: torch.full((1, 3), math.sin(20 * s)))

    assert not any(said)


def test_a_batch_is_skipped_only_as_a_whole() -> None:
    """One picture that bends keeps the others waiting."""
    levels = [1 - k / 10 for k in range(10)]
    both = drive(skipping(), levels, lambda s: torch.tensor([[s], [math.sin(20 * s)]]))
    straight = drive(skipping(), levels, lambda s: torch.tensor([[s], [2 * s]]))

    assert not any(both)
    assert any(straight)


def test_the_last_step_is_never_skipped() -> None:
    """It decides the picture."""
    rule = skipping(skip=math.inf, warmup=1)
    levels = [0.9, 0.8, 0.7, 0.6]
    for before, after in pairwise(levels):
        rule.note(torch.tensor([[before]]), torch.tensor([[after]]), before, after)

    assert not rule.next_is_skipped(last=True)
    assert rule.next_is_skipped(last=False)
