"""Rollback for recurrent models: the state is copied before a pass of several tokens, and restored when some are dropped.

A recurrent state can't be cut at a position as keys and values can. So a pass that may be rolled back begins with a copy of the
state; where all its tokens stay, nothing more is done. Else the copy comes back and the tokens that stay are read again, in one
pass, at once, so that the time is part of the round that caused it.

Keys and values of attention layers are not copied: transformers' dynamic layers put new tensors in place of the old ones.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from dynx.errors import DeviceError
from dynx.runtime.backends.continued import continued
from dynx.runtime.backends.stock import Stock, StockBackend, StockSession
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MAX_COPY_AGE_TOKENS = 16
"""Age of the copy from which a pass of one token begins with a new one: what a rollback after it reads again at most."""

PROBE_TOKENS = 16
"""Tokens of the trial on load, more than the four that convolutions of recurrent models cover."""


@dataclass(frozen=True)
class _Copy:
    """The state of a session at a length."""

    length: int
    kwargs: Mapping[str, Any]
    held: Mapping[Any, Any]


class RestoringSession(StockSession):
    """A sequence whose state is restored from copies; passes may have several tokens."""

    def __init__(self, backend: StockBackend, *, cached: bool | None = None, stock: Stock | None = None) -> None:
        super().__init__(backend, cached=cached, stock=stock)
        self._copy = self._copied_state()

    def _copied_state(self) -> _Copy:
        return _Copy(self.length, copied(self._kwargs), copied(self._held))

    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """See `Session.forward`; one pass."""
        if self.length and (len(tokens) > 1 or self.length - self._copy.length >= MAX_COPY_AGE_TOKENS):
            self._renew_copy()
        first = not self.length
        out = self._step(tokens, keep)
        if first:
            self._renew_copy()
        return out if keep is None else out[-keep:]

    def _step(self, tokens: Sequence[int], keep: int | None) -> Tensor:
        """One pass; several tokens go on from the state as single ones do."""
        if len(tokens) < 2 or not self.length or not self._cached:
            return super()._step(tokens, keep)
        for (module, name), value in self._held.items():
            setattr(module, name, value)
        with continued(self._backend.model, self._kwargs.get(self._backend.cache_name)):
            return super()._step(tokens, keep)

    def _renew_copy(self) -> None:
        if self._copy.length != self.length:
            self._copy = self._copied_state()

    def rollback(self, length: int) -> None:
        """See `Session.rollback`: tokens between the copy and `length` are read again, or all where the copy is later."""
        if length > self.length:
            raise ValueError(f"can't roll forward from {self.length} to {length}")
        if length == self.length:
            return
        tokens = self._tokens[:length]
        if not self._cached:
            self._tokens, self.length = tokens, length
            return
        if self._copy.length > length:
            StockSession.__init__(self, self._backend, cached=self._cached, stock=self._stock)
            self.length = 0
            self._copy = self._copied_state()
        else:
            state = self._copy
            self._kwargs, self._held = dict(copied(state.kwargs)), dict(copied(state.held))
            self._tokens, self.length = tokens[: state.length], state.length
        if len(tokens) > self.length:
            self._step(tokens[self.length :], 1)
        if length and not self._copy.length:
            self._renew_copy()

    def reachable(self, length: int) -> int:
        """See `Session.reachable`."""
        if length == self.length or not self._cached:
            return length
        return self._copy.length if self._copy.length <= length else 0

    def another(self) -> RestoringSession:
        """Start an empty sequence of the same kind."""
        return RestoringSession(self._backend, cached=self._cached, stock=self._stock)


def copied(value: Any) -> Any:
    """Return a copy of a state that passes don't change; keys and values that passes replace are shared."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [copied(each) for each in value]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, Cache) or hasattr(value, "conv_states") or hasattr(value, "rnn_state"):
        out = copy.copy(value)
        shared = ("keys", "values") if isinstance(value, DynamicLayer) else ()
        for name, each in vars(value).items():
            if name not in shared:
                setattr(out, name, copied(each))
        return out
    if isinstance(value, DynamicLayer):
        return copy.copy(value)
    return value


def keeps_states(model: Any, config: Any) -> bool:
    """Whether a model keeps states that can't be cut at a position, beside keys and values or instead of them."""
    if getattr(model, "_is_stateful", False):
        return True
    try:
        return any(hasattr(layer, "conv_states") for layer in DynamicCache(config=config).layers)
    except Exception:  # noqa: BLE001 - a config that transformers' caches don't know
        return False


@dataclass(frozen=True)
class Trial:
    """What the trial on load found."""

    can_rollback: Decision[bool]
    first_wide: float | None = None  # time of a pass of several tokens, the slowest but one, in passes of one


@torch.inference_mode()
def tried(backend: StockBackend, clock: Callable[[], float] = time.perf_counter) -> Trial:
    """Test on a few tokens whether passes of several tokens, rolled back in between, give the logits of passes of one.

    Their times show how much dearer several tokens are, which a recurrent model reads by another rule than one.
    """
    kind = backend.config.model_type
    if backend.length_dependence is not None:
        return Trial(Decision(False, f"{kind} keeps a recurrent state, and {backend.length_dependence}"))
    narrow: list[float] = []
    wide: list[float] = []

    def timed(session: StockSession, tokens: Sequence[int]) -> Tensor:
        began = clock()
        rows = session.forward(tokens)
        (wide if len(tokens) > 1 else narrow).append(clock() - began)
        return rows

    decision = _compared(backend, timed)
    if not decision.value:
        return Trial(decision)
    one = statistics.median(narrow)
    return Trial(decision, sorted(wide)[-2] / one if one > 0 else None)


def _compared(backend: StockBackend, timed: Callable[[StockSession, Sequence[int]], Tensor]) -> Decision[bool]:
    """Compare logits; passes that go on from a state are run by `timed`."""
    kind, model = backend.config.model_type, backend.model
    probe = [(11 * i + 5) % backend.vocab for i in range(PROBE_TOKENS)]
    other = [(5 * i + 1) % backend.vocab for i in range(8)]
    try:
        stock = StockSession(backend)
        want = torch.cat([stock.forward(probe[:5]), *(timed(stock, [token]) for token in probe[5:])]).float()
        session, beside = RestoringSession(backend), RestoringSession(backend)
        rows = [session.forward(probe[:5])]
        beside.forward(other[:3])
        at = 5
        beside.forward(other[3:5])
        for width, stay in ((4, 4), (5, 1), (3, 0), (6, 3), (3, 3)):
            part = probe[at : at + stay] + other[: width - stay]
            rows.append(timed(session, part)[:stay])
            session.rollback(at + stay)
            if stay == 1:
                beside.rollback(4)
            at += stay
        session.rollback(3)
        again = session.forward(probe[3:at]).float()
    except DeviceError:
        raise
    except Exception as e:  # noqa: BLE001 - any failure of a foreign model
        line = (str(e).strip() or type(e).__name__).splitlines()[0][:120]
        return Decision(
            False, f"{kind} keeps a recurrent state, and doesn't read on in it ({type(e).__name__}: {line})"
        )
    got = torch.cat(rows).float()
    scale = max(1.0, float(want.nan_to_num().abs().max()))
    gap = max(_apart(got, want[:at]), _apart(again, want[3:at]))
    if not gap <= (1e-3 if model.dtype == torch.float32 else 0.08) * scale:
        return Decision(
            False, f"{kind} keeps a recurrent state, and passes of several tokens change logits (by {gap:.2g})"
        )
    if not backend.stock.cached.value:
        return Decision(
            True, "tested on loading: passes over the whole text give several tokens the logits of single ones"
        )
    return Decision(True, "tested on loading: the same logits after its state was copied and restored")


def _apart(got: Tensor, want: Tensor) -> float:
    return float(torch.where(got.isnan() & want.isnan(), 0.0, (got - want).abs()).max())
