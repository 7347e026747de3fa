"""Small integers and small floats out of the words that hold them. Nothing here knows a file format."""

from __future__ import annotations

import torch
from torch import Tensor

WORD_BITS = 32

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Values of the 16 patterns of a float of four bits: sign, two of exponent, one of mantissa (OCP Microscaling Formats 1.0)."""

EXPONENT_BIAS = 127
"""Of E8M0, a scale that is a power of two."""


def integers(words: Tensor, bits: int, count: int, axis: int) -> Tensor:
    """Unpack `count` unsigned integers of `bits` bits along an axis of an int32 tensor: number i starts at bit i·`bits`.

    Numbers may cross from one word into the next. Returns int32.
    """
    words = words.movedim(axis, -1).to(torch.int64) & 0xFFFFFFFF
    starts = torch.arange(count, device=words.device) * bits
    word, shift = starts // WORD_BITS, starts % WORD_BITS
    found = words[..., word] >> shift
    crossing = shift + bits > WORD_BITS
    if bool(crossing.any()):
        found[..., crossing] |= words[..., word[crossing] + 1] << (WORD_BITS - shift[crossing])
    numbers: Tensor = (found & (2**bits - 1)).to(torch.int32).movedim(-1, axis)
    return numbers


def nibbles(packed: Tensor, *, low_first: bool = True) -> Tensor:
    """Return the two numbers of four bits in each byte of (…, n) as (…, 2n), uint8."""
    low, high = packed & 15, packed >> 4
    return torch.stack([low, high] if low_first else [high, low], dim=-1).flatten(-2)


def e2m1(packed: Tensor) -> Tensor:
    """Return the two floats of four bits in each byte of (…, n) as (…, 2n), float32; the low half comes first."""
    return torch.tensor(E2M1, device=packed.device)[nibbles(packed).long()]


def e8m0(exponents: Tensor) -> Tensor:
    """Return the powers of two that bytes stand for, float32."""
    return torch.ldexp(torch.ones(exponents.shape, device=exponents.device), exponents.to(torch.int32) - EXPONENT_BIAS)


def spread(scales: Tensor, shape: tuple[int, ...], block: tuple[int, int] | None = None) -> Tensor:
    """Return scales (or offsets) for each weight of a matrix, to multiply with it.

    `scales` is one number, one per row, one per row and group of columns, or one per block of `block` rows and columns, the last
    blocks of a matrix possibly cut. Raises ValueError where it is none of these.
    """
    if scales.numel() == 1:
        return scales.reshape(1, 1)
    if scales.ndim == 1:
        scales = scales[:, None]
    rows, columns = shape
    high, wide = scales.shape
    if block is not None and (high, wide) == (-(-rows // block[0]), -(-columns // block[1])):
        return scales.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    if high != rows or columns % wide:
        raise ValueError(f"scales of shape {tuple(scales.shape)} for weights of shape {shape}")
    return scales if wide == 1 else scales.repeat_interleave(columns // wide, 1)
