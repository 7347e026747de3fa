"""Weights of a GGUF file as the small integers that they are: no rounding, and no float32 copy of a whole tensor.

Most types hold, for every 16 or 32 values of a row, integers of up to 8 bits, a scale and perhaps an offset:
value = scale · integer + offset. Scales and offsets are multiplied out in float32 here, in the order in which llama.cpp does it, so
that the values are those of the unpacked tensor to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dynx.runtime.gguf.architectures import architecture_of
from dynx.runtime.gguf.tensors import VALUES_PER_STEP, pieces, raw_rows, row_order

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dynx.runtime.gguf.header import Header, TensorInfo

    Parts = tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32] | None]
    """Of blocks (B): integers (B, values), scales (B, groups), offsets likewise or None."""

IQ4_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


class Integers(NamedTuple):
    """A matrix (rows, columns) of integers in groups along its rows."""

    values: NDArray[np.int8]
    """(rows, groups, group size); not below 0 where there are offsets."""
    scales: NDArray[np.float32]
    """(rows, groups, 1)."""
    offsets: NDArray[np.float32] | None
    """(rows, groups, 1), None where all are 0."""
    bits: int
    """4 where every integer fits into four bits, signed or not as `offsets` says; else 8."""


def as_integers(tensor: TensorInfo, heads: int = 0) -> Integers | None:
    """Return a matrix as integers, rows in transformers' order; None for a type that isn't of that form."""
    reader = READERS.get(tensor.type)
    if reader is None or len(tensor.shape) != 2:
        return None
    read, block, size, group, bits = reader
    raw = raw_rows(tensor)
    rows, columns = tensor.shape
    order = row_order(rows, heads) if heads else None
    values = np.empty((rows, columns // group, group), np.int8)
    scales = np.empty((rows, columns // group, 1), np.float32)
    offsets: NDArray[np.float32] | None = None
    step = max(1, VALUES_PER_STEP // columns)
    for start in range(0, rows, step):
        some = raw[start : start + step] if order is None else raw[order[start : start + step]]
        integers, scale, offset = read(np.ascontiguousarray(some).reshape(-1, size))
        part = slice(start, start + len(some))
        values[part] = integers.reshape(len(some), columns // group, group)
        scales[part] = scale.reshape(len(some), -1, 1)
        if offset is not None:
            if offsets is None:
                offsets = np.empty_like(scales)
            offsets[part] = offset.reshape(len(some), -1, 1)
    return Integers(values, scales, offsets, bits)


class StoredWeights:
    """The weights of a GGUF file by the names of a transformers model's parameters, as they are stored."""

    def __init__(self, header: Header, name: str) -> None:
        architecture = architecture_of(header, name)
        targets = ((tensor, architecture.target(tensor.name, header)) for tensor in header.tensors)
        self._found = {
            target.parameter: (tensor, target)
            for tensor, target in targets
            if target is not None and not target.transposed and target.part is None
        }

    def integers(self, parameter: str) -> Integers | None:
        """Return a matrix as integers; None where it isn't stored so."""
        tensor, target = self._found.get(parameter, (None, None))
        return None if tensor is None or target is None or target.shift else as_integers(tensor, target.heads)

    def exact(self, parameter: str) -> NDArray[np.float32] | None:
        """Return a vector's values, or those of a matrix in float16 or float32; None for others."""
        tensor, target = self._found.get(parameter, (None, None))
        if tensor is None or target is None or tensor.type not in ("F32", "F16"):
            return None
        whole = np.concatenate([values for _, values in pieces(tensor, target.heads)])
        return (whole + np.float32(target.shift) if target.shift else whole).reshape(tensor.shape)


def _half(blocks: NDArray[np.uint8], at: int) -> NDArray[np.float32]:
    """Return the float16 at byte `at` of each block, as float32 (B, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Unpack stretches of `width` bytes: all lower halves, then all upper ones."""
    stretches = packed.reshape(len(packed), -1, 1, width)
    both = stretches >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    return (both & 15).reshape(len(packed), -1)


def _fifth_bits(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the 32 bits of four bytes, each as 0 or 16."""
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _q4_0(b: NDArray[np.uint8]) -> Parts:
    return _nibbles(b[:, 2:], 16).astype(np.int8) - np.int8(8), _half(b, 0), None


def _q4_1(b: NDArray[np.uint8]) -> Parts:
    return _nibbles(b[:, 4:], 16).astype(np.int8), _half(b, 0), _half(b, 2)


def _q5_0(b: NDArray[np.uint8]) -> Parts:
    return (_nibbles(b[:, 6:], 16) | _fifth_bits(b[:, 2:6])).astype(np.int8) - np.int8(16), _half(b, 0), None


def _q5_1(b: NDArray[np.uint8]) -> Parts:
    return (_nibbles(b[:, 8:], 16) | _fifth_bits(b[:, 4:8])).astype(np.int8), _half(b, 0), _half(b, 2)


def _q8_0(b: NDArray[np.uint8]) -> Parts:
    return np.ascontiguousarray(b[:, 2:]).view(np.int8), _half(b, 0), None


def _k_scales(b: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return scales and offsets of the eight groups of a block that packs them in 6 bits each."""
    packed = b[:, 4:16].reshape(-1, 3, 4)
    low, high, both = packed[:, 0], packed[:, 1], packed[:, 2]
    scale = np.concatenate([low & 63, (both & 15) | ((low >> 2) & 48)], 1)
    least = np.concatenate([high & 63, (both >> 4) | ((high >> 2) & 48)], 1)
    return _half(b, 0) * scale.astype(np.float32), -(_half(b, 2) * least.astype(np.float32))


def _q4_k(b: NDArray[np.uint8]) -> Parts:
    return _nibbles(b[:, 16:], 32).astype(np.int8), *_k_scales(b)


def _q5_k(b: NDArray[np.uint8]) -> Parts:
    high = (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & 1
    return (_nibbles(b[:, 48:], 32) | (high << 4).reshape(len(b), -1)).astype(np.int8), *_k_scales(b)


def _pairs(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Unpack stretches of 32 bytes into fields of two bits, stretch by stretch, the lowest fields first."""
    fields = packed.reshape(len(packed), -1, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return (fields & 3).reshape(len(packed), -1)


def _q6_k(b: NDArray[np.uint8]) -> Parts:
    low = _nibbles(b[:, :128], 64).reshape(len(b), -1)
    values = (low | (_pairs(b[:, 128:192]) << 4)).astype(np.int8) - np.int8(32)
    return values, _half(b, 208) * np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(np.float32), None


def _iq4_nl(b: NDArray[np.uint8]) -> Parts:
    return IQ4_LEVELS[_nibbles(b[:, 2:], 16)], _half(b, 0), None


def _iq4_xs(b: NDArray[np.uint8]) -> Parts:
    high = np.ascontiguousarray(b[:, 2:4]).view("<u2") >> (2 * np.arange(8, dtype=np.uint16))
    low = (b[:, 4:8, None] >> np.array([0, 4], np.uint8)).reshape(len(b), 8)
    scale = ((low & 15) | ((high & 3) << 4).astype(np.uint8)).astype(np.int8) - np.int8(32)
    return IQ4_LEVELS[_nibbles(b[:, 8:], 16)], _half(b, 0) * scale.astype(np.float32), None


READERS: dict[str, tuple[Callable[[NDArray[np.uint8]], Parts], int, int, int, int]] = {
    "Q4_0": (_q4_0, 32, 18, 32, 4),
    "Q4_1": (_q4_1, 32, 20, 32, 4),
    "Q5_0": (_q5_0, 32, 22, 32, 8),
    "Q5_1": (_q5_1, 32, 24, 32, 8),
    "Q8_0": (_q8_0, 32, 34, 32, 8),
    "Q4_K": (_q4_k, 256, 144, 32, 4),
    "Q5_K": (_q5_k, 256, 176, 32, 8),
    "Q6_K": (_q6_k, 256, 210, 16, 8),
    "IQ4_NL": (_iq4_nl, 32, 18, 32, 8),
    "IQ4_XS": (_iq4_xs, 256, 136, 32, 8),
}
"""By type: how to read its blocks, values and bytes of a block, values that share a scale, bits of an integer."""
