"""What a decoder-only model must offer to be decoded by dynx, whatever kernels compute it.

A `Backend` is a loaded model. A `Session` is one sequence inside it: a key-value cache and a counter. The engine and
the drafters see nothing else, so a compiled or foreign runtime only has to implement these two.

    session = backend.open()
    rows = session.forward([5, 17, 3])          # (3, V): what follows each of the three tokens
    session.rollback(2)                          # forget token 3; costs nothing
    rows = session.forward_early([9], layers=2)  # (1, V): layers 0 and 1, then norm and head
    rows = session.complete()                    # (1, V): layers 2…L-1 for the same token, from the saved states

Letters in shapes: T tokens of one call, V vocabulary, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dynx.runtime.decision import Decision


class Session(Protocol):
    """One sequence: the tokens it has seen are positions 0 … length-1."""

    @property
    def length(self) -> int:
        """Positions that every layer holds."""

    @property
    def pending(self) -> int:
        """Positions beyond `length` that only the first layers hold, waiting for `complete`."""

    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """Run all layers on `tokens` and append them.

        Returns logits (T, V) in the model's precision, or only the last `keep` rows (keep, V).
        """

    def rollback(self, length: int) -> None:
        """Forget every position from `length` on, pending ones included."""

    def forward_early(self, tokens: Sequence[int], layers: int, *, logits: bool = True) -> Tensor | None:
        """Run the first `layers` layers on `tokens`; they stay pending.

        Returns what norm and head make of that layer's output, (T, V), or None without `logits`.
        """

    def complete(self, count: int | None = None) -> Tensor:
        """Run the remaining layers on the first `count` pending positions (all by default), from their saved states.

        Returns logits (count, V); pending positions after those are forgotten. No layer runs twice on any position.
        """


class Backend(Protocol):
    """A loaded model."""

    name: str
    precision: str  # of weights and passes, by name: "float32", "bfloat16", "int8", …
    vocab: int
    layers: int
    context: int | None  # most positions the model was made for; None where it claims no limit

    @property
    def can_rollback(self) -> Decision[bool]:
        """Whether `Session.rollback` is possible, and why not."""

    @property
    def can_exit(self) -> Decision[bool]:
        """Whether `forward_early` and `complete` are possible, and why not."""

    def open(self) -> Session:
        """A fresh sequence."""


def run_instead(backend: Backend, widths: Mapping[int, int]) -> bool:
    """Have passes of so many tokens run as wide as `widths` says, from now on; False where they can't be run wider than asked."""
    able = hasattr(backend, "run_instead")
    if able:
        getattr(backend, "run_instead")(widths)  # noqa: B009 - not of every backend
    return able


def reach(backend: Backend, start: int) -> int | None:
    """Tokens of one pass from position `start` on that have the logits of passes of one token; None where any number has.

    A session cuts wider passes itself, so more drafts than that are right and save nothing.
    """
    able = getattr(backend, "reach", None)
    found: int | None = None if able is None else able(start)
    return found


def settles(session: Session) -> bool:
    """Whether it may run a pass wider than asked, since a change of width takes time."""
    return hasattr(session, "settle")


def settle(session: Session, width: int) -> None:
    """Have the next passes of `width` tokens run as in a long row of such passes, if that makes a difference."""
    if settles(session):
        getattr(session, "settle")(width)  # noqa: B009 - not of every session
