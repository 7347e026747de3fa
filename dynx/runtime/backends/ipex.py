"""Intel's extension for PyTorch (IPEX): linear layers and convolutions with weights prepacked for oneDNN.

`optimize` takes any module and knows no task; `load` makes a decoder's backend of one. Whether the extension is
installed and matches this torch is read from its metadata first, since under another torch it prints and breaks. What it prints
while it loads and works is dropped: stdout is the product's.

Importing it takes a second or two and replaces some of PyTorch's kernels in the whole process.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import os
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import torch

from dynx.errors import DeviceError, UnsupportedModelError
from dynx.runtime.backends.availability import can_use_ipex
from dynx.runtime.backends.eager import EagerBackend
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

CHECKED_TOKENS = (1, 2, 5, 8)
"""Tokens of the passes that are compared with the unmodified model: kernels differ by width."""

CHECKED_CONTEXT_TOKENS = 5
"""Tokens before them."""


def extension() -> Any:
    """Import the extension without output. Raises UnsupportedModelError with the reason."""
    able = can_use_ipex("cpu")
    if not able.value:
        raise UnsupportedModelError(able.reason)
    try:
        with silence():
            return importlib.import_module("intel_extension_for_pytorch")
    except (Exception, SystemExit) as e:
        raise UnsupportedModelError(f"{able.reason} doesn't load here ({_brief(e)})") from e


def optimize(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Replace `module`'s layers by the extension's, computing in `dtype`; in place, for inference.

    Raises UnsupportedModelError with the reason; `module` may be changed in part then and isn't fit for use.
    """
    ipex = extension()
    try:
        with silence():
            made: nn.Module = ipex.optimize(module.eval(), dtype=dtype, inplace=True)
    except (Exception, SystemExit) as e:
        raise UnsupportedModelError(f"IPEX can't take its layers ({_brief(e)})") from e
    return made


def load(model: Any, *, trusted: bool = False) -> IpexBackend:
    """Load a decoder as a backend, changed in place; `trusted` skips the comparison with the model as it was.

    Raises UnsupportedModelError with the reason where the extension can't be used or gives other logits; `model` isn't fit for
    use afterwards.
    """
    able = can_use_ipex(str(model.device))
    if not able.value:
        raise UnsupportedModelError(able.reason)
    extension()  # before anything is compared: it replaces kernels of the unmodified model as well
    backend = IpexBackend(model, trusted=trusted)
    if not backend.can_rollback.value:
        raise UnsupportedModelError(backend.can_rollback.reason)
    if backend.keeps_states:
        raise UnsupportedModelError(
            f"{backend.config.model_type} keeps a recurrent state, which PyTorch rolls back alone"
        )
    if backend.length_dependence is not None:
        raise UnsupportedModelError(f"in {backend.config.model_type}, {backend.length_dependence}")
    probe = [(7 * i + 3) % backend.vocab for i in range(CHECKED_CONTEXT_TOKENS + max(CHECKED_TOKENS))]
    want = None if trusted else _logits(model, probe)
    backend.model = optimize(model, model.dtype)
    if want is None:
        return backend
    try:
        backend.compare(probe, want)
    except (DeviceError, UnsupportedModelError):
        raise
    except Exception as e:
        if is_out_of_memory(e):
            raise
        raise UnsupportedModelError(f"{backend.config.model_type} doesn't run on IPEX ({_brief(e)})") from e
    return backend


class IpexBackend(EagerBackend):
    """A transformers model with IPEX's layers."""

    name = "ipex"

    @torch.inference_mode()
    def compare(self, probe: list[int], want: Tensor) -> None:
        """Compare passes over `probe` with the logits `want`, (T, V). Raises UnsupportedModelError where they differ."""
        tolerance = (1e-3 if self.model.dtype == torch.float32 else 0.08) * max(1.0, want.abs().max().item())
        kind = self.config.model_type
        session = self.open()
        session.forward(probe[:CHECKED_CONTEXT_TOKENS])
        for width in CHECKED_TOKENS:
            rows = session.forward(probe[CHECKED_CONTEXT_TOKENS : CHECKED_CONTEXT_TOKENS + width]).float()
            gap = (rows - want[CHECKED_CONTEXT_TOKENS : CHECKED_CONTEXT_TOKENS + width]).abs().max().item()
            if not gap <= tolerance:  # also catches NaN
                raise UnsupportedModelError(f"{kind} gives other logits on IPEX (by {gap:.2g} at {width} tokens)")
            session.rollback(CHECKED_CONTEXT_TOKENS)


@torch.inference_mode()
def _logits(model: Any, tokens: list[int]) -> Tensor:
    """Compute the logits of one pass, (T, V)."""
    logits: Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()
    return logits


@contextmanager
def silence() -> Iterator[None]:
    """Drop all output of this process to stdout and stderr, that of C libraries and warnings included."""
    kept: list[tuple[int, int]] = []
    for descriptor in (1, 2):
        try:
            kept.append((descriptor, os.dup(descriptor)))
        except OSError:  # it was closed by whoever started us
            continue
    nowhere = os.open(os.devnull, os.O_WRONLY)
    dropped = io.StringIO()
    try:
        _flush()
        for descriptor, _ in kept:
            os.dup2(nowhere, descriptor)
        with redirect_stdout(dropped), redirect_stderr(dropped), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _flush()
        for descriptor, copy in kept:
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)


def _flush() -> None:
    """Flush C's standard streams, whose buffers would otherwise be written after redirection ends."""
    ctypes.CDLL(None).fflush(None)


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:160] if lines else type(error).__name__
