"""How far an exit's answer can be trusted: a score of agreement with the full model, from logits alone.

`agrees` compares answers; `AgreementScore` turns an exit's logits into P(same answer as the full model).

Letters: R rows, C outputs, K exits, n rows to fit on.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


Problem: TypeAlias = Literal["single", "multi", "regression"]
"""One label of C (softmax), any of C (sigmoid, at 0.5), or C numbers."""

MIN_CASES = 10
"""Fewest agreements, and fewest disagreements, that a logistic regression is fitted to; with fewer the margin is the score."""

LOG_FLOOR = 1e-300
"""Smallest argument of a logarithm: the probability of all other classes may be zero."""

MAX_SCALAR_LOGITS = 16
"""Most logits (rows times classes) that are scored row by row, which is faster than array operations then."""

NEAR_TIE_LOGITS = 1e-3
"""Margin in logits below which padding or another kernel may change the answer: such a row never exits early."""


def agrees(logits: Tensor, full: Tensor, problem: Problem, tolerance: float = 0.0) -> Tensor:
    """Tell whether answers are the same: (R,) bool from logits and the full model's, both (R, C).

    single: the same top label; multi: the same labels above 0.5; regression: no number off by more than `tolerance`.
    """
    if problem == "single":
        return logits.argmax(-1) == full.argmax(-1)
    if problem == "multi":
        return ((logits > 0) == (full > 0)).all(-1)
    return ((logits - full).abs() <= tolerance).all(-1)


def same_answers(
    logits: NDArray[np.float32], full: NDArray[np.float32], problem: Problem, tolerance: float
) -> list[bool]:
    """Tell whether each answer is the full model's: both (n, C)."""
    same: list[bool] = agrees(torch.from_numpy(logits), torch.from_numpy(full), problem, tolerance).tolist()
    return same


class AgreementScore:
    """Estimate P(the answer at exit k is the full model's) by a logistic regression per exit.

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
        """Return scores (R,) in [0, 1) of exit k from its logits (R, C) and those of the exit before, None at exit 0.

        Logits (R, T, C) are those of tokens, NaN for tokens that don't count: the score of a text is its least sure token's.
        """
        z, before = _double(logits), None if previous is None else _double(previous)
        if z.ndim == 3:
            counted = ~np.isnan(z[:, :, 0])
            of_tokens = np.ones(counted.shape)
            if counted.any():
                of_tokens[counted] = self(k, z[counted], None if before is None else before[counted])
            least: NDArray[np.float64] = of_tokens.min(axis=1, initial=1.0)
            return least
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
        """Return arrays for a safetensors file; `from_arrays` restores the same score to the last bit."""
        kind = np.asarray([get_args(Problem).index(self.problem), self.tolerance], dtype=np.float64)
        return {"score.kind": kind, "score.weights": self._weights.copy(), "score.scales": self._scales.copy()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float64]]) -> AgreementScore:
        """Restore what `to_arrays` wrote. Raises KeyError or ValueError on anything else."""
        kind, weights, scales = (np.asarray(arrays[f"score.{name}"]) for name in ("kind", "weights", "scales"))
        if kind.shape != (2,) or weights.ndim != 2 or scales.shape != (len(weights), 2, weights.shape[1] - 1):
            raise ValueError("the arrays of the score don't fit each other")
        if not (np.isfinite(weights).all() and np.isfinite(scales).all() and (scales[:, 1] > 0).all()):
            raise ValueError("a weight of the score is not finite")
        return cls(problem_from_array(kind[:1]), weights, scales, float(kind[1]))

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
    """Return (R, features), each rising with confidence; the first is the fallback, and exit 0 has zeros for what it lacks.

    The number of operations is kept small, as all of them run at every exit.
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
    """Return the features of one row of a single-label problem; None for near-ties and logits that aren't finite."""
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
    """Return probabilities, the top class, sum and maximum of the others relative to it, and the negated entropy."""
    most = max(z)
    top = z.index(most)
    e = [math.exp(v - most) for v in z]
    total = sum(e)
    neg_entropy = sum(x * (v - most) for x, v in zip(e, z, strict=True)) / total - math.log(total)
    p = [x / total for x in e]
    e[top] = 0.0
    return p, top, sum(e), max(e), neg_entropy


def _is_clear(z: NDArray[np.float64], x: NDArray[np.float64], problem: Problem) -> NDArray[np.bool_]:
    """Tell whether logits (R, C) are finite and far enough from another answer that rounding can't change it."""
    clear: NDArray[np.bool_] = np.isfinite(np.concatenate([z, x], axis=-1)).all(-1)
    return clear if problem == "regression" else clear & (x[:, 1] >= NEAR_TIE_LOGITS)


def _double(values: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return values.astype(np.float64, copy=False)


def _logistic(x: NDArray[np.float64], y: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fit bias and weights ≥ 0 of a penalised logistic regression by projected Newton steps (Bertsekas 1982)."""
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


def problem_from_array(array: NDArray[np.float32] | NDArray[np.float64]) -> Problem:
    """Return the kind of problem that an array of shape (1,) encodes; ValueError for anything else."""
    kinds: tuple[Problem, ...] = get_args(Problem)
    if np.shape(array) != (1,) or float(array[0]) not in range(len(kinds)):
        raise ValueError(f"{array} names no kind of problem")
    return kinds[int(array[0])]
