"""Draft heads in the formats in which they are published, with random weights, for tiny models.

Configurations have the keys of these files on the Hugging Face hub, with small numbers:

* EAGLE-3: `config.json` of yuhuili/EAGLE3-LLaMA3.1-Instruct-8B; tensors `midlayer.*`, `fc`, `norm`, `lm_head`, `d2t`, `t2d`;
* the same as the package speculators writes it: RedHatAI/Llama-3.1-8B-Instruct-speculator.eagle3, tensors `layers.0.*`;
* EAGLE: `config.json` of yuhuili/EAGLE-LLaMA3-Instruct-8B; tensors `embed_tokens`, `fc`, `layers.0.*`, without norms at its ends;
* Medusa: `config.json` of FasterDecoding/medusa-vicuna-7b-v1.3; tensors `0.0.linear.weight`, `0.1.weight`, …;
* multi-token prediction: `mtp.*` beside the weights of Qwen/Qwen3-Next-80B-A3B-Instruct and Qwen/Qwen3.5-0.8B, and the block
  behind the last of deepseek-ai/DeepSeek-V3 and zai-org/GLM-4.5.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from support.models import VOCAB, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

DRAFT_VOCAB = 40
SIZE = 32

_LLAMA: dict[str, Any] = {
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": SIZE,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.28.1",
    "use_cache": True,
    "vocab_size": VOCAB,
}
EAGLE3: dict[str, Any] = {"architectures": ["LlamaForCausalLMEagle3"], **_LLAMA, "draft_vocab_size": DRAFT_VOCAB}
EAGLE: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], **_LLAMA, "bias": True}
SPECULATOR: dict[str, Any] = {
    "architectures": ["Eagle3Speculator"],
    "speculators_model_type": "eagle3",
    "draft_vocab_size": DRAFT_VOCAB,
    "norm_before_residual": True,
    "target_hidden_size": None,
    "transformer_layer_config": {**_LLAMA, "head_dim": 8},
    "speculators_config": {"algorithm": "eagle3", "default_proposal_method": "greedy"},
}
MEDUSA: dict[str, Any] = {
    "base_model_name_or_path": "lmsys/vicuna-7b-v1.3",
    "medusa_num_heads": 3,
    "medusa_num_layers": 1,
    "transformers_version": "4.31.0",
}

NEXT_TOKEN_MODELS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "hidden_size": SIZE,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 64,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_nextn_predict_layers": 1,
    },
    "glm4_moe": {
        "hidden_size": SIZE,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 1,
    },
}
"""Models whose next-token layer is the block behind the last."""


def write_head(folder: Path, config: dict[str, Any], weights: dict[str, Tensor], name: str = "model") -> Path:
    """Write a head's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / f"{name}.safetensors")
    return folder


def _matrix(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator) * shape[-1] ** -0.5


def _norm(generator: torch.Generator, size: int = SIZE) -> Tensor:
    return 1 + 0.2 * torch.randn(size, generator=generator)


def layer(generator: torch.Generator, prefix: str, width: int) -> dict[str, Tensor]:
    """The weights of a Llama layer whose attention reads `width` numbers."""
    return {
        f"{prefix}self_attn.q_proj.weight": _matrix(generator, SIZE, width),
        f"{prefix}self_attn.k_proj.weight": _matrix(generator, SIZE // 2, width),
        f"{prefix}self_attn.v_proj.weight": _matrix(generator, SIZE // 2, width),
        f"{prefix}self_attn.o_proj.weight": _matrix(generator, SIZE, SIZE),
        f"{prefix}mlp.gate_proj.weight": _matrix(generator, 64, SIZE),
        f"{prefix}mlp.up_proj.weight": _matrix(generator, 64, SIZE),
        f"{prefix}mlp.down_proj.weight": _matrix(generator, SIZE, 64),
        f"{prefix}post_attention_layernorm.weight": _norm(generator),
    }


def eagle3_weights(seed: int = 0, prefix: str = "midlayer.") -> dict[str, Tensor]:
    """Random weights of an EAGLE-3 head that drafts every token but those of an arithmetic row."""
    generator = torch.Generator().manual_seed(seed)
    kept = [token for token in range(VOCAB) if token % 8 not in (3, 5, 6)][:DRAFT_VOCAB]
    marks = torch.zeros(VOCAB, dtype=torch.bool)
    marks[kept] = True
    return {
        **layer(generator, prefix, 2 * SIZE),
        f"{prefix}input_layernorm.weight": _norm(generator),
        f"{prefix}hidden_norm.weight": _norm(generator),
        "fc.weight": _matrix(generator, SIZE, 3 * SIZE),
        "norm.weight": _norm(generator),
        "lm_head.weight": 4 * _matrix(generator, DRAFT_VOCAB, SIZE),
        "d2t": torch.tensor(kept) - torch.arange(DRAFT_VOCAB),
        "t2d": marks,
    }


def eagle_weights(seed: int = 0) -> dict[str, Tensor]:
    """Random weights of an EAGLE head."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "embed_tokens.weight": _matrix(generator, VOCAB, SIZE),
        "fc.weight": _matrix(generator, SIZE, 2 * SIZE),
        "fc.bias": 0.1 * torch.randn(SIZE, generator=generator),
        **layer(generator, "layers.0.", SIZE),
    }


def medusa_weights(seed: int = 0, heads: int = 3) -> dict[str, Tensor]:
    """Random weights of Medusa heads."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for number in range(heads):
        out[f"{number}.0.linear.weight"] = _matrix(generator, SIZE, SIZE)
        out[f"{number}.0.linear.bias"] = 0.1 * torch.randn(SIZE, generator=generator)
        out[f"{number}.1.weight"] = 4 * _matrix(generator, VOCAB, SIZE)
    return out


def write_with_mtp(folder: Path, kind: str, *, seed: int = 0, vocab: int = VOCAB) -> Path:
    """A model with its own multi-token prediction: the last full-attention block once more, of other weights."""
    if kind in NEXT_TOKEN_MODELS:
        return _write_next_token_model(folder, kind, vocab)
    model, other = tiny(kind, seed=seed, vocab=vocab), tiny(kind, seed=seed + 1, vocab=vocab)
    model.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed + 7)
    full = model.config.layer_types.index("full_attention")
    other.save_pretrained(folder / "other")
    state = load_file(folder / "other" / "model.safetensors")
    for file in (folder / "other").iterdir():
        file.unlink()
    (folder / "other").rmdir()
    begin = next(name for name in state if f"layers.{full}." in name).split(f"layers.{full}.")[0] + f"layers.{full}."
    weights = {f"mtp.layers.0.{name[len(begin) :]}": each for name, each in state.items() if name.startswith(begin)}
    weights |= {
        "mtp.fc.weight": _matrix(generator, SIZE, 2 * SIZE),
        "mtp.norm.weight": 0.2 * torch.randn(SIZE, generator=generator),
        "mtp.pre_fc_norm_hidden.weight": 0.2 * torch.randn(SIZE, generator=generator),
        "mtp.pre_fc_norm_embedding.weight": 0.2 * torch.randn(SIZE, generator=generator),
    }
    add_weights(folder, weights)
    return folder


def add_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Add tensors to a folder's file."""
    file = folder / "model.safetensors"
    save_file({**load_file(file), **{n: w.contiguous().clone() for n, w in weights.items()}}, file, {"format": "pt"})


def _write_next_token_model(folder: Path, kind: str, vocab: int) -> Path:
    from support import models

    settings = NEXT_TOKEN_MODELS[kind]
    before = models.STATEFUL.get(kind)
    models.STATEFUL[kind] = settings
    try:
        model = tiny(kind, vocab=vocab)
        longer = tiny(kind, seed=3, vocab=vocab, num_hidden_layers=3)
    finally:
        if before is None:
            del models.STATEFUL[kind]
    model.save_pretrained(folder)
    longer.save_pretrained(folder / "longer")
    state = load_file(folder / "longer" / "model.safetensors")
    for file in (folder / "longer").iterdir():
        file.unlink()
    (folder / "longer").rmdir()
    generator = torch.Generator().manual_seed(5)
    weights = {name: each for name, each in state.items() if name.startswith("model.layers.2.")}
    weights |= {
        "model.layers.2.eh_proj.weight": _matrix(generator, SIZE, 2 * SIZE),
        "model.layers.2.enorm.weight": _norm(generator),
        "model.layers.2.hnorm.weight": _norm(generator),
        "model.layers.2.shared_head.norm.weight": _norm(generator),
    }
    add_weights(folder, weights)
    return folder


def loaded(folder: Path) -> Any:
    """The model of a folder, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
