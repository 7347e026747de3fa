"""What a decoder-only model must offer to be decoded by dynx, on any backend.

A `Backend` is a loaded model. A `Session` is one sequence in it: a key-value cache and its length. The engine and the drafters
use nothing else, so a new backend implements these two and inherits the defaults of what it lacks.

    session = backend.open()
    rows = session.forward([5, 17, 3])          # (3, V): logits after each of the three tokens
    session.rollback(2)                          # drop token 3; costs nothing
    picks = session.pick([3])                    # [t]: the likeliest token after it, where logits aren't needed
    rows = session.forward_early([9], layers=2)  # (1, V): layers 0 and 1, then norm and head
    rows = session.complete()                    # (1, V): layers 2…L-1 for the same token, from the saved hidden states

Letters in shapes: T tokens of one call, V vocabulary, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.picks import as_picks
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


class Session(Protocol):
    """One sequence: its tokens are positions 0 … length-1."""

    pads: bool = False
    """Whether a forward pass may be padded to more tokens; then a change of that number costs time."""

    @property
    def length(self) -> int:
        """Positions that every layer holds."""

    @property
    def pending(self) -> int:
        """Positions beyond `length` that only the first layers hold, until `complete`."""

    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """Run all layers on `tokens` and append them.

        Returns logits (T, V) in the model's precision, or only the last `keep` rows (keep, V).
        """

    def pick(self, tokens: Sequence[int], *, keep: int | None = None) -> list[int]:
        """Run all layers on `tokens`, append them, and return the likeliest next token after each, or after the last `keep`.

        These are the argmax of the logits that `forward` returns, the first of equals; a backend may save itself those.
        """
        return as_picks(self.forward(tokens, keep=keep))

    def forward_tree(self, tokens: Sequence[int], parents: Sequence[int], *, picks: bool = False) -> Tensor | list[int]:
        """Run all layers on a tree, where `Backend.can_tree`: token i + 1 continues token `parents[i]`, tokens[0] the sequence.

        Returns logits (T, V), or with `picks` the likeliest tokens, as `pick` does. Before anything else is done with the
        session, `keep` tells which tokens stay.
        """
        raise UnsupportedModelError("no passes over trees")

    def keep(self, start: int, rows: Sequence[int]) -> None:
        """Hold, after the first `start` positions, those of the tree's tokens that `rows` number: a path from its root."""
        raise UnsupportedModelError("no passes over trees")

    def rollback(self, length: int) -> None:
        """Drop every position from `length` on, pending ones included."""

    def reachable(self, length: int) -> int:
        """Return the longest prefix of at most `length` positions that a rollback reaches without reading tokens again."""
        return length

    def forward_early(self, tokens: Sequence[int], layers: int, *, logits: bool = True) -> Tensor | None:
        """Run the first `layers` layers on `tokens`; they stay pending.

        Returns the logits (T, V) of norm and head on that layer's output, or None without `logits`.
        """

    def complete(self, count: int | None = None) -> Tensor:
        """Run the remaining layers on the first `count` pending positions (all by default), from their saved hidden states.

        Returns logits (count, V); pending positions after those are dropped. No layer runs twice on any position.
        """

    def hidden_states(self, start: int) -> tuple[int, Tensor] | None:
        """Return the recorded states (T, F) of positions `start` … length-1, and the first one's position; None without any.

        The first may come later than `start`: the oldest are forgotten. See `Backend.record`.
        """
        return None

    def set_padded_length(self, length: int) -> None:
        """Run the next passes of `length` tokens as in a long series of such passes; without effect where `pads` is False."""
        return


@dataclass(frozen=True, slots=True)
class Part:
    """A sequence's part in a pass: tokens to append, and how many of the last rows are wanted (`keep`; None: all).

    With `picks` the likeliest tokens are wanted instead of logits, as from `Session.pick`. With `parents` the tokens are a tree,
    as in `Session.forward_tree`.
    """

    session: Any
    tokens: Sequence[int]
    keep: int | None = None
    picks: bool = False
    parents: Sequence[int] = ()


class Backend(Protocol):
    """A loaded model."""

    name: str
    precision: str
    """Data type of weights and passes: "float32", "bfloat16", "int8", …"""

    vocab: int
    layers: int
    context: int | None
    """The longest sequence that the model was made for; None without a limit."""

    own_threads: bool = False
    """Whether passes run on threads of the backend's own, beside PyTorch's."""

    model: Any = None
    """The transformers module that computes the passes; None where another runtime does."""

    compiled: int = 0
    """Graphs that this process had to compile."""

    exact_trunk: bool = False
    """Where `can_tree`: whether the rows of a tree's first tokens that are a chain have the bits of a pass over that chain."""

    trunk_only: bool = False
    """Where `can_tree`: whether the other rows of a tree are only nearly those of chains, as with sliding windows over places."""

    @property
    def can_rollback(self) -> Decision[bool]:
        """Whether `Session.rollback` is possible, and why not."""

    @property
    def can_exit(self) -> Decision[bool]:
        """Whether `forward_early` and `complete` are possible, and why not."""

    @property
    def can_tree(self) -> Decision[bool]:
        """Whether `Session.forward_tree` is possible, and why not."""
        return Decision(False, f"{self.name} runs no passes over trees")

    def trust_trees(self) -> None:
        """Leave the trial of `can_tree` out: a profile says that these weights passed it."""
        return

    @property
    def can_record(self) -> Decision[bool]:
        """Whether sessions can keep hidden states for drafters that read them, and why not."""
        return Decision(False, f"{self.name} hands over no hidden states")

    def record(self, layers: Sequence[int]) -> None:
        """Let the sessions opened from now on keep the hidden states that enter the blocks numbered `layers`, side by side.

        The number of blocks stands for what enters the output head. Raises UnsupportedModelError unless `can_record`.
        """
        raise UnsupportedModelError(self.can_record.reason)

    @property
    def replays(self) -> bool:
        """Whether a rollback that drops some tokens of a pass takes another pass over those that stay."""
        return False

    @property
    def first_wide(self) -> float | None:
        """Cost of a pass of several tokens, in passes of one, where that is known from the trial on load."""
        return None

    def open(self) -> Session:
        """Start an empty sequence."""

    @property
    def can_batch(self) -> Decision[bool]:
        """Whether one pass may hold several sequences, with the logits that each gets alone, and why not."""
        return Decision(False, f"{self.name} runs one sequence at a time")

    def forward(self, parts: Sequence[Part]) -> list[Tensor | list[int]]:
        """Run one pass of several sequences; returns each one's rows. Raises UnsupportedModelError unless `can_batch`."""
        raise UnsupportedModelError(self.can_batch.reason)

    def set_padded_lengths(self, lengths: Mapping[int, int]) -> bool:
        """Pad passes of some numbers of tokens to others (`lengths`) from now on; False where this backend can't pad."""
        return False

    @property
    def prepared_tokens(self) -> int:
        """Tokens that the last pass was padded to; 0 where passes aren't padded."""
        return 0

    def set_pass_seconds(self, seconds: Mapping[int, float], change: float = 0.0) -> None:
        """Take the seconds of passes by number of tokens, and of a `change` of it, where they decide how passes are padded."""
        return

    def max_pass_length(self, start: int) -> int | None:
        """Tokens of one pass from position `start` on whose logits equal those of passes of one token; None without a limit.

        A session splits longer passes itself, so more draft tokens than that are correct and save nothing.
        """
        return None

    @property
    def state(self) -> Decision[str] | None:
        """What a session keeps between passes; None for a key-value cache that can be rolled back at every length."""
        return None
