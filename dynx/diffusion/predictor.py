"""How many steps a picture needs, from its text and the first two predictions: StepSaver's question, asked of the seed as well.

For each number of steps K a ridge regression says y = log(1 - SSIM) to the full run; with the spread of its errors that is the
chance that SSIM reaches any quality. Few pictures are enough for the few features used; how well it predicts is checked, and
bounded, on others. Of pictures unlike all those that it was fitted on it says nothing, and no number of steps is enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float64]

WORDS = 4
"""Directions of the text embedding that are used: the widest among the pictures fitted on."""

FLOOR = 1e-5
"""Of 1 - SSIM: pictures more alike than that are equal."""

PENALTIES = tuple(10.0**e for e in range(-2, 4))

BEYOND = 1.5
"""How far out a feature may lie, in units of the largest_difference fitted on, before it's unlike."""

FOLDS = 6

FEWEST = 12
"""Pictures below which only the mean is used."""


def look_features(clean: Sequence[Tensor]) -> Array:
    """(B, 6) of the clean pictures (B, C, …) predicted at the first steps, two at least: how large, how rough, how unsettled."""
    import torch

    first, last = (c.detach().float().cpu() for c in (clean[0], clean[-1]))
    flat, change = last.flatten(1), (last - first).flatten(1)
    size = flat.square().mean(1).sqrt()
    rough = (last.diff(dim=-1).flatten(1).square().mean(1) + last.diff(dim=-2).flatten(1).square().mean(1)).sqrt()
    moved = change.square().mean(1).sqrt()
    parts = [size, flat.std(1), rough, moved, moved / size.clamp(min=1e-6), change.abs().amax(1)]
    found: Array = np.log(np.maximum(torch.stack(parts, 1).double().numpy(), 1e-6))
    return found


def text_features(embedding: Tensor | None, pictures: int) -> Array:
    """(B, D) mean over the tokens of the text that the network is given (R, T, D); the last B of R rows are the prompts'."""
    if embedding is None or embedding.dim() < 2:
        return np.zeros((pictures, 0))
    rows = embedding[-pictures:].detach().float().cpu().numpy().astype(np.float64)
    return rows.mean(axis=1) if rows.ndim == 3 else rows


@dataclass(frozen=True)
class Predictor:
    """y (n, L) from features: shift, spread and range (F,), words (D, W), weights (1 + F, L), and the spread of errors (L,)."""

    centre: Array
    words: Array
    shift: Array
    spread: Array
    range: Array
    weights: Array
    sigma: Array

    @classmethod
    def fit(cls, looks: Array, texts: Array, likeness: Array) -> Predictor:
        """From looks (n, 6), texts (n, D) and SSIM (n, L). Raises InvalidInput on shapes that don't fit."""
        n, levels = likeness.shape
        if len(looks) != n or len(texts) != n or n < 3:
            raise InvalidInput(f"{len(looks)} looks, {len(texts)} texts and {n} pictures don't fit each other")
        centre = texts.mean(axis=0)
        words = np.zeros((texts.shape[1], 0))
        if texts.shape[1] and n >= FEWEST:
            _, values, directions = np.linalg.svd(texts - centre, full_matrices=False)
            words = directions[:WORDS][values[:WORDS] > 1e-9].T
        x = np.concatenate([looks, (texts - centre) @ words], axis=1)
        shift, spread = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
        y = shortfall(likeness)
        reach = BEYOND * np.abs((x - shift) / spread).max(axis=0)
        weights = np.zeros((1 + x.shape[1], levels))
        sigma = np.zeros(levels)
        z = (x - shift) / spread if n >= FEWEST else np.zeros_like(x)
        for k in range(levels):
            weights[:, k], sigma[k] = _ridge(z, y[:, k])
        return cls(centre, words, shift, spread, np.maximum(reach, 1.0), weights, np.maximum(sigma, 1e-3))

    def __call__(self, looks: Array, texts: Array) -> Array:
        """y (n, L); inf for pictures that are unlike those fitted on, or whose features aren't numbers."""
        x = (np.concatenate([looks, (texts - self.centre) @ self.words], axis=1) - self.shift) / self.spread
        alike = (np.abs(x) <= self.range).all(axis=1)  # False for NaN
        predicted: Array = np.full((len(x), len(self.sigma)), math.inf)
        predicted[alike] = self.weights[0] + x[alike] @ self.weights[1:]
        return predicted

    def chances(self, predicted: Array, quality: float) -> Array:
        """P(SSIM ≥ quality) (n, L) for predictions y; 0 only where y is inf."""
        z = (math.log(max(1 - quality, FLOOR)) - predicted) / self.sigma
        chance: Array = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
        return np.where(np.isinf(predicted), 0.0, np.clip(chance, 1e-9, 1.0))

    def to_arrays(self) -> dict[str, Array]:
        """For a profile's safetensors file."""
        return {f"predictor.{name}": np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Predictor:
        """What `to_arrays` wrote. Raises KeyError or ValueError on anything else."""
        made = cls(**{name: np.asarray(arrays[f"predictor.{name}"], dtype=np.float64) for name in cls.__annotations__})
        features = len(made.shift)
        fits = (
            made.words.ndim == 2
            and made.centre.shape == made.words.shape[:1]
            and made.spread.shape == made.range.shape == (features,)
            and made.words.shape[1] <= features
            and made.weights.shape == (1 + features, len(made.sigma))
            and all(np.isfinite(value).all() for value in vars(made).values())
        )
        if not fits:
            raise ValueError("the predictor's arrays don't fit each other")
        return made


def crossed(looks: Array, texts: Array, likeness: Array, seed: int = 0) -> Array:
    """y (n, L) of each picture, by a predictor fitted on the others: what may be expected of one fitted on all, for new ones.

    In `FOLDS` parts; too few pictures for that are predicted by their mean. Shapes and errors as in `Predictor.fit`.
    """
    n = len(likeness)
    if n < 2 * FOLDS:
        return Predictor.fit(looks, texts, likeness)(looks, texts)
    order = np.random.default_rng(seed).permutation(n)
    found = np.zeros(likeness.shape)
    for fold in range(FOLDS):
        out = order[fold::FOLDS]
        others = np.setdiff1d(order, out)
        found[out] = Predictor.fit(looks[others], texts[others], likeness[others])(looks[out], texts[out])
    return found


def shortfall(likeness: Array) -> Array:
    """log(1 - SSIM)."""
    return np.log(np.maximum(1 - np.asarray(likeness, dtype=np.float64), FLOOR))


def _ridge(z: Array, y: Array) -> tuple[Array, float]:
    """Weights (1 + F,) at the best penalty, and the root mean square of the errors that leaving each row out makes there.

    Leaving one out takes the hat matrix's diagonal only (Allen 1974).
    """
    n = len(y)
    u, s, vt = np.linalg.svd(z, full_matrices=False)
    centred = y - y.mean()
    best: tuple[float, Array] | None = None
    for penalty in PENALTIES:
        shrink = s / (s**2 + penalty)
        coefficients = vt.T @ (shrink * (u.T @ centred))
        hat = 1 / n + ((u**2) * (s**2 / (s**2 + penalty))).sum(axis=1)
        left_out = (centred - z @ coefficients) / np.maximum(1 - hat, 0.05)
        error = float(np.sqrt((left_out**2).mean()))
        if best is None or error < best[0]:
            best = error, coefficients
    assert best is not None  # noqa: S101 - there are penalties
    return np.concatenate([[y.mean()], best[1]]), best[0]
