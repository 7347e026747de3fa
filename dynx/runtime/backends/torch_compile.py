"""Runs a transformers decoder with compiled blocks and weights packed for the CPU's matrix kernels.

One block is compiled, once for a single token and once for any larger number, and all blocks of a kind share the result: seconds
of compiling instead of minutes, and a file of some 100 KiB that the next process loads. Masks, positions and the order of
operations still come from the model's own forward, which calls the blocks as ever. The number of tokens and of positions before
them are symbols in the compiled code, and a rollback moves the session's counter, so no token, context or draft length compiles
anew.

Prefill, the first pass, and calls of a kind that loading hasn't seen run the blocks uncompiled. Compiled code is compared with
the model before it is used; a model that disagrees, or can't be traced, is refused with the reason.

The alternative is `torch.compile` of the same block with `torch.compiler.load_cache_artifacts`. From a loaded `story` to its
first compiled pass in a fresh process that took 4.1 s of CPU time (3.8 to 4.9), this 1.15 s (1.12 to 1.28); where torch's own
cache folder was empty too, 25 s and 13 s. Passes of one token took 5.0 to 8.4 ms and 4.5 to 4.9 ms (one thread of an EPYC, torch
2.13, medians of five interleaved processes, three for the empty folder).
"""

from __future__ import annotations

import contextlib
import inspect
import re
import secrets
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynx.errors import DeviceError, UnsupportedModelError
from dynx.runtime.backends import compile_cache, packed_linear
from dynx.runtime.backends.availability import can_compile
from dynx.runtime.backends.compile_graph import compile_block, digest
from dynx.runtime.backends.depth_gate import decoder_blocks
from dynx.runtime.backends.eager import CounterCache, EagerBackend
from dynx.runtime.backends.logit_check import largest_difference
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_COMPILED_TOKENS = 32
"""Tokens of a pass beyond which the blocks run as they are: kernels then fill the processor by themselves."""

PROBE_TOKENS = 13, 37
"""Tokens and positions before them in the pass that is traced: primes that no model's own sizes are likely to equal."""

PER_BLOCK_SETTINGS = frozenset({"layer_idx", "training", "handle"})
"""Settings that may differ between blocks of a kind."""

PLAIN_TYPES = type(None), bool, int, float, str, tuple, Tensor, CounterCache
"""Arguments of a block that mean the same in every process; code for others is compiled anew in each and not kept."""

CHECKED_TOKENS = (1, 2, 5, 8)
"""Tokens of the passes that are compared with the unmodified model."""


def load(model: Any, *, cache: Path | None = None, trusted: bool = False) -> CompiledBackend:
    """Pack and compile `model` in place; compiled code is looked for in the folder `cache` and kept there.

    Layers that are packed already (`packed_linear.quantize`) stay as they are; `trusted` skips the comparison where nothing was
    compiled. Raises UnsupportedModelError with the reason where the model can't be compiled or gives other logits then;
    `model` isn't fit for use afterwards.
    """
    able = can_compile(str(model.device))
    if not able.value:
        raise UnsupportedModelError(able.reason)
    backend = CompiledBackend(model, cache=cache, trusted=trusted)
    if not backend.can_rollback.value:
        raise UnsupportedModelError(backend.can_rollback.reason)
    if backend.keeps_states:
        raise UnsupportedModelError(
            f"{backend.config.model_type} keeps a recurrent state, which PyTorch rolls back alone"
        )
    if backend.length_dependence is not None:
        raise UnsupportedModelError(f"in {backend.config.model_type}, {backend.length_dependence}")
    try:
        backend.prepare()
    except (DeviceError, UnsupportedModelError):
        raise
    except Exception as e:
        if is_out_of_memory(e):
            raise
        raise UnsupportedModelError(f"{backend.config.model_type} can't be compiled ({_brief(e)})") from e
    return backend


class CompiledBackend(EagerBackend):
    """A transformers model with compiled blocks."""

    name = "torch-compiled"

    def __init__(self, model: Any, *, cache: Path | None = None, trusted: bool = False) -> None:
        super().__init__(model, trusted=trusted)
        self.compiled = 0
        """Graphs that this process had to compile; the others came from `cache`."""
        self._folder = cache
        self._graphs: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._on = self._learning = False
        self._places: tuple[int, int, Tensor] | None = None  # start, count, positions of the pass in progress

    @torch.inference_mode()
    def prepare(self) -> None:
        """Pack the weights, put the compiled blocks in place, and compare. Raises UnsupportedModelError."""
        blocks = decoder_blocks(self.model)
        if blocks is None or len(blocks) != self.layers:
            raise UnsupportedModelError(f"no list of {self.layers} decoder blocks in {type(self.model).__name__}")
        probe = [(7 * i + 3) % self.vocab for i in range(sum(PROBE_TOKENS) + 1)]
        if self.model.dtype == torch.bfloat16 and packed_linear.available("bfloat16").value:
            packed_linear.pack(
                self.model, "bfloat16", lambda: self.model(input_ids=torch.tensor([probe[:3]]), use_cache=False)
            )
        for index, block in enumerate(blocks):
            block.forward = self._compiled(index, block, block.forward)
        session = self.open()
        session.forward(probe[: PROBE_TOKENS[1]])
        self._on = self._learning = True
        session.forward(probe[PROBE_TOKENS[1] : sum(PROBE_TOKENS)])
        session.forward(probe[sum(PROBE_TOKENS) :])
        self._learning = False
        if self.compiled or not self._trusted:
            self._check(probe)

    def _check(self, probe: list[int]) -> None:
        """Compare passes of compiled blocks with one of the unmodified blocks. Raises UnsupportedModelError where they differ."""
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.08
        if any(
            isinstance(module, packed_linear.PackedLinear) and module.form == "int8" for module in self.model.modules()
        ):
            tolerance = packed_linear.MAX_INT8_LOGIT_ERROR  # what is rounded for its kernels may fall to the other side
        found = largest_difference(self, probe, PROBE_TOKENS[1], CHECKED_TOKENS)
        if not found.gap <= tolerance * found.scale:  # also catches NaN
            kind = self.config.model_type
            raise UnsupportedModelError(
                f"{kind} gives other logits when compiled (by {found.gap:.2g} at {found.width} tokens)"
            )

    def _compiled(self, index: int, block: nn.Module, inner: Callable[..., Any]) -> Callable[..., Any]:
        """Return the forward that replaces `inner`, block `index`'s own."""
        names, state = _state(block)
        signature = _signature(block)
        parameters = list(inspect.signature(inner).parameters)
        items = 0  # of the tuple that the block returns; 0 where it returns the states alone

        def whole(hidden: Tensor, kwargs: dict[str, Any]) -> Any:
            nonlocal items
            out = inner(hidden, **kwargs)
            items = len(out) if isinstance(out, tuple) else 0
            return out

        def forward(*args: Any, **kwargs: Any) -> Any:
            if len(args) != 1:
                kwargs = {**dict(zip(parameters, args, strict=False)), **kwargs}
                args = (kwargs.pop(parameters[0]),)
            hidden = args[0]
            count = hidden.shape[1]
            if not self._on or count > MAX_COMPILED_TOKENS:
                return whole(hidden, kwargs)
            tensors, spec, cache = _flatten(kwargs)
            if cache is None or not cache.position:
                return whole(hidden, kwargs)
            inputs = [hidden, *self._room(index, cache, count), *tensors, *state]
            key = (signature, count == 1, spec)
            graph = self._graphs.get(key)
            if graph is None:
                if not self._learning:
                    return whole(hidden, kwargs)
                block.forward = inner  # which is what gets traced
                try:
                    graph = self._graphs[key] = self._graph(key, block, names, inputs, kwargs)
                finally:
                    block.forward = forward
            out = graph(*inputs)[0]
            return (out, *[None] * (items - 1)) if items else out

        return forward

    def _room(self, index: int, cache: CounterCache, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values of block `index` up to the end of the pass, and the positions to write at (count,)."""
        start = cache.position
        end = start + count
        if self._places is None or self._places[:2] != (start, count):
            self._places = start, count, torch.arange(start, end)
        layer = cache.layers[index]
        keys, values = layer.keys, layer.values
        if keys.shape[-2] < end:
            layer.keys = keys = layer._grown(keys, keys, end)
            layer.values = values = layer._grown(values, values, end)
        return keys[..., :end, :], values[..., :end, :], self._places[2]

    def _graph(
        self, key: tuple[Any, ...], block: nn.Module, names: list[str], inputs: list[Tensor], kwargs: dict[str, Any]
    ) -> Callable[..., Any]:
        """Return the compiled block for such inputs: from the folder, else compiled now and stored there."""
        from torch._inductor.standalone_compile import AOTCompiledArtifact

        path = None
        if self._folder is not None and all(isinstance(value, PLAIN_TYPES) for value in kwargs.values()):
            path = self._folder / f"{digest(self.config, key, names, inputs)}.bin"
            try:
                with compile_cache.reuse_trials(self._folder):
                    kept: Callable[..., Any] = AOTCompiledArtifact.load(path=str(path))
                return kept
            except FileNotFoundError:
                pass
            except Exception:  # noqa: BLE001 - torn, or another torch's: compile it anew
                path.unlink(missing_ok=True)
        with compile_cache.reuse_trials(self._folder):
            graph = compile_block(block, names, inputs, kwargs)
        self.compiled += 1
        if path is not None:
            draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                graph.save(path=str(draft))
                draft.replace(path)
        made: Callable[..., Any] = graph
        return made


def _state(block: nn.Module) -> tuple[list[str], list[Tensor]]:
    """Parameters and buffers of a block by name, in order; tensors under two names once."""
    named = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    return list(named), list(named.values())


def _signature(block: nn.Module) -> tuple[Any, ...]:
    """Describe a block by classes, plain settings and shapes; equal for blocks that may share a graph."""
    parts: list[Any] = []
    for name, module in block.named_modules():
        settings = sorted(
            (k, v)
            for k, v in vars(module).items()
            if isinstance(v, (bool, int, float, str)) and k not in PER_BLOCK_SETTINGS
        )
        parts.append((name, type(module).__qualname__, tuple(settings)))
    tensors = [*block.named_parameters(), *block.named_buffers()]
    parts += [(name, tuple(t.shape), str(t.dtype)) for name, t in tensors]
    return tuple(parts)


def _flatten(kwargs: dict[str, Any]) -> tuple[list[Tensor], tuple[Any, ...], CounterCache | None]:
    """Return the tensors among a block's arguments in order, a hashable description of the rest, and the cache."""
    tensors: list[Tensor] = []
    spec: list[Any] = []
    cache: CounterCache | None = None
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            tensors.append(value)
            spec.append((name, value.dim(), value.dtype))
        elif isinstance(value, CounterCache):
            cache = value
            spec.append((name, "cache"))
        elif isinstance(value, tuple) and all(isinstance(v, Tensor) for v in value):
            tensors.extend(value)
            spec.append((name, *[(v.dim(), v.dtype) for v in value]))
        else:
            spec.append((name, repr(value)))
    return tensors, tuple(spec), cache


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    line = re.sub(r"^\S+\.(?:cpp|h|py):\d+: ", "", lines[0])  # where in torch's sources, which helps nobody here
    return f"{type(error).__name__}: {line}"[:160]
