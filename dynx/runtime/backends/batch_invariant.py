"""Makes passes of stock transformers models on a CPU batch-invariant: each row has the bits of a pass over its token alone.

The matrix kernels for half precision and int8 already compute each row of a pass in an order that doesn't depend on how many
there are. PyTorch's attention doesn't: over several queries it rounds otherwise than over one, and every later layer and every
stored key carries that on. So attention is computed one query at a time, over the keys up to that one. Whether that is enough on
this CPU is measured by the caller (`speculation.timing.measure_noise`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from dynx.runtime.backends.interface import Backend

SDPA, ROWWISE = "sdpa", "dynx_rows"

_masks: list[tuple[Tensor, list[bool]]] = []
"""The latest masks, and which of their rows hide later positions only. Layers share one mask, or two with sliding windows."""


def _open_rows(mask: Tensor) -> list[bool]:
    for known, rows in _masks:
        if known is mask:
            return rows
    count, seen = mask.shape[-2:]
    shown = mask if mask.dtype == torch.bool else mask == 0
    past = torch.ones(count, seen, dtype=torch.bool).tril(seen - count)
    rows = (shown | ~past).flatten(0, -3).all(0).all(-1).tolist()
    _masks[:] = [*_masks[-1:], (mask, rows)]
    return rows


def rowwise_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of each query (1, heads, T, head width) by itself over the positions up to its own."""
    count, seen = query.shape[2], key.shape[2]
    whole = count == 1 or count == seen or kwargs.get("position_bias") is not None
    if whole or attention_mask is None or attention_mask.shape[-2:] != (count, seen):
        out: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out
    open_rows, parts = _open_rows(attention_mask), []
    for i in range(count):
        end = seen - count + i + 1
        mask = None if open_rows[i] else attention_mask[:, :, i : i + 1, :end]  # as the model's own pass of one has it
        one = query[:, :, i : i + 1], key[:, :, :end], value[:, :, :end]
        parts.append(sdpa_attention_forward(module, *one, mask, **kwargs)[0])
    return torch.cat(parts, 1), None


def set_batch_invariant(backend: Backend, *, on: bool = True) -> Decision[bool]:
    """Switch a backend to batch-invariant attention, or back; False with the reason where it can't."""
    model = backend.model
    if str(getattr(model, "device", "cpu")) != "cpu":
        return Decision(False, "matrix kernels off the processor depend on how many rows there are")
    if backend.name != "torch-eager" or model is None:
        return Decision(False, f"{backend.name} computes attention inside its own kernels")
    known = getattr(model.config, "_attn_implementation", None)
    if known not in (ROWWISE, SDPA) or not hasattr(model, "set_attn_implementation"):
        return Decision(False, f"its attention is transformers' {known}, not {SDPA}")
    if on:
        AttentionInterface.register(ROWWISE, rowwise_attention)
        AttentionMaskInterface.register(ROWWISE, sdpa_mask)
    model.set_attn_implementation(ROWWISE if on else SDPA)
    return Decision(True, "attention is computed one row at a time")
