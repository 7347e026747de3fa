"""A backend that keeps the logits of a sequence, for callers who want them besides the tokens.

    backend = RecordingBackend(target)
    session = backend.open()
    ...
    backend.session.logits(4, 9)     # (5, V): what followed the tokens at positions 4 to 8
    backend.session.cache(9)         # transformers' cache of the first nine positions

It is for one sequence at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache

from dynx.runtime.backends.interface import Backend, Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dynx.runtime.backends.eager import EagerBackend


class RecordingSession(Session):
    """A session whose logits are kept by position; those of a position that was rolled back are replaced."""

    def __init__(self, inner: Any, config: Any) -> None:
        self._inner, self._config = inner, config
        self.pads = inner.pads
        self._rows: dict[int, Tensor] = {}

    @property
    def length(self) -> int:
        """See `Session`."""
        return int(self._inner.length)

    @property
    def pending(self) -> int:
        """See `Session`."""
        return int(self._inner.pending)

    def _keep(self, rows: Tensor) -> Tensor:
        start = self.length - rows.shape[0]
        self._rows.update((start + i, row) for i, row in enumerate(rows))
        return rows

    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """See `Session.forward`."""
        return self._keep(self._inner.forward(tokens, keep=keep))

    def rollback(self, length: int) -> None:
        """See `Session.rollback`."""
        self._inner.rollback(length)

    def forward_early(self, tokens: Sequence[int], layers: int, *, logits: bool = True) -> Tensor | None:
        """See `Session.forward_early`."""
        rows: Tensor | None = self._inner.forward_early(tokens, layers, logits=logits)
        return rows

    def complete(self, count: int | None = None) -> Tensor:
        """See `Session.complete`."""
        return self._keep(self._inner.complete(count))

    def set_padded_length(self, length: int) -> None:
        """See `Session.set_padded_length`."""
        self._inner.set_padded_length(length)

    def logits(self, start: int, end: int) -> Tensor:
        """Return the logits (end - start, V) after the tokens at positions `start` … `end` - 1, float32."""
        return torch.stack([self._rows[at] for at in range(start, end)]).float()

    def cache(self, length: int) -> DynamicCache:
        """Return keys and values of the first `length` positions as the cache that transformers would have made."""
        cache = DynamicCache(config=self._config)
        for index, layer in enumerate(self._inner._cache.layers):
            if layer.is_initialized:
                # A copy outside inference mode: tensors of that mode can't be used where gradients are recorded.
                keys, values = (states[..., :length, :].clone() for states in (layer.keys, layer.values))
                cache.update(keys, values, index)
        return cache


class RecordingBackend(Backend):
    """`inner`, whose latest session is kept with its logits."""

    session: RecordingSession

    def __init__(self, inner: EagerBackend) -> None:
        self._inner = inner
        self.name, self.precision, self.model = inner.name, inner.precision, inner.model
        self.vocab, self.layers, self.context = inner.vocab, inner.layers, inner.context

    @property
    def can_rollback(self) -> Any:
        """See `Backend.can_rollback`."""
        return self._inner.can_rollback

    @property
    def can_exit(self) -> Any:
        """See `Backend.can_exit`."""
        return self._inner.can_exit

    def open(self) -> RecordingSession:
        """Start an empty sequence and keep it."""
        self.session = RecordingSession(self._inner.open(), self._inner.config)
        return self.session

    def max_pass_length(self, start: int) -> int | None:
        """See `Backend.max_pass_length`."""
        return self._inner.max_pass_length(start)
