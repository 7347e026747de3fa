"""Renders a result for people: a terminal table with bars that fits its width, and a Markdown page.

Bars are full up to the lower end of the interval and shaded up to the upper end: where the shades of two bars overlap, the arms
can't be distinguished.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dynx.bench.report import sentences
from dynx.bench.wording import count, in_words, percent, three_digits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from dynx.bench.result import ArmResult, BenchResult, Category

GAP_COLUMNS = 2
"""Terminal columns between two cells."""

MIN_BAR_COLUMNS, MAX_BAR_COLUMNS = 6, 30
"""Width of a bar in terminal columns."""

MAX_BAR_FACTOR = 1.5
"""Multiple of the largest ratio at which a bar's shaded part is cut."""

MIN_NAME_COLUMNS = 8
"""Terminal columns that an arm's name keeps while other columns need room."""

NOTHING = "–"
"""Cell without a value."""

EIGHTHS: tuple[str, ...] = ("", *"▏▎▍▌▋▊▉")
STYLES = {"plain": "default", "static": "cyan", "dynamic": "green", "external": "magenta"}


@dataclass(frozen=True)
class _Layout:
    """How wide the name and the bar are (0: no bar), and which other columns are shown."""

    name: int
    bar: int
    shown: tuple[str, ...]


def render(result: BenchResult, width: int, *, ascii_only: bool = False) -> Table:
    """Return a rich table at most `width` columns wide.

    Arm, speed and ratio are always there; bar, interval and identical rate join in that order, each where it still
    fits, and what a task shows besides goes before them. From 30 columns on no figure is cut; long arm names are.
    """
    from rich.table import Table
    from rich.text import Text

    further = {title: title for title in result.columns}
    titles = {"speed": f"{result.unit}/s", "ratio": "ratio", **further, "interval": "interval", "same": "same"}
    rows = {arm.name: cells_of(arm, result.columns, "-" if ascii_only else NOTHING) for arm in result.arms}
    needs = {key: max(len(title), *(len(cells[key]) for cells in rows.values())) for key, title in titles.items()}
    layout = _layout(width, max(len(name) for name in rows), needs, list(further))
    drawn = Table(box=None, padding=(0, GAP_COLUMNS, 0, 0), pad_edge=False, header_style="bold")
    drawn.add_column("arm", no_wrap=True, width=layout.name)
    for key in layout.shown:
        title = Text("" if key == "bar" else titles[key])
        justify: Literal["left", "right"] = "left" if key == "bar" else "right"
        drawn.add_column(title, justify=justify, no_wrap=True, width=layout.bar if key == "bar" else needs[key])
    ratios = [arm.ratio for arm in result.arms if arm.ratio]
    most = max([ratio.ratio for ratio in ratios] or [1.0])
    # An unbounded interval must not squash all other bars.
    full = max([most, *(min(ratio.high, MAX_BAR_FACTOR * most) for ratio in ratios if ratio.bounded)])
    for arm in result.arms:
        cells, style = rows[arm.name], STYLES[arm.group]
        cells["bar"] = _bar(arm, full, layout.bar, ascii_only)
        name = Text(_fitted(arm.name, layout.name, ascii_only), style=style)
        drawn.add_row(name, *(Text(cells[key], style=style if key == "bar" else "") for key in layout.shown))
    return drawn


def _layout(width: int, longest_name: int, needs: Mapping[str, int], further: Sequence[str]) -> _Layout:
    """Share `width` out: figures first, then enough of the name, further columns, bar, interval and identical rate."""
    left = width - needs["speed"] - needs["ratio"] - 2 * GAP_COLUMNS
    # The name yields before a column is lost, down to a third of the width; what is left over goes back to it.
    name = max(1, min(longest_name, max(MIN_NAME_COLUMNS, width // 3), left))
    left -= name
    taken = {"speed", "ratio"}
    for key in (*further, "interval", "bar", "same") if further else ("bar", "interval", "same"):
        need = MIN_BAR_COLUMNS if key == "bar" else needs[key]
        if left >= need + GAP_COLUMNS:
            taken.add(key)
            left -= need + GAP_COLUMNS
    bar = MIN_BAR_COLUMNS if "bar" in taken else 0
    shown = [key for key in ("speed", "ratio", *further, "bar", "interval", "same") if key in taken]
    longer = max(0, min(longest_name - name, left))
    return _Layout(name + longer, min(bar + left - longer, MAX_BAR_COLUMNS) if bar else 0, tuple(shown))


def render_categories(result: BenchResult, *, ascii_only: bool = False) -> Table:
    """Return a rich table of the categories: plain, dynamic and external arms, and each category's best static one."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, padding=(0, GAP_COLUMNS, 0, 0), pad_edge=False, header_style="bold")
    drawn.add_column("category", no_wrap=True, overflow="ellipsis")
    drawn.add_column("arm", no_wrap=True, overflow="ellipsis")
    for title in (f"{result.unit}/s", "ratio", "interval", "to best static"):
        drawn.add_column(title, justify="right", no_wrap=True, overflow="ellipsis")
    for category in result.categories:
        name = f"{category.name} ({category.cases})"
        for arm, cells in _category_rows(category, "-" if ascii_only else NOTHING):
            if arm.group != "static" or any(item.baseline == arm.name for item in category.comparisons):
                drawn.add_row(Text(name), Text(arm.name, style=STYLES[arm.group]), *map(Text, cells))
                name = ""
    return drawn


def _category_rows(category: Category, nothing: str = NOTHING) -> list[tuple[ArmResult, list[str]]]:
    """Return each arm with its cells: speed, ratio, interval, and a dynamic arm's ratio to the best static one."""
    rows = []
    for arm in category.arms:
        cells = cells_of(arm, {}, nothing)
        best = [str(item.ratio) for item in category.comparisons if item.arm == arm.name]
        rows.append((arm, [cells["speed"], cells["ratio"], cells["interval"], best[0] if best else nothing]))
    return rows


def to_markdown(results: Sequence[BenchResult]) -> str:
    """Return one Markdown page for one result or several, without the samples: step summaries may have 1 MiB at most."""
    return "\n".join(markdown(result) for result in results)


def markdown(result: BenchResult) -> str:
    """Return the result as a Markdown page: verdict, sentences, table, gates, conditions."""
    title = f"## dynx bench: {result.task}" + (f" – {result.verdict}" if result.verdict else "")
    lines = [title, "", *(f"- {_escaped(sentence)}" for sentence in sentences(result)), ""]
    further = "".join(f" {_escaped(title)} |" for title in result.columns)
    lines += [
        f"| arm | {result.unit}/s | ratio to {_escaped(result.reference.name)} | interval |{further} identical | outliers |"
    ]
    lines += ["| --- | ---: | ---: | ---: |" + " ---: |" * len(result.columns) + " ---: | ---: |"]
    for arm in result.arms:
        cells = cells_of(arm, result.columns)
        further = "".join(f" {_escaped(cells[title])} |" for title in result.columns)
        name = f"**{_escaped(arm.name)}**" if arm.group == "dynamic" else _escaped(arm.name)
        odd = str(len(arm.outliers)) if arm.samples else NOTHING
        lines.append(
            f"| {name} | {cells['speed']} | {cells['ratio']} | {cells['interval']} |{further} {cells['same']} | {odd} |"
        )
    if result.categories:
        lines += ["", f"| category | arm | {result.unit}/s | ratio | interval | to best static |"]
        lines += ["| --- | --- |" + " ---: |" * 4]
        for category in result.categories:
            name = _escaped(f"{category.name} ({category.cases})")
            for arm, row in _category_rows(category):
                lines.append(f"| {name} | {_escaped(arm.name)} | {' | '.join(map(_escaped, row))} |")
    if result.gates:
        lines += ["", "| gate | verdict | measured | bar |", "| --- | --- | ---: | ---: |"]
        for gate in result.gates:
            measured = NOTHING if gate.measured is None else f"{gate.measured:.3f}"
            lines.append(f"| {_escaped(gate.name)} | {gate.verdict} | {measured} | {gate.bar:.3f} |")
    lines += ["", "<details><summary>Conditions</summary>", ""]
    lines += [f"- {_escaped(name)}: {_escaped(in_words(value))}" for name, value in result.header.items()]
    lines += [
        f"- measured: {count(result.rounds, 'round')} of {count(result.cases, result.case)} in {result.elapsed:.1f} s",
        "",
        "</details>",
    ]
    return "\n".join(lines) + "\n"


def cells_of(arm: ArmResult, columns: Mapping[str, Mapping[str, str]], nothing: str = NOTHING) -> dict[str, str]:
    """Return the cells of an arm by column; `columns` are the task's own."""
    ratio = arm.ratio
    return {title: cells.get(arm.name, nothing) for title, cells in columns.items()} | {
        "speed": "failed" if arm.failure else nothing if arm.speed is None else three_digits(arm.speed),
        "ratio": nothing if ratio is None else f"{ratio.ratio:.2f}x",
        "interval": nothing if ratio is None or arm.reference or not ratio.bounded else ratio.interval,
        "same": nothing if arm.identical is None or arm.reference else percent(arm.identical),
    }


def _fitted(name: str, width: int, ascii_only: bool) -> str:
    if len(name) <= width:
        return name
    mark = "~" if ascii_only else "…"
    # The end of a name tells settings apart ("assisted k = 4"), so the middle goes.
    tail = (width - 1) // 2
    return name[: width - 1 - tail] + mark + name[len(name) - tail :]


def _bar(arm: ArmResult, full: float, width: int, ascii_only: bool) -> str:
    if arm.ratio is None:
        return ""
    low, high = (arm.ratio.low, arm.ratio.high) if arm.ratio.bounded else (arm.ratio.ratio, arm.ratio.ratio)
    high = min(high, full)
    possible = round(high / full * width)
    if ascii_only:
        certain = round(low / full * width)
        return "#" * certain + "-" * (possible - certain)
    whole, eighths = divmod(round(low / full * width * 8), 8)
    solid = "█" * whole + EIGHTHS[eighths]
    return solid + "░" * (possible - len(solid))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
