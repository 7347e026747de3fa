"""Every supported architecture: a random model written in llama.cpp's layout gives the logits of the original when it is read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dynx.runtime.gguf.architectures import ARCHITECTURES, ROTATION_FACTORS, config_of
from dynx.runtime.gguf.blocks import READERS
from dynx.runtime.gguf.header import INTEGER_TYPES, read_header
from dynx.runtime.gguf.tensors import fill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

gguf = pytest.importorskip("gguf")

VOCABULARY, LAYERS = 64, 7  # Gemma 3 has a layer of full attention among six
BASIC: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
SOFT = {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0}
GRANITE = {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16, "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 16},
    "qwen3moe": {
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "norm_topk_prob": True,
    },
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16, **SOFT},
    "gemma3": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "phi3": {"tie_word_embeddings": False, "pad_token_id": None},
    "starcoder2": {"use_bias": True},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 128},
    "granite": GRANITE,
    "smollm3": {"tie_word_embeddings": True, "pad_token_id": None},
}
MATRIX_NAMES = {  # transformers' names to llama.cpp's, written out apart from the code under test
    r"model\.embed_tokens": "token_embd",
    r"model\.norm": "output_norm",
    r"lm_head": "output",
    r"self_attn\.([qkv])_proj": r"attn_\1",
    r"self_attn\.o_proj": "attn_output",
    r"self_attn\.qkv_proj": "attn_qkv",
    r"self_attn\.([qk])_norm": r"attn_\1_norm",
    r"input_layernorm": "attn_norm",
    r"mlp\.(gate|up|down)_proj": r"ffn_\1",
    r"mlp\.gate_up_proj": "ffn_up",
    r"mlp\.c_fc": "ffn_up",
    r"mlp\.c_proj": "ffn_down",
    r"mlp\.gate": "ffn_gate_inp",
    r"transformer\.wte": "token_embd",
    r"transformer\.wpe": "position_embd",
    r"transformer\.ln_f": "output_norm",
    r"ln_1": "attn_norm",
    r"ln_2": "ffn_norm",
    r"attn\.c_attn": "attn_qkv",
    r"attn\.c_proj": "attn_output",
}
GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def original(architecture: str) -> Any:
    """A model of transformers' own with random weights, norms and biases included."""
    own = MODELS[architecture]
    settings = own if architecture == "gpt2" else BASIC | own
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(ARCHITECTURES[architecture].model_type, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.2 * torch.randn_like(parameter))
    return model.eval()


def stored(architecture: str, model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a model as llama.cpp's converter writes them."""
    config = model.config
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if "mlp.experts" in name:
            prefix = f"blk.{name.split('.')[2]}."
            if name.endswith("down_proj"):
                yield f"{prefix}ffn_down_exps.weight", values
            else:
                gate, up = np.split(values, 2, axis=1)
                yield f"{prefix}ffn_gate_exps.weight", np.ascontiguousarray(gate)
                yield f"{prefix}ffn_up_exps.weight", np.ascontiguousarray(up)
            continue
        stem, _, leaf = name.rpartition(".")
        block = re.fullmatch(r"(?:model\.layers|transformer\.h)\.(\d+)\.(.+)", stem)
        part = block[2] if block else stem
        table = MATRIX_NAMES | (
            {"post_attention_layernorm": "ffn_norm"} if architecture not in ("gemma2", "gemma3") else GEMMA_NORMS
        )
        found = next(re.sub(old, new, part) for old, new in table.items() if re.fullmatch(old, part))
        if architecture in ("llama", "granite", "smollm3") and found in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if found == "attn_q" else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if architecture.startswith("gemma") and found.endswith("norm"):
            values = values + 1
        if architecture == "gpt2" and found in ("attn_qkv", "attn_output", "ffn_up", "ffn_down") and leaf == "weight":
            values = values.T
        yield f"{f'blk.{block[1]}.' if block else ''}{found}.{leaf}", np.ascontiguousarray(values)


def written(path: Path, architecture: str, model: Any, extra: dict[str, np.ndarray] | None = None) -> Path:
    """Write a model as a GGUF file in float32."""
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    get = lambda *names: next(getattr(config, n) for n in names if hasattr(config, n))  # noqa: E731
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * 32)
    writer.add_head_count(4)
    if architecture != "gpt2":
        writer.add_head_count_kv(2)
        rope = config.rope_parameters
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
        writer.add_key_length(getattr(config, "head_dim", None) or 8)
    if architecture in ("gpt2", "starcoder2"):
        writer.add_layer_norm_eps(get("layer_norm_epsilon", "norm_epsilon"))
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "qwen3moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if architecture == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    for name, values in [*stored(architecture, model), *(extra or {}).items()]:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def loaded(path: Path) -> Any:
    header = read_header(path)
    settings = {key: value for key, value in config_of(header, path.name).items() if key != "bos_token_id"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    fill(model, header, path.name)
    return model.eval()


def test_all_are_here() -> None:
    assert MODELS.keys() == ARCHITECTURES.keys()
    assert READERS.keys() == INTEGER_TYPES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_the_original_s(architecture: str, tmp_path: Path) -> None:
    """Beyond the sliding window too, of which the texts are twice as long."""
    model = original(architecture)
    ids = torch.randint(0, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(1))

    again = loaded(written(tmp_path / "model.gguf", architecture, model))

    with torch.inference_mode():
        want, got = model(ids, use_cache=False).logits, again(ids, use_cache=False).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert float(want.std()) > 0.05


def test_factors_of_rotations_are_those_of_llama3(tmp_path: Path) -> None:
    """The tensor of divisors stands for the scaling that transformers calculates from the configuration."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 16, "rope_theta": 10000.0}
    settings = BASIC | {"head_dim": 16, "rope_parameters": scaling, "max_position_embeddings": 128}
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings)).eval()
    plain = 1.0 / (10000.0 ** (torch.arange(0, 16, 2) / 16))
    factors = (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    assert factors.max() > 4

    again = loaded(written(tmp_path / "model.gguf", "llama", model, {ROTATION_FACTORS: factors}))

    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
