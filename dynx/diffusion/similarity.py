"""Measure the similarity of two pictures of the same seed, and summarise many by their lower tail.

Pictures are (H, W, 3), uint8 or floats in 0 … 1. The measures are torchmetrics': SSIM with a Gaussian window of 11 pixels and
σ = 1.5 (Wang et al. 2004), MS-SSIM (Wang et al. 2003) over as many of its five scales as the picture is large enough for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

WINDOW_PIXELS = 11
"""Width of the window of SSIM."""

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of MS-SSIM's scales, from the paper."""


@dataclass(frozen=True)
class Likeness:
    """Hold the similarity of a picture to its reference."""

    ssim: float
    psnr: float
    """dB; infinite for equal pictures."""
    ms_ssim: float | None
    """None where the picture is too small for two scales."""
    scales: int

    def json(self) -> dict[str, Any]:
        """Return the JSON form for a document; null for an infinite or missing number."""
        psnr = self.psnr if math.isfinite(self.psnr) else None
        return {"ssim": self.ssim, "psnr": psnr, "ms_ssim": self.ms_ssim, "scales": self.scales}


def compare(picture: NDArray[Any], reference: NDArray[Any]) -> Likeness:
    """Compute all measures. Raises InvalidInput for different shapes, pixels that aren't finite, and sides below 11 pixels."""
    a, b = _batch(picture), _batch(reference)
    if a.shape != b.shape:
        raise InvalidInput(f"pictures of {a.shape[-1]}×{a.shape[-2]} and {b.shape[-1]}×{b.shape[-2]} can't be compared")
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure,
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    scales = scales_for(min(a.shape[-2:]))
    if not scales:
        raise InvalidInput(
            f"pictures of {a.shape[-1]}×{a.shape[-2]} are too small for SSIM, whose window is {WINDOW_PIXELS} pixels"
        )
    equal = bool((a == b).all())
    ssim = 1.0 if equal else float(structural_similarity_index_measure(a, b, data_range=1.0))
    psnr = math.inf if equal else float(peak_signal_noise_ratio(a, b, data_range=1.0))
    several: float | None = None
    if scales > 1:
        weights = tuple(beta / sum(SCALE_WEIGHTS[:scales]) for beta in SCALE_WEIGHTS[:scales])
        several = (
            1.0 if equal else float(multiscale_structural_similarity_index_measure(a, b, data_range=1.0, betas=weights))
        )
    return Likeness(ssim, psnr, several, scales)


def ssim(picture: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the SSIM of a picture to its reference; errors as in `compare`."""
    return compare(picture, reference).ssim


def scales_for(side: int) -> int:
    """Return how many scales (0 … 5) MS-SSIM can use on a picture whose shorter side has `side` pixels."""
    return max((k for k in range(1, len(SCALE_WEIGHTS) + 1) if side > (WINDOW_PIXELS - 1) * 2 ** (k - 1)), default=0)


def check(picture: NDArray[Any]) -> None:
    """Raise InvalidInput unless it is a picture: (H, W, 3) or (H, W, 1) of finite numbers, floats within 0 … 1."""
    _batch(picture)


def _batch(picture: NDArray[Any]) -> Tensor:
    """Convert a picture to a tensor (1, C, H, W), float32 in 0 … 1. Raises InvalidInput unless it is a picture."""
    import torch

    array = np.asarray(picture)
    if array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise InvalidInput(f"not a picture: an array of shape {array.shape}")
    whole = array.dtype == np.uint8
    values = array.astype(np.float32) / 255 if whole else array.astype(np.float32)
    if not np.isfinite(values).all():
        raise InvalidInput("not a picture: some of its pixels are not numbers")
    if values.min() < 0 or values.max() > 1:
        raise InvalidInput("not a picture: floats must lie within 0 and 1")
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]


@dataclass(frozen=True)
class Tails:
    """Summarise many values, of which larger is better."""

    n: int
    mean: float
    median: float
    p5: float
    """The 5 % quantile; of fewer than 20 values the worst."""
    worst: float

    def json(self) -> dict[str, Any]:
        """Return the JSON form for a document."""
        return {"n": self.n, "mean": self.mean, "median": self.median, "p5": self.p5, "worst": self.worst}


def tails(values: Sequence[float] | NDArray[np.float64]) -> Tails:
    """Summarise values by mean and lower tail. Raises InvalidInput for no values, or NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or np.isnan(array).any():
        raise InvalidInput("no values to summarise, or one that is not a number")
    p5 = float(np.quantile(array, 0.05, method="lower"))
    return Tails(len(array), float(array.mean()), float(np.median(array)), p5, float(array.min()))
