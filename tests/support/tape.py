"""A graphics processor's recording, on a processor: what ran is run again, on the same memory, with the same numbers.

Like a captured graph, a tape knows nothing of Python. It holds the operations in order, the tensors that they read and the ones
that they made; to replay it is to run them again and to put what they make where it was. A number that Python took part in is
on it as it was, so code that isn't fit to be recorded gives what it gave then. Reading a number off a tensor, which would make a
processor wait for the other, isn't allowed, as it isn't in a capture; libraries that ask whether one is going on are told so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

WAITING = {
    torch.ops.aten.item.default,
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
}


class Tape(TorchDispatchMode):
    """Operations as they run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run, and remember."""
        if func in WAITING:
            raise RuntimeError(f"{func} waits for the device, which a recording can't")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Run it all again."""
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recorder:
    """Records passes, and counts."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Two passes to warm up, one to record."""
        for _ in range(2):
            run()
        tape = Tape()
        with patch("transformers.utils.import_utils.is_cuda_stream_capturing", return_value=True), tape:
            out = run()
        self.captured += 1

        def replay() -> Tensor:
            self.replayed += 1
            tape.replay()
            return out

        return replay
