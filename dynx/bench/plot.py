"""Plots, drawn by matplotlib (the extra `dynx[plot]`): speed, speed against quality, and SSIM against steps.

The suffix of the file picks the format.
"""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dynx.bench.formats import printable
from dynx.bench.quality import QUALITY_NAMES, quality_of
from dynx.errors import DynxError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dynx.bench.measurements import Group
    from dynx.bench.quality import Quality
    from dynx.bench.result import ArmResult, BenchResult
    from dynx.diffusion.calibrate import Findings

FORMATS = ("svg", "png")
WIDTH_INCHES = 7.5
"""Width of a figure."""

ROW_INCHES = 0.28
"""Height of an arm's row."""

FRAME_INCHES = 1.3
"""Height of a panel's title and axis."""

PANEL_INCHES = 4.2
"""Height of a panel of speed against quality."""

DPI = 150
"""Dots per inch of a PNG."""

MAX_INTERVAL_FACTOR = 1.5
"""Multiple of the largest ratio at which intervals are cut: an unbounded one must not squash all others."""

COLORS: dict[Group, str] = {"plain": "#5f6368", "static": "#b35c00", "dynamic": "#00704f", "external": "#5b4bb5"}
MARKERS: dict[Group, str] = {"plain": "|", "static": "s", "dynamic": "o", "external": "D"}

STYLE = {
    "text.parse_math": False,  # a name may hold dollar signs
    "text.usetex": False,
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "dynx",  # the same numbers give the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


def bench(results: Sequence[BenchResult], path: Path) -> Path:
    """Draw the ratios of each result and, where quality tells arms apart, speed against quality.

    Raises DynxError where the file can't be written.
    """
    panels: list[tuple[float, Any, BenchResult]] = []
    for result in results:
        rows = sum(not arm.reference for arm in result.arms)
        panels.append((FRAME_INCHES + ROW_INCHES * max(rows, 1), _ratios, result))
        if _differ(result):
            panels.append((PANEL_INCHES, _quality, result))
    with _drawing(sum(height for height, *_ in panels), path) as figure:
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=[height for height, *_ in panels])
        for (_, draw, result), ax in zip(panels, axes[:, 0], strict=True):
            draw(ax, result)
    return path


def curve(found: Findings, path: Path) -> Path:
    """Draw SSIM to the plain run, median and 5th percentile, by number of steps. Raises DynxError as `bench` does."""
    steps = sorted(found.likeness)
    with _drawing(PANEL_INCHES, path) as figure:
        ax = figure.subplots()
        median, p5 = ([getattr(found.likeness[k], name) for k in steps] for name in ("median", "p5"))
        ax.plot(steps, median, "s-", color=COLORS["static"], label="median")
        ax.plot(steps, p5, "o-", color=COLORS["dynamic"], label="p5")
        ax.set_xticks(steps)
        ax.set(xlabel=f"steps (plain: {found.full_steps})", ylabel="SSIM to the plain run")
        ax.grid(axis="y", alpha=0.3)
        ax.legend(frameon=False, loc="lower right")
    return path


@contextmanager
def _drawing(height: float, path: Path) -> Iterator[Any]:
    """Yield a figure of this height in inches, and write it to the path. Raises DynxError where that fails."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name that the font lacks letters for is drawn without them
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained", dpi=DPI)
        yield figure
        form, data = path.suffix.lower().lstrip("."), io.BytesIO()
        figure.savefig(data, format=form, metadata={"Date": None} if form == "svg" else None)
    try:
        path.write_bytes(data.getvalue())
    except OSError as error:
        raise DynxError(f"can't write {path}: {error.strerror or error}") from error


def _ratios(ax: Any, result: BenchResult) -> None:
    """Plot how many times as fast as the reference each arm is, the fastest on top, with bounded intervals."""
    rows = sorted((a for a in result.arms if a.ratio is not None and not a.reference), key=_ratio)
    broken = [arm for arm in result.arms if arm.failure is not None]
    reference = printable(result.reference.name)
    ax.set_title(printable(f"{result.header.get('model', result.task)}: {result.task}"), loc="left")
    if not rows:
        ax.set_axis_off()
        ax.text(0, 0.5, "nothing was measured", transform=ax.transAxes)
        return
    most = MAX_INTERVAL_FACTOR * max(1.0, *map(_ratio, rows))
    for y, arm in enumerate(rows, start=len(broken)):
        color, ratio, bold = COLORS[arm.group], arm.ratio, "bold" if arm.group == "dynamic" else "normal"
        said = f"{_ratio(arm):.2f}x"
        if ratio is not None and ratio.bounded:
            ax.plot([ratio.low, min(ratio.high, most)], [y, y], color=color, linewidth=2.5)
            said += f" {ratio.interval}"
        ax.plot(_ratio(arm), y, MARKERS[arm.group], color=color)
        ax.text(1.02, y, said, transform=ax.get_yaxis_transform(), va="center", fontweight=bold, fontsize="small")
    for y, _ in enumerate(broken):
        ax.text(1.02, y, "failed", transform=ax.get_yaxis_transform(), va="center", fontsize="small")
    ax.axvline(1, color=COLORS["plain"], linewidth=1)
    names = [printable(arm.name) for arm in (*broken, *rows)]
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(-0.6, len(names) - 0.4)
    confidence = next(arm.ratio.confidence for arm in rows if arm.ratio)
    ax.set_xlabel(f"times as fast as {reference}, with {100 * confidence:g} % interval")
    ax.grid(axis="x", alpha=0.3)


def _quality(ax: Any, result: BenchResult) -> None:
    """Plot quality against speed, each arm named beside its mark."""
    for arm, quality in _known(result):
        scale = 100 if quality.share else 1
        color, bold = COLORS[arm.group], "bold" if arm.group == "dynamic" else "normal"
        # An arm that is the full model has no uncertainty to draw.
        if quality.low is not None and quality.high is not None and quality.value < 1:
            ax.plot([_ratio(arm)] * 2, [scale * quality.low, scale * quality.high], color=color, linewidth=1.5)
        ax.plot(_ratio(arm), scale * quality.value, MARKERS[arm.group], color=color)
        at = (_ratio(arm), scale * quality.value)
        ax.annotate(
            printable(arm.name), at, (6, 4), textcoords="offset points", fontweight=bold, fontsize="small", color=color
        )
    share = any(quality.share for _, quality in _known(result))
    ax.set_ylabel(QUALITY_NAMES[result.task] + (", %" if share else ""))
    ax.set_xlabel(f"times as fast as {printable(result.reference.name)}")
    ax.margins(0.12)
    ax.grid(alpha=0.3)


def _known(result: BenchResult) -> list[tuple[ArmResult, Quality]]:
    return [(a, q) for a in result.arms if a.ratio is not None and (q := quality_of(result, a)) is not None]


def _differ(result: BenchResult) -> bool:
    """Whether the arms differ in quality."""
    return len({round(quality.value, 6) for _, quality in _known(result)}) > 1


def _ratio(arm: ArmResult) -> float:
    return arm.ratio.ratio if arm.ratio is not None else float("nan")
