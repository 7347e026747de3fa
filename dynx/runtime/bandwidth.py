"""How fast this machine reads memory, measured in a fraction of a second.

A step of a language model at batch 1 reads each weight once, so bytes per second bound tokens per second. Each thread
takes the maximum of its own blocks: of numpy's reductions the one that is furthest from being bound by arithmetic
(about 100 GB/s per core from cache, where a float32 sum stops at 27).

Doesn't use torch, so that it doesn't disturb torch's thread pool and works before torch is loaded.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    Blocks: TypeAlias = list[NDArray[np.float32]]

MIB = 2**20

# Twice the last-level cache, so that at most half of a pass can be hits; bounded so that no machine is strained.
CACHE_FACTOR = 2
MIN_BYTES, MAX_BYTES = 64 * MIB, 512 * MIB
MIN_USEFUL_BYTES = 8 * MIB
UNKNOWN_CACHE_BYTES = 64 * MIB
BLOCK_BYTES = 16 * MIB

# Mapping fresh pages can cost ten times as much as reading them (a virtual machine whose host maps them too: 1.8 s per
# GiB seen), so the array grows until the first limit, and passes run until the second.
TOUCH_SECONDS, TOTAL_SECONDS = 0.16, 0.26
MIN_PASSES, MAX_PASSES = 2, 8


@dataclass(frozen=True)
class Bandwidth:
    """The best pass; `beyond_cache` is False when the array may fit in the last-level cache, and the rate flatter."""

    bytes_per_second: float
    array_bytes: int
    beyond_cache: bool


def measure_bandwidth(
    threads: int,
    *,
    cache_bytes: int | None = None,
    memory_available: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    array_bytes: int | None = None,
) -> Bandwidth | None:
    """Measure the bytes per second that `threads` threads together read from memory, the best of several passes.

    `cache_bytes` is the last-level cache; `array_bytes` overrides the size that follows from it. The array takes at
    most an eighth of `memory_available`; None when that leaves too little to measure with, or the clock stands still.
    """
    goal = array_bytes or min(MAX_BYTES, max(MIN_BYTES, CACHE_FACTOR * (cache_bytes or UNKNOWN_CACHE_BYTES)))
    if memory_available is not None and goal > memory_available // 8:
        goal = memory_available // 8
        if goal < MIN_USEFUL_BYTES:
            return None
    start = clock()
    with ThreadPoolExecutor(threads) as pool:
        shares = _fill(pool, threads, goal, lambda: clock() - start >= TOUCH_SECONDS)
        seconds = _best_pass(pool, shares, clock, start + TOTAL_SECONDS)
    size = sum(block.nbytes for blocks in shares for block in blocks)
    return Bandwidth(size / seconds, size, size > (cache_bytes or UNKNOWN_CACHE_BYTES)) if seconds > 0 else None


def _fill(pool: ThreadPoolExecutor, threads: int, goal: int, late: Callable[[], bool]) -> list[Blocks]:
    """Give each thread blocks that it wrote itself, until they make `goal` bytes or it is `late`."""
    import numpy as np

    each = max(1, goal // threads)
    rounds = -(-each // BLOCK_BYTES)
    floats = max(1, each // rounds // 4)
    shares: list[Blocks] = [[] for _ in range(threads)]
    for _ in range(rounds):
        list(pool.map(lambda blocks: blocks.append(np.ones(floats, dtype=np.float32)), shares))
        if late():
            break
    return shares


def _best_pass(pool: ThreadPoolExecutor, shares: list[Blocks], clock: Callable[[], float], until: float) -> float:
    """Time passes over all blocks and return the shortest, in seconds."""
    import numpy as np

    def read(blocks: Blocks) -> None:
        for block in blocks:
            np.maximum.reduce(block)

    best = float("inf")
    for done in range(MAX_PASSES):
        before = clock()
        if done >= MIN_PASSES and before >= until:
            break
        list(pool.map(read, shares))
        best = min(best, clock() - before)
    return best
