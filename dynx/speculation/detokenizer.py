"""Incremental detokenization: whole characters only, no special tokens, and nothing of a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

REPLACEMENT_CHARACTER = "\ufffd"
"""The character that decoders write for bytes that are not (yet) a character."""


CONTEXT_TOKENS = 16
"""Tokens of the prompt that an answer is decoded after, where they suffice."""


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decode token ids without special tokens, keeping every space."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def context_of(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Return the shortest end of `ids` after which a token decodes as it does after all of them.

    Decoders treat the first token of a text differently (Llama 2's drops its space, WordPiece keeps its `##`), leave special
    tokens out before that, and read the bytes of a character together. So the end has to have a text, and to start and end with
    whole characters.
    """
    count = CONTEXT_TOKENS
    while count < len(ids):
        text = decode(tokenizer, ids[-count:])
        if text.strip() and not text.startswith(REPLACEMENT_CHARACTER) and not text.endswith(REPLACEMENT_CHARACTER):
            break
        count *= 4
    return list(ids[-count:])


def continuation(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text that `ids` add to that of `before`."""
    decoder = StreamDecoder(tokenizer, before)
    return "".join([*map(decoder.push, ids), decoder.flush()])


def token_text(tokenizer: Any, before: Sequence[int], token: int) -> str:
    """Return a token's label for messages: its text after `before`, else its name."""
    return continuation(tokenizer, before, [token]) or special(tokenizer, token) or str(tokenizer.decode([token]))


class StreamDecoder:
    """Decodes ids one at a time; the pieces joined are what decoding all at once gives.

    With `before` the ids continue that text, and the pieces are what decoding both adds to it. A token's text depends on its
    neighbours (leading spaces, byte pieces), so each step decodes a short window with and without the new token and shows the
    difference; while the window ends inside a character, nothing is shown.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = context_of(tokenizer, before)
        self._start, self._shown = 0, len(self._ids)  # window start, and ids whose text is out

    def _decode(self, ids: Sequence[int]) -> str:
        return decode(self._tokenizer, ids) if ids else ""

    def push(self, token: int) -> str:
        """Return the text that `token` completes; "" while a character is unfinished."""
        self._ids.append(token)
        end = len(self._ids)
        before = self._decode(self._ids[self._start : self._shown])
        after = self._decode(self._ids[self._start :])
        if after.endswith(REPLACEMENT_CHARACTER):
            if end - self._shown < 8:
                return ""
            end -= 3  # bytes that are no text; at most three of the last ones may yet begin a character
            after = self._decode(self._ids[self._start : end])
        piece = after[len(before) :]
        if (
            piece
        ):  # the window starts at shown text, or a tokenizer that strips leading spaces would strip the next word's
            self._start, self._shown = self._shown, end
        return piece

    def flush(self) -> str:
        """Return the text held back, unfinished bytes as U+FFFD."""
        before = self._decode(self._ids[self._start : self._shown])
        after = self._decode(self._ids[self._start :])
        self._start = self._shown = len(self._ids)
        return after[len(before) :]


def special(tokenizer: Any, token: int) -> str:
    """Return the name of a special token, which decoding leaves out; "" for any other."""
    if decode(tokenizer, [token]) or not tokenizer.decode([token], skip_special_tokens=False):
        return ""
    return str(tokenizer.convert_ids_to_tokens(token) or "")


class StopScanner:
    """Passes text through until a stop string appears, which is swallowed with all that follows.

    A stop string may hold special tokens: it is looked for in the text with them, and what is passed on is the text without.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""
        self._hidden: list[bool] = []  # by character held
        self.stopped = False

    @property
    def looking(self) -> bool:
        """Whether there is anything to stop at."""
        return bool(self._stops) and not self.stopped

    def push(self, text: str, *, hidden: bool = False) -> str:
        """Return the text so far that can't belong to a stop string; `hidden` text is never passed on."""
        if not self._stops or self.stopped:
            return "" if self.stopped or hidden else text
        self._held += text
        self._hidden += [hidden] * len(text)
        found = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:  # the one complete first, or the end would depend on how the text was cut into tokens
            out, self.stopped = self._take(min(found)[1]), True
            self._take(len(self._held))
            return out
        keep = max((n for s in self._stops for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0)
        return self._take(len(self._held) - keep)

    def flush(self) -> str:
        """Return the text held back for a stop string that didn't come."""
        return self._take(len(self._held))

    def _take(self, count: int) -> str:
        """Remove and return the first `count` characters held, without those hidden."""
        out = "".join(c for c, hidden in zip(self._held[:count], self._hidden, strict=False) if not hidden)
        self._held, self._hidden = self._held[count:], self._hidden[count:]
        return out
