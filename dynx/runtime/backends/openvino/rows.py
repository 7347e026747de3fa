"""Leaves out of the last layer what no logits are wanted for.

Of most tokens of a prompt only keys and values are needed. The graph chooses the rows that are wanted in front of the head. Here
they are chosen as early as their computation allows, which is behind the last attention. What follows, an output projection and
a feed-forward block, then runs on those rows alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

ELEMENTWISE = {"Convert", "Swish", "Gelu", "Sigmoid", "Tanh", "Relu", "Sqrt", "Clamp"}
PAIRWISE = {"Add", "Subtract", "Multiply", "Divide", "Power"}
STATES_RANK = 3
"""Dimensions of hidden states: one, tokens, width."""


def take_early(graph: Any) -> None:
    """Move the choice of `rows` in front of all that is computed for each token by itself and used for nothing else."""
    from openvino import opset15 as ops

    rows = next(port for port in graph.inputs if port.get_any_name() == "rows").get_node()
    order = list(graph.get_ordered_ops())
    chosen = [node for node in order if node.get_type_name() == "Gather" and _follows(node.input_value(1), rows)]
    if len(chosen) != 1 or _axis(chosen[0]) != 0:
        return
    gather, flat = chosen[0], chosen[0].input_value(0).get_node()  # the tokens are a matrix there
    if flat.get_type_name() != "Reshape" or not _is_states(flat.input_value(0)):
        return
    fixed = _independent(order)
    region = _before(flat, order, fixed)
    sources: dict[Any, tuple[Any, list[Any]]] = {}  # what enters the region, and where
    for port in (port for node in order if node.get_friendly_name() in region for port in node.inputs()):
        source = port.get_source_output()
        name = source.get_node().get_friendly_name()
        if name not in fixed and name not in region:
            sources.setdefault((name, source.get_index()), (source, []))[1].append(port)
    if len(region) == 1 or not all(_is_states(source) for source, _ in sources.values()):
        return
    indices, axis = gather.input_value(1), ops.constant(np.int64(1))
    for source, ports in sources.values():
        early = ops.gather(source, indices, axis).output(0)
        for port in ports:
            port.replace_source_output(early)
    for port in gather.output(0).get_target_inputs():
        port.replace_source_output(flat.output(0))
    graph.validate_nodes_and_infer_types()


def _before(last: Any, order: list[Any], fixed: set[str]) -> set[str]:
    """Return the names of `last` and of the nodes that only it uses and that compute each token by itself."""
    region = {last.get_friendly_name()}
    for node in reversed(order):
        users = [port.get_node().get_friendly_name() for out in node.outputs() for port in out.get_target_inputs()]
        if users and region.issuperset(users) and _by_token(node, fixed):
            region.add(node.get_friendly_name())
    return region


def _independent(order: list[Any]) -> set[str]:
    """Return the names of the nodes that depend on no input."""
    fixed: set[str] = set()
    for node in order:
        sources = [port.get_source_output().get_node().get_friendly_name() for port in node.inputs()]
        if node.get_type_name() != "Parameter" and fixed.issuperset(sources):
            fixed.add(node.get_friendly_name())
    return fixed


def _by_token(node: Any, fixed: set[str]) -> bool:
    """Whether a node computes hidden states of each token from those of the same token."""
    kind = node.get_type_name()
    if not _is_states(node.output(0)):
        return False
    if kind in ELEMENTWISE:
        return True
    names = [port.get_source_output().get_node().get_friendly_name() for port in node.inputs()]
    if kind in PAIRWISE:  # a fixed operand must be the same for all tokens
        return all(name not in fixed or _same_for_all(port) for name, port in zip(names, node.inputs(), strict=True))
    if kind == "MatMul":
        attributes = node.get_attributes()
        return (
            names[0] not in fixed and names[1] in fixed and not attributes["transpose_a"] and _plain(node.inputs()[1])
        )
    if kind in ("ReduceMean", "MVN"):
        axes = node.input_value(1).get_node()
        width = axes.get_type_name() == "Constant" and set(axes.data.reshape(-1).tolist()) <= {-1, STATES_RANK - 1}
        return width and bool(node.get_attributes().get("keep_dims", True))
    return False


def _same_for_all(port: Any) -> bool:
    """Whether an operand has no dimension of tokens."""
    shape = port.get_partial_shape()
    return shape.is_static and (len(shape) < STATES_RANK - 1 or shape[len(shape) - 2].get_length() == 1)


def _plain(port: Any) -> bool:
    """Whether a matrix is the same for all tokens."""
    shape = port.get_partial_shape()
    return shape.rank.is_static and len(shape) == STATES_RANK - 1


def _is_states(output: Any) -> bool:
    shape = output.get_partial_shape()
    return bool(shape.rank.is_static and len(shape) == STATES_RANK and shape[1].is_dynamic)


def _follows(output: Any, node: Any) -> bool:
    """Whether a value is that of an input, maybe converted."""
    source = output.get_node()
    while source.get_type_name() in ("Convert", "Reshape", "Unsqueeze", "Squeeze"):
        source = source.input_value(0).get_node()
    return bool(source.get_friendly_name() == node.get_friendly_name())


def _axis(gather: Any) -> int | None:
    axis = gather.input_value(2).get_node()
    return int(axis.data.reshape(-1)[0]) if axis.get_type_name() == "Constant" else None
