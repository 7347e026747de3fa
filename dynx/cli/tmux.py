"""Pictures through tmux: what is around it, and how to reach past it.

tmux knows the terminal it is shown on, and whether a pane may pass escapes on to it (`allow-passthrough`, off unless the user
turned it on); it is asked with a time limit. kitty's graphics go through as a picture that isn't placed, and as characters in
its place that tmux moves like any others (https://sw.kovidgoyal.net/kitty/graphics-protocol/#unicode-placeholders). iTerm2's
land at the cursor, in lines that were made free for them before.
"""

from __future__ import annotations

import re
import subprocess
import zlib
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PATIENCE = 0.5
"""Seconds to wait for tmux; its server answers in a few milliseconds."""

ASK = "#{allow-passthrough} #{version} #{client_termname} #{client_termtype}"

PASSES_BY_DEFAULT = (3, 3)
"""The first release that has `allow-passthrough`; those before pass everything on."""

PLACEHOLDER = "\U0010eeee"

DIACRITICS = (
    "\u0305\u030d\u030e\u0310\u0312\u033d\u033e\u033f\u0346\u034a\u034b\u034c\u0350\u0351\u0352\u0357"
    "\u035b\u0363\u0364\u0365\u0366\u0367\u0368\u0369\u036a\u036b\u036c\u036d\u036e\u036f\u0483\u0484"
    "\u0485\u0486\u0487\u0592\u0593\u0594\u0595\u0597\u0598\u0599\u059c\u059d\u059e\u059f\u05a0\u05a1"
    "\u05a8\u05a9\u05ab\u05ac\u05af\u05c4\u0610\u0611\u0612\u0613\u0614\u0615\u0616\u0617\u0657\u0658"
)
"""The first of the characters by which kitty numbers rows and columns, in its order."""


def outside(env: Mapping[str, str], *, ask: Callable[..., Any] = subprocess.run) -> Literal["kitty", "iterm"] | None:
    """Whose graphics tmux, described by `env`, passes on to the terminal around it; None where it doesn't, or doesn't say."""
    pane = ["-t", env["TMUX_PANE"]] if env.get("TMUX_PANE") else []
    try:
        answer = ask(
            ["tmux", "display-message", "-p", *pane, ASK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    passes, version, name, kind = [*answer.rstrip("\n").split(" ", 3), "", "", ""][:4]
    release = re.search(r"(\d+)\.(\d+)", version)
    early = release is not None and (int(release[1]), int(release[2])) < PASSES_BY_DEFAULT
    if not (passes in ("on", "all", "1") or (not passes and early)):
        return None
    if re.match(r"xterm-(kitty|ghostty)|(kitty|ghostty)\b", name) or re.match(r"(kitty|ghostty)\b", kind):
        return "kitty"
    return "iterm" if re.match(r"iTerm2|WezTerm|mintty", kind) else None


def passed(escape: str) -> str:
    """An escape sequence as tmux passes it on."""
    return f"\x1bPtmux;{escape.replace(chr(27), chr(27) * 2)}\x1b\\"


def number(data: bytes) -> int:
    """Which of kitty's pictures one is: by its content, so that the same picture isn't kept twice; fits into a colour."""
    return zlib.crc32(data) % 0xFFFFFF + 1


def placeholders(picture: int, columns: int, lines: int) -> str:
    """The characters that kitty replaces by a picture: its number is their colour, and each line says which it is."""
    colour = f"\x1b[38;2;{picture >> 16};{picture >> 8 & 255};{picture & 255}m"
    rows = (
        f"{colour}{PLACEHOLDER}{mark}{DIACRITICS[0]}{PLACEHOLDER * (columns - 1)}\x1b[39m\n"
        for mark in DIACRITICS[:lines]
    )
    return "".join(rows)
