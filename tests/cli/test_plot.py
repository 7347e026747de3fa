"""The curve of quality against steps: points are where the numbers are, as a whole SVG document or as a PNG."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from dynx.bench.exports.scene import Dot, Line, Text
from dynx.cli.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, curve, scene
from dynx.diffusion.similarity import tails

if TYPE_CHECKING:
    from pathlib import Path


def findings(values: dict[int, list[float]]) -> Any:
    """SSIM by number of steps."""
    return SimpleNamespace(likeness={k: tails(v) for k, v in values.items()}, full_steps=50)


def test_points_are_where_the_numbers_are() -> None:
    """Steps go to the right, SSIM goes up to 1; the worst p5 is at the bottom."""
    drawn = scene(findings({10: [0.9, 0.95, 1.0], 5: [0.6, 0.8, 0.9]}))
    median, low = (m.points for m in drawn.marks if isinstance(m, Line) and m.width == 2)
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    assert list(low) == [(LEFT + (right - LEFT) / 2, bottom), (right, pytest.approx(TOP + (bottom - TOP) * 0.25))]
    assert median[0][1] == pytest.approx(TOP + (bottom - TOP) * 0.5)
    texts = {m.text for m in drawn.marks if isinstance(m, Text)}
    assert {"5", "10", "1.000", "0.600", "median", "p5", "steps (plain: 50)"} <= texts
    assert sum(isinstance(m, Dot) for m in drawn.marks) == 4
    assert "5 steps: median 0.800, p5 0.600" in drawn.description


@pytest.mark.parametrize("values", [{8: [0.9]}, {4: [1.0], 8: [1.0]}, {4: [-0.2, 0.1]}], ids=str)
def test_odd_curves_stay_on_the_page(values: dict[int, list[float]], tmp_path: Path) -> None:
    """One number of steps, nothing but ones, SSIM below 0."""
    dots = [m for m in scene(findings(values)).marks if isinstance(m, Dot)]
    curve(findings(values), tmp_path / "x.svg")
    curve(findings(values), tmp_path / "x.png")

    assert len(dots) == 2 * len(values)
    for dot in dots:
        assert LEFT <= dot.x <= WIDTH - RIGHT
        assert TOP <= dot.y <= HEIGHT - BOTTOM
    assert ET.fromstring((tmp_path / "x.svg").read_bytes()).tag.endswith("svg")  # noqa: S314 - our own
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (2 * WIDTH, 2 * HEIGHT)
