"""Exits are learned on every arithmetic that could win with them, and the one with the least expected time stays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dynx.early_exit import exit_fitting
from dynx.early_exit.exit_fitting import Learned, learn_fastest
from dynx.runtime.backends.registry import OPENVINO
from dynx.runtime.decision import Decision


class Arm:
    """Segments of a precision, which `at` gives other borders."""

    def __init__(self, precision: str, borders: tuple[int, ...] = ()) -> None:
        self.precision, self.borders = precision, borders
        self.cut = SimpleNamespace(ranges={"layer": (0.0, 1.0)} if precision == "int8" else {})


@pytest.mark.parametrize(
    ("seconds", "speedups", "tried", "best"),
    [
        (
            {"float32": 5.0, "bfloat16": 1.3, "int8": 1.0},
            {"int8": 1.0, "bfloat16": 2.0},
            ["int8", "bfloat16"],
            "bfloat16",
        ),
        ({"float32": 5.0, "bfloat16": 1.3, "int8": 1.0}, {"int8": 1.5, "bfloat16": 1.9}, ["int8", "bfloat16"], "int8"),
        ({"bfloat16": 1.9, "int8": 1.0}, {"int8": 1.8}, ["int8"], "int8"),  # 1.9 could at best become 0.95
        ({"float32": 1.0}, {"float32": 1.2}, ["float32"], "float32"),
    ],
)
def test_the_fastest_with_exits_stays(
    seconds: dict[str, float],
    speedups: dict[str, float],
    tried: list[str],
    best: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Full depth alone doesn't decide, what can't win isn't tried, and the assembly computes with the winner afterwards."""
    arms = {name: Arm(name) for name in seconds}
    first = min(seconds, key=lambda name: seconds[name])
    assembly: Any = SimpleNamespace(
        segments=arms[first],
        alternatives={name: (arms[name], seconds[name]) for name in arms},
        block_backend=None,
        plan=SimpleNamespace(decisions=SimpleNamespace(backend=Decision(OPENVINO, f"timed; it computes in {first}"))),
    )
    seen: list[tuple[str, float]] = []

    def learned(assembly: Any, _rows: Any, _reference: Any, _parts: Any, budget: float, *_: Any) -> Learned:
        name = assembly.segments.precision
        seen.append((name, budget))
        assembly.segments = Arm(name, (2,))
        return Learned(name, None, assembly.segments, speedups[name])  # type: ignore[arg-type]

    monkeypatch.setattr(exit_fitting, "_learned", learned)
    found = learn_fastest(assembly, [], None, [], budget=60.0, clock=lambda: 0.0)

    assert [name for name, _ in seen] == tried
    assert sum(budget for _, budget in seen) <= 60.0
    assert found.seen == best  # type: ignore[comparison-overlap]
    assert (assembly.segments.precision, assembly.segments.borders) == (best, (2,))
    assert (assembly.block_backend.backend, assembly.block_backend.precision) == (OPENVINO, best)
    assert bool(assembly.block_backend.ranges) is (best == "int8")
    reason = assembly.plan.decisions.backend.reason
    assert reason.endswith(f"it computes in {best}")
    assert all(f"{name} " in reason for name in tried) or len(tried) == 1


def test_without_segments_there_is_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch has one arithmetic here."""
    only = Learned(None, None, None, 1.0)  # type: ignore[arg-type]
    monkeypatch.setattr(exit_fitting, "_learned", lambda *_: only)
    assembly: Any = SimpleNamespace(segments=None)
    assert learn_fastest(assembly, [], None, [], budget=1.0, clock=lambda: 0.0) is only
