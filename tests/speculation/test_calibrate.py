"""Calibration: what it reads off texts is what live drafting does, and its verdict follows the costs."""

from __future__ import annotations

import random
import statistics
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from support.models import Clock, TimedBackend, perturbed, tiny

from dynx.runtime.decision import Decision
from dynx.runtime.profile import Profile, ProfileKey
from dynx.speculation import calibrate as calibration
from dynx.speculation.calibrate import calibrate, exit_candidates
from dynx.speculation.calibration_check import Check, correction
from dynx.speculation.calibration_prompts import evenly
from dynx.speculation.engine import AcceptanceProfile, Drafters, Engine
from dynx.speculation.loops import loop_start
from dynx.speculation.policy import MAX_DRAFT_TOKENS, Plain, Static
from dynx.speculation.prediction import choose_set
from dynx.speculation.setup import acceptance_profile_of, padded_lengths_of
from dynx.speculation.timing import Samples, measure
from dynx.speculation.traces import Text, lookup_traces, read_early, read_model, write_texts
from dynx.speculation.types import DraftSource, Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping

GREEDY = Sampling()


@pytest.fixture(autouse=True)
def fewer_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the texts at half the length: these tests are about logic, not about precision."""
    monkeypatch.setattr("dynx.speculation.traces.ANSWER_TOKENS", 48)
    monkeypatch.setattr("dynx.speculation.calibrate.MAX_TEXTS", 6)
    monkeypatch.setattr("dynx.speculation.calibrate.still", lambda before, *_: before)  # there are no files


def engine_of(clock: Clock, *, noise: float = 0.1, drafter_layer: float = 0.01, exits: bool = True) -> Engine:
    """A target of one second a layer, a noisy copy that drafts, and everything else a target has."""
    small = TimedBackend(perturbed(tiny("llama"), noise), clock, layer=drafter_layer)
    target = TimedBackend(tiny("llama"), clock, layer=1.0)
    assert target.can_exit.value is exits
    return Engine(target, Drafters(small, 1), clock=clock)


def assembly_of(engine: Engine, kinds: set[str]) -> Any:
    """What calibration needs of an assembly."""
    plan = SimpleNamespace(
        kinds=frozenset(kinds),
        drafter=None,
        request=SimpleNamespace(quantize="none", chat=False),
        key=ProfileKey("generate", "0" * 16, None, "here", "float32"),
        source=SimpleNamespace(name="tiny", folder=None),
        machine=SimpleNamespace(cpu="a processor"),
        device="cpu",
        threads=1,
        weights="0" * 32,
    )
    decisions = SimpleNamespace(backend=Decision("torch-eager", "the tests'"))
    return SimpleNamespace(
        engine=engine, plan=plan, decisions=decisions, sampling=Sampling, tokenizer=spelled, end_tokens=frozenset()
    )


def spelled(text: str) -> dict[str, list[int]]:
    """A tokenizer of single letters that knows few of them."""
    return {"input_ids": [ord(letter) % 61 for letter in text[:40]]}


def written(engine: Engine, count: int = 3, tokens: int = 48) -> list[Text]:
    """Texts of the target's own."""
    texts = []
    for i in range(count):
        run = engine.start(Request([i + 1, 7, 9], tokens), Plain())
        texts.append(Text([i + 1, 7, 9, *(t.id for t in run)], 3))
    return texts


def live(engine: Engine, text: Text, at: int, origin: DraftSource) -> tuple[list[float], int]:
    """Signals and kept drafts of one real round from position `at`, to the depth that the text allows."""
    depth = min(MAX_DRAFT_TOKENS, len(text.tokens) - at)
    run = engine.start(Request(text.tokens[: at - 1], 2 + depth), Static(origin, depth))
    for _ in run:
        pass
    first = run.rounds[0]
    return list(first.signals), first.kept


@pytest.mark.parametrize("origin", ["draft", "self", "lookup"])
def test_one_reading_shows_what_live_drafting_would_do(origin: DraftSource) -> None:
    """From every position, the drafts kept live and their signals are those read off the text in one pass."""
    engine = engine_of(Clock())
    for text in written(engine, count=2):
        if origin == "draft":
            small = engine.drafters.model
            assert small is not None
            traces = read_model(small, text, engine.target.vocab, GREEDY).traces(text)
        elif origin == "self":
            traces = read_early(engine.target, text, 1, GREEDY).traces(text)
        else:
            traces = lookup_traces(text, ())
        offered = 0
        for i, trace in enumerate(traces):
            at = text.prompt + 1 + i
            if not trace.signals or at + 1 >= len(text.tokens):
                continue
            signals, kept = live(engine, text, at, origin)
            room = len(signals)
            assert kept == min(trace.kept, room)
            judged = min(kept + 1, room)
            assert signals[:judged] == pytest.approx(trace.signals[:judged], abs=1e-3)
            offered += 1
        assert offered > 3


def test_a_good_drafter_is_kept_and_its_gain_foretold() -> None:
    """With a cheap drafter that is often right, the replay's prediction is within 10 % of what a run then takes."""
    engine = engine_of(Clock(), noise=0.05)

    found = calibrate(assembly_of(engine, {"draft", "lookup"}), budget=1e9, clock=engine.clock)

    assert "draft" in found.origins
    assert found.predicted > 1.3
    assert found.measured == pytest.approx(found.replayed_speedup, rel=0.1)
    assert found.measured == pytest.approx(found.predicted, rel=0.1)


def test_a_useless_drafter_is_dropped() -> None:
    """A drafter that costs half a pass and never guesses right isn't loaded again, and the summary says what it missed."""
    engine = engine_of(Clock(), noise=5.0, drafter_layer=0.5)

    found = calibrate(assembly_of(engine, {"draft"}), budget=1e9, clock=engine.clock)

    assert found.origins == ()
    assert found.predicted == 1.0
    assert "plain" in found.summary
    assert "breaks even" in found.summary


def mistimed(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The first `times` timings find the draft model's passes a hundred times shorter than they are."""
    real, left = measure, [times]

    def wrong(*args: Any, **kwargs: Any) -> Samples:
        samples = real(*args, **kwargs)
        left[0] -= 1
        if left[0] >= 0:
            short = {c: [s / 100 for s in v] if c[0] == "draft" else v for c, v in samples.cells.items()}
            return Samples(short)
        return samples

    monkeypatch.setattr("dynx.speculation.timing.measure", wrong)


def test_passes_that_the_check_contradicts_are_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment in which some passes were timed wrongly doesn't get into the profile: the answers of the check show it."""
    engine = engine_of(Clock(), noise=0.05, drafter_layer=1.5)
    mistimed(monkeypatch, 1)

    found = calibrate(assembly_of(engine, {"draft"}), budget=1e9, clock=engine.clock)

    assert found.origins == ()
    assert found.put_aside == ()
    assert found.costs.draft["draft"](1) == pytest.approx(1.5 * engine.target.layers, rel=0.1)


class Padding(TimedBackend):
    """Passes of one to three tokens take one and a half times what passes of four do, and it can be told to run them wider."""

    instead: Mapping[int, int] = MappingProxyType({})

    def set_padded_lengths(self, lengths: Mapping[int, int]) -> bool:
        """As OpenVINO's."""
        self.instead = lengths
        return True

    def price(self, count: int, layers: int | None = None) -> float:
        """Of the width that is run."""
        count = self.instead.get(count, count)
        return super().price(count, layers) * (1.5 if count < 4 else 1.0)


def test_passes_that_cost_less_wider_are_run_wider() -> None:
    """From then on, in what the profile expects of them and after it is read; timing them anew begins with none of that."""
    clock = Clock()
    small = TimedBackend(perturbed(tiny("llama"), 0.05), clock, layer=0.01)
    target = Padding(tiny("llama"), clock)
    engine = Engine(target, Drafters(small), clock=clock)

    found = calibrate(assembly_of(engine, {"draft"}), budget=1e9, clock=clock)
    again = calibrate(assembly_of(engine, {"draft"}), budget=1e9, clock=clock)

    instead = {1: 4, 2: 4, 3: 4, 16: 17}  # 17 tokens cost no more than 3 % above 16
    assert target.instead == instead == padded_lengths_of(found.profile) == padded_lengths_of(again.profile)
    assert found.costs.target(1) == found.costs.target(4) == pytest.approx(target.price(4))
    assert found.measured == pytest.approx(found.predicted, rel=0.1)
    plain = engine_of(Clock())
    assert padded_lengths_of(calibrate(assembly_of(plain, {"draft"}), budget=1e9, clock=plain.clock).profile) == {}


@pytest.mark.parametrize("written", [None, [1, 4], {"one": 4}, {"1": None}, {"1": 1, "0": 4, "4": 2, "2": 99}])
def test_widths_that_make_no_sense_are_left_out(written: Any) -> None:
    """A profile of another hand makes no pass narrower than asked, or endless."""
    profile = cast("Profile", SimpleNamespace(fitted={"widened": written}))
    assert padded_lengths_of(profile) == {}
    assert padded_lengths_of(cast("Profile", SimpleNamespace(fitted={}))) == {}


def test_what_is_slower_than_plain_is_put_aside_whatever_the_replay_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs that stay wrong don't bring in a drafter that makes answers slower: plain in turns with it decides, and it's said."""
    engine = engine_of(Clock(), noise=0.05, drafter_layer=1.5)
    mistimed(monkeypatch, 9)

    found = calibrate(assembly_of(engine, {"draft", "lookup"}), budget=1e9, clock=engine.clock)

    assert "draft" not in found.origins
    assert "draft" not in found.profile.fitted["origins"]
    assert len(found.put_aside) == 1
    assert "put aside: the draft model" in found.summary
    assert " took 0." in found.summary
    assert "where the replay said" in found.summary


def test_lookup_that_loses_is_left_out_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even looking for repetitions made answers slower, the profile keeps the next run from it."""
    engine = engine_of(Clock())
    losing = Check(0.9, 3)
    monkeypatch.setattr("dynx.speculation.calibration_check.confirm", lambda *_: losing)

    found = calibrate(assembly_of(engine, {"lookup"}), budget=1e9, clock=engine.clock)

    assert found.origins == ()
    assert found.profile.fitted["lookup"] is False


def test_a_profile_teaches_the_next_engine() -> None:
    """A stored profile comes back as knowledge, and writing with it gives the plain text."""
    engine = engine_of(Clock(), noise=0.05)
    found = calibrate(assembly_of(engine, {"draft", "self", "lookup"}), budget=1e9, clock=engine.clock)

    known = acceptance_profile_of(Profile.from_json(found.profile.to_json()))

    assert known.from_profile
    assert known.costs.target(1) == pytest.approx(found.costs.target(1) / found.costs.drift.factor, rel=0.01)
    request = Request([3, 1, 4], 60)
    plain = [t.id for t in engine.start(request, Plain())]
    dynamic = [
        t.id
        for t in Engine(engine.target, engine.drafters, acceptance_profile=known, clock=engine.clock).start(request)
    ]
    assert plain == dynamic


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.measured.pop("target"),
        lambda p: p.measured.update(target={"seconds_by_width": {"one": 1}}),
        lambda p: p.measured.update(target=[1, 2]),
        lambda p: p.fitted.update(reliability={"draft": {"weights": [1, 2], "typical": 0.5, "n": 3}}),
        lambda p: p.fitted.update(tokens_per_second="fast"),
    ],
)
def test_a_profile_that_does_not_parse_is_ignored_with_one_word(damage: Any) -> None:
    """Contents of another shape than calibration writes count as no profile at all, and one warning says so."""
    engine = engine_of(Clock())
    profile = calibrate(assembly_of(engine, {"draft"}), budget=1e9, clock=engine.clock).profile
    damage(profile)
    said: list[str] = []

    known = acceptance_profile_of(profile, warn=said.append)

    assert not known.from_profile
    assert len(said) == 1


def test_prompts_of_the_user_are_what_is_learned_from() -> None:
    """With --data the texts continue the user's prompts, and the profile says so."""
    engine = engine_of(Clock())
    prompts = [[5, 6, 7], [8, 9], [10]]

    texts = write_texts(engine, prompts, 8, GREEDY, engine.clock, 1e9, lambda _: None).texts
    found = calibrate(assembly_of(engine, {"draft"}), budget=1e9, clock=engine.clock, prompts=prompts)

    assert [list(t.tokens[: t.prompt]) for t in texts] == prompts
    assert found.profile.evidence["self_written"] is False
    assert found.profile.evidence["texts"] == 3


def test_the_budget_ends_the_measuring() -> None:
    """A budget far below what the passes take still gives a profile, from the least that is needed."""
    clock = Clock()
    engine = engine_of(clock)

    found = calibrate(assembly_of(engine, {"draft", "self", "lookup"}), budget=1.0, clock=clock)

    assert found.profile.evidence["texts"] == 2
    assert all(len(v) == 3 for v in found.samples.cells.values())


def test_the_smallest_set_that_is_as_good_as_any_wins() -> None:
    """A drafter that adds less than a hundredth is left out; below 1.02 nothing is drafted."""
    assert choose_set({"none": 1.0, "draft": 1.5, "draft + lookup": 1.505}) == (("draft",), 1.5)
    assert choose_set({"none": 1.0, "draft": 1.5, "lookup": 1.2, "draft + lookup": 1.7}) == (("draft", "lookup"), 1.7)
    assert choose_set({"none": 1.0, "draft": 1.01}) == ((), 1.0)
    assert choose_set({"none": 1.0}) == ((), 1.0)


def test_exit_candidates_lie_in_the_first_two_thirds() -> None:
    """Exits to consider are spread over layers 1 to two thirds, and there are none where the target can't exit."""
    deep: Any = SimpleNamespace(can_exit=Decision(True, ""), layers=24)
    shallow: Any = SimpleNamespace(can_exit=Decision(True, ""), layers=2)
    closed: Any = SimpleNamespace(can_exit=Decision(False, "no"), layers=24)

    assert exit_candidates(deep) == (3, 5, 8, 11, 13, 16)
    assert exit_candidates(shallow) == (1,)
    assert exit_candidates(closed) == ()


def test_knowledge_without_a_profile_is_a_fresh_start() -> None:
    """No profile: nothing measured, priors for every drafter."""
    known = acceptance_profile_of(None)

    assert isinstance(known, AcceptanceProfile)
    assert not known.costs.target.known
    assert 0 < known.model_for("draft", greedy=True).typical < 1


def test_few_answers_that_differ_do_not_refute() -> None:
    """0.93x over four answers, two of which gained, is within their spread; the same loss in each of them is not."""
    mixed = Check.of([(1.0, 1.3), (1.0, 0.9), (1.0, 1.2), (1.0, 0.9)])
    steady = Check.of([(1.0, 1.08), (1.0, 1.07), (1.0, 1.08), (1.0, 1.07)])

    assert mixed.speedup == pytest.approx(0.93, abs=0.01)
    assert steady.speedup == pytest.approx(0.93, abs=0.01)
    assert not mixed.below(1.0)
    assert steady.below(1.0)
    assert not Check.of([(1.0, 2.0)]).below(1.0)


def test_a_margin_covers_what_other_answers_give() -> None:
    """Of many checks of a drafter that neither gains nor loses about one in twenty says that it loses."""
    rng = random.Random(5)
    checks = [Check.of([(1.0, rng.lognormvariate(0, 0.2)) for _ in range(5)]) for _ in range(2000)]
    true = 1 / statistics.fmean(rng.lognormvariate(0, 0.2) for _ in range(20000))

    wrong = sum(check.below(true) for check in checks) / len(checks)

    assert 0.02 < wrong < 0.09


def test_lookup_within_the_checks_error_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short check that doesn't tell a loss from its own spread leaves lookup in the profile."""
    engine = engine_of(Clock())
    unsure = Check(0.93, 4, 0.2, ((0.93, 1.0),) * 4)
    monkeypatch.setattr("dynx.speculation.calibration_check.confirm", lambda *_: unsure)

    found = calibrate(assembly_of(engine, {"lookup"}), budget=1e9, clock=engine.clock)

    assert found.put_aside == ()
    assert found.profile.fitted["lookup"] is True


def test_a_long_check_corrects_the_replay_and_a_short_or_wild_one_hardly() -> None:
    """Many answers that are a fifth slower than replayed lower what is expected; a few, or answers all over the place, don't."""
    replayed = [(1.0, 0.5), (2.0, 1.6), (1.0, 0.8), (3.0, 1.5)]
    steady = [(plain, dynamic * 1.25) for plain, dynamic in replayed]
    wild = [(plain, dynamic * factor) for (plain, dynamic), factor in zip(replayed, (4.0, 0.3, 3.0, 0.5), strict=True)]

    assert 0.8 < correction(steady * 6, replayed * 6) < 0.85
    assert 0.93 < correction(steady, replayed) < 1.0
    assert correction(wild, replayed) == pytest.approx(1.0, abs=0.05)
    assert correction(steady[:1], replayed[:1]) == 1.0


def test_prompts_sorted_by_kind_are_taken_from_all_of_them() -> None:
    """A file of questions sorted by subject isn't judged by its first subject; a short one is taken whole."""
    assert evenly(range(480), 4) == [0, 240, 120, 360]
    assert sorted(evenly(range(480), 24)) == list(range(0, 480, 20))
    assert sorted(evenly(range(480), 24)[:6]) == [0, 80, 160, 240, 320, 400]
    assert evenly([1, 2, 3], 4) == [1, 2, 3]


def test_answers_end_where_they_end_and_loops_are_cut() -> None:
    """No text holds a loop or goes on past its end, and a model isn't run to the end of a loop."""
    engine = engine_of(Clock())
    prompts = [[1, 2, 3], [5, 6], [40, 41], [17]]
    whole = [answer(engine, prompt) for prompt in prompts]

    found = write_texts(engine, prompts, 8, GREEDY, engine.clock, 1e9, lambda _: None)
    ends = frozenset([whole[0][9], whole[1][12]])
    ended = write_texts(engine, prompts, 8, GREEDY, engine.clock, 1e9, lambda _: None, end_tokens=ends)

    assert len(found.texts) >= 2
    assert all(loop_start(text.tokens[text.prompt :]) is None for text in found.texts)
    assert len(ended.texts) >= 2
    for text in ended.texts:
        written = text.tokens[text.prompt :]
        full = whole[prompts.index(list(text.tokens[: text.prompt]))]
        assert written == full[: len(written)]
        assert not ends & set(written[:-1])


def answer(engine: Engine, prompt: list[int]) -> list[int]:
    """48 tokens."""
    run = engine.start(Request(prompt, 48), Plain())
    return [token.id for token in run]


def test_stages_share_the_budget() -> None:
    """Together they take no more than was allowed, and leave something for what has no share."""
    shares = (
        calibration.PASSES_SHARE,
        calibration.WRITING_SHARE,
        calibration.OWN_CANDIDATES_SHARE,
        calibration.CHECK_SHARE,
        calibration.TREE_CHECK_SHARE,
        calibration.BATCH_SHARE,
    )
    assert 0.9 <= sum(shares) < 1
    assert calibration.PASSES_SHARE + calibration.WRITING_SHARE < calibration.SHARE_BY_CHECK
