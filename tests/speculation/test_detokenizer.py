"""From ids to text: whole characters only, nothing of a stop string, and in the end what decoding everything gives."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dynx.speculation.detokenizer import CONTEXT_TOKENS, StopScanner, StreamDecoder, continuation, special, token_text

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.fixture(scope="module")
def bytelevel() -> Any:
    """Tokens are runs of bytes, as in GPT-2, Llama 3 and Qwen."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        ["the cat and the dog 🙂🙂 naïve é é"] * 3,
        trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw)


@pytest.fixture(scope="module")
def pieces() -> Any:
    """Tokens are words that carry their space as ▁, with bytes to fall back on, as in Llama 2, Mistral and Gemma."""
    words = ["<unk>", "<s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁the", "▁cat", "s", "▁▁", ".", "é"]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))  # noqa: S106
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    raw.add_special_tokens([AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def streamed(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(i) for i in ids), decoder.flush()]


def whole(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40))
@example(text="👩\u200d👩\u200d👧 e\u0301 🇫🇷 नमस्ते")
@settings(max_examples=150, deadline=None)
def test_text_streams_in_whole_characters(bytelevel: Any, text: str) -> None:
    """Pieces of any text hold whole characters and join to the text."""
    out = streamed(bytelevel, bytelevel.encode(text, add_special_tokens=False))

    assert "".join(out) == text
    assert not any("\ufffd" in piece for piece in out)


def bytes_ids(tokenizer: Any, data: bytes) -> list[int]:
    """One id for each byte."""
    alphabet = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    names = {b: chr(b) for b in alphabet}
    names |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in names)}
    return [tokenizer.convert_tokens_to_ids(names[b]) for b in data]


@given(data=st.binary(max_size=30))
@example(data=b"\x80" * 7 + "🙂".encode() + b"a")  # the beginning of a character after garbage of any length
@example(data=b"\x80" * 6 + "🙂".encode() + b"a")
@example(data=b"\x80" * 5 + "🙂".encode() + b"a")
@settings(max_examples=200, deadline=None)
def test_any_bytes_stream_as_they_decode(bytelevel: Any, data: bytes) -> None:
    """Bytes that no text has, one to a token, join to what decoding them all at once gives."""
    ids = bytes_ids(bytelevel, data)

    assert "".join(streamed(bytelevel, ids)) == whole(bytelevel, ids) == data.decode(errors="replace")


@given(data=st.lists(st.sampled_from(["▁", "▁the", "▁cat", "s", "▁▁", ".", "é", "🙂", "ß"]), max_size=20))
@settings(max_examples=150, deadline=None)
def test_word_pieces_keep_their_spaces(pieces: Any, data: list[str]) -> None:
    """Spaces that belong to tokens survive the window, characters from fallback bytes come whole."""
    ids: list[int] = []
    for word in data:
        one = pieces.get_vocab().get(word)
        ids += [one] if one is not None else [pieces.convert_tokens_to_ids(f"<0x{b:02X}>") for b in word.encode()]
    out = streamed(pieces, ids)

    assert "".join(out) == whole(pieces, ids)
    assert not any("\ufffd" in piece for piece in out)


def test_special_tokens_take_no_space_along(pieces: Any) -> None:
    """A special token, which isn't shown, doesn't cost the word after it its space."""
    ids = pieces.convert_tokens_to_ids(["▁the", "<s>", "▁cat", "s", "<s>", "<s>", "▁the"])

    assert "".join(streamed(pieces, ids)) == whole(pieces, ids) == "the cats the"


def test_text_comes_as_soon_as_it_is_certain(bytelevel: Any) -> None:
    """Each token of plain text is shown when it comes; a character of several tokens with its last."""
    decoder = StreamDecoder(bytelevel)
    shown = [decoder.push(i) for i in bytes_ids(bytelevel, "ab🙂c".encode())]

    assert shown == ["a", "b", "", "", "", "🙂", "c"]
    assert decoder.flush() == ""


def test_flush_shows_the_unfinished(bytelevel: Any) -> None:
    """A character that the end cut off is a replacement character, once."""
    decoder = StreamDecoder(bytelevel)
    shown = [decoder.push(i) for i in bytes_ids(bytelevel, "a🙂".encode()[:-1])]

    assert shown == ["a", "", "", ""]
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


def test_garbage_is_not_held_forever(bytelevel: Any) -> None:
    """An endless run of bytes that never make a character is shown after a few tokens."""
    decoder = StreamDecoder(bytelevel)
    shown = [decoder.push(i) for i in bytes_ids(bytelevel, b"\x80" * 40)]

    assert sum(map(len, shown)) >= 30


def wordy(decoder: Any, words: Sequence[str]) -> Any:
    """A tokenizer of given words and a special token, with one of the decoders that sentences are put together by."""
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "<s>", *words])}, unk_token="<unk>"))  # noqa: S106
    raw.decoder = decoder
    raw.add_special_tokens([AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=raw)


MARKED = ["▁", "▁the", "▁cat", "s", "▁▁", ".", "é", *(f"<0x{b:02X}>" for b in "🙂é".encode())]
STRIPPING = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
SCHEMES = {
    "llama 2": wordy(decoders.Sequence(STRIPPING), MARKED),
    "gemma": wordy(decoders.Sequence(STRIPPING[:-1]), MARKED),
    "metaspace always": wordy(decoders.Metaspace("▁", "always"), MARKED[:7]),
    "metaspace first": wordy(decoders.Metaspace("▁", "first"), MARKED[:7]),
    "metaspace never": wordy(decoders.Metaspace("▁", "never"), MARKED[:7]),
    "wordpiece": wordy(decoders.WordPiece("##", cleanup=True), ["the", "cat", "##s", "##▁", "##é", ".", "n't"]),
    "wordpiece unclean": wordy(decoders.WordPiece("##", cleanup=False), ["the", "cat", "##s", "##é", ".", "n't"]),
    "bpe": wordy(decoders.BPEDecoder("</w>"), ["the</w>", "cat", "s</w>", ".</w>", "é"]),
    "ctc-less": wordy(decoders.Fuse(), ["the", " cat", "s", " ", "."]),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_continuation_is_what_it_adds(scheme: str, data: st.DataObject) -> None:
    """After a prompt the pieces join to what decoding prompt and answer together has beyond the prompt."""
    tokenizer = SCHEMES[scheme]
    ids = st.integers(1, len(tokenizer) - 1)
    prompt = data.draw(
        st.lists(ids, max_size=3 * CONTEXT_TOKENS) | st.lists(st.sampled_from([1, 2, 3]), max_size=12 * CONTEXT_TOKENS)
    )
    answer = data.draw(st.lists(ids, max_size=12))
    before, both = whole(tokenizer, prompt), whole(tokenizer, [*prompt, *answer])
    if not both.startswith(before) or "\ufffd" in both:  # an answer that changes what a prompt's bytes mean
        return

    decoder = StreamDecoder(tokenizer, prompt)
    pieces = [*(decoder.push(i) for i in answer), decoder.flush()]

    assert "".join(pieces) == both[len(before) :] == continuation(tokenizer, prompt, answer)
    assert "".join(streamed(tokenizer, answer)) == whole(tokenizer, answer)  # and without one what it is alone


@given(text=st.text(max_size=60), cut=st.integers(0, 200))
@settings(max_examples=150, deadline=None)
def test_a_continuation_of_bytes_is_what_it_adds(bytelevel: Any, text: str, cut: int) -> None:
    """Bytes stand for themselves after a prompt as well, also after one whose end is far from its last whole character."""
    ids = bytelevel.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False)
    prompt, answer = ids[:cut], ids[cut:]
    before = whole(bytelevel, prompt)
    if before.endswith("\ufffd"):
        return

    assert continuation(bytelevel, prompt, answer) == whole(bytelevel, ids)[len(before) :]


def test_words_stay_apart(pieces: Any) -> None:
    """The first word of an answer keeps its space after a prompt, and has none at the start of a text."""
    the, cat = pieces.convert_tokens_to_ids(["▁the", "▁cat"])
    start = pieces.convert_tokens_to_ids("<s>")

    assert continuation(pieces, [the], [cat, cat]) == " cat cat"
    assert continuation(pieces, [start, the, *[start] * 99], [cat]) == " cat"
    assert continuation(pieces, [], [cat, cat]) == "cat cat"
    assert continuation(pieces, [start], [cat]) == "cat"


def test_a_token_is_spoken_of_by_its_text_or_name(pieces: Any) -> None:
    """With the space that it has where it stands; one that isn't shown by its name."""
    the, cat, end = pieces.convert_tokens_to_ids(["▁the", "▁cat", "<s>"])

    assert token_text(pieces, [the], cat) == " cat"
    assert token_text(pieces, [], cat) == "cat"
    assert token_text(pieces, [the], end) == "<s>"


def test_special_tokens_have_names(pieces: Any, bytelevel: Any) -> None:
    """What decoding leaves out is known by the name it has; nothing else is, neither a lone space nor half a character."""
    assert special(pieces, pieces.convert_tokens_to_ids("<s>")) == "<s>"
    for token in ("▁", "▁the", "<0xC3>"):
        assert special(pieces, pieces.convert_tokens_to_ids(token)) == ""
    assert special(bytelevel, bytelevel.convert_tokens_to_ids("<s>")) == "<s>"
    assert special(bytelevel, bytes_ids(bytelevel, b"\xc3")[0]) == ""


ABC = st.text("abc", max_size=12)
STOP_LISTS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


def scanned(stops: Sequence[str], chunks: Sequence[str]) -> tuple[list[str], bool]:
    scanner = StopScanner(stops)
    return [*(scanner.push(c) for c in chunks), scanner.flush()], scanner.stopped


@given(stops=STOP_LISTS, chunks=st.lists(ABC, max_size=8))
@settings(max_examples=400, deadline=None)
def test_stop_strings_never_leak(stops: list[str], chunks: list[str]) -> None:
    """What is shown contains no stop string and is the text up to one, all of it where there is none."""
    out, stopped = scanned(stops, chunks)
    shown, text = "".join(out), "".join(chunks)

    assert stopped == any(s in text for s in stops)
    assert not any(s in shown for s in stops)
    assert text.startswith(shown)
    if stopped:
        assert any(text.startswith(s, len(shown)) for s in stops)
    else:
        assert shown == text


@given(stops=STOP_LISTS, chunks=st.lists(ABC, max_size=8))
@settings(max_examples=400, deadline=None)
def test_nothing_shown_is_taken_back(stops: list[str], chunks: list[str]) -> None:
    """At any moment what is out ends before every stop string that may have begun; what can't be one isn't held."""
    scanner, shown, text = StopScanner(stops), "", ""
    for chunk in chunks:
        shown += scanner.push(chunk)
        text += chunk
        held = text[len(shown) :]
        if scanner.stopped:
            return
        assert held == "" or any(s.startswith(held) for s in stops)
        beginnings = [s[:n] for s in stops for n in range(1, len(s)) if text.endswith(s[:n])]
        assert len(held) == max(map(len, beginnings), default=0)


@given(stops=STOP_LISTS, chunks=st.lists(ABC, max_size=8))
@example(stops=["abc", "b"], chunks=["abc"])
@settings(max_examples=400, deadline=None)
def test_stops_dont_depend_on_tokens(stops: list[str], chunks: list[str]) -> None:
    """Text ends at the stop string that is complete first, however it was cut into tokens; of those, the longest."""
    text = "".join(chunks)
    ends = [(m.end() + len(s), m.start()) for s in stops for m in re.finditer(f"(?={re.escape(s)})", text)]
    want = text[: min(ends)[1]] if ends else text

    assert "".join(scanned(stops, chunks)[0]) == want
    assert "".join(scanned(stops, list(text))[0]) == want


@given(stops=STOP_LISTS, chunks=st.lists(st.tuples(ABC, st.booleans()), max_size=8))
@settings(max_examples=400, deadline=None)
def test_hidden_text_stops_and_isnt_shown(stops: list[str], chunks: list[tuple[str, bool]]) -> None:
    """Stop strings are looked for in all of the text; what is passed on is the part before them that isn't hidden."""
    scanner = StopScanner(stops)
    out = "".join([*(scanner.push(c, hidden=hidden) for c, hidden in chunks), scanner.flush()])
    ends = len("".join(scanned(stops, ["".join(c for c, _ in chunks)])[0]))
    seen = [(char, hidden) for chunk, hidden in chunks for char in chunk][:ends]

    assert out == "".join(char for char, hidden in seen if not hidden)


def test_stopped_scanners_stay_silent() -> None:
    """After a stop nothing comes any more, and empty stop strings stop nothing."""
    scanner = StopScanner(["b", ""])

    assert scanner.push("abc") == "a"
    assert (scanner.push("more"), scanner.flush()) == ("", "")
    assert scanned([""], ["abc"]) == (["abc", ""], False)
