"""The bandwidth measurement, on a scripted clock."""

from __future__ import annotations

import itertools

import pytest

from dynx.runtime.bandwidth import TOUCH_SECONDS, measure_bandwidth

MIB = 2**20


class Clock:
    """A clock that advances by scripted steps, then by the last of them for good."""

    def __init__(self, *steps: float) -> None:
        self.now = 0.0
        self.steps = itertools.chain(steps, itertools.repeat(steps[-1]))

    def __call__(self) -> float:
        """Advance by the next step."""
        self.now += next(self.steps)
        return self.now


def test_bandwidth_is_the_best_pass() -> None:
    """The rate is the array's bytes over the shortest pass, and passes stop when the time is up."""
    # start, late?, then before and after of each pass: 40, 20 and 30 ms, and a fourth "before" past the limit.
    clock = Clock(0, 0.01, 0.001, 0.04, 0.001, 0.02, 0.001, 0.03, 10)
    measured = measure_bandwidth(2, cache_bytes=MIB, clock=clock, array_bytes=4 * MIB)
    assert measured is not None
    assert measured.bytes_per_second == pytest.approx(4 * MIB / 0.02)
    assert (measured.array_bytes, measured.beyond_cache) == (4 * MIB, True)


def test_bandwidth_says_when_the_cache_may_hold_the_array() -> None:
    """When mapping memory takes too long for an array beyond the cache, the result says so."""
    clock = Clock(0, TOUCH_SECONDS, 0.01)
    measured = measure_bandwidth(1, cache_bytes=64 * MIB, clock=clock)
    assert measured is not None
    assert measured.array_bytes == 16 * MIB
    assert not measured.beyond_cache


def test_bandwidth_respects_available_memory() -> None:
    """The array takes at most an eighth of the available memory, and with too little nothing is measured."""
    measured = measure_bandwidth(3, memory_available=80 * MIB, clock=Clock(0, 0.001))
    assert measured is not None
    assert measured.array_bytes <= 10 * MIB + 4 * 3
    assert measure_bandwidth(3, memory_available=32 * MIB, clock=Clock(0, 0.001)) is None


def test_bandwidth_with_a_standing_clock() -> None:
    """A clock too coarse to see a pass gives no figure rather than infinity."""
    assert measure_bandwidth(1, clock=Clock(0), array_bytes=MIB) is None
