"""What a profile knows of steps: pilots draw what was certified, promises follow from the evidence, damage is noticed."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.pipelines import ADAPTIVE, GUIDED, pipeline, pixels, request

from dynx.diffusion.apply_profile import why_plain
from dynx.diffusion.engine import Engine
from dynx.diffusion.predictor import Predictor, shortfall
from dynx.diffusion.profile_data import OBSERVED_STEPS, Evidence, Fitted, StepSchedules, from_profile, to_arrays
from dynx.diffusion.schedule import Grid
from dynx.errors import UsageError
from dynx.runtime.certify import Costs

if TYPE_CHECKING:
    from dynx.diffusion.sampler import RestOfSchedule, StepState

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")

NODES = {4: (0, 2, 5, 8, 12), 6: (0, 2, 4, 6, 8, 10, 12), 8: (0, 2, 3, 4, 6, 8, 9, 11, 12)}
FINE = Grid(tuple(float(t) for t in range(980, 20, -80)), tuple(float(s) for s in np.linspace(9, 0, 13)))


def schedules(fine: Grid = FINE, **others: Any) -> StepSchedules:
    """Three numbers of steps on a grid of twelve."""
    return StepSchedules(fine, NODES, **{"solver": "dpm++2m", **others})


def fitted(n: int = 200, seed: int = 0, *, hard: float = 0.0) -> Fitted:
    """Pictures of which some need more steps than others, and a predictor that knows which."""
    rng = np.random.default_rng(seed)
    levels = np.asarray([*NODES, 11])

    def pictures(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        looks = rng.standard_normal((count, 6))
        y = -4.0 - 3 * np.log(levels / 6) + 0.8 * looks[:, :1] + 0.1 * rng.standard_normal((count, 4)) + hard
        return looks, np.zeros((count, 0)), 1 - np.exp(np.minimum(y, 0))

    looks, texts, likeness = pictures(n)
    predictor = Predictor.fit(looks, texts, likeness[:, :-1])
    evidence = [Evidence(a[2], predictor(a[0], a[1])) for a in (pictures(n), pictures(n))]
    return Fitted(schedules(), predictor, Costs((4.0, 6.0, 8.0), 11.0, (0.0,) * 3), 12.0, *evidence)


@pytest.mark.parametrize("solver", ["dpm++2m", "euler"])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_pilot_draws_what_was_certified(name: str, solver: str) -> None:
    """A run that chooses its number of steps on the way is, to the last bit, the run that had it from the start."""
    engine = Engine(pipeline(name))
    asked = request(name)
    fine = engine.initial_call(asked).grid
    steps = schedules(fine, solver=solver, guided_share=0.4 if name in GUIDED else None, skip=0.3)
    receipts = set()

    for number in steps.steps:

        def choose(state: StepState, number: int = number) -> RestOfSchedule | None:
            return steps.rest(number) if state.index == OBSERVED_STEPS - 1 else None

        schedule = steps.schedule(number) if number in NODES else steps.longest
        expected = engine.draw(asked, schedule)
        found = engine.draw(asked, steps.longest, controller=choose)
        assert np.array_equal(pixels(found), pixels(expected))
        for what in ("calls", "rows", "run", "skipped", "unguided", "planned", "timesteps"):
            assert getattr(found[0].stats, what) == getattr(expected[0].stats, what)
        assert found[0].stats.planned == number
        receipts.add((found[0].stats.skipped > 0, found[0].stats.unguided > 0))
    assert (True, name in GUIDED) in receipts or name == "ddpm"


def test_the_ladder_begins_one_way() -> None:
    """Every number of steps and the whole grid share their first levels, and what comes after is told as a tail."""
    steps = schedules(guided_share=0.1)

    assert steps.levels == (4, 6, 8)
    assert steps.steps == (4, 6, 8, 11)
    for number in steps.steps:
        schedule = steps.schedule(number) if number in NODES else steps.longest
        assert schedule.grid.timesteps[:OBSERVED_STEPS] == steps.longest.grid.timesteps[:OBSERVED_STEPS]
        assert steps.rest(number) == (
            schedule.grid.timesteps[OBSERVED_STEPS:],
            schedule.grid.sigmas[OBSERVED_STEPS:],
            OBSERVED_STEPS,  # before the choice all is guided
            (),
        )
    assert StepSchedules.from_json(json.loads(json.dumps(steps.to_json()))) == steps


@pytest.mark.parametrize(
    "damage",
    [
        {"nodes": {}},
        {"nodes": {"4": [0, 2, 5, 12]}},
        {"nodes": {"4": [0, 2, 5, 8, 11]}},
        {"nodes": {"4": [0, 5, 2, 8, 12]}},
        {"nodes": {"2": [0, 2, 12]}},
        {"nodes": {"4": [0, 2, 5, 8, 12], "5": [0, 3, 5, 8, 9, 12]}},
        {"solver": "heun"},
        {"skip": -1.0},
        {"skip": None},
        {"guided": "x"},
    ],
    ids=str,
)
def test_a_ladder_that_does_not_fit_is_refused(damage: dict[str, Any]) -> None:
    """A damaged profile is noticed when it's read, not while a picture is drawn."""
    whole = schedules().to_json()
    StepSchedules.from_json(whole)
    with pytest.raises((ValueError, TypeError)):
        StepSchedules.from_json({**whole, **damage})


def test_easy_pictures_take_fewer_steps() -> None:
    """The rule spends steps where they're needed, below the best constant, and other qualities follow from the same evidence."""
    known = fitted()
    loose, usual, strict = (known.certify(q, 0.95, 0.05) for q in (0.9, 0.95, 0.98))
    from dynx.diffusion.calibrate import best_constant

    constant = best_constant(known.certifying.likeness, known.schedules.levels, 0.95)
    assert constant == 8
    assert usual.cost < constant
    assert loose.cost < usual.cost < strict.cost
    assert min(usual.exits[:3]) > 0
    assert (known.reached(usual, 0.95) < 0.95).sum() == usual.disagreements
    assert known.pays(usual)
    assert known.speedup(usual) == pytest.approx(12 / usual.cost)


def test_without_a_clue_the_rule_is_the_best_constant() -> None:
    """Where nothing can be predicted the list of rules goes down as far as any constant."""
    known = fitted(seed=3)
    blind = Predictor.fit(np.zeros((200, 6)), np.zeros((200, 0)), known.choosing.likeness[:, :-1])
    evidence = [
        Evidence(e.likeness, blind(np.zeros((200, 6)), np.zeros((200, 0)))) for e in (known.choosing, known.certifying)
    ]
    certificate = Fitted(known.schedules, blind, known.costs, 12.0, *evidence).certify(0.95, 0.95, 0.05)

    assert certificate.exits == (0, 0, 200, 0)


def test_what_cannot_be_shown_is_plain() -> None:
    """Too few pictures, pictures that need everything, and steps that cost as much as they save: each with its reason."""
    few, hopeless = fitted(30), fitted(hard=5.0)
    for known, words in ((few, "30 pictures can't show SSIM 0.95"), (hopeless, "no fewer steps were seen")):
        certificate = known.certify(0.95, 0.95, 0.05)
        assert not known.pays(certificate)
        assert words in why_plain(known, certificate, 0.95)
    slow = Fitted(**{**vars(fitted()), "plain": 4.0})
    certificate = slow.certify(0.95, 0.95, 0.05)
    assert certificate.active
    assert not slow.pays(certificate)
    assert "isn't worth it" in why_plain(slow, certificate, 0.95)


def stored(known: Fitted) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """As a profile keeps it."""
    c = known.costs
    seconds = {"reach": list(c.reach), "full": c.full, "check": list(c.check), "plain": known.plain}
    return {"ladder": known.schedules.to_json()}, {"seconds": seconds}, to_arrays(known, None)


def test_knowledge_survives_the_profile() -> None:
    """The same certificate comes out of what was stored."""
    known = fitted()
    parts = stored(known)

    assert from_profile(*parts).certify(0.95, 0.95, 0.05) == known.certify(0.95, 0.95, 0.05)


@pytest.mark.parametrize("part", ["plain", "reach", "sigma", "likeness", "predicted", "nan", "range"])
def test_damaged_knowledge_is_refused(part: str) -> None:
    """Arrays and numbers that don't fit each other, or aren't there."""
    fitted_, measured, arrays = copy.deepcopy(stored(fitted(40)))
    if part in ("plain", "reach"):
        measured["seconds"][part] = {"plain": 0.0, "reach": [1.0, 2.0]}[part]
    elif part == "nan":
        arrays["certifying.likeness"][0, 0] = np.nan
    elif part in ("sigma", "range"):
        arrays[f"predictor.{part}"] = arrays[f"predictor.{part}"][:-1]
    else:
        arrays[f"choosing.{part}"] = arrays[f"choosing.{part}"][:-1]
    with pytest.raises((ValueError, KeyError, UsageError)):
        from_profile(fitted_, measured, arrays)


def test_unlike_pictures_take_the_whole_grid() -> None:
    """Of features out of range, or that aren't numbers, no number of steps is said to be enough."""
    from dynx.diffusion.profile_data import Guarantee, StepProfile

    known = fitted()
    certificate = known.certify(0.95, 0.95, 0.05)
    promise = Guarantee(0.95, 0.95, 0.05, 200, 0, 0.95, 0.9, bundled=False)
    step_profile = StepProfile(known, certificate, promise, 12, None)
    none = np.zeros((1, 0))

    assert step_profile.steps_for(np.full((1, 6), -0.5), none) < 11
    assert step_profile.steps_for(np.full((1, 6), -50.0), none) == 11
    assert step_profile.steps_for(np.full((1, 6), np.nan), none) == 11
    assert step_profile.draft == known.schedules.schedule(4)
    both = np.asarray([[-1.5] * 6, [1.5] * 6])
    assert step_profile.steps_for(both, np.zeros((2, 0))) == max(step_profile.steps_for(b[None], none) for b in both)
    assert shortfall(np.asarray([0.95]))[0] == pytest.approx(np.log(0.05))
    assert "SSIM to the full run at least 0.95 for 95 % of pictures (95 % confidence)" in str(promise)
    assert promise.json()["basis"] == "profile"
