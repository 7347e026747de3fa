"""Compares a backend's logits with those of the unmodified model, before changed kernels are used."""

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
    """The largest difference of a logit, the pass length that it occurred at, and the largest logit (at least 1) as its scale."""

    gap: float
    width: int
    scale: float


@torch.inference_mode()
def largest_difference(backend: EagerBackend, tokens: Sequence[int], start: int, widths: Sequence[int]) -> Gap:
    """Compare passes of `widths` tokens after the first `start`, each after a rollback, with one unmodified pass over all tokens.

    NaN counts as the largest difference.
    """
    ids = torch.tensor([list(tokens)], device=backend.device)
    want: Tensor = backend.model(input_ids=ids, use_cache=False).logits[0].float()
    session = backend.open()
    session.forward(tokens[:start])
    worst = Gap(0.0, widths[0], max(1.0, want.abs().max().item()))
    for width in widths:
        session.forward(tokens[:2])  # rolled back
        session.rollback(start)
        rows = session.forward(tokens[start : start + width]).float()
        session.rollback(start)
        gap = (rows - want[start : start + width]).abs().max().item()
        if not gap <= worst.gap:
            worst = Gap(gap, width, worst.scale)
            if math.isnan(gap):
                break
    return worst
