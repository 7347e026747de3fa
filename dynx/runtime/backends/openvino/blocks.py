"""The blocks of a transformers encoder on OpenVINO's kernels, one by one, the rest of the model as it is.

Each block's `forward` is replaced on the instance. Rows and tokens are symbols in its graph, so batches of any shape run,
and rows may leave or join between two blocks. A call of a kind that no probe made runs the block's own code, which is slower
and right. The model stays in float32 around its blocks; inside, they compute in bfloat16, or multiply in int8.

int8 needs to know how large the inputs of each linear layer get (`observe`): large channels are scaled down and their
weights up (Xiao et al. 2022, SmoothQuant), and one scale for all tokens is fixed, so that a row's answer doesn't depend on the
rows beside it. This module doesn't know what the model is for, nor whether the result is good enough: its callers compare.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.openvino.tracing import compile_request, trace, varying
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Ranges = Mapping[str, NDArray[np.float32]]
    Call = tuple[list[Tensor], tuple[Any, ...]]

ATTENTION_NAME = "dynx_masked"
"""PyTorch's fused attention, always with a mask: transformers leaves it out of batches without padding, and a graph can't."""

SMOOTHING_EXPONENT = 0.5
"""Share of the spread of a layer's inputs that its weights take over, in logarithms."""

INT8_MAX = 127
"""Largest magnitude of int8 weights."""

MIN_MAGNITUDE = 1e-5
"""Ranges below are taken as this: a channel that was always zero has no scale."""


def observe(blocks: Sequence[nn.Module], run: Callable[[], object]) -> dict[str, NDArray[np.float32]]:
    """Least and most (2, K) of what each linear layer of the blocks reads while `run` runs, by block number and name."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            rows = inputs[0].detach().float().flatten(0, -2)
            low, high = rows.amin(0), rows.amax(0)
            if name in seen:
                low, high = torch.minimum(low, seen[name][0]), torch.maximum(high, seen[name][1])
            seen[name] = torch.stack([low, high])

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in _linear_layers(blocks)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: ends.cpu().numpy() for name, ends in seen.items()}


def _linear_layers(blocks: Sequence[nn.Module]) -> list[tuple[str, nn.Module]]:
    return [
        (f"{number}.{name}", layer)
        for number, block in enumerate(blocks)
        for name, layer in block.named_modules()
        if type(layer) in (nn.Linear, Conv1D)
    ]


def always_mask(model: Any) -> None:
    """Have transformers make the mask of every batch, where the model's attention is PyTorch's fused one."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, bidirectional_mask_function, sdpa_mask

    def mask(*args: Any, **kwargs: Any) -> Any:
        padding = kwargs.get("attention_mask")
        if kwargs.get("mask_function") is bidirectional_mask_function and padding is not None and padding.dim() == 2:
            return padding[:, None, None, :].bool()  # the same for each query: dozens of small operations fewer
        made = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})
        if made is None or made.dtype != torch.bool:
            return made
        blind = made.sum(-1, keepdim=True) == 0  # a padded query that sees nothing would be NaN, and spoil the others
        return torch.logical_or(made, blind)

    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        AttentionInterface.register(ATTENTION_NAME, sdpa_attention_forward)
        AttentionMaskInterface.register(ATTENTION_NAME, mask)
        model.config._attn_implementation = ATTENTION_NAME


def replace(
    blocks: Sequence[nn.Module],
    probes: Sequence[Callable[[], object]],
    *,
    precision: str,
    threads: int,
    ranges: Ranges | None = None,
) -> None:
    """Put OpenVINO's code in the place of each block's forward. `precision`: "float32", "bfloat16" or "int8" (with `ranges`).

    `probes` are two passes of the model, over different numbers of rows and of tokens: sizes that differ become symbols.
    Raises UnsupportedModelError with the reason; the blocks are as they were then.
    """
    calls = _recorded(blocks, probes)
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's, about constants that are meant to be
            for number, block in enumerate(blocks):
                block.__dict__["forward"] = _converted(number, block, calls[number], precision, threads, ranges)
    except Exception as e:
        for block, forward in zip(blocks, before, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.__dict__["forward"] = forward
        if isinstance(e, UnsupportedModelError) or is_out_of_memory(e):
            raise
        raise UnsupportedModelError(f"OpenVINO can't run its blocks ({_line(e)})") from e


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _recorded(blocks: Sequence[nn.Module], probes: Sequence[Callable[[], object]]) -> list[list[tuple[Any, Any, Any]]]:
    """For each block what every probe called it with, and what came out."""
    calls: list[list[tuple[Any, Any, Any]]] = [[] for _ in blocks]

    def watch(number: int) -> Callable[..., None]:
        return lambda _, args, kwargs, output: calls[number].append((args, kwargs, output))

    handles = [block.register_forward_hook(watch(i), with_kwargs=True) for i, block in enumerate(blocks)]
    try:
        for probe in probes:
            probe()
    finally:
        for handle in handles:
            handle.remove()
    if any(len(of_block) != len(probes) for of_block in calls):
        raise UnsupportedModelError("its blocks are called more than once in a pass")
    return calls


def _converted(
    number: int,
    block: nn.Module,
    calls: list[tuple[Any, Any, Any]],
    precision: str,
    threads: int,
    ranges: Ranges | None,
) -> Callable[..., Any]:
    """Return the forward that replaces a block's own."""
    inner: Callable[..., Any] = block.forward
    flat = [_flatten((args, kwargs)) for args, kwargs, _ in calls]
    tensors, spec = flat[0]
    if any(other[1] != spec for other in flat) or not tensors:
        raise UnsupportedModelError("its blocks are called in more than one way")
    shapes = varying([call[0] for call in flat])
    output = calls[0][2]
    is_tuple = isinstance(output, tuple)
    items = len(output) if isinstance(output, tuple) else 0
    traced = quantized(number, block, ranges) if precision == "int8" else block
    infer = _compiled(trace(_Flat(traced, calls[0][0], calls[0][1]), tensors, shapes), precision, threads)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given, how = _flatten((args, kwargs))
        if how != spec:
            return inner(*args, **kwargs)
        out = infer(given)
        return (out, *[None] * (items - 1)) if is_tuple else out

    return forward


def _flatten(value: Any) -> Call:
    """Return the tensors in nested arguments, in order, and a comparable description of the rest."""
    tensors: list[Tensor] = []

    def told(item: Any) -> Any:
        if isinstance(item, Tensor):
            tensors.append(item)
            return (item.dim(), item.dtype)
        if isinstance(item, (tuple, list)):
            return (type(item).__name__, *map(told, item))
        if isinstance(item, dict):
            return tuple((key, told(held)) for key, held in item.items())
        return item if item is None or isinstance(item, (bool, int, float, str)) else type(item).__name__

    return tensors, told(value)


class _Flat(nn.Module):
    """A block as a function of the tensors among its arguments."""

    def __init__(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        super().__init__()
        self.block = block
        self._given = (args, kwargs)

    def forward(self, *tensors: Tensor) -> Tensor:
        rest = iter(tensors)

        def filled(item: Any) -> Any:
            if isinstance(item, Tensor):
                return next(rest)
            if isinstance(item, (tuple, list)):
                return type(item)(map(filled, item))
            return {key: filled(held) for key, held in item.items()} if isinstance(item, dict) else item

        args, kwargs = filled(self._given)
        out = self.block(*args, **kwargs)
        hidden: Tensor = out[0] if isinstance(out, tuple) else out
        return hidden


def _compiled(graph: Any, precision: str, threads: int) -> Callable[[Sequence[Tensor]], Tensor]:
    """Compile the graph to a function of its inputs."""
    import openvino as ov

    request = compile_request(graph, precision, threads)

    def infer(tensors: Sequence[Tensor]) -> Tensor:
        arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]  # alive until the result is there
        for index, array in enumerate(arrays):
            request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))
        request.infer()
        return torch.from_numpy(np.array(request.get_output_tensor(0).data))

    return infer


def quantized(number: int, block: nn.Module, ranges: Ranges | None) -> nn.Module:
    """Return a copy of a block whose linear layers round their inputs and weights to int8."""
    out = copy.deepcopy(block)
    for name, layer in _linear_layers([block]):
        path = name.partition(".")[2]
        ends = None if ranges is None else ranges.get(f"{number}.{path}")
        if ends is None:
            continue  # a layer that isn't called in this way, and stays as it is
        parent, _, own = path.rpartition(".")
        setattr(out.get_submodule(parent), own, _Rounded(layer, torch.from_numpy(np.asarray(ends))))
    return out


class _Rounded(nn.Module):
    """A linear layer that rounds what it reads and multiplies with: OpenVINO computes that in integers."""

    shrink: Tensor
    weight: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Module, ends: Tensor) -> None:
        super().__init__()
        weight = layer.get_parameter("weight").detach().float()
        weight = weight.T if isinstance(layer, Conv1D) else weight  # (N, K)
        reach = ends.abs().amax(0).clamp(min=MIN_MAGNITUDE)  # (K,)
        smooth = reach**SMOOTHING_EXPONENT / weight.abs().amax(0).clamp(min=MIN_MAGNITUDE) ** (1 - SMOOTHING_EXPONENT)
        smooth = (smooth / smooth.mean()).clamp(min=1e-3)
        low, high = (ends / smooth).amin().clamp(max=0).item(), (ends / smooth).amax().clamp(min=0).item()
        self.scale = max(high - low, MIN_MAGNITUDE) / (2 * INT8_MAX + 1)
        self.zero = max(-INT8_MAX - 1, min(INT8_MAX, round(-INT8_MAX - 1 - low / self.scale)))
        weight = (weight * smooth).contiguous()
        self.register_buffer("shrink", 1 / smooth)
        self.register_buffer("weight", weight)
        self.register_buffer("scales", weight.abs().amax(1).clamp(min=1e-8) / INT8_MAX)
        self.register_buffer("zeros", torch.zeros(len(weight), dtype=torch.int32))
        bias: Any = layer.bias
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) → (…, N)."""
        x = torch.fake_quantize_per_tensor_affine(x * self.shrink, self.scale, self.zero, -INT8_MAX - 1, INT8_MAX)
        weight = torch.fake_quantize_per_channel_affine(self.weight, self.scales, self.zeros, 0, -INT8_MAX, INT8_MAX)
        return nn.functional.linear(x, weight, self.bias)
