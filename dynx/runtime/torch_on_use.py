"""PyTorch for modules that often run without it: `torch` is imported when one of its names is first used.

A greedy answer on another runtime uses none, and importing it takes longer than compiling a small model from the cache. The
threads that PyTorch was meant to have meanwhile (`threads`) are set as soon as it is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynx.runtime.lazy_imports import OnUse

if TYPE_CHECKING:
    import torch
else:
    from dynx.runtime import threads

    class _Torch(OnUse):
        """The module torch."""

        def __getattr__(self, name: str) -> Any:
            found = super().__getattr__(name)
            threads.torch_is_there()
            return found

    torch = _Torch("torch")

__all__ = ["torch"]
