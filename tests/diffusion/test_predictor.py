"""Predicting how many steps a picture needs: chances are right on new pictures, and silent on strange ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dynx.diffusion.predictor import Predictor, cross_fit, prediction_features, text_features
from dynx.errors import UsageError


def pictures(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Looks, texts and SSIM at three levels; difficulty is seen in a look and in the text."""
    rng = np.random.default_rng(seed)
    looks, texts = rng.standard_normal((n, 6)), rng.standard_normal((n, 20)) * 0.3
    texts[:, 3] *= 10
    y = (
        -3
        + np.asarray([1.0, 0.0, -1.0])
        + 0.6 * looks[:, 1:2]
        + 0.2 * texts[:, 3:4]
        + 0.3 * rng.standard_normal((n, 3))
    )
    return looks, texts, 1 - np.exp(np.minimum(y, 0))


def test_chances_are_what_happens() -> None:
    """Among new pictures given a chance of about p, a share of about p reaches the quality."""
    predictor = Predictor.fit(*pictures(80, 0))
    looks, texts, likeness = pictures(6000, 1)
    chances = predictor.chances(predictor(looks, texts), 0.95)
    good = likeness >= 0.95

    assert chances.shape == good.shape
    for low, high in ((0.05, 0.3), (0.3, 0.7), (0.7, 0.95), (0.95, 1.0)):
        among = (chances >= low) & (chances <= high)
        assert among.sum() > 300
        assert good[among].mean() == pytest.approx(chances[among].mean(), abs=0.08)


def test_crossed_predictions_are_as_good_as_new_ones() -> None:
    """Predicting each picture by the others errs as much as on new pictures, where predicting itself would seem better."""
    looks, texts, likeness = pictures(40, 2)
    new = pictures(3000, 3)
    predictor = Predictor.fit(looks, texts, likeness)

    def error(predicted: np.ndarray, shown: np.ndarray) -> float:
        fine = np.isfinite(predicted)
        return float(np.square(predicted - np.log(1 - shown))[fine].mean())

    own, cross, fresh = (
        error(predictor(looks, texts), likeness),
        error(cross_fit(looks, texts, likeness), likeness),
        error(predictor(new[0], new[1]), new[2]),
    )
    assert own < cross
    assert cross == pytest.approx(fresh, rel=0.35)
    assert not np.array_equal(cross_fit(looks, texts, likeness), cross_fit(looks, texts, likeness, seed=1))
    few = tuple(a[:6] for a in (looks, texts, likeness))
    assert np.array_equal(cross_fit(*few), Predictor.fit(*few)(*few[:2]))


def test_few_pictures_are_predicted_by_their_mean() -> None:
    """Below a dozen pictures features are left alone."""
    looks, texts, likeness = pictures(8, 4)
    predicted = Predictor.fit(looks, texts, likeness)(looks, texts)

    assert predicted == pytest.approx(np.tile(np.log(1 - likeness).mean(axis=0), (8, 1)))


def test_a_feature_that_never_varied_says_nothing() -> None:
    """Constant features, texts of no width, and equal pictures make no infinite weights."""
    looks, _, likeness = pictures(30, 5)
    looks[:, 2] = 3.0
    predictor = Predictor.fit(looks, np.ones((30, 4)), likeness)
    moved = looks.copy()
    moved[:, 2] += 1e-9

    assert predictor(moved, np.ones((30, 4))) == pytest.approx(predictor(looks, np.ones((30, 4))), abs=1e-3)
    equal = Predictor.fit(looks, np.zeros((30, 0)), np.ones((30, 3)))
    assert (equal.chances(equal(looks, np.zeros((30, 0))), 0.99) > 0.999).all()


def test_strangers_have_no_chance() -> None:
    """Features far out of range, and NaN, get a chance of exactly 0; others never do."""
    looks, texts, likeness = pictures(60, 6)
    predictor = Predictor.fit(looks, texts, likeness)
    strange = looks[:3].copy()
    strange[0, 4], strange[1, 0] = 40.0, np.nan
    chances = predictor.chances(predictor(strange, texts[:3]), 0.999999)

    assert (chances[:2] == 0).all()
    assert (chances[2] > 0).all()


def test_the_predictor_survives_its_arrays() -> None:
    """What a profile keeps predicts the same; parts that don't fit are refused."""
    looks, texts, likeness = pictures(40, 7)
    predictor = Predictor.fit(looks, texts, likeness)
    arrays = predictor.to_arrays()

    assert np.array_equal(Predictor.from_arrays(arrays)(looks, texts), predictor(looks, texts))
    for name in ("centre", "words", "shift", "spread", "range", "weights", "sigma"):
        with pytest.raises(ValueError, match="don't fit"):
            Predictor.from_arrays({**arrays, f"predictor.{name}": arrays[f"predictor.{name}"][:-1]})
        with pytest.raises(ValueError, match="don't fit"):
            Predictor.from_arrays({**arrays, f"predictor.{name}": arrays[f"predictor.{name}"] * np.nan})
    with pytest.raises(KeyError):
        Predictor.from_arrays({})
    with pytest.raises(UsageError, match="don't fit"):
        Predictor.fit(looks[:-1], texts, likeness)


def test_looks_are_each_pictures_own() -> None:
    """Features of a batch are those of its pictures alone; a larger, rougher, restless picture has larger ones."""
    first = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    last = first + 0.1 * torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    together = prediction_features([first, last])

    assert together.shape == (3, 6)
    assert prediction_features([first[1:2], last[1:2]]) == pytest.approx(together[1:2], abs=1e-6)
    assert (prediction_features([2 * first, 2 * last]) >= together - 1e-9).all()
    assert np.isfinite(prediction_features([first, first])).all()


def test_texts_are_the_prompts_half() -> None:
    """Of a guided batch the last rows; without a text there are no features."""
    both = torch.randn(4, 5, 16)

    assert text_features(both, 2) == pytest.approx(both[2:].mean(1).double().numpy(), abs=1e-6)
    assert text_features(both[:, 0], 2) == pytest.approx(both[2:, 0].double().numpy())
    assert text_features(None, 2).shape == (2, 0)
