"""Write a Llama's weights in the formats of `compare.py`'s peers, beside the weights.

    python tests/peers/prepare.py MODEL openvino   # with optimum-intel, which wants an older transformers
    python tests/peers/prepare.py MODEL gguf       # with gguf

OpenVINO: Optimum's stateful export in half precision, and NNCF's int8 of it. GGUF: bf16 and q8_0; llama.cpp rotates pairs of
neighbours, so the rows of queries and keys are put in that order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def openvino(model: Path) -> None:
    """MODEL/openvino-fp16, MODEL/openvino-int8, MODEL/drafter/openvino-fp16."""
    from openvino import save_model
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from transformers import AutoTokenizer

    for folder, bits in ((model, 16), (model, 8), (model / "drafter", 16)):
        quantization = OVWeightQuantizationConfig(bits=8) if bits == 8 else None
        place = folder / ("openvino-int8" if bits == 8 else "openvino-fp16")
        exported = OVModelForCausalLM.from_pretrained(
            folder, export=True, compile=False, load_in_8bit=False, quantization_config=quantization
        )
        exported.save_pretrained(place)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.save_pretrained(place)
        for each, name in zip(
            convert_tokenizer(tokenizer, with_detokenizer=True), ("tokenizer", "detokenizer"), strict=True
        ):
            save_model(each, place / f"openvino_{name}.xml")


def gguf(model: Path) -> None:
    """MODEL/bf16.gguf and MODEL/q8_0.gguf."""
    import gguf as library
    from safetensors.torch import load_file

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    words = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    weights = load_file(model / "model.safetensors")
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    types = library.GGMLQuantizationType
    for name, stored in (("bf16", types.BF16), ("q8_0", types.Q8_0)):
        out = library.GGUFWriter(model / f"{name}.gguf", "llama")
        out.add_context_length(config["max_position_embeddings"])
        out.add_embedding_length(config["hidden_size"])
        out.add_block_count(config["num_hidden_layers"])
        out.add_feed_forward_length(config["intermediate_size"])
        out.add_head_count(heads)
        out.add_head_count_kv(shared)
        out.add_rope_dimension_count(config["head_dim"])
        out.add_key_length(config["head_dim"])
        out.add_value_length(config["head_dim"])
        out.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
        out.add_layer_norm_rms_eps(config["rms_norm_eps"])
        out.add_vocab_size(config["vocab_size"])
        _vocabulary(out, words, config["vocab_size"])
        for key, tensor in weights.items():
            value = tensor.float()
            if ".q_proj." in key or ".k_proj." in key:
                count = heads if ".q_proj." in key else shared
                value = value.reshape(count, 2, -1, value.shape[-1]).transpose(1, 2).reshape(value.shape)
            array = value.contiguous().numpy()
            kind = stored if tensor.dim() == 2 else types.F32
            data = library.quants.quantize(array, kind)
            out.add_tensor(_renamed(key), data, raw_shape=data.shape, raw_dtype=kind)
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()


def _vocabulary(out: Any, words: dict[str, Any], size: int) -> None:
    """Enough for a model that is given ids: the pieces, and byte-level BPE as the way they join."""
    by_id = {index: piece for piece, index in words["vocab"].items()}
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list([by_id.get(i, f"<{i}>") for i in range(size)])
    out.add_token_types([1] * size)
    out.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in words["merges"]])
    out.add_bos_token_id(0)
    out.add_eos_token_id(0)


def _renamed(key: str) -> str:
    if not key.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(
            key, "output.weight"
        )
    _, _, number, rest = key.split(".", 3)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    return f"blk.{number}.{names[rest.removesuffix('.weight')]}.weight"


if __name__ == "__main__":
    {"openvino": openvino, "gguf": gguf}[sys.argv[2]](Path(sys.argv[1]))
