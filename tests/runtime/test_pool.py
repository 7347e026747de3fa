"""The pool of key-value blocks: who shares a block never sees another's writing, and what is full says so and loses nothing."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynx.runtime.backends.openvino.pool import BlockPool, BlockTable
from dynx.runtime.memory import CacheFull

if importlib.util.find_spec("openvino") is None:
    pytest.skip("OpenVINO isn't installed", allow_module_level=True)

BLOCK = 4


class Written:
    """A pool over one cache with one number for each position, and what each sequence should hold."""

    def __init__(self, limit: int | None = None) -> None:
        import openvino as ov

        self.tensor: Any = None
        self.pool = BlockPool({"key": (ov.Type.f32, [1, BLOCK, 1])}, self.bind, limit=limit)

    def bind(self, _: str, tensor: Any) -> None:
        """Take the tensor that the model would read."""
        self.tensor = tensor

    def write(self, table: BlockTable, values: list[int]) -> None:
        """Append values, as attention would."""
        table.reserve(table.length + len(values))
        for value in values:
            self.tensor.data[table.blocks[table.length // BLOCK], 0, table.length % BLOCK, 0] = value
            table.length += 1

    def read(self, table: BlockTable) -> list[int]:
        """What the sequence holds."""
        return [int(self.tensor.data[table.blocks[at // BLOCK], 0, at % BLOCK, 0]) for at in range(table.length)]


def test_sequences_keep_what_they_wrote() -> None:
    """Forks, rollbacks, published beginnings and departures in any order: every sequence holds its own text."""
    rng = random.Random(1)
    written = Written()
    held: list[tuple[BlockTable, list[int]]] = []
    shared = 0
    for _ in range(1500):
        what = rng.randrange(7)
        if what == 0 or not held:
            text = [rng.randrange(2) for _ in range(rng.randrange(1, 20))]
            table = written.pool.open()
            had = table.reuse(text)
            shared += had
            written.write(table, text[had:])
            held.append((table, text))
        elif what == 1 and len(held) < 12:
            table, text = rng.choice(held)
            held.append((table.fork(), list(text)))
        elif what == 2:
            table, text = rng.choice(held)
            del text[rng.randrange(len(text) + 1) :]
            table.rollback(len(text))
        elif what == 3 and len(held) > 3:
            held.pop(rng.randrange(len(held)))[0].close()
        elif what == 4:
            table, text = rng.choice(held)
            table.publish(text)
        else:
            table, text = rng.choice(held)
            more = [rng.randrange(2) for _ in range(rng.randrange(1, 9))]
            written.write(table, more)
            text.extend(more)
        for table, text in held:
            assert written.read(table) == text
    assert shared > 20
    assert written.pool.copied > 20
    for table, _ in held:
        table.close()
    written.pool.forget()
    assert written.pool.used == 0


def test_a_beginning_is_shared_and_two_tokens_are_left() -> None:
    """Published blocks are found by their tokens, in their place, the last one by its first; two tokens are always read anew."""
    written = Written()
    first = written.pool.open()
    written.write(first, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    first.publish([1, 2, 3, 4, 5, 6, 7, 8, 9])

    def reused(*tokens: int) -> int:
        return written.pool.open().reuse(tokens)

    assert reused(1, 2, 3, 4, 5, 6, 7, 8, 9, 10) == 8
    assert reused(1, 2, 3, 4, 5, 6, 7, 8, 9) == 7
    assert reused(1, 2, 3, 4, 5) == 3
    assert reused(1, 2, 3) == 0, "one token is read as fast as a block is copied"
    assert reused(1, 2, 3, 4, 0, 6, 7, 8, 9, 10) == 4
    assert reused(1, 2, 3, 4, 5, 6, 0, 8, 9, 10) == 6
    assert reused(5, 6, 7, 8, 9, 9, 9) == 0
    used = written.pool.used
    first.close()
    assert (written.pool.used, used) == (2, 3)


def test_a_waiting_sequence_takes_over_what_is_published_later() -> None:
    """`reuse` may be asked again until the sequence has written something."""
    written = Written()
    first, second = written.pool.open(), written.pool.open()
    text = list(range(14))
    written.write(first, text[:5])
    first.publish(text)
    assert second.reuse(text) == 4
    written.write(first, text[5:])
    first.publish(text)
    assert second.reuse(text) == 12
    written.write(second, [7])
    assert second.reuse(text) == 13


def test_a_full_pool_changes_nothing() -> None:
    """At the limit the error comes before anything is written; blocks that only wait for reuse are given up first."""
    written = Written(limit=4)
    one, two = written.pool.open(), written.pool.open()
    written.write(one, [1] * 8)
    written.write(two, [2] * 6)
    before = written.pool.used, list(two.blocks)
    with pytest.raises(CacheFull, match="4 blocks of 4 tokens"):
        two.reserve(17)
    assert (written.pool.used, list(two.blocks)) == before
    assert written.read(one) == [1] * 8
    one.publish([1] * 8)
    one.close()
    written.write(two, [3] * 10)
    assert written.read(two) == [2] * 6 + [3] * 10
    assert written.pool.open().reuse([1] * 12) == 0


def test_memory_is_aligned_and_begins_as_numbers() -> None:
    """A cache begins on a cache line, and what isn't written yet is zero."""
    written = Written()
    written.write(written.pool.open(), [1])
    assert written.tensor.data.ctypes.data % 64 == 0
    assert np.count_nonzero(written.tensor.data) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is in memory")
def test_a_pool_takes_the_memory_of_what_was_written() -> None:
    """Caches are pages of their own: what isn't written takes none, and what is left behind in growing goes back at once."""
    import openvino as ov

    def in_memory() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    tensors: dict[str, Any] = {}
    pool = BlockPool({f"key.{i}": (ov.Type.f32, [1, 1024, 1]) for i in range(16)}, tensors.__setitem__)
    before, written = in_memory(), 0
    while pool.size < 1024:
        block = pool.take()
        for tensor in tensors.values():
            tensor.data[block] = 1.0
        written += pool.block_bytes
        assert all(tensor.data.ctypes.data % os.sysconf("SC_PAGE_SIZE") == 0 for tensor in tensors.values())
    assert pool.size * pool.block_bytes > 1.9 * written
    assert in_memory() - before < 1.3 * written
