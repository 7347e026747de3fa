"""Writes to the two streams: stdout carries the product, stderr everything about it.

The only module that builds a rich Console or looks at terminals and colour. Messages have levels: errors always, warnings
unless -qq, notices unless -q, details with -v.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from dynx.cli.flags import in_flags
from dynx.cli.startup import Startup, process_age
from dynx.errors import DynxError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console


def wants_color(stream: TextIO, choice: str = "auto") -> bool:
    """Whether to colour `stream`: --color, then NO_COLOR, FORCE_COLOR, TERM, then whether it is a terminal."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class Terminal:
    """The stdout and stderr of one command."""

    def __init__(self, *, quiet: int = 0, verbose: int = 0, color: str = "auto", json: bool = False) -> None:
        self.quiet, self.verbose, self._color, self._json = quiet, verbose, color, json
        self.out_color = wants_color(sys.stdout, color)
        self.err_color = wants_color(sys.stderr, color)
        self.interactive = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not json and not quiet
        self._status_shown = False
        self.startup = Startup(process_age())
        if not self.interactive:
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the hub's client looks once, when imported

    def write(self, text: str) -> None:
        """Write product to stdout at once. Raises DynxError where it can't be written, as on a full disk."""
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as e:
            raise DynxError(f"can't write to stdout: {e.strerror or e}") from None

    def document(self, body: dict[str, Any]) -> None:
        """Write one line of JSON; null and never NaN, and plain ASCII where stdout can't encode all of Unicode."""
        import json

        text = json.dumps(body, ensure_ascii=not self.unicode, allow_nan=False)
        self.write(text + "\n")

    @property
    def unicode(self) -> bool:
        """Whether stdout can encode any character."""
        return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"

    def warn(self, message: str) -> None:
        """Print a warning, also with -q."""
        if self.quiet < 2:
            self._line(f"dynx: {message}")

    def notice(self, message: str) -> None:
        """Print a notice, unless -q is given."""
        if not self.quiet:
            self._line(message)

    def detail(self, message: str) -> None:
        """Print a detail with -v."""
        if self.verbose:
            self._line(message)

    def _line(self, message: str) -> None:
        self.clear_status()
        sys.stderr.write(self.dim(in_flags(message)) + "\n")
        sys.stderr.flush()

    def dim(self, text: str) -> str:
        """Print a dim line to stderr."""
        return f"\x1b[2m{text}\x1b[0m" if self.err_color and text else text

    def status(self, message: str) -> None:
        """Show the current activity: a line on the terminal that the next output replaces; with -vv, a line that stays."""
        self.startup.mark(message)
        if self.verbose > 1:
            self._line(message)
        elif self.interactive:
            self.clear_status()
            sys.stderr.write(self.dim(f"{message}…"))
            sys.stderr.flush()
            self._status_shown = True

    def clear_status(self) -> None:
        """Remove the status line."""
        if self._status_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._status_shown = False

    def first(self, product: str) -> None:
        """Mark that a token, label or picture is about to be written; with -vv, print how long the first one took."""
        line = self.startup.end(product)
        if line is not None and self.verbose > 1:
            self._line(line)

    def rich(self, stream: TextIO | None = None) -> Console:
        """Return a rich console for tables and bars on `stream` (stderr by default)."""
        from rich.console import Console

        class Piped(Console):
            """A rich console that leaves a closed pipe to `main`; rich would exit with 1."""

            def on_broken_pipe(self) -> None:
                raise BrokenPipeError

        file = stream or sys.stderr
        colored = wants_color(file, self._color)
        return Piped(
            file=file,
            color_system="auto" if colored else None,
            no_color=not colored,
            force_terminal=colored or None,
            highlight=False,
        )

    @contextmanager
    def progress(self, label: str) -> Iterator[Any]:
        """Return a function (done, total, note) that moves a bar on a terminal and does nothing elsewhere."""
        if not self.interactive:
            yield lambda *_: None
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.clear_status()
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        ]
        with Progress(*columns, console=self.rich(), transient=True) as bar:
            task = bar.add_task(label, total=1.0, note="")
            yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)
