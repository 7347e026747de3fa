"""Converts a transformers decoder to an OpenVINO model whose key-value cache is an input that the caller owns.

The model is traced without a cache, with another attention function in the place of its own. In the graph that function is one
node per layer, OpenVINO's paged attention. It writes new keys and values into the blocks and at the positions that its inputs
name, so a rollback is a smaller position.

Weights are stored by `weights`; sessions, files and the comparison with the original logits are in `decoder`.

Letters in shapes: T tokens of one call, H heads, G heads of keys and values, W head width, N rows asked for.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.length_dependence import SPARSE_SETTINGS, growing
from dynx.runtime.backends.openvino import private
from dynx.runtime.backends.openvino.paged import ATTENTION_NAME
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

MAX_TABLE_POSITIONS = 32768
"""Positions for which rotary tables are stored: 32 MiB of float32 at a head width of 128."""

ROTATION = "apply_rotary_pos_emb"
"""Name in transformers' models of the function that rotates queries and keys."""

_UNSUPPORTED = {
    "softcap": "caps its attention scores",
    "s_aux": "has attention sinks",
    "position_bias": "biases attention",
}


def convert(model: Any, vectors: Callable[[str], NDArray[np.float32] | None] | None = None) -> Any:
    """`model` as an `openvino.Model` that can be written to a file; `paged.assemble` makes it runnable.

    Inputs: `input_ids` (1, T), `position_ids` (1, T), `rows` (N); `paged.assemble` adds `paged.PAGED_INPUTS`, and
    `key_cache.L` and `value_cache.L` for each layer L. Output: logits (N, V), float32. The model is left as it was; its
    weights are shared, not copied.
    `vectors` returns the exact values of a vector of weights by its name, where the model has them rounded. Raises
    `UnsupportedModelError` where it can't be expressed so.
    """
    config = model.config.get_text_config(decoder=True)
    kind = config.model_type
    if what := growing(config):
        part = "attention" if what in SPARSE_SETTINGS else "rotary frequencies"
        raise UnsupportedModelError(f"{kind} changes its {part} with the length of the text ({what})")
    limit = min(int(getattr(config, "max_position_embeddings", None) or MAX_TABLE_POSITIONS), MAX_TABLE_POSITIONS)
    _register_attention()
    recorded: list[tuple[float, int, list[int]]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about constants that are meant to be
        with _Twin(model, vectors) as twin, heads_in_place(twin):
            try:
                graph = _traced(_Wrapped(twin), recorded)
            except Exception as e:
                if is_out_of_memory(e):
                    raise
                raise UnsupportedModelError(f"{kind} {_told(e)}") from e
    if len(recorded) != config.num_hidden_layers:
        raise UnsupportedModelError(f"{kind} computes its attention in a way that dynx can't replace")
    _fold_small_constants(graph)
    _tabulate_rotations(graph, limit)
    graph.validate_nodes_and_infer_types()
    facts = {"layers": len(recorded), "vocab": config.vocab_size, "context": limit, "kind": kind}
    for key, value in (facts | {"attention": json.dumps(recorded)}).items():
        graph.set_rt_info(str(value), ["dynx", key])
    return graph


def _traced(function: nn.Module, recorded: list[Any]) -> Any:
    """Convert `function` to a graph, with a marker for each attention that it ran.

    `openvino.convert_model` would do the same and tell Intel about it.
    """
    import openvino as ov
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch import ConversionExtension

    example = (torch.zeros(1, 3, dtype=torch.long), torch.arange(3)[None], torch.arange(2))
    frontend = FrontEndManager().load_by_framework("pytorch")
    frontend.add_extension(ConversionExtension("dynx::attention", functools.partial(_attention_node, recorded)))
    settings = {"check_trace": False}
    decoder = private.tracer(function, example_input=example, trace_kwargs=settings)
    program = frontend.load(decoder)  # which doesn't keep it alive: the name above must
    for place, shape in zip(program.get_inputs(), ([1, -1], [1, -1], [-1]), strict=True):
        program.set_partial_shape(place, ov.PartialShape(shape))
        program.set_element_type(place, ov.Type.i64)
    graph = frontend.convert(program)
    private.simplify(graph)
    return graph


@contextmanager
def heads_in_place(model: nn.Module) -> Iterator[None]:
    """While a model is traced, let rotations leave tokens before heads, (1, T, H, W), as they come and as attention takes them.

    transformers has heads first, (1, H, T, W). Its rotations take either, so those are turned around before and after, and the
    graph is left without transpositions. A rotation of another form stays as it is.
    """
    modules = {sys.modules[type(part).__module__] for part in model.modules()}
    found = {module: rotate for module in modules if (rotate := getattr(module, ROTATION, None)) is not None}
    usual = {module: rotate for module, rotate in found.items() if _takes_either(rotate)}
    for module, rotate in usual.items():
        setattr(module, ROTATION, functools.partial(_rotated, rotate))
    try:
        yield
    finally:
        for module, rotate in usual.items():
            setattr(module, ROTATION, rotate)


def _takes_either(rotate: Any) -> bool:
    try:
        names = inspect.signature(rotate).parameters
    except (TypeError, ValueError):
        return False
    return (
        list(names)[:4] == ["q", "k", "cos", "sin"] and "unsqueeze_dim" in names and names["unsqueeze_dim"].default == 1
    )


def _rotated(rotate: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **settings: Any) -> Any:
    """Rotate queries and keys (1, H, T, W)."""
    if rest or settings or q.dim() != 4 or k.dim() != 4:
        return rotate(q, k, cos, sin, *rest, **settings)
    turned = rotate(q.transpose(1, 2), k.transpose(1, 2), cos, sin, unsqueeze_dim=2)
    return tuple(states.transpose(1, 2) for states in turned)


def _told(error: BaseException) -> str:
    """Return what the attention function refused, or else that tracing failed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UnsupportedModelError):
            return str(cause)
        cause = cause.__cause__
    return f"can't be traced for OpenVINO ({type(error).__name__})"


class _Wrapped(nn.Module):
    """The decoder as a function of three tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor, rows: Tensor) -> Tensor:
        out = self.model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, logits_to_keep=rows, return_dict=True
        )
        logits: Tensor = out.logits[0]
        return logits


class _Twin:
    """A second tree of modules over the memory of the same large weights, prepared for tracing in float32.

    OpenVINO's preparation of 16-bit models replaces forwards, and gives float32 data to the parameters of every module that isn't
    exactly a `Linear`, an `Embedding` or a `Conv1D` (a subclass of one, such as an embedding that scales, isn't). It must not do
    so to ours: parameters are objects of the twin's own, of which only the memory is shared.
    """

    def __init__(self, model: Any, vectors: Callable[[str], NDArray[np.float32] | None] | None = None) -> None:
        self._vectors = vectors
        from transformers.pytorch_utils import Conv1D

        large = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Embedding, Conv1D))]
        own = {id(p): p for m in large for p in m.parameters(recurse=False)}
        self._shared = {key: nn.Parameter(p.detach(), requires_grad=False) for key, p in own.items()}
        self._model = copy.deepcopy(model, dict(self._shared))
        for module in self._model.modules():
            module.__dict__.pop("forward", None)  # an early exit's gate would call the model we came from
            if hasattr(type(module), "loss_function"):
                module.loss_function = None  # the tracer looks at every attribute; transformers would warn of this one
        self._model.config.get_text_config(decoder=True)._attn_implementation = ATTENTION_NAME

    def __enter__(self) -> Any:
        try:
            private.make_traceable(self._model)
        except BaseException:  # functions of torch's own are replaced by then
            self.__exit__()
            raise
        for name, parameter in self._model.named_parameters() if self._vectors else ():
            if parameter.dtype == torch.float32 and parameter.dim() == 1 and self._vectors:
                exact = self._vectors(name)
                if exact is not None:
                    parameter.data = torch.from_numpy(exact)
        return self._model

    def __exit__(self, *exc: object) -> None:
        private.undo_traceable(self._model)
        for parameter in self._shared.values():  # the tracer's classes never die, and refer to the twin's modules
            parameter.data = parameter.data.new_empty(0)


@functools.cache
def _register_attention() -> None:
    """Make the attention function known to torch and to transformers, once."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    schema = "(Tensor q, Tensor k, Tensor v, float scale, int window, int[] sizes) -> Tensor"

    @torch.library.custom_op("dynx::attention", mutates_args=(), schema=schema)
    def attention(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> Tensor:
        del k, settings  # for the graph only; what tracing needs is the shape
        return q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[3])

    def forward(
        _: nn.Module, query: Tensor, key: Tensor, value: Tensor, __: Tensor | None, **settings: Any
    ) -> tuple[Tensor, None]:
        for name, words in _UNSUPPORTED.items():
            if settings.get(name) is not None:
                raise UnsupportedModelError(words)
        width = int(query.shape[3])
        sizes = [int(query.shape[1]), int(key.shape[1]), width, int(value.shape[3])]
        scale, window = settings.get("scaling"), settings.get("sliding_window")
        scale = width**-0.5 if scale is None else float(scale)
        return attention(query, key, value, scale, int(window or 0), sizes), None

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, forward)


def _attention_node(recorded: list[tuple[float, int, list[int]]], context: Any) -> list[Any]:
    """Mark the place of one layer's attention, on its queries, keys and values, and record its settings.

    OpenVINO can write its paged attention to a file and can't read it back, so `paged.assemble` puts it in afterwards.
    """
    from openvino import opset15 as ops

    scale, window, sizes = (context.get_values_from_const_input(i) for i in range(3, 6))
    heads, groups, width, value_width = sizes

    def tokens_first(states: Any, size: int) -> Any:  # (1, H, T, W) → (T, H·W)
        return ops.reshape(ops.transpose(states, _ints(0, 2, 1, 3)), _ints(-1, size), False)

    widths = (heads * width, groups * width, groups * value_width)
    parts = [tokens_first(context.get_input(i), size) for i, size in enumerate(widths)]
    mark = ops.concat(parts, 1)
    mark.set_friendly_name(f"{ATTENTION_NAME}.{len(recorded)}")
    recorded.append((float(scale), int(window), [int(size) for size in sizes]))
    return [ops.reshape(mark.output(0), _ints(1, -1, heads, value_width), False).output(0)]


def _ints(*values: int) -> Any:
    from openvino import opset15 as ops

    return ops.constant(np.array(values, np.int64))


def _fold_small_constants(graph: Any) -> None:
    """Replace conversions of single numbers by the number: the plugin's patterns for rotations look for it."""
    import openvino as ov
    from openvino import opset15 as ops

    for node in graph.get_ordered_ops():
        if node.get_type_name() not in ("Convert", "ConvertLike"):
            continue
        source = node.input_value(0).get_node()
        small = source.get_type_name() == "Constant" and source.get_output_size() and source.data.size == 1
        if small and node.get_output_element_type(0) == ov.Type.f32 and source.get_element_type() != ov.Type.bf16:
            folded = ops.constant(np.asarray(source.data, np.float32))
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(folded.output(0))


def _tabulate_rotations(graph: Any, limit: int) -> None:
    """Look sines and cosines of positions up instead of computing them.

    At bfloat16 the plugin would round the angles, and position 300 would stand anywhere between 299 and 301.
    """
    import openvino as ov
    from openvino import opset15 as ops

    graph.validate_nodes_and_infer_types()
    trigonometric = [node for node in graph.get_ordered_ops() if node.get_type_name() in ("Cos", "Sin")]
    if not trigonometric:
        return
    positions = graph.input("position_ids").get_node()
    table_model = ov.Model([node.output(0) for node in trigonometric], [positions], "rotations")
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    tables = ov.Core().compile_model(table_model.clone(), "CPU", settings)(np.arange(limit, dtype=np.int64)[None])
    for index, node in enumerate(trigonometric):
        table = tables[index]
        if table.ndim != 3 or table.shape[:2] != (1, limit):
            raise UnsupportedModelError("rotates by something other than positions")
        looked_up = ops.gather(ops.constant(np.ascontiguousarray(table[0])), positions.output(0), np.int64(0))
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(looked_up.output(0))
