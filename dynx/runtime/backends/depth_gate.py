"""Runs part of a stock decoder's blocks, so that an early exit can draft and the rest of the layers complete its positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


class DepthGate:
    """Lets a stock decoder run only blocks first … last-1, and start from saved states.

    A block outside the range hands its input on untouched. Inside a call: `resume` (1, T, D) replaces the input of block
    `first`; the output of block `last`-1 is kept in `captured`.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.first, self.last = 0, len(blocks)
        self.depth = len(blocks)
        self.resume: Tensor | None = None
        self.captured: Tensor | None = None
        self._items = 0  # of the tuple that these blocks return; 0 where they return the states alone
        for index, block in enumerate(blocks):
            block.forward = self._gated(index, block.forward)

    def _gated(self, index: int, inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.first <= index < self.last:
                states = args[0] if args else kwargs["hidden_states"]
                return (states, *[None] * (self._items - 1)) if self._items else states
            if index == self.first and self.resume is not None:
                if args:
                    args = (self.resume, *args[1:])
                else:
                    kwargs["hidden_states"] = self.resume
            out = inner(*args, **kwargs)
            self._items = len(out) if isinstance(out, tuple) else 0
            if index == self.last - 1 and self.last < self.depth:
                self.captured = out[0] if self._items else out
            return out

        return forward

    def open(self) -> None:
        """Run the whole model again."""
        self.first, self.last, self.resume, self.captured = 0, self.depth, None, None


def decoder_blocks(model: Any) -> list[nn.Module] | None:
    """List the decoder's blocks in order: by the class the model records hidden states from, else its longest uniform list."""
    recorded = getattr(model, "_can_record_outputs", None) or {}
    kind = recorded.get("hidden_states")
    kind = getattr(kind, "target_class", kind)
    if isinstance(kind, (list, tuple)):
        kind = kind[0] if len(kind) == 1 else None
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        found = [m for m in model.modules() if isinstance(m, kind)]
        if found:
            return found
    lists = [list[nn.Module](m) for m in model.modules() if isinstance(m, nn.ModuleList)]
    return max((blocks for blocks in lists if len({type(b) for b in blocks}) == 1), key=len, default=None)
