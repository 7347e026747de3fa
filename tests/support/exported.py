"""Exports tiny models to OpenVINO's own format in the layout of optimum-intel: a graph with a state, and the model's files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from pathlib import Path


class _WithCache(nn.Module):
    """A decoder as a function of its inputs and of keys and values."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Return logits, and keys and values with the new ones."""
        cache = DynamicCache()
        for keys, values in zip(past[::2], past[1::2], strict=True):
            layer = DynamicLayer()
            layer.keys, layer.values, layer.is_initialized = keys, values, True
            layer.dtype, layer.device = keys.dtype, keys.device
            cache.layers.append(layer)
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (out.logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


def export(model: Any, folder: Path, *, state: bool = True) -> None:
    """Write `model` to `folder`, with its keys and values as a state or as inputs and outputs."""
    import openvino as ov
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    config = model.config
    groups, layers = config.num_key_value_heads, config.num_hidden_layers
    width = config.hidden_size // config.num_attention_heads
    past = [torch.randn(2, groups, 5, width) for _ in range(2 * layers)]
    example = (
        torch.ones(2, 3, dtype=torch.long),
        torch.ones(2, 8, dtype=torch.long),
        torch.arange(5, 8).repeat(2, 1),
        *past,
    )
    graph = ov.convert_model(_WithCache(model), example_input=example)
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    names = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{part}" for part in parts)]
    shapes = {}
    for port, name in zip(graph.inputs, names, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
        shapes[name] = [-1, groups, -1, width] if name.startswith("past") else [-1, -1]
    for port, name in zip(graph.outputs, ["logits", *(f"present.{part}" for part in parts)], strict=True):
        port.get_tensor().set_names({name})
    graph.reshape(shapes)
    if state:
        beams = ops.parameter([-1], dtype=np.int32, name="beam_idx")
        beams.output(0).get_tensor().set_names({"beam_idx"})
        graph.add_parameters([beams])
        for name in names[3:]:
            held = graph.input(name).get_node()
            users = list(held.output(0).get_target_inputs())
            chosen = ops.gather(held, beams, ops.constant(0))
            for user in users:
                user.replace_source_output(chosen.output(0))
        graph.validate_nodes_and_infer_types()
        apply_make_stateful_transformation(graph, {f"past_key_values.{part}": f"present.{part}" for part in parts})
        sequences = ops.gather(ops.shape_of(graph.input("input_ids"), "i64"), ops.constant([0]), ops.constant(0))
        rest = ops.constant(np.array([groups, 0, width], np.int64))
        empty = ops.broadcast(ops.constant(np.float32(0)), ops.concat([sequences, rest], 0))
        for node in graph.get_ops():
            if node.get_type_name() == "ReadValue":
                node.set_arguments([empty.output(0)])
        graph.validate_nodes_and_infer_types()
    folder.mkdir(exist_ok=True)
    ov.save_model(graph, folder / "openvino_model.xml", compress_to_fp16=False)
    (folder / "config.json").write_text(
        json.dumps({**config.to_dict(), "architectures": [type(model).__name__]}, default=str)
    )
