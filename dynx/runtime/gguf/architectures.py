"""The architectures of GGUF files that dynx reads: their configuration by transformers' names, and where each tensor belongs.

llama.cpp stores some tensors otherwise than transformers does, which each architecture's entry undoes: rows of queries and keys
in another order where rotations pair neighbours, Gemma's norms with one added, GPT-2's matrices transposed, an expert layer's
gates and inner projections apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynx.errors import ModelError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dynx.runtime.gguf.header import Header

DEFAULT_ROPE_BASE = 10000.0
ROTATION_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies, which Llama 3.1 and its like come with."""

BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
QWEN3 = LLAMA | {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
EXPERTS = QWEN3 | {"ffn_gate_inp": "mlp.gate"}
GEMMA2 = LLAMA | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GEMMA3 = GEMMA2 | {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
PHI3 = LLAMA | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
STARCODER2 = LLAMA | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
GPT2_OUTER = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


@dataclass(frozen=True)
class Target:
    """Where a tensor of the file belongs in the model, and how it gets its shape."""

    parameter: str
    heads: int = 0
    """Heads whose rows are in llama.cpp's order; 0 where rows are in transformers' own."""
    shift: float = 0.0
    """Added to the values."""
    transposed: bool = False
    part: tuple[int, int] | None = None
    """(index, count): the share of the parameter's second dimension that the tensor fills."""


@dataclass(frozen=True)
class Architecture:
    """How transformers calls an architecture and its parts."""

    model_type: str
    model_class: str
    blocks: Mapping[str, str]
    config: Callable[[Header], dict[str, Any]]
    outer: Mapping[str, str] | None = None
    layers: str = "model.layers"
    permuted: bool = False
    norms_plus_one: bool = False

    def target(self, name: str, header: Header) -> Target | None:
        """Return where the tensor `name` belongs; None for one that the model doesn't need, or doesn't know."""
        outer = OUTER if self.outer is None else self.outer
        stem, _, leaf = name.rpartition(".")
        shift = -1.0 if self.norms_plus_one and stem.endswith("norm") else 0.0
        if stem in outer:
            return Target(f"{outer[stem]}.{leaf}", shift=shift)
        found = BLOCK.fullmatch(name)
        if found is None:
            return None
        layer, part, leaf = found.groups()
        inside = f"{self.layers}.{layer}"
        if part in ("ffn_gate_exps", "ffn_up_exps"):
            return Target(f"{inside}.mlp.experts.gate_up_proj", part=(int(part == "ffn_up_exps"), 2))
        if part == "ffn_down_exps":
            return Target(f"{inside}.mlp.experts.down_proj")
        if part not in self.blocks:
            return None
        heads = (
            {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}.get(part) if self.permuted else None
        )
        count = int(header.get(heads) or header.get("attention.head_count")) if heads else 0
        transposed = (
            self.model_type == "gpt2" and leaf == "weight" and part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
        )
        return Target(f"{inside}.{self.blocks[part]}.{leaf}", count, shift, transposed)


def architecture_of(header: Header, name: str) -> Architecture:
    """Return how to read a file's architecture. Raises UnsupportedModelError with those that are supported."""
    found = ARCHITECTURES.get(header.architecture)
    if found is None:
        raise UnsupportedModelError(
            f"{name} is of architecture {header.architecture}, which dynx doesn't read from GGUF files",
            hint=f"supported: {', '.join(ARCHITECTURES)}",
        )
    return found


def config_of(header: Header, name: str) -> dict[str, Any]:
    """Return the model's configuration as transformers' config.json holds it. Raises ModelError."""
    found = architecture_of(header, name)
    try:
        config = found.config(header)
    except KeyError as e:
        raise ModelError(f"{name} lacks the metadata {e.args[0]}") from None
    except (TypeError, ValueError, ZeroDivisionError) as e:
        raise ModelError(f"{name} has metadata that make no model ({e})") from None
    ids = {key: header.metadata.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", "eos_token_id")}
    return {
        "model_type": found.model_type,
        "architectures": [found.model_class],
        "dtype": _dtype(header),
        **config,
        **ids,
        "pad_token_id": header.metadata.get("tokenizer.ggml.padding_token_id"),
    }


def _dtype(header: Header) -> str:
    """Name the precision that the file's matrices are stored in; bfloat16 for integers."""
    types = {tensor.type for tensor in header.tensors if len(tensor.shape) > 1}
    if types <= {"F32"}:
        return "float32"
    return "float16" if types <= {"F32", "F16"} else "bfloat16"


def _required(header: Header, key: str) -> Any:
    value = header.get(key)
    if value is None:
        raise KeyError(f"{header.architecture}.{key}")
    if isinstance(value, list):
        if not value or any(each != value[0] for each in value):
            raise ValueError(f"{header.architecture}.{key} differs between layers")
        return value[0]
    return value


def _shape(header: Header, name: str) -> tuple[int, ...]:
    for tensor in header.tensors:
        if tensor.name == name:
            return tensor.shape
    raise KeyError(f"the tensor {name}")


def _basic(header: Header) -> dict[str, Any]:
    """Sizes that all architectures with rotations state in the same way."""
    heads, hidden = _required(header, "attention.head_count"), _required(header, "embedding_length")
    if header.get("expert_count") and not header.architecture.endswith("moe"):
        raise ValueError("experts, of an architecture without")
    groups = heads if header.get("attention.head_count_kv") is None else _required(header, "attention.head_count_kv")
    return {
        "hidden_size": hidden,
        "intermediate_size": _required(header, "feed_forward_length"),
        "num_hidden_layers": _required(header, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": header.get("attention.key_length") or hidden // heads,
        "max_position_embeddings": _required(header, "context_length"),
        "vocab_size": _shape(header, "token_embd.weight")[0],
        "tie_word_embeddings": "output.weight" not in header.names,
        "rope_parameters": _rotations(header),
    }


def _rotations(header: Header) -> dict[str, Any]:
    base = float(header.get("rope.freq_base") or DEFAULT_ROPE_BASE)
    kind, factor = header.get("rope.scaling.type"), header.get("rope.scaling.factor") or header.get("rope.scale_linear")
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if kind == "yarn":
        original = header.get("rope.scaling.original_context_length")
        found |= {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
    elif kind == "longrope" or any(name.startswith("rope_factors_") for name in header.names):
        raise ValueError("rotations scaled by longrope aren't supported")
    elif kind not in (None, "none", "linear"):
        raise ValueError(f"rotations scaled by {kind} aren't supported")
    elif factor and factor != 1 and kind != "none":
        found |= {"rope_type": "linear", "factor": float(factor)}
    return found


def _rms(header: Header) -> dict[str, Any]:
    return _basic(header) | {"rms_norm_eps": _required(header, "attention.layer_norm_rms_epsilon")}


def _llama(header: Header) -> dict[str, Any]:
    biased = {
        "attention_bias": "blk.0.attn_q.bias" in header.names,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.names,
    }
    return _rms(header) | biased


def _qwen3_moe(header: Header) -> dict[str, Any]:
    inner = _required(header, "expert_feed_forward_length")
    return _rms(header) | {
        "intermediate_size": header.get("feed_forward_length") or inner,
        "moe_intermediate_size": inner,
        "num_experts": _required(header, "expert_count"),
        "num_experts_per_tok": _required(header, "expert_used_count"),
        "norm_topk_prob": True,
    }


def _granite(header: Header) -> dict[str, Any]:
    return _llama(header) | {
        "attention_multiplier": _required(header, "attention.scale"),
        "embedding_multiplier": _required(header, "embedding_scale"),
        "residual_multiplier": _required(header, "residual_scale"),
        "logits_scaling": _required(header, "logit_scale"),
    }


def _gemma2(header: Header) -> dict[str, Any]:
    found = _rms(header)
    wide = found["num_hidden_layers"] == 46  # the 27B model scales by another width, which no file states
    return found | {
        "query_pre_attn_scalar": found["hidden_size"] // found["num_attention_heads"] if wide else found["head_dim"],
        "sliding_window": header.get("attention.sliding_window"),
        "attn_logit_softcapping": header.get("attn_logit_softcapping"),
        "final_logit_softcapping": header.get("final_logit_softcapping"),
    }


def _gemma3(header: Header) -> dict[str, Any]:
    found = _rms(header)
    wide = found["num_hidden_layers"] == 62  # as above
    local = float(header.get("rope.freq_base_swa") or DEFAULT_ROPE_BASE)
    return found | {
        "query_pre_attn_scalar": found["hidden_size"] // found["num_attention_heads"] if wide else found["head_dim"],
        "sliding_window": header.get("attention.sliding_window"),
        "final_logit_softcapping": header.get("final_logit_softcapping"),
        "rope_parameters": {
            "full_attention": found["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }


def _starcoder2(header: Header) -> dict[str, Any]:
    return _basic(header) | {
        "norm_epsilon": _required(header, "attention.layer_norm_epsilon"),
        "use_bias": "blk.0.attn_q.bias" in header.names,
        "sliding_window": header.get("attention.sliding_window"),
    }


def _phi3(header: Header) -> dict[str, Any]:
    found = _rms(header)
    width = header.get("rope.dimension_count") or found["head_dim"]
    found["rope_parameters"]["partial_rotary_factor"] = width / found["head_dim"]
    window = header.get("attention.sliding_window")
    original = header.get("rope.scaling.original_context_length") or found["max_position_embeddings"]
    return found | {"sliding_window": window, "original_max_position_embeddings": original}


def _gpt2(header: Header) -> dict[str, Any]:
    return {
        "n_embd": _required(header, "embedding_length"),
        "n_layer": _required(header, "block_count"),
        "n_head": _required(header, "attention.head_count"),
        "n_positions": _required(header, "context_length"),
        "n_inner": _required(header, "feed_forward_length"),
        "layer_norm_epsilon": _required(header, "attention.layer_norm_epsilon"),
        "vocab_size": _shape(header, "token_embd.weight")[0],
        "tie_word_embeddings": "output.weight" not in header.names,
    }


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM", LLAMA, _llama, permuted=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", LLAMA, _rms),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", QWEN3, _rms),
    "qwen3moe": Architecture("qwen3_moe", "Qwen3MoeForCausalLM", EXPERTS, _qwen3_moe),
    "gemma": Architecture("gemma", "GemmaForCausalLM", LLAMA, _rms, norms_plus_one=True),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", GEMMA2, _gemma2, norms_plus_one=True),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", GEMMA3, _gemma3, norms_plus_one=True),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", PHI3, _phi3),
    "starcoder2": Architecture("starcoder2", "Starcoder2ForCausalLM", STARCODER2, _starcoder2),
    "gpt2": Architecture("gpt2", "GPT2LMHeadModel", GPT2, _gpt2, outer=GPT2_OUTER, layers="transformer.h"),
    "granite": Architecture("granite", "GraniteForCausalLM", LLAMA, _granite, permuted=True),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", LLAMA, _llama, permuted=True),
}
"""By llama.cpp's names."""
