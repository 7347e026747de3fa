"""Completes a converted graph to one that OpenVINO's plugin compiles: paged attention in the marked places, and what it needs.

A process that starts with a kept model needs this and not the conversion, so it loads neither torch nor transformers.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from dynx.runtime.backends.openvino import private

ATTENTION_NAME = "dynx_paged"
"""Name of the attention function among transformers' own."""

PAGED_INPUTS = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins", "max_context_len")
"""Inputs of paged attention that describe a batch of sequences, besides the caches."""

TREE_INPUTS = ("qq_bias", "qq_bias_begins")
"""Inputs of paged attention that say which tokens of a pass attend to which; empty where every token attends to all before it."""

SHARED_BYTES = 64
"""Largest constants that are shared: shapes, axes and numbers."""

FUSED_PER_THREAD = 64
"""Widths of a gated feed-forward block, inner and outer, from which each thread has work: twice what a thread takes at a time."""


def assemble(graph: Any) -> None:
    """Put paged attention in the places that `convert.convert` marked, with its inputs.

    These are `PAGED_INPUTS`, `TREE_INPUTS` and the caches.

    A graph that has it already stays as it is.
    """
    if any(port.get_any_name().startswith("key_cache.") for port in graph.inputs):
        return
    import openvino as ov
    from openvino.op import Parameter

    added = []

    def parameter(name: str, kind: Any, rank: int) -> Any:
        made = Parameter(kind, ov.PartialShape([-1] * rank))
        made.set_friendly_name(name)
        made.output(0).get_tensor().set_names({name})
        added.append(made)
        return made.output(0)

    told = [parameter(name, ov.Type.i32, 0 if name == "max_context_len" else 1) for name in PAGED_INPUTS]
    trees = [parameter(name, kind, 1) for name, kind in zip(TREE_INPUTS, (ov.Type.u8, ov.Type.i32), strict=True)]
    settings = json.loads(graph.get_rt_info(["dynx", "attention"]).astype(str))
    marks = {node.get_friendly_name(): node for node in graph.get_ops() if node.get_type_name() == "Concat"}
    for layer, (scale, window, (_, groups, width, value_width)) in enumerate(settings):
        mark = marks[f"{ATTENTION_NAME}.{layer}"]
        states = [mark.input_value(i) for i in range(3)]
        caches = [parameter(f"{which}_cache.{layer}", ov.Type.dynamic, 4) for which in ("key", "value")]
        node = _paged_attention(states, caches, told, trees, scale, window)
        info = node.get_rt_info()  # from these the plugin makes the shape of a block
        info["num_k_heads"] = info["num_v_heads"] = groups
        info["k_head_size"], info["v_head_size"] = width, value_width
        for target in mark.output(0).get_target_inputs():
            target.replace_source_output(node.output(0))
    graph.add_parameters(added)
    share_constants(graph)
    graph.validate_nodes_and_infer_types()


def has_windows(graph: Any) -> bool:
    """Whether any layer attends to the latest tokens only."""
    try:
        settings = json.loads(graph.get_rt_info(["dynx", "attention"]).astype(str))
    except RuntimeError:
        return False  # an exported graph
    return any(window for _, window, _ in settings)


def share_constants(graph: Any) -> None:
    """Let equal small constants be one: compiling takes time for each node, and half of a traced graph's are such constants."""
    import openvino as ov

    known: dict[tuple[Any, ...], Any] = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_byte_size() > SHARED_BYTES:
            continue
        if node.get_element_type().bitwidth < 8 or node.get_element_type() == ov.Type.bf16:
            continue  # numpy has no such types
        shape = tuple(node.get_output_shape(0))
        key = (node.get_output_element_type(0).get_type_name(), shape, node.data.tobytes())
        first = known.setdefault(key, node)
        if first is not node:
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(first.output(0))


def keep_apart(graph: Any, threads: int) -> None:
    """Stop the plugin from fusing gated feed-forward blocks into one operation where that operation can't be trusted.

    It takes a sixth off a pass in bfloat16. But OpenVINO 2026.4 divides its work by half the number of threads, rounded down, and
    hands it out in pairs: with one thread the process dies (SIGFPE), with an odd number it writes past the end of a table, and
    every thread should have work. A bound that nothing reaches is computed for free and isn't in the plugin's pattern.
    """
    from openvino import opset15 as ops

    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Multiply":
            continue
        for at in (0, 1):
            product, other = node.input_value(at), node.input_value(1 - at).get_node()
            if product.get_node().get_type_name() == "MatMul" and other.get_type_name() in ("Swish", "Gelu"):
                states = product.get_node().input_value(0).get_partial_shape()
                sizes = [shape[len(shape) - 1] for shape in (product.get_partial_shape(), states)]
                ample = all(size.is_static and size.get_length() >= FUSED_PER_THREAD * threads for size in sizes)
                if threads % 2 or not ample:
                    node.input(at).replace_source_output(ops.clamp(product, -1e30, 1e30).output(0))


def _paged_attention(
    states: list[Any], caches: list[Any], told: list[Any], trees: list[Any], scale: float, window: int
) -> Any:
    """Build the attention of one layer over all earlier tokens, or the last `window` of them."""
    from openvino import opset15 as ops

    def number(value: float, kind: type = np.int32) -> Any:
        return ops.constant(np.array(value, kind)).output(0)

    def nothing(kind: type = np.int32) -> Any:
        return ops.constant(np.zeros(0, kind)).output(0)

    inputs = [*states, *caches, *told[:4], number(scale, np.float32), number(window), nothing(np.float32), told[4]]
    # What scores of evicted blocks, rotated blocks, sparse attention, sinks and images would need.
    inputs += [nothing(), nothing(), nothing(), nothing(np.float32), nothing(np.float32), number(0), number(0)]
    inputs += [nothing(np.float32), number(0), nothing(), nothing(), nothing(), nothing(), *trees]
    return private.paged_attention(inputs)
