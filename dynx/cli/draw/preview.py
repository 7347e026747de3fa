"""Shows pictures on the terminal: finished ones, and previews while one is drawn."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from dynx.cli.draw.terminal_image import choose, render, true_color

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL.Image import Image

    from dynx.cli.console import Terminal
    from dynx.cli.draw.terminal_image import Protocol
    from dynx.cli.options import Show

    Move = Callable[[int, int, str, Image | None], None]
    """Called after each step: steps done, steps in all, a note, and the preview if one is shown."""

DEFAULT_TERMINAL_SIZE = (80, 24)
"""Columns and lines of a terminal of unknown size."""

LINES_BELOW = 3
"""Lines left free below a picture: for its path and the shell's prompt."""

PREVIEW_PIXELS = 64
"""Width to which a small preview is enlarged, in pixels."""


def room(stream: TextIO) -> tuple[int, int]:
    """Return the columns and lines for a picture on a stream."""
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns, lines = DEFAULT_TERMINAL_SIZE
    given = (os.environ.get("COLUMNS", ""), os.environ.get("LINES", ""))
    columns, lines = (int(g) if g.isdigit() and int(g) else n for g, n in zip(given, (columns, lines), strict=True))
    return columns or DEFAULT_TERMINAL_SIZE[0], max(2, (lines or DEFAULT_TERMINAL_SIZE[1]) - LINES_BELOW)


class Screen:
    """Chooses the stream for pictures: stdout if it is a terminal and carries nothing else, else stderr."""

    def __init__(self, terminal: Terminal, show: Show, *, preview: bool, json: bool, png: bool) -> None:
        self._terminal = terminal
        self._stream = sys.stdout if sys.stdout.isatty() and not (json or png) else sys.stderr
        able = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self.shows = show == "always" or (show == "auto" and able and not terminal.quiet and not json)
        plain = os.environ.get("TERM") == "dumb" or not (self._colour(sys.stderr) and _unicode(sys.stderr))
        self.previews = preview and sys.stderr.isatty() and not plain
        self._asked, self._said = show == "always", False

    def show(self, picture: Image) -> None:
        """Show the finished picture."""
        if self.shows:
            self._terminal.clear_status()
            protocol = choose(os.environ, color=self._colour(self._stream), unicode=_unicode(self._stream))
            if protocol is None:
                self._say_why_not()
                return
            self._stream.write(self._drawn(picture, self._stream, protocol))
            self._stream.flush()

    def _say_why_not(self) -> None:
        """Print why pictures can't be shown, if --show is given."""
        if self._asked and not self._said:
            why = "UTF-8" if self._colour(self._stream) else "colour"
            self._terminal.warn(f"the picture can't be shown: the output lacks {why}")
            self._said = True

    def _colour(self, stream: TextIO) -> bool:
        return self._terminal.out_color if stream is sys.stdout else self._terminal.err_color

    def _drawn(self, picture: Image, stream: TextIO, protocol: Protocol) -> str:
        columns, lines = room(stream)
        return render(picture, protocol, columns, lines, true_color=true_color(os.environ))

    @contextmanager
    def live(self, label: str, *, sighted: bool) -> Iterator[Move]:
        """Return a callback for each step: it moves a bar, or shows previews if there are any (`sighted`)."""
        if not (self.previews and sighted):
            with self._terminal.progress(label) as bar:
                yield lambda done, of, words, _: bar(done, of, words)
            return
        region = _Region(sys.stderr)

        def move(done: int, of: int, words: str, picture: Image | None) -> None:
            # half blocks: graphics would pile up in the terminal's memory
            drawn = "" if picture is None else self._drawn(_enlarged(picture), sys.stderr, "blocks")
            region.redraw(f"{drawn}{self._terminal.dim(f'step {done} of {of}: {words}')}\n")

        self._terminal.clear_status()
        try:
            yield move
        finally:
            region.clear()


class _Region:
    """Lines at the cursor that are overwritten by each redraw."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._height = stream, 0

    def redraw(self, text: str) -> None:
        """Show `text` in place of the previous text."""
        self._stream.write(self._home() + text)
        self._stream.flush()
        self._height = text.count("\n")

    def clear(self) -> None:
        """Clear the lines."""
        self._stream.write(self._home())
        self._stream.flush()
        self._height = 0

    def _home(self) -> str:
        return f"\x1b[{self._height}A\r\x1b[J" if self._height else ""


def _unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "") == "utf8"


def _enlarged(picture: Image) -> Image:
    from PIL import Image as Pillow

    factor = max(1, PREVIEW_PIXELS // max(picture.width, 1))
    return picture.resize((picture.width * factor, picture.height * factor), Pillow.Resampling.BICUBIC)


def image(pixels: Any) -> Image:
    """Return a picture from an array of (H, W, 3) bytes."""
    from PIL import Image as Pillow

    return Pillow.fromarray(pixels)
