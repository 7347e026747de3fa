"""A row's value among its group, made of the model's logits: a cross-encoder's score, or the entailment of a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.early_exit.groups.rule import Positive, TopK
from dynx.errors import InvalidInput, UnsupportedModelError

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


def each_label_alone(request: ClassifierRequest) -> bool:
    """Whether candidate labels are judged each by itself: several may hold, or there is only one."""
    return request.multi_label or len(request.candidates) == 1


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
    if not each_label_alone(request):
        return Values(entailment)
    return Values(entailment, count - 1 if entailment == 0 else 0)  # as transformers' pipeline takes contradiction


def rule_of(request: ClassifierRequest) -> GroupRule | None:
    """Return when a row's part in the result is decided; None: every row's value is part of the result."""
    if request.form == "ranking":
        return None if request.top_k is None else TopK(request.top_k)
    return Positive() if each_label_alone(request) else TopK(1, ends_decided=True)


def check(request: ClassifierRequest) -> None:
    """Raise InvalidInput for settings of groups that don't fit each other."""
    if request.form == "ranking" and request.top_k is not None and request.top_k < 1:
        raise InvalidInput(f"`top_k` {request.top_k}: at least 1")
    if request.form != "zero-shot":
        if request.candidates:
            raise InvalidInput("`candidates` are for the form zero-shot")
        return
    if not request.candidates or not all(label.strip() for label in request.candidates):
        raise InvalidInput("`candidates` are the labels to choose from: at least one, and none empty")
    if len(set(request.candidates)) < len(request.candidates):
        twice = next(label for label in request.candidates if request.candidates.count(label) > 1)
        raise InvalidInput(f"`candidates` has {twice} twice")
    try:
        made = request.hypothesis.format(request.candidates[0])
    except (IndexError, KeyError, ValueError) as e:
        raise InvalidInput(f"`hypothesis` {request.hypothesis!r} can't take a label: {e}") from None
    if made == request.hypothesis:
        raise InvalidInput(f"`hypothesis` {request.hypothesis!r} has no {{}} for the label")
