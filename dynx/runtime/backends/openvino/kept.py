"""Converts decoders for OpenVINO, keeps what was converted, and loads it again without the torch model.

A converted model is compared with the torch model that it came from, rollback included, before it is used. It is kept in a folder
that the caller names, whole or not at all. The torch model's weights are freed before the graph is compiled, as the compiler
copies them into its own layout.
"""

from __future__ import annotations

import secrets
import shutil
from typing import TYPE_CHECKING, Any

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.availability import available
from dynx.runtime.backends.openvino import paged
from dynx.runtime.backends.openvino.checked import CHECKED_FILE, is_marked, put_mark, release
from dynx.runtime.backends.openvino.decoder import OpenVINOBackend
from dynx.runtime.memory import give_back_freed, is_out_of_memory

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from dynx.runtime.backends.openvino.integers import Stored
    from dynx.runtime.backends.openvino.precision import Precision

FORMAT_VERSION = 6
"""Of the converted models kept: raised when the conversion changes."""

MODEL_FILE = "model.xml"


def load(
    model: PreTrainedModel,
    *,
    precision: Precision,
    threads: int | None,
    cache: Path | None,
    stored: Stored | None = None,
) -> OpenVINOBackend:
    """Return `model` compiled by OpenVINO for the processor, its weights stored as `precision`.

    "file" is as the model's own file holds them, which `stored` then reads. `cache` is a folder for this model alone,
    where the converted model is kept.

    Raises `UnsupportedModelError` with the reason when OpenVINO isn't there, can't run this model, or computes something else.
    """
    return _load(model, precision, threads, cache, stored, used_up=False)


def convert(
    model: PreTrainedModel,
    *,
    precision: Precision,
    threads: int | None,
    cache: Path | None,
    stored: Stored | None = None,
) -> OpenVINOBackend:
    """`load` a model that nobody needs any more: once it can be read from the cache, its weights are freed."""
    return _load(model, precision, threads, cache, stored, used_up=True)


def _load(
    model: PreTrainedModel,
    precision: Precision,
    threads: int | None,
    cache: Path | None,
    stored: Stored | None,
    *,
    used_up: bool,
) -> OpenVINOBackend:
    usable = available()
    if not usable.value:
        raise UnsupportedModelError(usable.reason)
    kind = model.config.model_type
    if getattr(model, "_is_stateful", False):
        raise UnsupportedModelError(f"{kind} keeps a recurrent state, which PyTorch rolls back alone")
    from dynx.runtime.backends.openvino.comparison import difference, reference

    try:
        import openvino as ov

        core = ov.Core()
    except (ImportError, OSError) as e:
        raise UnsupportedModelError(f"OpenVINO is installed and can't be loaded ({_first_line(e)})") from e
    expected = reference(model)
    backend = reload(precision=precision, threads=threads, cache=cache)
    if backend is not None and cache is not None and difference(backend, expected, precision) is None:
        put_mark(folder_of(cache, precision) / CHECKED_FILE)
        return backend
    del backend
    graph = _graph(model, precision, stored, used_up=used_up and cache is not None)
    kept = None if cache is None else _keep(graph, folder_of(cache, precision), core)
    weights = model if kept is None else None
    graph = graph if kept is None else kept  # which lies in the file's pages
    if used_up and kept is not None:
        _empty(*model.parameters(), *model.buffers())
    try:
        backend = OpenVINOBackend(graph, precision=precision, threads=threads, weights=weights)
    except RuntimeError as e:
        if is_out_of_memory(e):
            raise
        raise UnsupportedModelError(f"{kind} can't be compiled by OpenVINO ({_first_line(e)})") from e
    fault = difference(backend, expected, precision)
    if fault is not None:
        if cache is not None:
            shutil.rmtree(folder_of(cache, precision), ignore_errors=True)
        raise UnsupportedModelError(f"{kind} {fault}")
    if cache is not None and (folder := folder_of(cache, precision)).is_dir():
        put_mark(folder / CHECKED_FILE)
        backend.folder = folder
    return backend


def is_kept(*, precision: Precision, cache: Path) -> bool:
    """Whether OpenVINO is here and a converted model in `cache`."""
    return available().value and (folder_of(cache, precision) / MODEL_FILE).is_file()


def was_checked(*, precision: Precision, cache: Path) -> bool:
    """Whether the converted model in `cache` was compared with the torch model since it was written, on such a processor."""
    return available().value and is_marked(folder_of(cache, precision) / CHECKED_FILE)


def reload(*, precision: Precision, threads: int | None, cache: Path | None) -> OpenVINOBackend | None:
    """Load the converted model in `cache`, without the torch model; None where there is nothing usable."""
    if cache is None or not is_kept(precision=precision, cache=cache):
        return None
    folder = folder_of(cache, precision)
    try:
        import openvino as ov

        backend = OpenVINOBackend(ov.Core().read_model(folder / MODEL_FILE), precision=precision, threads=threads)
        backend.folder = folder
        return backend
    except Exception as e:
        if is_out_of_memory(e):
            raise
        return None  # torn or foreign: made again


def folder_of(cache: Path, precision: str) -> Path:
    """Return the folder in `cache` of the model in this precision."""
    return cache / f"openvino-{FORMAT_VERSION}-{release()}-{precision}"


def _graph(model: Any, precision: Precision, stored: Stored | None, *, used_up: bool) -> Any:
    """Return the model's graph, its weights stored as `precision`; some may be in the model's own memory.

    What the graph doesn't need of the weights is freed if they are `used_up`, each as soon as it is stored in another form.
    """
    from dynx.runtime.backends.openvino.convert import convert as trace
    from dynx.runtime.backends.openvino.integers import store_integers
    from dynx.runtime.backends.openvino.merging import merge
    from dynx.runtime.backends.openvino.weights import store_weights

    graph = trace(model, stored.exact if stored else None)
    if stored is not None:
        own = dict(model.named_parameters())
        names = {weight.data_ptr(): name for name, weight in own.items()}
        store_integers(graph, names, stored, (lambda name: _empty(own[name])) if used_up else lambda _: None)
    else:
        store_weights(graph, precision)
    merge(graph)
    paged.share_constants(graph)
    return graph


def _keep(graph: Any, folder: Path, core: Any) -> Any:
    """Return `graph` as read back from `folder`, where it was written whole; None where that can't be."""
    import openvino as ov

    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        draft.mkdir(parents=True)
        ov.save_model(graph, draft / MODEL_FILE, compress_to_fp16=False)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        return core.read_model(folder / MODEL_FILE)
    except (OSError, RuntimeError):  # read-only, full, or another process was first
        return None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _empty(*weights: Any) -> None:
    """Free a model's weights, whoever still refers to the model."""
    for weight in weights:
        weight.data = weight.data.new_empty(0)
    give_back_freed()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
