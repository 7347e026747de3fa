"""Logits of an exit at a border: of rows, or of the tokens that count where a model labels tokens.

Letters: R rows, T tokens, F features of an exit, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.early_exit.attach.pooling import COUNTED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dynx.early_exit.heads import ArrayHead
    from dynx.early_exit.segments.model import SegmentedModel


def given(model: SegmentedModel, collated: Mapping[str, Any]) -> list[str]:
    """Return the names of a batch that a run needs: the model's inputs, and which tokens count."""
    return [*model.input_names, *([COUNTED] if COUNTED in collated else [])]


def exit_logits(
    head: ArrayHead,
    features: NDArray[np.float32],
    previous: NDArray[np.float32] | None,
    counted: NDArray[Any] | None,
) -> NDArray[np.float32]:
    """Return logits (R, C) of features (R, F).

    With `counted` (R, T) they are (R, T, C) of features (R, T, F), and NaN for tokens that don't count.
    """
    if counted is None:
        return head(features, previous)
    which = counted != 0
    out = np.full((*which.shape, len(head.bias)), np.nan, dtype=np.float32)
    out[which] = head(features[which], None if previous is None else previous[which])
    return out
