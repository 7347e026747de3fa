"""Plan the best grid for every number of steps, by dynamic programming over reference trajectories.

A reference run on a fine grid of nodes 0 … N gives for any step i → j of a solver its distance from the reference at j.
E[h,i,j] is that error with h the node before i, which a solver with a memory needs; E[i,i,j] is without one. The
best way from i to the end in k steps, having come from h:

    V[h,i,1] = E[h,i,N],    V[h,i,k] = min over j of E[h,i,j] + γ·V[i,j,k-1],

and the grid of K steps is read back from V[0,0,K]. γ > 1 makes later errors dearer, since earlier ones are partly healed. For
Euler's method, which forgets h, this is GITS (Chen et al. 2024, "On the trajectory regularity of ODE-based diffusion sampling").

Errors are measured on latents as the network takes them (α·x0 + σ·ε): an error made in the noise there neither grows nor
shrinks on its way while the picture isn't decided yet. All of it follows from the inner products of a trajectory's latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def step_errors(alphas: Array, sigmas: Array, latents: NDArray[Any], clean: NDArray[Any], *, order: int) -> Array:
    """Return E (N+1, N+1, N+1) of one trajectory: root mean square over the D numbers of its latents, inf where not h ≤ i < j.

    alphas, sigmas (N+1,), latents (N+1, D) at the nodes, clean (N, D) the pictures predicted there. Order 1 is Euler, 2 is
    DPM-Solver++(2M), whose step is Euler's with the picture extrapolated from that at h; a step to σ = 0 is Euler's always, and
    with order 1 every one. Raises InvalidInput on shapes that don't fit and numbers that aren't finite.
    """
    x, c = np.asarray(latents, dtype=np.float64), np.asarray(clean, dtype=np.float64)
    a, s = np.asarray(alphas, dtype=np.float64), np.asarray(sigmas, dtype=np.float64)
    n = len(x) - 1
    if x.ndim != 2 or n < 1 or c.shape != (n, x.shape[1]) or a.shape != (n + 1,) or s.shape != (n + 1,):
        raise InvalidInput(
            f"latents {x.shape}, pictures {c.shape} and levels {a.shape}, {s.shape} don't fit each other"
        )
    if not all(np.isfinite(v).all() for v in (x, c, a, s)) or (s[:-1] <= 0).any():
        raise InvalidInput("a trajectory has numbers that aren't finite, or ends before its end")
    if order not in (1, 2):
        raise InvalidInput(f"no errors are known of a solver of order {order}")
    xx, xc, cc = x @ x.T, x @ c.T, c @ c.T
    # Euler's step is x_i·keep + c_i·take: (N, N+1) for i, j.
    keep = s[None, :] / s[:n, None]
    take = a[None, :] - a[:n, None] * keep
    xx_i, xc_i, cc_i = np.diag(xx)[:n, None], np.diag(xc)[:, None], np.diag(cc)[:, None]
    squared = keep**2 * xx_i + take**2 * cc_i + np.diag(xx)[None, :]
    squared += 2 * (keep * take * xc_i - keep * xx[:n] - take * xc.T)
    errors = np.full((n + 1, n + 1, n + 1), math.inf)
    nodes = np.arange(n + 1)
    forward = nodes[:n, None] < nodes[None, :]  # i, j
    for h in range(n):
        total = squared
        if order == 2 and h < n - 1:
            bend = _extrapolation(a, s, h) * take  # how much of c_i - c_h is added
            along = keep * (xc_i - xc[:n, h : h + 1]) + take * (cc_i - cc[:, h : h + 1]) - (xc.T - xc[:, h][None, :])
            total = squared + 2 * bend * along + bend**2 * (cc_i - 2 * cc[:, h : h + 1] + cc[h, h])
        allowed = forward & (nodes[:n, None] >= h)
        errors[h, :n][allowed] = np.sqrt(np.maximum(total[allowed], 0) / x.shape[1])
    return errors


def _extrapolation(alphas: Array, sigmas: Array, h: int) -> Array:
    """Return (N, N+1): the share of c_i - c_h that a step i → j of DPM-Solver++(2M) adds to c_i; 0 without a past or to σ = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.log(alphas) - np.log(sigmas)  # half the log signal-to-noise ratio
        share = (depth[None, :] - depth[:-1, None]) / (depth[:-1, None] - depth[h]) / 2
    share[~np.isfinite(share)] = 0
    share[: h + 1] = 0
    return np.asarray(share)


def mean_errors(errors: Iterable[Array]) -> Array:
    """Return the mean errors of several trajectories over the same grid. Raises InvalidInput if there are none."""
    total, count = None, 0
    for each in errors:
        total = each.copy() if total is None else total + each
        count += 1
    if total is None:
        raise InvalidInput("no trajectories to plan from")
    return np.asarray(total / count)


@dataclass(frozen=True)
class Plans:
    """Hold the best nodes for 1, 2 … steps, each from node 0 to node N, and their minimal costs."""

    gamma: float
    nodes: tuple[tuple[int, ...], ...]
    costs: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.nodes)

    def nodes_for(self, steps: int) -> tuple[int, ...]:
        """Return the nodes of the grid of `steps` steps. Raises InvalidInput for a number that wasn't planned."""
        if not 1 <= index(steps) <= len(self.nodes):
            raise InvalidInput(f"{steps} steps aren't planned; 1 to {len(self.nodes)} are")
        return self.nodes[steps - 1]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form for a profile."""
        return {"gamma": self.gamma, "nodes": [list(row) for row in self.nodes], "costs": list(self.costs)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plans:
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError on anything else."""
        nodes = tuple(tuple(int(i) for i in row) for row in data["nodes"])
        costs = tuple(float(c) for c in data["costs"])
        good = all(
            len(row) == k + 2 and row[0] == 0 and row[-1] == nodes[0][-1] and list(row) == sorted(set(row))
            for k, row in enumerate(nodes)
        )
        if not nodes or len(nodes) != len(costs) or not good:
            raise ValueError("its grids don't fit each other")
        return cls(float(data["gamma"]), nodes, costs)


def plan(errors: Array, gamma: float, most: int | None = None) -> Plans:
    """Plan the best grids of 1 … `most` steps (N by default) from errors (N+1, N+1, N+1), inf for steps that don't exist.

    Raises InvalidInput on an array of another shape, NaN, or γ ≤ 0.
    """
    n = np.asarray(errors).shape[0] - 1
    table = _table(errors, gamma, n if most is None else min(index(most), n))
    nodes = tuple(_read_back(table, k, 0, 0) for k in range(1, len(table) + 1))
    return Plans(float(gamma), nodes, tuple(float(value[0, 0]) for value, _ in table))


def _table(errors: Array, gamma: float, steps: int) -> list[tuple[Array, NDArray[np.int64]]]:
    """Return V and the best next node by (h, i) for 1 … `steps` steps to the end."""
    errors = np.asarray(errors, dtype=np.float64)
    n = errors.shape[0] - 1
    if errors.shape != (n + 1,) * 3 or n < 1 or np.isnan(errors).any() or not gamma > 0:
        raise InvalidInput(f"no grids can be planned from errors of shape {errors.shape} with γ = {gamma:g}")
    value = errors[:, :, n].copy()  # h, i
    table = [(value, np.full((n + 1, n + 1), n))]
    for _ in range(1, steps):
        later = errors + gamma * value[None, :, :]  # h, i, j
        choice = later.argmin(axis=2)
        value = np.take_along_axis(later, choice[:, :, None], axis=2)[:, :, 0]
        table.append((value, choice))
    return table


def _read_back(table: Sequence[tuple[Array, NDArray[np.int64]]], steps: int, before: int, here: int) -> tuple[int, ...]:
    """Return the nodes of `steps` steps from `here`, itself included; `before` is the node before it."""
    path = [here]
    for k in range(steps - 1, -1, -1):
        before, here = here, int(table[k][1][before, here])
        path.append(here)
    return tuple(path)


def continuations(errors: Array, gamma: float, path: Sequence[int], most: int) -> dict[int, tuple[int, ...]]:
    """Plan the best grids that begin with the nodes of `path`, for every total number of steps from its length to `most`.

    Where a run may still decide how many steps it takes, all its grids share their beginning. Errors as in `plan`; raises
    InvalidInput on them, and on a path that doesn't rise from 0 or leaves no step.
    """
    n = np.asarray(errors).shape[0] - 1
    if not path or path[0] != 0 or list(path) != sorted(set(path)) or path[-1] >= n:
        raise InvalidInput(f"no grid of {n} nodes goes on from {tuple(path)}")
    before, here, done = (path[-2] if len(path) > 1 else 0), path[-1], len(path) - 1
    table = _table(errors, gamma, min(index(most) - done, n - here))
    return {
        done + k + 1: (*path, *_read_back(table, k + 1, before, here)[1:])
        for k, (value, _) in enumerate(table)
        if np.isfinite(value[before, here])
    }
