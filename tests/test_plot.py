"""The curve of quality against steps: a whole SVG document whose points are where the numbers are."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from dynx.cli.plot import BOTTOM, EDGE, HEIGHT, LEFT, WIDTH, curve, svg
from dynx.diffusion.quality import tails

if TYPE_CHECKING:
    from pathlib import Path

SPACE = "{http://www.w3.org/2000/svg}"


def findings(values: dict[int, list[float]]) -> Any:
    """SSIM by number of steps."""
    return SimpleNamespace(likeness={k: tails(v) for k, v in values.items()}, full_steps=50)


def test_points_are_where_the_numbers_are() -> None:
    """Steps go to the right, SSIM goes up to 1; the worst p5 is at the bottom."""
    root = ET.fromstring(svg(findings({10: [0.9, 0.95, 1.0], 5: [0.6, 0.8, 0.9]})))  # noqa: S314 - our own
    lines = [line.attrib["points"].split() for line in root.iter(f"{SPACE}polyline")]
    median, low = ([tuple(map(float, p.split(","))) for p in line] for line in lines)
    bottom = HEIGHT - BOTTOM

    assert low == [(LEFT + (WIDTH - LEFT - EDGE) / 2, bottom), (WIDTH - EDGE, EDGE + (bottom - EDGE) * 0.25)]
    assert median[0][1] == pytest.approx(EDGE + (bottom - EDGE) * 0.5)
    texts = [t.text or "" for t in root.iter(f"{SPACE}text")]
    assert {"5", "10", "1.000", "0.600", "steps (plain: 50)"} <= set(texts)
    assert len(list(root.iter(f"{SPACE}circle"))) == 4


@pytest.mark.parametrize("values", [{8: [0.9]}, {4: [1.0], 8: [1.0]}, {4: [-0.2, 0.1]}], ids=str)
def test_odd_curves_stay_on_the_page(values: dict[int, list[float]], tmp_path: Path) -> None:
    """One number of steps, nothing but ones, SSIM below 0."""
    curve(findings(values), tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text(encoding="utf-8")

    for x, y in re.findall(r'c[xy]="(\S+)" c[xy]="(\S+)"', text):
        assert LEFT <= float(x) <= WIDTH
        assert EDGE <= float(y) <= HEIGHT - BOTTOM
    assert text.count("<circle") == 2 * len(values)
