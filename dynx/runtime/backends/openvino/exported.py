"""Language models that were exported to OpenVINO's own format, as optimum-intel writes them, on the sessions of `decoder`.

Such a graph keeps its keys and values in variables and can't drop the last of them. OpenVINO's own transformation replaces them
by paged attention, whose cache is an input that the caller owns; around that the inputs are given the form that `convert` gives
them. The transformation is private to OpenVINO, and this module alone knows it. The result is compared with the graph as it was
exported.

Letters in shapes: T tokens of one pass, N rows asked for, D hidden size, V vocabulary.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynx.errors import ModelError, UnsupportedModelError
from dynx.runtime.backends.availability import available
from dynx.runtime.backends.openvino.decoder import OpenVINOBackend
from dynx.runtime.backends.openvino.precision import MAX_LOGIT_ERROR
from dynx.runtime.loading.exported import MODEL_FILE, weights_kind

if TYPE_CHECKING:
    from pathlib import Path

EXPORTED_INPUTS = frozenset({"input_ids", "attention_mask", "position_ids", "beam_idx"})
"""Inputs of a language model with a state."""

HEAD_STEPS = ("Convert", "Multiply", "Add", "Tanh", "Divide", "Reshape", "Subtract")
"""Operations that may stand between the product with the head and the logits."""


def load(folder: Path, *, name: str, dtype: str, threads: int, trusted: bool = False) -> OpenVINOBackend:
    """Load the model in `folder`, computing in `dtype` where its weights aren't integers.

    `trusted` leaves out the comparison with the exported graph. Raises ModelError for files that can't be read, and
    UnsupportedModelError for a model that isn't a language model with a state.
    """
    usable = available()
    if not usable.value:
        raise UnsupportedModelError(f"{name} is an OpenVINO model: {usable.reason}")
    graph = _read(folder, name)
    names = {port.get_any_name() for port in graph.inputs}
    if not names <= EXPORTED_INPUTS or "input_ids" not in names or not graph.get_sinks():
        others = ", ".join(sorted(names - EXPORTED_INPUTS)[:3]) or "no key-value cache"
        raise UnsupportedModelError(
            f"{name} is an OpenVINO model of another kind ({others})",
            hint="optimum-intel exports a language model with its cache for the task text-generation-with-past",
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    precision = weights_kind(folder)
    precision = precision if precision in ("int8", "int4") else dtype
    paged = _paged(graph.clone(), config, name)
    try:
        backend = OpenVINOBackend(paged, precision=precision, threads=threads)  # type: ignore[arg-type]
    except RuntimeError as e:
        raise UnsupportedModelError(f"{name} can't be compiled by OpenVINO ({_line(e)})") from e
    if not trusted and (fault := _difference(backend, graph, precision, threads)):
        raise UnsupportedModelError(f"{name} {fault}")
    return backend


def _read(folder: Path, name: str) -> Any:
    import openvino as ov

    try:
        return ov.Core().read_model(folder / MODEL_FILE)
    except RuntimeError as e:
        raise ModelError(f"{name}'s {MODEL_FILE} can't be read: {_line(e)}") from None


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line and not line.startswith("Exception from")]
    return (lines or [type(error).__name__])[0][:160]


def _paged(graph: Any, config: dict[str, Any], name: str) -> Any:
    """Return the graph with paged attention, inputs and output as those of `convert.convert` after `paged.assemble`."""
    import openvino as ov
    from openvino import opset15 as ops
    from openvino._offline_transformations import paged_attention_transformation
    from openvino.op import Parameter

    try:
        paged_attention_transformation(graph)
    except RuntimeError as e:
        raise UnsupportedModelError(f"{name} can't be turned into paged attention by OpenVINO ({_line(e)})") from e

    def parameter(called: str, shape: list[int]) -> Any:
        made = Parameter(ov.Type.i64, ov.PartialShape(shape))
        made.set_friendly_name(called)
        made.output(0).get_tensor().set_names({called})
        return made

    flat, added = ops.constant(np.array([-1], np.int64)), []
    for called in ("input_ids", "position_ids"):
        old = next((port.get_node() for port in graph.inputs if port.get_any_name() == called), None)
        new = parameter(called, [1, -1])
        added.append(new)
        if old is None:
            continue
        whole = ops.convert(ops.reshape(new, flat, False), old.get_element_type())
        for target in old.output(0).get_target_inputs():
            target.replace_source_output(whole.output(0))
        graph.remove_parameter(old)
    rows = parameter("rows", [-1])
    added.append(rows)
    graph.add_parameters(added)
    logits = graph.output("logits").get_node()
    _keep_rows(logits, rows, ops)
    vocabulary = graph.output("logits").get_partial_shape()[2]
    if vocabulary.is_dynamic:
        raise UnsupportedModelError(f"{name} doesn't say how many tokens it knows")
    shape = ops.constant(np.array([-1, vocabulary.get_length()], np.int64))
    logits.input(0).replace_source_output(ops.reshape(logits.input_value(0), shape, False).output(0))
    graph.validate_nodes_and_infer_types()
    layers = sum(port.get_any_name().startswith("key_cache.") for port in graph.inputs)
    text = config.get("text_config") or config
    context = int(text.get("max_position_embeddings") or text.get("n_positions") or text.get("seq_length") or 32768)
    facts = {
        "layers": layers,
        "vocab": vocabulary.get_length(),
        "context": context,
        "kind": config.get("model_type", name),
    }
    for key, value in facts.items():
        graph.set_rt_info(str(value), ["dynx", key])
    return graph


def _keep_rows(result: Any, rows: Any, ops: Any) -> None:
    """Choose the rows asked for before the product with the head, or after it where that isn't found."""
    node, at = result, 0
    below = node.input_value(at).get_node()
    while below.get_type_name() in HEAD_STEPS:
        node, at = below, 0
        below = node.input_value(0).get_node()
    if below.get_type_name() == "MatMul":
        node, at = below, 0
    else:
        node, at = result, 0
    chosen = ops.gather(node.input_value(at), rows, ops.constant(np.int64(0)))
    node.input(at).replace_source_output(chosen.output(0))


@torch.inference_mode()
def _difference(backend: OpenVINOBackend, graph: Any, precision: str, threads: int) -> str | None:
    """Describe how the sessions' logits differ from the exported graph's beyond rounding; None where they don't."""
    import openvino as ov

    probe = [(7 * i + 3) % backend.vocab for i in range(12)]
    settings = {"INFERENCE_PRECISION_HINT": backend.compute, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = ov.Core().compile_model(graph, "CPU", settings).create_infer_request()
    given = {
        "input_ids": np.array([probe], np.int64),
        "attention_mask": np.ones((1, len(probe)), np.int64),
        "position_ids": np.arange(len(probe), dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    names = {port.get_any_name() for port in graph.inputs}
    want = torch.from_numpy(
        np.array(request.infer({k: v for k, v in given.items() if k in names})["logits"][0])
    ).float()
    session = backend.open()
    parts = [session.forward(probe[:4])]
    session.forward([probe[0], probe[0], probe[1]])
    session.rollback(4)
    parts += [session.forward(probe[4:9]), *[session.forward([token], keep=1) for token in probe[9:]]]
    gap, scale = (torch.cat(parts) - want).abs(), max(1.0, want.abs().max().item())
    worst = gap.max().item() / scale
    if worst <= MAX_LOGIT_ERROR["int8" if precision == "int4" else precision]:
        return None
    return f"gives other logits with paged attention (by {worst:.0%} of the largest)"  # also for NaN
