"""Linear layers with weights prepacked for the CPU's matrix kernels, in bfloat16 or int8.

A stock `nn.Linear` has its weights rearranged on every call. Here that is done once, and layers that read the same input
(query, key and value; gate and up) are one multiplication. `pack` replaces a model's layers in place. GPT-2's `Conv1D` counts as
a linear layer.

int8 is symmetric: one scale for each output of a layer, one for each token's input, computed on the fly; products are summed in
integers. Kernels for CPUs with AMX take signed inputs; those for VNNI alone multiply unsigned by signed, so there the input is
shifted by 128, which the kernel takes off again.

The alternative is torchao's int8 dynamic quantization (same error, 0.9 % of the norm). Its CPU time in times of this one's, for
576x1536 and 1024x4096 layers, one thread of an EPYC with AVX-512 VNNI, torch 2.13, torchao 0.18, medians of 61 interleaved
rounds, in which 90 % of the ratios lay within 50 % of the median:

    tokens               1          6          32
    eager           3.3-17    3.3-14    2.3-4.8
    torch.compile  1.9-2.9   2.2-3.4    1.6-1.9

Only with the compiler's freezing, which compiles the weights into each layer's code, is torchao faster at one token (0.5); dynx
shares one compiled block between all layers and stores it without weights, so that doesn't apply here.
"""

from __future__ import annotations

import time
import weakref
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dynx.errors import UnsupportedModelError
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Form = Literal["bfloat16", "int8"]

LAYOUT_ROWS = 8
"""Number of rows that the layout of bfloat16 weights is optimised for; others are as fast within a few percent."""

MAX_INT8_LOGIT_ERROR = 0.25
"""Largest change of a logit by int8, relative to the largest logit: a wrong scale or layout changes logits by their own size."""

MAX_ONE_LEVEL_ERROR = 0.1
"""Change of a logit from which inputs are rounded in two steps. Rounding weights alone changed SmolLM2-135M's by 0.05, and with
inputs in one step by 0.35: single channels are 39 times as large as the rest, and share its scale."""

INT8_MAX = 127.0
"""Largest magnitude of a symmetric int8 value."""

UINT8_ZERO_POINT = 128
"""Zero point of unsigned inputs."""

MAX_TIMES_FLOAT32 = 8.0
"""Largest time of an int8 kernel, in times of float32's. Without the CPU's instructions PyTorch takes 800 times as long."""

_weights: dict[int, tuple[Any, ...]] = {}
"""Packed weights by the address of their handle. The handle is what a graph carries: packed tensors have no strides."""

_torch: Any = torch.library  # untyped
_library = _torch.Library("dynx", "DEF")
_library.define("linear(Tensor x, Tensor handle, SymInt n) -> Tensor")
_library.define("linear_int8(Tensor x, Tensor handle, SymInt n) -> Tensor")


def _linear(x: Tensor, handle: Tensor, _: int) -> Tensor:
    weight, bias = _weights[handle.data_ptr()]
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return out


def _linear_int8(x: Tensor, handle: Tensor, _: int) -> Tensor:
    """(T, K) int8, or uint8 around `UINT8_ZERO_POINT`, times (K, n) int8, scaled by output: (T, n) float32."""
    weight, scales, zeros = _weights[handle.data_ptr()]
    zero = 0 if x.dtype is torch.int8 else UINT8_ZERO_POINT
    out: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        x, 1.0, zero, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return out


_library.impl("linear", _linear, "CPU")
_library.impl("linear", lambda x, _, n: x.new_empty(*x.shape[:-1], n), "Meta")
_library.impl("linear_int8", _linear_int8, "CPU")
_library.impl("linear_int8", lambda x, _, n: x.new_empty(x.shape[0], n, dtype=torch.float32), "Meta")


@cache
def unsigned() -> bool:
    """Whether int8 kernels on this CPU take unsigned inputs."""
    processor: Any = torch.cpu
    return bool(processor._is_vnni_supported() and not processor._is_amx_tile_supported())


@cache
def available(form: Form) -> Decision[bool]:
    """Whether this processor multiplies packed weights of a form, correctly and in reasonable time, tried on small matrices."""
    try:
        layer = nn.Linear(32, 16, bias=True, dtype=torch.bfloat16)
        packed = pack_layers([layer], form)[0]
        x = torch.linspace(-1, 1, 64, dtype=torch.bfloat16).reshape(1, 2, 32)
        with torch.inference_mode():
            gap = (packed(x).float() - layer(x).float()).abs().max().item()
    except (RuntimeError, AttributeError, NotImplementedError) as e:
        return Decision(False, f"no kernel for packed {form} weights here ({_first_line(e)})")
    if not gap < 0.1:
        return Decision(False, f"the kernel for packed {form} weights is wrong here (by {gap:.2g})")
    if form == "int8" and (times := _times_float32(form)) > MAX_TIMES_FLOAT32:
        return Decision(
            False, f"PyTorch's kernel for {form} weights takes {times:.0f}x as long as float32's on this processor"
        )
    return Decision(True, f"packed {form} weights")


@torch.inference_mode()
def _times_float32(form: Form) -> float:
    """How much longer a small product takes than in float32; the shortest of a few times counts."""
    layer = nn.Linear(256, 256)
    x, layers = torch.ones(8, 256), (layer, pack_layers([layer], form)[0])
    seconds = []
    for each in layers:
        each(x)
        times = []
        for _ in range(5):
            began = time.perf_counter()
            each(x)
            times.append(time.perf_counter() - began)
        seconds.append(min(times))
    return seconds[1] / seconds[0]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


class PackedLinear(nn.Module):
    """Stands for a linear layer: outputs `start` … `stop` of a packed group of `total`."""

    handle: Tensor
    bias: Tensor | None

    def __init__(self, handle: Tensor, form: Form, total: int, start: int, stop: int, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("handle", handle, persistent=False)
        self.register_buffer("bias", bias, persistent=False)  # of int8 alone; bfloat16's is in the kernel
        self.form, self.total, self.start, self.stop = form, total, start, stop
        self.unsigned = form == "int8" and unsigned()
        self.two_steps = False
        """Whether what rounding an input to int8 leaves is rounded and multiplied too: twice the rows by the same weights."""
        self.out_features = stop - start

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer's output, (…, outputs)."""
        if self.form == "bfloat16":
            return self._part(torch.ops.dynx.linear(x, self.handle, self.total))
        rows = x.reshape(-1, x.shape[-1]).float()  # (T, K)
        scales = rows.abs().amax(-1, keepdim=True).clamp(min=1e-10) / INT8_MAX
        whole = rows / scales
        levels = whole.round()
        if self.two_steps:
            levels = torch.cat([levels, ((whole - levels) * (2 * INT8_MAX)).round()])
        levels = (levels + UINT8_ZERO_POINT).to(torch.uint8) if self.unsigned else levels.to(torch.int8)
        out = torch.ops.dynx.linear_int8(levels, self.handle, self.total)
        out = self._part(out)
        if self.two_steps:
            first, rest = out.chunk(2)
            out = first + rest / (2 * INT8_MAX)
        out = out * scales
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _part(self, out: Tensor) -> Tensor:
        return out if self.out_features == self.total else out[..., self.start : self.stop]

    def extra_repr(self) -> str:
        """Describe the layer in the printed model."""
        return f"{self.form}, outputs {self.start}:{self.stop} of {self.total}"


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 levels (N, K) of a weight and the scale of each output (N,), symmetric."""
    full = weight.detach().float()
    scales = full.abs().amax(1).clamp(min=1e-10) / INT8_MAX
    return (full / scales[:, None]).round().to(torch.int8), scales


def _matrix(layer: nn.Module) -> Tensor:
    """Return a layer's weights, (outputs, inputs)."""
    weight: Tensor = layer.get_parameter("weight").detach()
    return weight.T.contiguous() if isinstance(layer, Conv1D) else weight


def _bias(layer: nn.Module) -> Tensor | None:
    bias: Any = layer.bias
    return None if bias is None else bias.detach()


def pack_layers(layers: Sequence[nn.Module], form: Form) -> list[PackedLinear]:
    """Packed layers for `layers`, which read the same input."""
    handle = torch.zeros(1)
    matrices, biases = [_matrix(layer) for layer in layers], [b for b in map(_bias, layers) if b is not None]
    weight = torch.cat(matrices)  # (N, K)
    total = weight.shape[0]
    if form == "int8":
        levels, scales = quantized(weight)
        packed = torch.ops.onednn.qlinear_prepack(levels, None)
        _weights[handle.data_ptr()] = packed, scales, torch.zeros(total, dtype=torch.int32)
    else:
        bias = torch.cat(biases) if biases else None
        _weights[handle.data_ptr()] = torch.ops.mkldnn._reorder_linear_weight(weight, LAYOUT_ROWS), bias
    weakref.finalize(handle, _weights.pop, handle.data_ptr(), None)
    out, at = [], 0
    for index, matrix in enumerate(matrices):
        own = biases[index].float() if biases and form == "int8" else None
        out.append(PackedLinear(handle, form, total, at, at + len(matrix), own))
        at += len(matrix)
    return out


Place = tuple[nn.Module, str, nn.Module]
"""Where a layer is: its parent, its name there, and itself."""


def places(root: nn.Module) -> list[Place]:
    """List the linear layers below `root`; subclasses of `nn.Linear` are left out, since they may compute something else."""
    return [
        (parent, name, child)
        for parent in root.modules()
        for name, child in parent.named_children()
        if type(child) in (nn.Linear, Conv1D)
    ]


def siblings(found: Iterable[Place], run: Callable[[], object]) -> list[list[Place]]:
    """Group layers that read the same tensor while `run` runs; a layer that isn't called is a group of its own."""
    found = list(found)
    groups: list[tuple[Tensor | None, list[Place]]] = []
    met: set[int] = set()

    def meet(place: Place) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if id(place[2]) in met:
                return
            met.add(id(place[2]))
            for read, group in groups[-3:]:
                if read is inputs[0] and (group[0][2].bias is None) == (place[2].bias is None):
                    group.append(place)
                    return
            groups.append((inputs[0], [place]))

        return hook

    handles = [place[2].register_forward_pre_hook(meet(place)) for place in found]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [group for _, group in groups] + [[place] for place in found if id(place[2]) not in met]


def pack(root: nn.Module, form: Form, run: Callable[[], object]) -> int:
    """Replace the linear layers below `root` in place, grouped as `run` (a pass of the model) uses them.

    Returns how many were replaced. Layers in other precisions than bfloat16 stay where the form is bfloat16.
    """
    count = 0
    for group in siblings(places(root), run):
        if form == "bfloat16" and any(layer.weight.dtype is not torch.bfloat16 for _, _, layer in group):
            continue
        for (parent, name, _), new in zip(group, pack_layers([layer for _, _, layer in group], form), strict=True):
            setattr(parent, name, new)
            count += 1
    return count


@torch.inference_mode()
def quantize(model: Any) -> None:
    """Quantize a causal language model's linear layers to int8, in place. Raises UnsupportedModelError with the reason.

    Its logits are compared with those from before; inputs are rounded in two steps where one changes them much. `model` isn't fit
    for use after an error.
    """
    able, kind = available("int8"), model.config.model_type
    if not able.value:
        raise UnsupportedModelError(able.reason)
    ids = torch.arange(12)[None] * 7 % model.config.get_text_config(decoder=True).vocab_size

    def logits() -> Tensor:
        out: Tensor = model(input_ids=ids, use_cache=False).logits.float()
        return out

    want = logits()
    if not pack(model, "int8", logits):
        raise UnsupportedModelError(f"{kind} has no linear layers to quantize")

    def error() -> float:
        return float((logits() - want).abs().max()) / max(1.0, float(want.abs().max()))

    gap = error()
    if not gap <= MAX_ONE_LEVEL_ERROR:
        for module in model.modules():
            if isinstance(module, PackedLinear):
                module.two_steps = True
        gap = error()
    if not gap <= MAX_INT8_LOGIT_ERROR:  # also catches NaN
        raise UnsupportedModelError(f"{kind} gives other logits in int8 (by {gap:.0%} of the largest)")
