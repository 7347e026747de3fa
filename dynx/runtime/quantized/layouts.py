"""Published layouts of quantized weights, one function each: from a module's stored tensors to its weights in float32.

A function gets the tensors of one module by the end of their names and the folder's settings, and returns (outputs, inputs) as
`torch.nn.Linear` holds them. Each docstring says what the layout is, and whose. A ValueError is a layout that isn't as it says.

Letters in shapes: K inputs, N outputs, G groups of inputs that share a scale.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynx.runtime.quantized.bits import e2m1, e8m0, integers, nibbles, spread

if TYPE_CHECKING:
    from collections.abc import Mapping

    Parts = Mapping[str, Tensor]

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which of the eight numbers in a word belongs to each of eight columns (AutoAWQ's GEMM kernels interleave them)."""

NVFP4_GROUP, MXFP4_GROUP = 16, 32
DEFAULT_BLOCK = (128, 128)


def gptq(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """GPTQ, as AutoGPTQ and GPTQModel write it.

    `qweight` (K·bits/32, N) int32, packed along inputs; `qzeros` (G, N·bits/32), packed along outputs; `scales` (G, N); `g_idx`
    (K), the group of each input. Version 1 stores zeros less one. W = scale · (q - zero).
    """
    bits, scales = int(settings["bits"]), parts["scales"].float()
    groups, outputs = scales.shape
    inputs = parts["qweight"].shape[0] * 32 // bits
    quants = integers(parts["qweight"], bits, inputs, 0)
    zeros = integers(parts["qzeros"], bits, outputs, 1)
    if settings.get("checkpoint_format", "gptq") != "gptq_v2":
        zeros = (zeros + 1) & (2**bits - 1)
    of_input = parts.get("g_idx")
    of_input = torch.arange(inputs) // -(-inputs // groups) if of_input is None else of_input.long()
    if len(of_input) != inputs or zeros.shape != scales.shape or quants.shape[1] != outputs:
        raise ValueError("its parts don't belong together")
    return (scales[of_input] * (quants - zeros[of_input])).T


def awq(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """AWQ for GEMM kernels, as AutoAWQ writes it, in four bits.

    `qweight` (K, N/8) int32, packed along outputs in the order `AWQ_ORDER`; `qzeros` (G, N/8) likewise; `scales` (G, N).
    W = scale · (q - zero).
    """
    del settings
    scales = parts["scales"].float()
    groups, outputs = scales.shape

    def columns(words: Tensor) -> Tensor:
        found = integers(words, 4, outputs, 1)
        return found.view(len(found), -1, 8)[:, :, list(AWQ_ORDER)].reshape(len(found), outputs)

    quants = columns(parts["qweight"])
    zeros = columns(parts["qzeros"]) if "qzeros" in parts else torch.zeros_like(scales, dtype=torch.int32)
    size = len(quants) // groups
    return (scales.repeat_interleave(size, 0) * (quants - zeros.repeat_interleave(size, 0))).T


def bitsandbytes4(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """NF4 and FP4 of bitsandbytes: blocks of weights in reading order, each with its largest magnitude.

    `weight` holds two numbers a byte, the first in the upper half, for the 16 values of `weight.quant_map`; `weight.absmax` is
    one per block, or bytes for `weight.nested_quant_map` times `weight.nested_absmax` plus an offset. The shape, and what else
    is needed, is JSON in `weight.quant_state.bitsandbytes__nf4` (or fp4). The values are rounded to the precision that it
    names.
    """
    del settings
    state = next(tensor for name, tensor in parts.items() if name.startswith("weight.quant_state."))
    facts = json.loads(bytes(state.tolist()).decode("utf-8"))
    peaks = parts["weight.absmax"]
    if "weight.nested_absmax" in parts:
        nested = (
            parts["weight.nested_absmax"].float().repeat_interleave(int(facts["nested_blocksize"]))[: peaks.numel()]
        )
        peaks = parts["weight.nested_quant_map"].float()[peaks.long()] * nested + float(facts["nested_offset"])
    shape = [int(size) for size in facts["shape"]]
    count = shape[0] * shape[1]
    stored = parts["weight"].flatten().view(torch.uint8)
    values = parts["weight.quant_map"].float()[nibbles(stored, low_first=False).long()][:count]
    values *= peaks.float().repeat_interleave(int(facts["blocksize"]))[:count]
    return values.view(shape).to(getattr(torch, facts["dtype"])).float()


def bitsandbytes8(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """LLM.int8() of bitsandbytes: `weight` (N, K) int8 and `SCB` (N), the largest magnitudes of rows. W = weight · SCB / 127."""
    del settings
    if "weight_format" in parts and int(parts["weight_format"]) != 0:
        raise ValueError("its int8 weights are in the order of a GPU's kernels")
    return parts["weight"].float() * (parts["SCB"].float()[:, None] / 127)


def scaled(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """Weights (N, K) in float8 or int8 with scales: for all, per output, per group of inputs, or per block.

    Blocks and `weight_scale_inv` are DeepSeek's layout, a factor despite the name; the others are those of compressed-tensors
    (naive-quantized, int-quantized, float-quantized), FBGEMM and ModelOpt. W = scale · (weight - zero).
    """
    weight = parts["weight"].float()
    scale = parts["weight_scale_inv"] if "weight_scale_inv" in parts else parts["weight_scale"]
    block = tuple(settings.get("weight_block_size") or settings.get("block_structure") or DEFAULT_BLOCK)
    shape = (weight.shape[0], weight.shape[1])
    if (zero := parts.get("weight_zero_point")) is not None:
        weight -= spread(zero.float(), shape, block)
    if (order := parts.get("weight_g_idx")) is not None and scale.ndim == 2:
        return weight * scale.float()[:, order.long()]
    return weight * spread(scale.float(), shape, block)


def packed_integers(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """pack-quantized of compressed-tensors: 1 to 8 bits, signed, stored plus half their range.

    `weight_packed` (N, ⌈K·bits/32⌉) int32; `weight_shape` (2); `weight_scale` per output or (N, G); `weight_zero_point`, packed
    along outputs; `weight_g_idx` (K), the group of each input where they were reordered. W = scale · (q - zero).
    """
    outputs, inputs = (int(size) for size in parts["weight_shape"].tolist())
    width, bits = parts["weight_packed"].shape[1], int(settings["num_bits"])
    if width != -(-inputs * bits // 32):
        raise ValueError(f"{width} words a row for {inputs} numbers of {bits} bits")
    half = 2 ** (bits - 1)
    weight: Tensor = (integers(parts["weight_packed"], bits, inputs, 1) - half).float()
    scale = parts["weight_scale"].float()
    scale = scale.reshape(-1, 1) if scale.ndim < 2 else scale
    zero = parts.get("weight_zero_point")
    if zero is not None:
        signed = zero.float() if zero.dtype == torch.int8 else (integers(zero, bits, outputs, 0) - half).float()
    order = parts.get("weight_g_idx")
    if order is not None and bool((order >= 0).all()):
        weight = weight - signed[:, order.long()] if zero is not None else weight
        weight *= scale[:, order.long()]
        return weight
    if zero is not None:
        weight = weight - spread(signed, (outputs, inputs))
    weight *= spread(scale, (outputs, inputs))
    return weight


def packed_floats(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """Floats of four bits, two a byte: NVFP4 of compressed-tensors and ModelOpt, MXFP4 of compressed-tensors.

    NVFP4 has a float8 scale per 16 weights and one for all, a divisor (`weight_global_scale`, compressed-tensors) or a factor
    (`weight_scale_2`, ModelOpt). MXFP4 has a power of two per 32 weights.
    """
    del settings
    values = e2m1(parts["weight_packed"] if "weight_packed" in parts else parts["weight"])
    scale = parts["weight_scale"]
    if scale.dtype == torch.uint8:
        return values * e8m0(scale).repeat_interleave(MXFP4_GROUP, 1)
    factor = scale.float()
    if "weight_global_scale" in parts:
        factor = factor / parts["weight_global_scale"].float()
    elif "weight_scale_2" in parts:
        factor = factor * parts["weight_scale_2"].float()
    return values * factor.repeat_interleave(NVFP4_GROUP, 1)


def experts_mxfp4(parts: Parts, settings: Mapping[str, Any]) -> Tensor:
    """MXFP4 of gpt-oss: `blocks` (experts, N, G, 16) bytes and `scales` (experts, N, G); returns (experts, K, N)."""
    del settings
    values = e2m1(parts["blocks"]) * e8m0(parts["scales"])[..., None]
    return values.flatten(2).transpose(1, 2).contiguous()
