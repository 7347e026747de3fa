"""The decode loop: whatever was drafted, by whom and how far, greedy text is plain `generate`'s, token for token."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import (
    HYBRID,
    LAYERS,
    ROLLING,
    STATEFUL,
    UNCONTINUED,
    VOCAB,
    Clock,
    Stub,
    TimedBackend,
    Whim,
    generated,
    perturbed,
    reference,
    scripted,
    tiny,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dynx.errors import UsageError
from dynx.runtime.backends.eager import EagerBackend
from dynx.speculation.engine import AcceptanceProfile, Drafters, Engine, Run
from dynx.speculation.policy import Plain, Policy, Static
from dynx.speculation.types import Request, Sampling, Token

if TYPE_CHECKING:
    from collections.abc import Sequence

LONG = 64
"""New tokens: four sliding windows."""

PROMPT = (7, 30, 2, 51, 18, 7, 30, 2, 44, 9, 51, 18)

ORIGINS = ("draft", "self", "lookup")


def ids(run: Run) -> list[int]:
    """Runs to the end."""
    return [token.id for token in run if token.id >= 0]


def text(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


@pytest.fixture(scope="module", params=ROLLING)
def kind(request: pytest.FixtureRequest) -> str:
    """Every architecture that can be rolled back."""
    return str(request.param)


class Pair:
    """A target and a drafter on one simulated clock; a layer of the drafter costs `drafter_cost` of the target's."""

    def __init__(self, kind: str, drafter_cost: float = 0.1) -> None:
        self.clock = Clock()
        self.target = TimedBackend(tiny(kind), self.clock)
        self.drafter = TimedBackend(perturbed(tiny(kind)), self.clock, drafter_cost)

    def engine(
        self, *origins: str, acceptance_profile: AcceptanceProfile | None = None, tokenizer: Any = None
    ) -> Engine:
        """An engine with these drafters."""
        drafters = Drafters(
            model=self.drafter if "draft" in origins else None,
            exit_layers=1 if "self" in origins else None,
            lookup="lookup" in origins,
        )
        return Engine(
            self.target, drafters, acceptance_profile=acceptance_profile, clock=self.clock, tokenizer=tokenizer
        )


@pytest.fixture(scope="module")
def pair(kind: str) -> Pair:
    """Shared by all tests of an architecture: runs must not leave traces."""
    return Pair(kind)


def test_plain_is_generate(kind: str, pair: Pair) -> None:
    """Without drafts the loop alone already writes what transformers writes."""
    run = pair.engine(*ORIGINS).start(Request(PROMPT, LONG), Plain())

    assert ids(run) == generated(kind, PROMPT, LONG)
    assert not run.tallies
    assert run.receipt().target_forwards == LONG - 1


@pytest.mark.parametrize("length", [1, 3, 7])
@pytest.mark.parametrize("origin", ORIGINS)
def test_static_drafts_change_nothing(kind: str, pair: Pair, origin: Any, length: int) -> None:
    """A fixed number of drafts from any drafter, sometimes right and sometimes wrong, leaves the text as it was."""
    run = pair.engine(origin).start(Request(PROMPT, LONG), Static(origin, length))

    assert ids(run) == generated(kind, PROMPT, LONG)
    if origin != "lookup" or kind in ("llama", "mistral", "phi", "falcon"):  # not every random model repeats itself
        assert 0 < (run.tallies[origin].acceptance or 0) < 1


@pytest.mark.parametrize("origins", [*[(o,) for o in ORIGINS], ORIGINS], ids="-".join)
def test_dynamic_policy_changes_nothing(kind: str, pair: Pair, origins: tuple[str, ...]) -> None:
    """The dynamic policy, fresh and after other texts have taught it, leaves the text as it was."""
    engine = pair.engine(*origins)
    fresh = ids(engine.start(Request(PROMPT, LONG)))
    ids(engine.start(Request(PROMPT[::-1], 40)))
    warm = engine.start(Request(PROMPT, LONG))

    assert fresh == generated(kind, PROMPT, LONG)
    assert ids(warm) == fresh


@pytest.mark.parametrize("seed", range(2))
def test_any_policy_changes_nothing(kind: str, pair: Pair, seed: int) -> None:
    """Arbitrary legal choices, round by round, of drafter, number drafted and number submitted, leave the text as it was."""
    run = pair.engine(*ORIGINS).start(Request(PROMPT, LONG), Whim(seed))

    assert ids(run) == generated(kind, PROMPT, LONG)


def test_arbitrary_policies_reach_every_state() -> None:
    """The promise above covers each drafter with nothing, some and all submitted, and none, some and all of it kept."""
    pair, seen = Pair("llama"), set[str]()
    for seed in range(8):
        policy = Whim(seed)
        ids(pair.engine(*ORIGINS).start(Request(PROMPT, LONG), policy))
        seen |= policy.seen

    sent = ["nothing submitted, none stayed"]
    sent += [f"{some} submitted, {kept} stayed" for some in ("some", "all") for kept in ("none", "some", "all")]
    assert seen >= {"plain", *(f"{o}: silent" for o in ORIGINS), *(f"{o}: {s}" for o in ORIGINS for s in sent)}


def test_dynamic_policy_reaches_its_states() -> None:
    """With a cheap drafter the dynamic policy is seen plain, drafting, submitting less than it drafted, and trying others."""
    kinds: set[str] = set()
    for drafter_cost in (0.1, 0.02):
        engine = Pair("gpt2", drafter_cost).engine(*ORIGINS)
        for start in range(6):
            prompt = tuple((5 * start + 11 * i) % VOCAB for i in range(10))
            run = engine.start(Request(prompt, 96))
            assert ids(run) == generated("gpt2", prompt, 96)
            kinds |= {str(r.origin) for r in run.rounds}
            kinds |= {"pruned" for r in run.rounds if r.submitted < len(r.signals)}

    assert kinds >= {"None", "draft", "pruned"}
    assert kinds & {"self", "lookup"}


@pytest.mark.parametrize("penalty", [1.3, 0.8])
@pytest.mark.parametrize("how", [*ORIGINS, "dynamic", "whim"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral", "bloom"])
def test_penalty_is_generates(name: str, how: Any, penalty: float) -> None:
    """With a repetition penalty, which each draft of a round already shifts, the text is still plain `generate`'s."""
    policy: Policy | None = Static(how, 4) if how in ORIGINS else Whim(5) if how == "whim" else None
    request = Request(PROMPT, LONG, Sampling(repetition_penalty=penalty))
    run = Pair(name).engine(*ORIGINS).start(request, policy)

    assert ids(run) == generated(name, PROMPT, LONG, penalty)
    assert generated(name, PROMPT, LONG, penalty) != generated(name, PROMPT, LONG)


@pytest.mark.parametrize("name", [*STATEFUL, *(name for name in HYBRID if name not in UNCONTINUED)])
@pytest.mark.parametrize("how", ["lookup", "draft", "whim", "dynamic"])
def test_stateful_models_draft(name: str, how: Any) -> None:
    """Recurrent and hybrid models, with each drafter and drafts of every length, write what they write plainly."""
    noise = 0.01 if how == "draft" else 0.5
    target, drafter = EagerBackend(tiny(name)), EagerBackend(perturbed(tiny(name), noise))
    policy: Policy | None = Static(how, 4) if how in ORIGINS else Whim(3) if how == "whim" else None
    plain = ids(Engine(target, Drafters(lookup=False)).start(Request(PROMPT, 40)))
    run = Engine(target, Drafters(model=drafter, exit_layers=1)).start(Request(PROMPT, 40), policy)

    assert ids(run) == plain == generated(name, PROMPT, 40)
    assert "self" not in run.tallies
    accepted, submitted = (sum(getattr(t, what) for t in run.tallies.values()) for what in ("accepted", "submitted"))
    if how == "draft":
        assert accepted > 0  # states stay
    if how == "whim":
        assert accepted < submitted  # and are restored


@pytest.mark.parametrize("name", STATEFUL)
def test_stateful_drafters_draft(name: str) -> None:
    """A drafter with a recurrent state takes rejected drafts back, and drafts as well as it does on the text itself."""
    target, drafter = EagerBackend(tiny(name)), EagerBackend(tiny(name))
    run = Engine(target, Drafters(model=drafter, lookup=False)).start(Request(PROMPT, 20), Static("draft", 3))

    assert ids(run) == generated(name, PROMPT, 20)
    assert run.tallies["draft"].acceptance == 1


@pytest.mark.parametrize("name", UNCONTINUED)
def test_states_that_dont_go_on_run_plain(name: str) -> None:
    """A model that can't read several tokens on from its state is decoded one token at a time, with the reason."""
    target = EagerBackend(tiny(name))
    run = Engine(target, Drafters()).start(Request(PROMPT, 40))

    assert ids(run) == generated(name, PROMPT, 40)
    assert "passes of several tokens change logits" in target.can_rollback.reason
    assert {r.origin for r in run.rounds} == {None}


@pytest.mark.parametrize("how", [*ORIGINS, "plain"])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_length_limit(how: Any, count: int) -> None:
    """Exactly as many tokens as asked for, none included, however many were drafted."""
    policy: Policy = Plain() if how == "plain" else Static(how, 7)
    run = Pair("llama").engine(*ORIGINS).start(Request(PROMPT, count), policy)
    out = ids(run)

    assert out == generated("llama", PROMPT, LONG)[:count]
    assert out == run.tokens
    assert run.finish_reason == "length"
    assert run.receipt().tokens == count
    assert (run.receipt().first_token_seconds is None) == (count == 0)


@pytest.mark.parametrize("how", [*ORIGINS, "dynamic", "whim"])
def test_end_of_text_ids(how: Any) -> None:
    """Any of several end-of-text ids ends the answer, itself included, where transformers ends it."""
    whole = generated("llama", PROMPT, LONG)
    policy: Policy | None = Static(how, 5) if how in ORIGINS else Whim(1) if how == "whim" else None
    engine = Pair("llama").engine(*ORIGINS)
    for at in (0, 1, 9, 17, 20):
        ends = [whole[at], whole[-1], next(t for t in range(VOCAB) if t not in whole)]
        run = engine.start(Request(PROMPT, LONG, eos=frozenset(ends)), policy)
        want = reference("llama").generate(
            torch.tensor([PROMPT]),
            attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
            max_new_tokens=LONG,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=0,
        )

        assert ids(run) == want[0, len(PROMPT) :].tolist()
        assert run.finish_reason == "eos"


@pytest.mark.parametrize("origin", ["draft", "lookup", "self"])
def test_end_of_text_inside_a_draft(origin: Any) -> None:
    """An end-of-text token in the middle of an accepted draft ends the answer there; what was accepted after it is dropped."""
    script = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9]  # the lookup's guess after 1 2 is right as well
    stub = Stub(16, scripted(16, script))
    engine = Engine(stub, Drafters(model=stub, exit_layers=1))
    run = engine.start(Request(script[:10], eos=frozenset({6})), Static(origin, 7))
    out = list(run)

    assert [t.id for t in out] == [2, 3, 4, 5, 6]
    assert [t.origin for t in out] == ["target", *[origin] * 4]
    assert run.rounds[-1].kept > 4
    assert run.finish_reason == "eos"


@pytest.mark.parametrize("how", [*ORIGINS, "dynamic", "whim"])
@pytest.mark.parametrize(("name", "limit"), [("llama", "max_position_embeddings"), ("gpt2", "n_positions")])
def test_context_limit(name: str, limit: str, how: Any) -> None:
    """At the end of the model's context the answer stops with that reason and keeps its text; no draft goes beyond it."""
    small = {limit: 32}
    target, drafter = EagerBackend(tiny(name, **small)), EagerBackend(perturbed(tiny(name, **small)))
    policy: Policy | None = Static(how, 7) if how in ORIGINS else Whim(2) if how == "whim" else None
    run = Engine(target, Drafters(model=drafter, exit_layers=1)).start(Request(PROMPT, LONG), policy)
    out = ids(run)

    # A token that would stand at position 32 can still be read off position 31.
    want = reference_of(name, 32 - len(PROMPT) + 1, **small)
    assert out == want
    assert run.finish_reason == "context"


def reference_of(name: str, count: int, **changes: int) -> list[int]:
    """Greedy continuation of PROMPT by scoring the whole text anew for each token."""
    model, tokens = tiny(name, **changes), list(PROMPT)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(PROMPT) :]


def test_prompts_and_the_context() -> None:
    """A prompt that fills the context gets its one token; a longer or an empty one is a usage error with the numbers."""
    engine = Engine(EagerBackend(tiny("llama", max_position_embeddings=len(PROMPT))))
    run = engine.start(Request(PROMPT, LONG))

    assert len(ids(run)) == 1
    assert run.finish_reason == "context"
    with pytest.raises(UsageError, match="13 tokens and the model's context is 12") as caught:
        engine.start(Request([*PROMPT, 1], LONG))
    assert caught.value.exit_code == 2
    assert caught.value.hint
    with pytest.raises(UsageError, match="no tokens"):
        engine.start(Request([], LONG))


def test_small_drafters_go_quiet() -> None:
    """A drafter with a shorter context than the target's stops guessing there; the answer goes on."""
    target = EagerBackend(tiny("gpt2"))
    drafter = EagerBackend(perturbed(tiny("gpt2", n_positions=24)))
    run = Engine(target, Drafters(model=drafter, lookup=False)).start(Request(PROMPT, LONG), Static("draft", 4))

    assert ids(run) == generated("gpt2", PROMPT, LONG)
    assert any(r.signals for r in run.rounds)
    assert not any(r.signals for r in run.rounds if r.context >= 24)


SAMPLE = (
    "Once upon a time, naïve 🙂 foxes — 👩\u200d👩\u200d👧 — ate a\u0301 crème brûlée. Then the end. 日本語 text 🇫🇷!"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A byte-level tokenizer, so that a character may span tokens and a token words."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        ["once upon a time the foxes ate the crème. then the end of the time"] * 4,
        trainers.BpeTrainer(
            vocab_size=320,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<end>"],
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")  # noqa: S106 - a token of text


def writer(tokenizer: Any, sentence: str, wrong: Sequence[int] = ()) -> tuple[Engine, list[int], int]:
    """An engine whose target writes `sentence`, its script, and the length of the prompt.

    The drafters say the same but at the positions `wrong`.
    """
    script = [5, *tokenizer.encode(sentence), tokenizer.eos_token_id]
    row, guess = scripted(len(tokenizer), script), scripted(len(tokenizer), script, wrong)
    target = Stub(len(tokenizer), row, guess)
    return Engine(target, Drafters(Stub(len(tokenizer), guess), exit_layers=1), tokenizer=tokenizer), script, 1


def request_for(tokenizer: Any, script: list[int], at: int, *stop: str) -> Request:
    return Request(script[:at], eos=frozenset({tokenizer.eos_token_id}), stop=stop)


@pytest.mark.parametrize("wrong", [(), range(3, 400, 4)], ids=["right", "sometimes wrong"])
@pytest.mark.parametrize("how", ["draft", "self", "plain"])
def test_streamed_text_is_the_text(tokenizer: Any, how: Any, wrong: Sequence[int]) -> None:
    """The pieces joined are the whole text, and no piece holds half a character."""
    engine, script, at = writer(tokenizer, SAMPLE, wrong)
    run = engine.start(request_for(tokenizer, script, at), Plain() if how == "plain" else Static(how, 6))
    out = list(run)

    assert text(out) == SAMPLE == tokenizer.decode(run.tokens, skip_special_tokens=True)
    assert not any("\ufffd" in token.text for token in out)
    assert run.finish_reason == "eos"


@given(sentence=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), length=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_any_text_streams_whole(tokenizer: Any, sentence: str, length: int) -> None:
    """Whatever the characters and wherever drafts end, the pieces joined are the text."""
    engine, script, at = writer(tokenizer, sentence, range(2, 400, 5))
    out = list(engine.start(request_for(tokenizer, script, at), Static("draft", length)))

    assert text(out) == tokenizer.decode(script[at:], skip_special_tokens=True)


STOPS = [
    (("upon a",), "Once "),  # across tokens
    (("🙂",), "Once upon a time, naïve "),  # one character of several tokens
    (("x",), "Once upon a time, naïve 🙂 fo"),  # inside a token
    (
        ("never", "the end", "ate a"),
        "Once upon a time, naïve 🙂 foxes — 👩\u200d👩\u200d👧 — ",
    ),  # the first of several to come
    (("O",), ""),  # at once
    (("crème brûlée. Then the start",), SAMPLE),  # begins and doesn't come
    (("!",), SAMPLE[:-1]),  # the last character
    ((), SAMPLE),
]


@pytest.mark.parametrize(("stop", "want"), STOPS)
@pytest.mark.parametrize("how", ["draft", "self", "plain", "whim"])
def test_stop_strings(tokenizer: Any, how: Any, stop: tuple[str, ...], want: str) -> None:
    """The answer ends right before the first stop string, wherever tokens and drafts begin and end."""
    engine, script, at = writer(tokenizer, SAMPLE, range(5, 400, 6))
    policy: Policy = Plain() if how == "plain" else Whim(3) if how == "whim" else Static(how, 7)
    run = engine.start(request_for(tokenizer, script, at, *stop), policy)
    out = list(run)

    assert text(out) == want
    assert run.finish_reason == ("stop" if want != SAMPLE else "eos")


@pytest.mark.parametrize("how", ["draft", "plain"])
@pytest.mark.parametrize(
    ("stop", "want", "why"),
    [
        (("<turn>",), "Once", "stop"),
        (("upon",), "Once ", "stop"),  # what isn't shown is no gap
        (("<turn> up",), "Once", "stop"),
        (("ce<turn> u",), "On", "stop"),
        (("<turn> and",), "Once upon", "eos"),  # held back in vain
        (("turn",), "Once", "stop"),
        (("never",), "Once upon", "eos"),
    ],
)
def test_stop_strings_hold_special_tokens(tokenizer: Any, how: Any, stop: tuple[str, ...], want: str, why: str) -> None:
    """A stop string is looked for in what was written; special tokens are part of that, and aren't shown."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    engine, script, at = writer(tokenizer, "Once<turn> upon")
    run = engine.start(request_for(tokenizer, script, at, *stop), Plain() if how == "plain" else Static("draft", 6))

    assert text(list(run)) == want
    assert run.finish_reason == why


def test_an_unfinished_character_before_a_special_stop(tokenizer: Any) -> None:
    """Half a character is shown as one that is none, where the answer ends after it."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    _, script, at = writer(tokenizer, "Once 🙂<turn>")
    del script[script.index(tokenizer.convert_tokens_to_ids("<turn>")) - 1]  # the last byte
    engine = Engine(Stub(len(tokenizer), scripted(len(tokenizer), script)), Drafters(lookup=False), tokenizer=tokenizer)
    run = engine.start(request_for(tokenizer, script, at, "<turn>"), Plain())

    assert text(list(run)) == tokenizer.decode(script[at:], skip_special_tokens=True) == "Once \ufffd"
    assert run.finish_reason == "stop"


@pytest.mark.parametrize("how", ["draft", "plain"])
def test_an_answer_continues_its_prompt(how: Any) -> None:
    """The text is what decoding prompt and answer adds to the prompt's; in a chat it is the answer's own."""
    raw = Tokenizer(models.WordLevel({"<end>": 0, "▁hello": 1, "▁o": 2, "b": 3, "▁hey": 4, "x": 5}, unk_token="<end>"))  # noqa: S106
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")  # noqa: S106
    script = [1, 2, 3, 4, 0]
    target = Stub(6, scripted(6, script))
    engine = Engine(target, Drafters(Stub(6, scripted(6, script))), tokenizer=tokenizer)
    policy = Plain() if how == "plain" else Static(how, 3)
    asked = Request(script[:1], eos=frozenset({0}))

    assert tokenizer.decode(script[:-1]) == "hello ob hey"
    assert text(list(engine.start(asked, policy))) == " ob hey"
    assert text(list(engine.start(replace(asked, continues=False), policy))) == "ob hey"
    assert text(list(engine.start(replace(asked, stop=(" o",)), policy))) == ""


def test_end_of_text_has_no_text(tokenizer: Any) -> None:
    """An end-of-text token that would show as something is not shown."""
    engine, script, at = writer(tokenizer, "Once. And")
    (dot,) = tokenizer.encode(".")
    run = engine.start(Request(script[:at], eos=frozenset({dot})), Static("draft", 6))

    assert text(list(run)) == "Once"
    assert run.tokens[-1] == dot


def test_stop_in_the_middle_of_a_draft(tokenizer: Any) -> None:
    """A stop string completed by an accepted draft ends the answer there, with the rest of the draft dropped."""
    engine, script, at = writer(tokenizer, SAMPLE)
    run = engine.start(request_for(tokenizer, script, at, "upon"), Static("draft", 12))
    out = list(run)

    assert text(out) == "Once "
    assert out[-1].origin == "draft"
    assert len(out) < 1 + run.rounds[-1].tokens
    assert run.finish_reason == "stop"


@pytest.mark.parametrize("count", range(1, 24, 3))
def test_text_held_back_comes_at_the_end(tokenizer: Any, count: int) -> None:
    """What was held back for a stop string or a character is passed on when the answer is cut off by its length."""
    engine, script, at = writer(tokenizer, "🙂 time, oh time after time 🙂")
    request = replace(request_for(tokenizer, script, at, "time, oh time before"), max_new_tokens=count)
    run = engine.start(request, Static("draft", 4))

    assert text(list(run)) == tokenizer.decode(script[at : at + count], skip_special_tokens=True)
    assert run.finish_reason in ("length", "eos")


@pytest.mark.parametrize("seed", range(6))
def test_garbage_streams_as_it_decodes(tokenizer: Any, seed: int) -> None:
    """A model that writes bytes which aren't text streams what decoding everything gives, replacement characters and all."""
    vocab = len(tokenizer)
    target = EagerBackend(tiny("gpt2", vocab=vocab, seed=seed))
    drafter = EagerBackend(perturbed(tiny("gpt2", vocab=vocab, seed=seed)))
    run = Engine(target, Drafters(drafter), tokenizer=tokenizer).start(Request(PROMPT, LONG), Static("draft", 5))

    assert text(list(run)) == tokenizer.decode(run.tokens, skip_special_tokens=True)


def test_receipt_adds_up() -> None:
    """Seconds, rates and savings follow from the passes alone; time that the caller takes between tokens isn't counted."""
    pair = Pair("llama")
    engine = pair.engine("draft")
    pass_of = pair.target.price
    engine.acceptance_profile.costs.target.observe(1, 20, pass_of(1))
    run = engine.start(Request(PROMPT, 21), Static("draft", 3))
    for _ in run:
        pair.clock.now += 1000
    got, rounds = run.receipt(), run.rounds

    drafting = sum(
        pair.drafter.price(r.tokens_behind) + pair.drafter.price(1) * (len(r.signals) - 1) for r in rounds if r.signals
    )
    judging = sum(pass_of(r.submitted + 1) for r in rounds)
    assert got.prefill_seconds == got.first_token_seconds == pytest.approx(pass_of(len(PROMPT)))
    assert got.seconds - got.prefill_seconds == pytest.approx(drafting + judging)
    assert (got.prompt_tokens, got.tokens, got.finish_reason) == (len(PROMPT), 21, "length")
    assert got.target_forwards == len(rounds)
    assert got.tokens_per_second == pytest.approx(20 / (drafting + judging))
    assert got.tokens_per_forward == pytest.approx(20 / len(rounds))
    assert got.plain_seconds == pytest.approx(20 * pass_of(1))
    assert got.speedup == pytest.approx(20 * pass_of(1) / (drafting + judging))
    assert got.plain_measured == "this run"
    tally = got.drafters["draft"]
    assert tally.seconds == pytest.approx(drafting)
    assert tally.rounds == sum(r.origin == "draft" for r in rounds)
    assert tally.drafted == tally.submitted == sum(tally.submitted_by_position)
    assert tally.accepted == sum(tally.accepted_by_position) == 20 - len(rounds)
    assert tally.acceptance == pytest.approx(tally.accepted / tally.submitted)
    assert tally.accepted_by_position == sorted(tally.accepted_by_position, reverse=True)
    assert got.guarantee == "identical to plain decoding"


def test_receipt_without_measurements() -> None:
    """Where plain decoding was never measured, savings are unknown rather than guessed."""
    run = Pair("llama").engine("draft").start(Request(PROMPT, 8), Static("draft", 3))
    ids(run)

    assert run.receipt().plain_seconds is None
    assert run.receipt().speedup is None
    assert run.receipt().plain_measured is None


@pytest.mark.parametrize(
    ("sampling", "dtype", "words"),
    [
        (Sampling(), torch.float32, "identical to plain decoding"),
        (Sampling(0.8, seed=1), torch.float32, "identical to plain decoding"),
        (Sampling(), torch.bfloat16, "identical to plain decoding but for rounding ties"),
        (Sampling(0.8), torch.float32, "same distribution as plain decoding"),
    ],
)
def test_receipt_names_the_guarantee(sampling: Sampling, dtype: torch.dtype, words: str) -> None:
    """The receipt promises no more than the mode and the precision can keep."""
    run = Engine(EagerBackend(tiny("llama").to(dtype))).start(Request(PROMPT, 4, sampling))
    ids(run)

    assert run.receipt().guarantee == words


@pytest.mark.parametrize("origin", ORIGINS)
def test_abandoned_runs_leave_nothing(origin: Any) -> None:
    """A run dropped at any token keeps what it wrote, says so, and has no effect on the next."""
    engine = Pair("gemma2").engine(*ORIGINS)
    want = generated("gemma2", PROMPT, LONG)
    for stop_after in (1, 2, 7):
        run = engine.start(Request(PROMPT[::-1], 20), Static(origin, 5))
        for _, _token in zip(range(stop_after), run, strict=False):
            pass
        assert len(run.tokens) == stop_after
        assert run.finish_reason == run.receipt().finish_reason == "interrupted"

        assert ids(engine.start(Request(PROMPT, LONG), Static(origin, 5))) == want


def test_runs_repeat() -> None:
    """Two runs of one engine, a run of another prompt between, write the same."""
    engine = Pair("qwen3").engine(*ORIGINS)
    first = ids(engine.start(Request(PROMPT, LONG)))
    ids(engine.start(Request(PROMPT[::-1], LONG)))

    assert ids(engine.start(Request(PROMPT, LONG))) == first


def test_library_is_looked_up() -> None:
    """A text given to look in is drafted from, and changes nothing but the number of passes."""
    want = generated("gpt2", PROMPT, LONG)
    target = EagerBackend(tiny("gpt2"))
    engine = Engine(target, Drafters(library=[*PROMPT, *want]))
    for _ in range(2):  # the library is indexed once and found clean again
        run = engine.start(Request(PROMPT, LONG), Static("lookup", 7))
        assert ids(run) == want
        assert run.receipt().target_forwards == LONG // 8
        assert run.tallies["lookup"].acceptance == 1


@pytest.mark.parametrize("vocab", [48, 80])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, seed=4)], ids=["greedy", "seeded"])
def test_drafters_may_have_more_or_fewer_rows(vocab: int, sampling: Sampling) -> None:
    """A drafter whose vocabulary is padded, or lacks some of the target's ids, changes nothing."""
    target, drafter = EagerBackend(tiny("llama")), EagerBackend(tiny("llama", vocab=vocab, seed=9))
    engine = Engine(target, Drafters(model=drafter, lookup=False))
    prompt = tuple(t % 48 for t in PROMPT)
    request = Request(prompt, LONG, sampling)

    assert ids(engine.start(request, Static("draft", 3))) == ids(engine.start(request, Plain()))


def test_torchs_generator_is_left_alone() -> None:
    """A run draws from its own generators: the caller's torch.manual_seed means what it meant before."""
    engine = Pair("llama").engine("draft")
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    ids(engine.start(Request(PROMPT, 8, Sampling(0.9)), Static("draft", 2)))
    ids(engine.start(Request(PROMPT, 8), Static("draft", 2)))

    assert torch.equal(torch.rand(3), want)


def test_early_exit_needs_fewer_layers() -> None:
    """An exit as deep as the model is no exit, and asking for one doesn't break a run."""
    engine = Engine(EagerBackend(tiny("llama")), Drafters(exit_layers=LAYERS, lookup=False))

    assert ids(engine.start(Request(PROMPT, 16), Static("self", 3))) == generated("llama", PROMPT, 16)
