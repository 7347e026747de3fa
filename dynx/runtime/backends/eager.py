"""Any transformers decoder, run eagerly: the model's own `forward`, dynx's key-value cache.

Two small pieces of machinery make stock modules fit the `Session` interface without re-implementing any of them:

* `CounterCache`, a transformers `Cache` whose buffers are allocated ahead and whose length is one integer that the
  session owns. Writing is a slice copy, rolling back is an assignment. Sliding-window layers keep all positions (the
  model masks those outside its window), otherwise a rollback could not restore what the window dropped.
* `DepthGate`, installed over the decoder blocks on first use of an early exit. It lets only blocks first … last-1 run and
  passes everything else through, so that masks, positions and rotary tables still come from the model itself.

A model with a recurrent state keeps its own cache, which `RestoringSession` copies and restores.

All are checked against the unmodified model before they are trusted (`_verified`); a model that disagrees is decoded by
`transformers`' own helpers in `StockSession`, plainly, with the reason. Where logits depend on the length of the whole text,
passes are cut where transformers' `generate` would cut them (`length_dependence`).
"""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from dynx.errors import DeviceError, UnsupportedModelError
from dynx.runtime.backends import hidden_states, restored
from dynx.runtime.backends.depth_gate import DepthGate, decoder_blocks
from dynx.runtime.backends.eager_tree import TreeSession, tried
from dynx.runtime.backends.interface import Backend, Session
from dynx.runtime.backends.length_dependence import DYNAMIC, LONGROPE, TRIAL_LIMIT_TOKENS, find, growing
from dynx.runtime.backends.restored import RestoringSession
from dynx.runtime.backends.stock import Stock, StockSession
from dynx.runtime.decision import Decision
from dynx.runtime.memory import device_memory_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.runtime.backends.length_dependence import LengthDependence

PREFILL_CHUNK_TOKENS = 1024
"""Prompt tokens per forward: bounds the memory of the attention mask on long prompts."""

CACHE_HEADROOM_TOKENS = 256
"""Positions a cache buffer grows by at least; growth doubles, so copying stays linear in the final length."""


class CounterLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, (1, heads, capacity, head width), valid up to the owner's position."""

    is_sliding = False
    is_croppable = True

    keys: Tensor | None
    values: Tensor | None

    def __init__(self, owner: CounterCache) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: `update` allocates."""

    def _grown(self, old: Tensor | None, new: Tensor, end: int) -> Tensor:
        if old is not None and old.shape[-2] >= end:
            return old
        start = self.owner.position
        capacity = max(end + CACHE_HEADROOM_TOKENS, 2 * (0 if old is None else old.shape[-2]))
        grown = new.new_empty(*new.shape[:-2], capacity, new.shape[-1])
        if old is not None:
            grown[..., :start, :] = old[..., :start, :]
        return grown

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write at the owner's position; returns everything up to and including what was written."""
        start = self.owner.position
        end = start + key_states.shape[-2]
        self.keys = self._grown(self.keys, key_states, end)
        self.values = self._grown(self.values, value_states, end)
        self.is_initialized = True
        self.keys[..., start:end, :] = key_states
        self.values[..., start:end, :] = value_states
        return self.keys[..., :end, :], self.values[..., :end, :]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a query of this length sees."""
        return self.owner.position + query_length, 0

    def get_seq_length(self) -> int:
        """Positions before the call in progress."""
        return self.owner.position

    def get_max_length(self) -> int:
        """Return -1: no limit."""
        return -1


class CounterCache(Cache):  # type: ignore[misc]
    """A key-value cache whose length is one number that its session sets."""

    def __init__(self, layers: int) -> None:
        self.position = 0
        super().__init__(layers=[CounterLayer(self) for _ in range(layers)])


class EagerSession(TreeSession, Session):
    """A sequence in an `EagerBackend`."""

    _backend: EagerBackend

    def __init__(self, backend: EagerBackend) -> None:
        self._backend = backend
        self._cache = CounterCache(backend.layers)
        self._length = 0
        self._waiting: list[int] = []  # tokens whose later layers have not run
        self._states: list[Tensor] = []  # their hidden states after layer `_depth`, each (1, T, D)
        self._depth = 0

    @property
    def length(self) -> int:
        """Positions that every layer holds."""
        return self._length

    @property
    def pending(self) -> int:
        """Positions that only the first layers hold."""
        return len(self._waiting)

    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """See `Session.forward`."""
        rows = []
        for start in range(0, len(tokens), PREFILL_CHUNK_TOKENS):
            chunk = tokens[start : start + PREFILL_CHUNK_TOKENS]
            self._cache.position = self._length
            if keep is not None and len(tokens) - (start + len(chunk)) >= keep:
                self._backend.run_body(chunk, self._cache)
            else:
                rows.append(self._backend.run(chunk, self._cache, keep))
            self._length += len(chunk)
        out = rows[0] if len(rows) == 1 else torch.cat(rows)
        return out if keep is None else out[-keep:]

    def rollback(self, length: int) -> None:
        """See `Session.rollback`."""
        if length > self._length:
            raise ValueError(f"can't roll forward from {self._length} to {length}")
        self._length = length
        self._waiting.clear()
        self._states.clear()

    def forward_early(self, tokens: Sequence[int], layers: int, *, logits: bool = True) -> Tensor | None:
        """See `Session.forward_early`."""
        if self._waiting and layers != self._depth:
            raise ValueError("pending positions stopped at another layer")
        gate = self._backend.gate
        self._depth = layers
        self._cache.position = self._length + len(self._waiting)
        gate.first, gate.last = 0, layers
        try:
            rows = None
            if logits:
                rows = self._backend.run(tokens, self._cache, None)
            else:
                self._backend.run_body(tokens, self._cache)
            if gate.captured is None:
                raise UnsupportedModelError("the decoder ran without passing through its blocks")
            self._states.append(gate.captured)
        finally:
            gate.open()
        self._waiting.extend(tokens)
        return rows

    def complete(self, count: int | None = None) -> Tensor:
        """See `Session.complete`."""
        gate = self._backend.gate
        tokens = self._waiting if count is None else self._waiting[:count]
        self._cache.position = self._length
        states = self._states[0] if len(self._states) == 1 else torch.cat(self._states, dim=1)  # (1, pending, D)
        gate.first, gate.last, gate.resume = self._depth, gate.depth, states[:, : len(tokens)]
        try:
            rows = self._backend.run(tokens, self._cache, None)
        finally:
            gate.open()
        self._length += len(tokens)
        self._waiting.clear()
        self._states.clear()
        return rows


class LengthDependentSession(EagerSession):
    """A sequence whose logits depend on its length, cut into passes as `generate` cuts it.

    The first call is the prompt, in one pass.
    """

    def __init__(self, backend: EagerBackend, dependence: LengthDependence) -> None:
        super().__init__(backend)
        self._length_dependence = dependence
        self._tokens: list[int] = []
        self._read = 0  # tokens of the latest pass that began at position 0: the prompt, or the text read again
        self._stale = False  # whether tokens are held as a longer prompt had them

    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """See `Session.forward`."""
        rows, dependence, at = [], self._length_dependence, 0
        while at < len(tokens):
            start = self._length
            if start and not dependence.rereads and self._stale:
                self._pass(0, self._tokens, 1)
            part = tokens[at : at + (dependence.max_pass_length(start) or len(tokens))] if start else tokens
            self._tokens.extend(part)
            again = dependence.rereads and (start >= dependence.limit) != (self._read > dependence.limit)
            if again:
                rows.append(self._pass(0, self._tokens, len(part)))
            else:
                rows.append(self._pass(start, part, len(part) if keep is None else min(keep, len(part))))
            at += len(part)
        out = rows[0] if len(rows) == 1 else torch.cat(rows)
        return out if keep is None else out[-keep:]

    def _pass(self, start: int, tokens: Sequence[int], keep: int) -> Tensor:
        """One pass from position `start` on; logits (keep, V)."""
        self._cache.position = start
        self._length_dependence.reset()
        rows = self._backend.run(tokens, self._cache, keep)
        self._length = start + len(tokens)
        if start == 0:
            self._read, self._stale = len(tokens), False
        return rows[-keep:]

    def rollback(self, length: int) -> None:
        """See `Session.rollback`."""
        super().rollback(length)
        del self._tokens[length:]
        dependence = self._length_dependence
        if length < self._read and self._read > dependence.limit:
            self._stale |= dependence.kind != LONGROPE or length <= dependence.limit

    def forward_early(self, tokens: Sequence[int], layers: int, *, logits: bool = True) -> Tensor | None:
        """Refuse: pending tokens may lie on both sides of a change."""
        raise UnsupportedModelError(self._backend.can_exit.reason)

    def complete(self, count: int | None = None) -> Tensor:
        """Refuse."""
        raise UnsupportedModelError(self._backend.can_exit.reason)


def cache_argument(model: Any) -> str:
    """Return the argument of a model's forward for its cache: `cache` from transformers 5.24 on, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class EagerBackend(Backend):
    """A transformers causal language model, as loaded.

    `trusted` skips the self-test of the cache (a stored profile says that it passed for these weights).
    """

    name = "torch-eager"

    def __init__(self, model: Any, *, trusted: bool = False) -> None:
        config = model.config.get_text_config(decoder=True)
        if getattr(config, "is_encoder_decoder", False):
            raise UnsupportedModelError(
                f"{config.model_type} is an encoder-decoder model",
                hint="generate supports decoder-only models (AutoModelForCausalLM), e.g. Llama, Qwen, Gemma, GPT-2",
            )
        self.model = model
        self.config = config
        self.device: torch.device = model.device
        self.precision = str(getattr(model, "dtype", torch.float32)).removeprefix("torch.")
        self.vocab = int(config.vocab_size)
        self.layers = int(config.num_hidden_layers)
        limit = getattr(config, "max_position_embeddings", None)
        # Frequencies computed for the length at hand have no longest text: transformers goes on beyond the original one.
        self.context = int(limit) if limit and growing(config) != DYNAMIC else None
        self._trusted = trusted
        self._tap: hidden_states.Tap | None = None
        self._takes_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.cache_name = cache_argument(model)
        self._body = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None

    def open(self) -> Session:
        """Start an empty sequence, with rollback where the model allows it. Raises UnsupportedModelError where decoding fails."""
        session = self._open()
        return session if self._tap is None else hidden_states.HiddenStateSession(session, self._tap)

    def _open(self) -> EagerSession | StockSession:
        if not self.can_rollback.value:
            return StockSession(self)
        if self.keeps_states:
            return RestoringSession(self)
        return (
            EagerSession(self)
            if self.length_dependence is None
            else LengthDependentSession(self, self.length_dependence)
        )

    @cached_property
    def stock(self) -> Stock:
        """How the model decodes without dynx's cache. Raises UnsupportedModelError where it does so in no consistent way."""
        return Stock.of(self)

    @property
    def length_dependence(self) -> LengthDependence | None:
        """How logits depend on the text's length; None where they don't, or where `can_rollback` says why not."""
        return self._length_dependence[0]

    @cached_property
    def _length_dependence(self) -> tuple[LengthDependence | None, str]:
        try:
            return find(self.model), ""
        except UnsupportedModelError as e:
            return None, str(e)
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            kind = self.config.model_type
            return (
                None,
                f"{kind} depends on the text's length in an unknown way ({type(e).__name__})",
            )

    def max_pass_length(self, start: int) -> int | None:
        """See `Backend.max_pass_length`."""
        return None if self.length_dependence is None else self.length_dependence.max_pass_length(start)

    @property
    def state(self) -> Decision[str] | None:
        """See `Backend.state`. Raises UnsupportedModelError for a model that can't be decoded."""
        if not self.can_rollback.value or self.keeps_states:
            own = self.stock.cached
            why = f"{own.reason}; {self.can_rollback.reason}" if self.can_rollback.value else own.reason
            return Decision("the model's own" if own.value else "none", why)
        dependence = self.length_dependence
        if dependence is None:
            return None
        said = f"{dependence}: beyond {dependence.limit} tokens {dependence.beyond}, and there are no batches"
        return Decision("key-value cache", f"{said}; {self.can_rollback.reason}")

    def run(self, tokens: Sequence[int], cache: Cache, keep: int | None, **arguments: Any) -> Tensor:
        """One call of the whole model, with further `arguments`; returns logits (T, V) or (keep, V)."""
        kwargs = {"logits_to_keep": keep} if keep is not None and self._takes_keep else {}
        kwargs |= arguments
        ids = torch.tensor([tokens], device=self.device)
        with torch.inference_mode(), device_memory_errors(self.device):
            out = self.model(input_ids=ids, **{self.cache_name: cache}, use_cache=True, return_dict=True, **kwargs)
        logits: Tensor = out.logits[0]
        return logits

    def run_body(self, tokens: Sequence[int], cache: Cache) -> None:
        """One call of the model without its head, for its effect on the cache."""
        if self._body is None or self._body is self.model:
            self.run(tokens, cache, 1)
            return
        ids = torch.tensor([tokens], device=self.device)
        with torch.inference_mode(), device_memory_errors(self.device):
            self._body(input_ids=ids, **{cache_argument(self._body): cache}, use_cache=True, return_dict=True)

    @cached_property
    def can_rollback(self) -> Decision[bool]:
        """Whether dynx's cache reproduces this model, tested once on a few tokens."""
        if fault := self._length_dependence[1]:
            return Decision(False, fault)
        if self.keeps_states:
            return self._restored.can_rollback
        if self._trusted and self.length_dependence is None:
            return Decision(True, "tested when it was calibrated")
        return self._verified()

    @torch.inference_mode()
    def _verified(self) -> Decision[bool]:
        kind = self.config.model_type
        probe = [(7 * i + 3) % self.vocab for i in range(9)]
        try:
            want = self.model(input_ids=torch.tensor([probe], device=self.device), use_cache=False).logits[0].float()
            session = EagerSession(self)
            session.forward(probe[:4])
            session.forward([probe[0], probe[0]])
            session.rollback(4)
            got = torch.cat([session.forward(probe[4:8]), session.forward(probe[8:])]).float()
        except DeviceError:
            raise
        except Exception as e:  # noqa: BLE001 - any failure of a foreign model means: leave it alone
            return Decision(False, f"{kind} doesn't run on dynx's key-value cache ({type(e).__name__})")
        # A cache in the wrong place changes logits by their own scale; rounding doesn't.
        if got.shape != want[4:].shape:
            return Decision(False, f"{kind} gives other rows of logits than one for each token")
        gap = (got - want[4:]).abs().max().item()
        tolerance = (1e-3 if self.model.dtype == torch.float32 else 0.08) * max(1.0, want.abs().max().item())
        if not gap <= tolerance:  # also catches NaN
            return Decision(False, f"{kind} gives other logits on dynx's key-value cache (by {gap:.2g})")
        return (
            Decision(True, "tested on loading: same logits after a rollback")
            if self.length_dependence is None
            else self._turned()
        )

    def _turned(self) -> Decision[bool]:
        """Whether passes across the length from which logits depend on it give what transformers' own steps give."""
        kind, dependence = self.config.model_type, self._length_dependence[0]
        assert dependence is not None  # noqa: S101
        probe = [(11 * i + 5) % self.vocab for i in range(3 * TRIAL_LIMIT_TOKENS)]
        worst, scale = 0.0, 1.0
        try:
            with dependence.lowered():
                for prompt in (TRIAL_LIMIT_TOKENS - 2, TRIAL_LIMIT_TOKENS + 3):
                    stock, session = StockSession(self, cached=True), LengthDependentSession(self, dependence)
                    want = torch.cat([stock.forward(probe[:prompt]), stock.forward(probe[prompt:])]).float()
                    rows = [session.forward(probe[:prompt])]
                    session.forward(probe[:4])  # to be forgotten, across the change
                    session.rollback(prompt)
                    rows += [session.forward(probe[prompt : prompt + 5]), session.forward(probe[prompt + 5 :])]
                    worst = max(worst, (torch.cat(rows).float() - want).abs().nan_to_num(torch.inf).max().item())
                    scale = max(scale, want.abs().max().item())
        except DeviceError:
            raise
        except Exception as e:  # noqa: BLE001
            return Decision(False, f"{kind} can't be tried where {dependence} ({type(e).__name__})")
        if worst > (1e-3 if self.model.dtype == torch.float32 else 0.08) * scale:
            return Decision(False, f"{kind} gives other logits where {dependence} (by {worst:.2g})")
        return Decision(True, "tested on loading: transformers' logits across the length from which they depend on it")

    @cached_property
    def _restored(self) -> restored.Trial:
        return restored.tried(self)

    @property
    def replays(self) -> bool:
        """See `Backend.replays`."""
        return self.keeps_states and self.can_rollback.value and self.stock.cached.value

    @property
    def first_wide(self) -> float | None:
        """See `Backend.first_wide`."""
        return self._restored.first_wide if self.replays else None

    @cached_property
    def keeps_states(self) -> bool:
        """Whether a session keeps states that can't be cut at a position; it is rolled back by copies of them."""
        return restored.keeps_states(self.model, self.config)

    @cached_property
    def gate(self) -> DepthGate:
        """The depth gate, installed over the decoder blocks when first asked for."""
        blocks = decoder_blocks(self.model)
        if blocks is None or len(blocks) != self.layers:
            raise UnsupportedModelError(f"no list of {self.layers} decoder blocks in {type(self.model).__name__}")
        return DepthGate(blocks)

    @cached_property
    def can_tree(self) -> Decision[bool]:
        """Whether a pass over a tree gives the logits of its chains, tested once."""
        return tried(self, EagerSession)

    def trust_trees(self) -> None:
        """See `Backend.trust_trees`."""
        self.can_tree = Decision(True, "tested when it was calibrated")

    @cached_property
    def can_record(self) -> Decision[bool]:
        """See `Backend.can_record`."""
        return hidden_states.tried(self)

    def record(self, layers: Sequence[int]) -> None:
        """See `Backend.record`."""
        self._tap = hidden_states.Tap(self.model, layers)

    @cached_property
    def can_exit(self) -> Decision[bool]:
        """Whether running the blocks in two parts gives the whole model's logits, tested once."""
        if not self.can_rollback.value:
            return self.can_rollback
        if self.length_dependence is not None:
            return Decision(False, f"{self.length_dependence}, so a pass can't be left early and completed later")
        if self.keeps_states:
            return Decision(
                False, f"{self.config.model_type} keeps a recurrent state, which an early exit would leave behind"
            )
        if self.layers < 2:
            return Decision(False, "a model of one layer has no early exit")
        probe = [(5 * i + 2) % self.vocab for i in range(5)]
        try:
            _ = self.gate  # installed before the whole model runs, which shows what the blocks return
            want = self.open().forward(probe).float()
            session = EagerSession(self)
            session.forward(probe[:2])
            session.forward_early(probe[2:4], 1)
            session.forward_early(probe[4:], 1, logits=False)
            gap = (session.complete().float() - want[2:]).abs().max().item()
        except DeviceError:
            raise
        except Exception as e:  # noqa: BLE001
            return Decision(False, f"{self.config.model_type} can't be run in two parts ({type(e).__name__}: {e})")
        tolerance = (1e-3 if self.model.dtype == torch.float32 else 0.08) * max(1.0, want.abs().max().item())
        if not gap <= tolerance:
            return Decision(False, f"{self.config.model_type} gives other logits when run in two parts (by {gap:.2g})")
        return Decision(True, "tested: two parts give the whole model's logits")
