"""Keeps a model's hidden states by position, for draft heads that read them.

`Tap` collects what enters some of the blocks, and what enters the output head, in each call of a stock model.
`HiddenStateSession` wraps a session of any kind and files these states under the positions of the tokens that it ran.

Where a round leaves the target early and completes it later, states of blocks that were passed by are not what the whole model
computes. They make a draft worse, and never a text.

Letters in shapes: T tokens, F features of a token: the kept states side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynx.errors import DeviceError, UnsupportedModelError
from dynx.runtime.backends.depth_gate import decoder_blocks
from dynx.runtime.backends.interface import Session
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_POSITIONS = 16384
"""Positions whose states a session keeps, the latest: a head that starts later reads no further back."""

GROWTH_POSITIONS = 256
"""Positions by which a buffer grows at least; growth doubles."""


class Tap:
    """Collects hidden states of a model in the calls between two `take`s."""

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        """Collect what enters the blocks numbered `layers`; raises UnsupportedModelError where the model has no such blocks."""
        body = _body(model)
        blocks = _blocks(model, body)
        if not layers or not all(0 <= layer <= len(blocks) for layer in layers):
            raise UnsupportedModelError(
                f"hidden states of layers {', '.join(map(str, layers)) or '(none)'} of {len(blocks)}"
            )
        self._seen: list[list[Tensor]] = [[] for _ in layers]
        self._hooks: list[Any] = []
        for seen, layer in zip(self._seen, layers, strict=True):
            if layer == len(blocks):
                self._hooks.append(body.register_forward_hook(_last_state(seen)))
            else:
                self._hooks.append(blocks[layer].register_forward_pre_hook(_input_state(seen), with_kwargs=True))

    def close(self) -> None:
        """Collect nothing any more."""
        for hook in self._hooks:
            hook.remove()

    def clear(self) -> None:
        """Forget what was collected."""
        for seen in self._seen:
            seen.clear()

    def take(self) -> Tensor | None:
        """Return the states (T, F) of all tokens since the last call; None where there are none, or not of all layers."""
        parts = [torch.cat(seen) for seen in self._seen if seen]
        self.clear()
        if len(parts) < len(self._seen) or len({len(part) for part in parts}) > 1:
            return None
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _body(model: Any) -> Any:
    """Return the part of a model whose output enters the head. Raises UnsupportedModelError where there is none."""
    found = model.get_decoder() if hasattr(model, "get_decoder") else None
    if found is None or found is model:
        found = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
    if found is None or found is model:
        raise UnsupportedModelError(f"{type(model).__name__} has no decoder under a head")
    return found


def _blocks(model: Any, body: Any) -> Any:
    """Return the decoder's blocks, also where they are of several classes. Raises UnsupportedModelError."""
    count = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    lists = [decoder_blocks(model), *(each for each in body.children() if isinstance(each, nn.ModuleList))]
    for blocks in lists:
        if blocks is not None and len(blocks) == count:
            return blocks
    raise UnsupportedModelError(f"{type(model).__name__} has no list of {count} decoder blocks")


def _input_state(seen: list[Tensor]) -> Any:
    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0])

    return hook


def _last_state(seen: list[Tensor]) -> Any:
    def hook(_module: Any, _args: Any, out: Any) -> None:
        found = getattr(out, "last_hidden_state", None)
        seen.append((out[0] if found is None else found)[0])

    return hook


class HiddenStateSession(Session):
    """A session that keeps the hidden states of its tokens."""

    def __init__(self, inner: Any, tap: Tap) -> None:
        self._inner, self._tap = inner, tap
        self.pads = inner.pads
        self._buffer: Tensor | None = None  # (capacity, F)
        self._first = self._held = 0  # position of its first row, and how many rows are valid
        self._tree: Tensor | None = None  # of the last pass over a tree

    def __getattr__(self, name: str) -> Any:
        """Return what only the wrapped session has."""
        return getattr(self._inner, name)

    @property
    def length(self) -> int:
        """See `Session.length`."""
        return int(self._inner.length)

    @property
    def pending(self) -> int:
        """See `Session.pending`."""
        return int(self._inner.pending)

    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """See `Session.forward`."""
        start = self.length
        self._tap.clear()
        out: Tensor = self._inner.forward(tokens, keep=keep)
        self._file(start, len(tokens))
        return out

    def pick(self, tokens: Sequence[int], *, keep: int | None = None) -> list[int]:
        """See `Session.pick`."""
        start = self.length
        self._tap.clear()
        out: list[int] = self._inner.pick(tokens, keep=keep)
        self._file(start, len(tokens))
        return out

    def forward_tree(self, tokens: Sequence[int], parents: Sequence[int], *, picks: bool = False) -> Tensor | list[int]:
        """See `Session.forward_tree`."""
        self._tap.clear()
        out: Tensor | list[int] = self._inner.forward_tree(tokens, parents, picks=picks)
        self._tree = self._tap.take()
        return out

    def keep(self, start: int, rows: Sequence[int]) -> None:
        """See `Session.keep`."""
        self._inner.keep(start, rows)
        states, self._tree = self._tree, None
        self._cut(start)
        if states is not None:
            self._append(start, states[list(rows)])

    def rollback(self, length: int) -> None:
        """See `Session.rollback`."""
        self._inner.rollback(length)
        self._tree = None
        self._cut(length)

    def reachable(self, length: int) -> int:
        """See `Session.reachable`."""
        return int(self._inner.reachable(length))

    def forward_early(self, tokens: Sequence[int], layers: int, *, logits: bool = True) -> Tensor | None:
        """See `Session.forward_early`."""
        out: Tensor | None = self._inner.forward_early(tokens, layers, logits=logits)
        return out

    def complete(self, count: int | None = None) -> Tensor:
        """See `Session.complete`."""
        start = self.length
        self._tap.clear()
        out: Tensor = self._inner.complete(count)
        self._file(start, self.length - start)
        return out

    def set_padded_length(self, length: int) -> None:
        """See `Session.set_padded_length`."""
        self._inner.set_padded_length(length)

    def hidden_states(self, start: int) -> tuple[int, Tensor] | None:
        """See `Session.hidden_states`."""
        start = max(start, self._first)
        if self._buffer is None or start >= self._first + self._held:
            return None
        return start, self._buffer[start - self._first : self._held]

    def _file(self, start: int, count: int) -> None:
        """Keep the states of the last `count` tokens that were run; models without a cache run all tokens again."""
        self._cut(start)
        states = self._tap.take()
        if states is not None and len(states) >= count:
            self._append(start, states[len(states) - count :])

    def _cut(self, length: int) -> None:
        self._held = max(0, min(self._held, length - self._first))

    @torch.inference_mode()
    def _append(self, start: int, states: Tensor) -> None:
        if start != self._first + self._held:  # states between are missing
            self._first, self._held = start, 0
        if (lost := len(states) - MAX_POSITIONS) > 0:
            states, self._first, self._held = states[lost:], start + lost, 0
        excess = self._held + len(states) - MAX_POSITIONS
        if self._buffer is not None and excess > 0:
            drop = min(self._held, excess + GROWTH_POSITIONS)
            self._buffer = self._buffer[drop:].clone()
            self._first, self._held = self._first + drop, self._held - drop
        end = self._held + len(states)
        if self._buffer is None or len(self._buffer) < end:
            capacity = max(end + GROWTH_POSITIONS, 2 * self._held)
            grown = states.new_empty(capacity, states.shape[-1])
            if self._buffer is not None:
                grown[: self._held] = self._buffer[: self._held]
            self._buffer = grown
        self._buffer[self._held : end] = states
        self._held = end


@torch.inference_mode()
def tried(backend: Any) -> Decision[bool]:
    """Test on a few tokens whether a backend's model shows what enters its head."""
    if backend.name != "torch-eager":
        return Decision(False, f"{backend.name} hands over no hidden states")
    if not backend.can_rollback.value:
        return backend.can_rollback  # type: ignore[no-any-return]
    kind = backend.config.model_type
    try:
        tap = Tap(backend.model, [backend.layers])
        backend.open().forward([3 % backend.vocab, 5 % backend.vocab, 2 % backend.vocab])
        found = tap.take()
        tap.close()
    except DeviceError:
        raise
    except Exception as e:  # noqa: BLE001 - any failure of a foreign model
        return Decision(False, f"{kind} hands over no hidden states ({type(e).__name__}: {e})")
    if found is None or found.shape[-1] != backend.model.get_input_embeddings().weight.shape[-1]:
        return Decision(False, f"{kind} hands over no hidden states of the embeddings' size")
    return Decision(True, "tested: the states before the head are handed over")
