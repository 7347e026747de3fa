"""Learning a pipeline's steps: what is promised holds on new pictures, and nothing is learned where there is nothing to learn."""

from __future__ import annotations

import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pipelines import ddpm, pipeline, smooth, stable_diffusion, turbo

from dynx.diffusion import calibrate as learning
from dynx.diffusion import schedule_search
from dynx.diffusion import step_sweep as climbing
from dynx.diffusion.apply_profile import read_step_profile
from dynx.diffusion.assembly import LoadedImageGenerator
from dynx.diffusion.engine import Engine
from dynx.diffusion.evidence import requests_for
from dynx.diffusion.generator import ImageGenerator
from dynx.diffusion.plan import ImageGeneratorDecisions, ImageGeneratorPlan, ImageGeneratorRequest
from dynx.diffusion.profile_data import StepSchedules, from_profile
from dynx.diffusion.similarity import ssim
from dynx.diffusion.step_sweep import Partial, StepSweep, colour_map, sweep_steps, time_steps
from dynx.diffusion.types import Request
from dynx.errors import UnsupportedModelError, UsageError
from dynx.runtime.decision import Decision
from dynx.runtime.device import probe
from dynx.runtime.loading import Source
from dynx.runtime.profile import Profile, ProfileKey

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning")

MACHINE = probe()
FOLDER = tempfile.TemporaryDirectory()  # of a model that is made in memory: there are no weights in it


def assembly_of(pipe: Any, **wish: Any) -> LoadedImageGenerator:
    """As if it had been loaded from a folder."""
    key = ProfileKey(task="draw", model="0" * 64, companion=None, device="here", dtype="float32")
    decisions = ImageGeneratorDecisions(
        model=Decision("tiny", ""),
        device=Decision("cpu", ""),
        dtype=Decision("float32", ""),
        threads=Decision(1, ""),
        profile=Decision("none", ""),
        backend=Decision("torch-eager", ""),
    )
    source = Source("tiny", Path(FOLDER.name), "folder")
    plan = ImageGeneratorPlan(
        ImageGeneratorRequest(model="tiny", **wish), source, MACHINE, key, None, {}, bundled=False, decisions=decisions
    )
    return LoadedImageGenerator(plan, Engine(pipe), None)


def ticking() -> Any:
    """A clock that goes on by a hundredth of a second whenever it's looked at."""
    return itertools.count(0, 0.01).__next__


@pytest.fixture(autouse=True, scope="module")
def few() -> Any:
    """No more pictures than are needed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "MAX_PICTURES", learning.MIN_PICTURES)
        yield


@pytest.fixture(scope="module")
def learned(few: None) -> tuple[LoadedImageGenerator, learning.Findings, list[tuple[float, str]]]:
    """The perfect denoiser, calibrated once; without skipping, which would draw every picture alone."""
    before, schedule_search.TRIED_SKIP_THRESHOLDS = schedule_search.TRIED_SKIP_THRESHOLDS, ()
    assembly = assembly_of(smooth(), quality=0.9)
    heard: list[tuple[float, str]] = []
    found = learning.calibrate(
        assembly, [], budget=1e6, clock=clock_of(assembly), progress=lambda share, what: heard.append((share, what))
    )
    schedule_search.TRIED_SKIP_THRESHOLDS = before
    return assembly, found, heard


def with_profile(
    assembly: LoadedImageGenerator, found: learning.Findings, **wish: Any
) -> tuple[LoadedImageGenerator, list[str]]:
    """The pipeline as it is drawn with what was learned, and what was warned of."""
    profile = Profile.from_json(found.profile.to_json().encode())
    plan = replace(
        assembly.plan,
        request=replace(assembly.plan.request, **wish),
        profile=profile,
        arrays=found.arrays,
        decisions=replace(assembly.decisions),
    )
    made, warned = LoadedImageGenerator(plan, assembly.engine, None), list[str]()
    made.step_profile = read_step_profile(made, warned.append)
    return made, warned


def test_what_is_promised_holds_on_new_pictures(learned: Any) -> None:
    """Few steps on average, and SSIM to the plain run where the certificate has it, on seeds that calibration never saw."""
    assembly, found, _ = learned
    used, warned = with_profile(assembly, found)
    artist = ImageGenerator(used)
    alike, steps = [], set()
    for seed in range(60):
        plain = assembly.engine.draw(Request((), (seed,)))[0]
        picture = artist.draw("", seed)
        assert picture.pixels is not None
        assert picture.stats.calls == picture.stats.run < plain.stats.calls == found.full_steps
        alike.append(ssim(picture.pixels, plain.pixels))
        steps.add(picture.stats.planned)

    assert warned == []
    assert found.reached is not None
    assert artist.guarantee is not None
    assert (artist.guarantee.n, artist.guarantee.quality) == (found.certificate.n, 0.9)
    assert sum(s < 0.9 for s in alike) <= 7  # P(more | 5 %) = 1 %
    assert steps <= {*found.schedules.steps}
    assert max(steps) < found.full_steps
    assert found.constant is None or found.certificate.cost <= found.seconds[found.constant] * 1.3


def test_findings_fit_each_other(learned: Any) -> None:
    """Certificate, table, words and profile speak of the same pictures; what's stored certifies the same again."""
    _, found, heard = learned
    n = found.certificate.n

    assert found.pictures >= learning.MIN_PICTURES
    assert n == round(found.pictures * learning.SPLIT_SHARES[1])
    assert {tail.n for tail in found.likeness.values()} == {n}
    assert found.power == learning.power(found.pictures)
    assert f"of {n} pictures, p5 {found.reached.p5:.3f}, worst {found.reached.worst:.3f}" in found.summary
    profile = json.loads(found.profile.to_json())
    again = from_profile(profile["fitted"], profile["measured"], found.arrays)
    assert again.certify(0.9, 0.95, 0.05) == found.certificate
    assert profile["fitted"]["pixels"] == [16, 16]
    shares = [share for share, _ in heard]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert any("each in every way; " in what for _, what in heard)


def test_parts_do_not_share_pictures(learned: Any) -> None:
    """Trying, choosing and certifying pictures have other seeds, and the certifying ones change neither rule nor predictor."""
    _, found, _ = learned
    seeds = [s for r in requests_for(learned[0], []) for s in r.seeds]
    choosing, certifying = learning.split(found.pictures, learning.CALIBRATION_SEED, learning.SPLIT_SHARES)
    profile = json.loads(found.profile.to_json())
    fitted = from_profile(profile["fitted"], profile["measured"], found.arrays)
    worse = replace(fitted, certifying=replace(fitted.certifying, likeness=fitted.certifying.likeness - 1))

    assert len(set(seeds)) == len(seeds)
    assert not set(choosing.tolist()) & set(certifying.tolist())
    assert np.array_equal(worse.predictor.weights, fitted.predictor.weights)
    assert not worse.certify(0.9, 0.95, 0.05).active


def test_another_quality_is_certified_from_the_same_evidence(learned: Any) -> None:
    """A lower one takes fewer steps; one that can't be shown is plain, with the reason."""
    assembly, found, _ = learned
    low, _ = with_profile(assembly, found, quality=0.7)
    high, _ = with_profile(assembly, found, quality=1.0)

    assert low.step_profile is not None
    assert low.step_profile.certificate.cost < found.certificate.cost
    assert "SSIM to the full run at least 0.7 for 95 % of pictures" in low.decisions.steps.reason
    assert high.step_profile is None
    assert high.decisions.steps.value == "plain"
    assert "no fewer steps were seen to reach SSIM 1 in 95 % of pictures" in high.decisions.steps.reason


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"guidance": 3.0}, "measured with guidance None, not guidance 3"),
        ({"size": (32, 32)}, "measured with the pipeline's own size, not size 32x32"),
        ({"negative": "blue"}, "measured with no negative prompt, not the negative prompt 'blue'"),
    ],
    ids=["guidance", "size", "negative"],
)
def test_other_settings_are_drawn_plain(learned: Any, setting: dict[str, Any], words: str) -> None:
    """What was measured of other pictures isn't applied, and that's said in a line."""
    assembly, found, _ = learned
    made, warned = with_profile(assembly, found, **setting)

    assert made.step_profile is None
    assert len(warned) == 1
    assert words in warned[0]
    assert made.decisions.steps.value == "plain"


def test_its_own_size_asked_for_is_no_other(learned: Any) -> None:
    """Asking for what the pipeline draws anyway changes nothing; another scheduler does."""
    assembly, found, _ = learned
    same, warned = with_profile(assembly, found, size=(16, 16))
    assert same.step_profile is not None
    assert warned == []

    adapter = replace(assembly.engine.adapter, scheduler="EulerDiscreteScheduler")
    other = LoadedImageGenerator(assembly.plan, Engine(assembly.engine.pipe, adapter), None)
    made, warned = with_profile(other, found)
    assert made.step_profile is None
    assert "measured with scheduler DDIMScheduler, not scheduler EulerDiscreteScheduler" in warned[0]


def test_damaged_profiles_are_passed_over(learned: Any) -> None:
    """One line, and plain; never an error."""
    assembly, found, _ = learned
    for arrays in ({}, {**found.arrays, "certifying.likeness": np.zeros((3, 2))}):
        made, warned = with_profile(assembly, replace(found, arrays=arrays))
        assert made.step_profile is None
        assert len(warned) == 1
        assert "contents can't be used" in warned[0]


@pytest.mark.usefixtures("few")
def test_an_unreachable_quality_is_plain_and_says_why() -> None:
    """A profile all the same: it has the evidence for other qualities."""
    assembly = assembly_of(smooth(), quality=1.0)
    found = learning.calibrate(assembly, [], budget=1e6, clock=clock_of(assembly))

    assert (found.reached, found.correlation, found.certificate.active) == (None, None, False)
    assert found.summary.startswith("plain: no fewer steps were seen to reach SSIM 1 in 95 % of pictures")
    assert with_profile(assembly, found, quality=0.7)[0].step_profile is not None


@pytest.mark.parametrize(
    ("pipe", "words"),
    [(turbo, "drawn plain: "), (ddpm, "draws noise at every step")],
)
def test_pipelines_that_draw_plain_only_are_refused(pipe: Any, words: str) -> None:
    """Few-step models and random schedulers: in one line, before anything is drawn."""
    assembly = assembly_of(pipe(), guidance=0.0 if pipe is turbo else None)
    calls: list[Any] = []
    assembly.engine.draw = lambda *a, **k: calls.append(a)  # type: ignore[method-assign,assignment]
    with pytest.raises(UnsupportedModelError, match=words) as error:
        learning.calibrate(assembly, ["a cat"], budget=100, clock=ticking())
    assert "\n" not in str(error.value)
    assert calls == []


def test_pictures_that_are_not_numbers_are_refused() -> None:
    """NaN is said, with what may help."""
    pipe = smooth()
    pipe.unet.pictures.data[:] = np.nan
    with pytest.raises(UnsupportedModelError, match="not numbers") as error:
        learning.calibrate(assembly_of(pipe), [], budget=100, clock=ticking())
    assert error.value.hint == "try `dtype` float32"


def test_no_prompts() -> None:
    """A pipeline that draws from prompts needs some."""
    with pytest.raises(UsageError, match="no prompts"):
        learning.calibrate(assembly_of(pipeline("stable-diffusion")), [], budget=100, clock=ticking())


def test_a_budget_too_small_names_one_that_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused early or after trying; the number in the hint is enough, and what was tried is not tried again."""
    monkeypatch.setattr(schedule_search, "TRIED_SKIP_THRESHOLDS", ())
    monkeypatch.setattr(schedule_search, "STEP_COUNTS", (5, 8, 12))
    assembly, budget = assembly_of(smooth(), quality=0.9), 0.1
    partial = Partial(tmp_path / "x", {})
    said: list[str] = []
    for refused in range(3):  # noqa: B007 - used below; once before anything is tried, at most once more after it
        try:
            learning.calibrate(assembly, [], budget=budget, clock=clock_of(assembly), partial=partial, say=said.append)
            break
        except UsageError as error:
            complaint, hint = str(error), error.hint or ""
        assert "120 pictures at every number of steps take at least" in complaint
        budget = float(hint.removeprefix("`budget` "))
    else:
        pytest.fail("the number in the hint was never enough")
    assert refused >= 1
    assert said == ["going on after no pictures that an earlier calibration drew"] * (refused == 2)


def clock_of(assembly: LoadedImageGenerator) -> Any:
    """A second for every row that the network ran for."""
    engine, spent = assembly.engine, [0.0]
    own = Engine.draw

    def draw(*args: Any, **kwargs: Any) -> Any:
        pictures = own(engine, *args, **kwargs)
        spent[0] += pictures[0].stats.rows
        return pictures

    engine.draw = draw  # type: ignore[method-assign]
    return lambda: spent[0]


def test_a_stopped_calibration_goes_on(tmp_path: Path, learned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C leaves whole batches; the next run takes them over, says so, finds the same, and leaves no file."""
    monkeypatch.setattr(schedule_search, "TRIED_SKIP_THRESHOLDS", ())
    assembly = assembly_of(smooth(), quality=0.9)
    partial = Partial(tmp_path / "deep" / "x.safetensors", learning.settings(assembly, []))
    batches = []

    def stopping(*args: Any, **others: Any) -> StepSweep:
        if len(batches) == 4:
            raise KeyboardInterrupt
        batches.append(sweep_steps(*args, **others))
        return batches[-1]

    monkeypatch.setattr("dynx.diffusion.evidence.sweep_steps", stopping)
    with pytest.raises(KeyboardInterrupt):
        learning.calibrate(assembly, [], budget=20, clock=ticking(), partial=partial)
    kept = partial.load()
    assert kept is not None
    assert np.array_equal(kept[1].likeness, np.concatenate([b.likeness for b in batches]))
    assert [p.name for p in partial.path.parent.iterdir()] == ["x.safetensors"]

    monkeypatch.setattr("dynx.diffusion.evidence.sweep_steps", sweep_steps)
    monkeypatch.setattr(learning, "choose_step_schedules", None)  # it isn't chosen again
    said: list[str] = []
    found = learning.calibrate(assembly, [], budget=20, clock=ticking(), partial=partial, say=said.append)
    assert said == ["going on after 32 pictures that an earlier calibration drew"]
    whole = learning.calibrate(assembly, [], budget=20, clock=ticking(), partial=partial)
    assert whole.certificate == found.certificate
    for name, values in whole.arrays.items():
        assert np.array_equal(values, found.arrays[name])
    partial.remove()
    assert list(partial.path.parent.iterdir()) == []
    partial.remove()


def test_a_partial_file_of_something_else_counts_as_none(tmp_path: Path) -> None:
    """Other settings, damage, or a folder that can't be written: begun anew, without a word."""
    steps = StepSchedules(FINE_OF(smooth()), {4: (0, 10, 20, 30, 50)}, "euler")
    made = StepSweep(*(np.ones(shape) for shape in ((3, 6), (3, 0), (3, 2), (0, 0), (0, 3))))
    partial = Partial(tmp_path / "x", {"quality": 0.9})
    state = {"ladder": steps.to_json()}
    assert partial.load() is None
    partial.save(state, None)
    assert partial.load() == (state, None)
    partial.save(state, made)
    assert partial.load() is not None
    assert Partial(tmp_path / "x", {"quality": 0.8}).load() is None

    partial.save(state, replace(made, likeness=np.ones((3, 4))))
    assert partial.load() is None
    (tmp_path / "x").write_bytes(b"{}")
    assert partial.load() is None
    inside = Partial(tmp_path / "x" / "y", {})
    inside.save(state, made)
    assert inside.load() is None
    inside.remove()


def FINE_OF(pipe: Any) -> Any:  # noqa: N802
    """A pipeline's own grid."""
    return Engine(pipe).initial_call(Request((), (1,))).grid


def test_skipped_pictures_are_measured_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipping is decided for a batch as a whole, so a batch would show another likeness than pictures drawn alone."""
    engine = Engine(smooth())
    nodes = {12: (0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 45, 50)}
    asked = Request((), (1, 2, 3, 4))
    sizes: list[int] = []
    own = schedule_search.draw

    def counting(engine: Engine, request: Request, *args: Any) -> Any:
        sizes.extend([len(request)] if args else [])  # not plain's, which skips nothing
        return own(engine, request, *args)

    monkeypatch.setattr(climbing, "draw", counting)
    for skip, size in ((0.0, 4), (0.5, 1)):
        sizes.clear()
        steps = StepSchedules(FINE_OF(engine.pipe), nodes, "dpm++2m", None, skip)
        made = sweep_steps(engine, asked, steps)
        assert set(sizes) == {size}
        alone = [sweep_steps(engine, one, steps) for one in schedule_search.one_by_one(asked)]
        assert made.likeness == pytest.approx(np.concatenate([a.likeness for a in alone]), abs=1e-4)
        assert made.looks == pytest.approx(np.concatenate([a.looks for a in alone]), abs=1e-3)


def test_costs_follow_the_rows_that_ran() -> None:
    """Seconds rise with the number of steps, plain included; a clock that makes no sense gives costs in proportion."""
    assembly = assembly_of(smooth())
    steps = StepSchedules(FINE_OF(assembly.engine.pipe), {4: (0, 10, 20, 30, 50), 5: (0, 10, 20, 30, 40, 50)}, "euler")
    costs, plain = time_steps(assembly.engine, [Request((), (1,))], steps, clock_of(assembly))
    assert (*costs.reach, costs.full, plain) == pytest.approx((4, 5, len(steps.longest.grid), 50))

    backwards = itertools.count(0, -1).__next__
    costs, plain = time_steps(assembly.engine, [Request((), (1,))], steps, backwards)
    assert 0 < costs.reach[0] < costs.reach[1] < costs.full < plain


def test_colours_are_fitted() -> None:
    """The map from latents to colours is least squares, from pictures of a latent pipeline; pixels need none."""
    rng = np.random.default_rng(0)
    latents, truth = rng.standard_normal((50, 4)), rng.standard_normal((5, 3))
    assert colour_map(latents, latents @ truth[:-1] + truth[-1]) == pytest.approx(truth)
    assert colour_map(np.zeros((0, 0)), np.zeros((0, 3))) is None

    pipe = stable_diffusion()
    engine = Engine(pipe)
    asked = Request(("a cat", "moon"), (1, 2))
    fine = engine.initial_call(asked).grid
    made = sweep_steps(engine, asked, StepSchedules(fine, {4: (0, 10, 20, 30, len(fine))}, "euler"))
    assert made.latents.shape[1:] == (4,)
    assert len(made.latents) == len(made.colours) == 2 * 8 * 8
    assert (made + made).likeness.shape == (4, 2)


def test_a_pipeline_that_cannot_be_held_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the loop isn't what it looks like every run is plain, and all would seem alike: no profile may say so."""
    from dynx.diffusion.sampler import Mismatch, Sampler

    def differs(*_: Any) -> None:
        raise Mismatch("it changes its latents")

    monkeypatch.setattr(Sampler, "_check", differs)
    with pytest.raises(UnsupportedModelError, match=r"drawn plain: .*it changes its latents"):
        learning.calibrate(assembly_of(smooth()), [], budget=100, clock=ticking())


def test_needed_and_constants() -> None:
    """Steps needed are those from which on it stays good; constants are tested from the most down."""
    likeness = np.asarray([[0.9, 0.99, 0.9, 0.97, 1], [0.96, 0.97, 0.98, 0.99, 1], [0.1, 0.2, 0.3, 0.4, 1]])
    assert learning.needed(likeness, [4, 5, 6, 8, 20], 0.95).tolist() == [8, 4, 20]

    many = np.tile([[0.99, 0.5, 0.96, 0.99, 1.0]], (60, 1))
    assert learning.best_constant(many, [4, 5, 6, 8], 0.95) == 6
    assert learning.best_constant(many[:50], [4, 5, 6, 8], 0.95) is None
    assert learning.rank_correlation(np.asarray([1.0, 2, 2, 9]), np.asarray([4.0, 5, 5, 6])) == pytest.approx(1)
    assert learning.rank_correlation(np.asarray([1.0, 2, 3]), np.asarray([3.0, 2, 1])) == pytest.approx(-1)
    assert learning.rank_correlation(np.ones(3), np.asarray([3.0, 2, 1])) is None


def test_ladders_leave_room_for_their_largest_number() -> None:
    """However far the best grid's first step goes, every number of steps has a grid."""
    n = 12
    errors = np.full((n + 1,) * 3, np.inf)
    for h, i, j in itertools.product(range(n + 1), repeat=3):
        if h <= i < j:
            errors[h, i, j] = 0.0 if (i, j) == (0, 8) else 1.0
    fine = FINE_OF(smooth()).thinned(n)
    made = schedule_search.plan_step_schedules(fine, errors, 1.0, "euler", [4, 5, 6, 7, 8])

    assert made.levels == (4, 5, 6, 7, 8)
    assert {nodes[:2] for nodes in made.nodes.values()} == {(0, 5)}
