"""Tiny random models of many architectures, for tests that need the real thing and no checkpoint.

Weights as initialised make nearly flat logits, on which every drafter is always wrong and every difference goes unseen. These are
drawn so that each block matters, the head is sharp, and a noisy copy or an early exit is right some of the time.
"""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from dynx.runtime.backends.eager import EagerBackend, decoder_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.speculation.events import Origin
    from dynx.speculation.policy import Prospect, Round

torch.set_num_threads(1)  # a second thread costs more than these models do
logging.set_verbosity_error()  # missing fast kernels of recurrent models, on every construction

VOCAB = 64
LAYERS = 3
WINDOW = 16

_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4}
_PLAIN: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
_GROUPED: dict[str, Any] = {**_PLAIN, "num_key_value_heads": 2}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

ROLLING: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 8},
    "gpt2": {**_GPT, "n_positions": 256},
    "gpt_neox": _PLAIN,
    "gemma": {**_GROUPED, "head_dim": 8},
    "gemma2": {**_GROUPED, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "layer_types": _MIXED},
    "gemma3_text": {**_GROUPED, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "layer_types": _MIXED},
    "mistral": {**_GROUPED, "sliding_window": WINDOW},
    "phi": _PLAIN,
    "opt": {**_PLAIN, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": LAYERS, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4},
    "gptj": {**_GPT, "n_positions": 256, "rotary_dim": 8},
    "mixtral": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
}
"""Architectures whose cache can be rolled back, and what makes them tiny."""

STATEFUL: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": LAYERS, "state_size": 8},
    "jamba": {
        **_GROUPED,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
    },
}
"""Architectures with a recurrent state."""


def tiny(kind: str, *, seed: int = 0, vocab: int = VOCAB, **changes: Any) -> Any:
    """A model of `kind` whose weights are the same for the same arguments."""
    settings = {**ROLLING, **STATEFUL}[kind] | changes
    config = AutoConfig.for_model(
        kind, vocab_size=vocab, bos_token_id=None, eos_token_id=None, pad_token_id=None, tie_word_embeddings=False, **settings
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    _sharpen(model, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def _sharpen(model: Any, generator: torch.Generator) -> None:
    """Weights that keep signals at their size through a block, a head that makes up its mind, later blocks that say less."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if weight.dim() >= 2:
                scale = 1.0 if isinstance(module, nn.Embedding) else weight.shape[-1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    head.weight.mul_(4.0)
    table.weight.div_(getattr(model.config, "hidden_size", 1) ** 0.5 if model.config.model_type.startswith("gemma") else 1.0)
    for index, block in enumerate(decoder_blocks(model) or []):
        for name, weight in block.named_parameters():
            if weight.dim() >= 2:
                weight.mul_(1.0 if index == 0 else 0.6)


@torch.no_grad()
def perturbed(model: Any, amount: float = 0.1, *, seed: int = 1) -> Any:
    """`model` with noise on its matrices, in place: a drafter that is right now and then."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() >= 2:
            weight.add_(torch.randn(weight.shape, generator=generator) * weight.std() * amount)
    return model
