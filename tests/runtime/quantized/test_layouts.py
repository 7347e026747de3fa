"""Quantized weights are unpacked to what their formats' formulas say, exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from support import packers

from dynx.runtime.quantized import layouts

if TYPE_CHECKING:
    from torch import Tensor

NF4 = [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
FP4 = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]
FP4 = [value / 12 for value in (*FP4, *(-value for value in FP4))]


def weights(rows: int, columns: int) -> Tensor:
    """Random weights, the same each time."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", [False, True])
def test_gptq(bits: int, version: int, order: bool) -> None:
    """Every width, both conventions of zeros, with inputs in the order of their groups and in another."""
    parts, want = packers.gptq(weights(64, 96), bits, 32, version=version, order=order)
    settings = {"bits": bits, "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
    assert torch.equal(layouts.gptq(parts, settings), want)


def test_gptq_without_an_index_of_groups() -> None:
    """Groups follow one another."""
    parts, want = packers.gptq(weights(32, 64), 4, 16)
    del parts["g_idx"]
    assert torch.equal(layouts.gptq(parts, {"bits": 4}), want)


def test_awq() -> None:
    """Columns are interleaved within words."""
    parts, want = packers.awq(weights(48, 64), 32)
    assert torch.equal(layouts.awq(parts, {}), want)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_integers(bits: int, symmetric: bool) -> None:
    """Widths that divide a word and others, with and without zeros."""
    parts, want = packers.compressed_integers(weights(40, 96), bits, 32, symmetric=symmetric)
    assert torch.equal(layouts.packed_integers(parts, {"num_bits": bits}), want)


def test_packed_integers_of_another_width_are_refused() -> None:
    """Words that can't hold the numbers."""
    parts, _ = packers.compressed_integers(weights(8, 64), 4, 32, symmetric=True)
    with pytest.raises(ValueError, match="8 words a row for 64 numbers of 8 bits"):
        layouts.packed_integers(parts, {"num_bits": 8})


def test_nvfp4_and_mxfp4() -> None:
    """Four-bit floats with two kinds of scales; ModelOpt's factor is the inverse of the divisor."""
    parts, want = packers.nvfp4(weights(24, 64))
    assert torch.allclose(layouts.packed_floats(parts, {}), want, rtol=1e-6)
    parts["weight_scale_2"] = 1 / parts.pop("weight_global_scale")
    parts["weight"] = parts.pop("weight_packed")
    assert torch.allclose(layouts.packed_floats(parts, {}), want, rtol=1e-6)

    packed, exponents, want = packers.mxfp4(weights(24, 64))
    assert torch.equal(layouts.packed_floats({"weight_packed": packed, "weight_scale": exponents}, {}), want)


def test_experts_in_mxfp4() -> None:
    """gpt-oss stores outputs first and computes with inputs first."""
    packed, exponents, want = packers.mxfp4(weights(5 * 8, 96).view(5, 8, 96))
    blocks = packed.unflatten(-1, (-1, 16))
    made = layouts.experts_mxfp4({"blocks": blocks, "scales": exponents}, {})
    assert torch.equal(made, want.transpose(1, 2))


def test_float8_blocks() -> None:
    """Blocks at the edges are cut."""
    parts, want = packers.float8_blocks(weights(40, 56), 16)
    assert torch.equal(layouts.scaled(parts, {"weight_block_size": [16, 16]}), want)


@pytest.mark.parametrize("shape", [(), (1,), (24,), (24, 1), (24, 4)])
def test_scales_of_every_shape(shape: tuple[int, ...]) -> None:
    """One for all, one per output, one per group."""
    stored = weights(24, 32).to(torch.float8_e4m3fn)
    scale = torch.rand(shape) + 0.5
    per_output = scale.reshape(24, -1) if scale.numel() > 1 else scale.reshape(1, 1)
    want = stored.float() * per_output.repeat_interleave(32 // per_output.shape[1], 1)
    assert torch.equal(layouts.scaled({"weight": stored, "weight_scale": scale}, {}), want)


def test_int8_with_zeros() -> None:
    """Zeros are in the weights' own units."""
    stored = torch.randint(-128, 128, (6, 8), dtype=torch.int8)
    scale, zero = torch.rand(6, 1), torch.randint(-9, 9, (6, 1), dtype=torch.int8)
    made = layouts.scaled({"weight": stored, "weight_scale": scale, "weight_zero_point": zero}, {})
    assert torch.equal(made, (stored.float() - zero) * scale)


@pytest.mark.parametrize(("kind", "code"), [("nf4", NF4), ("fp4", FP4)])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_in_four_bits(kind: str, code: list[float], nested: bool) -> None:
    """With peaks as they are, and quantized themselves; rounded to the precision that the layer had."""
    parts, want = packers.bitsandbytes4(weights(32, 128), code, kind, nested=nested)
    assert torch.equal(layouts.bitsandbytes4(parts, {}), want)


def test_bitsandbytes_in_eight_bits() -> None:
    """Rows with their largest magnitude."""
    weight = weights(16, 32)
    peak = weight.abs().amax(1)
    stored = (weight * (127 / peak)[:, None]).round().to(torch.int8)
    made = layouts.bitsandbytes8({"weight": stored, "SCB": peak}, {})
    assert torch.allclose(made, stored.float() * peak[:, None] / 127, rtol=1e-6)
