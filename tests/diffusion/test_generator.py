"""Several pictures in one call: each is the picture that it is alone, in the steps that it needs, and their calls are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import pipelines

from dynx.diffusion import setup
from dynx.diffusion.backends import AS_LOADED
from dynx.diffusion.engine import Engine
from dynx.diffusion.generator import ImageGenerator
from dynx.diffusion.profile_data import StepSchedules, fewest_for_most
from dynx.diffusion.runs import Choice, Pending, RunCost, Seconds
from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.network import NetworkBackend
from dynx.runtime.decision import Decision
from dynx.runtime.plan import BackendSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")

WANTED = [("a red cat", 1), ("blue moon", 2), ("the apple", 3), ("a red cat", 4), ("cat and moon", 5)]
NEEDS = {1: 4, 2: 4, 3: 6, 4: 4, 5: 6}
"""Steps that the pictures of these seeds need."""


class Known:
    """A profile of steps by the number of the picture in its run, as if a rule had chosen them."""

    def __init__(self, engine: Engine) -> None:
        fine = engine.initial_call(pipelines.request("stable-diffusion", (1,), steps=12)).grid
        schedules = StepSchedules(fine, {4: (0, 1, 5, 9, 12), 6: (0, 1, 3, 6, 9, 11, 12)}, "dpm++2m")
        self.fitted = type("Fitted", (), {"schedules": schedules})
        self.guarantee, self.colours = None, None
        self.longest, self.draft = schedules.longest, schedules.schedule(4)
        self.coming: Iterator[int] = iter(())

    def steps_of_each(self, looks: np.ndarray, _: np.ndarray) -> tuple[int, ...]:
        """The steps that were said to come."""
        return tuple(next(self.coming) for _ in looks)


@pytest.fixture
def generator() -> ImageGenerator:
    engine = Engine(pipelines.pipeline("stable-diffusion"))
    assembly = pipelines.assembly_of(engine.pipe)
    assembly.engine, assembly.racing = engine, False
    known: Any = Known(engine)
    assembly.step_profile = known
    return ImageGenerator(assembly)


def coming(generator: ImageGenerator, *seeds: int) -> None:
    known: Any = generator.assembly.step_profile
    known.coming = iter([NEEDS[seed] for seed in seeds])


def test_pictures_of_one_call_are_those_drawn_alone(generator: ImageGenerator) -> None:
    """The ones that need more steps than most are drawn again in those; nothing is drawn twice besides."""
    alone = {}
    for prompt, seed in WANTED:
        coming(generator, seed)
        alone[seed] = generator.draw(prompt, seed)
    assert [alone[seed].stats.run for _, seed in WANTED] == [4, 4, 6, 4, 6]
    generator.assembly.batches = (4,)
    coming(generator, 1, 2, 3, 4, 5)
    steps: list[tuple[int, int]] = []
    found = dict(generator.draw_all(WANTED, callback=lambda i, step: steps.append((i, step.index))))

    assert sorted(found) == [0, 1, 2, 3, 4]
    for i, (prompt, seed) in enumerate(WANTED):
        assert (found[i].prompt, found[i].seed) == (prompt, seed)
        assert found[i].stats.run == found[i].stats.calls == NEEDS[seed]
        assert np.abs(found[i].pixels - alone[seed].pixels).max() < 1e-5
        assert found[i].stats.rows == 2 * NEEDS[seed]
    assert [index for i, index in steps if i == 2] == [1, 2, 3, 4, 1, 2, 3, 4, 5, 6]


def test_a_call_is_filled_up_for_kernels_of_fixed_shapes(generator: ImageGenerator) -> None:
    """No call goes to PyTorch for its shape, and only what was asked for comes back."""
    assembly = generator.assembly
    assembly.step_profile, assembly.batches = None, (4,)
    kernels = NetworkBackend(assembly.engine.pipe.unet, "torch-eager", dtype="float32", threads=1, cache=None)
    kernels.prepare(*assembly.engine.first_call(generator._request(WANTED[:4])))
    assembly.engine.kernels = kernels
    found = dict(generator.draw_all(WANTED, draft=True))
    assert (sorted(found), kernels.passed) == ([0, 1, 2, 3, 4], 0)
    assert [found[i].stats.pictures for i in range(5)] == [4, 4, 4, 4, 1]


def test_stopping_ends_after_the_call_under_way(generator: ImageGenerator) -> None:
    """Its pictures come finished early; those behind it aren't begun."""
    generator.assembly.step_profile, generator.assembly.batches = None, (2,)
    count = [0]

    def stop() -> bool:
        count[0] += 1
        return count[0] > 3

    found = dict(generator.draw_all(WANTED, stop=stop))
    assert 0 < len(found) < 5
    assert all(p.stats.finished_early for p in found.values())
    assert list(generator.draw_all(WANTED, stop=lambda: True)) == []


def test_the_fewest_steps_in_all() -> None:
    """Most pictures' steps, where drawing the others again costs less than everybody's extra steps."""
    assert fewest_for_most((4, 4, 4, 6)) == 4
    assert fewest_for_most((4, 6)) == 6
    assert fewest_for_most((4, 12, 12, 12)) == 12
    assert fewest_for_most((5,)) == 5
    for needed in ((3, 5, 9, 9), (4, 4, 12, 30), (6, 6, 6, 8)):
        chosen = fewest_for_most(needed)
        cost = {k: k * len(needed) + sum(n for n in needed if n > k) for k in needed}
        assert cost[chosen] == min(cost.values())


def test_a_run_of_unknown_length_moves_over_once(generator: ImageGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """After as many seconds as the move costs; a backend that fails leaves it where it is, and says so."""
    assembly = generator.assembly
    assembly.step_profile = None
    now = Choice(RunCost(AS_LOADED, {1: Seconds(0.0, 1.0, 0.0)}), 1)
    later = Choice(RunCost(BackendSpec("torch-eager", "bfloat16"), {1: Seconds(0.0, 0.5, 1e-9)}), 1)
    assembly.decisions.dtype = Decision("bfloat16", "")
    for fails in (True, False):
        assembly.engine.kernels, assembly.pending, assembly.run = None, Pending(now, later, 5.0), now
        with monkeypatch.context() as patch:
            if fails:

                def refuse(*_: Any) -> None:
                    raise UnsupportedModelError("it is shy")

                patch.setattr(setup, "_prepare_kernels", refuse)
            generator.draw(*WANTED[0], draft=True)
        assert assembly.pending is None
        assert (assembly.engine.kernels is None) == fails
        reason = assembly.decisions.backend.reason
        assert ("can't run it: it is shy" in reason) if fails else ("took over after" in reason)
    assembly.engine.kernels = None
