"""From token ids to text that may be shown: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

UNFINISHED = "\ufffd"
"""What decoders put for bytes that are not (yet) a character."""


class StreamDecoder:
    """Decodes ids one at a time; the pieces joined are what decoding all at once gives.

    A token's text depends on its neighbours (leading spaces, byte pieces), so each step decodes a short window with and without
    the new token and shows the difference; while the window ends inside a character, nothing is shown.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._shown = 0  # window start, and ids whose text is out

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def push(self, token: int) -> str:
        """The text that `token` completes; "" while a character is unfinished."""
        self._ids.append(token)
        end = len(self._ids)
        before = self._decode(self._ids[self._start : self._shown])
        after = self._decode(self._ids[self._start :])
        if after.endswith(UNFINISHED):
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
        """What was held back, unfinished bytes as U+FFFD."""
        before = self._decode(self._ids[self._start : self._shown])
        after = self._decode(self._ids[self._start :])
        self._start = self._shown = len(self._ids)
        return after[len(before) :]


class StopScanner:
    """Passes text through until a stop string appears, which is swallowed with all that follows."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The part of what is known so far that can't belong to a stop string."""
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        self._held += text
        found = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:  # the one complete first, or the end would depend on how the text was cut into tokens
            out, self._held, self.stopped = self._held[: min(found)[1]], "", True
            return out
        keep = max((n for s in self._stops for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def flush(self) -> str:
        """What was held back in vain."""
        out, self._held = self._held, ""
        return out
