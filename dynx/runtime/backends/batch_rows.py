"""Opens batches on a backend: sequences that share passes, each with its own length and its own rollback.

    batch = open_batch(backend)
    one, two = batch.open(), batch.open()
    batch.read(one, prompt), batch.read(two, other)
    rows = batch.forward([Part(one, [5, 17]), Part(two, [3])])   # [(2, V), (1, V)]
    one.rollback(7)                                              # tokens that it keeps
    two.close()

There are two kinds. A backend with passes of its own for that (`Backend.can_batch`) needs nothing but its sessions: those are
ragged, a pass costs by its tokens. On PyTorch the rows of a `BatchSession` are as wide as the widest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dynx.runtime.backends.eager_batch import EagerBatch
    from dynx.runtime.backends.interface import Backend, Part
    from dynx.runtime.decision import Decision

Rows: TypeAlias = "Tensor | list[int]"
"""Logits (T, V), or the likeliest token of each of T rows."""

CHUNK_TOKENS = 512
"""Tokens of a prompt that one pass reads."""


def batches(backend: Any) -> Decision[bool]:
    """Whether several sequences can share the backend's passes, and why not."""
    known: Decision[bool] | None = None if _is_eager(backend) else getattr(backend, "can_batch", None)
    if known is None:
        from dynx.runtime.backends.batch import can_batch

        known = can_batch(backend)
    return known


def open_batch(backend: Backend) -> SessionBatch | EagerBatch:
    """Return an empty batch on a backend for which `batches` is True."""
    if not _is_eager(backend):
        return SessionBatch(backend)
    from dynx.runtime.backends.eager_batch import EagerBatch

    return EagerBatch(backend)  # type: ignore[arg-type]


def _is_eager(backend: Any) -> bool:
    """Whether it is an `EagerBackend`, whose module imports transformers: only where a module of that computes the passes."""
    if getattr(backend, "model", None) is None:
        return False
    from dynx.runtime.backends.eager import EagerBackend

    return isinstance(backend, EagerBackend)


class SessionBatch:
    """Sessions of a backend whose passes take several sequences."""

    ragged = True
    room: int | None = None
    """Tokens that a row may be wide for the sake of the others; None without a limit."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def open(self) -> Any:
        """Start an empty sequence."""
        return self._backend.open()

    def tokens(self, widths: Sequence[int]) -> int:
        """Return the tokens that a pass of sequences of these widths computes."""
        return sum(widths)

    def read(self, session: Any, tokens: Sequence[int]) -> Tensor:
        """Read a prompt; return the logits (V,) after it."""
        row: Tensor = session.forward(tokens, keep=1)[0]
        return row

    def forward(self, parts: Sequence[Part]) -> list[Rows]:
        """Run one pass; return each part's rows."""
        return self._backend.forward(parts)
