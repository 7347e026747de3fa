"""A streamer that is ended once, whatever happens."""

from __future__ import annotations

from typing import Any

from transformers import TextStreamer


class OnceEnded:
    """Passes tokens on to a streamer of transformers, and ends it once.

    Whoever iterates over a `TextIteratorStreamer` waits for its end in another thread and can't learn of a failure, so a call
    that fails ends it too. Servers' own streamers report failures themselves, and an end before that would pass for success.
    One that raises in `put` wants no more: that is how a request is cancelled.
    """

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._over = False

    def put(self, value: Any) -> None:
        """Pass on token ids."""
        try:
            self._streamer.put(value)
        except BaseException:
            self._over = True
            raise

    def end(self) -> None:
        """End the streamer, the first time."""
        if not self._over:
            self._over = True
            self._streamer.end()

    def fail(self) -> None:
        """End a streamer whose reader would wait for ever."""
        if isinstance(self._streamer, TextStreamer):
            self.end()
