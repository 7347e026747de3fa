"""Turn logits into labels according to the kind of problem that a classifier solves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.early_exit.agreement import same_answers
from dynx.early_exit.types import Prediction
from dynx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.agreement import Problem
    from dynx.early_exit.engine import Answer
    from dynx.early_exit.preprocessing import Example

PROBLEMS: dict[str, Problem] = {
    "single_label_classification": "single",
    "multi_label_classification": "multi",
    "regression": "regression",
}


def problem_of(config: Any) -> Problem:
    """Return the kind of problem: that of the config, else single-label, or regression for one output.

    UnsupportedModelError: a `problem_type` that transformers doesn't know either.
    """
    problem_type = getattr(config, "problem_type", None)
    if problem_type is None:
        return "regression" if getattr(config, "num_labels", 2) == 1 else "single"
    if problem_type not in PROBLEMS:
        raise UnsupportedModelError(
            f"its config has the problem_type {problem_type!r}", hint=f"known: {', '.join(PROBLEMS)}"
        )
    return PROBLEMS[problem_type]


class Labels:
    """The names of a model's outputs, and how logits become labels and scores."""

    def __init__(self, config: Any) -> None:
        self.problem: Problem = problem_of(config)
        named = getattr(config, "id2label", None) or {}
        self.names = [str(named.get(i, f"LABEL_{i}")) for i in range(int(config.num_labels))]

    def read(self, rows: Sequence[Example], answers: Sequence[Answer], depths: Sequence[int]) -> list[Prediction]:
        """Return the results of answers to rows; `depths` are the blocks that exits come after."""
        if not answers:
            return []
        found = self.of_logits(np.stack([answer.logits for answer in answers]))
        return [
            Prediction(*each, None if answer.exit is None else depths[answer.exit], answer.layers)
            for each, answer in zip(found, answers, strict=True)
        ]

    def same(
        self,
        rows: Sequence[Example],
        answers: Sequence[Answer],
        full_rows: Sequence[Example],
        full: Sequence[Answer],
        tolerance: float,
    ) -> list[bool]:
        """Tell whether each answer is the full model's."""
        if not answers:
            return []
        own, truth = (np.stack([answer.logits for answer in several]) for several in (answers, full))
        return same_answers(own, truth, self.problem, tolerance)

    def of_logits(self, logits: NDArray[np.float32]) -> list[tuple[str, float, list[tuple[str, float]]]]:
        """Return label, score and all scores of each row of logits (R, C).

        single: the likeliest and its probability (softmax). multi: all with a probability above a half (sigmoid), in the
        model's order and joined by commas, so that the same labels make the same text; and the highest probability.
        regression: the first output's name and number.
        """
        z = np.asarray(logits, dtype=np.float64)
        if self.problem == "single":
            e = np.exp(z - z.max(axis=1, keepdims=True))
            p = e / e.sum(axis=1, keepdims=True)
            return [self._one(row, int(top)) for row, top in zip(p, z.argmax(axis=1), strict=True)]
        if self.problem == "multi":
            p = 1 / (1 + np.exp(-np.clip(z, -60, 60)))
            return [self._several(row, over) for row, over in zip(p, z > 0, strict=True)]
        return [self._one(row, 0) for row in z]

    def _scores(self, values: NDArray[np.float64]) -> list[tuple[str, float]]:
        return list(zip(self.names, values.tolist(), strict=True))

    def _one(self, values: NDArray[np.float64], top: int) -> tuple[str, float, list[tuple[str, float]]]:
        return self.names[top], float(values[top]), self._scores(values)

    def _several(
        self, values: NDArray[np.float64], over: NDArray[np.bool_]
    ) -> tuple[str, float, list[tuple[str, float]]]:
        chosen = [name for name, is_over in zip(self.names, over.tolist(), strict=True) if is_over]
        return ",".join(chosen), float(values.max()), self._scores(values)

    def ids(self, logits: NDArray[np.float32]) -> NDArray[np.int64] | None:
        """Return the class of each row, for statistics per class; None where there are no classes."""
        return np.asarray(logits).argmax(axis=1).astype(np.int64) if self.problem == "single" else None
