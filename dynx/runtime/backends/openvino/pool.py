"""The key-value caches of all sequences of an OpenVINO model: blocks of positions, counted by those who refer to them.

A sequence is a `BlockTable`: the numbers of its blocks and its length, so a rollback is a smaller length. Blocks can be shared:
by a copy of a sequence (`BlockTable.fork`), and by sequences that begin with the same tokens (`BlockTable.reuse`, after another's
`publish`), the last block also where only its first tokens are the same. A shared block is never written. Who writes into one
gets a block of its own first, with the positions before the first that is written copied.

Memory is reserved by doubling and is only taken when a block is first written. There is a limit. Blocks that are kept for reuse
alone are given up before memory grows if nothing began with them so far, and at the limit in any case, the least recently used
first; then `CacheFull` is raised, before anything has changed.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.runtime.memory import CacheFull

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

INITIAL_BLOCKS = 16
"""Blocks of a new pool; growth doubles, so copying stays linear in the final size."""

MIN_COPIED_POSITIONS = 2
"""Positions of a block that are worth copying it for: a copy takes a fraction of a millisecond, reading a token more."""

ALIGNMENT = 64
"""Of a cache in memory, in bytes: a cache line and the widest vector."""


def _zeros(count: int) -> NDArray[np.uint8]:
    """Reserve `count` bytes of zeros, aligned, of which the system takes those pages that are written.

    The memory of NumPy's zeros may be at hand already, cleared and so taken: 0.2 GB of a pool of 0.75 GB that was half full.
    """
    if hasattr(mmap, "MAP_PRIVATE"):
        try:
            return np.frombuffer(mmap.mmap(-1, max(1, count), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)[:count]
        except OSError as e:
            raise MemoryError(str(e)) from e
    memory = np.zeros(count + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + count]


class BlockPool:
    """`caches` maps inputs to an element type and the shape of a block (heads, positions, width); `bind` gives one its tensor.

    `limit` is the most blocks that may be reserved; None without a limit.
    """

    def __init__(
        self,
        caches: Mapping[str, tuple[Any, Sequence[int]]],
        bind: Callable[[str, Any], None],
        *,
        limit: int | None = None,
    ) -> None:
        self._caches, self._bind = caches, bind
        self.limit = limit
        self.block = next(iter(caches.values()))[1][1]  # positions of a block
        self._views: dict[str, NDArray[np.uint8]] = {}  # by cache: (blocks, bytes of a block)
        self._references: list[int] = []
        self._free: list[int] = []  # the next one last
        self._known: OrderedDict[tuple[int, bytes], int] = OrderedDict()  # (block before, tokens) → block, by use
        self._after: dict[int, dict[bytes, int]] = {}  # identity of a text → tokens that follow it → their block
        self._parents: dict[int, int] = {}  # published block → identity of the text up to its end
        self._keys: dict[int, tuple[int, bytes]] = {}  # published block → its key in `_known`
        self._reused: set[int] = set()  # published blocks that others took over
        self._identities = 0
        self.copied = 0
        """Blocks copied because they were shared."""

    @property
    def size(self) -> int:
        """Blocks reserved."""
        return len(self._references)

    @property
    def used(self) -> int:
        """Blocks that something refers to."""
        return self.size - len(self._free)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all caches."""
        return sum(kind.size * int(np.prod(shape)) for kind, shape in self._caches.values())

    def open(self) -> BlockTable:
        """Start an empty sequence."""
        return BlockTable(self)

    def references(self, block: int) -> int:
        """Return how many refer to a block."""
        return self._references[block]

    def require(self, count: int) -> None:
        """Make `count` blocks free, or raise CacheFull with nothing changed."""
        if count <= len(self._free):
            return
        spare = [block for block in self._known.values() if self._references[block] == 1]
        if self.limit is not None and count > len(self._free) + len(spare) + max(0, self.limit - self.size):
            raise CacheFull(
                f"the key-value cache is full: {self.limit} blocks of {self.block} tokens",
                hint="try fewer prompts at a time, or shorter ones",
            )
        for block in spare:  # of texts that are done, and that no other began with so far
            if count > len(self._free) and block not in self._reused:
                self._forget(block)
        if count > len(self._free):
            grown = max(self.size + count - len(self._free), 2 * self.size, INITIAL_BLOCKS)
            grown = grown if self.limit is None else min(grown, self.limit)
            if grown > self.size:
                self._grow(grown)
        for block in spare:
            if count > len(self._free) and block in self._keys:
                self._forget(block)

    def take(self) -> int:
        """Return a block that nothing else refers to."""
        self.require(1)
        block = self._free.pop()
        self._references[block] = 1
        return block

    def share(self, block: int) -> int:
        """Add a reference to a block."""
        self._references[block] += 1
        return block

    def take_over(self, found: Sequence[int]) -> list[int]:
        """Add a reference to each of the published blocks that `find` gave."""
        self._reused.update(found)
        return [self.share(block) for block in found]

    def release(self, blocks: Sequence[int]) -> None:
        """Drop a reference to each of `blocks`."""
        for block in blocks:
            self._references[block] -= 1
            if not self._references[block]:
                self._free.append(block)

    def copy(self, block: int) -> int:
        """Return a copy of a block, in exchange for a reference to it."""
        new = self.take()
        for view in self._views.values():
            view[new] = view[block]
        self.copied += 1
        self.release([block])
        return new

    def move(self, places: Sequence[tuple[int, int, int, int]]) -> None:
        """Copy positions of blocks to others: block and position that each comes from, and block and position where it goes."""
        for name, (kind, (heads, _, width)) in self._caches.items():
            cells = self._views[name].reshape(-1, heads, self.block, width * kind.size)
            for block, at, to_block, to in places:
                cells[to_block, :, to] = cells[block, :, at]

    def find(self, tokens: NDArray[np.int64]) -> tuple[list[int], int]:
        """Return the published blocks that hold the beginning of `tokens`, not yet referred to, and how many they hold."""
        found: list[int] = []
        before = 0
        for start in range(0, len(tokens) - self.block + 1, self.block):
            key = (before, tokens[start : start + self.block].tobytes())
            block = self._known.get(key)
            if block is None:
                break
            found.append(block)
            before = self._parents[block]
        length = len(found) * self.block
        begun, same = self._begun(before, tokens[length : length + self.block].tobytes(), tokens.itemsize)
        if begun is not None:
            found.append(begun)
            length += same
        for block in reversed(found):
            self._known.move_to_end(self._keys[block])  # the beginning of a text is the last to be forgotten
        return found, length

    def _begun(self, before: int, tokens: bytes, size: int) -> tuple[int | None, int]:
        """Return the block after the text `before` that begins most like `tokens` (`size` bytes each), and how many are alike."""
        best, same = None, MIN_COPIED_POSITIONS - 1
        for other, block in self._after.get(before, {}).items():
            while (same + 1) * size <= len(tokens) and other.startswith(tokens[: (same + 1) * size]):
                best, same = block, same + 1
        return best, 0 if best is None else same

    def publish(self, tokens: NDArray[np.int64], blocks: Sequence[int]) -> None:
        """Make the full blocks of `tokens`, held in `blocks`, known to `find`."""
        before, chain = 0, []
        for i, start in enumerate(range(0, len(tokens) - self.block + 1, self.block)):
            key = (before, tokens[start : start + self.block].tobytes())
            known = self._known.get(key)
            if known is None:
                known = blocks[i]
                if known in self._keys:  # published once before, and what came before it was forgotten since
                    self._unlink(known)
                else:
                    self.share(known)
                self._identities += 1
                self._known[key], self._keys[known], self._parents[known] = known, key, self._identities
                self._after.setdefault(before, {})[key[1]] = known
            before = self._parents[known]
            chain.append(key)
        for key in reversed(chain):
            self._known.move_to_end(key)

    def forget(self) -> None:
        """Give up all blocks that are kept for reuse."""
        for block in list(self._known.values()):
            self._forget(block)

    def _forget(self, block: int) -> None:
        self._unlink(block)
        del self._keys[block], self._parents[block]
        self._reused.discard(block)
        self.release([block])

    def _unlink(self, block: int) -> None:
        """Make a published block unknown to `find`."""
        before, tokens = key = self._keys[block]
        del self._known[key], self._after[before][tokens]
        if not self._after[before]:
            del self._after[before]

    def _grow(self, size: int) -> None:
        before = self.size
        try:
            for name, (kind, shape) in self._caches.items():
                self._views[name] = self._reserved(name, kind, [size, *shape], self._views.get(name))
        except MemoryError as e:
            raise CacheFull("out of memory for the key-value cache", hint="try a shorter prompt") from e
        self._references.extend([0] * (size - before))
        self._free = [*range(size - 1, before - 1, -1), *self._free]

    def _reserved(self, name: str, kind: Any, shape: list[int], old: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        """Reserve a cache that begins with `old`. What isn't written yet is read, and weighted with zero: it must be a number."""
        import openvino as ov

        raw = _zeros(kind.size * int(np.prod(shape)))
        view = raw.reshape(shape[0], -1)
        if old is not None:
            view[: len(old)] = old
        self._bind(name, ov.Tensor(raw, ov.Shape(shape), kind))
        return view


class BlockTable:
    """One sequence: its blocks and how many positions of them it holds."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.length = 0
        self.blocks: NDArray[np.int32] = np.zeros(0, np.int32)
        self._borrowed = 0  # positions taken over by `reuse`, while there are no others

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the blocks back."""
        if len(self.blocks):
            self._pool.release(self.blocks.tolist())
        self.blocks, self.length, self._borrowed = self.blocks[:0], 0, 0

    def missing(self, end: int) -> int:
        """Return how many blocks must be free before positions up to `end` can be written."""
        block, pool = self._pool.block, self._pool
        need, first = -(-end // block), self.length // block
        held = self.blocks[first:need].tolist()
        return max(0, need - len(self.blocks)) + sum(pool.references(each) > 1 for each in held)

    def reserve(self, end: int) -> None:
        """Have blocks of one's own for the positions from the length to `end`. Raises CacheFull with nothing changed."""
        pool = self._pool
        missing, self._borrowed = self.missing(end), -1
        if not missing:
            return
        pool.require(missing)
        size = pool.block
        for at in range(self.length // size, min(-(-end // size), len(self.blocks))):
            shared = int(self.blocks[at])
            if pool.references(shared) > 1:
                if at * size < self.length:
                    self.blocks[at] = pool.copy(shared)
                else:
                    self.blocks[at] = pool.take()
                    pool.release([shared])
        more = -(-end // size) - len(self.blocks)
        if more > 0:
            self.blocks = np.concatenate([self.blocks, np.array([pool.take() for _ in range(more)], np.int32)])

    def rollback(self, length: int) -> None:
        """Hold the first `length` positions only."""
        self.length = length

    def keep(self, start: int, rows: Sequence[int]) -> None:
        """Hold, after the first `start` positions, those that `rows` number from there, in this order; they ascend."""
        size, blocks = self._pool.block, self.blocks
        moved = [(start + row, start + i) for i, row in enumerate(rows) if row != i]
        if moved:
            self._pool.move([(int(blocks[a // size]), a % size, int(blocks[b // size]), b % size) for a, b in moved])
        self.length = start + len(rows)

    def fork(self) -> BlockTable:
        """Return a sequence with the same positions, in the same blocks."""
        other = BlockTable(self._pool)
        other.blocks = self.blocks[: -(-self.length // self._pool.block)].copy()
        for block in other.blocks.tolist():
            self._pool.share(block)
        other.length = self.length
        return other

    def reuse(self, tokens: Sequence[int]) -> int:
        """Hold published positions of the beginning of `tokens`, if the sequence holds nothing else; return its length.

        At least two tokens are left, if there are two: a pass of one token rounds differently.
        """
        if self.length == self._borrowed:
            found, length = self._pool.find(np.asarray(tokens[: max(0, len(tokens) - 2)], np.int64))
            if length > self.length:
                shared = self._pool.take_over(found)
                self.close()
                self.blocks = np.array(shared, np.int32)
                self.length = self._borrowed = length
        return self.length

    def publish(self, tokens: Sequence[int]) -> None:
        """Make the full blocks of `tokens`, which the sequence holds, known to others that begin with them."""
        self._pool.publish(np.asarray(tokens[: self.length], np.int64), self.blocks.tolist())
