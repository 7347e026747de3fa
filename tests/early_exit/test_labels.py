"""From logits to labels: each kind of head, and what can't be read."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dynx.early_exit.labels import Labels, problem_of
from dynx.errors import UnsupportedModelError


def config(problem: str | None = None, labels: int = 3, **names: str) -> Any:
    named = dict(enumerate(names.values())) or None
    return SimpleNamespace(problem_type=problem, num_labels=labels, id2label=named)


@pytest.mark.parametrize(
    ("said", "labels", "expected"),
    [
        (None, 3, "single"),
        (None, 1, "regression"),
        ("single_label_classification", 1, "single"),
        ("multi_label_classification", 3, "multi"),
        ("regression", 3, "regression"),
    ],
)
def test_what_a_head_answers(said: str | None, labels: int, expected: str) -> None:
    """The config says it; without a word, one output is a number."""
    assert problem_of(config(said, labels)) == expected


def test_an_unknown_problem_is_refused() -> None:
    """Guessing would make a promise about something else."""
    with pytest.raises(UnsupportedModelError, match="'ranking'"):
        Labels(config("ranking"))


def test_single_labels() -> None:
    """Softmax; all scores in the model's order."""
    labels = Labels(config(a="bad", b="so-so", c="good"))
    (label, score, scores), (other, _, _) = labels.of_logits(np.log(np.float32([[1, 2, 5], [3, 1, 1]])))

    assert (label, other) == ("good", "bad")
    assert score == pytest.approx(0.625)
    assert [name for name, _ in scores] == ["bad", "so-so", "good"]
    assert sum(p for _, p in scores) == pytest.approx(1)
    assert labels.ids(np.float32([[0, 1, 0]])).tolist() == [1]


def test_several_labels_are_the_same_text_whatever_their_scores() -> None:
    """Labels above a half in the model's order, none where none is; the score is the highest probability."""
    labels = Labels(config("multi_label_classification", a="a", b="b", c="c"))
    read = labels.of_logits(np.float32([[2, -1, 1], [1, -1, 2], [-3, -2, -1], [0, 5, 0]]))

    assert [label for label, _, _ in read] == ["a,c", "a,c", "", "b"]
    assert read[2][1] == pytest.approx(1 / (1 + np.e))
    assert labels.ids(np.zeros((1, 3), dtype=np.float32)) is None


def test_a_regression_gives_its_number() -> None:
    """The first output's name and value, whatever its size."""
    labels = Labels(config(None, 1))

    assert labels.of_logits(np.float32([[-7.5]])) == [("LABEL_0", -7.5, [("LABEL_0", -7.5)])]
    assert labels.ids(np.float32([[1]])) is None


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_huge_logits_overflow_nothing(problem: str) -> None:
    """Probabilities stay within 0 and 1, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ((_, score, scores),) = Labels(config(problem)).of_logits(np.float32([[3e38, -3e38, 0]]))

    assert score == pytest.approx(1)
    assert all(0 <= p <= 1 for _, p in scores)


def test_names_that_a_config_lacks_are_made_up() -> None:
    """As transformers does."""
    named = SimpleNamespace(problem_type=None, num_labels=2, id2label={1: "yes"})

    assert Labels(named).names == ["LABEL_0", "yes"]
