"""The contestants for pipelines that draw: one picture of each pair by every arm, and the tail before the speed."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import pipelines

from dynx.bench.arms.drawing import (
    FIRST_SEED,
    Pair,
    PictureComparison,
    Quality,
    StaticComparison,
    columns,
    floor,
    judge,
    own_arms,
    pairs,
)
from dynx.bench.gates import min_quality
from dynx.bench.measurements import Measurements, Outcome
from dynx.bench.result import Verdict
from dynx.bench.runner import Arm, measure
from dynx.cli.bench.values import parse_steps
from dynx.diffusion.engine import Engine
from dynx.diffusion.generator import ImageGenerator
from dynx.diffusion.plan import ImageGeneratorRequest
from dynx.diffusion.schedule import Schedule
from dynx.diffusion.similarity import ssim
from dynx.diffusion.types import ImageStats, Picture
from dynx.errors import DynxError, ModelError, UsageError
from dynx.runtime.binomial import two_sided

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STEPS = 12
PAIR = Pair("a red cat", 5)


def artist_of(name: str, *, steps: int = STEPS, step_profile: Any = None) -> ImageGenerator:
    """A tiny pipeline whose own run takes so few steps that tests are short."""
    engine = Engine(pipelines.pipeline(name))
    engine.adapter = replace(engine.adapter, default_steps=steps)
    own = engine.draw

    def draw(request: Any, *others: Any, **named: Any) -> Any:
        return own(replace(request, steps=request.steps or steps), *others, **named)

    engine.draw = draw  # type: ignore[method-assign]
    return ImageGenerator(
        SimpleNamespace(
            engine=engine,
            plan=SimpleNamespace(request=ImageGeneratorRequest()),
            step_profile=step_profile,
            batches=(1,),
            pending=None,
        )
    )  # type: ignore[arg-type]


def knowing(name: str, steps: int) -> ImageGenerator:
    """One whose profile draws every picture in so many steps."""
    artist = artist_of(name)
    grid = artist.assembly.engine.initial_call(pipelines.request(name, steps=STEPS)).grid
    return artist_of(name, step_profile=pipelines.profile_of(Schedule("dpm++2m", grid.thinned(steps))))


def run(arms: Sequence[Arm[Pair]], cases: Sequence[Pair], rounds: int = 1) -> Measurements:
    """The arms in turns, on a clock that ticks with every look."""
    ticks = itertools.count()
    return measure(arms, cases, rounds=rounds, warmup=0, clock=lambda: float(next(ticks)), rng=random.Random(0))


def clock() -> Callable[[], float]:
    ticks = itertools.count()
    return lambda: float(next(ticks))


def waves(phase: float, side: int = 32) -> np.ndarray:
    """A soft picture; a little phase changes it a little."""
    y, x = np.mgrid[0:side, 0:side] / side
    return (
        np.stack([np.sin(7 * x + phase), np.sin(9 * y - phase), np.sin(5 * (x + y))], -1).astype(np.float32) / 2 + 0.5
    )


def picture(pixels: np.ndarray | None, calls: int = 10) -> Picture:
    """As an engine hands it over."""
    stats = ImageStats(calls, 2 * calls, calls, calls, 0, 0, 1.0, "x", None, ())
    return Picture("a", 1, pixels, stats, error=None if pixels is not None else "all of its pixels are not numbers")


def test_pairs_have_prompts_in_turn_and_seeds_of_their_own() -> None:
    """None of them is one that calibration draws with."""
    assert pairs(["a", "b"], 3) == [Pair("a", FIRST_SEED), Pair("b", FIRST_SEED + 1), Pair("a", FIRST_SEED + 2)]
    with pytest.raises(UsageError, match="no prompts"):
        pairs([], 3)


@pytest.mark.parametrize(
    ("text", "steps"), [("6,8", [6, 8]), ("10, 5-7,6", [5, 6, 7, 10]), ("none", []), ("1000", [1000])]
)
def test_step_counts(text: str, steps: list[int]) -> None:
    """Numbers and ranges, each once and rising."""
    assert parse_steps(text) == steps


@pytest.mark.parametrize("text", ["0-4", "many", "1001", "1-9999999999", "8-6", "-3", "4,,5"])
def test_bad_step_counts(text: str) -> None:
    """Told in one line, and before a range is made of them."""
    with pytest.raises(UsageError, match="steps are numbers from 1 to 1000"):
        parse_steps(text)


def test_arms_and_their_calls() -> None:
    """Both solvers in each number of steps below plain's; every arm's network calls are counted."""
    gallery = PictureComparison()
    arms = own_arms(knowing("stable-diffusion", 8), [6, 9, STEPS, 20], gallery, clock())
    found = {arm.name: arm.run(PAIR) for arm in arms}

    assert [(arm.name, arm.group) for arm in arms] == [
        ("plain", "plain"),
        ("author 6", "static"),
        ("author 9", "static"),
        ("dpm++2m 6", "static"),
        ("dpm++2m 9", "static"),
        ("dynamic", "dynamic"),
    ]
    assert [outcome.facts["calls"] for outcome in found.values()] == [STEPS, 6, 9, 6, 9, 8]
    assert [outcome.facts["rows"] for outcome in found.values()] == [2 * STEPS, 12, 18, 12, 18, 16]
    assert {outcome.units for outcome in found.values()} == {1}
    assert {outcome.seconds for outcome in found.values()} == {1.0}
    assert len({outcome.output for outcome in found.values()}) == len(arms)


def test_plain_and_author_are_the_pipeline_s_own_pictures() -> None:
    """Bit for bit what diffusers draws in so many steps, by the likeness that the gallery keeps."""
    gallery = PictureComparison()
    arms = {arm.name: arm for arm in own_arms(artist_of("stable-diffusion"), [6], gallery, clock())}
    drawn = {name: arms[name].run(PAIR).output for name in ("author 6", "plain", "dynamic")}
    own = {
        steps: (pipelines.directly("stable-diffusion", pipelines.request("stable-diffusion", (5,), steps=steps)) * 255)
        .round()
        .astype("uint8")[0]
        for steps in (6, STEPS)
    }

    assert drawn["dynamic"] == drawn["plain"]
    assert gallery.ssim(str(drawn["author 6"]), str(drawn["plain"])) == ssim(own[6], own[STEPS])


def test_a_few_step_pipeline_gets_no_foreign_solver() -> None:
    """Its author's scheduler alone is told fewer steps, and dynamic draws the same pixels."""
    artist = artist_of("consistency", steps=4)
    arms = own_arms(artist, [2, 3, 6], PictureComparison(), clock())
    found = {arm.name: arm.run(PAIR) for arm in arms}

    assert list(found) == ["plain", "author 2", "author 3", "dynamic"]
    assert found["dynamic"].output == found["plain"].output
    assert [outcome.facts["calls"] for outcome in found.values()] == [4, 2, 3, 4]


def test_likeness_is_the_worst_of_all_rounds_to_the_plain_picture_of_the_round() -> None:
    """Whatever the order of the arms in a round; pictures that don't repeat show the noise floor."""
    gallery = PictureComparison()
    drawn = {"plain": itertools.count(), "other": itertools.count(10)}

    def arm(name: str, group: Any) -> Arm[Pair]:
        def run_(pair: Pair) -> Outcome:
            pixels = waves(0.01 * next(drawn[name]) + pair.seed)
            return Outcome(1, 1.0, gallery.add(name, pair, picture(pixels)), {"calls": 10, "rows": 20})

        return Arm(name, run_, group, reference=name == "plain")

    cases = [Pair("a", 1), Pair("b", 2)]
    measured = run([arm("plain", "plain"), arm("other", "static")], cases, rounds=3)
    found = judge(measured, gallery)

    def of(ours: int, theirs: int, seed: int) -> float:
        bytes_ = [(waves(0.01 * phase + seed) * 255).round().astype("uint8") for phase in (ours, theirs)]
        return ssim(*bytes_)

    expected = [min(of(10 + 2 * r + c, 2 * r + c, seed) for r in range(3)) for c, seed in ((0, 1), (1, 2))]
    repeats = [min(of(2 * r + c, c, seed) for r in (1, 2)) for c, seed in ((0, 1), (1, 2))]
    assert found["plain"].likeness == (1.0, 1.0)
    assert found["other"].likeness == pytest.approx(expected)
    assert gallery.repeats == pytest.approx(dict(zip(cases, repeats, strict=True)))
    assert (found["other"].calls, found["other"].rows) == (10, 20)
    words = floor(gallery)
    assert words is not None
    assert words.startswith("noise floor: plain drawn again has SSIM p5 0.9")


def test_the_noise_floor_of_pictures_that_repeat() -> None:
    """To the bit, and nothing is said where nothing was drawn twice."""
    gallery = PictureComparison()
    for seed in (1, 2):
        gallery.add("plain", Pair("a", seed), picture(waves(seed)))
    assert floor(gallery) is None
    gallery.add("plain", Pair("a", 1), picture(waves(1)))
    assert floor(gallery) == "noise floor: plain draws the same picture to the bit each time"


def test_a_picture_that_is_none_drops_its_arm() -> None:
    """Of the reference it ends the bench; one too small to compare ends it too."""
    with pytest.raises(ModelError, match="no picture: all of its pixels"):
        PictureComparison().add("dynamic", PAIR, picture(None))
    with pytest.raises(UsageError, match="pictures of 8×8 are too small"):
        PictureComparison().add("plain", PAIR, picture(waves(0, side=8)))

    arms = own_arms(artist_of("ddim"), [6], PictureComparison(), clock())
    with pytest.raises(DynxError, match="too small"):
        run(arms, [Pair("", 1)])


def standing(dynamic: Sequence[float], calls: float = 10, target: float = 0.95, speed: float = 5.0) -> StaticComparison:
    """Against statics of 5, 8, 10 and 20 calls, of which the slower ones are better."""
    others = {"a 5": (5.0, 0.8), "a 8": (8.0, 0.93), "b 8": (8.0, 0.951), "b 10": (10.0, 0.96), "b 20": (20.0, 0.99)}
    quality = {name: Quality((p5, 0.995), n, 2 * n) for name, (n, p5) in others.items()}
    quality |= {"plain": Quality((1.0, 1.0), 50, 100), "dynamic": Quality(tuple(dynamic), calls, 2 * calls)}
    speeds = {name: 50 / q.calls for name, q in quality.items()} | {"dynamic": speed}
    return StaticComparison(speeds, quality, tuple(others), target)


def test_the_rivals_are_the_fastest_static_arms_that_are_as_good() -> None:
    """As good as dynamic's tail, and as what was asked for, where that is easier; one rival is named once."""
    assert standing([0.97, 0.99]).baselines() == {
        "the cheapest static of equal p5": "b 20",
        "the cheapest static of p5 0.95": "b 8",
    }
    assert standing([0.955, 0.99], target=0.955).baselines() == {"the cheapest static of equal p5": "b 10"}
    assert standing([0.96, 0.99], target=0.955).baselines() == {"the cheapest static of equal p5": "b 10"}
    assert standing([0.92, 0.99]).baselines() == {"the cheapest static of equal p5": "a 8"}
    assert standing([0.999, 0.999], target=0.998).baselines() == {}
    assert StaticComparison({}, {}, (), 0.95).baselines() == {}


def test_the_words_name_tails_calls_and_what_equals_them() -> None:
    """All figures that a claim rests on; a bar out of reach of all static arms is said."""
    first, few, at_own, at_target, equal = standing([0.97, 0.99]).sentences()

    assert first == (
        "dynamic: 10.0 network calls a picture to plain's 50.0; SSIM to plain's pictures p5 0.970, worst 0.970, "
        "median 0.980; at least 0.95 in 2 of 2, 100.0 % [15.8, 100.0]"
    )
    assert few.startswith("of 2 pictures p5")
    assert at_own == "at p5 0.970, as dynamic's: b 20 takes 20.0 network calls, 2.00x of dynamic's"
    assert at_target == "at p5 0.950, as asked for: b 8 takes 8.0 network calls, 0.80x of dynamic's"
    assert equal == (
        "at about equal calls and time: b 10 (10.0 network calls) p5 0.960, worst 0.960; dynamic p5 0.970, worst 0.970"
    )
    assert "at p5 0.992, as dynamic's: no static arm reaches it" in standing([0.992, 0.999]).sentences()


def test_equal_calls_and_equal_time_may_be_other_arms() -> None:
    """The nearest of each, the better tail of two alike, and none where all are far."""
    said = standing([0.97, 0.99], calls=8, speed=9.0).sentences()
    far = standing([0.97, 0.99], calls=14, speed=100.0).sentences()

    assert any(s.startswith("at about equal calls: b 8 ") for s in said)
    assert any(s.startswith("at about equal time: a 5 ") for s in said)
    assert not any("equal calls" in s or "equal time" in s for s in far)


def test_a_dynamic_arm_that_draws_plain_claims_nothing() -> None:
    """Its tail is told, and no equality."""
    (first, _) = standing([1.0, 1.0], calls=50).sentences()

    assert "50.0 network calls a picture to plain's 50.0; SSIM to plain's pictures p5 1, worst 1" in first


def test_columns_for_the_table() -> None:
    """Calls and tails, rounded down; only equal pictures are 1."""
    found = columns({"plain": Quality((1.0,), 50, 100), "x": Quality((0.94996,), 8.25, 16)})

    assert found == {
        "calls": {"plain": "50.0", "x": "8.2"},
        "SSIM p5": {"plain": "1", "x": "0.949"},
        "worst": {"plain": "1", "x": "0.949"},
    }


@pytest.mark.parametrize(
    ("reached", "of", "verdict"),
    [(16, 16, "pass"), (95, 100, "pass"), (94, 100, "inconclusive"), (80, 100, "fail"), (0, 0, "inconclusive")],
)
def test_the_quality_gate(reached: int, of: int, verdict: str) -> None:
    """At least 95 % of the pictures; failing takes an interval that is below as a whole."""
    gate = min_quality(reached, of, 0.9)

    assert (gate.verdict, gate.bar) == (Verdict(verdict), 0.95)
    if of:
        low, high = two_sided(of, reached, 0.05)
        said = (
            f"{reached} of {of} pictures reach SSIM 0.9, {100 * reached / of:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"
        )
        assert gate.reason.startswith(said)
        assert (high < 0.95) == (verdict == "fail")


def test_the_quality_gate_s_limits() -> None:
    """An arm that failed fails it, and what is no likeness is refused."""
    assert min_quality(0, 0, 0.9, failure="boom").verdict is Verdict.FAIL
    for bar in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(UsageError, match="must be an SSIM"):
            min_quality(1, 1, bar)
