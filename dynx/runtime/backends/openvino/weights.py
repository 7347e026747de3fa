"""How the weights of a converted model are stored: in 16, 8 or 4 bits.

The graph says how to get float32 back from them; OpenVINO's plugin takes that as a note and computes with what is stored.
Rounding to the nearest is all there is to it: no calibration text, no search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dynx.runtime.backends.openvino.halves import decompressed, halved
from dynx.runtime.backends.openvino.precision import WEIGHT_GROUP_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS_PER_PASS = 1 << 24
"""Weights quantized at a time: bounds the memory of their float32 copies."""


def store_weights(graph: Any, precision: str) -> None:
    """Rewrite the weights of `graph` as `precision`: "float32", "bfloat16", "float16", "int8" or "int4".

    float32: in 16 bits where these hold every value of a matrix, under float32 arithmetic (`halves`).
    int8: one scale per output, symmetric. int4: a scale and an offset for every `WEIGHT_GROUP_SIZE` weights, but int8 for the
    embedding, for the head, and where the group doesn't divide a row.
    """
    from openvino import opset15 as ops

    found = list(matrices(graph))
    head = found[-1][0] if found else None  # in order of execution
    for node, at, transposed in found:
        weight = _as_tensor(constant_of(node.input_value(at)))
        if precision == "float32":
            half = halved(weight) if weight.dtype == torch.float32 else weight
            if half is not None:
                node.input(at).replace_source_output(decompressed(_sixteen(half)))
            continue
        if precision in ("bfloat16", "float16"):
            if weight.dtype == torch.float32:
                node.input(at).replace_source_output(_converted(weight.to(getattr(torch, precision))))
            continue
        if node.get_type_name() == "Gather":
            node.input(at).replace_source_output(_quantized(weight, 8))
            continue
        rows = weight if transposed else weight.T
        bits = 4 if precision == "int4" and node is not head and rows.shape[1] % WEIGHT_GROUP_SIZE == 0 else 8
        product = ops.matmul(node.input_value(0), _quantized(rows, bits), False, True)
        product.set_friendly_name(node.get_friendly_name())
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(product.output(0))
    graph.validate_nodes_and_infer_types()


def matrices(graph: Any) -> Iterator[tuple[Any, int, bool]]:
    """Yield each product with a matrix of weights, and the embedding of tokens: node, input, whether rows are outputs."""
    vocabulary = int(graph.get_rt_info(["dynx", "vocab"]).astype(str))
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        at = {"MatMul": 1, "Gather": 0}.get(kind)
        constant = None if at is None else constant_of(node.input_value(at))
        if constant is None or len(constant.get_output_shape(0)) != 2:
            continue
        if kind == "MatMul":
            settings = node.get_attributes()
            if not settings["transpose_a"]:
                yield node, 1, bool(settings["transpose_b"])
        elif constant.get_output_shape(0)[0] >= vocabulary:
            yield node, 0, True


def constant_of(source: Any) -> Any | None:
    """Return the floating-point constant that an input is, possibly behind a conversion."""
    import openvino as ov

    node = source.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    real = (ov.Type.f32, ov.Type.f16, ov.Type.bf16)
    return node if node.get_type_name() == "Constant" and node.get_output_element_type(0) in real else None


def _as_tensor(constant: Any) -> Tensor:
    import openvino as ov

    data = constant.data
    if constant.get_output_element_type(0) == ov.Type.bf16:
        return torch.from_numpy(np.array(data).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(data))


def _converted(weight: Tensor) -> Any:
    """16-bit weights and their conversion to float32, which the plugin leaves out."""
    from openvino import opset15 as ops

    return ops.convert(_sixteen(weight), "f32").output(0)


def _sixteen(weight: Tensor) -> Any:
    """Return 16-bit weights as a constant of the graph."""
    import openvino as ov
    from openvino.op import Constant

    kind = ov.Type.bf16 if weight.dtype == torch.bfloat16 else ov.Type.f16
    raw = weight.contiguous().view(torch.int16).numpy()
    return Constant(ov.Tensor(raw, ov.Shape(list(weight.shape)), kind), shared_memory=False)


def _quantized(rows: Tensor, bits: int) -> Any:
    """Weights (outputs, inputs) as small integers and what turns them back into float32."""
    import openvino as ov
    from openvino import opset15 as ops
    from openvino.op import Constant

    step = max(2, ROWS_PER_PASS // rows.shape[1] // 2 * 2)  # even: offsets of four bits are packed in pairs
    parts = [(_eight if bits == 8 else _four)(rows[i : i + step].float()) for i in range(0, len(rows), step)]
    values, scales, offsets = (torch.cat(part).contiguous().numpy() for part in zip(*parts, strict=True))
    if bits == 8:
        return ops.multiply(ops.convert(ops.constant(values), "f32"), ops.constant(scales)).output(0)
    shape = [len(rows), rows.shape[1] // WEIGHT_GROUP_SIZE, WEIGHT_GROUP_SIZE]
    four = [
        ops.convert(Constant(ov.Tensor(raw, ov.Shape(size), ov.Type.u4), shared_memory=False), "f32")
        for raw, size in ((values, shape), (offsets, [*shape[:2], 1]))
    ]
    whole = ops.multiply(ops.subtract(*four), ops.constant(scales))
    return ops.reshape(whole, ops.constant(np.array(rows.shape, np.int64)), False).output(0)


def _eight(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return (rows / scale).round().to(torch.int8), scale, scale


def _four(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    groups = rows.view(len(rows), -1, WEIGHT_GROUP_SIZE)
    low, high = groups.amin(2, keepdim=True).clamp_max(0), groups.amax(2, keepdim=True).clamp_min(0)
    scale = (high - low).clamp_min(1e-12) / 15
    offset = (-low / scale).round().clamp(0, 15)
    values = (groups / scale + offset).round().clamp(0, 15)
    return _packed(values), scale, _packed(offset)


def _packed(values: Tensor) -> Tensor:
    """Two numbers of four bits to a byte, the first in the lower half."""
    flat = values.to(torch.uint8).flatten()
    if len(flat) % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[0::2] | (flat[1::2] << 4)
