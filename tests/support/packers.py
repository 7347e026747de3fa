"""Quantizes and packs weights by the formulas of published formats, number by number, independently of what unpacks them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def words(numbers: list[int], bits: int) -> list[int]:
    """Pack numbers into signed words of 32 bits, the first in the lowest bits, by way of one long integer."""
    whole = sum(number << (bits * i) for i, number in enumerate(numbers))
    count = -(-len(numbers) * bits // 32)
    data = whole.to_bytes(4 * count, "little")
    return [int.from_bytes(data[4 * i : 4 * i + 4], "little", signed=True) for i in range(count)]


def packed_rows(numbers: Tensor, bits: int) -> Tensor:
    """Pack each row of (n, m) numbers without sign."""
    return torch.tensor([words(row, bits) for row in numbers.tolist()], dtype=torch.int32)


def quantized_groups(weight: Tensor, bits: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return numbers (N, K), scales (N, G) and zeros (N, G) of an asymmetric quantization in groups of inputs."""
    groups = weight.float().view(len(weight), -1, size)
    low, high = groups.amin(2).clamp_max(0), groups.amax(2).clamp_min(0)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-6).half().float()
    zero = (-low / scale).round().clamp(1, 2**bits - 1)
    numbers = (groups / scale[..., None] + zero[..., None]).round().clamp(0, 2**bits - 1)
    return numbers.view(weight.shape).int(), scale, zero.int()


def gptq(
    weight: Tensor, bits: int, size: int, *, version: int = 1, order: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the parts of one layer, and its weights."""
    inputs = weight.shape[1]
    group = torch.arange(inputs) // size
    mixed = torch.randperm(inputs, generator=torch.Generator().manual_seed(1)) if order else torch.arange(inputs)
    numbers, scale, zero = quantized_groups(weight[:, mixed], bits, size)
    back = torch.argsort(mixed)
    numbers, group = numbers[:, back], group[back]
    want = scale[:, group] * (numbers - zero[:, group])
    parts = {
        "qweight": packed_rows(numbers, bits).T.contiguous(),
        "qzeros": packed_rows(zero.T - int(version == 1), bits),
        "scales": scale.T.half().contiguous(),
        "g_idx": group.int(),
    }
    return parts, want


def awq(weight: Tensor, size: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return the parts of one layer, and its weights: eight columns to a word, the even ones before the odd ones."""
    numbers, scale, zero = quantized_groups(weight, 4, size)
    want = scale.repeat_interleave(size, 1) * (numbers - zero.repeat_interleave(size, 1))

    def interleaved(rows: Tensor) -> Tensor:
        eights = rows.reshape(len(rows), -1, 8)
        return packed_rows(torch.cat([eights[:, :, ::2], eights[:, :, 1::2]], 2).reshape(rows.shape), 4)

    parts = {"qweight": interleaved(numbers.T), "qzeros": interleaved(zero.T), "scales": scale.T.half().contiguous()}
    return parts, want


def compressed_integers(weight: Tensor, bits: int, size: int, *, symmetric: bool) -> tuple[dict[str, Tensor], Tensor]:
    """pack-quantized: signed numbers plus half their range; zeros packed down the columns."""
    numbers, scale, zero = quantized_groups(weight, bits, size)
    half = 2 ** (bits - 1)
    if symmetric:
        zero = torch.full_like(zero, half)
    want = scale.repeat_interleave(size, 1) * (numbers - zero.repeat_interleave(size, 1))
    parts = {
        "weight_packed": packed_rows(numbers, bits),
        "weight_scale": scale.half(),
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        parts["weight_zero_point"] = packed_rows(zero.T, bits).T.contiguous()
    return parts, want


def floats_of_four_bits(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest E2M1 values of (N, K), and their patterns two to a byte, the first in the lower half."""
    table = torch.tensor(E2M1)
    nearest = (values.abs()[..., None] - table).abs().argmin(-1)
    patterns = nearest + 8 * (values < 0)
    rounded = table[nearest] * torch.where(values < 0, -1.0, 1.0)
    return rounded, (patterns[..., ::2] + 16 * patterns[..., 1::2]).to(torch.uint8)


def nvfp4(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Groups of 16 with float8 scales, which are divided by one number."""
    groups = weight.float().view(len(weight), -1, 16)
    overall = torch.tensor([448 * 6 / weight.abs().max().item()])
    scale = (groups.abs().amax(2) / 6 * overall).to(torch.float8_e4m3fn)
    factor = (scale.float() / overall).repeat_interleave(16, 1)
    rounded, packed = floats_of_four_bits(weight.float() / factor)
    return {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": overall}, rounded * factor


def mxfp4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return patterns (…, K/2), exponents (…, K/32) and the weights: groups of 32 with powers of two."""
    groups = weight.float().unflatten(-1, (-1, 32))
    exponent = torch.floor(torch.log2(groups.abs().amax(-1))) - 2
    factor = (2.0**exponent).repeat_interleave(32, -1)
    rounded, packed = floats_of_four_bits(weight.float() / factor)
    return packed, (exponent + 127).to(torch.uint8), rounded * factor


def float8_blocks(weight: Tensor, block: int) -> tuple[dict[str, Tensor], Tensor]:
    """DeepSeek's: a factor for each square of weights, the last ones cut."""
    rows, columns = weight.shape
    want = torch.empty(weight.shape)
    scales = torch.empty(-(-rows // block), -(-columns // block))
    stored = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            place = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            scales[i, j] = weight[place].abs().max() / 448
            stored[place] = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
            want[place] = stored[place].float() * scales[i, j]
    return {"weight": stored, "weight_scale_inv": scales}, want


def bitsandbytes4(
    weight: Tensor, code: list[float], kind: str, size: int = 64, *, nested: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """Blocks in reading order, two numbers a byte, the first in the upper half; the peaks quantized again where `nested`."""
    table, blocks = torch.tensor(code), weight.float().reshape(-1, size)
    peaks = blocks.abs().amax(1)
    facts: dict[str, Any] = {"quant_type": kind, "blocksize": size, "dtype": "bfloat16", "shape": list(weight.shape)}
    parts = {"weight.quant_map": table}
    if nested:
        offset = peaks.mean()
        levels = torch.linspace(-1, 1, 256)
        most = (peaks - offset).abs().max()
        index = ((peaks - offset)[:, None] / most - levels).abs().argmin(1)
        parts |= {
            "weight.absmax": index.to(torch.uint8),
            "weight.nested_absmax": most.reshape(1),
            "weight.nested_quant_map": levels,
        }
        facts |= {"nested_blocksize": 256, "nested_offset": offset.item(), "nested_dtype": "float32"}
        peaks = levels[index] * most + offset
    else:
        parts["weight.absmax"] = peaks
    index = (blocks[..., None] / peaks[:, None, None] - table).abs().argmin(-1)
    want = (table[index] * peaks[:, None]).view(weight.shape).bfloat16().float()
    flat = index.flatten()
    parts["weight"] = (flat[::2] * 16 + flat[1::2]).to(torch.uint8)[:, None]
    data = np.frombuffer(json.dumps(facts).encode(), np.uint8).copy()
    return parts | {f"weight.quant_state.bitsandbytes__{kind}": torch.from_numpy(data)}, want
