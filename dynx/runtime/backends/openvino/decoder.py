"""A transformers decoder on OpenVINO's kernels.

A session owns its key-value cache: one pair of tensors per layer, in blocks of `BLOCK` positions, handed to the compiled
model with every call. The attention of `openvino.convert` writes at the position given to it, so a rollback is an
assignment here as well.

A converted model is compared with the torch model that it came from, rollback included, before it is used. It is kept in
a folder that the caller names, whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from dynx.errors import DeviceError, UnsupportedModelError
from dynx.runtime.backends.availability import available
from dynx.runtime.backends.interface import Backend, Session
from dynx.runtime.backends.openvino import convert
from dynx.runtime.backends.openvino.integers import store_integers
from dynx.runtime.backends.openvino.weights import WEIGHT_GROUP_SIZE, store_weights
from dynx.runtime.backends.padding import PaddedLength
from dynx.runtime.decision import Decision
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel

    from dynx.runtime.backends.openvino.integers import Stored

Precision = Literal["float32", "float16", "bfloat16", "int8", "int4", "file"]

FORMAT_VERSION = 1
"""Of the converted models kept: raised when the conversion changes."""

CHECKED_FILE = "checked"
"""Beside a converted model whose logits were compared with the torch model's."""

PREFILL_CHUNK_TOKENS = 512
"""Prompt tokens per forward."""

INITIAL_CACHE_BLOCKS = 8
"""Blocks of a new cache; growth doubles, so copying stays linear in the final length."""

ACTIVATION_GROUP_SIZE = {"int8": 128, "int4": WEIGHT_GROUP_SIZE, "file": 32}
"""Activations that share a scale where weights are integers; no more than weights do, or they aren't quantized at all."""

MAX_LOGIT_ERROR: dict[str, float] = {
    "float32": 1e-3,
    "float16": 0.08,
    "bfloat16": 0.08,
    "int8": 0.25,
    "int4": 1.0,
    "file": 0.25,
}
"""Largest difference of a logit from the torch model's, relative to the largest logit. A cache in the wrong place changes
logits by their own scale; 4-bit weights may too, so there the root mean square is judged instead."""


def load(
    model: PreTrainedModel,
    *,
    precision: Precision,
    threads: int | None,
    cache: Path | None,
    stored: Stored | None = None,
) -> OpenVINOBackend:
    """`model` compiled by OpenVINO for the processor, its weights stored as `precision`.

    "file" is as the model's own file holds them, which `stored` then reads. `cache` is a folder for this model alone,
    where the converted model is kept. Raises `UnsupportedModelError` with the reason when OpenVINO isn't there, can't
    run this model, or computes something else.
    """
    usable = available()
    if not usable.value:
        raise UnsupportedModelError(usable.reason)
    if getattr(model, "_is_stateful", False):
        raise UnsupportedModelError(f"{model.config.model_type} keeps a recurrent state that can't be rolled back")
    try:
        _core()
    except (ImportError, OSError) as e:
        raise UnsupportedModelError(f"OpenVINO is installed and can't be loaded ({_first_line(e)})") from e
    backend = reload(precision=precision, threads=threads, cache=cache)
    if backend is not None and _difference(backend, model, precision) is None:
        return backend
    backend = _converted(model, precision, threads, cache, stored)
    fault = _difference(backend, model, precision)
    if fault is not None:
        if cache is not None:
            shutil.rmtree(_folder(cache, precision), ignore_errors=True)
        raise UnsupportedModelError(f"{model.config.model_type} {fault}")
    if cache is not None and (folder := _folder(cache, precision)).is_dir():
        with contextlib.suppress(OSError):
            (folder / CHECKED_FILE).touch()
    return backend


def was_checked(*, precision: Precision, cache: Path) -> bool:
    """Whether the converted model in `cache` was compared with the torch model after it was written."""
    return available().value and (_folder(cache, precision) / CHECKED_FILE).is_file()


def _converted(
    model: Any, precision: Precision, threads: int | None, cache: Path | None, stored: Stored | None
) -> OpenVINOBackend:
    graph = convert.convert(model, stored.exact if stored else None)
    if stored is not None:
        store_integers(graph, {p.data_ptr(): name for name, p in model.named_parameters()}, stored)
    else:
        store_weights(graph, precision)
    kept = None if cache is None else _kept(graph, _folder(cache, precision))
    try:
        if kept is None:
            return OpenVINOBackend(graph, precision=precision, threads=threads, weights=model)
        return OpenVINOBackend(kept, precision=precision, threads=threads)
    except RuntimeError as e:
        if is_out_of_memory(e):
            raise
        kind = model.config.model_type
        raise UnsupportedModelError(f"{kind} can't be compiled by OpenVINO ({_first_line(e)})") from e


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reload(*, precision: Precision, threads: int | None, cache: Path | None) -> OpenVINOBackend | None:
    """Load the converted model in `cache`, without the torch model; None where there is nothing usable."""
    if cache is None or not available().value:
        return None
    path = _folder(cache, precision) / "model.xml"
    if not path.is_file():
        return None
    try:
        return OpenVINOBackend(_core().read_model(path), precision=precision, threads=threads)
    except Exception as e:
        if is_out_of_memory(e):
            raise
        return None  # torn or foreign: made again


def _folder(cache: Path, precision: str) -> Path:
    version = ".".join(re.findall(r"\d+", metadata.version("openvino"))[:3])
    return cache / f"openvino-{FORMAT_VERSION}-{version}-{precision}"


def _kept(graph: Any, folder: Path) -> Any:
    """`graph` as read back from `folder`, where it was written whole; None where that can't be."""
    import openvino as ov

    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        draft.mkdir(parents=True)
        ov.save_model(graph, draft / "model.xml", compress_to_fp16=False)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        return _core().read_model(folder / "model.xml")
    except (OSError, RuntimeError):  # read-only, full, or another process was first
        return None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _threads_had(asked: int | None) -> int:
    """Threads that the plugin will have of those asked for: no more than processors that this process may use; 1 if unknown."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return min(asked or 1, allowed)


def _core() -> Any:
    import openvino as ov

    return ov.Core()


class OpenVINOBackend(Backend):
    """A converted model, compiled.

    `weights` is whatever owns the memory of weights that the graph only refers to.
    """

    name = "openvino"

    def __init__(self, graph: Any, *, precision: Precision, threads: int | None, weights: object = None) -> None:
        known = {key: graph.get_rt_info(["dynx", key]).astype(str) for key in ("layers", "vocab", "context", "kind")}
        self.layers, self.vocab = int(known["layers"]), int(known["vocab"])
        self.context: int | None = int(known["context"])
        self.last = int(known["context"]) - 1  # position that has a rotation or an embedding
        self.kind = known["kind"]
        self.precision: str = precision
        self._weights = weights
        convert.assemble(graph)
        convert.keep_apart(graph, _threads_had(threads))
        core = _core()
        able = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.compute = "bf16" if able and precision in ("bfloat16", "float16") else "f32"
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self.compute,
            "KV_CACHE_PRECISION": self.compute,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if precision in ACTIVATION_GROUP_SIZE:
            # With float32 around them, products with integer weights run on integers. In bfloat16 they don't, and took
            # 1.4 times as long.
            known_group = int(graph.get_rt_info(["dynx", "group"]).astype(str)) if precision == "file" else 0
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = known_group or ACTIVATION_GROUP_SIZE[precision]
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self.compiled_model = core.compile_model(graph, "CPU", settings)
        shapes = {port.get_any_name(): port for port in self.compiled_model.inputs if "_cache." in port.get_any_name()}
        self.caches = {
            name: (port.get_element_type(), [d.get_length() for d in list(port.get_partial_shape())[1:]])
            for name, port in shapes.items()
        }
        self.block = next(iter(self.caches.values()))[1][1]
        self.padded_length = PaddedLength()  # of the one stream that all sessions share

    @cached_property
    def can_rollback(self) -> Decision[bool]:
        """Always True: other models were refused on loading."""
        return Decision(True, "tested on loading: torch's logits after a rollback")

    @cached_property
    def can_exit(self) -> Decision[bool]:
        """Refuse."""
        return Decision(False, "OpenVINO compiles the model as a whole, so it can't be left early")

    def set_padded_lengths(self, lengths: Mapping[int, int]) -> bool:
        """See `Backend.set_padded_lengths`."""
        self.padded_length.lengths = lengths
        return True

    def open(self) -> OpenVINOSession:
        """Start an empty sequence."""
        return OpenVINOSession(self)


class OpenVINOSession(Session):
    """A sequence in an `OpenVINOBackend`."""

    pads = True
    pending = 0

    def __init__(self, backend: OpenVINOBackend) -> None:
        self._backend = backend
        self._request = backend.compiled_model.create_infer_request()
        self._caches: dict[str, Any] = {}
        self._blocks = 0
        self._length = 0
        self._told: dict[str, NDArray[Any]] = {}
        for name, size in (("past_lens", 1), ("subsequence_begins", 2), ("block_indices_begins", 2)):
            self._share(name, np.zeros(size, np.int32))
        self._share("max_context_len", np.zeros((), np.int32))

    @property
    def length(self) -> int:
        """Positions that the cache holds."""
        return self._length

    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """See `Session.forward`; logits are float32."""
        self._fit(self._length + len(tokens))
        first = 0 if keep is None else max(0, len(tokens) - keep)  # row of the first token asked for
        rows = []
        for start in range(0, len(tokens), PREFILL_CHUNK_TOKENS):
            chunk = tokens[start : start + PREFILL_CHUNK_TOKENS]
            wanted = range(max(0, first - start), len(chunk))
            out = self._run(chunk, wanted or range(len(chunk) - 1, len(chunk)))
            if wanted:
                rows.append(out)
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def set_padded_length(self, length: int) -> None:
        """See `Session.set_padded_length`."""
        self._backend.padded_length.set(length)

    def _run(self, tokens: Sequence[int], rows: range) -> Tensor:
        """Logits at `rows` of a pass over `tokens`, which may be padded; positions of the padding are overwritten later."""
        backend, told = self._backend, self._told
        past, asked = self._length, len(tokens)
        count = backend.padded_length(asked)
        end = past + count
        self._reserve(end)
        if len(rows) == asked:
            rows = range(count)
        self._tell("input_ids", np.asarray([*tokens, *[0] * (count - asked)], np.int64)[None])
        positions = np.arange(past, end)
        self._tell("position_ids", np.minimum(positions, backend.last)[None])
        self._tell("rows", np.arange(rows.start, rows.stop))
        told["past_lens"][0] = past
        told["subsequence_begins"][1] = count
        told["max_context_len"][...] = end
        used = -(-end // backend.block)
        told["block_indices_begins"][1] = used
        self._tell("block_indices", np.arange(used, dtype=np.int32))
        out = np.empty((len(rows), backend.vocab), np.float32)
        self._request.set_output_tensor(0, _shared(out))
        self._request.infer()
        self._length = past + asked
        return torch.from_numpy(out)[:asked]

    def _tell(self, name: str, value: NDArray[Any]) -> None:
        """Give `value` to an input, through memory that it shares with us where the shape is as before."""
        held = self._told.get(name)
        if held is None or held.shape != value.shape:
            self._share(name, value)
        else:
            held[...] = value

    def _share(self, name: str, value: NDArray[Any]) -> None:
        self._told[name] = value
        self._request.set_tensor(name, _shared(value))

    def _fit(self, length: int) -> None:
        """Check that `length` tokens fit the model. Raises UnsupportedModelError."""
        limit = self._backend.last + 1
        if length > limit:
            raise UnsupportedModelError(f"{length} tokens are more than {self._backend.kind}'s {limit} on OpenVINO")

    def _reserve(self, length: int) -> None:
        """Allocate caches for `length` positions."""
        need = -(-length // self._backend.block)
        if need <= self._blocks:
            return
        import openvino as ov

        blocks = max(need, 2 * self._blocks, INITIAL_CACHE_BLOCKS)
        used = -(-self._length // self._backend.block)
        try:
            for name, (kind, shape) in self._backend.caches.items():
                tensor = ov.Tensor(kind, ov.Shape([blocks, *shape]))
                # What isn't written yet is read, and weighted with zero: it must be a number.
                view = tensor.data.view(np.uint8)
                view[used:] = 0
                if used:
                    view[:used] = self._caches[name].data.view(np.uint8)[:used]
                self._request.set_tensor(name, tensor)
                self._caches[name] = tensor
        except MemoryError as e:
            raise DeviceError("out of memory for the key-value cache", hint="try a shorter prompt") from e
        self._blocks = blocks

    def rollback(self, length: int) -> None:
        """See `Session.rollback`."""
        if length > self._length:
            raise ValueError(f"can't roll forward from {self._length} to {length}")
        self._length = length

    def forward_early(self, tokens: Sequence[int], layers: int, *, logits: bool = True) -> Tensor | None:
        """Refuse."""
        raise UnsupportedModelError(self._backend.can_exit.reason)

    def complete(self, count: int | None = None) -> Tensor:
        """Refuse."""
        raise UnsupportedModelError(self._backend.can_exit.reason)


def _shared(array: NDArray[Any]) -> Any:
    import openvino as ov

    return ov.Tensor(array, shared_memory=True)


@torch.inference_mode()
def _difference(backend: OpenVINOBackend, model: Any, precision: str) -> str | None:
    """Describe how `backend`'s logits differ from `model`'s beyond rounding; None where they don't."""
    probe = [(7 * i + 3) % backend.vocab for i in range(12)]
    want = model(input_ids=torch.tensor([probe], device=model.device), use_cache=False).logits[0].float().cpu()
    try:
        session = backend.open()
        parts = [session.forward(probe[:4])]
        session.forward([probe[0], probe[0], probe[1]])
        session.rollback(4)
        parts += [session.forward(probe[4:9]), *[session.forward([token], keep=1) for token in probe[9:]]]
    except RuntimeError as e:
        if is_out_of_memory(e):
            raise
        return f"doesn't run on OpenVINO ({type(e).__name__})"
    gap, scale = (torch.cat(parts) - want).abs(), max(1.0, want.abs().max().item())
    if precision == "int4":
        gap, scale = gap.square().mean().sqrt(), want.square().mean().sqrt().item()
    worst = gap.max().item() / scale
    if worst <= max(MAX_LOGIT_ERROR[precision], MAX_LOGIT_ERROR[str(model.dtype).removeprefix("torch.")]):
        return None
    return f"gives other logits on OpenVINO (by {worst:.0%} of the largest)"  # also for NaN
