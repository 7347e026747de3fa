"""Exit heads for a frozen classifier, fitted to its own answers.

Heads depend on pooled features and logits only, not on models, texts or thresholds. Fitting takes no labels: the target is the
full model's logits. `ExitHeads` gives each exit a linear head, started in closed form (ridge regression, its penalty chosen by
leave-one-out error) and then distilled for a few steps with the previous exit's logits as a further input, as in Zero Time
Waste (Wołczyk et al. 2021).

A head overfits its training rows, the more so with more features than rows, and an exit fitted to the previous exit's answers
on those rows would rely on them too much. Distillation therefore takes the ridge's leave-one-out answers, which cost nothing
beyond the fit itself.

Letters: R rows, F features of an exit (they differ between exits), C outputs, K exits, n rows to fit on.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynx.early_exit.agreement import Problem, problem_from_array
from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Arrays: TypeAlias = dict[str, NDArray[np.float32]]

__all__ = ["ExitHeads"]


RIDGE_PENALTIES = tuple(10.0**e for e in range(-3, 5))
"""Ridge penalties tried, in units of the mean eigenvalue of the normalised features' covariance."""

MAX_COMPONENTS = 64
"""Most principal directions in which distillation may change a head; also at most one for ten rows."""

DISTILLATION_TEMPERATURE = 2.0
"""Softmax temperature of the distillation (Hinton et al. 2015), so that the ranking of wrong classes counts too."""

HARD_LABEL_WEIGHT = 0.3
"""Weight of the cross-entropy with the full model's own label, beside the softened divergence."""

HELD_OUT_SHARE = 0.2
"""Share of rows held out to stop the distillation early."""

MAX_STEPS, PATIENCE_STEPS, LEARNING_RATE = 150, 15, 0.02
"""Adam on all rows at once; it ends when the loss of held-out rows hasn't improved for `PATIENCE_STEPS` steps."""

MIN_FIT_ROWS = 20
"""Fewest rows that heads are fitted to."""


class ExitHeads:
    """A linear head per exit: logits = (x - mean)/std · W + v ∘ previous + b."""

    def __init__(self, problem: Problem, heads: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
        if problem not in get_args(Problem) or not heads:
            raise InvalidInput(f"{len(heads)} heads for a problem of kind {problem!r}")
        self.problem: Problem = problem
        self._heads = list(heads)  # shift (F,), weight (F, C) with 1/std in it, mix (C,), bias (C,); float32

    def __len__(self) -> int:
        return len(self._heads)

    def to(self, device: torch.device | str) -> ExitHeads:
        """Return the same heads on another device."""
        return ExitHeads(
            self.problem, [(a.to(device), w.to(device), v.to(device), b.to(device)) for a, w, v, b in self._heads]
        )

    def logits(self, k: int, pooled: Tensor, previous: Tensor | None = None) -> Tensor:
        """Return logits (R, C) of exit k from pooled features (R, F_k) and the logits (R, C) of exit k-1 for the same rows.

        Features (R, T, F_k) of tokens give logits (R, T, C).

        `previous` is None at exit 0 only, so heads whose threshold is infinite run too; they cost F·C each.
        Raises InvalidInput on shapes that don't fit.
        """
        shift, weight, mix, bias = self._heads[k]
        if pooled.ndim == 3:
            before = None if previous is None else previous.flatten(0, 1)
            return self.logits(k, pooled.flatten(0, 1), before).view(*pooled.shape[:2], -1)
        if pooled.ndim != 2 or pooled.shape[1] != len(shift):
            raise InvalidInput(f"exit {k} has {len(shift)} features, not {tuple(pooled.shape[1:])}")
        if (previous is None) != (k == 0) or (previous is not None and previous.shape != (len(pooled), len(bias))):
            raise InvalidInput(f"exit {k} needs {'no logits' if k == 0 else 'the logits of the exit'} before it")
        out = torch.addmm(bias, pooled.float() - shift, weight)
        return out if previous is None else out + mix * previous

    def as_arrays(self) -> list[ArrayHead]:
        """Return each exit's head as a function of arrays, for engines that don't compute with tensors."""
        return [ArrayHead(*(part.cpu().numpy() for part in head)) for head in self._heads]

    def run(self, pooled: Sequence[Tensor]) -> list[Tensor]:
        """Return the logits of every exit for rows that ran all layers."""
        out: list[Tensor] = []
        for k, x in enumerate(pooled):
            out.append(self.logits(k, x, out[-1] if out else None))
        return out

    def to_arrays(self) -> Arrays:
        """Return arrays for a safetensors file; `from_arrays` restores the same heads to the last bit."""
        out: Arrays = {"problem": np.asarray([get_args(Problem).index(self.problem)], dtype=np.float32)}
        for k, head in enumerate(self._heads):
            for name, value in zip(("shift", "weight", "mix", "bias"), head, strict=True):
                out[f"{k}.{name}"] = value.detach().cpu().numpy().astype(np.float32, copy=True)
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float32]]) -> ExitHeads:
        """Restore what `to_arrays` wrote. Raises KeyError or ValueError on anything else."""
        problem = problem_from_array(arrays["problem"])
        heads = []
        for k in range(sum(name.endswith(".shift") for name in arrays)):
            shift, weight, mix, bias = (_tensor(arrays[f"{k}.{name}"]) for name in ("shift", "weight", "mix", "bias"))
            if weight.ndim != 2 or weight.shape != (*shift.shape, *bias.shape) or mix.shape != bias.shape:
                raise ValueError(f"the arrays of head {k} don't fit each other")
            heads.append((shift, weight, mix, bias))
        if not heads:
            raise ValueError("there are no heads")
        return cls(problem, heads)

    @classmethod
    def fit(cls, pooled: Sequence[Tensor], full: Tensor, problem: Problem, *, seed: int = 0) -> ExitHeads:
        """Fit all exits' heads.

        pooled: K float tensors (n, F_k), the same rows in each, in order of depth; full: (n, C), the full model's logits (for a
        regression its numbers). Deterministic for a seed on one machine. About 1.5 s per exit for 2,000 rows of 1,536
        features. Raises InvalidInput on shapes that don't fit, fewer than 20 rows, or values that aren't finite.
        """
        # The features may come from a pass without gradients.
        with _one_thread(), torch.inference_mode(False), torch.enable_grad():
            return cls(problem, _fit(pooled, _checked_target(pooled, full), problem, seed))


@dataclass(frozen=True)
class ArrayHead:
    """One exit's head on arrays: shift (F,), weight (F, C), mix and bias (C,), all float32."""

    shift: NDArray[np.float32]
    weight: NDArray[np.float32]
    mix: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __call__(self, pooled: NDArray[np.float32], previous: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return logits (R, C) as `ExitHeads.logits` does."""
        out: Any = (pooled - self.shift) @ self.weight + self.bias
        out = out if previous is None else out + self.mix * previous
        return np.asarray(out, np.float32)


def _fit(
    pooled: Sequence[Tensor], target: Tensor, problem: Problem, seed: int
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    n = len(target)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    held_out, rest = order[: max(1, round(n * HELD_OUT_SHARE))], order[max(1, round(n * HELD_OUT_SHARE)) :]
    heads: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    previous: Tensor | None = None
    for x in pooled:
        x64 = x.detach().cpu().double()
        mean, std = x64.mean(0), x64.std(0, correction=0)
        z = (x64 - mean) / (std + 1e-6 * (1 + mean.abs()))
        ridge = _Ridge(z, target)
        correction, scale, mix, bias, out = _distil(ridge, previous, target, problem, rest, held_out)
        weight = ridge.weight * scale + ridge.basis @ correction
        weight = weight / (std + 1e-6 * (1 + mean.abs()))[:, None]
        bias = ridge.bias * scale + bias
        heads.append((mean.float(), weight.float(), mix.float(), bias.float()))
        previous = out
    return heads


class _Ridge:
    """A ridge regression z·W + b ≈ target whose penalty minimises the leave-one-out error.

    That error takes only the diagonal of the hat matrix (Allen 1974, PRESS); the mean is one more parameter.
    """

    def __init__(self, z: Tensor, target: Tensor) -> None:
        left, values, right, unit = _svd(z)
        self.bias = target.mean(0)
        inner, leverage, best = left.T @ (target - self.bias), left.square(), math.inf
        for penalty in RIDGE_PENALTIES:
            shrunk = values**2 / (values**2 + penalty * unit)
            fitted = left @ (shrunk[:, None] * inner)
            hat = (leverage @ shrunk + 1 / len(z)).clamp(max=0.999)
            off = (target - self.bias - fitted) / (1 - hat)[:, None]
            error = float(off.square().mean())
            if error < best:
                best = error
                self.left_out = target - off  # (n, C)
                self.weight = right @ ((shrunk / values)[:, None] * inner)  # (F, C)
        r = max(1, min(MAX_COMPONENTS, len(z) // 10, len(values)))
        self.basis = right[:, :r] * (math.sqrt(len(z)) / values[:r])  # (F, r): components of variance 1
        self.components = z @ self.basis


def _svd(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return U (n, r), s (r,), V (F, r) without constant directions, and the mean of s², by the smaller Gram matrix."""
    wide = z.shape[1] > z.shape[0]
    squares, vectors = torch.linalg.eigh(z @ z.T if wide else z.T @ z)
    squares, vectors = squares.flip(0), vectors.flip(1)
    keep = squares > squares[0].clamp(min=1e-12) * 1e-10
    values, vectors = squares[keep].sqrt(), vectors[:, keep]
    if not len(values):  # constant features: one direction of no effect
        zero = torch.zeros(z.shape[0], 1, dtype=z.dtype), torch.zeros(z.shape[1], 1, dtype=z.dtype)
        return zero[0], torch.ones(1, dtype=z.dtype), zero[1], torch.ones((), dtype=z.dtype)
    unit = values.square().mean()
    if wide:
        return vectors, values, z.T @ vectors / values, unit
    return z @ vectors / values, values, vectors, unit


def _distil(
    ridge: _Ridge, previous: Tensor | None, target: Tensor, problem: Problem, rest: Tensor, held_out: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Fit a correction of the ridge's leave-one-out answers.

    Returned are the correction (r, C), scale, mix and bias (C,), and the corrected answers (n, C).
    """
    c = target.shape[1]
    x = ridge.components
    before = torch.zeros_like(target) if previous is None else previous
    start = [torch.zeros(x.shape[1], c), torch.ones(c), torch.zeros(c), torch.zeros(c)]
    weights = [w.double().requires_grad_() for w in start]
    spread = target.std(0, correction=0).clamp(min=1e-6)

    def answers() -> Tensor:
        correction, scale, mix, bias = weights
        out = ridge.left_out * scale + x @ correction + bias
        return out if previous is None else out + before * mix

    optimiser = torch.optim.Adam(weights, lr=LEARNING_RATE)
    best, kept, since = math.inf, [w.detach().clone() for w in weights], 0
    for _ in range(MAX_STEPS):
        out = answers()
        with torch.no_grad():
            held = float(_loss(out[held_out], target[held_out], problem, spread))
        if held < best - 1e-6:
            best, kept, since = held, [w.detach().clone() for w in weights], 0
        elif since >= PATIENCE_STEPS:
            break
        else:
            since += 1
        optimiser.zero_grad()
        loss = _loss(out[rest], target[rest], problem, spread) + 1e-3 * weights[0].square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    weights = kept
    correction, scale, mix, bias = kept
    return correction, scale, mix, bias, answers().detach()


def _loss(out: Tensor, target: Tensor, problem: Problem, spread: Tensor) -> Tensor:
    t = DISTILLATION_TEMPERATURE
    if problem == "single":
        soft = F.kl_div((out / t).log_softmax(-1), (target / t).log_softmax(-1), log_target=True, reduction="batchmean")
        return t * t * soft + HARD_LABEL_WEIGHT * F.cross_entropy(out, target.argmax(-1))
    if problem == "multi":
        soft = F.binary_cross_entropy_with_logits(out / t, torch.sigmoid(target / t))
        return t * t * soft + HARD_LABEL_WEIGHT * F.binary_cross_entropy_with_logits(out, (target > 0).to(out.dtype))
    return ((out - target) / spread).square().mean()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread: synchronising threads over thousands of small operations made a busy machine 100 times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _checked_target(pooled: Sequence[Tensor], full: Tensor) -> Tensor:
    if not pooled or full.ndim != 2 or any(x.ndim != 2 or len(x) != len(full) for x in pooled):
        raise InvalidInput("the features of the exits and the full model's logits don't have the same rows")
    if len(full) < MIN_FIT_ROWS:
        raise InvalidInput(
            f"{len(full)} rows are too few to fit exits on", hint=f"{MIN_FIT_ROWS} are the fewest, 1,000 are good"
        )
    if not all(bool(x.isfinite().all()) for x in (*pooled, full)):
        raise InvalidInput("a feature or a logit is not finite")
    return full.detach().cpu().double().clone()


def _tensor(array: NDArray[np.float32]) -> Tensor:
    value = np.asarray(array)
    if value.dtype != np.float32 or not np.isfinite(value).all():
        raise ValueError("an array of the heads is not of finite float32")
    return torch.from_numpy(value.copy())
