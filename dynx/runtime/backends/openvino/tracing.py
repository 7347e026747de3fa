"""Functions of tensors as OpenVINO graphs: traced from PyTorch, with symbols for the sizes that vary, and compiled.

`openvino.convert_model` would trace in the same way and send telemetry to Intel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.openvino import private
from dynx.runtime.backends.openvino.paged import keep_apart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn


def varying(several: Sequence[Sequence[Tensor]]) -> list[list[int]]:
    """Return the shape of each input, from its values in several calls; -1 for a size that differs between them."""
    shapes = [[call[i].shape for call in several] for i in range(len(several[0]))]
    return [[sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*one, strict=True)] for one in shapes]


def trace(function: nn.Module, example: Sequence[Tensor], shapes: Sequence[list[int]]) -> Any:
    """Convert `function` to a graph of inputs of these shapes. Raises UnsupportedModelError where an input is left out."""
    import openvino as ov
    from openvino.frontend import FrontEndManager

    kinds = {
        torch.float32: ov.Type.f32,
        torch.bool: ov.Type.boolean,
        torch.int64: ov.Type.i64,
        torch.int32: ov.Type.i32,
    }
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = private.tracer(function, example_input=tuple(example), trace_kwargs={"check_trace": False})
    program = frontend.load(decoder)  # which doesn't keep it alive: the name above must
    places = program.get_inputs()
    if len(places) != len(example):
        raise UnsupportedModelError("a block doesn't use all that it is given")
    for place, shape, tensor in zip(places, shapes, example, strict=True):
        program.set_partial_shape(place, ov.PartialShape(shape))
        program.set_element_type(place, kinds[tensor.dtype])
    graph = frontend.convert(program)
    private.simplify(graph)
    return graph


def compile_request(graph: Any, precision: str, threads: int) -> Any:
    """Compile a graph for the CPU and return a request to run it.

    `precision`: "float32", or one whose remaining operations are in bfloat16 where the processor multiplies in that.
    """
    import openvino as ov

    core = ov.Core()
    keep_apart(graph, threads)
    reduced = precision != "float32" and multiplies_bfloat16()
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if reduced else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
    }
    return core.compile_model(graph, "CPU", settings).create_infer_request()


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 (AVX512_BF16 or AMX), as OpenVINO reports."""
    import openvino as ov

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
