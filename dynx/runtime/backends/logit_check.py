"""How far a backend's passes are from the model that it was made of: the question before any changed kernels are used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dynx.runtime.backends.eager import EagerBackend


@dataclass(frozen=True)
class Gap:
    """The largest difference of a logit, at which width, and the largest logit or 1, by which to judge it."""

    gap: float
    width: int
    scale: float


@torch.inference_mode()
def farthest(backend: EagerBackend, tokens: Sequence[int], start: int, widths: Sequence[int]) -> Gap:
    """Passes of `widths` tokens behind the first `start`, after something else was rolled back, against one stock pass over all.

    A difference that isn't a number is the largest.
    """
    ids = torch.tensor([list(tokens)], device=backend.device)
    want: Tensor = backend.model(input_ids=ids, use_cache=False).logits[0].float()
    session = backend.open()
    session.forward(tokens[:start])
    worst = Gap(0.0, widths[0], max(1.0, want.abs().max().item()))
    for width in widths:
        session.forward(tokens[:2])  # to be forgotten
        session.rollback(start)
        rows = session.forward(tokens[start : start + width]).float()
        session.rollback(start)
        gap = (rows - want[start : start + width]).abs().max().item()
        if not gap <= worst.gap:
            worst = Gap(gap, width, worst.scale)
            if math.isnan(gap):
                break
    return worst
