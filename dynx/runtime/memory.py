"""Says how much memory is free; recognises that memory ran out, and reports it as a `DeviceError`."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dynx.errors import DeviceError
from dynx.runtime.hardware import Host, read_limits, read_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


class CacheFull(DeviceError):  # noqa: N818 - named for what has happened
    """The key-value cache of all sequences is at its limit; nothing has changed."""


@contextmanager
def device_memory_errors(device: torch.device) -> Iterator[None]:
    """Convert an allocation failure on `device` to a DeviceError with advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        hint = "try a shorter prompt, `dtype` bfloat16, a smaller model or `device` cpu"
        raise DeviceError(f"out of memory on {device}", hint=hint) from e


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's error, torch's, or on CPUs a RuntimeError without a type of its own."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory")
    )


def give_back_freed() -> None:
    """Hand memory that this process has freed back to the system, which the C library may keep for itself otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def free_memory() -> int | None:
    """Return the bytes of main memory that this process may still take; None where that can't be known."""
    host = Host.here()
    return read_memory(host, read_limits(host))[1]
