"""Likeness of pictures and what is said of many."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest

from dynx.diffusion.similarity import check, compare, scales_for, ssim, tails
from dynx.errors import UsageError


def picture(side: int = 64, *, seed: int = 0) -> np.ndarray:
    """Soft shapes (side, side, 3) in 0 … 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in rng.uniform(-3, 3, (3, 3))]
    return (np.stack(waves, axis=-1) / 2 + 0.5).astype(np.float32)


def noisy(image: np.ndarray, sigma: float) -> np.ndarray:
    """With noise, within 0 … 1."""
    return np.clip(image + np.random.default_rng(1).normal(0, sigma, image.shape), 0, 1).astype(np.float32)


def test_the_same_picture_is_perfectly_alike() -> None:
    """Exactly 1 and infinite decibels, in JSON null."""
    found = compare(picture(), picture())

    assert (found.ssim, found.psnr, found.ms_ssim, found.scales) == (1.0, math.inf, 1.0, 3)
    assert json.loads(json.dumps(found.json(), allow_nan=False))["psnr"] is None


def test_more_noise_is_less_alike() -> None:
    """All three measures fall, and stay within their ranges."""
    found = [compare(noisy(picture(), sigma), picture()) for sigma in (0.01, 0.05, 0.2)]

    for first, second in pairwise(found):
        assert 1 > first.ssim > second.ssim > 0
        assert first.psnr > second.psnr > 0
        assert first.ms_ssim is not None
        assert second.ms_ssim is not None
        assert 1 > first.ms_ssim > second.ms_ssim > 0
    expected = -10 * math.log10(np.mean((noisy(picture(), 0.05) - picture()) ** 2))
    assert found[1].psnr == pytest.approx(expected, rel=1e-4)


def test_ssim_is_the_papers() -> None:
    """Against a slow sum over windows: Gaussian of 11 pixels, σ = 1.5, K₁ = 0.01, K₂ = 0.03; borders mirrored."""
    a, b = noisy(picture(24), 0.1)[..., 0].astype(float), picture(24)[..., 0].astype(float)
    wide, wide_b = (np.pad(image, 5, mode="reflect") for image in (a, b))
    weight = np.exp(-((np.arange(11) - 5.0) ** 2) / 4.5)
    window = np.outer(weight, weight) / weight.sum() ** 2
    values = []
    for y in range(24):
        for x in range(24):
            p, q = wide[y : y + 11, x : x + 11], wide_b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq, cov = ((window * u).sum() for u in ((p - mp) ** 2, (q - mq) ** 2, (p - mp) * (q - mq)))
            values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))

    found = ssim(a.astype(np.float32)[..., None], b.astype(np.float32)[..., None])

    assert found == pytest.approx(np.mean(values), abs=1e-4)


def test_bytes_and_floats_are_the_same_picture() -> None:
    """uint8 is read as 0 … 255."""
    whole = (picture() * 255).round().astype(np.uint8)
    other = (noisy(picture(), 0.05) * 255).round().astype(np.uint8)

    assert compare(other, whole) == compare(other.astype(np.float32) / 255, whole.astype(np.float32) / 255)


@pytest.mark.parametrize(
    ("side", "scales"), [(10, 0), (11, 1), (20, 1), (21, 2), (64, 3), (160, 4), (161, 5), (512, 5)]
)
def test_scales_fit_the_picture(side: int, scales: int) -> None:
    """MS-SSIM takes as many scales as the window fits into."""
    assert scales_for(side) == scales
    if 0 < scales < 4:
        found = compare(noisy(picture(side), 0.1), picture(side))
        assert found.scales == scales
        assert (found.ms_ssim is None) == (scales == 1)


def test_what_is_no_picture_is_refused() -> None:
    """NaN, numbers out of range, other shapes, too few pixels."""
    broken = picture()
    broken[3, 4, 1] = np.nan
    with pytest.raises(UsageError, match="not numbers"):
        check(broken)
    with pytest.raises(UsageError, match="within 0 and 1"):
        check(picture() * 2)
    with pytest.raises(UsageError, match="an array of shape"):
        check(picture()[..., 0])
    with pytest.raises(UsageError, match="can't be compared"):
        compare(picture(64), picture(32))
    with pytest.raises(UsageError, match="too small"):
        compare(picture(8), picture(8))
    check(picture())


def test_tails_tell_the_worst() -> None:
    """The fifth percentile is a value that occurred, and no better than what 5 % are below."""
    found = tails([*np.linspace(0.9, 1.0, 99), 0.2])

    assert found.worst == 0.2
    assert found.p5 == pytest.approx(np.linspace(0.9, 1.0, 99)[3])
    assert found.median == pytest.approx(0.95, abs=0.01)
    assert found.n == 100
    assert tails([0.7, 0.9]).p5 == 0.7
    with pytest.raises(UsageError, match="no values"):
        tails([])
    with pytest.raises(UsageError, match="not a number"):
        tails([0.5, math.nan])
