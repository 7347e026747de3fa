"""Decodes a transformers model on a GPU with CUDA graphs: short passes are captured once and replayed.

A pass over a few tokens is hundreds of small kernels, and the CPU takes longer to launch them one by one than the GPU takes to
run them. A graph launches them at once. A captured graph is fixed: its addresses, its shapes, and every number that Python
held. So tokens and their position are written into tensors beforehand, the key-value cache has its full length from the start,
masked where nothing is written yet, and a rollback changes the position.

A graph is captured for each of a few numbers of tokens; a pass between two of them is padded to the larger one. A sequence that
outgrows its cache moves to one twice as long, so attention never reads more than twice what it needs. Caches and their graphs are
reused for the next sequence. Prefill, early exits, and the last positions of a model's context run without graphs.

Replayed passes are compared with the unmodified model at several positions before they are used.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from dynx.errors import DeviceError, UnsupportedModelError
from dynx.runtime.backends.eager import EagerBackend, EagerSession
from dynx.runtime.backends.logit_check import largest_difference
from dynx.runtime.memory import device_memory_errors, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.runtime.backends.stock import StockSession

    Pass = Callable[[], Tensor]
    """A pass to capture: it reads tensors that it holds and returns one."""

CAPTURED_TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of tokens for which a graph is captured. Longer passes are prefill; launching is a small part of their time."""

INITIAL_CACHE_TOKENS = 512
"""Length of a new cache, in positions."""

CHECKED_TOKENS = (1, 3, 5, 8)
"""Tokens of the passes that are compared with the unmodified model."""

WARMUP_PASSES = 2
"""Passes run before one is captured, in which libraries choose kernels and allocate memory."""


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, (1, heads, length, head width), all of them handed out whatever is valid."""

    is_sliding = False
    is_croppable = True
    is_compileable = True  # so that transformers masks what lies ahead of a single token too

    keys: Tensor | None
    values: Tensor | None

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Zeros: what is masked must be a number."""
        self.keys, self.values = (
            states.new_zeros(*states.shape[:-2], self.owner.length, states.shape[-1])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write at the owner's place; returns the whole."""
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.keys, self.values
        if keys is None or values is None:
            raise RuntimeError("unreachable: made above")
        at = self.owner.place + torch.arange(key_states.shape[-2], device=keys.device)
        keys.index_copy_(2, at, key_states)
        values.index_copy_(2, at, value_states)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a query sees, mask aside."""
        return self.owner.length, 0

    def get_seq_length(self) -> Tensor:
        """Positions before the call in progress: where tensors are, so that a captured pass reads it anew each time."""
        return self.owner.place

    def get_max_length(self) -> int:
        """All of it."""
        return self.owner.length


class SlotCache(Cache):  # type: ignore[misc]
    """A key-value cache of a fixed length, and the passes that were captured with it."""

    def __init__(self, layers: int, length: int, device: torch.device) -> None:
        self.length = length
        self.place = torch.zeros((), dtype=torch.long, device=device)
        self.captured: dict[
            int, tuple[Tensor, Pass]
        ] = {}  # by width: where its tokens (1, width) go, and what replays it
        self._position = 0
        super().__init__(layers=[SlotLayer(self) for _ in range(layers)])

    @property
    def position(self) -> int:
        """Positions before the next call."""
        return self._position

    @position.setter
    def position(self, value: int) -> None:
        self._position = value
        with torch.inference_mode():
            self.place.fill_(value)

    def take_over(self, other: SlotCache, count: int) -> None:
        """Hold the first `count` positions of `other`."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if theirs.keys is None:
                continue
            if mine.keys is None:
                mine.lazy_initialization(theirs.keys, theirs.values)
            mine.keys[..., :count, :] = theirs.keys[..., :count, :]
            mine.values[..., :count, :] = theirs.values[..., :count, :]


def load(model: Any, *, trusted: bool = False, capture: Callable[[Pass], Pass] | None = None) -> CudaGraphBackend:
    """`model`, which stays as it is, with passes captured by `capture` (by default the device's own way).

    Raises UnsupportedModelError with the reason where the device or the model can't, or where replays give other logits.
    """
    backend = CudaGraphBackend(model, capture or capturer(model.device), trusted=trusted)
    if not backend.can_rollback.value:
        raise UnsupportedModelError(backend.can_rollback.reason)
    if backend.keeps_states:
        raise UnsupportedModelError(
            f"{backend.config.model_type} keeps a recurrent state, which PyTorch rolls back alone"
        )
    if backend.length_dependence is not None:
        raise UnsupportedModelError(f"in {backend.config.model_type}, {backend.length_dependence}")
    kind = backend.config.model_type
    try:
        found = None if trusted else backend.difference()
    except (DeviceError, UnsupportedModelError):
        raise
    except Exception as e:  # a foreign model's code, and a driver's, may raise anything
        if is_out_of_memory(e):
            raise
        raise UnsupportedModelError(f"{kind} can't be captured ({type(e).__name__})") from e
    if found is not None:
        raise UnsupportedModelError(f"{kind} gives other logits when it is replayed (by {found:.2g})")
    return backend


def capturer(device: torch.device) -> Callable[[Pass], Pass]:
    """Return a function that captures a pass on a device. Raises UnsupportedModelError where this PyTorch can't."""
    library = getattr(torch, device.type, None)
    kind = getattr(library, f"{device.type.upper()}Graph", None)
    if library is None or kind is None:
        raise UnsupportedModelError(f"torch {torch.__version__} captures no graphs on {device.type}")
    pool = library.graph_pool_handle()

    def capture(run: Pass) -> Pass:
        aside = library.Stream(device)
        aside.wait_stream(library.current_stream(device))
        with library.stream(aside):
            for _ in range(WARMUP_PASSES):
                run()
        library.current_stream(device).wait_stream(aside)
        graph = kind()
        with library.graph(graph, pool=pool):
            out = run()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    return capture


class CudaGraphBackend(EagerBackend):
    """A transformers model whose short passes are CUDA graphs."""

    name = "torch-graphs"

    def __init__(self, model: Any, capture: Callable[[Pass], Pass], *, trusted: bool = False) -> None:
        super().__init__(model, trusted=trusted)
        self._capture = capture
        self._free: list[SlotCache] = []

    def open(self) -> CudaGraphSession | StockSession:
        """Start an empty sequence."""
        return CudaGraphSession(self) if self.can_rollback.value else super().open()  # type: ignore[return-value]

    def take(self, length: int) -> SlotCache:
        """Take a free cache of at least `length` positions, or allocate one."""
        fitting = [cache for cache in self._free if cache.length >= length]
        if fitting:
            best = min(fitting, key=lambda cache: cache.length)
            self._free.remove(best)
            return best
        size = INITIAL_CACHE_TOKENS
        while size < length:
            size *= 2
        with device_memory_errors(self.device):
            return SlotCache(self.layers, size, self.device)

    def give_back(self, cache: SlotCache) -> None:
        """Return `cache` for other sequences."""
        self._free.append(cache)

    def run(self, tokens: Sequence[int], cache: Cache, keep: int | None, **arguments: Any) -> Tensor:
        """See `EagerBackend.run`: replayed, where a captured pass is wide enough and ends within the context."""
        count = len(tokens)
        width = next((w for w in CAPTURED_TOKENS if w >= count), None)
        stock = bool(arguments) or self._parted
        if stock or not isinstance(cache, SlotCache) or width is None or self._ends(cache.position + width):
            return super().run(tokens, cache, keep, **arguments)
        with torch.inference_mode(), device_memory_errors(self.device):
            if width not in cache.captured:
                cache.captured[width] = self._captured(cache, width)
            ids, replay = cache.captured[width]
            ids[0, :count] = torch.tensor(tokens)
            rows = replay()[:count]
            return (rows if keep is None else rows[-keep:]).clone()  # the next replay writes over them

    @property
    def _parted(self) -> bool:
        """Whether only some of the layers are to run."""
        gate = self.__dict__.get("gate")
        return gate is not None and (gate.first, gate.last) != (0, gate.depth)

    def _ends(self, end: int) -> bool:
        """Whether a pass up to position `end` leaves the context: a position that was never learned can't be looked up."""
        return self.context is not None and end > self.context

    def _captured(self, cache: SlotCache, width: int) -> tuple[Tensor, Pass]:
        ids = torch.zeros(1, width, dtype=torch.long, device=self.device)

        def run() -> Tensor:
            out = self.model(input_ids=ids, **{self.cache_name: cache}, use_cache=True, return_dict=True)
            logits: Tensor = out.logits[0]
            return logits

        return ids, self._capture(run)

    @torch.inference_mode()
    def difference(self) -> float | None:
        """Return the largest difference of a logit from the unmodified model's beyond rounding; None where there is none."""
        start = 11
        probe = [(7 * i + 3) % self.vocab for i in range(2 * start + max(CHECKED_TOKENS))]
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.08
        for begin in (start, 2 * start):  # what was captured at the first is replayed at the second
            found = largest_difference(self, probe[: begin + max(CHECKED_TOKENS)], begin, CHECKED_TOKENS)
            if not found.gap <= tolerance * found.scale:  # also catches NaN
                return found.gap
        return None


class CudaGraphSession(EagerSession):
    """A sequence in a `CudaGraphBackend`."""

    _backend: CudaGraphBackend
    _cache: SlotCache

    def __init__(self, backend: CudaGraphBackend) -> None:
        super().__init__(backend)
        self._hold(backend.take(INITIAL_CACHE_TOKENS))

    def _hold(self, cache: SlotCache) -> None:
        self._cache = cache
        self._release = weakref.finalize(self, self._backend.give_back, cache)
        self._release.atexit = False

    def _reserve(self, count: int) -> None:
        """Room for `count` tokens behind those that there are, and for what a pass over them is padded with."""
        need = self._length + len(self._waiting) + count + max(CAPTURED_TOKENS)
        if need <= self._cache.length:
            return
        larger = self._backend.take(need)
        with torch.inference_mode():
            larger.take_over(self._cache, self._length + len(self._waiting))
        self._release()
        self._hold(larger)

    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """See `Session.forward`."""
        self._reserve(len(tokens))
        return super().forward(tokens, keep=keep)

    def forward_early(self, tokens: Sequence[int], layers: int, *, logits: bool = True) -> Tensor | None:
        """See `Session.forward_early`."""
        self._reserve(len(tokens))
        return super().forward_early(tokens, layers, logits=logits)
