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
        before = self._decode(self._ids[self._start : self._shown])
        after = self._decode(self._ids[self._start :])
        if after.endswith(UNFINISHED) and len(self._ids) - self._shown < 8:  # no character has more than 4 byte pieces
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

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
        found = min((at for at in (self._held.find(s) for s in self._stops) if at >= 0), default=-1)
        if found >= 0:
            out, self._held, self.stopped = self._held[:found], "", True
            return out
        keep = max((n for s in self._stops for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def flush(self) -> str:
        """What was held back in vain."""
        out, self._held = self._held, ""
        return out
