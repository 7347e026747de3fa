"""The weights of a GGUF file: mapped into memory, unpacked tensor by tensor, a few rows at a time, into a model's own memory."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.errors import ModelError
from dynx.runtime.gguf.architectures import ROTATION_FACTORS, Target, architecture_of
from dynx.runtime.gguf.header import HINT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from dynx.runtime.gguf.header import Header, TensorInfo

VALUES_PER_STEP = 1 << 22
"""Values unpacked at a time: bounds the memory of their float32 copies to 16 MiB, and of what the unpacking needs to a few."""

PLAIN: dict[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
UNUSED = ("rope_freqs", "rope_factors_long", "rope_factors_short")
"""Tensors that describe rotations."""


def raw_rows(tensor: TensorInfo) -> NDArray[np.uint8]:
    """Map a tensor's rows (rows, bytes of a row), uint8; nothing is read yet."""
    rows = prod(tensor.shape[:-1]) if len(tensor.shape) > 1 else 1
    mapped = np.memmap(tensor.file, np.uint8, "r", offset=tensor.start, shape=(tensor.size,))
    return mapped.reshape(rows, -1)


def unpack(raw: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """Return the float32 values (rows, values) of rows stored as `kind`. Raises ModelError where gguf is missing or too old."""
    if kind in PLAIN:
        plain: NDArray[np.float32] = np.ascontiguousarray(raw).view(PLAIN[kind]).astype(np.float32)
        return plain
    if kind == "BF16":
        return (np.ascontiguousarray(raw).view("<u2").astype(np.uint32) << 16).view(np.float32)
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        raise ModelError(f"{kind} weights of GGUF files are unpacked by the package gguf", hint=HINT) from None
    try:
        found: NDArray[np.float32] = dequantize(np.ascontiguousarray(raw), GGMLQuantizationType[kind])
    except (KeyError, NotImplementedError):
        raise ModelError(f"the installed gguf can't unpack {kind} weights", hint="pip install -U gguf") from None
    return found


def row_order(count: int, heads: int) -> NDArray[np.int64]:
    """Return for each row of transformers' queries or keys its row in the file."""
    return np.arange(count).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def pieces(tensor: TensorInfo, heads: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (first row, values) of a tensor in steps, rows in transformers' order."""
    raw = raw_rows(tensor)
    if heads and len(tensor.shape) == 1:  # a bias
        yield 0, unpack(raw, tensor.type)[:, row_order(tensor.shape[0], heads)]
        return
    order = row_order(len(raw), heads) if heads else None
    step = max(1, VALUES_PER_STEP // tensor.shape[-1])
    for start in range(0, len(raw), step):
        rows = raw[start : start + step] if order is None else raw[order[start : start + step]]
        yield start, unpack(rows, tensor.type)


def fill(model: Any, header: Header, name: str) -> None:
    """Write the file's tensors into the parameters of a model whose memory is allocated. Raises ModelError."""
    import torch

    architecture = architecture_of(header, name)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    missing = set(parameters)
    shared: dict[int, list[str]] = {}
    for key, parameter in parameters.items():
        shared.setdefault(id(parameter), []).append(key)
    with torch.inference_mode():
        for tensor in header.tensors:
            target = architecture.target(tensor.name, header)
            if target is None or target.parameter not in parameters:
                if tensor.name.rpartition(".")[0] in UNUSED or _of_another_block(tensor.name, header):
                    continue
                raise ModelError(f"{name} has the tensor {tensor.name}, which {header.architecture} doesn't have")
            _write(parameters[target.parameter], tensor, target, name)
            missing -= set(shared[id(parameters[target.parameter])])
        if missing:
            first = min(missing)
            raise ModelError(f"{name} lacks {len(missing)} of its weights, among them {first}")
        _scale_rotations(model, header)


def _of_another_block(name: str, header: Header) -> bool:
    """Whether a tensor is of layers beyond the last, which predict several tokens at once and aren't used."""
    number = name.split(".")[1]
    return name.startswith("blk.") and number.isdigit() and int(number) >= int(header.get("block_count"))


def _write(parameter: Tensor, tensor: TensorInfo, target: Target, name: str) -> None:
    import torch

    out = parameter.data
    if target.part is not None:
        index, count = target.part
        out = out.chunk(count, 1)[index]
    if target.transposed:
        out = out.T
    shape = tuple(size for size in tensor.shape if size != 1 or len(tensor.shape) == out.dim())
    if tuple(out.shape) != shape:
        raise ModelError(f"{name}: {tensor.name} is {list(tensor.shape)}, and its metadata make it {list(out.shape)}")
    for start, values in pieces(tensor, target.heads):
        if target.shift:
            values = values + np.float32(target.shift)
        found = torch.from_numpy(values)
        if out.dim() == 1:
            out.copy_(found.view(-1))
        elif out.dim() == 2:
            out[start : start + len(found)].copy_(found)
        else:  # experts' matrices, one below the other
            height = out.shape[1]
            for row in range(len(found)):
                expert, inner = divmod(start + row, height)
                out[expert, inner].copy_(found[row])


def _scale_rotations(model: Any, header: Header) -> None:
    """Divide the rotary frequencies by the file's factors."""
    for tensor in header.tensors:
        if tensor.name == ROTATION_FACTORS:
            import torch

            factors = torch.from_numpy(unpack(raw_rows(tensor), tensor.type).reshape(-1).copy())
            rotary = model.base_model.rotary_emb
            rotary.inv_freq = rotary.inv_freq / factors.to(rotary.inv_freq)
            rotary.original_inv_freq = rotary.inv_freq
