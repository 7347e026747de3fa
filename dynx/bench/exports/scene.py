"""A drawing as a list of marks, and two ways to show it: SVG for browsers, PNG by Pillow for everything else.

It knows shapes and colours by role and nothing of benches. SVG colours are classes, so a page or the viewer's own preference
decides between light and dark. Lengths are CSS pixels.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Role: TypeAlias = Literal["ground", "ink", "soft", "faint", "plain", "static", "dynamic", "external"]
Anchor: TypeAlias = Literal["start", "middle", "end"]
Shape: TypeAlias = Literal["disc", "ring", "diamond", "bar"]

LIGHT: dict[Role, str] = {
    "ground": "#ffffff",
    "ink": "#1d2126",
    "soft": "#646c76",
    "faint": "#e4e7eb",
    "plain": "#646c76",
    "static": "#3a6fb0",
    "dynamic": "#00805c",
    "external": "#a4508b",
}
DARK: dict[Role, str] = {
    "ground": "#14171a",
    "ink": "#eceef0",
    "soft": "#9aa3ad",
    "faint": "#2b3138",
    "plain": "#9aa3ad",
    "static": "#7cabe6",
    "dynamic": "#3ecf9f",
    "external": "#d68cc0",
}
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif'

SIZE = 13.0
"""Of letters, unless a text says otherwise."""

LETTER = 0.58
NARROW, WIDE = dict.fromkeys("iIjlftr.,:;|'!()[] ", 0.36), dict.fromkeys("mwMW+=~×%@…", 0.88)
"""Widths of letters in units of their size, rather too wide than too narrow: for gutters, whatever the font is."""

SCALE, SMOOTH = 2, 2
"""Pixels of a PNG for each pixel of the drawing, and how many times as many are drawn and averaged."""


@dataclass(frozen=True)
class Text:
    """Letters; y is the baseline."""

    x: float
    y: float
    text: str
    role: Role = "ink"
    anchor: Anchor = "start"
    size: float = SIZE
    bold: bool = False


@dataclass(frozen=True)
class Line:
    """Through at least two points."""

    points: Sequence[tuple[float, float]]
    role: Role = "faint"
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True)
class Box:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    role: Role
    tip: str = ""


@dataclass(frozen=True)
class Dot:
    """A marker of radius r, whose shape says what its colour says; `tip` is what a pointer over it is told."""

    x: float
    y: float
    r: float
    role: Role
    shape: Shape = "disc"
    tip: str = ""


Mark: TypeAlias = Text | Line | Box | Dot


@dataclass
class Scene:
    """What is drawn, in order; `title` and `description` are for who can't see it."""

    width: float
    height: float
    title: str
    description: str = ""
    marks: list[Mark] = field(default_factory=list)

    def add(self, *marks: Mark) -> None:
        """On top of what is there."""
        self.marks += marks


def shifted(mark: Mark, down: float) -> Mark:
    """The same mark further down."""
    if isinstance(mark, Line):
        return replace(mark, points=[(x, y + down) for x, y in mark.points])
    return replace(mark, y=mark.y + down)


def width_of(text: str, size: float = SIZE, *, bold: bool = False) -> float:
    """About how wide it gets."""
    return size * (1 + 0.06 * bold) * sum({**NARROW, **WIDE}.get(letter, LETTER) for letter in text)


def styles(palette: dict[Role, str] | None = None) -> str:
    """CSS rules for the roles: of a palette, or of custom properties that a page sets."""
    rules = []
    for role in LIGHT:
        colour = f"var(--{role})" if palette is None else palette[role]
        rules.append(f".f-{role}{{fill:{colour}}}.s-{role}{{stroke:{colour}}}")
    return "".join(rules)


def to_svg(scene: Scene, *, name: str = "", standalone: bool = False) -> str:
    """An element for a page, whose ids begin with `name`, or a whole document with its own colours and ground."""
    label, more = f"{name}title", f"{name}desc"
    size = f'viewBox="0 0 {_n(scene.width)} {_n(scene.height)}"'
    own = f'width="{_n(scene.width)}" height="{_n(scene.height)}" ' if standalone else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {own}{size} role="img" aria-labelledby="{label} {more}" '
        f'font-family="{escape(FONT)}" font-size="{_n(SIZE)}">',
        f'<title id="{label}">{escape(scene.title)}</title><desc id="{more}">{escape(scene.description)}</desc>',
    ]
    if standalone:
        dark = f"@media (prefers-color-scheme: dark){{{styles(DARK)}}}"
        parts.append(f"<style>{styles(LIGHT)}{dark}</style>")
        parts.append(f'<rect class="f-ground" width="{_n(scene.width)}" height="{_n(scene.height)}"/>')
    parts += [_element(mark) for mark in scene.marks]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _element(mark: Mark) -> str:
    match mark:
        case Text(x, y, text, role, anchor, size, bold):
            more = "" if anchor == "start" else f' text-anchor="{anchor}"'
            more += "" if size == SIZE else f' font-size="{_n(size)}"'
            more += ' font-weight="600"' if bold else ""
            return f'<text class="f-{role}" x="{_n(x)}" y="{_n(y)}"{more}>{escape(text)}</text>'
        case Line(points, role, width, dashed):
            dash = ' stroke-dasharray="4 4"' if dashed else ""
            places = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
            return (
                f'<polyline class="s-{role}" fill="none" stroke-width="{_n(width)}" stroke-linejoin="round"{dash} '
                f'points="{places}"/>'
            )
        case Box(x, y, width, height, role, tip):
            shape = f'<rect class="f-{role}" x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"'
        case Dot(x, y, r, role, "diamond", tip):
            corners = " ".join(f"{_n(a)},{_n(b)}" for a, b in _diamond(x, y, r))
            shape = f'<polygon class="f-{role}" points="{corners}"'
        case Dot(x, y, r, role, "bar", tip):
            shape = f'<rect class="f-{role}" x="{_n(x - 1)}" y="{_n(y - r)}" width="2" height="{_n(2 * r)}"'
        case Dot(x, y, r, role, "ring", tip):
            shape = f'<circle class="f-ground s-{role}" stroke-width="2" cx="{_n(x)}" cy="{_n(y)}" r="{_n(r - 0.5)}"'
        case Dot(x, y, r, role, _, tip):
            shape = f'<circle class="f-{role}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}"'
    return f"{shape}><title>{escape(tip)}</title>{_CLOSING[shape[1:5]]}" if tip else f"{shape}/>"


_CLOSING = {"rect": "</rect>", "poly": "</polygon>", "circ": "</circle>"}


def _diamond(x: float, y: float, r: float) -> list[tuple[float, float]]:
    r *= 1.25  # as much ink as a disc
    return [(x, y - r), (x + r, y), (x, y + r), (x - r, y)]


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def to_png(scene: Scene) -> bytes:
    """The file's bytes, in light colours."""
    from PIL import Image, ImageDraw

    zoom = SCALE * SMOOTH
    image = Image.new("RGB", (round(scene.width * zoom), round(scene.height * zoom)), LIGHT["ground"])
    draw = ImageDraw.Draw(image)
    for mark in scene.marks:
        _paint(draw, mark, zoom)
    image = image.resize((round(scene.width * SCALE), round(scene.height * SCALE)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def _paint(draw: Any, mark: Mark, zoom: int) -> None:
    from PIL import ImageFont

    ink = LIGHT[mark.role]

    def box(x: float, y: float, width: float, height: float) -> list[float]:
        return [x * zoom, y * zoom, (x + width) * zoom - 1, (y + height) * zoom - 1]

    match mark:
        case Text():
            font = ImageFont.load_default(mark.size * zoom)
            stroke = zoom // 4 if mark.bold else 0
            place = {"start": "ls", "middle": "ms", "end": "rs"}[mark.anchor]
            draw.text((mark.x * zoom, mark.y * zoom), mark.text, fill=ink, font=font, anchor=place, stroke_width=stroke)
        case Line():
            points = [(x * zoom, y * zoom) for x, y in mark.points]
            for (x1, y1), (x2, y2) in _dashes(points, zoom) if mark.dashed else list(pairwise(points)):
                draw.line([x1, y1, x2, y2], fill=ink, width=max(1, round(mark.width * zoom)), joint="curve")
        case Box():
            draw.rectangle(box(mark.x, mark.y, max(mark.width, 1 / zoom), max(mark.height, 1 / zoom)), fill=ink)
        case Dot(shape="diamond"):
            draw.polygon([(x * zoom, y * zoom) for x, y in _diamond(mark.x, mark.y, mark.r)], fill=ink)
        case Dot(shape="bar"):
            draw.rectangle(box(mark.x - 1, mark.y - mark.r, 2, 2 * mark.r), fill=ink)
        case Dot():
            r = mark.r + 0.5 * (mark.shape == "ring")
            draw.ellipse(box(mark.x - r, mark.y - r, 2 * r, 2 * r), fill=ink)
            if mark.shape == "ring":
                draw.ellipse(box(mark.x - r + 2, mark.y - r + 2, 2 * r - 4, 2 * r - 4), fill=LIGHT["ground"])


def _dashes(points: Sequence[tuple[float, float]], zoom: int) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    out = []
    for (x1, y1), (x2, y2) in pairwise(points):
        length = max(((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5, 1e-9)
        at = 0.0
        while at < length:
            end = min(at + 4 * zoom, length)
            a, b = at / length, end / length
            out.append(((x1 + (x2 - x1) * a, y1 + (y2 - y1) * a), (x1 + (x2 - x1) * b, y1 + (y2 - y1) * b)))
            at += 8 * zoom
    return out
