"""A quantized folder's tensors, unpacked one by one: no more than one of them is in memory as float32 at a time.

What was stored beside the weights for kernels that quantize activations or the key-value cache, too, is left out: dynx computes
those in the run's precision.
"""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynx.errors import ModelError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import torch
    from torch import Tensor

    from dynx.runtime.quantized.scheme import Scheme

NOT_WEIGHTS = re.compile(
    r"(input|output|k|v|q|activation|input_global|kv_cache)_(scale|zero_point)(_ub)?|kv_scale|weight_format|.*_observer\..*"
)
"""Names of what kernels for quantized activations and caches read."""


UNPACKABLE_KINDS = frozenset({"F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I8", "U8"})
"""Types that weights of a model don't have unless they are packed."""


@dataclass(frozen=True)
class Layout:
    """Which tensors of a module make its weights, by the ends of their names, and how."""

    packed: str
    """The one that holds the weights."""
    others: re.Pattern[str]
    """The others."""
    needed: str | None
    """One of the others without which the weights aren't packed."""
    function: str
    """Name of the function in `layouts`."""
    density: Callable[[Any], float]
    """Weights per stored item, by the settings."""
    result: str = "weight"
    """What the weights are called."""


def _rest(*names: str) -> re.Pattern[str]:
    return re.compile("|".join(names))


_GROUPED = _rest("qzeros", "scales", "g_idx")
_COMPRESSED = _rest("weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape", "weight_global_scale")
_SCALED = _rest("weight_scale", "weight_scale_inv", "weight_scale_2", "weight_zero_point", "weight_g_idx")


def _layouts(scheme: Scheme) -> tuple[Layout, ...]:
    """Return the layouts that a module of such a folder may have; the first that fits is taken."""
    one = lambda _: 1.0  # noqa: E731
    dense = Layout("weight", _SCALED, "weight_scale(_inv)?", "scaled", one)
    by_method: dict[str, tuple[Layout, ...]] = {
        "gptq": (Layout("qweight", _GROUPED, "scales", "gptq", lambda s: 32 / s["bits"]),),
        "awq": (Layout("qweight", _GROUPED, "scales", "awq", lambda _: 8.0),),
        "bitsandbytes": (
            Layout("weight", _rest(r"weight\..+"), r"weight\.quant_state\..+", "bitsandbytes4", lambda _: 2.0),
            Layout("weight", _rest("SCB", "weight_format"), "SCB", "bitsandbytes8", one),
        ),
        "compressed-tensors": (
            Layout(
                "weight_packed", _COMPRESSED, "weight_shape", "packed_integers", lambda s: 32 / (s["num_bits"] or 4)
            ),
            Layout("weight_packed", _COMPRESSED, "weight_scale", "packed_floats", lambda _: 2.0),
            dense,
        ),
        "mxfp4": tuple(
            Layout(f"{part}_blocks", _rest(f"{part}_scales"), None, "experts_mxfp4", lambda _: 2.0, part)
            for part in ("gate_up_proj", "down_proj")
        ),
    }
    if scheme.method == "modelopt" and scheme.settings.get("num_bits") == 4:
        return (Layout("weight", _SCALED, "weight_scale_2", "packed_floats", lambda _: 2.0), dense)
    return by_method.get(scheme.method, (dense,))


class Packed:
    """The tensors of a quantized folder by the names that they have once they are unpacked."""

    def __init__(
        self, folder: Path, scheme: Scheme | None, renamed: Callable[[str], str | None] = lambda name: name
    ) -> None:
        """Open the files. `renamed` gives a tensor's name in the model by that in the files, None for one that is left out.

        Raises ModelError for a file that can't be read.
        """
        from safetensors import SafetensorError, safe_open

        self._scheme, self._stack, self._renamed = scheme, ExitStack(), renamed
        self._place: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            try:
                opened = self._stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as e:
                raise ModelError(f"{file} can't be read: {e}") from None
            self._place |= {name: opened for name in opened.keys() if renamed(name) is not None}  # noqa: SIM118 - it is no dict
        self._modules: dict[str, tuple[str, Layout, dict[str, str]]] = {}
        self._plain: list[str] = []
        self._sort()

    def _sort(self) -> None:
        """Find the modules that are packed, and the tensors that are as they are."""
        taken: set[str] = set()
        for layout in _layouts(self._scheme) if self._scheme else ():
            end = f".{layout.packed}"
            for name in self._place:
                if not name.endswith(end) or name in taken:
                    continue
                module = name[: -len(layout.packed)]
                others = {
                    other[len(module) :]: other
                    for other in self._siblings[module]
                    if layout.others.fullmatch(other[len(module) :])
                }
                if layout.needed and not any(re.fullmatch(layout.needed, other) for other in others):
                    continue
                self._modules[f"{module}{layout.result}"] = (name, layout, others)
                taken |= {name, *others.values()}
        for name in self._place:
            own = name.rpartition(".")[2]
            if name in taken or (self._scheme and NOT_WEIGHTS.fullmatch(own)):
                continue
            if (kind := self._place[name].get_slice(name).get_dtype()) in UNPACKABLE_KINDS:
                raise UnsupportedModelError(
                    f"its {name} is in {kind.lower()}, without scales in a layout that can be unpacked"
                )
            if name.endswith(".act.scales"):
                raise UnsupportedModelError(
                    f"its activations are scaled ({name}), which unpacked weights don't make up for"
                )
            self._plain.append(name)

    @property
    def _siblings(self) -> Mapping[str, list[str]]:
        """Tensors by every beginning of their names that ends with a dot."""
        if not hasattr(self, "_index"):
            index: dict[str, list[str]] = defaultdict(list)
            for name in self._place:
                parts = name.split(".")
                for end in range(max(1, len(parts) - 3), len(parts)):
                    index[".".join(parts[:end]) + "."].append(name)
            self._index = index
        return self._index

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name, once all are unpacked and renamed."""
        return any(self._renamed(each) == name for each in (*self._plain, *self._modules))

    @property
    def elements(self) -> int:
        """Numbers in all tensors once they are unpacked."""
        found = sum(self._count(name) for name in self._plain)
        for name, layout, _ in self._modules.values():
            found += int(self._count(name) * self._density(name, layout))
        return found

    def _density(self, name: str, layout: Layout) -> float:
        items = layout.density(self._scheme.settings if self._scheme else {})
        wide = self._place[name].get_slice(name).get_dtype() in ("BF16", "F16", "F32")  # bytes stored as something else
        return items * 2 if wide and layout.function == "bitsandbytes4" else items

    def _count(self, name: str) -> int:
        count = 1
        for size in self._place[name].get_slice(name).get_shape():
            count *= size
        return count

    def tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor by name, in `dtype` where it holds real numbers. Raises ModelError for a damaged one."""
        import torch

        from dynx.runtime.quantized import layouts

        for name in self._plain:
            tensor = self._place[name].get_tensor(name)
            yield self._renamed(name) or name, tensor.to(dtype) if tensor.is_floating_point() else tensor
        for result, (name, layout, others) in self._modules.items():
            parts = {own: self._place[other].get_tensor(other) for own, other in others.items()}
            stored = self._place[name].get_tensor(name)
            function = getattr(layouts, layout.function)
            if layout.function == "experts_mxfp4":
                parts = {"blocks": stored, "scales": next(iter(parts.values()))}
            else:
                parts[layout.packed] = stored
            try:
                with torch.no_grad():
                    made: Tensor = function(parts, self._settings(parts))
                    yield self._renamed(result) or result, made.to(dtype).contiguous()
            except (ValueError, KeyError, IndexError, RuntimeError, StopIteration) as e:
                module = result.rpartition(".")[0]
                title = self._scheme.title if self._scheme else "packed"
                raise ModelError(f"the {title} weights of {module} can't be unpacked: {_line(e)}") from None

    def _settings(self, parts: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Return the settings of a module: the folder's, with the width that its words have where the folder has several."""
        settings = self._scheme.settings if self._scheme else {}
        if "weight_shape" not in parts or settings.get("num_bits"):
            return settings
        inputs, words = int(parts["weight_shape"][1]), parts["weight_packed"].shape[1]
        fitting = [bits for bits in settings.get("widths", ()) if -(-inputs * bits // 32) == words]
        return {**settings, "num_bits": fitting[0] if fitting else 4}

    def close(self) -> None:
        """Close the files."""
        self._place.clear()
        self._stack.close()


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
