"""How many threads PyTorch computes with, for a while.

Two pools of threads on the same cores slow each other down: after every operation that PyTorch shared among its threads, those
spin for milliseconds in case there is more to do, and another runtime's threads wait for the core. On two cores a pass of six
tokens took OpenVINO 21.4 ms after such an operation and 16.5 ms otherwise. How long they spin can't be changed once PyTorch is
loaded, but with one thread there is nobody to spin. So where another runtime computes, PyTorch gets one thread
(`beside`) for what remains to it: drafting with a small model, sampling, embeddings.

The number belongs to the program that uses dynx, and is put back.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Iterator

BESIDE_ANOTHER_RUNTIME = 1
"""Threads of PyTorch while another runtime's threads compute."""


_setting = threading.Lock()


def set_torch_threads(count: int) -> None:
    """Let PyTorch compute with `count` threads; one caller at a time, and without a call where it does.

    In a forked process the first call replaces PyTorch's pool of threads. A second one beside it finds none and fails.
    """
    import torch

    with _setting:
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)


@contextmanager
def torch_threads(count: int | None = None) -> Iterator[None]:
    """Let PyTorch compute with `count` threads inside, and with as many as before afterwards; None: as many as before inside too.

    What is set inside by others is undone as well. Entering and leaving takes microseconds.
    """
    import torch

    before = torch.get_num_threads()
    if count is not None:
        set_torch_threads(count)
    try:
        yield
    finally:
        set_torch_threads(before)


def beside(runtime: str, threads: Decision[int]) -> Decision[int]:
    """Return `threads`, those of `runtime`, with what PyTorch gets in the reason."""
    why = f"{runtime}'s; PyTorch computes with {BESIDE_ANOTHER_RUNTIME} beside them, as idle threads of a second pool spin"
    return Decision(threads.value, f"{threads.reason}; {why}")
