"""Compiles networks and decoders in threads while the process imports and loads what it needs to use them.

Imports keep one core busy, and OpenVINO compiles without Python's lock. Nothing here imports PyTorch.
"""

from __future__ import annotations

import json
from concurrent.futures import Future
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from dynx.runtime.backends.openvino.decoder import OpenVINOBackend
    from dynx.runtime.backends.openvino.precision import Precision

_begun: dict[tuple[str, str, int, str], Future[Any]] = {}


def request_of(file: Path, precision: str, threads: int, way: Mapping[str, Any]) -> Any:
    """Return a request to run the graph in a file, from a thread that began to compile it, or compiled here.

    `way` are settings that this graph needs besides.
    """
    found = _begun.pop(_key(file, precision, threads, way), None)
    return _compiled(file, precision, threads, way) if found is None else found.result()


def begin(folders: Iterable[tuple[Path, str]], threads: int) -> int:
    """Compile the graphs of some folders of the cache, each in its precision, in a thread; return how many there are.

    Whoever asks for one of them (`request_of`) waits for it, and gets the error where there was one. Folders that aren't there
    are passed over.
    """
    waiting: list[tuple[Path, str, dict[str, Any], Future[Any]]] = []
    for folder, precision in folders:
        try:
            way = dict(json.loads((folder / "facts.json").read_text(encoding="utf-8"))["way"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        file, future = folder / "model.xml", Future[Any]()
        _begun[_key(file, precision, threads, way)] = future
        waiting.append((file, precision, way, future))

    def work() -> None:
        for file, precision, way, future in waiting:
            try:
                future.set_result(_compiled(file, precision, threads, way))
            except BaseException as e:  # noqa: BLE001 - raised where it is asked for
                future.set_exception(e)

    if waiting:
        Thread(target=work, name="compile", daemon=True).start()
    return len(waiting)


def begun() -> list[Future[Any]]:
    """Return what is being compiled and wasn't asked for yet."""
    return list(_begun.values())


def settings(precision: str, threads: int, way: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of OpenVINO's compiler for a network."""
    import openvino as ov

    able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if precision != "float32" and "BF16" in able else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        **way,
    }


def _compiled(file: Path, precision: str, threads: int, way: Mapping[str, Any]) -> Any:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(file)
    return core.compile_model(model, "CPU", settings(precision, threads, way)).create_infer_request()


def _key(file: Path, precision: str, threads: int, way: Mapping[str, Any]) -> tuple[str, str, int, str]:
    return str(file), precision, threads, json.dumps(dict(way), sort_keys=True)


def decoder(precision: Precision, threads: int, cache: Path) -> Future[OpenVINOBackend | None]:
    """Begin `kept.reload` in a thread, with a first pass, which makes the kernels and puts the weights in their layout."""
    from dynx.runtime.backends.openvino.kept import reload

    import_module("openvino")  # two threads that import slow each other down, and the caller has more to import
    future: Future[OpenVINOBackend | None] = Future()

    def work() -> None:
        try:
            backend = reload(precision=precision, threads=threads, cache=cache)
            if backend is not None:
                backend.warm()
            future.set_result(backend)
        except BaseException as e:  # noqa: BLE001 - raised where it is asked for
            future.set_exception(e)

    Thread(target=work, name="compile", daemon=True).start()
    return future
