"""Planning grids: the errors are those of real solver steps, and no other grid is better than the one planned."""

from __future__ import annotations

import json
import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynx.diffusion.grid import Plans, continuations, mean_errors, plan, step_errors
from dynx.diffusion.schedule import Noise
from dynx.errors import UsageError

NOISE = Noise(np.linspace(0.02, 14.0, 1000) ** 1.0)


def trajectory(nodes: int = 8, numbers: int = 12, *, seed: int = 0, flow: bool = False) -> tuple[np.ndarray, ...]:
    """α and σ (N+1,), latents (N+1, D), predicted pictures (N, D) of a made-up run."""
    rng = np.random.default_rng(seed)
    sigmas = np.linspace(1.0 if flow else 14.0, 0.0, nodes + 1) ** (1 if flow else 2) / (1 if flow else 14.0)
    parts = np.asarray([(Noise(None) if flow else NOISE).parts(s) for s in sigmas])
    latents, clean = rng.standard_normal((nodes + 1, numbers)), rng.standard_normal((nodes, numbers))
    return parts[:, 0], parts[:, 1], latents, clean


def random_errors(n: int, seed: int) -> np.ndarray:
    """E (N+1, N+1, N+1) of a solver with a memory."""
    made = np.random.default_rng(seed).uniform(0.1, 1.0, (n + 1,) * 3)
    h, i, j = np.indices(made.shape)
    return np.where((h <= i) & (i < j), made, math.inf)


def cost(errors: np.ndarray, nodes: tuple[int, ...], gamma: float) -> float:
    """Of a grid, added up step by step."""
    before, total = 0, 0.0
    for k, (i, j) in enumerate(pairwise(nodes)):
        total += gamma**k * errors[before, i, j]
        before = i
    return float(total)


@given(st.integers(2, 7), st.integers(0, 10_000), st.sampled_from([0.8, 1.0, 1.15]))
def test_no_grid_is_better_than_the_planned_one(n: int, seed: int, gamma: float) -> None:
    """For every number of steps the plan is the best of all grids, found by trying them."""
    errors = random_errors(n, seed)
    plans = plan(errors, gamma)

    for steps in range(1, n + 1):
        grids = [(0, *inner, n) for inner in combinations(range(1, n), steps - 1)]
        best = min(cost(errors, nodes, gamma) for nodes in grids)
        assert plans.costs[steps - 1] == pytest.approx(best)
        assert cost(errors, plans.nodes_for(steps), gamma) == pytest.approx(best)
        assert len(plans.nodes_for(steps)) == steps + 1


@pytest.mark.parametrize("flow", [False, True], ids=["noise", "flow"])
def test_errors_are_those_of_eulers_step(flow: bool) -> None:
    """E is the distance that one explicit step ends from the reference, whatever came before."""
    alphas, sigmas, latents, clean = trajectory(flow=flow)
    errors = step_errors(alphas, sigmas, latents, clean, order=1)

    for i, j in combinations(range(9), 2):
        noise = (latents[i] - alphas[i] * clean[i]) / sigmas[i]
        reached = alphas[j] * clean[i] + sigmas[j] * noise
        expected = np.sqrt(np.mean((reached - latents[j]) ** 2))
        assert errors[: i + 1, i, j] == pytest.approx(np.full(i + 1, expected))
    assert np.isinf(errors[3, 2, 5])
    assert np.isinf(errors[0, 5, 5])


@pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")
@pytest.mark.parametrize("flow", [False, True], ids=["noise", "flow"])
def test_errors_are_those_of_the_solver_that_will_run(flow: bool) -> None:
    """E of order 2 is where DPM-Solver++(2M) itself ends, with the node before as its memory."""
    from dynx.diffusion.solver import Solver

    alphas, sigmas, latents, clean = trajectory(flow=flow)
    errors = step_errors(alphas, sigmas, latents, clean, order=2)
    levels = sigmas / alphas if not flow else sigmas

    for h, i, j in ((1, 2, 3), (1, 4, 5), (2, 3, 7), (0, 3, 4), (3, 6, 8)):
        solver = Solver(solver_order=2, prediction_type="sample", use_flow_sigmas=flow)
        solver.sigmas = torch.tensor(levels[[h, i, j]], dtype=torch.float64)
        solver.timesteps = torch.arange(3 if j < 8 else 2)
        solver.num_inference_steps = 3
        solver.model_outputs, solver.lower_order_nums, solver._step_index = [None, torch.tensor(clean[h])], 1, 1
        sample = torch.tensor(latents[i])[None]
        solver.model_outputs[1] = solver.model_outputs[1][None]
        reached = solver.step(torch.tensor(clean[i])[None], 0, sample, return_dict=False)[0][0].numpy()
        assert errors[h, i, j] == pytest.approx(np.sqrt(np.mean((reached - latents[j]) ** 2)), rel=1e-4)


def test_a_straight_trajectory_costs_nothing() -> None:
    """Where picture and noise stay, one step is as good as many."""
    rng = np.random.default_rng(1)
    alphas, sigmas, *_ = trajectory()
    picture, noise = rng.standard_normal((2, 12))
    latents = alphas[:, None] * picture + sigmas[:, None] * noise

    for order in (1, 2):
        errors = step_errors(alphas, sigmas, latents, np.tile(picture, (8, 1)), order=order)
        assert errors[np.isfinite(errors)].max() < 1e-6


def test_steps_go_where_the_trajectory_bends() -> None:
    """Of a run that is straight but for three nodes, the few steps are spent there."""
    rng = np.random.default_rng(2)
    alphas, sigmas, *_ = trajectory(nodes=16)
    noise, first, last = rng.standard_normal((3, 12))
    clean = np.asarray([first if k < 9 else (first + (last - first) * min(1, (k - 8) / 3)) for k in range(16)])
    latents = [alphas[0] * clean[0] + sigmas[0] * noise]
    for k in range(16):
        direction = (latents[k] - alphas[k] * clean[k]) / sigmas[k]
        latents.append(alphas[k + 1] * clean[k] + sigmas[k + 1] * direction)

    plans = plan(step_errors(alphas, sigmas, np.asarray(latents), clean, order=1), 1.0)

    assert set(plans.nodes_for(4)[1:-1]) == {9, 10, 11}


@given(st.integers(3, 7), st.integers(0, 10_000), st.sampled_from([0.8, 1.15]), st.data())
def test_no_grid_goes_on_better_than_the_continuation(n: int, seed: int, gamma: float, data: st.DataObject) -> None:
    """Of all grids with the same beginning the best one is found, for every number of steps that there can be."""
    errors = random_errors(n, seed)
    inner = data.draw(st.lists(st.integers(1, n - 1), unique=True, max_size=min(3, n - 2)).map(sorted))
    path = (0, *inner)
    found = continuations(errors, gamma, path, n)

    assert sorted(found) == list(range(len(path), len(path) + n - path[-1]))
    for steps, nodes in found.items():
        others = combinations(range(path[-1] + 1, n), steps - len(path))
        best = min(cost(errors, (*path, *more, n), gamma) for more in others)
        assert nodes[: len(path)] == path
        assert (len(nodes), nodes[-1]) == (steps + 1, n)
        assert cost(errors, nodes, gamma) == pytest.approx(best)


def test_continuations_of_nothing_are_plans() -> None:
    """From node 0 alone they are the best grids; paths that don't rise from 0, or end at the end, go nowhere."""
    errors = random_errors(6, 4)

    assert list(continuations(errors, 1.1, [0], 6).values()) == list(plan(errors, 1.1).nodes)
    assert list(continuations(errors, 1.1, [0, 2], 3)) == [2, 3]
    for path in ([], [1], [0, 3, 2], [0, 2, 2], [0, 6]):
        with pytest.raises(UsageError, match="no grid of 6 nodes goes on"):
            continuations(errors, 1.1, path, 6)


def test_means_and_their_limits() -> None:
    """Errors of several trajectories are averaged; of none there's no mean."""
    a, b = random_errors(4, 1), random_errors(4, 2)
    mean = mean_errors(iter([a, b]))

    assert mean[0, 1, 3] == pytest.approx((a[0, 1, 3] + b[0, 1, 3]) / 2)
    assert np.isinf(mean[0, 3, 1])
    with pytest.raises(UsageError, match="no trajectories"):
        mean_errors([])


def test_plans_survive_json() -> None:
    """What a profile keeps is what was planned."""
    plans = plan(random_errors(6, 3), 1.1, most=4)

    assert Plans.from_json(json.loads(json.dumps(plans.to_json()))) == plans
    assert len(plans) == 4


@pytest.mark.parametrize(
    "damage",
    [
        {"nodes": []},
        {"nodes": [[0, 3], [0, 2, 4]]},
        {"nodes": [[0, 4], [0, 5, 4]]},
        {"nodes": [[0, 4], [1, 2, 4]]},
        {"costs": [1.0]},
    ],
)
def test_plans_that_do_not_fit_are_refused(damage: dict[str, object]) -> None:
    """A damaged profile is noticed."""
    whole = {"gamma": 1.0, "nodes": [[0, 4], [0, 2, 4]], "costs": [2.0, 1.0]}
    Plans.from_json(whole)
    with pytest.raises(ValueError, match="don't fit"):
        Plans.from_json({**whole, **damage})


def test_bad_input_is_refused() -> None:
    """Shapes that don't fit, numbers that aren't, γ of nothing, solvers that aren't known."""
    alphas, sigmas, latents, clean = trajectory()
    with pytest.raises(UsageError, match="don't fit each other"):
        step_errors(alphas, sigmas, latents[:-1], clean, order=1)
    with pytest.raises(UsageError, match="aren't finite"):
        step_errors(alphas, sigmas, latents * np.nan, clean, order=1)
    with pytest.raises(UsageError, match="of order 4"):
        step_errors(alphas, sigmas, latents, clean, order=4)
    with pytest.raises(UsageError, match="no grids can be planned"):
        plan(random_errors(4, 1), 0.0)
    with pytest.raises(UsageError, match="no grids can be planned"):
        plan(random_errors(4, 1)[:3], 1.0)
    with pytest.raises(UsageError, match="aren't planned"):
        plan(random_errors(4, 1), 1.0).nodes_for(5)
