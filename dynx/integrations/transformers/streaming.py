"""A streamer that is told about the end exactly once."""

from __future__ import annotations

from typing import Any


class OnceEnded:
    """Passes tokens on to a streamer of transformers, and ends it once, whatever happens.

    Whoever iterates over a streamer in another thread waits for its end, so a call that fails must end it too. A streamer that
    raises in `put` has ended itself: that is how servers cancel.
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
