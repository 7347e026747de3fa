"""The curve of quality against steps, as an SVG that any browser shows or a PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.bench.exports.scene import Dot, Line, Scene, Text, to_png, to_svg
from dynx.cli.draw.files import write

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.bench.exports.scene import Role, Shape
    from dynx.diffusion.calibrate import Findings

KINDS = (".svg", ".png")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 680.0, 400.0, 64.0, 34.0, 52.0, 84.0
SMALL = 12.0


def curve(found: Findings, path: Path) -> None:
    """SSIM to the plain run, median and p5, by number of steps. Raises DynxError where it can't be written."""
    drawn = scene(found)
    data = to_png(drawn) if path.suffix.lower() == ".png" else to_svg(drawn, standalone=True).encode()
    write(path.expanduser(), data, force=True)


def scene(found: Findings) -> Scene:
    """The drawing: steps to the right, SSIM up to 1, the worst p5 at the bottom."""
    steps = sorted(found.likeness)
    low, most = min(t.p5 for t in found.likeness.values()), steps[-1]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    said = "; ".join(f"{k} steps: median {t.median:.3f}, p5 {t.p5:.3f}" for k, t in sorted(found.likeness.items()))
    drawn = Scene(WIDTH, HEIGHT, "SSIM to the plain run by number of steps", said)

    def at(k: float, value: float) -> tuple[float, float]:
        return LEFT + (right - LEFT) * k / most, TOP + (bottom - TOP) * (1 - value) / max(1 - low, 1e-6)

    for value in (1 - (1 - low) * i / 4 for i in range(5)):
        x, y = at(0, value)
        drawn.add(Line(((x, y), (right, y))), Text(LEFT - 8, y + 4, f"{value:.3f}", "soft", "end", SMALL))
    for k in steps:
        drawn.add(Text(at(k, low)[0], bottom + 20, str(k), "soft", "middle", SMALL))
    drawn.add(Text(16, 16, "SSIM to the plain run", "soft", size=SMALL))
    drawn.add(Text((LEFT + right) / 2, HEIGHT - 8, f"steps (plain: {found.full_steps})", "soft", "middle", SMALL))
    tails = sorted(found.likeness.items())
    lines: list[tuple[str, Role, Shape, list[float]]] = [
        ("median", "static", "ring", [t.median for _, t in tails]),
        ("p5", "dynamic", "disc", [t.p5 for _, t in tails]),
    ]
    labels: list[float] = []
    for name, role, shape, values in lines:
        places = [at(k, value) for k, value in zip(steps, values, strict=True)]
        if len(places) > 1:
            drawn.add(Line(places, role, 2))
        for (x, y), k, value in zip(places, steps, values, strict=True):
            drawn.add(Dot(x, y, 4, role, shape, f"{name} of {k} steps: {value:.3f}"))
        y = places[-1][1] + 4
        while any(abs(y - other) < SMALL + 4 for other in labels):
            y += SMALL + 4
        labels.append(y)
        drawn.add(Text(places[-1][0] + 12, y, name, role, bold=True))
    return drawn
