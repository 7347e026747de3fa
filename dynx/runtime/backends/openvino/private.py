"""OpenVINO's names that aren't part of its public interface, all that dynx uses of them.

A release may drop or rename them. `availability.MIN_OPENVINO_VERSION` is the first that is known to have them. Where one is
missing, `UnsupportedModelError` says so, and the model runs on PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from dynx.errors import UnsupportedModelError


def _name(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise UnsupportedModelError(f"this release of OpenVINO has no {module}.{name}") from e


def simplify(graph: Any) -> None:
    """Apply the transformations that `openvino.convert_model` applies, with constants folded."""
    _name("openvino._offline_transformations", "apply_moc_transformations")(graph, cf=True)


def tracer(function: Any, **settings: Any) -> Any:
    """Trace a PyTorch module for OpenVINO's frontend."""
    return _name("openvino.frontend.pytorch.ts_decoder", "TorchScriptPythonDecoder")(function, **settings)


def paged_attention(inputs: list[Any]) -> Any:
    """Return a node of paged attention over `inputs`."""
    return _name("openvino.op", "_PagedAttentionExtension")(inputs)


def make_traceable(model: Any) -> None:
    """Prepare a model with 16-bit weights for tracing."""
    _name("openvino.frontend.pytorch.patch_model", "__make_16bit_traceable")(model)


def undo_traceable(model: Any) -> None:
    """Undo `make_traceable`, functions of torch's own included."""
    undo = _name("openvino.frontend.pytorch.patch_model", "unpatch_model")
    undo(model, "_openvino_module_extension_patch_orig_forward")
