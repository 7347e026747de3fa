"""Pictures in the terminal: each protocol decoded again gives the picture back."""

from __future__ import annotations

import base64
import io
import random
import re
import subprocess
import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from dynx.cli.draw.terminal_image import RAMP, choose, fit, render
from dynx.cli.tmux import DIACRITICS, PATIENCE, PLACEHOLDER, outside


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


def unsixel(text: str) -> Image.Image:
    """The picture that sixels show."""
    head, _, body = text.partition("\x1bPq")
    assert head == ""
    wide, high = (int(n) for n in re.match(r'"1;1;(\d+);(\d+)', body).groups())  # type: ignore[union-attr]
    palette = {
        int(c): tuple(round(int(v) * 255 / 100) for v in (r, g, b))
        for c, r, g, b in re.findall(r"#(\d+);2;(\d+);(\d+);(\d+)", body)
    }
    image = Image.new("RGB", (wide, high))
    body = re.sub(r'^"[\d;]*', "", re.sub(r"#\d+;2;\d+;\d+;\d+", "", body)).removesuffix("\n").removesuffix("\x1b\\")
    x, top, colour = 0, 0, 0
    for number, count, letter in re.findall(r"#(\d+)|(?:!(\d+))?([?-~]|\$|-)", body):
        if number:
            colour = int(number)
        elif letter in "$-":
            x, top = 0, top + 6 * (letter == "-")
        else:
            run = int(count or 1)
            bits = [i for i in range(6) if (ord(letter) - 63) >> i & 1]
            for place in ((x + dx, top + i) for dx in range(run) for i in bits):
                image.putpixel(place, palette[colour])
            x += run
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


def test_sixels_show_the_picture() -> None:
    """Decoded again, each pixel is within a percent step of what went in."""
    picture = Image.new("RGB", (4, 5))
    picture.putdata([((i * 60) % 256, (i * 90) % 256, (i * 33) % 256) for i in range(20)])
    back = unsixel(render(picture, "sixel", 80, 24)).resize((4, 5), Image.Resampling.NEAREST)
    far = max(abs(a - b) for a, b in zip(back.tobytes(), picture.tobytes(), strict=True))

    assert far <= 2


def test_without_colour_there_is_light_and_dark() -> None:
    """White is the last letter of the ramp, black the first, and transparent is paper."""
    picture = Image.new("RGB", (2, 2), "white")
    picture.putpixel((0, 0), (0, 0, 0))
    picture.putpixel((0, 1), (0, 0, 0))

    assert render(picture, "ascii", 80, 24) == f"{RAMP[0]}{RAMP[-1]}\n"
    assert render(Image.new("RGBA", (1, 2), (0, 0, 0, 0)), "ascii", 80, 24) == f"{RAMP[-1]}\n"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app"}, "blocks"),
    ],
)
def test_the_environment_tells_the_protocol(env: dict[str, str], expected: str) -> None:
    """Graphics where they're known to work, and half blocks anywhere else."""
    assert choose(env, color=True) == expected
    assert choose(env, color=False) == "ascii"


def test_a_terminal_without_unicode_gets_letters() -> None:
    """Half blocks need Unicode; graphics don't."""
    assert choose({"TERM": "xterm"}, color=True, unicode=False) == "ascii"
    assert choose({"TERM": "xterm-kitty"}, color=True, unicode=False) == "kitty"


def tmux(answer: str | Exception) -> Any:
    """tmux as it answers, or doesn't."""

    def ask(words: list[str], **options: Any) -> Any:
        assert words[:2] == ["tmux", "display-message"]
        assert options["timeout"] == PATIENCE
        assert options["stdin"] == subprocess.DEVNULL
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(stdout=answer + "\n")

    return ask


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("on 3.3a xterm-kitty kitty(0.35.2)", "tmux-kitty"),
        ("all 3.4 xterm-256color ghostty 1.1.3", "tmux-kitty"),
        ("1 next-3.6 xterm-ghostty ", "tmux-kitty"),
        ("on 3.5a xterm-256color iTerm2 3.5.4", "tmux-iterm"),
        ("on 3.4 xterm-256color WezTerm 20240203", "tmux-iterm"),
        (" 3.2a xterm-kitty ", "tmux-kitty"),
        ("off 3.3a xterm-kitty kitty(0.35.2)", "blocks"),
        ("0 3.3a xterm-kitty kitty(0.35.2)", "blocks"),
        (" 3.3a xterm-kitty kitty(0.35.2)", "blocks"),
        ("on 3.3a xterm-256color XTerm(379)", "blocks"),
        ("on 3.3a  ", "blocks"),
        ("", "blocks"),
        (FileNotFoundError("tmux"), "blocks"),
        (subprocess.TimeoutExpired("tmux", PATIENCE), "blocks"),
        (subprocess.CalledProcessError(1, "tmux"), "blocks"),
    ],
    ids=str,
)
def test_tmux_tells_what_is_around_it(answer: str | Exception, expected: str) -> None:
    """Graphics where tmux passes them on to a terminal that has them; half blocks where it doesn't, or doesn't answer."""
    env = {"TERM": "tmux-256color", "TMUX": "socket,1,0", "KITTY_WINDOW_ID": "1"}

    assert choose(env, color=True, outside=lambda e: outside(e, ask=tmux(answer))) == expected
    assert choose(env, color=True, unicode=False) == "ascii"


def unpacked(text: str) -> tuple[str, str]:
    """What tmux passes on, and what it keeps for its own screen."""
    inner = re.findall(r"\x1bPtmux;((?:[^\x1b]|\x1b\x1b)*)\x1b\\", text)
    rest = re.sub(r"\x1bPtmux;(?:[^\x1b]|\x1b\x1b)*\x1b\\", "", text)
    return "".join(part.replace("\x1b\x1b", "\x1b") for part in inner), rest


def test_kitty_gets_its_picture_past_tmux() -> None:
    """The picture goes through unplaced, in pieces; tmux gets a character for each cell, coloured with the picture's number."""
    picture = noise(64, 64)
    passed, kept = unpacked(render(picture, "tmux-kitty", 20, 24))
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", passed)
    data = base64.standard_b64decode("".join(piece for _, piece in pieces))
    number = int(re.search(r"i=(\d+)", pieces[0][0])[1])  # type: ignore[index]

    assert Image.open(io.BytesIO(data)).convert("RGB").tobytes() == picture.tobytes()
    assert pieces[0][0].startswith("a=T,U=1,")
    assert "c=20,r=10,m=1" in pieces[0][0]
    assert len(pieces) > 1
    colour = f"\x1b[38;2;{number >> 16};{number >> 8 & 255};{number & 255}m"
    lines = [f"{colour}{PLACEHOLDER}{DIACRITICS[y]}{DIACRITICS[0]}{PLACEHOLDER * 19}\x1b[39m\n" for y in range(10)]
    assert kept == "".join(lines)
    assert 0 < number < 1 << 24


def test_rows_are_numbered_by_characters_that_all_differ() -> None:
    """They are marks that combine, as many as the lines a picture may have here."""
    assert len(set(DIACRITICS)) == len(DIACRITICS) == 64
    assert all(unicodedata.combining(mark) == 230 for mark in DIACRITICS)
    assert list(DIACRITICS) == sorted(DIACRITICS)


def test_iterm_gets_its_picture_past_tmux() -> None:
    """Its lines are made free before, and the cursor is below them afterwards."""
    picture = noise(9, 5)
    passed, kept = unpacked(render(picture, "tmux-iterm", 80, 24))

    assert passed == render(picture, "iterm", 80, 24).removesuffix("\n")
    assert kept == "\n\n\x1b[2A\x1b[2B\r"
