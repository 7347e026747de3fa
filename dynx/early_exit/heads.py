"""Exit heads for a frozen classifier, from its own answers, and a score of how far each can be trusted.

It knows pooled features and logits, and nothing of models, texts or thresholds. No labels: the full model's logits are the
target. `ExitHeads` gives each exit a linear head, started in closed form (ridge regression, the penalty chosen by leaving
rows out) and then distilled for a few steps with the previous exit's logits as a further input, as in Zero Time Waste (Wołczyk
et al. 2021). `AgreementScore` turns an exit's logits into P(same answer as the full model).

A head sees its own training rows too well, the more so with more features than rows, and an exit that learned from the
previous one's answers on those rows would trust it blindly. So distillation sees the ridge's leave-one-out answers, which
cost nothing beyond the fit itself.

Letters: R rows, F features of an exit (they differ between exits), C outputs, K exits, n rows to fit on.
"""

from __future__ import annotations

import math
import operator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Arrays: TypeAlias = dict[str, NDArray[np.float32]]

__all__ = ["AgreementScore", "ExitHeads", "Problem", "agrees"]

Problem: TypeAlias = Literal["single", "multi", "regression"]
"""One label of C (softmax), any of C (sigmoid, at 0.5), or C numbers."""

RIDGE_PENALTIES = tuple(10.0**e for e in range(-3, 5))
"""Ridge penalties tried, in units of the mean eigenvalue of the normalised features' covariance."""

MAX_COMPONENTS = 64
"""Directions of the features that distillation may bend the head in; also at most one for ten rows."""

DISTILLATION_TEMPERATURE = 2.0
"""Of the distillation (Hinton et al. 2015): softened, the wrong classes' ranking is heard too."""

HARD_LABEL_WEIGHT = 0.3
"""Weight of the cross-entropy with the full model's own label, beside the softened divergence."""

HELD_OUT_SHARE = 0.2
"""Share of rows that stop the distillation."""

MAX_STEPS, PATIENCE_STEPS, LEARNING_RATE = 150, 15, 0.02
"""Of Adam on all rows at once; it ends when the rows held back haven't improved for `PATIENCE_STEPS` steps."""

MIN_FIT_ROWS = 20
"""Less fits nothing."""

MIN_CASES = 10
"""Disagreements, and agreements, that a regression with five weights needs; below that the margin must do."""

LOG_FLOOR = 1e-300
"""Added to what is put into a logarithm: a class may have no rival at all."""

MAX_SCALAR_LOGITS = 16
"""Logits that are scored row by row."""

NEAR_TIE_LOGITS = 1e-3
"""Logits closer than this may change places with the batch's padding or the kernel: such a row never leaves early."""


def agrees(logits: Tensor, full: Tensor, problem: Problem, tolerance: float = 0.0) -> Tensor:
    """Whether the answers are the same: (R,) bool from logits and the full model's, both (R, C).

    single: the same top label; multi: the same labels above 0.5; regression: no number off by more than `tolerance`.
    """
    if problem == "single":
        return logits.argmax(-1) == full.argmax(-1)
    if problem == "multi":
        return ((logits > 0) == (full > 0)).all(-1)
    return ((logits - full).abs() <= tolerance).all(-1)


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
        """The same heads on another device."""
        return ExitHeads(
            self.problem, [(a.to(device), w.to(device), v.to(device), b.to(device)) for a, w, v, b in self._heads]
        )

    def logits(self, k: int, pooled: Tensor, previous: Tensor | None = None) -> Tensor:
        """Logits (R, C) of exit k from pooled features (R, F_k) and the logits (R, C) of exit k-1 for the same rows.

        `previous` is None at exit 0 only, so heads of exits that rows never leave at are run too; they cost F·C each.
        Raises InvalidInput on shapes that don't fit.
        """
        shift, weight, mix, bias = self._heads[k]
        if pooled.ndim != 2 or pooled.shape[1] != len(shift):
            raise InvalidInput(f"exit {k} has {len(shift)} features, not {tuple(pooled.shape[1:])}")
        if (previous is None) != (k == 0) or (previous is not None and previous.shape != (len(pooled), len(bias))):
            raise InvalidInput(f"exit {k} needs {'no logits' if k == 0 else 'the logits of the exit'} before it")
        out = torch.addmm(bias, pooled.float() - shift, weight)
        return out if previous is None else out + mix * previous

    def run(self, pooled: Sequence[Tensor]) -> list[Tensor]:
        """Logits of every exit, for rows that went all the way."""
        out: list[Tensor] = []
        for k, x in enumerate(pooled):
            out.append(self.logits(k, x, out[-1] if out else None))
        return out

    def to_arrays(self) -> Arrays:
        """For a safetensors file; `from_arrays` gives the same heads to the last bit."""
        out: Arrays = {"problem": np.asarray([get_args(Problem).index(self.problem)], dtype=np.float32)}
        for k, head in enumerate(self._heads):
            for name, value in zip(("shift", "weight", "mix", "bias"), head, strict=True):
                out[f"{k}.{name}"] = value.detach().cpu().numpy().astype(np.float32, copy=True)
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float32]]) -> ExitHeads:
        """What `to_arrays` wrote. Raises KeyError or ValueError on anything else."""
        problem = _problem_of(arrays["problem"])
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
    """z·W + b ≈ target, with the penalty under which each row is best answered by the fit to all the others.

    Leaving one out takes the diagonal of the hat matrix only (Allen 1974, PRESS); the mean is one more parameter.
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
    """U (n, r), s (r,), V (F, r) without directions that don't vary, and the mean of s². By the smaller Gram matrix."""
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
    """A correction of the ridge's honest answers: bend (r, C), scale, mix, bias (C,), and the answers (n, C) that result."""
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


class AgreementScore:
    """P(the answer at exit k is the full model's), by a logistic regression per exit.

    Features: log-odds of the answer, margin, entropy (negated), same answer as at the exit before, closeness of the two exits'
    distributions. No weight is negative, so more confidence never lowers a score. A regression has only the step
    from the previous exit to go by. Exits with too few disagreements to fit use the margin. Near-ties score 0: never.
    """

    def __init__(
        self, problem: Problem, weights: NDArray[np.float64], scales: NDArray[np.float64], tolerance: float
    ) -> None:
        self.problem, self.tolerance = problem, tolerance
        self._weights = np.asarray(weights, dtype=np.float64)  # (K, 1 + features), the bias first
        self._scales = np.asarray(scales, dtype=np.float64)  # (K, 2, features): shift and spread
        self._slope = self._weights[:, 1:] / self._scales[:, 1]  # of the features as they come
        self._bias = self._weights[:, 0] - (self._slope * self._scales[:, 0]).sum(-1)
        self._slopes, self._biases = self._slope.tolist(), self._bias.tolist()

    def __len__(self) -> int:
        return len(self._weights)

    def __call__(
        self, k: int, logits: Tensor | NDArray[Any], previous: Tensor | NDArray[Any] | None = None
    ) -> NDArray[np.float64]:
        """Scores (R,) in [0, 1) of exit k from its logits (R, C) and those of the exit before, None at exit 0."""
        z, before = _double(logits), None if previous is None else _double(previous)
        if (
            z.size <= MAX_SCALAR_LOGITS and self.problem == "single"
        ):  # a fifth of the time of two dozen operations on arrays
            others = [None] * len(z) if before is None else before.tolist()
            rows = (_features_of_row(row, other) for row, other in zip(z.tolist(), others, strict=True))
            return np.array([self._of_row(k, x) for x in rows])
        with np.errstate(all="ignore"):  # logits that aren't finite score 0
            x = _features(z, before, self.problem, self.tolerance)
            odds = x @ self._slope[k] + self._bias[k]
            s: NDArray[np.float64] = 1 / (1 + np.exp(-odds.clip(-30, 30)))  # at 30 neighbouring scores still differ
            s[~_is_clear(z, x, self.problem)] = 0.0
        return s

    def _of_row(self, k: int, x: tuple[float, ...] | None) -> float:
        if x is None:
            return 0.0
        odds = sum(map(operator.mul, x, self._slopes[k]), self._biases[k])
        return 1 / (1 + math.exp(-min(max(odds, -30.0), 30.0)))

    def to_arrays(self) -> dict[str, NDArray[np.float64]]:
        """For a safetensors file; `from_arrays` gives the same score to the last bit."""
        kind = np.asarray([get_args(Problem).index(self.problem), self.tolerance], dtype=np.float64)
        return {"score.kind": kind, "score.weights": self._weights.copy(), "score.scales": self._scales.copy()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float64]]) -> AgreementScore:
        """What `to_arrays` wrote. Raises KeyError or ValueError on anything else."""
        kind, weights, scales = (np.asarray(arrays[f"score.{name}"]) for name in ("kind", "weights", "scales"))
        if kind.shape != (2,) or weights.ndim != 2 or scales.shape != (len(weights), 2, weights.shape[1] - 1):
            raise ValueError("the arrays of the score don't fit each other")
        if not (np.isfinite(weights).all() and np.isfinite(scales).all() and (scales[:, 1] > 0).all()):
            raise ValueError("a weight of the score is not finite")
        return cls(_problem_of(kind[:1]), weights, scales, float(kind[1]))

    @classmethod
    def fit(cls, logits: Sequence[Tensor], full: Tensor, problem: Problem, *, tolerance: float = 0.0) -> AgreementScore:
        """Fit on rows that the heads were *not* fitted on.

        logits: K tensors (n, C), the heads' answers; full: (n, C); tolerance: of a regression, above 0. Raises InvalidInput on
        shapes that don't fit.
        """
        if not logits or any(z.shape != full.shape for z in logits) or full.ndim != 2 or not len(full):
            raise InvalidInput("the exits' logits and the full model's differ in shape")
        if problem == "regression" and not tolerance > 0:
            raise InvalidInput("a regression agrees within a tolerance above 0")
        weights, scales = [], []
        for k, z in enumerate(logits):
            with np.errstate(all="ignore"):
                x = _features(_double(z), _double(logits[k - 1]) if k else None, problem, tolerance)
            same = agrees(z, full, problem, tolerance).cpu().numpy()
            if min(same.sum(), (~same).sum()) < MIN_CASES:
                shift, spread = np.zeros(x.shape[1]), np.ones(x.shape[1])
                w = np.zeros(1 + x.shape[1])
                w[1] = 1.0  # log-odds as the head has them; of a regression the step
            else:
                shift, spread = x.mean(0), np.maximum(x.std(0), 1e-6)
                w = _logistic((x - shift) / spread, same)
            weights.append(w)
            scales.append((shift, spread))
        return cls(problem, np.asarray(weights), np.asarray(scales), tolerance)


def _features(
    z: NDArray[np.float64], before: NDArray[np.float64] | None, problem: Problem, tolerance: float
) -> NDArray[np.float64]:
    """(R, features), each rising with confidence; the first alone is the fallback. Exit 0 has zeros for what it lacks.

    In few operations: all of them run at every exit.
    """
    x = np.zeros((len(z), 2 if problem == "regression" else 5))
    if problem == "regression":
        if before is not None:
            step = np.abs(z - before).max(-1) / tolerance
            x[:, 0], x[:, 1] = -step, -np.log1p(step)
    elif problem == "single":
        both = z[None] if before is None else np.stack([z, before])
        tops = both.argmax(-1)
        away = both - np.maximum.reduce(both, axis=-1, keepdims=True)
        e = np.exp(away)
        total = np.add.reduce(e, axis=-1)
        if before is not None:
            x[:, 3] = tops[0] == tops[1]
            p = e / total[:, :, None]
            x[:, 4] = -0.5 * np.add.reduce(np.abs(p[0] - p[1]), axis=-1)
        x[:, 2] = np.add.reduce(e[0] * away[0], axis=-1) / total[0] - np.log(total[0])
        others = e[0]
        others[np.arange(len(z)), tops[0]] = 0.0
        x[:, 0] = -np.log(np.add.reduce(others, axis=-1) + LOG_FLOOR)
        x[:, 1] = -np.log(np.maximum.reduce(others, axis=-1) + LOG_FLOOR)
    else:
        size = np.abs(z)
        neg_entropy = np.exp(-size)
        x[:, 1] = margin = size.min(-1)
        x[:, 0] = margin - np.log(np.exp(margin[:, None] - size).sum(-1))
        x[:, 2] = -(np.log1p(neg_entropy) + size * neg_entropy / (1 + neg_entropy)).sum(-1)
        if before is not None:
            x[:, 3] = ((before > 0) == (z > 0)).all(-1)
            x[:, 4] = -0.5 * np.abs(1 / (1 + np.exp(-z)) - 1 / (1 + np.exp(-before))).sum(-1)
    return x


def _features_of_row(z: list[float], before: list[float] | None) -> tuple[float, ...] | None:
    """The same of one row with one label; None for near-ties and what isn't finite."""
    if not all(map(math.isfinite, z if before is None else z + before)):
        return None
    p, top, rest, second, neg_entropy = _softmax(z)
    margin = -math.log(second + LOG_FLOOR)
    if margin < NEAR_TIE_LOGITS:
        return None
    odds = -math.log(rest + LOG_FLOOR)
    if before is None:
        return odds, margin, neg_entropy, 0.0, 0.0
    q, same, *_ = _softmax(before)
    apart = sum(abs(a - b) for a, b in zip(p, q, strict=True))
    return odds, margin, neg_entropy, float(same == top), -0.5 * apart


def _softmax(z: list[float]) -> tuple[list[float], int, float, float, float]:
    """Probabilities, the top, what the others have of its share in sum and at most, and the negated entropy."""
    most = max(z)
    top = z.index(most)
    e = [math.exp(v - most) for v in z]
    total = sum(e)
    neg_entropy = sum(x * (v - most) for x, v in zip(e, z, strict=True)) / total - math.log(total)
    p = [x / total for x in e]
    e[top] = 0.0
    return p, top, sum(e), max(e), neg_entropy


def _is_clear(z: NDArray[np.float64], x: NDArray[np.float64], problem: Problem) -> NDArray[np.bool_]:
    """Whether logits (R, C) are finite, and not so close to another answer that rounding might turn them."""
    clear: NDArray[np.bool_] = np.isfinite(np.concatenate([z, x], axis=-1)).all(-1)
    return clear if problem == "regression" else clear & (x[:, 1] >= NEAR_TIE_LOGITS)


def _double(values: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return values.astype(np.float64, copy=False)


def _logistic(x: NDArray[np.float64], y: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Bias and weights ≥ 0 of the penalised logistic regression, by projected Newton steps (Bertsekas 1982)."""
    a = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    penalty = np.r_[1e-6, np.full(x.shape[1], 1.0)]
    w = np.zeros(a.shape[1])

    def loss(v: NDArray[np.float64]) -> float:
        z = a @ v
        return float((np.logaddexp(0, z) - y * z).sum() + 0.5 * (penalty * v * v).sum())

    here = loss(w)
    for _ in range(60):
        p = 1 / (1 + np.exp(-np.clip(a @ w, -60, 60)))
        gradient = a.T @ (p - y) + penalty * w
        free = (w > 0) | (gradient < 0)
        free[0] = True
        hessian = (a[:, free].T * (p * (1 - p))) @ a[:, free] + np.diag(penalty[free])
        step = np.zeros_like(w)
        step[free] = np.linalg.solve(hessian, gradient[free])
        share, moved, there = 1.0, w, here
        while share > 1e-6:
            moved = w - share * step
            moved[1:] = np.maximum(moved[1:], 0)
            there = loss(moved)
            if there <= here:
                break
            share /= 2
        if not here - there > 1e-9 * (1 + here):
            break
        w, here = moved, there
    return w


@contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of small operations: threads that wait for each other on a busy machine made this 100 times slower."""
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


def _problem_of(array: NDArray[np.float32] | NDArray[np.float64]) -> Problem:
    kinds: tuple[Problem, ...] = get_args(Problem)
    if np.shape(array) != (1,) or float(array[0]) not in range(len(kinds)):
        raise ValueError(f"{array} names no kind of problem")
    return kinds[int(array[0])]
