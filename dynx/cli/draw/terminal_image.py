"""Encodes a picture for the terminal: by the terminal's own protocol, else in half blocks, two pixels per character.

Protocols: kitty's graphics (https://sw.kovidgoyal.net/kitty/graphics-protocol/) and iTerm2's inline images
(https://iterm2.com/documentation-images.html). They are told by the environment alone: asking the terminal would race with what
the user types. Inside tmux and screen, which pass neither on, half blocks serve.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from PIL.Image import Image

Protocol = Literal["kitty", "iterm", "blocks"]

KITTY_CHUNK_BYTES = 4096
"""Largest number of base64 bytes in one of kitty's escapes."""

CELL_ASPECT_RATIO = 2.0
"""Height of a character over its width, in most fonts."""

_STEPS = (0, 95, 135, 175, 215, 255)


def choose(env: Mapping[str, str], *, color: bool, unicode: bool = True) -> Protocol | None:
    """Return the best protocol of the terminal described by `env`, or None; `color` and `unicode` limit what may be sent."""
    if not color:
        return None
    term, program = env.get("TERM", ""), env.get("TERM_PROGRAM", "")
    if not (env.get("TMUX") or term.startswith(("screen", "tmux"))):
        if env.get("KITTY_WINDOW_ID") or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
            return "kitty"
        if program in ("iTerm.app", "WezTerm", "mintty") or env.get("LC_TERMINAL") == "iTerm2":
            return "iterm"
    return "blocks" if unicode else None


def true_color(env: Mapping[str, str]) -> bool:
    """Whether the terminal described by `env` supports true colour; others get the 256 colours that nearly all have."""
    return env.get("COLORTERM", "").lower() in ("truecolor", "24bit") or env.get("TERM", "").endswith("-direct")


def render(picture: Image, protocol: Protocol, columns: int, lines: int, *, true_color: bool = True) -> str:
    """Return the text that shows `picture` in at most `columns` × `lines` characters, ending with a line end."""
    from PIL import Image as Pillow

    flat = picture
    if picture.mode in ("RGBA", "LA", "P"):
        flat = picture.convert("RGBA")
        paper = Pillow.new("RGBA", flat.size, "white")
        flat = Pillow.alpha_composite(paper, flat)
    flat = flat.convert("RGB")
    wide, high = fit(flat.width, flat.height, columns, lines)
    if protocol == "kitty":
        return _kitty(flat, wide)
    if protocol == "iterm":
        return _iterm(flat, wide)
    return _blocks(flat.resize((wide, 2 * high), Pillow.Resampling.BOX), true_color=true_color)


def fit(width: int, height: int, columns: int, lines: int) -> tuple[int, int]:
    """Return columns and lines for a picture of width × height pixels: keeps its shape, with at most one column per pixel."""
    wide = max(1, min(columns, width, round(lines * CELL_ASPECT_RATIO * width / height)))
    return wide, max(1, min(lines, round(wide * height / width / CELL_ASPECT_RATIO)))


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _kitty(picture: Image, wide: int) -> str:
    return "".join(_kitty_pieces(_png(picture), f"a=T,f=100,q=2,c={wide}")) + "\n"


def _kitty_pieces(data: bytes, control: str) -> Iterator[str]:
    text = base64.standard_b64encode(data).decode("ascii")
    for start in range(0, len(text), KITTY_CHUNK_BYTES):
        more = int(start + KITTY_CHUNK_BYTES < len(text))
        yield f"\x1b_G{control if start == 0 else 'q=2'},m={more};{text[start : start + KITTY_CHUNK_BYTES]}\x1b\\"


def _iterm(picture: Image, wide: int) -> str:
    data = _png(picture)
    text = base64.standard_b64encode(data).decode("ascii")
    return f"\x1b]1337;File=inline=1;size={len(data)};width={wide};preserveAspectRatio=1:{text}\x07\n"


def _blocks(picture: Image, *, true_color: bool) -> str:
    """Return ▀ characters with the upper pixel as foreground and the lower as background."""
    wide, high = picture.size
    data = picture.tobytes()

    def at(x: int, y: int) -> tuple[int, int, int]:
        i = 3 * (y * wide + x)
        return data[i], data[i + 1], data[i + 2]

    def colour(base: int, rgb: tuple[int, int, int]) -> str:
        return f"{base};2;{rgb[0]};{rgb[1]};{rgb[2]}" if true_color else f"{base};5;{_nearest(rgb)}"

    lines = []
    for y in range(0, high, 2):
        line, before = "", ""
        for x in range(wide):
            style = f"\x1b[{colour(38, at(x, y))};{colour(48, at(x, y + 1))}m"
            line += ("" if style == before else style) + "▀"
            before = style
        lines.append(line + "\x1b[0m\n")
    return "".join(lines)


def _nearest(rgb: tuple[int, int, int]) -> int:
    """Return the closest of xterm's 256 colours: of its 6×6×6 cube, or of its 24 greys."""

    def distance(other: tuple[int, int, int]) -> int:
        return sum((a - b) ** 2 for a, b in zip(rgb, other, strict=True))

    steps = [min(range(6), key=lambda i: abs(_STEPS[i] - v)) for v in rgb]
    cube = (_STEPS[steps[0]], _STEPS[steps[1]], _STEPS[steps[2]])
    grey = max(0, min(23, round((sum(rgb) / 3 - 8) / 10)))
    level = 8 + 10 * grey
    if distance((level, level, level)) < distance(cube):
        return 232 + grey
    return 16 + 36 * steps[0] + 6 * steps[1] + steps[2]
