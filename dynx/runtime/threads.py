"""How many threads PyTorch computes with, for a while.

Two pools of threads on the same cores slow each other down: after every operation that PyTorch shared among its threads, those
spin for milliseconds in case there is more to do, and another runtime's threads wait for the core. On two cores a pass of six
tokens took OpenVINO 21.4 ms after such an operation and 16.5 ms otherwise. How long they spin can't be changed once PyTorch is
loaded, but with one thread there is nobody to spin. So where another runtime computes, PyTorch gets one thread
(`beside`) for what remains to it: drafting with a small model, sampling, embeddings.

The number belongs to the program that uses dynx, and is put back.
"""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Iterator

BESIDE_ANOTHER_RUNTIME = 1
"""Threads of PyTorch while another runtime's threads compute."""


_setting = threading.Lock()

_meant: int | None = None
"""Threads that PyTorch shall have once it is imported."""

_own: int | None = None
"""Threads that PyTorch chose for itself when it was imported in the middle of `torch_threads`."""


def set_torch_threads(count: int) -> None:
    """Let PyTorch compute with `count` threads, now or once it is imported; one caller at a time, without a call where it does.

    In a forked process the first call replaces PyTorch's pool of threads. A second one beside it finds none and fails.
    """
    global _meant
    if "torch" not in sys.modules:
        _meant = count
        return
    import torch

    with _setting:
        _meant = None
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)


def torch_is_there() -> None:
    """Give PyTorch, just imported, the threads that it was meant to have."""
    global _own
    if (count := _meant) is not None:
        import torch

        _own = torch.get_num_threads()
        set_torch_threads(count)


@contextmanager
def torch_threads(count: int | None = None) -> Iterator[None]:
    """Let PyTorch compute with `count` threads inside, and with as many as before afterwards; None: as many as before inside too.

    What is set inside by others is undone as well. Entering and leaving takes microseconds. PyTorch isn't imported for it.
    """
    global _meant, _own
    if "torch" in sys.modules:
        import torch

        before: int | None = torch.get_num_threads()
    else:
        before, _own = _meant, None
    if count is not None:
        set_torch_threads(count)
    try:
        yield
    finally:
        if before is None and "torch" not in sys.modules:
            _meant = None
        elif (found := _own if before is None else before) is not None:
            set_torch_threads(found)


def beside(runtime: str, threads: Decision[int]) -> Decision[int]:
    """Return `threads`, those of `runtime`, with what PyTorch gets in the reason."""
    why = f"{runtime}'s; PyTorch computes with {BESIDE_ANOTHER_RUNTIME} beside them, as idle threads of a second pool spin"
    return Decision(threads.value, f"{threads.reason}; {why}")
