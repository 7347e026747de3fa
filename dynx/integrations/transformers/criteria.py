"""A stopping criterion made of one for each sequence of a batch, so that every sequence can be decoded by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.stopping_criteria import StoppingCriteria

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class BySequence(StoppingCriteria):  # type: ignore[misc]
    """Ends each sequence by the criterion of its own, which sees that sequence as a batch of one."""

    def __init__(self, criteria: Sequence[Any]) -> None:
        self.criteria = list(criteria)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return for each of the sequences (B, T) whether it has ended, (B,)."""
        ended = [ends(each, input_ids[row : row + 1]) for row, each in enumerate(self.criteria)]
        return torch.tensor(ended, device=input_ids.device)


def ends(criterion: Any, ids: Tensor) -> bool:
    """Whether a criterion ends the only sequence of `ids` (1, T)."""
    return bool(torch.as_tensor(criterion(ids, None)).all())
