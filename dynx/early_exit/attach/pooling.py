"""Pool a block's hidden states into one vector per row, the features of an exit head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["text", "image"]
Style = Literal["first", "last", "mean", "channels_first", "channels_last", "tokens"]

COUNTED = "counted"
"""Name of the input (R, T) that is 1 for tokens whose labels count, of models that label tokens."""


def pool(hidden: Tensor, mask: Tensor | None, kind: Kind, style: Style) -> Tensor:
    """Pool the hidden states of R rows into features (R, F), float32.

    `hidden` is (R, T, D) for text and for images cut into tokens, (R, C, H, W) or (R, H, W, C) for feature maps. `mask`
    (R, T) has 1 where a token counts; None where all do, and always for images. By style:

    * first: the first token beside the mean of all that count, F = 2 D (encoders, and images with a class token);
    * last: the last token that counts beside the mean, F = 2 D (causal models, whose first token attends to nothing else);
    * mean: F = D; channels_first, channels_last: the mean over the places of a map, F = C;
    * tokens: the states of all tokens, (R, T, D), NaN for those that don't count (models that label tokens).

    ValueError: a style for other shapes, or a mask for other rows or fewer tokens than the hidden states have.
    """
    hidden = hidden.float()
    if style in ("channels_first", "channels_last"):
        if hidden.dim() != 4:
            raise ValueError(f"{style} needs four dimensions, not {hidden.dim()}")
        return hidden.mean(dim=(2, 3) if style == "channels_first" else (1, 2))
    if hidden.dim() != 3:
        raise ValueError(f"{style} needs three dimensions, not {hidden.dim()}")
    if style == "tokens":
        if mask is None:
            return hidden
        counts = F.pad(mask, (0, hidden.shape[1] - mask.shape[1])).to(hidden.device) != 0
        return hidden.masked_fill(~counts.unsqueeze(-1), torch.nan)
    if mask is None or kind == "image":
        mean = hidden.mean(dim=1)
        edge = hidden[:, -1 if style == "last" else 0]
    else:
        rows, length = hidden.shape[:2]
        if mask.dim() != 2 or mask.shape[0] != rows or mask.shape[1] > length:
            raise ValueError(f"a mask {tuple(mask.shape)} doesn't fit hidden states {tuple(hidden.shape)}")
        counts = (
            F.pad(mask, (0, length - mask.shape[1])).to(hidden.device) != 0
        )  # some models pad further by themselves
        weights = counts.unsqueeze(-1).float()
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
        edge = hidden[:, 0]
        if style == "last":
            places = torch.arange(length, device=hidden.device)
            last = (counts * places).amax(dim=1)
            edge = hidden[torch.arange(rows, device=hidden.device), last]
    return mean if style == "mean" else torch.cat([edge, mean], dim=1)


def pooling_style(model: nn.Module, kind: Kind, hidden: Tensor, *, causal: bool) -> Style:
    """Choose the pooling style for `model` from the hidden states of one of its blocks, and whether its attention is causal.

    ValueError: hidden states of a shape that no style is for.
    """
    if kind == "text" and hidden.dim() == 3:
        return "last" if causal else "first"
    if kind == "image" and hidden.dim() == 3:
        named = (name.rsplit(".", 1)[-1] for name, _ in model.named_parameters())
        return "first" if any(name in {"cls_token", "class_token", "class_embedding"} for name in named) else "mean"
    if kind == "image" and hidden.dim() == 4:
        return _map_style(model, hidden)
    raise ValueError(f"hidden states of {hidden.dim()} dimensions of {kind} can't be pooled")


def _map_style(model: Any, hidden: Tensor) -> Style:
    """Find the channels of a feature map: its two sides are mostly equal, else by the widths in the config."""
    _, first, middle, last = hidden.shape
    if (middle == last) != (first == middle):
        return "channels_first" if middle == last else "channels_last"
    widths = {
        width for name in ("hidden_sizes", "dims", "embed_dims") for width in getattr(model.config, name, None) or ()
    }
    return "channels_last" if last in widths and first not in widths else "channels_first"
