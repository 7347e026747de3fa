"""The curve of quality against network calls, as an SVG that any browser shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.cli.files import write

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.diffusion.calibrate import Findings

WIDTH, HEIGHT, LEFT, BOTTOM, EDGE = 640, 400, 64, 48, 16


def curve(found: Findings, path: Path) -> None:
    """SSIM to the plain run, median and p5, by number of steps. Raises DynxError where it can't be written."""
    write(path.expanduser(), svg(found).encode(), force=True)


def svg(found: Findings) -> str:
    """The document."""
    steps = sorted(found.likeness)
    low = min(t.p5 for t in found.likeness.values())
    most = steps[-1]

    def at(k: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - EDGE) * k / most
        y = EDGE + (HEIGHT - BOTTOM - EDGE) * (1 - value) / max(1 - low, 1e-6)
        return round(x, 1), round(y, 1)

    def line(values: dict[int, float], colour: str, dash: str = "") -> str:
        places = [at(k, v) for k, v in values.items()]
        points = " ".join(f"{x},{y}" for x, y in places)
        dots = "".join(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in places)
        return f'<polyline fill="none" stroke="{colour}" stroke-width="2"{dash} points="{points}"/>{dots}'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for value in [1 - (1 - low) * i / 4 for i in range(5)]:
        x, y = at(0, value)
        parts.append(f'<line x1="{x}" y1="{y}" x2="{WIDTH - EDGE}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{value:.3f}</text>')
    for k in steps:
        x, _ = at(k, low)
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{k}</text>')
    parts.append(line({k: t.median for k, t in sorted(found.likeness.items())}, "#1f77b4"))
    parts.append(line({k: t.p5 for k, t in sorted(found.likeness.items())}, "#d62728", ' stroke-dasharray="6 4"'))
    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">steps (plain: {found.full_steps})</text>'
    )
    parts.append(
        f'<text x="{WIDTH - EDGE}" y="{HEIGHT - BOTTOM - 24}" text-anchor="end" fill="#1f77b4">SSIM, median</text>'
    )
    parts.append(f'<text x="{WIDTH - EDGE}" y="{HEIGHT - BOTTOM - 8}" text-anchor="end" fill="#d62728">p5</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
