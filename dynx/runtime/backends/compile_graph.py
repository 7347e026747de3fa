"""Traces a decoder block into compiled code, and names that code in the cache.

The numbers of tokens and of cached positions are symbols; everything else is fixed and part of the name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.eager import CounterCache

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT_VERSION = 1
"""Version of the stored code; raise it when the code or its arguments change."""


class Window:
    """The cache as one block sees it while it is traced: keys and values up to the new positions, and where these go."""

    def __init__(self, keys: Tensor, values: Tensor, at: Tensor) -> None:
        self._keys, self._values, self._at = keys, values, at

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """See `CounterLayer.update`."""
        self._keys.index_copy_(2, self._at, key_states)
        self._values.index_copy_(2, self._at, value_states)
        return self._keys, self._values


def compile_block(block: nn.Module, names: list[str], inputs: list[Tensor], kwargs: dict[str, Any]) -> Any:
    """Trace `block` on `inputs` (states, keys, values, positions, the tensors of `kwargs`, its own) and compile that."""
    from torch._inductor import standalone_compile as untyped
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    standalone_compile: Any = untyped
    count, end = inputs[0].shape[1], inputs[1].shape[2]
    outer = len(inputs) - len(names)

    def call(*flat: Tensor) -> tuple[Tensor]:
        rest = iter(flat[4:outer])
        again: dict[str, Any] = {}
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                again[name] = next(rest)
            elif isinstance(value, CounterCache):
                again[name] = Window(*flat[1:4])
            elif isinstance(value, tuple) and all(isinstance(v, Tensor) for v in value):
                again[name] = tuple(next(rest) for _ in value)
            else:
                again[name] = value
        state = dict(zip(names, flat[outer:], strict=True))
        out = torch.func.functional_call(block, state, (flat[0],), again)
        if isinstance(out, tuple):
            if any(item is not None for item in out[1:]):
                raise UnsupportedModelError("its blocks return more than their states")
            out = out[0]
        return (out,)

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def fake(tensor: Tensor, index: int) -> Tensor:
        sizes = [
            DimDynamic.DUCK if index < outer and size in (count, end) and size > 1 else DimDynamic.STATIC
            for size in tensor.shape
        ]
        return mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))

    example = [fake(tensor, index) for index, tensor in enumerate(inputs)]
    with unlogged():
        with mode:
            graph = make_fx(call, tracing_mode="real")(*example)
        _share(graph)
        return standalone_compile(graph, example, dynamic_shapes="from_graph", aot=True)


@contextmanager
def unlogged() -> Iterator[None]:
    """Disable logging: torch logs what it can't trace with a traceback, by loggers of many names, and raises as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _share(graph: torch.fx.GraphModule) -> None:
    """Merge equal operations of a graph, such as those of layers that read the same input."""
    met: dict[tuple[Any, ...], torch.fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags:
            met = {}  # what was read before may have changed
            continue
        try:
            key = (node.target, _frozen(node.args), _frozen(node.kwargs))
            same = met.setdefault(key, node)
        except TypeError:
            continue
        if same is not node:
            node.replace_all_uses_with(same)
            graph.graph.erase_node(node)
    graph.recompile()


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, dict):
        return tuple(sorted((k, _frozen(v)) for k, v in value.items()))
    return (type(value), value)


def digest(config: Any, key: tuple[Any, ...], names: list[str], inputs: list[Tensor]) -> str:
    """Name compiled code by everything that it depends on and that may differ in another process."""
    import transformers

    sizes = [(tuple(t.shape), str(t.dtype)) for t in inputs[-len(names) :]] if names else []
    settings = {k: v for k, v in config.to_dict().items() if not k.startswith(("_", "transformers", "name"))}
    facts = (
        FORMAT_VERSION,
        torch.__version__,
        transformers.__version__,
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        json.dumps(settings, sort_keys=True, default=str),
        repr(key),
        names,
        sizes,
        str(inputs[0].dtype),
        tuple(inputs[1].shape[:2]),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
