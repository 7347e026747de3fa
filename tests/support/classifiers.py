"""Tiny random classifiers of many architectures, text and image, and batches for them.

Weights as initialised make logits that hardly depend on the input, in which every mistake goes unseen. These are drawn so that
each block matters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification
from transformers.utils import logging

if TYPE_CHECKING:
    from collections.abc import Sequence

torch.set_num_threads(1)
logging.set_verbosity_error()

VOCAB = 64
PAD = 1
CLASSES = 5
SIDE = 32

_ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_PATCHES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": 8,
}

TEXT: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "distilbert": {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64},
    "electra": {**_ENCODER, "embedding_size": 16},
    "deberta-v2": {
        **_ENCODER,
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "conv_kernel_size": 3,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
    "albert": {**_ENCODER, "embedding_size": 16},
    "modernbert": {**_ENCODER, "local_attention": 8, "global_attn_every_n_layers": 2},
    "mpnet": _ENCODER,
    "xlm-roberta": _ENCODER,
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64},
    "llama": {**_ENCODER, "num_key_value_heads": 2},
    "bloom": {"hidden_size": 32, "n_layer": 4, "n_head": 4},
}
IMAGE: dict[str, dict[str, Any]] = {
    "vit": _PATCHES,
    "deit": {**_PATCHES, "architectures": ["DeiTForImageClassificationWithTeacher"]},
    "beit": {**_PATCHES, "use_relative_position_bias": True},
    "dinov2": {**_PATCHES, "mlp_ratio": 2},
    "swin": {
        "image_size": SIDE,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 2, 3],
        "num_heads": [1, 2, 4],
        "window_size": 4,
    },
    "convnext": {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 3, 1], "patch_size": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 3, 2], "layer_type": "bottleneck"},
}


def classifier(kind: str, *, seed: int = 0, maker: Any = None, **changes: Any) -> Any:
    """A model of `kind`, in evaluation mode, whose weights are the same for the same arguments; `maker` is its auto class."""
    is_text = kind not in IMAGE
    settings = {**(TEXT if is_text else IMAGE).get(kind, {}), **changes}
    if is_text:
        settings = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2, **settings}
    config = AutoConfig.for_model(kind, **{"num_labels": CLASSES, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        maker = maker or (AutoModelForSequenceClassification if is_text else AutoModelForImageClassification)
        model = maker.from_config(config).eval()
    _sharpen(model, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def _sharpen(model: nn.Module, generator: torch.Generator) -> None:
    """Weights that keep signals at their size, small parameters that do something, statistics of a trained norm."""
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() >= 2 and "embed" not in name and "token" not in name:
            weight.copy_(noise * weight[0].numel() ** -0.5)
        elif weight.dim() >= 2:
            weight.copy_(noise)
        else:  # biases, norms, layer scales: some of them start at zero
            weight.add_(noise * 0.1 + (0.5 if "layer_scale" in name or "lambda" in name or "gamma" in name else 0.0))


def texts(lengths: Sequence[int], *, width: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """A row of random tokens for each length, padded on the right to the longest or to `width`.

    The tokens of a row depend on the seed and its length alone, not on the rows beside it.
    """
    width = max(lengths) if width is None else width
    ids = torch.full((len(lengths), width), PAD)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        draw = torch.Generator().manual_seed(1000 * seed + length)
        ids[row, :length] = torch.randint(3, VOCAB, (length,), generator=draw)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def images(rows: int, *, side: int = SIDE, seed: int = 0) -> dict[str, Tensor]:
    """Random images (rows, 3, side, side)."""
    return {"pixel_values": torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))}


def batch(kind: str, rows: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of `rows` different rows for a model of `kind`; texts of different lengths."""
    return images(rows, seed=seed) if kind in IMAGE else texts([9 - i for i in range(rows)], seed=seed)


def rows_of(inputs: dict[str, Tensor], rows: Tensor | Sequence[int]) -> dict[str, Tensor]:
    """Some of the rows."""
    return {key: value[torch.as_tensor(rows)] for key, value in inputs.items()}
