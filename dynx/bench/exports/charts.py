"""The drawings of a report: ratios with their intervals, speed against quality, and what the dynamic arm did.

Each takes a result and gives a scene, or None where there is nothing to draw. Everything is labelled where it is; shapes say
what colours say.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from dynx.bench.exports import figures
from dynx.bench.exports.scene import Box, Dot, Line, Scene, Text, shifted, width_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.bench.exports.scene import Role, Shape
    from dynx.bench.report import ArmResult, BenchResult
    from dynx.bench.runner import Group

WIDTH = 720.0
ROW = 24.0
SMALL = 12.0
EDGE = 8.0
WIDEST = 1.5
"""Times the largest ratio up to which intervals are drawn: one that says nothing must not squash all others."""

ROLES: dict[Group, Role] = {"plain": "plain", "static": "static", "dynamic": "dynamic", "external": "external"}
SHAPES: dict[Group, Shape] = {"plain": "bar", "static": "ring", "dynamic": "disc", "external": "diamond"}
DRAFTERS = {"draft": "draft model", "self": "first layers", "lookup": "lookup"}
DRAFTER_ROLES: dict[str, Role] = {"draft": "dynamic", "self": "static", "lookup": "external"}


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within a range, at most about so many."""
    span = max(high - low, 1e-9)
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(m for m in (1, 2, 5, 10) if span / (m * step) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float, among: Sequence[float]) -> str:
    """With as many decimals as the ticks need to differ."""
    step = min((b - a for a, b in pairwise(among)), default=1.0)
    return f"{value:.{max(0, math.ceil(-math.log10(step) - 1e-9))}f}"


def intervals(result: BenchResult) -> Scene | None:
    """How many times as fast as the reference each arm is, the fastest on top, with intervals where they are bounded."""
    rows = [arm for arm in result.arms if arm.ratio is not None and not arm.reference]
    if not rows:
        return None
    rows.sort(key=lambda arm: -_ratio(arm))
    broken = [arm for arm in result.arms if arm.failure is not None]
    low, high = _range(rows)
    left = EDGE + max(width_of(arm.name, bold=arm.group == "dynamic") for arm in (*rows, *broken)) + 16
    left = min(left, WIDTH * 0.42)
    words = {arm.name: _said(arm) for arm in rows}
    right = WIDTH - EDGE - max(width_of(text) for text in words.values()) - 16
    top, bottom = 34.0, 34.0 + ROW * (len(rows) + len(broken))
    reference = result.reference.name
    best = rows[0]
    scene = Scene(
        WIDTH,
        bottom + 46,
        f"Speed of each arm relative to {reference}",
        f"{best.name} is fastest, {words[best.name]} times {reference}. "
        + "; ".join(f"{arm.name} {words[arm.name]}" for arm in rows[1:]),
    )

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    marked = ticks(low, high)
    for value in marked:
        scene.add(Line(((x(value), top - 6), (x(value), bottom + 4))))
        scene.add(Text(x(value), bottom + 20, f"{_number(value, marked)}x", "soft", "middle", SMALL))
    scene.add(Line(((x(1), top - 8), (x(1), bottom + 4)), "plain", 1.5))
    scene.add(Text(x(1), top - 14, reference, "soft", "middle", SMALL))
    axis = f"times as fast as {reference}, with {100 * _confidence(rows):g} % interval"
    scene.add(Text((left + right) / 2, bottom + 39, axis, "soft", "middle", SMALL))
    for i, arm in enumerate(rows):
        y, bold, role = top + ROW * (i + 0.5), arm.group == "dynamic", ROLES[arm.group]
        scene.add(Text(left - 16, y + 4.5, _short(arm.name, left - 24), "ink" if bold else "soft", "end", bold=bold))
        ratio = arm.ratio
        if ratio is not None and ratio.bounded:
            ends = x(max(ratio.low, low)), x(min(ratio.high, high))
            scene.add(Line([(end, y) for end in ends], role, 4 if bold else 2.5))
            for end, beyond, tip in ((ends[0], ratio.low < low, 5), (ends[1], ratio.high > high, -5)):
                if beyond:  # an arrow: it goes on
                    scene.add(Line(((end + tip, y - 5), (end, y), (end + tip, y + 5)), role, 2))
        scene.add(Dot(x(_ratio(arm)), y, 6 if bold else 4.5, role, SHAPES[arm.group], f"{arm.name}: {words[arm.name]}"))
        scene.add(Text(WIDTH - EDGE, y + 4.5, words[arm.name], "ink" if bold else "soft", "end", bold=bold))
    for i, arm in enumerate(broken, start=len(rows)):
        y = top + ROW * (i + 0.5)
        scene.add(Text(left - 16, y + 4.5, _short(arm.name, left - 24), "soft", "end"))
        scene.add(Text(left, y + 4.5, "failed", "soft"))
    return scene


def _range(rows: Sequence[ArmResult]) -> tuple[float, float]:
    """What the axis shows: all ratios, and of wide intervals as much as leaves the others room."""
    ratios = [1.0, *map(_ratio, rows)]
    ends = [(arm.ratio.low, arm.ratio.high) for arm in rows if arm.ratio and arm.ratio.bounded]
    least = max(min([*ratios, *(low for low, _ in ends)]), min(ratios) / WIDEST)
    most = min(max([*ratios, *(high for _, high in ends)]), max(ratios) * WIDEST)
    pad = 0.06 * max(most - least, 0.1)
    return max(0.0, least - pad), most + pad


def _ratio(arm: ArmResult) -> float:
    return arm.ratio.ratio if arm.ratio is not None else math.nan


def _said(arm: ArmResult) -> str:
    """Ratio and interval: `1.84x [1.80, 1.88]`."""
    ratio = arm.ratio
    if ratio is None:
        return "failed"
    return f"{ratio.ratio:.2f}x {ratio.interval}" if ratio.bounded else f"{ratio.ratio:.2f}x"


def _confidence(rows: Sequence[ArmResult]) -> float:
    return next((arm.ratio.confidence for arm in rows if arm.ratio), 0.95)


def _short(name: str, width: float) -> str:
    """Without its middle where it is too long."""
    most = max(6, int(width / width_of("x")))
    if len(name) <= most or width_of(name) <= width + 1:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"


def stacked(scenes: Sequence[tuple[str, Scene | None]]) -> Scene:
    """Named scenes one below the other; a single one as it is, and a word where there is nothing to show."""
    known = [(name, scene) for name, scene in scenes if scene is not None]
    if len(known) == 1:
        return known[0][1]
    whole = Scene(WIDTH, EDGE, "; ".join(s.title for _, s in known) or "Nothing was measured")
    if not known:
        whole.add(Text(EDGE, 24, "nothing was measured", "soft"))
        whole.height = 40
    for name, scene in known:
        whole.add(Text(EDGE, whole.height + 22, name, size=16, bold=True))
        whole.add(*(shifted(mark, whole.height + 32) for mark in scene.marks))
        whole.height += scene.height + 44
    whole.description = " ".join(f"{name}: {scene.description}." for name, scene in known)
    return whole


def quality(result: BenchResult) -> Scene | None:
    """Speed against quality, with a line through the arms that no other beats in both."""
    points = figures.frontier(result)
    if not points:
        return None
    values = [p.quality.value for p in points]
    values += [p.quality.low for p in points if p.arm.group == "dynamic" and p.quality.low is not None]
    fast = [p.ratio for p in points]
    span = max(max(values) - min(values), 1e-3)
    low, high = min(values) - 0.08 * span, max(values) + 0.08 * span
    wide = max(max(fast) - min(fast), 0.1)
    slow, quick = max(0.0, min(fast) - 0.06 * wide), max(fast) + 0.06 * wide
    share, height = points[0].quality.share, 320.0
    measure = figures.QUALITIES[result.task]
    left, right, bottom = 64.0, WIDTH - 120, 34.0 + height
    scene = Scene(
        WIDTH,
        bottom + 48,
        "Speed and quality of each arm",
        "; ".join(f"{p.arm.name}: {p.ratio:.2f}x, {p.quality} {measure}" for p in points),
    )

    def x(ratio: float) -> float:
        return left + (right - left) * (ratio - slow) / (quick - slow)

    def y(value: float) -> float:
        return bottom - height * (value - low) / (high - low)

    marked = ticks(low, min(high, 1.0))
    shown = [100 * v for v in marked] if share else marked
    for value, label in zip(marked, shown, strict=True):
        scene.add(Line(((left, y(value)), (right, y(value)))))
        text = f"{_number(label, shown)} %" if share else _number(label, shown)
        scene.add(Text(left - 10, y(value) + 4, text, "soft", "end", SMALL))
    across = ticks(slow, quick)
    for value in across:
        scene.add(Text(x(value), bottom + 20, f"{_number(value, across)}x", "soft", "middle", SMALL))
    scene.add(Text(EDGE, 16, measure, "soft", size=SMALL))
    axis = f"times as fast as {result.reference.name}"
    scene.add(Text((left + right) / 2, bottom + 40, axis, "soft", "middle", SMALL))
    best = [p for p in points if p.best]
    scene.add(Line([(x(p.ratio), y(p.quality.value)) for p in best], "soft", 1.0, dashed=True))
    for p in sorted(points, key=lambda p: p.arm.group == "dynamic"):
        at, role = (x(p.ratio), y(p.quality.value)), ROLES[p.arm.group]
        # Of an arm that is the full model there is no doubt to draw.
        if p.quality.low is not None and p.quality.high is not None and p.quality.value < 1:
            ends = [min(max(v, low), high) for v in (p.quality.low, p.quality.high)]
            scene.add(Line(((at[0], y(ends[0])), (at[0], y(ends[1]))), role, 1.5))
        tip = f"{p.arm.name}: {p.ratio:.2f}x, {p.quality}"
        scene.add(Dot(*at, 7 if p.arm.group == "dynamic" else 4.5, role, SHAPES[p.arm.group], tip))
    _label(scene, [(p, x(p.ratio), y(p.quality.value)) for p in points], left)
    return scene


def _label(scene: Scene, places: Sequence[tuple[figures.Point, float, float]], left: float) -> None:
    """Names beside the dots, the dynamic arm's first, then those of the frontier; one that finds no room is left out."""
    taken = [(px - 7, py - 7, px + 7, py + 7) for _, px, py in places]
    order = sorted(places, key=lambda t: (t[0].arm.group != "dynamic", t[0].arm.group != "plain", not t[0].best))
    for p, px, py in order:
        bold = p.arm.group == "dynamic"
        wide = width_of(p.arm.name, SMALL, bold=bold)
        for dx, dy, anchor in ((12, 4, "start"), (-12, 4, "end"), (0, -13, "middle"), (0, 22, "middle")):
            start = px + dx - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
            frame = (start, py + dy - 10, start + wide, py + dy + 3)
            others = [t for t in taken if t != (px - 7, py - 7, px + 7, py + 7)]
            clear = not any(frame[0] < t[2] and t[0] < frame[2] and frame[1] < t[3] and t[1] < frame[3] for t in others)
            if clear and frame[0] > left and frame[2] < scene.width:
                taken.append(frame)
                text = Text(px + dx, py + dy, p.arm.name, "ink" if bold else "soft", anchor, SMALL, bold)  # type: ignore[arg-type]
                scene.add(text)
                break


def acceptance(result: BenchResult) -> Scene | None:
    """Of the drafts at each position of a draft, the share that the model kept, by drafter."""
    known = figures.acceptance(result)
    if not known:
        return None
    most = max(len(k.shares()) for k in known)
    left, right, top, height = 56.0, WIDTH - 130, 34.0, 220.0
    bottom = top + height
    scene = Scene(
        WIDTH,
        bottom + 52 + 15 * len(known),
        "Share of drafts kept, by position in the draft",
        "; ".join(
            f"{DRAFTERS.get(k.drafter, k.drafter)}: " + ", ".join(f"{i}: {share:.0%}" for i, share in k.shares())
            for k in known
        ),
    )

    def x(position: float) -> float:
        return left + (right - left) * (position - 0.5) / most

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - height * share
        scene.add(Line(((left, y), (right, y))), Text(left - 10, y + 4, f"{100 * share:.0f} %", "soft", "end", SMALL))
    scene.add(Text(EDGE, 16, "drafts that the model kept", "soft", size=SMALL))
    for i in range(1, most + 1):
        scene.add(Text(x(i), bottom + 20, str(i), "soft", "middle", SMALL))
    scene.add(Text(left - 10, bottom + 37, "judged", "soft", "end", 11))
    for row, k in enumerate(known):
        for i, _ in k.shares():
            ink = DRAFTER_ROLES.get(k.drafter, "dynamic") if len(known) > 1 else "soft"
            scene.add(Text(x(i), bottom + 37 + 15 * row, f"{k.judged[i - 1]:,}", ink, "middle", 11))
    scene.add(Text((left + right) / 2, scene.height - 8, "position in the draft", "soft", "middle", SMALL))
    ends: list[float] = []
    for k in known:
        role = DRAFTER_ROLES.get(k.drafter, "dynamic")
        places = [(x(i), bottom - height * share) for i, share in k.shares()]
        scene.add(Line(places, role, 2.5))
        for (i, share), (px, py) in zip(k.shares(), places, strict=True):
            tip = f"{k.drafter}, position {i}: {k.kept[i - 1]:,} of {k.judged[i - 1]:,} kept ({share:.0%})"
            scene.add(Dot(px, py, 4, role, "disc", tip))
        y = places[-1][1] + 4
        while any(abs(y - other) < 16 for other in ends):
            y += 16
        ends.append(y)
        scene.add(Text(places[-1][0] + 12, y, DRAFTERS.get(k.drafter, k.drafter), role, bold=True))
    return scene


def exits(result: BenchResult) -> Scene | None:
    """How many answers left after each layer."""
    found = figures.exits(result)
    if not found:
        return None
    total, depth = sum(count for _, count in found), found[-1][0]
    rows = [(f"after layer {layer}", count) for layer, count in found]
    plain = next((arm.facts.get("mean_layers") for arm in result.arms if arm.reference), None)
    if isinstance(plain, int | float) and depth >= plain:
        rows[-1] = (f"all {depth} layers", rows[-1][1])
    return _bars(rows, "Answers by the layer they left after", lambda n: f"{100 * n / total:.0f} % ({n:,})")


def _bars(rows: Sequence[tuple[str, int]], title: str, words: Callable[[int], str]) -> Scene:
    left = EDGE + max(width_of(name) for name, _ in rows) + 14
    right = WIDTH - EDGE - max(width_of(words(count)) for _, count in rows) - 12
    most = max(count for _, count in rows)
    scene = Scene(WIDTH, EDGE * 2 + 30 * len(rows), title, "; ".join(f"{name}: {words(n)}" for name, n in rows))
    for i, (name, count) in enumerate(rows):
        y = EDGE + 30 * i
        wide = max((right - left) * count / most, 1.0)
        scene.add(Text(left - 14, y + 19.5, name, "soft", "end"))
        scene.add(Box(left, y + 5, wide, 20, "dynamic", f"{name}: {words(count)}"))
        scene.add(Text(left + wide + 10, y + 19.5, words(count), "ink"))
    return scene


def steps(result: BenchResult) -> Scene | None:
    """How many pictures were drawn in how many steps."""
    found, plain = figures.steps(result), result.header.get("plain_steps")
    if not found or [n for n, _ in found] == [plain]:
        return None
    first, last, most = found[0][0], found[-1][0], max(count for _, count in found)
    count_of = dict(found)
    columns = range(first - 1, last + 2)
    left, right, top, height = EDGE, WIDTH - EDGE, 26.0, 180.0
    bottom, each = top + height, (WIDTH - 2 * EDGE) / len(columns)
    wide = min(each * 0.72, 44.0)
    scene = Scene(
        WIDTH,
        bottom + 46,
        "Pictures by the number of steps they took",
        "; ".join(f"{n} steps: {count} pictures" for n, count in found),
    )
    scene.add(Line(((left, bottom), (right, bottom))))
    every = max(1, math.ceil(len(columns) / 24))
    for i, n in enumerate(columns):
        middle, count = left + each * (i + 0.5), count_of.get(n, 0)
        if count:
            tall = height * count / most
            scene.add(Box(middle - wide / 2, bottom - tall, wide, tall, "dynamic", f"{n} steps: {count} pictures"))
            scene.add(Text(middle, bottom - tall - 7, str(count), "ink", "middle", SMALL))
        if count or (i % every == 0 and len(columns) <= 24):
            scene.add(Text(middle, bottom + 18, str(n), "soft", "middle", SMALL))
    axis = "steps that were run" + (f"; {result.reference.name} runs {plain}" if plain else "")
    scene.add(Text(WIDTH / 2, bottom + 38, axis, "soft", "middle", SMALL))
    return scene


TASK_CHARTS: dict[str, tuple[str, Callable[[BenchResult], Scene | None]]] = {
    "generate": ("What was guessed right", acceptance),
    "classify": ("Where answers left", exits),
    "draw": ("Steps for each picture", steps),
}
"""What is drawn of the dynamic arm, by task, under a heading."""
