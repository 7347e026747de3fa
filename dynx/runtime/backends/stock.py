"""Decodes sequences as transformers' own `generate` does, for models whose state dynx's cache can't hold.

The model's helpers prepare each step, with the cache that `generate` would make. Two things are found out by trying on load:

* whether steps with that cache give the logits of the whole text. Where they don't, each token is computed from the whole
  text instead; where that is inconsistent too, the model is refused;
* what a model keeps in its modules from one pass to the next (RecurrentGemma keeps its states there). A session takes
  that along, so that texts don't read each other's state.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from dynx.errors import DeviceError, UnsupportedModelError
from dynx.runtime.backends.interface import Session
from dynx.runtime.decision import Decision
from dynx.runtime.memory import device_memory_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from dynx.runtime.backends.length_dependence import LengthDependence

PROBE_TOKENS = 14
"""Tokens of the trial, more than the four that convolutions of recurrent models cover."""

Place = tuple["nn.Module", str]


class StockBackend(Protocol):
    """What a `StockSession` uses of the backend that opens it."""

    model: Any
    config: Any
    device: torch.device
    vocab: int
    cache_name: str

    @property
    def stock(self) -> Stock:
        """How the model decodes without dynx's cache."""

    @property
    def length_dependence(self) -> LengthDependence | None:
        """How logits depend on the sequence's length; None where they don't."""


class StockSession(Session):
    """A sequence decoded with the state that the model makes for itself; it can't go back.

    The first call is the prompt, in one pass; after it each token has a pass of its own.
    """

    pending = 0
    length = 0

    def __init__(self, backend: StockBackend, *, cached: bool | None = None, stock: Stock | None = None) -> None:
        """Decode with a cache (`cached`), or each token from the whole text; by default as the trial on load decided.

        `stock` describes the model, by default as that trial found.
        """
        self._backend = backend
        self._stock = stock = stock or backend.stock
        self._cached = stock.cached.value if cached is None else cached
        self._tokens: list[int] = []
        self._kwargs: dict[str, Any] = {"use_cache": self._cached}
        if self._cached and uses_default_cache(backend.model):
            self._kwargs[backend.cache_name] = DynamicCache(config=backend.config)
        parameters = inspect.signature(backend.model.forward).parameters
        self._takes_keep, self._placed = "logits_to_keep" in parameters, "position_ids" in parameters
        self._held = dict(stock.fresh)

    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """See `Session.forward`; the keyword arguments of each step come from transformers' own helpers."""
        first = len(tokens) if not self.length else 1
        rows = [self._step(tokens[:first], keep), *(self._step([token], 1) for token in tokens[first:])]
        out = rows[0] if len(rows) == 1 else torch.cat(rows)
        return out if keep is None else out[-keep:]

    def _step(self, tokens: Sequence[int], keep: int | None) -> Tensor:
        """One pass; logits (T, V), or the last `keep` rows where the model can leave out the others."""
        backend, model, held = self._backend, self._backend.model, self._held
        self._tokens.extend(tokens)
        ids = torch.tensor([self._tokens], device=backend.device)
        self._kwargs["attention_mask"] = torch.ones_like(ids)
        first = self.length == 0
        # The helpers of later steps count on by one token; longer ones are counted anew.
        if (
            (first or len(tokens) > 1)
            and (positions := getattr(model, "_prepare_position_ids_for_generation", None))
            and self._placed
        ):
            self._kwargs["position_ids"] = positions(ids, self._kwargs)
        inputs = model.prepare_inputs_for_generation(
            ids,
            is_first_iteration=first,
            next_sequence_length=None if first or not self._cached else len(tokens),
            **self._kwargs,
        )
        if self._takes_keep:
            inputs["logits_to_keep"] = keep or 0  # some models' helpers ask for the last row alone
        for (module, name), value in held.items():
            setattr(module, name, value)
        if backend.length_dependence is not None:
            backend.length_dependence.reset()
        with torch.inference_mode(), device_memory_errors(backend.device):
            out = model(**inputs, return_dict=True)
        for module, name in held:
            held[module, name] = _copied(getattr(module, name, None))
        self._kwargs = model._update_model_kwargs_for_generation(out, self._kwargs)
        self.length += len(tokens)
        rows: Tensor = out.logits[0]
        return rows[-len(tokens) :]

    def another(self) -> StockSession:
        """Start an empty sequence of the same kind."""
        return StockSession(self._backend, cached=self._cached, stock=self._stock)

    def rollback(self, length: int) -> None:
        """Refuse any length but the present one."""
        if length != self.length:
            raise UnsupportedModelError("this model's state can't be rolled back")

    def forward_early(self, tokens: Sequence[int], layers: int, *, logits: bool = True) -> Tensor | None:
        """Refuse: stateful models have no early exit."""
        raise UnsupportedModelError("this model has no early exit")

    def complete(self, count: int | None = None) -> Tensor:
        """Refuse: stateful models have no early exit."""
        raise UnsupportedModelError("this model has no early exit")


@dataclass(frozen=True)
class Stock:
    """How a model decodes with transformers' own cache."""

    cached: Decision[bool]
    fresh: Mapping[Place, Any] = field(default_factory=dict)
    """State that modules keep between passes, with its value before the first."""

    @classmethod
    def of(cls, backend: StockBackend) -> Stock:
        """Test the model on a few tokens. Raises UnsupportedModelError with the reason where no way is consistent."""
        with torch.inference_mode():
            return _tried(backend)


def _tried(backend: StockBackend) -> Stock:
    kind, model = backend.config.model_type, backend.model
    probe = [(7 * i + 3) % backend.vocab for i in range(PROBE_TOKENS)]
    ids = torch.tensor([probe], device=backend.device)
    stock, why = Stock(Decision(True, "tested on loading: the same logits with the model's own cache as without")), ""
    if backend.length_dependence is not None and backend.length_dependence.limit < PROBE_TOKENS:
        return stock  # a cache keeps what a shorter text rotated: `generate`'s logits, and not those of the whole text
    try:
        model(input_ids=ids, use_cache=False)  # leaves no state of an earlier text
        before = _kept(model)
        _steps(StockSession(backend, cached=True, stock=stock), probe)
        stock = Stock(stock.cached, {place: value for place, value in before.items() if _changed(*place, value)})
        anew = _steps(StockSession(backend, cached=False, stock=stock), probe)
        gap, limit = _gap(
            backend, _steps(StockSession(backend, cached=True, stock=stock), probe, beside=bool(stock.fresh)), anew
        )
        if not gap <= limit:  # also catches NaN
            why = f"{kind} gives other logits with its own cache than without (by {gap:.2g})"
    except DeviceError:
        raise
    except Exception as e:  # noqa: BLE001 - any failure of a foreign model
        why = f"{kind} doesn't run on its own cache ({type(e).__name__}: {_line(e)})"
    if not why:
        return stock
    try:
        anew = _steps(StockSession(backend, cached=False, stock=stock), probe)
        whole: Tensor = model(input_ids=ids, use_cache=False).logits[0, PROBE_TOKENS - len(anew) :].float()
        gap, limit = _gap(backend, anew, whole)
    except DeviceError:
        raise
    except Exception as e:
        raise UnsupportedModelError(f"{why}, and not without ({type(e).__name__}: {_line(e)})") from e
    if not gap <= limit:
        raise UnsupportedModelError(f"{why}, and a token's logits change with the tokens after it (by {gap:.2g})")
    return Stock(Decision(False, f"{why}, so each token is computed from the whole text"), stock.fresh)


def _gap(backend: StockBackend, got: Tensor, want: Tensor) -> tuple[float, float]:
    """Return the largest difference of logits, and the largest that rounding explains."""
    tolerance = 1e-3 if backend.model.dtype == torch.float32 else 0.08
    apart = torch.where(got.isnan() & want.isnan(), 0.0, (got - want).abs())  # a model may write NaN by itself
    return float(apart.max()), tolerance * max(1.0, float(want.nan_to_num().abs().max()))


def _steps(session: StockSession, probe: Sequence[int], *, beside: bool = False) -> Tensor:
    """Logits after a prompt of 4 tokens, and after each of the tokens behind it (T, V), float32.

    `beside`: another text is written between the tokens of this one.
    """
    rows = [session.forward(probe[:4], keep=1)]
    other = session.another() if beside else None
    if other is not None:
        other.forward(probe[2:5])
    for token in probe[4:]:
        rows.append(session.forward([token]))
        if other is not None:
            other.forward(probe[:1])
    return torch.cat(rows).float()


def uses_default_cache(model: Any) -> bool:
    """Whether `generate` makes a `DynamicCache` for this model; others make their own state."""
    asked: Callable[[], bool] | None = getattr(model, "_supports_default_dynamic_cache", None)
    return asked is None or bool(asked())


def _kept(model: nn.Module) -> dict[Place, Any]:
    """Everything beside weights that modules hold and that a pass may replace or write to."""
    found: dict[Place, Any] = {}
    for module in model.modules():
        for name, value in (*vars(module).items(), *module._buffers.items()):
            if value is None or isinstance(value, (Tensor, bool, int, float)):
                found[module, name] = _copied(value)
    return found


def _changed(module: nn.Module, name: str, before: Any) -> bool:
    now = getattr(module, name, None)
    if isinstance(now, Tensor) and isinstance(before, Tensor):
        return now.shape != before.shape or not torch.equal(now, before)
    return type(now) is not type(before) or bool(now != before)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
