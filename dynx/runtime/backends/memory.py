"""An allocator's failure as the error that a caller is told."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from dynx.errors import DeviceError
from dynx.runtime.loading import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


@contextmanager
def enough_memory(device: torch.device) -> Iterator[None]:
    """Turns running out of memory on `device` into a DeviceError with advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        hint = "try a shorter prompt, --dtype bfloat16, a smaller model or --device cpu"
        raise DeviceError(f"out of memory on {device}", hint=hint) from e
