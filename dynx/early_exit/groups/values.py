"""A row's value among its group, made of the model's logits: a cross-encoder's score, or the entailment of a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.early_exit.groups.rule import Positive, TopK
from dynx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynx.early_exit.groups.rule import GroupRule
    from dynx.early_exit.plan import ClassifierRequest


@dataclass(frozen=True)
class Values:
    """The output number `plus`, less the output number `minus` where there is one."""

    plus: int
    minus: int | None = None

    def __call__(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the values (R,) of logits (R, C)."""
        z = np.asarray(logits, dtype=np.float64)
        return z[:, self.plus] if self.minus is None else z[:, self.plus] - z[:, self.minus]


def values_of(config: Any, request: ClassifierRequest) -> Values:
    """Return how a model's logits become values. UnsupportedModelError: it has no such outputs."""
    count = int(getattr(config, "num_labels", 1))
    if request.form == "ranking":
        if count != 1:
            raise UnsupportedModelError(
                f"it has {count} outputs for a pair, and ranking takes a model with one score",
                hint="a cross-encoder for ranking has one; `pair` alone labels pairs",
            )
        return Values(0)
    names = {str(name).lower(): int(i) for name, i in (getattr(config, "label2id", None) or {}).items()}
    entailment = next((i for name, i in names.items() if name.startswith("entail")), None)
    if entailment is None:
        raise UnsupportedModelError(
            f"none of its labels is entailment ({', '.join(sorted(names)) or 'it names none'})",
            hint="candidate labels take a model for natural language inference",
        )
    if not request.each_label_alone:
        return Values(entailment)
    return Values(entailment, count - 1 if entailment == 0 else 0)  # as transformers' pipeline takes contradiction


def rule_of(request: ClassifierRequest) -> GroupRule | None:
    """Return when a row's part in the result is decided; None: every row's value is part of the result."""
    if request.form == "ranking":
        return None if request.top_k is None else TopK(request.top_k)
    return Positive() if request.each_label_alone else TopK(1, ends_decided=True)
