"""The two streams: stdout carries the product, stderr everything said about it.

The only module that builds a rich Console or looks at terminals and colour. Messages have levels: errors always, warnings
unless -qq, notices unless -q, details with -v.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from dynx.speculation.events import Origin, Receipt

SHADES: dict[Origin, str] = {
    "target": "",
    "draft": "\x1b[38;5;37m",  # cyan: the draft model
    "self": "\x1b[38;5;170m",  # magenta: the model's own first layers
    "lookup": "\x1b[38;5;142m",  # olive: copied
}
NAMES: dict[Origin, str] = {"target": "the model itself", "draft": "draft model", "self": "early exit", "lookup": "lookup"}


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
    """stdout and stderr of one command."""

    def __init__(self, *, quiet: int = 0, verbose: int = 0, color: str = "auto", json: bool = False) -> None:
        self.quiet, self.verbose, self._color, self._json = quiet, verbose, color, json
        self.out_color = wants_color(sys.stdout, color)
        self.err_color = wants_color(sys.stderr, color)
        self.interactive = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not json and not quiet
        self._status_shown = False

    def write(self, text: str) -> None:
        """Product, at once."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def warn(self, message: str) -> None:
        """Something the user should know; survives -q."""
        if self.quiet < 2:
            self._line(f"dynx: {message}")

    def notice(self, message: str) -> None:
        """Something worth knowing."""
        if not self.quiet:
            self._line(message)

    def detail(self, message: str) -> None:
        """For -v."""
        if self.verbose:
            self._line(message)

    def _line(self, message: str) -> None:
        self.clear_status()
        sys.stderr.write(self.dim(message) + "\n")
        sys.stderr.flush()

    def dim(self, text: str) -> str:
        """Quiet on stderr."""
        return f"\x1b[2m{text}\x1b[0m" if self.err_color and text else text

    def status(self, message: str) -> None:
        """A line on the terminal that the next word replaces; with -v, a line that stays."""
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

    def rich(self, stream: TextIO | None = None) -> Console:
        """A rich console for tables and bars on `stream` (stderr by default)."""
        from rich.console import Console

        file = stream or sys.stderr
        colored = wants_color(file, self._color)
        return Console(
            file=file, color_system="auto" if colored else None, no_color=not colored, force_terminal=colored or None, highlight=False
        )

    @contextmanager
    def progress(self, label: str) -> Iterator[Any]:
        """A function (done, total, note) that moves a bar on a terminal and does nothing elsewhere."""
        if not self.interactive:
            yield lambda done, total, note="": None
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.clear_status()
        columns = [TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[note]}"), TimeElapsedColumn()]
        with Progress(*columns, console=self.rich(), transient=True) as bar:
            task = bar.add_task(label, total=1.0, note="")
            yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)


def receipt_line(receipt: Receipt) -> str:
    """What a run saved, in one line."""
    parts = [f"{receipt.tokens} tokens"]
    if receipt.tokens_per_second:
        parts[0] += f" at {receipt.tokens_per_second:.0f}/s"
    if receipt.tokens_per_forward and receipt.drafters:
        parts.append(f"{receipt.tokens_per_forward:.2f} tokens per pass of the model")
    if receipt.speedup and receipt.drafters and receipt.plain_measured:
        parts.append(f"{receipt.speedup:.2f}x of plain decoding")
    parts.append(receipt.guarantee)
    return " · ".join(parts)


def receipt_rows(receipt: Receipt, profile: str) -> list[tuple[str, str]]:
    """The whole receipt, for --stats."""

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else form.format(value)

    rows = [
        ("tokens", f"{receipt.tokens} written after {receipt.prompt_tokens} of prompt; ended by {receipt.finish_reason}"),
        ("speed", f"{number(receipt.tokens_per_second, '{:.1f}')} tokens/s, first token after {number(receipt.first_token_seconds, '{:.3f}')} s"),
        ("passes", f"{receipt.target_forwards} of the model, {number(receipt.tokens_per_forward, '{:.2f}')} tokens each"),
    ]
    for origin, tally in receipt.drafters.items():
        share = number(tally.acceptance, "{:.0%}")
        rows.append((NAMES[origin], f"{tally.drafted} drafted, {tally.submitted} judged, {tally.accepted} kept ({share}), {tally.seconds:.3f} s"))
    if receipt.plain_seconds is not None and receipt.plain_measured:
        spent = receipt.seconds - receipt.prefill_seconds
        saved = receipt.plain_seconds - spent
        rows.append(("saved", f"{saved:+.2f} s against plain decoding's {receipt.plain_seconds:.2f} s ({number(receipt.speedup, '{:.2f}')}x), by {receipt.plain_measured}"))
    rows += [("guarantee", receipt.guarantee), ("profile", profile)]
    return rows


def receipt_json(receipt: Receipt, profile: str | None) -> dict[str, Any]:
    """The receipt as JSON: seconds, tokens, null for what is unknown."""
    return {
        "prompt_tokens": receipt.prompt_tokens,
        "tokens": receipt.tokens,
        "seconds": receipt.seconds,
        "prefill_seconds": receipt.prefill_seconds,
        "first_token_seconds": receipt.first_token_seconds,
        "tokens_per_second": receipt.tokens_per_second,
        "target_forwards": receipt.target_forwards,
        "tokens_per_forward": receipt.tokens_per_forward,
        "drafters": {
            origin: {
                "rounds": t.rounds,
                "drafted": t.drafted,
                "submitted": t.submitted,
                "accepted": t.accepted,
                "acceptance": t.acceptance,
                "submitted_by_position": t.submitted_by_position,
                "accepted_by_position": t.accepted_by_position,
                "seconds": t.seconds,
            }
            for origin, t in receipt.drafters.items()
        },
        "guarantee": receipt.guarantee,
        "plain_seconds": receipt.plain_seconds,
        "plain_measured": receipt.plain_measured,
        "speedup": receipt.speedup,
        "profile": profile,
    }
