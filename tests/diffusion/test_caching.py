"""The feature cache of transformers: on for one run, counted by what really ran, and tried by calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.pipelines import flux, grid, request, stable_diffusion

from dynx.diffusion import caching, profile_data
from dynx.diffusion.engine import Engine
from dynx.diffusion.schedule import Schedule

if TYPE_CHECKING:
    from dynx.diffusion.types import Picture, Step

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")

STEPS = 6


def drawn(engine: Engine, cache: float, **changes: Any) -> tuple[Picture, list[Step]]:
    """A picture on an even grid, and its steps as they were told."""
    told: list[Step] = []
    schedule = Schedule("euler", grid(engine, "flux", STEPS), cache=cache, **changes)
    return engine.draw(request("flux"), schedule, callback=told.append)[0], told


def test_below_any_change_nothing_is_left_out() -> None:
    """A cache that never answers changes no pixel, and every step is a call."""
    engine = Engine(flux())
    without, _ = drawn(engine, 0.0)
    cached, _ = drawn(engine, 1e-12)

    assert without.pixels is not None
    assert cached.pixels is not None
    assert np.array_equal(without.pixels, cached.pixels)
    assert (cached.stats.run, cached.stats.cached, cached.stats.calls) == (STEPS, 0, STEPS)


def test_above_any_change_all_but_the_first_are_cached() -> None:
    """Only what ran whole is a call, the others are told as cached and make another picture."""
    engine = Engine(flux())
    picture, told = drawn(engine, 1e9)
    without, _ = drawn(engine, 0.0)
    stats = picture.stats

    assert (stats.calls, stats.run, stats.skipped, stats.cached) == (1, 1, 0, STEPS - 1)
    assert stats.rows * STEPS == without.stats.rows
    assert [step.cached for step in told] == [False] + [True] * (STEPS - 1)
    assert picture.pixels is not None
    assert without.pixels is not None
    assert not np.array_equal(picture.pixels, without.pixels)
    assert stats.json()["steps"]["cached"] == STEPS - 1


def test_nothing_of_it_stays() -> None:
    """After a run, and after one that failed, the pipeline is its author's: same pixels, no cache on."""
    pipe = flux()
    engine = Engine(pipe)
    before = engine.draw(request("flux"))[0].pixels

    def broken(_: Step) -> None:
        raise RuntimeError("by hand")

    drawn(engine, 1e9)
    with pytest.raises(RuntimeError, match="by hand"):
        engine.draw(request("flux"), Schedule("euler", grid(engine, "flux", STEPS), cache=1e9), callback=broken)
    after = engine.draw(request("flux"))[0].pixels

    assert not pipe.transformer.is_cache_enabled
    assert before is not None
    assert after is not None
    assert np.array_equal(before, after)


def test_runs_remember_nothing_of_each_other() -> None:
    """The same picture twice takes the same calls."""
    engine = Engine(flux())

    assert drawn(engine, 1e9)[0].stats.calls == drawn(engine, 1e9)[0].stats.calls == 1


def test_what_cannot_be_cached_says_why() -> None:
    """A UNet, a lone block and an author's own cache; the picture is drawn without, with a note."""
    from diffusers import FirstBlockCacheConfig

    unet = Engine(stable_diffusion())
    picture = unet.draw(request("sd"), Schedule("euler", grid(unet, "sd", STEPS), cache=0.1))[0]
    pipe = flux()
    pipe.transformer.enable_cache(FirstBlockCacheConfig())

    assert not unet.cacheable
    assert any("not cached: diffusers has no feature cache for UNet2DConditionModel" in n for n in picture.stats.notes)
    assert picture.stats.run == STEPS
    assert Engine(flux()).cacheable
    assert caching.why_not(pipe.transformer) == "its author has put on a cache already"


def test_ladders_keep_their_cache() -> None:
    """In and out of a profile; and one from before there was a cache has none."""
    engine = Engine(flux())
    fine = grid(engine, "flux", STEPS)
    schedules = profile_data.StepSchedules(fine, {3: (0, 1, 3, STEPS), 4: (0, 1, 3, 5, STEPS)}, "euler", cache=0.1)
    kept = schedules.to_json()
    old = {name: value for name, value in kept.items() if name != "cache"}

    assert profile_data.StepSchedules.from_json(kept).schedule(3).cache == 0.1
    assert profile_data.StepSchedules.from_json(old).schedule(3).cache == 0.0
    assert schedules.alone
