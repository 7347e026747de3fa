"""A transformers decoder on OpenVINO's kernels.

Sessions share one pool of key-value blocks (`pool`) and one stream of passes. The attention of `openvino.convert` writes at the
blocks and positions given to it, so a rollback is an assignment here as well, and a pass may hold many sequences with any
number of tokens each (`OpenVINOBackend.forward`); a session's own pass is the case of one.

A row of logits has the same bits whatever the other sequences of its pass are, and however many, with one distinction: whether
its own sequence has one token in the pass or several. In float32 a pass of one token altogether makes a third case.

`kept` converts models, compares them with the torch model before they are used, and keeps them.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.interface import Backend, Part, Session
from dynx.runtime.backends.openvino import paged, tree_pass
from dynx.runtime.backends.openvino.file_pages import give_back
from dynx.runtime.backends.openvino.pool import BlockPool
from dynx.runtime.backends.openvino.precision import (
    ACTIVATION_GROUP_SIZE,
    CACHE_PRECISION,
    MAX_LOGIT_ERROR,
    Precision,
)
from dynx.runtime.backends.padding import PaddedLength
from dynx.runtime.backends.picks import Picks
from dynx.runtime.decision import Decision
from dynx.runtime.memory import free_memory
from dynx.runtime.torch_on_use import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from dynx.runtime.backends.openvino.pool import BlockTable

WEIGHTS_FILE = "model.bin"
"""Name of the file beside `model.xml` that holds the weights of a converted model."""

PREFILL_CHUNK_TOKENS = 512
"""Prompt tokens per forward."""

MAX_POOL_SHARE = 0.5
"""Share of the memory that is free when the pool is made that it may take."""


def _threads_had(asked: int | None) -> int:
    """Threads that the plugin will have of those asked for: no more than processors that this process may use; 1 if unknown."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return min(asked or 1, allowed)


class OpenVINOBackend(Backend):
    """A converted model, compiled.

    `weights` is whatever owns the memory of weights that the graph only refers to.
    """

    name = "openvino"
    own_threads = True
    folder: Path | None = None
    """Where the converted model is kept, with notes of what was tried of it."""

    def __init__(self, graph: Any, *, precision: Precision, threads: int | None, weights: object = None) -> None:
        known = {key: graph.get_rt_info(["dynx", key]).astype(str) for key in ("layers", "vocab", "context", "kind")}
        self.layers, self.vocab = int(known["layers"]), int(known["vocab"])
        self.context: int | None = int(known["context"])
        self.last = int(known["context"]) - 1  # position that has a rotation or an embedding
        self.kind = known["kind"]
        self.precision: str = precision
        self._weights = weights
        self.windows = paged.has_windows(graph)
        paged.assemble(graph)
        paged.keep_apart(graph, _threads_had(threads))
        import openvino as ov

        core = ov.Core()
        able = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.compute = "bf16" if able and precision in ("bfloat16", "float16") else "f32"
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self.compute,
            "KV_CACHE_PRECISION": CACHE_PRECISION.get(precision, self.compute),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if precision in ACTIVATION_GROUP_SIZE:
            # In bfloat16 passes of two tokens and of three would give other bits, and drafts could decide near ties.
            known_group = int(graph.get_rt_info(["dynx", "group"]).astype(str)) if precision == "file" else 0
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = known_group or ACTIVATION_GROUP_SIZE[precision]
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self.compiled_model = core.compile_model(graph, "CPU", settings)
        shapes = {port.get_any_name(): port for port in self.compiled_model.inputs if "_cache." in port.get_any_name()}
        self.inputs = {port.get_any_name() for port in self.compiled_model.inputs}
        self.caches = {
            name: (port.get_element_type(), [d.get_length() for d in list(port.get_partial_shape())[1:]])
            for name, port in shapes.items()
        }
        self.block = next(iter(self.caches.values()))[1][1]
        self.padded_length = PaddedLength()  # of the one stream that all sessions share
        self._request = self.compiled_model.create_infer_request()
        self._told: dict[str, NDArray[Any]] = {}
        self._logits = np.empty((0, self.vocab), np.float32)
        self._repacked = False  # whether the plugin has made weights of its own from the file's
        self.pool = self.new_pool()

    def warm(self) -> None:
        """Run a pass, so that the next one finds its kernels made and its weights in their layout."""
        session = self.open()
        session.pick([0])
        session.close()
        self.padded_length = PaddedLength()

    def new_pool(self, limit: int | None = None) -> BlockPool:
        """Replace the pool by an empty one of at most `limit` blocks; by default as many as a share of free memory holds."""
        pool = BlockPool(self.caches, self._request.set_tensor, limit=limit)
        if limit is None and (free := free_memory()) is not None:
            pool.limit = max(1, int(MAX_POOL_SHARE * free / pool.block_bytes))
        self.pool = pool
        return pool

    @cached_property
    def can_rollback(self) -> Decision[bool]:
        """Always True: other models were refused on loading."""
        return Decision(True, "tested on loading: torch's logits after a rollback")

    @cached_property
    def can_exit(self) -> Decision[bool]:
        """Refuse."""
        return Decision(False, "OpenVINO compiles the model as a whole, so it can't be left early")

    @cached_property
    def can_tree(self) -> Decision[bool]:
        """Whether passes over trees give the logits of chains, tried once."""
        return tree_pass.tried(self, MAX_LOGIT_ERROR[self.precision])

    def set_padded_lengths(self, lengths: Mapping[int, int]) -> bool:
        """See `Backend.set_padded_lengths`."""
        self.padded_length.lengths = lengths
        return True

    def set_pass_seconds(self, seconds: Mapping[int, float], change: float = 0.0) -> None:
        """See `Backend.set_pass_seconds`."""
        self.padded_length.price(seconds, change)

    @property
    def prepared_tokens(self) -> int:
        """See `Backend.prepared_tokens`."""
        return self.padded_length.current

    def open(self) -> OpenVINOSession:
        """Start an empty sequence."""
        return OpenVINOSession(self, self.pool.open())

    @property
    def can_batch(self) -> Decision[bool]:
        """Always True: ragged passes are compared on loading."""
        return Decision(True, "tested on loading: torch's logits in passes of several sequences")

    def forward(self, parts: Sequence[Part]) -> list[Tensor | list[int]]:
        """See `Backend.forward`. Raises CacheFull with nothing changed."""
        asked = [len(part.tokens) for part in parts]
        if len(parts) == 1:
            counts = [self.padded_length(asked[0])]
        else:
            least = min(2, self.padded_length.lengths.get(1, 1))
            counts = [max(least, n) for n in asked]
            self.padded_length.set(sum(counts))
        tables = [part.session.table for part in parts]
        self._reserve(tables, counts)
        ids: list[int] = []
        wanted: list[int] = []
        for part, n, count in zip(parts, asked, counts, strict=True):
            first = len(ids)
            wanted.extend(range(first if part.keep is None else first + max(0, n - part.keep), first + n))
            ids.extend(part.tokens)
            ids.extend([0] * (count - n))
        if len(wanted) == 1 < len(ids):
            wanted *= 2  # the head rounds one row otherwise than several, as every product does
        if "qq_bias" in self.inputs:
            for name, value in zip(paged.TREE_INPUTS, tree_pass.masks(parts, counts), strict=True):
                self._tell(name, value)
        steps = [
            tree_pass.depths(part.parents, n) if part.parents else np.arange(n)
            for part, n in zip(parts, counts, strict=True)
        ]
        out = self._pass(ids, tables, counts, wanted, steps, scratch=all(part.picks for part in parts))
        rows: list[Tensor | list[int]] = []
        at = 0
        for part, n in zip(parts, asked, strict=True):
            part.session.table.length += n
            own = out[at : at + (n if part.keep is None else min(n, part.keep))]
            at += len(own)
            rows.append(Picks(own) if part.picks else torch.from_numpy(own))
        return rows

    def _reserve(self, tables: Sequence[BlockTable], counts: Sequence[int]) -> None:
        if len(tables) > 1:
            missing = [table.missing(table.length + count) for table, count in zip(tables, counts, strict=True)]
            self.pool.require(sum(missing))
        for table, count in zip(tables, counts, strict=True):
            table.reserve(table.length + count)

    def _pass(
        self,
        ids: list[int],
        tables: Sequence[BlockTable],
        sizes: Sequence[int],
        wanted: Sequence[int],
        steps: Sequence[NDArray[Any]],
        *,
        scratch: bool,
    ) -> NDArray[np.float32]:
        """Logits (rows wanted, V), with `scratch` in memory that the next pass overwrites.

        `steps` are the tokens' positions after the lengths of their sequences.
        Positions of padding are overwritten by the tokens that come to be there.
        """
        starts = np.array([table.length for table in tables], np.int32)
        counts = np.array(sizes, np.int32)
        ends = starts + counts
        used = -(-ends // self.block)
        positions = np.concatenate([first + more for first, more in zip(starts.tolist(), steps, strict=True)])
        self._tell("input_ids", np.asarray(ids, np.int64)[None])
        self._tell("position_ids", np.minimum(positions, self.last)[None])
        self._tell("rows", np.asarray(wanted, np.int64))
        self._tell("past_lens", starts)
        self._tell("subsequence_begins", _begins(counts))
        self._tell("max_context_len", ends.max())
        self._tell("block_indices_begins", _begins(used))
        blocks = [table.blocks[:n] for table, n in zip(tables, used.tolist(), strict=True)]
        self._tell("block_indices", np.concatenate(blocks))
        if not scratch:
            out = np.empty((len(wanted), self.vocab), np.float32)
        else:
            if len(self._logits) < len(wanted):
                self._logits = np.empty((len(wanted), self.vocab), np.float32)
            out = self._logits[: len(wanted)]
        self._request.set_output_tensor(0, _shared(out))
        self._request.infer()
        if self.folder is not None and not self._repacked and len(ids) > 1:
            self._repacked = True
            give_back(self.folder / WEIGHTS_FILE)
        return out

    def _tell(self, name: str, value: Any) -> None:
        """Give `value` to an input, through memory that it shares with us where the shape is as before."""
        held = self._told.get(name)
        if held is None or held.shape != value.shape:
            self._told[name] = value = np.array(value)
            self._request.set_tensor(name, _shared(value))
        else:
            held[...] = value


class OpenVINOSession(Session):
    """A sequence in an `OpenVINOBackend`."""

    pads = True
    pending = 0

    def __init__(self, backend: OpenVINOBackend, table: BlockTable) -> None:
        self._backend = backend
        self.table = table

    @property
    def length(self) -> int:
        """Positions that the cache holds."""
        return self.table.length

    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """See `Session.forward`; logits are float32."""
        rows = [torch.as_tensor(out) for out in self._passes(tokens, keep, picks=False)]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def pick(self, tokens: Sequence[int], *, keep: int | None = None) -> list[int]:
        """See `Session.pick`. The logits stay in memory that all passes share."""
        found = list(self._passes(tokens, keep, picks=True))
        return found[0] if len(found) == 1 and isinstance(found[0], list) else [int(t) for out in found for t in out]

    def _passes(self, tokens: Sequence[int], keep: int | None, *, picks: bool) -> Iterator[Tensor | list[int]]:
        """Read `tokens` in passes; yield the rows that were asked for."""
        self.fit(len(tokens))
        first = 0 if keep is None else max(0, len(tokens) - keep)  # row of the first token asked for
        for start, end in prefill_chunks(len(tokens)):
            part = Part(self, tokens[start:end], max(1, end - max(first, start)), picks)
            out = self._backend.forward([part])[0]
            if first < end:
                yield out

    def forward_tree(self, tokens: Sequence[int], parents: Sequence[int], *, picks: bool = False) -> Tensor | list[int]:
        """See `Session.forward_tree`."""
        self.fit(len(tokens))
        return self._backend.forward([Part(self, tokens, None, picks, parents)])[0]

    def keep(self, start: int, rows: Sequence[int]) -> None:
        """See `Session.keep`."""
        self.table.keep(start, rows)

    def set_padded_length(self, length: int) -> None:
        """See `Session.set_padded_length`."""
        self._backend.padded_length.set(length)

    def fit(self, count: int) -> None:
        """Check that `count` more tokens fit the model. Raises UnsupportedModelError."""
        length, limit = self.table.length + count, self._backend.last + 1
        if length > limit:
            raise UnsupportedModelError(f"{length} tokens are more than {self._backend.kind}'s {limit} on OpenVINO")

    def fork(self) -> OpenVINOSession:
        """Return a sequence with the same positions; they are shared until one of the two writes over them."""
        return OpenVINOSession(self._backend, self.table.fork())

    def reuse(self, tokens: Sequence[int]) -> int:
        """Begin an empty sequence with what others published of the beginning of `tokens`; return how many tokens that are."""
        return self.table.reuse(tokens)

    def publish(self, tokens: Sequence[int]) -> None:
        """Let others begin with `tokens`, the first that this sequence holds."""
        self.table.publish(tokens)

    def close(self) -> None:
        """Give the memory back; the sequence is empty."""
        self.table.close()

    def rollback(self, length: int) -> None:
        """See `Session.rollback`."""
        if length > self.table.length:
            raise ValueError(f"can't roll forward from {self.table.length} to {length}")
        self.table.rollback(length)

    def forward_early(self, tokens: Sequence[int], layers: int, *, logits: bool = True) -> Tensor | None:
        """Refuse."""
        raise UnsupportedModelError(self._backend.can_exit.reason)

    def complete(self, count: int | None = None) -> Tensor:
        """Refuse."""
        raise UnsupportedModelError(self._backend.can_exit.reason)


def prefill_chunks(count: int) -> list[tuple[int, int]]:
    """Split `count` tokens into chunks, none of them of one token alone if there are more."""
    ends = [*range(PREFILL_CHUNK_TOKENS, count, PREFILL_CHUNK_TOKENS), count]
    if len(ends) > 1 and ends[-1] - ends[-2] == 1 and PREFILL_CHUNK_TOKENS > 2:
        ends[-2] -= 1
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _begins(counts: NDArray[np.int32]) -> NDArray[np.int32]:
    """Where each of several parts begins, and where the last ends."""
    begins = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=begins[1:])
    return begins


def _shared(array: NDArray[Any]) -> Any:
    import openvino as ov

    return ov.Tensor(array, shared_memory=True)
