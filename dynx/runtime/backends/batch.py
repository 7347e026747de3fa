"""Decodes several sequences in one cache of an eager model, each with its own length and its own rollback.

All rows share the columns of the cache: a pass writes the same columns in each, however many tokens a row has for it. What is
padding, or was rolled back, is a *hole*: a column that the attention mask hides from that row. Positions are passed explicitly
and count a row's own tokens, so holes move nothing. Where holes become a burden the rows are moved together (`_compact`).

    batch = BatchSession(backend)
    batch.admit(first)                           # a `BatchSession` after `prefill`
    rows = batch.forward([[5, 17], [3]])         # (2, 2, V); the second row's second entry means nothing
    batch.rollback([7, 9])                       # tokens that each row keeps

Stock modules are all that runs here, so which architectures it works for is found out by trying (`can_batch`): some compute
positions from columns, or attend to the latest columns rather than the latest tokens.

Letters in shapes: B rows, T tokens of the widest row, C columns, H heads, D head width, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dynx.errors import DeviceError
from dynx.runtime.backends.eager import PREFILL_CHUNK_TOKENS, CounterCache, EagerBackend, cache_argument
from dynx.runtime.decision import Decision
from dynx.runtime.memory import device_memory_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.runtime.backends.eager import CounterLayer

MAX_COLUMNS_PER_TOKEN = 1.25
"""Columns for each token of the longest row beyond which rows are moved together; moving costs about what a pass does."""

SPARE_COLUMNS = 16
"""Columns that are never worth moving rows for."""


class BatchSession:
    """Rows in an `EagerBackend`; it begins with none, and its rows are numbered from 0."""

    def __init__(self, backend: EagerBackend) -> None:
        self._backend = backend
        self._cache = CounterCache(backend.layers)
        self._columns: list[list[int]] = []  # by row: where its tokens are, in order
        self._seen = torch.zeros(0, 0, dtype=torch.bool, device=backend.device)  # (B, C): no hole
        self._end = 0  # columns in use
        parameters = inspect.signature(backend.model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_keep = "logits_to_keep" in parameters
        self._cache_name = cache_argument(backend.model)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row) for row in self._columns]

    @property
    def room(self) -> int | None:
        """Tokens that a pass may be wide before the longest row leaves the model's context; None without a limit."""
        limit = self._backend.context
        return None if limit is None else limit - max(self.lengths, default=0)

    def prefill(self, tokens: Sequence[int]) -> Tensor:
        """Run the prompt of the only sequence, in chunks; return the logits (V,) after it."""
        self._columns, self._seen = [[]], self._seen.new_zeros(1, 0)
        for start in range(0, len(tokens), PREFILL_CHUNK_TOKENS):
            out = self._pass([tokens[start : start + PREFILL_CHUNK_TOKENS]], keep=1)
        return out[0, -1]

    def forward(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append `tokens` to the rows, as many as each has; logits (B, T, V), of which row r's first len(tokens[r]) count."""
        width = max(map(len, tokens))
        limit = self._backend.context
        longest = max(self.lengths)
        crowded = self._end > MAX_COLUMNS_PER_TOKEN * longest + SPARE_COLUMNS or (
            limit is not None and self._end + width > limit
        )
        if crowded and self._end > longest:
            self._compact()
        return self._pass(tokens)

    def _pass(self, tokens: Sequence[Sequence[int]], keep: int | None = None) -> Tensor:
        device, start = self._backend.device, self._end
        width = max(map(len, tokens))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in tokens], device=device)
        steps = torch.arange(width, device=device)
        counts = torch.tensor([len(row) for row in tokens], device=device)
        mask = torch.cat([self._seen[:, :start], steps < counts[:, None]], dim=1)
        kwargs: dict[str, Any] = {"attention_mask": mask.long()}
        if self._takes_positions:
            positions = torch.tensor(self.lengths, device=device)[:, None] + steps
            limit = self._backend.context
            kwargs["position_ids"] = positions if limit is None else positions.clamp_max(limit - 1)
        if keep is not None and self._takes_keep:
            kwargs["logits_to_keep"] = keep
        self._cache.position = start
        kwargs[self._cache_name] = self._cache
        with torch.inference_mode(), device_memory_errors(device):
            out = self._backend.model(input_ids=ids, use_cache=True, return_dict=True, **kwargs)
        self._seen, self._end = mask, start + width
        for columns, row in zip(self._columns, tokens, strict=True):
            columns.extend(range(start, start + len(row)))
        logits: Tensor = out.logits
        return logits

    @torch.inference_mode()
    def rollback(self, lengths: Sequence[int]) -> None:
        """Keep the first `lengths` tokens of each row. This costs a mask; unused columns at the end are overwritten later."""
        rows: list[int] = []
        dropped: list[int] = []
        for r, (columns, length) in enumerate(zip(self._columns, lengths, strict=True)):
            rows.extend([r] * (len(columns) - length))
            dropped.extend(columns[length:])
            del columns[length:]
        if rows:
            self._seen[rows, dropped] = False
        self._trim()

    @torch.inference_mode()
    def admit(self, others: Sequence[BatchSession]) -> None:
        """Take over the rows of `others`, each of one row, as further rows."""
        end, first = max([self._end, *(other._end for other in others)]), len(self._columns)
        self._columns.extend([] for _ in others)
        self._seen = _framed(self._seen, len(self._columns), end)
        self._end = end
        for layer, *theirs in zip(self._layers, *(other._layers for other in others), strict=True):
            for name in ("keys", "values"):
                old, new = getattr(layer, name), [getattr(each, name) for each in theirs]
                capacity = max(end, 0 if old is None else old.shape[-2])
                shape = (len(self._columns), new[0].shape[1], capacity, new[0].shape[-1])
                grown = new[0].new_zeros(shape)
                if first:
                    grown[:first, :, : old.shape[-2]] = old
                setattr(layer, name, grown)
            layer.is_initialized = True
        for r, other in enumerate(others):
            self.replace(first + r, other)

    @torch.inference_mode()
    def replace(self, row: int, other: BatchSession) -> None:
        """Put the one row of `other` in the place of `row`."""
        before, count = self._end, other._end
        self._end = max(before, count)
        self._seen = _framed(self._seen, len(self._columns), self._end)
        for layer, theirs in zip(self._layers, other._layers, strict=True):
            for name in ("keys", "values"):
                new = getattr(theirs, name)
                kept = getattr(layer, name)
                if kept.shape[-2] < self._end:
                    grown = kept.new_empty(*kept.shape[:-2], self._end, kept.shape[-1])
                    grown[:, :, :before] = kept[:, :, :before]
                    setattr(layer, name, kept := grown)
                kept[:, :, before : self._end] = 0  # memory as it comes may hold NaN, which no mask hides
                kept[row, :, :count] = new[0, :, :count]
                kept[row, :, count : self._end] = 0
        self._columns[row] = list(other._columns[0])
        self._seen[row] = False
        self._seen[row, self._columns[row]] = True
        self._trim()

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """Forget a row; those after it move up."""
        left = [r for r in range(len(self._columns)) if r != row]
        del self._columns[row]
        self._seen = self._seen[left]
        for layer in self._layers:
            layer.keys, layer.values = _tensor(layer.keys)[left], _tensor(layer.values)[left]
        self._trim()

    @property
    def _layers(self) -> list[CounterLayer]:
        return cast("list[CounterLayer]", self._cache.layers)

    def _trim(self) -> None:
        self._end = max((columns[-1] + 1 for columns in self._columns if columns), default=0)
        self._seen = self._seen[:, : self._end]

    @torch.inference_mode()
    def _compact(self) -> None:
        """Move every row's tokens together, to end where the longest does."""
        end = max(self.lengths)
        index = torch.tensor(
            [(columns[:1] or [0]) * (end - len(columns)) + columns for columns in self._columns],
            device=self._backend.device,
        )  # (B, C); holes repeat a token, since what is there must be a number
        for layer in self._layers:
            for kept in (_tensor(layer.keys), _tensor(layer.values)):
                where = index[:, None, :, None].expand(-1, kept.shape[1], -1, kept.shape[-1])
                kept[:, :, :end] = kept.gather(2, where)
        self._columns = [list(range(end - len(columns), end)) for columns in self._columns]
        starts = torch.tensor([end - n for n in self.lengths], device=self._backend.device)
        self._seen = torch.arange(end, device=self._backend.device) >= starts[:, None]
        self._end = end


def can_batch(backend: Any) -> Decision[bool]:
    """Whether sequences in a batch get the logits that each gets alone, tested once for each backend on a few tokens."""
    if not isinstance(backend, EagerBackend):
        return Decision(False, f"{getattr(backend, 'name', 'this backend')} runs one sequence at a time")
    known = getattr(backend, "_batch_decision", None)
    if known is None:
        known = backend._batch_decision = _tried(backend)  # type: ignore[attr-defined]
    return cast("Decision[bool]", known)


def _tried(backend: EagerBackend) -> Decision[bool]:
    kind = backend.config.model_type
    if not backend.can_rollback.value:
        return backend.can_rollback
    if backend.keeps_states:
        return Decision(False, f"{kind} keeps a recurrent state, which rows of unequal lengths can't share")
    if backend.length_dependence is not None:
        return Decision(False, f"in {kind}, {backend.length_dependence}, and a batch would go by its longest")
    window = _window(backend)
    if window is not None:
        return Decision(False, f"{kind} attends to the latest {window} columns, which aren't tokens in a batch")
    try:
        gap, scale = _gap(backend)
    except DeviceError:
        raise
    except Exception as e:  # noqa: BLE001 - any failure of a foreign model means: one at a time
        return Decision(False, f"{kind} doesn't run in batches of unequal rows ({type(e).__name__})")
    tolerance = (1e-3 if backend.model.dtype == torch.float32 else 0.08) * max(1.0, scale)
    if not gap <= tolerance:  # also catches NaN
        return Decision(False, f"{kind} gives other logits in a batch of unequal rows (by {gap:.2g})")
    return Decision(True, "tested: the same logits side by side as alone")


def _window(backend: EagerBackend) -> int | None:
    """Return the attention window of a model in tokens, where it is shorter than the context; else None."""
    config = backend.config
    kinds = set(getattr(config, "layer_types", None) or ())
    for name, kind in (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention")):
        window = getattr(config, name, None)
        cut = kind in kinds if kinds else getattr(config, "use_sliding_window", True)
        if isinstance(window, int) and cut and (backend.context is None or window < backend.context):
            return window
    return None


@torch.inference_mode()
def _gap(backend: EagerBackend) -> tuple[float, float]:
    """Return the largest difference of logits between sequences in a batch and alone, and the largest logit."""
    texts = [[(7 * i + 3 + 5 * r) % backend.vocab for i in range(n)] for r, n in enumerate((14, 9, 11))]
    wants = []
    for text in texts:
        session = backend.open()
        wants.append(session.forward(text).float())
    firsts = []
    for text, prompt in zip(texts, (6, 3, 7), strict=True):
        firsts.append(BatchSession(backend))
        firsts[-1].prefill(text[:prompt])
    batch = BatchSession(backend)
    batch.admit(firsts[:2])
    gaps: list[float] = []

    def feed(*tokens: list[int]) -> None:
        starts = batch.lengths
        rows = batch.forward(tokens).float()
        for r, (start, new) in enumerate(zip(starts, tokens, strict=True)):
            if new == texts[names[r]][start : start + len(new)]:
                gaps.append((rows[r, : len(new)] - wants[names[r]][start : start + len(new)]).abs().max().item())

    names = [0, 1]
    feed(texts[0][6:9], texts[1][3:4])
    feed([1, 1], [2])  # draft tokens that are rejected
    batch.rollback([9, 4])
    feed(texts[0][9:10], texts[1][4:7])
    batch._compact()
    feed(texts[0][10:12], texts[1][7:8])
    batch.replace(0, firsts[2])
    names = [2, 1]
    feed(texts[2][7:11], texts[1][8:9])
    return max(gaps), max(want.abs().max().item() for want in wants)


def _framed(seen: Tensor, rows: int, columns: int) -> Tensor:
    """`seen` (B, C) with further rows and columns, all holes."""
    out = seen.new_zeros(rows, columns)
    out[: seen.shape[0], : seen.shape[1]] = seen[:, :columns]
    return out


def _tensor(buffer: Tensor | None) -> Tensor:
    if buffer is None:
        raise RuntimeError("rows before the first pass")
    return buffer
