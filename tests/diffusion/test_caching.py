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


@pytest.mark.parametrize(("kind", "number"), [(caching.TAYLOR_SEER, 2.0), (caching.MAGNITUDE, 1e9)])
def test_other_kinds_answer_whole_calls(kind: str, number: float) -> None:
    """Blocks run in the first steps and then now and then; nothing of it stays, and the same picture comes again."""
    pipe = flux()
    engine = Engine(pipe)
    plain = engine.draw(request("flux"))[0].pixels
    ratios = (1.0,) * STEPS if kind == caching.MAGNITUDE else ()

    first, told = drawn(engine, number, cache_kind=kind, magnitude_ratios=ratios)
    again, _ = drawn(engine, number, cache_kind=kind, magnitude_ratios=ratios)
    without, _ = drawn(engine, 0.0)

    assert first.stats.calls == first.stats.run < STEPS
    assert first.stats.run + first.stats.cached == STEPS
    assert [step.cached for step in told[: caching.ALWAYS_COMPUTED]] == [False] * caching.ALWAYS_COMPUTED
    assert first.pixels is not None
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, without.pixels)
    assert not pipe.transformer.is_cache_enabled
    assert np.array_equal(plain, engine.draw(request("flux"))[0].pixels)


def test_magnitudes_that_change_are_never_answered() -> None:
    """Every step is a call, and no pixel differs."""
    engine = Engine(flux())
    ratios = (1.0, *(1.5,) * (STEPS - 1))
    without, _ = drawn(engine, 0.0)
    cached, _ = drawn(engine, 1e-9, cache_kind=caching.MAGNITUDE, magnitude_ratios=ratios)

    assert np.array_equal(without.pixels, cached.pixels)
    assert cached.stats.calls == STEPS


def test_magnitudes_are_those_of_the_blocks() -> None:
    """One for each node of the grid, as a hand-made pass measures it; ratios start at 1."""
    from dynx.diffusion.schedule_search import measure_magnitudes

    engine = Engine(flux())
    fine = grid(engine, "flux", STEPS)
    schedules = profile_data.StepSchedules(fine, {3: (0, 1, 3, STEPS)}, "euler")

    found = measure_magnitudes(engine, request("flux"), schedules)

    assert len(found) == STEPS
    assert all(value > 0 for value in found)
    kept = profile_data.StepSchedules(
        fine, schedules.nodes, "euler", cache=0.1, cache_kind=caching.MAGNITUDE, magnitudes=found
    )
    assert kept.schedule(3).magnitude_ratios == pytest.approx((1.0, found[1] / found[0], found[3] / found[1]))
    assert profile_data.StepSchedules.from_json(kept.to_json()) == kept
    with pytest.raises(ValueError, match="its cache can't be used"):
        profile_data.StepSchedules.from_json(kept.to_json() | {"magnitudes": [1.0]})
    with pytest.raises(ValueError, match="its cache can't be used"):
        profile_data.StepSchedules.from_json(kept.to_json() | {"cache_kind": "other"})


def test_a_run_that_is_planned_anew_expects_other_changes() -> None:
    """The ratios of the new rest of the run reach the cache."""
    engine = Engine(flux())
    fine = grid(engine, "flux", STEPS)
    nodes = {3: (0, 1, 3, STEPS), 4: (0, 1, 2, 4, STEPS)}
    schedules = profile_data.StepSchedules(
        fine, nodes, "euler", cache=0.5, cache_kind=caching.MAGNITUDE, magnitudes=(1.0,) * STEPS
    )

    def controller(state: Any) -> Any:
        return schedules.rest(3) if state.index == 1 else None

    picture = engine.draw(request("flux"), schedules.longest, controller=controller)[0]

    assert picture.stats.run + picture.stats.cached == 3
    assert (picture.stats.run, picture.stats.cached) == (2, 1)
