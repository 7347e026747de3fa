"""Cuts a classifier into segments and converts them for OpenVINO.

A segment runs the model's own forward from the hidden states after block `first` to those after block `last`: earlier blocks and
the embeddings pass the given hidden states on, and the forward ends after the last one. So masks, positions and whatever a
model does between its blocks come from its own code. Pooling for the exit behind a segment is part of its graph. Rows and tokens
are symbols: batches of any shape run.

Letters: R rows, T tokens, D hidden size, F features of an exit.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynx.early_exit.attach.arguments import item_at
from dynx.early_exit.attach.pooling import pool
from dynx.early_exit.segments.names import HIDDEN
from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.openvino import blocks as openvino_blocks
from dynx.runtime.backends.openvino.tracing import trace, varying
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dynx.early_exit.attach.model import ExitModel
    from dynx.runtime.backends.openvino.blocks import Ranges


class _SegmentEnd(Exception):  # noqa: N818 - not an error
    """Ends the model's forward after the last block of a segment."""


class _Segment(nn.Module):
    """The blocks `first` (0 is before them) to `last` of a classifier as a function of tensors."""

    def __init__(
        self, exit_model: ExitModel, blocks: nn.ModuleList, first: int, last: int, names: Sequence[str]
    ) -> None:
        super().__init__()
        self.model, self.blocks = exit_model.model, blocks
        self._exit_model, self._first, self._last, self._names = exit_model, first, last, tuple(names)
        places = {id(block): place for place, block in enumerate(exit_model.blocks)}
        self._places = [places[id(call.module)] for call in exit_model.calls]

    def forward(self, *tensors: Tensor) -> Any:
        """Return hidden states (R, T, D) and features (R, F), of tokens hidden states alone; or the last segment's logits."""
        inputs = dict(zip(self._names, tensors, strict=False))
        hidden = tensors[len(self._names)] if self._first else None
        exit_model, ended, done = self._exit_model, list[Tensor](), [0]

        def call_block(*args: Any, **kwargs: Any) -> Any:
            number = done[0]
            done[0] += 1
            call = exit_model.calls[number]
            if number < self._first:
                passed: Tensor = item_at((args, kwargs), call.hidden)
                return call.wrap_output(hidden if hidden is not None and number == self._first - 1 else passed)
            output = _run_unpatched(self.blocks[self._places[number]], originals, args, kwargs)
            if done[0] == self._last < exit_model.depth:
                ended.append(item_at(output, call.output_path))
                raise _SegmentEnd
            return output

        patches: dict[nn.Module, Callable[..., Any]] = dict.fromkeys(exit_model.blocks, call_block)
        if hidden is not None and exit_model.source is not None:
            patches[exit_model.source] = lambda *_args, **_kwargs: hidden
        originals = {module: module.__dict__.get("forward") for module in patches}
        with _patched(patches):
            try:
                out: Any = self.model(**inputs, **exit_model.options).logits
            except _SegmentEnd:
                if exit_model.style == "tokens":  # the features of tokens are the hidden states themselves
                    return ended[0].float()
                mask = inputs.get("attention_mask") if exit_model.kind == "text" else None
                return ended[0], pool(ended[0], mask, exit_model.kind, exit_model.style)
        return out


def _run_unpatched(
    block: nn.Module, originals: Mapping[nn.Module, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run a block by the forward that it had before `_patched`."""
    ours = block.__dict__.pop("forward", None)
    if originals.get(block) is not None:
        block.__dict__["forward"] = originals[block]
    try:
        return block(*args, **kwargs)
    finally:
        block.__dict__.pop("forward", None)
        if ours is not None:
            block.__dict__["forward"] = ours


@contextmanager
def _patched(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward of modules."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, forward_before in before.items():
            del module.__dict__["forward"]
            if forward_before is not None:
                module.__dict__["forward"] = forward_before


def convert(
    exit_model: ExitModel,
    probes: Sequence[Mapping[str, Tensor]],
    borders: Sequence[int],
    *,
    ranges: Ranges | None = None,
) -> list[Any]:
    """Return a graph for each segment between `borders`, block numbers in ascending order; none: the whole model.

    `probes` are two batches of different numbers of rows and of tokens; `ranges` (`blocks.observe`) are for int8. Inputs have the
    names of the model's, or `HIDDEN`. Raises UnsupportedModelError with the reason.
    """
    name = type(exit_model.model).__name__
    if borders and not all(call.keeps_shape for call in exit_model.calls):
        raise UnsupportedModelError(f"{name}'s blocks change the shape of hidden states")
    try:
        with warnings.catch_warnings(), torch.no_grad(), _masked(exit_model.model):
            warnings.simplefilter("ignore")  # the tracer's, about constants that are meant to be
            blocks = nn.ModuleList(
                [
                    block if ranges is None else _rounded(number, block, ranges)
                    for number, block in enumerate(exit_model.blocks)
                ]
            ).eval()
            ends = [0, *borders, exit_model.depth]
            return [
                _graph(_Segment(exit_model, blocks, *each, list(probes[0])), each[0], probes) for each in pairwise(ends)
            ]
    except UnsupportedModelError:
        raise
    except Exception as e:
        if is_out_of_memory(e):
            raise
        said = (str(e).strip().splitlines() or [type(e).__name__])[0][:160]
        raise UnsupportedModelError(f"{name} can't be cut into segments for OpenVINO ({said})") from e


def _rounded(number: int, block: nn.Module, ranges: Ranges) -> nn.Module:
    """Return a copy of a block that rounds to int8, with its own forward: the exits' would run the original."""
    out = openvino_blocks.quantized(number, block, ranges).requires_grad_(False)
    for module in out.modules():
        module.__dict__.pop("forward", None)
    return out


@contextmanager
def _masked(model: Any) -> Iterator[None]:
    """Have the model make the mask of every batch, as a graph can't leave it out where nothing is padded."""
    before = getattr(model.config, "_attn_implementation", None)
    openvino_blocks.always_mask(model)
    try:
        yield
    finally:
        if before is not None:
            model.config._attn_implementation = before


def _graph(segment: _Segment, first: int, probes: Sequence[Mapping[str, Tensor]]) -> Any:
    several = [list(probe.values()) for probe in probes]
    if first:
        for given, probe in zip(several, probes, strict=True):
            state = segment._exit_model.run(probe, stop=first).state
            if state is None:
                raise UnsupportedModelError("its forward can't be stopped between blocks")
            given.append(state.hidden)
    graph = trace(segment, several[0], varying(several))
    names = [*probes[0], *([HIDDEN] if first else [])]
    for port, name in zip(list(graph.inputs), names, strict=True):
        port.get_tensor().set_names({name})
        if not port.get_target_inputs():
            graph.remove_parameter(port.get_node())
    graph.validate_nodes_and_infer_types()
    return graph
