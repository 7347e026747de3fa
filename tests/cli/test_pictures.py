"""Pictures in the terminal: each protocol decoded again gives the picture back."""

from __future__ import annotations

import base64
import io
import random
import re

import pytest
from PIL import Image

from dynx.cli.draw.terminal_image import choose, fit, render


def noise(width: int, height: int) -> Image.Image:
    """Pixels that all differ, the same each time."""
    return Image.frombytes("RGB", (width, height), random.Random(0).randbytes(3 * width * height))


def shown(text: str) -> Image.Image:
    """The picture that half blocks show."""
    pixels: list[list[tuple[int, int, int]]] = []
    for line in text.splitlines():
        upper, lower = [], []
        front = back = (0, 0, 0)
        for style, block in re.findall(r"\x1b\[([\d;]*)m|(▀)", line):
            if block:
                upper.append(front)
                lower.append(back)
            elif style != "0":
                numbers = [int(n) for n in style.split(";")]
                front, back = tuple(numbers[2:5]), tuple(numbers[7:10])  # type: ignore[assignment]
        pixels += [upper, lower]
    image = Image.new("RGB", (len(pixels[0]), len(pixels)))
    image.putdata([p for row in pixels for p in row])
    return image


def test_half_blocks_show_every_pixel() -> None:
    """A picture that fits is shown pixel by pixel."""
    picture = noise(12, 8)

    assert shown(render(picture, "blocks", 80, 24)).tobytes() == picture.tobytes()


def test_a_large_picture_is_made_to_fit() -> None:
    """Neither wider nor higher than asked for, and its shape is kept."""
    lines = render(noise(200, 100), "blocks", 40, 30).splitlines()

    assert [line.count("▀") for line in lines] == [40] * 10
    assert fit(100, 400, 80, 24) == (12, 24)
    assert fit(1, 1000, 80, 24) == (1, 24)


def test_256_colours_are_the_nearest() -> None:
    """Colours of the palette itself come out as they are."""
    picture = Image.new("RGB", (1, 2))
    picture.putdata([(215, 0, 95), (118, 118, 118)])

    assert render(picture, "blocks", 8, 8, true_color=False) == "\x1b[38;5;161;48;5;243m▀\x1b[0m\n"


def test_kitty_carries_the_png_in_chunks() -> None:
    """The pieces put together are a PNG of the same pixels; none is over the limit, and the last says so."""
    picture = noise(64, 64)
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", render(picture, "kitty", 80, 24))
    data = base64.standard_b64decode("".join(piece for _, piece in pieces))

    assert Image.open(io.BytesIO(data)).convert("RGB").tobytes() == picture.tobytes()
    assert len(pieces) > 1
    assert max(len(piece) for _, piece in pieces) <= 4096
    assert [("m=1" in control) for control, _ in pieces] == [True] * (len(pieces) - 1) + [False]


def test_iterm_carries_the_png() -> None:
    """Its size is said, and the data is the picture."""
    picture = noise(9, 5)
    found = re.fullmatch(
        r"\x1b\]1337;File=inline=1;size=(\d+);width=9;[^:]*:(.*)\x07\n", render(picture, "iterm", 80, 24)
    )

    assert found is not None
    data = base64.standard_b64decode(found[2])
    assert len(data) == int(found[1])
    assert Image.open(io.BytesIO(data)).convert("RGB").tobytes() == picture.tobytes()


def test_what_is_transparent_is_paper() -> None:
    """White, as a page is."""
    drawn = render(Image.new("RGBA", (1, 2), (0, 0, 0, 0)), "blocks", 80, 24)

    assert shown(drawn).tobytes() == b"\xff" * 6


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "foot"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "socket,1,0"}, "blocks"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app"}, "blocks"),
    ],
)
def test_the_environment_tells_the_protocol(env: dict[str, str], expected: str) -> None:
    """Graphics where they're known to work, and half blocks anywhere else."""
    assert choose(env, color=True) == expected
    assert choose(env, color=False) is None


def test_a_terminal_without_unicode_gets_graphics_or_nothing() -> None:
    """Half blocks need Unicode; graphics don't."""
    assert choose({"TERM": "xterm"}, color=True, unicode=False) is None
    assert choose({"TERM": "xterm-kitty"}, color=True, unicode=False) == "kitty"
