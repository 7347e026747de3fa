"""Puts a file's own small integers in the place of a converted model's weights: the same values, in as many bits as the file has.

A weight is scale · integer + offset, with a scale and an offset for each group of a row. OpenVINO's plugin multiplies by integers
quickly where there are only scales, or offsets that are integers. Offsets of other values (Q4_1, Q4_K) take a product of their
own: with the sums of the inputs over each group, which all products with the same inputs share.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dynx.runtime.backends.openvino.weights import constant_of, matrices

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dynx.runtime.gguf.blocks import Integers


class Stored(Protocol):
    """Weights as a file holds them, by the names of a model's parameters."""

    def integers(self, parameter: str) -> Integers | None:
        """Return a matrix as integers; None where it isn't stored so."""

    def exact(self, parameter: str) -> NDArray[np.float32] | None:
        """Return exact values, where the model may have them rounded."""


def store_integers(
    graph: Any, names: Mapping[int, str], stored: Stored, replaced: Callable[[str], None] = lambda _: None
) -> None:
    """Rewrite the weights of `graph` as the file holds them; those that it holds in no integers stay as they are.

    `names` are the parameters' names by the address of their memory, which the graph's constants share. `replaced` is called
    with a name once the graph doesn't use that memory any more. The size of the smallest group is noted in the graph.
    """
    from openvino import opset15 as ops

    uses = Counter(_address(node) for node in graph.get_ops() if node.get_type_name() == "Constant")

    def leave(address: int, name: str | None) -> None:
        uses[address] -= 1
        if name is not None and not uses[address]:
            replaced(name)

    products: dict[tuple[Any, ...], list[tuple[Any, Any, NDArray[np.float32]]]] = {}
    smallest = 0
    for node, at, transposed in list(matrices(graph)):
        constant = constant_of(node.input_value(at))
        address = 0 if constant is None else _address(constant)
        name = names.get(address)
        found = None if name is None or not transposed else stored.integers(name)
        if found is None:
            exact = None if name is None else stored.exact(name)
            if exact is not None:
                values = exact if transposed else np.ascontiguousarray(exact.T)
                node.input(at).replace_source_output(_shortest(values))
                leave(address, name)
            continue
        leave(address, name)
        group = found.values.shape[2]
        smallest = min(smallest or group, group)
        if node.get_type_name() == "Gather":
            product = _looked_up(node, found)
        else:
            states = node.input_value(0)
            product = ops.matmul(states, _scaled(found), False, True)
            if found.offsets is not None:
                key = (states.get_node().get_friendly_name(), states.get_index(), group)
                products.setdefault(key, []).append((node, product, found.offsets[:, :, 0]))
                continue
        _replace(node, product)
    for (_, _, group), parts in products.items():
        _add_offsets(parts, group)
    graph.set_rt_info(str(smallest), ["dynx", "group"])
    graph.validate_nodes_and_infer_types()


def _address(constant: Any) -> int:
    return int(constant.data.__array_interface__["data"][0])


def _replace(node: Any, by: Any) -> None:
    by.set_friendly_name(node.get_friendly_name())
    for target in node.output(0).get_target_inputs():
        target.replace_source_output(by.output(0))


def _add_offsets(parts: list[tuple[Any, Any, NDArray[np.float32]]], group: int) -> None:
    """Add the offsets' share to products with the same inputs, computed for all of them at once.

    `parts` are nodes, their products with the integers alone, and their offsets (rows, groups).
    """
    from openvino import opset15 as ops

    states = parts[0][0].input_value(0)
    offsets = ops.constant(np.concatenate([part for _, _, part in parts]))
    shares = ops.matmul(_group_sums(states, group), offsets, False, True)
    if len(parts) > 1:
        axis = states.get_partial_shape().rank.get_length() - 1
        shares = ops.variadic_split(shares, np.int64(axis), np.array([len(part) for _, _, part in parts], np.int64))
    for index, (node, product, _) in enumerate(parts):
        _replace(node, ops.add(product, shares.output(index)))


def _shortest(values: NDArray[np.float32]) -> Any:
    """Return a constant of the values, in float16 where that holds them all."""
    from openvino import opset15 as ops

    half = values.astype(np.float16)
    if np.array_equal(half.astype(np.float32), values):
        return ops.convert(ops.constant(half), "f32").output(0)
    return ops.constant(values).output(0)


def _integer_constant(found: Integers, bits: int) -> Any:
    """Return the integers (rows, groups, size) as a constant: u4 where they have offsets, else i4, or i8."""
    import openvino as ov
    from openvino import opset15 as ops
    from openvino.op import Constant

    if bits == 8:
        return ops.constant(found.values)
    flat = found.values.reshape(-1).view(np.uint8)
    packed = (flat[0::2] & 15) | (flat[1::2] << 4)
    kind = ov.Type.i4 if found.offsets is None else ov.Type.u4
    return Constant(ov.Tensor(packed, ov.Shape(list(found.values.shape)), kind), shared_memory=False)


def _scaled(found: Integers) -> Any:
    """Return scale · integer as a matrix (rows, columns), which the plugin keeps as integers."""
    from openvino import opset15 as ops

    rows, groups, size = found.values.shape
    whole = ops.multiply(ops.convert(_integer_constant(found, found.bits), "f32"), ops.constant(found.scales))
    return ops.reshape(whole, ops.constant(np.array([rows, groups * size], np.int64)), False).output(0)


def _group_sums(states: Any, group: int) -> Any:
    """Return the sums (…, groups) of the inputs (…, columns) over each group."""
    from openvino import opset15 as ops

    rank = states.get_partial_shape().rank.get_length()
    shape = ops.constant(np.array([0] * (rank - 1) + [-1, group], np.int64))
    return ops.reduce_sum(ops.reshape(states, shape, True), ops.constant(np.array([rank], np.int64)), False)


def _looked_up(node: Any, found: Integers) -> Any:
    """Return rows of an embedding, looked up as integers and turned into float32 afterwards."""
    from openvino import opset15 as ops

    ids, axis = node.input_value(1), node.input_value(2)
    rank = ids.get_partial_shape().rank.get_length()
    values = ops.convert(ops.gather(_integer_constant(found, 8), ids, axis), "f32")
    whole = ops.multiply(values, ops.gather(ops.constant(found.scales), ids, axis))
    if found.offsets is not None:
        whole = ops.add(whole, ops.gather(ops.constant(found.offsets), ids, axis))
    columns = found.values.shape[1] * found.values.shape[2]
    return ops.reshape(whole, ops.constant(np.array([0] * rank + [columns], np.int64)), True)
