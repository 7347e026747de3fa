"""Drafting across tokenizers: the drafter reads the target's text whatever it is cut into, and what it drafts are its tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.made_tokenizers import END, ROLE, SENTENCES, byte_level, pieces
from support.models import Stub, Whim, perturbed, scripted, tiny
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.batch_rows import batches
from dynx.runtime.backends.eager import EagerBackend
from dynx.speculation.batch_size import choose
from dynx.speculation.batching import Batch
from dynx.speculation.drafters import translated
from dynx.speculation.drafters.token_texts import TokenTexts, ends_whole
from dynx.speculation.drafters.translated import SharedVocabularyDrafter, TextDrafter, TranslatedBackend
from dynx.speculation.drafters.translation import TranslatedText, Translation, translation_between
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.policy import Plain, Policy, Static
from dynx.speculation.translated_traces import read_translated
from dynx.speculation.types import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

KINDS: dict[str, Callable[[], Any]] = {
    "bytes": byte_level,
    "more bytes": lambda: byte_level(380, (END,)),
    "pieces": pieces,
    "prefixed": lambda: pieces(440, prefix=True),
}
PAIRS = [(a, b) for a in KINDS for b in KINDS if a != b]
AWKWARD = st.text(
    st.one_of(st.sampled_from(" \n\t'aeoßü—日😀\u0301\u200d\x00"), st.characters(codec="utf-8")), max_size=40
) | st.lists(st.sampled_from([*" ".join(SENTENCES).split(" "), "", ROLE, END, "  "]), max_size=12).map(" ".join)


def pair(a: str, b: str) -> Translation:
    """The translation from a target's tokenizer to a drafter's."""
    found = translation_between(KINDS[a](), KINDS[b]())
    assert found is not None
    return found


def knowing(translation: Translation, text: bytes) -> Callable[[Sequence[int]], torch.Tensor]:
    """A drafter that goes on with `text` in its own tokens wherever it is in it."""
    own, vocab = translation.own, 512
    found = own.encode_with_starts(text)
    assert found is not None
    script = dict(zip((max(0, start) for start in found[1]), found[0], strict=True))

    def row(prefix: Sequence[int]) -> torch.Tensor:
        done = b"".join(own[i] for i in prefix)
        done = done if text.startswith(done) else done.removeprefix(b" ")
        at = len(done)
        token = script.get(at) if text.startswith(done) else 0
        if token is None:  # inside one of its tokens
            token = own.by_text.get(text[at : at + 1], 0)
        return torch.nn.functional.one_hot(torch.tensor(token), vocab) * 9.0

    return row


def spelt(translation: Translation, ids: Sequence[int]) -> bytes:
    """The text of the drafter's ids."""
    own = translation.own
    return b"".join(own[i] or (own.special_name(i).encode() if i not in own.prefix else b"") for i in ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=AWKWARD)
def test_texts_of_tokens_make_up_the_text(kind: str, text: str) -> None:
    """Every text is the texts of its tokens, but for a space that the tokenizer puts before it."""
    texts = TokenTexts(KINDS[kind]())
    found = texts.encode_with_starts(text.encode())
    if found is None:  # a space before each part between special tokens
        assert kind == "prefixed"
        assert END in text
        return
    ids, starts = found
    whole = b"".join(texts[i] or texts.special_name(i).encode() for i in ids)
    assert whole in (text.encode(), b" " + text.encode())
    for i, start in zip(ids, starts, strict=True):
        piece = texts[i] or texts.special_name(i).encode()
        assert text.encode()[max(0, start) :].startswith(piece[-start:] if start < 0 else piece)


@pytest.mark.parametrize(("a", "b"), PAIRS)
@settings(max_examples=40, deadline=None)
@given(text=AWKWARD, cuts=st.lists(st.integers(1, 5), min_size=1, max_size=12), data=st.data())
def test_the_drafter_reads_the_targets_text(a: str, b: str, text: str, cuts: list[int], data: st.DataObject) -> None:
    """After each round, whatever was drafted in it and wherever the target's tokens end, also inside a character."""
    translation = pair(a, b)
    ids = translation.target.encode(text) * 2
    follower, at = TranslatedText(translation), 0
    for cut in cuts:
        at = min(len(ids), at + cut)
        before = list(follower.ids)
        follower.read(ids[:at])
        want = b"".join(map(translation.text, ids[:at]))
        got = spelt(translation, follower.ids)
        if ends_whole(want):  # before that the rest of a character is unknown, to a tokenizer of text
            assert got in (want, b" " + want) or (b == "prefixed" and END.encode() in want)
        assert follower.ids[: follower.kept] == before[: follower.kept]
        assert len(follower.starts) == len(follower.ids)
        if follower.whole:
            for _ in range(data.draw(st.integers(0, 3))):
                follower.append(data.draw(st.sampled_from(sorted(translation.own.by_text.values()))))


def test_reading_on_encodes_the_end_alone() -> None:
    """A long text isn't encoded anew for each token."""
    translation = pair("bytes", "pieces")
    follower = TranslatedText(translation)
    ids = translation.target.encode(SENTENCES[0] * 40)
    follower.read(ids[:-20])
    sizes: list[int] = []
    encode = translation.own.encode_with_starts
    translation.own.encode_with_starts = lambda text: sizes.append(len(text)) or encode(text)  # type: ignore[method-assign,func-returns-value]
    for at in range(len(ids) - 20, len(ids) + 1):
        follower.read(ids[:at])
    assert sizes
    assert max(sizes) < 80


def test_special_tokens() -> None:
    """One of the same name is passed on as itself, any other is left out."""
    translation = pair("bytes", "more bytes")
    target = KINDS["bytes"]()
    role, end = target.convert_tokens_to_ids(ROLE), target.convert_tokens_to_ids(END)
    follower = TranslatedText(translation)
    follower.read([role, *translation.target.encode("the dog"), end])
    assert bytes(follower.text) == b"the dog" + END.encode()
    assert follower.ids[-1] == KINDS["more bytes"]().convert_tokens_to_ids(END)


def test_tokenizers_are_compared_by_content() -> None:
    """Equal sizes prove nothing, and a few more or renamed tokens no difference."""
    assert translation_between(byte_level(), byte_level(330, (END, ROLE))) is None
    assert translation_between(byte_level(331), byte_level(330)) is None
    assert translation_between(byte_level(330), byte_level(331)) is None
    assert translation_between(byte_level(), byte_level(330, (END, "<|other|>"))) is None
    assert translation_between(byte_level(330), byte_level(330, (END,))) is not None  # ids are one lower


def test_unknown_kinds_are_refused() -> None:
    """Tokens of WordPiece have no text of their own."""
    raw = Tokenizer(models.WordPiece({"a": 0, "##b": 1, "[UNK]": 2}, unk_token="[UNK]"))  # noqa: S106
    raw.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedModelError, match="decodes by WordPiece"):
        translation_between(byte_level(), PreTrainedTokenizerFast(tokenizer_object=raw))
    with pytest.raises(UnsupportedModelError, match="no fast kind"):
        translation_between(byte_level(), SimpleNamespace(get_vocab=lambda: {"a": 0}))


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_a_drafter_that_knows_the_text_drafts_its_tokens(a: str, b: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes in its own tokens comes out in the target's, and is accepted; nearly all of it at once."""
    monkeypatch.setattr(translated, "MOST_SHARED", 2.0)
    translation = pair(a, b)
    text = " " + " ".join(SENTENCES) * 2
    ids = translation.target.encode(text)
    target = Stub(len(KINDS[a]()), scripted(len(KINDS[a]()), ids))
    whole = b"".join(map(translation.text, ids))
    small = TranslatedBackend(Stub(512, knowing(translation, whole)), translation)
    run = Engine(target, Drafters(small, lookup=False)).start(Request(ids[:5], len(ids) - 8), Static("draft", 4))
    assert [t.id for t in run] == ids[5:-3]
    tally = run.tallies["draft"]
    assert tally.acceptance is not None
    # It can't go on inside a character or one of its own tokens, and a word's end may turn out to be none.
    assert tally.acceptance > 0.65
    assert tally.accepted > 0.4 * len(run.tokens)


@pytest.mark.parametrize(("a", "b"), PAIRS)
@pytest.mark.parametrize("how", ["draft", "whim", "dynamic"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, seed=4), Sampling(repetition_penalty=1.3)], ids=str)
def test_the_text_is_plain_decodings(a: str, b: str, how: str, sampling: Sampling) -> None:
    """Real networks, prompts and partial characters: greedy and seeded texts are the target's own, token by token."""
    translation, sizes = pair(a, b), (len(KINDS[a]()), len(KINDS[b]()))
    target, drafter = EagerBackend(tiny("llama", vocab=sizes[0])), EagerBackend(tiny("llama", seed=3, vocab=sizes[1]))
    policy: Policy | None = Static("draft", 4) if how == "draft" else Whim(3) if how == "whim" else None
    engine = Engine(target, Drafters(TranslatedBackend(drafter, translation), lookup=False), tokenizer=KINDS[a]())
    request = Request(translation.target.encode("the café 😀 and"), 40, sampling)
    plain = engine.start(request, Plain())
    want = [t.id for t in plain]
    run = engine.start(request, policy)
    assert [t.id for t in run] == want


def test_which_way_drafts_are_made() -> None:
    """By text for greedy decoding, among shared tokens for sampling, and among them always where nearly all are shared."""
    small = TranslatedBackend(Stub(420, scripted(420, [])), pair("bytes", "pieces"))
    engine = Engine(Stub(330, scripted(330, [])), Drafters(small, lookup=False))
    assert isinstance(engine.model_drafter(Request([5]), small), TextDrafter)
    assert isinstance(engine.model_drafter(Request([5], sampling=Sampling(0.7)), small), SharedVocabularyDrafter)
    near = TranslatedBackend(Stub(329, scripted(329, [])), Translation(byte_level(), byte_level(329, (END,))))
    assert isinstance(engine.model_drafter(Request([5]), near), SharedVocabularyDrafter)
    assert not batches(small).value


def test_shared_drafts_are_a_distribution_over_the_targets_tokens() -> None:
    """The drafter's distribution, restricted to the tokens that both have, in the target's ids."""
    translation = pair("bytes", "pieces")
    row = torch.randn(420, generator=torch.Generator().manual_seed(1))
    small = TranslatedBackend(Stub(420, lambda prefix: row), translation)
    engine = Engine(Stub(330, scripted(330, [])), Drafters(small, lookup=False))
    drafter: Any = engine.model_drafter(Request([5], sampling=Sampling(1.0)), small)
    drafter.sync(translation.target.encode("the dog"))
    draft = drafter.propose()
    assert draft is not None
    assert draft.probabilities is not None
    assert float(draft.probabilities.sum()) == pytest.approx(1, abs=1e-5)
    shared = translation.shared
    want = row[shared.own].softmax(-1)
    torch.testing.assert_close(draft.probabilities[shared.target], want, rtol=1e-4, atol=1e-6)
    for own, target in zip(shared.own.tolist(), shared.target.tolist(), strict=True):
        if translation.own[own]:
            assert translation.own[own] == translation.target[target]


def test_traces_are_of_the_targets_positions() -> None:
    """One pass over the text says which of its tokens the drafter would have drafted."""
    translation = pair("bytes", "pieces")
    text = SENTENCES[0]
    ids = translation.target.encode(text)
    script = [*translation.own.prefix, *translation.own.encode(text)]
    small = TranslatedBackend(Stub(420, scripted(420, script)), translation)
    signals, right = read_translated(small, ids)
    assert len(signals) == len(right) == len(ids) - 1
    assert all(right)
    wrong = TranslatedBackend(Stub(420, scripted(420, script, wrong=range(10, 20))), translation)
    signals, right = read_translated(wrong, ids)
    assert any(right)
    assert not all(right)
    noisy = TranslatedBackend(EagerBackend(perturbed(tiny("llama", vocab=420))), translation)
    assert not all(read_translated(noisy, ids)[1])


def test_batches_do_without_it_and_say_so() -> None:
    """Texts of a batch are the target's own, without a draft of the model; the choice of the batch gives the reason."""
    translation, sizes = pair("bytes", "pieces"), (len(KINDS["bytes"]()), len(KINDS["pieces"]()))
    small = TranslatedBackend(EagerBackend(tiny("llama", seed=3, vocab=sizes[1])), translation)
    engine = Engine(EagerBackend(tiny("llama", vocab=sizes[0])), Drafters(small), tokenizer=KINDS["bytes"]())
    requests = [Request(translation.target.encode(text), 30) for text in ("the café 😀 and", "a computer", "the end")]
    batch = Batch(engine, 3)
    rows = [batch.sequence(request) for request in requests]
    batch.admit(rows)

    assert [[t.id for t in row] for row in rows] == [[t.id for t in engine.start(each, Plain())] for each in requests]
    assert all("draft" not in row.receipt().drafters for row in rows)
    plan = SimpleNamespace(
        request=SimpleNamespace(plain=False),
        own_profile=None,
        machine=SimpleNamespace(memory_available=1 << 30),
        key=SimpleNamespace(quantization="none"),
    )
    found = choose(SimpleNamespace(engine=engine, plan=plan), asked=3, waiting=3, tokens=30)  # type: ignore[arg-type]
    assert found.sequences == 3
    assert found.decision.reason == (
        "asked for; the draft model takes no part in it: with another tokenizer it drafts for one text at a time"
    )
