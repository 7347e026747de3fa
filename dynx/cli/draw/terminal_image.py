"""A picture in the terminal: by the protocol the terminal has, else in half blocks, two pixels to a character.

Protocols: kitty's graphics (https://sw.kovidgoyal.net/kitty/graphics-protocol/), iTerm2's inline images
(https://iterm2.com/documentation-images.html), DEC sixel (VT330/VT340 reference manual, chapter 14). They are told by the
environment alone: asking the terminal would race with what the user types. Inside tmux it is tmux that is asked (see `tmux`),
and half blocks serve where it passes nothing on, as inside screen.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Literal

from dynx.cli.tmux import DIACRITICS, number, passed, placeholders
from dynx.cli.tmux import outside as outside_tmux

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from PIL.Image import Image

Protocol = Literal["kitty", "iterm", "sixel", "tmux-kitty", "tmux-iterm", "blocks", "ascii"]

CHUNK = 4096
"""Most bytes of base64 in one of kitty's escapes."""

RAMP = " .:-=+*#%@"
"""From dark to light, for terminals without colour."""

CELL = 2.0
"""Height of a character over its width, in most fonts."""

SIXEL_COLOURS = 255

THROUGH_TMUX: Mapping[str | None, Protocol] = {"kitty": "tmux-kitty", "iterm": "tmux-iterm"}

_STEPS = (0, 95, 135, 175, 215, 255)


def choose(
    env: Mapping[str, str],
    *,
    color: bool,
    unicode: bool = True,
    outside: Callable[[Mapping[str, str]], str | None] = outside_tmux,
) -> Protocol:
    """What the terminal described by `env` shows best; `color` and `unicode`: whether it may be sent those."""
    if not color:
        return "ascii"
    term, program = env.get("TERM", ""), env.get("TERM_PROGRAM", "")
    if env.get("TMUX") and unicode:
        return THROUGH_TMUX.get(outside(env), "blocks")
    if not (env.get("TMUX") or term.startswith(("screen", "tmux"))):
        if env.get("KITTY_WINDOW_ID") or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
            return "kitty"
        if program in ("iTerm.app", "WezTerm", "mintty") or env.get("LC_TERMINAL") == "iTerm2":
            return "iterm"
        if term.startswith(("foot", "mlterm", "contour", "yaft")):
            return "sixel"
    return "blocks" if unicode else "ascii"


def true_color(env: Mapping[str, str]) -> bool:
    """Whether the terminal described by `env` says that it takes any colour; else it gets the 256 that nearly all have."""
    return env.get("COLORTERM", "").lower() in ("truecolor", "24bit") or env.get("TERM", "").endswith("-direct")


def render(picture: Image, protocol: Protocol, columns: int, lines: int, *, true_color: bool = True) -> str:
    """The text that shows `picture` in at most `columns` × `lines` characters, ending with a line end."""
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
    if protocol == "tmux-kitty":
        return _kitty_placed(flat, wide, high)
    if protocol == "tmux-iterm":
        return "\n" * high + f"\x1b[{high}A" + passed(_iterm(flat, wide).removesuffix("\n")) + f"\x1b[{high}B\r"
    if protocol == "sixel":
        return _sixel(flat)
    if protocol == "ascii":
        grey = flat.convert("L").resize((wide, high), Pillow.Resampling.BOX)
        data = grey.tobytes()
        rows = (data[y * wide : (y + 1) * wide] for y in range(high))
        return "".join("".join(RAMP[v * len(RAMP) // 256] for v in row) + "\n" for row in rows)
    return _blocks(flat.resize((wide, 2 * high), Pillow.Resampling.BOX), true_color=true_color)


def fit(width: int, height: int, columns: int, lines: int) -> tuple[int, int]:
    """Characters across and down for a picture of width × height pixels: its shape kept, not more than a pixel each across."""
    wide = max(1, min(columns, width, round(lines * CELL * width / height)))
    return wide, max(1, min(lines, round(wide * height / width / CELL)))


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _kitty(picture: Image, wide: int) -> str:
    return "".join(_kitty_pieces(_png(picture), f"a=T,f=100,q=2,c={wide}")) + "\n"


def _kitty_placed(picture: Image, wide: int, high: int) -> str:
    """The picture goes past tmux, and characters that stand for it go to tmux."""
    data, high = _png(picture), min(high, len(DIACRITICS))
    pieces = _kitty_pieces(data, f"a=T,U=1,i={number(data)},f=100,q=2,c={wide},r={high}")
    return "".join(map(passed, pieces)) + placeholders(number(data), wide, high)


def _kitty_pieces(data: bytes, control: str) -> Iterator[str]:
    text = base64.standard_b64encode(data).decode("ascii")
    for start in range(0, len(text), CHUNK):
        more = int(start + CHUNK < len(text))
        yield f"\x1b_G{control if start == 0 else 'q=2'},m={more};{text[start : start + CHUNK]}\x1b\\"


def _iterm(picture: Image, wide: int) -> str:
    data = _png(picture)
    text = base64.standard_b64encode(data).decode("ascii")
    return f"\x1b]1337;File=inline=1;size={len(data)};width={wide};preserveAspectRatio=1:{text}\x07\n"


def _sixel(picture: Image) -> str:
    """Bands of six rows; each colour paints its pixels of a band, and the carriage returns for the next colour."""
    from PIL import Image as Pillow

    scale = max(1, round(320 / picture.width))
    large = picture.resize((picture.width * scale, picture.height * scale), Pillow.Resampling.NEAREST)
    indexed = large.quantize(SIXEL_COLOURS)
    palette, data = indexed.getpalette() or [], indexed.tobytes()
    wide, high = indexed.size
    out = [f'\x1bPq"1;1;{wide};{high}']
    for c in range(len(palette) // 3):
        red, green, blue = (round(v * 100 / 255) for v in palette[3 * c : 3 * c + 3])
        out.append(f"#{c};2;{red};{green};{blue}")
    for top in range(0, high, 6):
        rows = [data[y * wide : (y + 1) * wide] for y in range(top, min(top + 6, high))]
        used = sorted(set(b"".join(rows)))
        lines = []
        for colour in used:
            bits = [sum((row[x] == colour) << i for i, row in enumerate(rows)) for x in range(wide)]
            lines.append(f"#{colour}{_run_lengths(bits)}")
        out.append("$".join(lines) + "-")
    return "".join(out) + "\x1b\\\n"


def _run_lengths(bits: list[int]) -> str:
    out, at = [], 0
    while at < len(bits):
        end = at
        while end < len(bits) and bits[end] == bits[at]:
            end += 1
        letter, count = chr(63 + bits[at]), end - at
        out.append(f"!{count}{letter}" if count > 3 else letter * count)
        at = end
    return "".join(out)


def _blocks(picture: Image, *, true_color: bool) -> str:
    """▀ with the upper pixel in front and the lower behind."""
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
    """The closest of xterm's 256 colours: of its 6×6×6 cube, or of its 24 greys."""

    def distance(other: tuple[int, int, int]) -> int:
        return sum((a - b) ** 2 for a, b in zip(rgb, other, strict=True))

    steps = [min(range(6), key=lambda i: abs(_STEPS[i] - v)) for v in rgb]
    cube = (_STEPS[steps[0]], _STEPS[steps[1]], _STEPS[steps[2]])
    grey = max(0, min(23, round((sum(rgb) / 3 - 8) / 10)))
    level = 8 + 10 * grey
    if distance((level, level, level)) < distance(cube):
        return 232 + grey
    return 16 + 36 * steps[0] + 6 * steps[1] + steps[2]
