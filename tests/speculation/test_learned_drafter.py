"""What a model wrote becomes drafts: counted right, read back safely, tested on other prompts, and never a change of the text."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.models import Bushy, Clock, TimedBackend, tiny

from dynx.runtime.backends.eager import EagerBackend
from dynx.runtime.decision import Decision
from dynx.runtime.profile import Profile, ProfileKey, read_arrays, write_arrays
from dynx.speculation.calibrate import calibrate
from dynx.speculation.calibration_check import Check
from dynx.speculation.drafters.followers import FOLLOWING, PAIRS, RATES, Followers, counted, from_arrays
from dynx.speculation.drafters.next_tokens import NextTokens
from dynx.speculation.engine import AcceptanceProfile, Drafters, Engine
from dynx.speculation.learned_drafter import Learned, learned, made_up_prompts, rates, split, write
from dynx.speculation.loops import loop_start
from dynx.speculation.policy import Plain
from dynx.speculation.traces import Text
from dynx.speculation.tree_choice import WRITTEN, Beliefs, Trees
from dynx.speculation.types import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

VOCAB = 64


def assembly_of(engine: Engine, *, chat: bool = False) -> Any:
    """What calibration needs of an assembly."""
    plan = SimpleNamespace(
        kinds=frozenset({"lookup"}),
        drafter=None,
        request=SimpleNamespace(quantize="none", chat=chat),
        key=ProfileKey("generate", "0" * 16, None, "here", "float32"),
        source=SimpleNamespace(name="tiny", folder=None),
        machine=SimpleNamespace(cpu="a processor"),
        device="cpu",
        threads=1,
        weights="0" * 32,
    )
    return SimpleNamespace(
        engine=engine,
        plan=plan,
        decisions=SimpleNamespace(backend=Decision("torch-eager", "the tests'")),
        sampling=Sampling,
        tokenizer=Chats(),
        end_tokens=frozenset({1}),
    )


class Chats:
    """A tokenizer of single letters whose chats are a beginning, the content and an end."""

    chat_template = "there is one"

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """Letters as numbers."""
        return {"input_ids": [ord(letter) % 61 for letter in text[:40]]}

    def apply_chat_template(self, messages: Sequence[Any], **_: Any) -> dict[str, list[int]]:
        """A chat of the last message alone."""
        content = messages[-1]["content"]
        return {"input_ids": [2, 3, *([50] * len(content[:8])), 4, 5]}


def engine_of(clock: Clock) -> Engine:
    return Engine(TimedBackend(tiny("llama"), clock, layer=1.0), Drafters(trees=True), clock=clock)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few short texts."""
    monkeypatch.setattr("dynx.speculation.traces.ANSWER_TOKENS", 32)
    monkeypatch.setattr("dynx.speculation.learned_drafter.ANSWER_TOKENS", 32)
    monkeypatch.setattr("dynx.speculation.calibrate.MAX_TEXTS", 4)
    monkeypatch.setattr("dynx.speculation.learned_drafter.MADE_UP_PROMPTS", 40)
    monkeypatch.setattr("dynx.speculation.calibrate.still", lambda before, *_: before)


def test_followers_are_counted() -> None:
    """The most frequent come first, after pairs and after single tokens; what was never written has none."""
    arrays = counted([[1, 2, 3, 1, 2, 4, 1, 2, 4], [9, 1, 2, 5], [7]])
    followers = Followers(arrays)

    assert followers.after(1, 2) == (4, 3, 5)
    assert followers.after(9, 1) == (2,)
    assert followers.after(2, 1) == followers.after(1, 9) == followers.after(5, 5) == ()
    assert followers.tokens[2] == (4, 3, 5)
    assert 7 not in followers.tokens
    assert len(followers) == len(arrays[PAIRS]) == 6


def test_more_pairs_than_fit_leave_out_the_rare_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table stays small however much was written."""
    monkeypatch.setattr("dynx.speculation.drafters.followers.MAX_PAIRS", 1)

    assert counted([[1, 2, 3], [4, 5, 6], [4, 5, 6]])[PAIRS].tolist() == [[4, 5]]


def test_arrays_come_back_as_they_were() -> None:
    """By way of a profile's file."""
    arrays = learned([[1, 2, 3, 1, 2, 4]], [Text([1, 2, 3], 2)])
    found = from_arrays(read_arrays(write_arrays(arrays)), VOCAB)

    assert found is not None
    assert found.after(1, 2) == (3, 4)
    assert found.rates == arrays[RATES].tolist()


@pytest.mark.parametrize(
    "damage",
    [
        lambda arrays: arrays.pop(FOLLOWING),
        lambda arrays: arrays.update({FOLLOWING: arrays[FOLLOWING][:1]}),
        lambda arrays: arrays.update({FOLLOWING: arrays[FOLLOWING] + VOCAB}),
        lambda arrays: arrays.update({PAIRS: arrays[PAIRS] - 9}),
        lambda arrays: arrays.update({RATES: np.zeros(1, np.float32)}),
    ],
)
def test_arrays_that_are_not_ours_are_left_alone(damage: Any) -> None:
    """Missing ones, other shapes, and tokens that the model lacks: no drafter, and no error."""
    arrays = learned([[1, 2, 3, 1, 2, 4]], [])
    damage(arrays)

    assert from_arrays(arrays, VOCAB) is None
    assert from_arrays({}, VOCAB) is None


def test_rates_are_those_of_other_texts() -> None:
    """By rank, over the places behind the prompt where the pair is known."""
    followers = Followers(counted([[1, 2, 3, 1, 2, 3, 1, 2, 4]]))
    texts = [
        Text([1, 2, 3], 2),
        Text([1, 2, 4], 2),
        Text([1, 2, 3], 2),
        Text([1, 2, 9], 2),
        Text([1, 2, 3, 8, 8, 8], 4),
    ]

    assert rates(followers, texts)[:3].tolist() == pytest.approx([0.5, 0.25, 0.005])


def test_a_fifth_of_the_prompts_is_held_out() -> None:
    """None of them is learned from."""
    lessons, held = split(list(range(11)))

    assert held == [0, 5, 10]
    assert sorted(lessons + held) == list(range(11))


def test_trees_branch_into_what_was_written() -> None:
    """A pair's followers are candidates by their rank, and a kind whose believed rate is higher takes a token over."""
    followers = Followers(counted([[1, 2, 30], [1, 2, 30], [1, 2, 31]]))
    beliefs = Beliefs()
    beliefs.begin(WRITTEN, [0.9, 0.1])
    trees = Trees(NextTokens({2: (40,)}), beliefs, lambda _: [(3, 31)], written=followers.after)

    found = dict(trees._candidates([1, 2], -1, ()))

    assert found[30] == beliefs.kind(WRITTEN, 0, beside=False)
    assert found[31] == beliefs.kind(3, 4, beside=False)  # three tokens matched say more than rank 1
    assert found[40] == beliefs.kind(0, 0, beside=False)
    assert dict(trees._candidates([2], -1, ())).keys() == {31, 40}


def test_the_text_is_plain_decodings_whatever_was_counted() -> None:
    """Counts of the very text, which are right, and counts of another, which aren't; the right ones take fewer passes."""
    request, rounds = Request([3, 1, 4], 60), {}
    text = [token.id for token in engine_of(Clock()).start(request, Plain())]
    for name, source in (("right", [3, 1, 4, *text]), ("wrong", [(7 * t + 1) % 50 for t in range(300)])):
        followers = Followers(counted([source]) | {RATES: np.array([0.6, 0.2, 0.1, 0.1], np.float32)})
        engine = Engine(
            EagerBackend(tiny("llama")), Drafters(trees=True), acceptance_profile=AcceptanceProfile(followers=followers)
        )
        run = engine.start(request, WholeTrees(0))
        assert [token.id for token in run] == text
        rounds[name] = len(run.rounds)

    assert rounds["right"] < rounds["wrong"]


class WholeTrees(Bushy):
    """A policy of trees as large as they come."""

    def tree_size(self, beliefs: Sequence[float], survival: Sequence[float], context: int) -> int:
        """All of the nodes."""
        return len(beliefs)


@pytest.mark.usefixtures("short")
def test_answers_are_written_many_at_a_time_and_differ_from_the_second_on() -> None:
    """The first to each prompt are plain decoding's; each begins with the end of its prompt, and time ends the writing."""
    engine, ticks = engine_of(Clock()), count()
    prompts = [[3, 1, 4], [5, 9, 2, 6]]

    answers = write(assembly_of(engine), prompts, budget=60, clock=lambda: next(ticks))

    assert 4 < len(answers) < 60
    for prompt in prompts:
        texts = [answer[2:] for answer in answers if answer[:2] == prompt[-2:]]
        plain = [token.id for token in engine.start(Request(prompt, 32, eos=frozenset({1})), Plain())]
        assert len({tuple(text) for text in texts}) > 1
        assert plain[: loop_start(plain) or len(plain)] in texts


@pytest.mark.usefixtures("short")
def test_questions_are_written_in_the_users_place() -> None:
    """Between the beginning of a chat and the end of a question; without chats, beginnings of texts."""
    engine = engine_of(Clock())

    chats = made_up_prompts(assembly_of(engine, chat=True))
    texts = made_up_prompts(assembly_of(engine))

    assert len(chats) > 30
    assert all(chat[:2] == [2, 3] and chat[-2:] == [4, 5] and 1 not in chat and len(chat) > 4 for chat in chats)
    assert len({tuple(chat) for chat in chats}) > 20
    assert len(texts) == 40


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("speedup", "kept"), [(1.08, True), (1.01, False)])
def test_what_pays_on_held_out_prompts_is_kept(speedup: float, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the profile has its arrays, verifies trees and expects more; else it has none of that. Both are said."""
    engine, ticks = engine_of(Clock()), count()
    measured = iter([0.9, speedup])
    monkeypatch.setattr("dynx.speculation.calibrate.compare_trees", lambda *_, **__: Check(next(measured), 4))
    prompts = [[n, 2 * n % 50, 7] for n in range(2, 22)]

    found = calibrate(assembly_of(engine), budget=1e9, clock=lambda: next(ticks), prompts=prompts, learning=60)

    profile = Profile.from_json(found.profile.to_json())
    assert bool(found.arrays) is profile.fitted["trees"] is kept
    assert profile.evidence["learned_tokens"] > 200
    assert profile.evidence["learned_speedup"] == speedup
    assert f"{speedup:.2f}x in 4 answers to other prompts" in found.summary
    assert found.summary.endswith("put aside") is not kept
    if kept:
        assert from_arrays(found.arrays, VOCAB) is not None


@pytest.mark.usefixtures("short")
def test_nothing_is_learned_unasked() -> None:
    """What a model writes stays out of the profile."""
    clock = Clock()
    found = calibrate(assembly_of(engine_of(clock)), budget=1e9, clock=clock)

    assert found.arrays == {}
    assert found.profile.evidence["learned_tokens"] == 0


def test_what_could_not_be_tested_is_not_kept() -> None:
    """Where the target verifies no trees, say."""
    assert not Learned({}, 500, None).kept
    assert str(Learned({}, 500, None)) == "a drafter learned from 500 tokens couldn't be tested"
