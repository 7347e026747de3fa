"""Plots: what is drawn is what was measured, as an SVG whose letters can be read or as a PNG; and the extra that they need."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from bench.test_exports import CLASSIFIED, result_of
from PIL import Image

from dynx.bench import plot
from dynx.bench.quality import QUALITY_NAMES
from dynx.bench.statistics import RatioEstimate
from dynx.cli import output_files
from dynx.cli.output_files import parse_plot
from dynx.diffusion.similarity import tails
from dynx.errors import DynxError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.bench.result import BenchResult

pytest.importorskip("matplotlib")

SVG = "{http://www.w3.org/2000/svg}"


def texts(path: Path) -> set[str]:
    """All words of an SVG file."""
    return {e.text.strip() for e in ET.fromstring(path.read_bytes()).iter(f"{SVG}text") if e.text}  # noqa: S314


def words(folder: Path, *results: BenchResult) -> set[str]:
    """What a plot of these says."""
    return texts(plot.bench(results, folder / "plot.svg"))


def findings(values: dict[int, list[float]]) -> Any:
    """SSIM by number of steps."""
    return SimpleNamespace(likeness={k: tails(v) for k, v in values.items()}, full_steps=50)


def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[float], list[float]]]:
    """The points of everything that is plotted from now on."""
    from matplotlib.axes import Axes

    found: list[tuple[list[float], list[float]]] = []
    draw = Axes.plot

    def spy(self: Axes, x: Any, y: Any, *args: Any, **options: Any) -> Any:
        found.append((x, y))
        return draw(self, x, y, *args, **options)

    monkeypatch.setattr(Axes, "plot", spy)
    return found


def test_each_arm_has_its_ratio_and_interval(tmp_path: Path) -> None:
    """By name, under the model's name and over the axis; a broken arm has failed."""
    found = words(tmp_path, result_of(), result_of(model="other"))

    assert {"story: generate", "other: generate", "dynamic", "draft k=2", "1.50x [1.50, 1.50]", "failed"} <= found
    assert "times as fast as plain, with 95 % interval" in found


def test_quality_is_drawn_where_it_tells_arms_apart(tmp_path: Path) -> None:
    """A plot of arms that are equally good has speed alone."""
    axis = f"{QUALITY_NAMES['classify']}, %"

    assert axis in words(tmp_path, result_of("classify", facts=CLASSIFIED))
    assert axis not in words(tmp_path, result_of("classify", facts=dict.fromkeys(CLASSIFIED, CLASSIFIED["plain"])))


def test_one_wide_interval_leaves_the_others_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval that says nothing is cut in the drawing and told in words."""
    result = result_of()
    wild = replace(result.arm("draft k=2"), ratio=RatioEstimate(1.2, 0.001, 900.0, 0.95, 12))
    drawn = lines(monkeypatch)
    said = words(tmp_path, replace(result, arms=[result.reference, wild, result.arm("dynamic")]))

    ends = [x for x, _ in drawn if isinstance(x, list)]
    assert [0.001, pytest.approx(plot.MAX_INTERVAL_FACTOR * 1.5)] in ends
    assert "1.20x [0.00, 900.00]" in said


def test_nothing_measured_is_a_plot_all_the_same(tmp_path: Path) -> None:
    """An interrupted bench gives a file that can be opened."""
    result = result_of()
    bare = replace(result, arms=[replace(a, ratio=None, speed=None, samples=()) for a in result.arms], comparisons=())

    assert "nothing was measured" in words(tmp_path, bare)


def test_names_are_only_names(tmp_path: Path) -> None:
    """No formula, no markup, no character that XML lacks, and no warning for one that the font lacks."""
    assert "a$^b$ <g>& x: generate" in words(tmp_path, result_of(model="a$^b$ <g>&\x1b x"))
    words(tmp_path, result_of(model="\N{HANGUL SYLLABLE GA}\udc80"))


def test_the_same_result_gives_the_same_file(tmp_path: Path) -> None:
    """No date, no random ids."""
    one, two = (plot.bench([result_of()], tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))

    assert one == two


def test_points_of_a_curve_are_where_the_numbers_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Median and 5th percentile by number of steps, rising."""
    drawn = lines(monkeypatch)
    found = findings({10: [0.9, 0.95, 1.0], 5: [0.6, 0.8, 0.9]})
    said = texts(plot.curve(found, tmp_path / "curve.svg"))

    (across, median), (_, p5) = drawn
    assert (across, median) == ([5, 10], [0.8, 0.95])
    assert p5 == [found.likeness[5].p5, found.likeness[10].p5]
    assert {"5", "10", "median", "p5", "steps (plain: 50)", "SSIM to the plain run"} <= said


@pytest.mark.parametrize("values", [{8: [0.9]}, {4: [1.0], 8: [1.0]}, {4: [-0.2, 0.1]}], ids=str)
def test_odd_curves_can_be_drawn(values: dict[int, list[float]], tmp_path: Path) -> None:
    """One number of steps, nothing but ones, SSIM below 0."""
    with Image.open(plot.curve(findings(values), tmp_path / "x.PNG")) as picture:
        assert picture.format == "PNG"
        assert picture.size == (plot.WIDTH_INCHES * plot.DPI, plot.PANEL_INCHES * plot.DPI)
        assert len(picture.getcolors(1 << 20) or []) > 20


def test_what_cannot_be_drawn_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    """Another ending, a folder that isn't there; and at the end, a file that can't be written any more."""
    with pytest.raises(UsageError, match="an SVG or a PNG file"):
        parse_plot("plot.pdf")
    with pytest.raises(UsageError, match="there is no folder"):
        parse_plot(str(tmp_path / "nowhere" / "plot.svg"))
    with pytest.raises(DynxError, match="can't write"):
        plot.bench([result_of()], tmp_path / "nowhere" / "plot.svg")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it was never installed."""
    monkeypatch.setattr(output_files, "find_spec", lambda name: None if name == "matplotlib" else object())

    with pytest.raises(UsageError, match="needs matplotlib") as caught:
        parse_plot("plot.svg")
    assert caught.value.hint == "pip install 'dynx[plot]'"


def test_checking_a_plot_does_not_load_matplotlib() -> None:
    """It takes a second, which an error needn't wait for."""
    import subprocess

    code = "import sys; from dynx.cli.output_files import parse_plot; parse_plot('x.svg'); sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
