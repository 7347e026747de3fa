"""GGUF files with random weights, of any size and type, with a tokenizer where one is wanted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.runtime.gguf.header import TYPES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dynx.runtime.gguf.header import TensorInfo

WIDTH, INNER, VOCABULARY, HEADS, GROUPS = 256, 512, 96, 4, 2
FLOAT16_FIELDS = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
"""Where the blocks of a type hold scales; at their beginning for the others."""


def random_blocks(rng: np.random.Generator, kind: str, rows: int, columns: int, scale: float) -> NDArray[np.uint8]:
    """Return rows of a quantized matrix in which every bit is random, but for the scales, normal with deviation `scale`."""
    _, values, size = next(entry for entry in TYPES.values() if entry[0] == kind)
    blocks = rng.integers(0, 256, (rows, columns // values, size), np.uint8)
    for at in FLOAT16_FIELDS.get(kind, (0,)):
        scales = rng.normal(0, scale, (*blocks.shape[:2], 1)).astype(np.float16)
        blocks[:, :, at : at + 2] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


def write(
    path: Path,
    architecture: str = "llama",
    kind: str = "F32",
    *,
    layers: int = 1,
    width: int = WIDTH,
    inner: int = INNER,
    vocabulary: int = VOCABULARY,
    context: int = 64,
    tokenizer: Any = None,
    template: str | None = None,
    **metadata: str,
) -> Path:
    """Write a model with random weights; a layer has the rows of the one before in another order.

    `tokenizer` is a byte-level one of transformers, else tokens are names alone. Matrices are rounded to `kind`, or random
    where gguf can't write it. `metadata` has "__" for ".".
    """
    import gguf

    rng = np.random.default_rng(7)
    head = width // HEADS
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_key_length(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_sliding_window(32)
    writer.add_tokenizer_model("gpt2")
    if tokenizer is None:
        writer.add_token_list([f"t{i}" for i in range(vocabulary)])
    else:
        vocabulary = max(vocabulary, len(tokenizer))
        known = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        ends = set(tokenizer.all_special_ids)
        writer.add_token_list(names + [f"[{i}]" for i in range(len(names), vocabulary)])
        writer.add_token_types([3 if i in ends else 1 if i < len(names) else 5 for i in range(vocabulary)])
        writer.add_token_merges([" ".join(pair) for pair in known["merges"]])
        writer.add_tokenizer_pre("default")
        writer.add_eos_token_id(tokenizer.eos_token_id)
    if template is not None:
        writer.add_chat_template(template)
    writer.add_vocab_size(vocabulary)
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value)
    keys = head * GROUPS
    shapes = {
        "attn_q": (width, width),
        "attn_k": (keys, width),
        "attn_v": (keys, width),
        "attn_output": (width, width),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    number = gguf.GGMLQuantizationType[kind]

    def matrix(shape: tuple[int, int]) -> NDArray[Any]:
        try:
            return gguf.quants.quantize(rng.normal(0, 0.1, shape).astype(np.float32), number)
        except NotImplementedError:
            return random_blocks(rng, kind, *shape, 0.003)

    writer.add_tensor("token_embd.weight", matrix((vocabulary, width)), raw_dtype=number)
    parts = {part: matrix(shape) for part, shape in shapes.items()}
    norms = {"attn_norm": width, "ffn_norm": width}
    if architecture in ("qwen3", "gemma3"):
        norms |= {"attn_q_norm": head, "attn_k_norm": head}
    if architecture == "gemma3":
        norms |= {"post_attention_norm": width, "post_ffw_norm": width}
    vectors = {f"{name}.weight": rng.normal(1, 0.1, size).astype(np.float32) for name, size in norms.items()}
    if architecture == "qwen2":
        for part in ("attn_q", "attn_k", "attn_v"):
            vectors[f"{part}.bias"] = rng.normal(0, 0.1, shapes[part][0]).astype(np.float32)
    for layer in range(layers):
        for part, values in parts.items():
            writer.add_tensor(f"blk.{layer}.{part}.weight", np.roll(values, layer, axis=0), raw_dtype=number)
        for name, vector in vectors.items():
            writer.add_tensor(f"blk.{layer}.{name}", vector)
    writer.add_tensor("output_norm.weight", rng.normal(1, 0.1, width).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dequantized(tensor: TensorInfo) -> NDArray[np.float32]:
    """Return a tensor's values as the package gguf unpacks them."""
    import gguf

    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        raw = np.frombuffer(file.read(tensor.size), np.uint8)
    if tensor.type == "F32":
        return raw.view(np.float32).reshape(tensor.shape)
    found = gguf.quants.dequantize(raw.reshape(tensor.shape[0], -1), gguf.GGMLQuantizationType[tensor.type])
    return np.asarray(found, np.float32)
