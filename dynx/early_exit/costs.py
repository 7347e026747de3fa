"""What exits cost and save on this device, in seconds per row, at one batch size.

A row that exits saves less than its share of the batch, as part of a block's cost doesn't depend on the batch size. So the cost
of the blocks behind an exit is the difference between whole and halved batches; or the cost with the remaining rows merged into
full batches again, where that is lower. Measurements alternate over many rounds, and medians count.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch

from dynx.early_exit.batching import Batch, ParkedRows, batches
from dynx.early_exit.engine import DEFAULT_BATCH_SIZE, Engine, Exits
from dynx.runtime.certify import Costs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dynx.early_exit.agreement import AgreementScore
    from dynx.early_exit.attach.hidden_state import State
    from dynx.early_exit.attach.interface import ClassifierModel
    from dynx.early_exit.heads import ExitHeads

    Measurement = Callable[[], Sequence[float]]

__all__ = ["measure_costs"]

Input = TypeVar("Input")

MAX_MEASURED_BATCHES = 8
"""Most batches measured, of lengths spread over those of the rows."""

MAX_ROUNDS, MIN_ROUNDS = 15, 3
"""Most rounds, after which medians no longer change, and fewest."""

MERGES_PER_EXIT = 2.0
"""How often remaining rows are merged for each that exits: once, and again at a later exit."""

FORWARDS_PER_ROUND = 4
"""Forwards that a round takes for a batch, about."""


def measure_costs(
    exit_model: ClassifierModel,
    collate: Callable[[Sequence[Input]], Mapping[str, Tensor]],
    rows: Sequence[Input],
    depths: Sequence[int],
    *,
    heads: ExitHeads,
    score: AgreementScore,
    length: Callable[[Input], int] = lambda _: 1,
    batch: int = DEFAULT_BATCH_SIZE,
    budget: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], None] = lambda _: None,
) -> Costs:
    """Measure seconds per row of running to each of `depths`, to the answer, and of what an exit adds, as the engine runs them.

    `rows` represent the inputs to come, at least one; `collate` and `length` are the engine's. It takes about `budget` seconds,
    more where `MIN_ROUNDS` rounds do; `progress` is called with the share done.
    """
    tick = _tick(exit_model, clock)
    sizes = {number: length(row) for number, row in enumerate(rows)}
    groups = list(batches(sizes, batch, exit_model.merges_lengths))
    full = [group for group in groups if len(group) == len(groups[0])]
    with torch.inference_mode():
        middle = _BatchTimer(exit_model, collate, [rows[i] for i in full[len(full) // 2]], depths, heads, score, tick)
        middle.full_depth()  # first calls allocate and choose kernels
        count = int(budget / (MIN_ROUNDS * FORWARDS_PER_ROUND * max(middle.full_depth()[-1], 1e-9)))
        count = max(1, min(MAX_MEASURED_BATCHES, count, len(full)))
        chosen = [full[len(full) * (2 * i + 1) // (2 * count)] for i in range(count)]
        benches = [
            _BatchTimer(exit_model, collate, [rows[i] for i in group], depths, heads, score, tick) for group in chosen
        ]
        medians = _medians([bench.measurements() for bench in benches], budget, clock, progress)
    size = len(chosen[0])
    return _costs(medians, count * size, count * ((size + 1) // 2) if size > 1 else 0)


def _tick(exit_model: ClassifierModel, clock: Callable[[], float]) -> Callable[[], float]:
    """Return a clock that waits for the device to finish its work."""
    device = exit_model.model.device
    module = getattr(torch, device.type, None)
    wait = getattr(module, "synchronize", None) if device.type != "cpu" else None

    def tick() -> float:
        if wait is not None:
            wait()
        return clock()

    return tick


def _medians(
    measurements: Sequence[Mapping[str, Measurement]],
    budget: float,
    clock: Callable[[], float],
    progress: Callable[[float], None],
) -> dict[str, NDArray[np.float64]]:
    """Take every measurement in each round, in random order; return medians over rounds, summed over batches."""
    cells = [(number, name) for number, several in enumerate(measurements) for name in several]
    samples: dict[tuple[int, str], list[Sequence[float]]] = {cell: [] for cell in cells}
    rng = random.Random(0)  # noqa: S311 - the order of measurements is no secret
    for number, name in cells:
        measurements[number][name]()
    began = clock()
    for done in range(1, MAX_ROUNDS + 1):
        rng.shuffle(cells)
        for number, name in cells:
            samples[number, name].append(measurements[number][name]())
        spent = (clock() - began) / budget
        progress(min(1.0, max(spent, done / MAX_ROUNDS)))
        if done >= MIN_ROUNDS and spent * (done + 1) / done > 1:
            break
    out: dict[str, NDArray[np.float64]] = {}
    for (_, name), values in samples.items():
        out[name] = out.get(name, 0.0) + np.median(np.asarray(values), axis=0)
    return out


class _BatchTimer(Generic[Input]):
    """Timings of what the engine may do with one batch of R rows."""

    def __init__(
        self,
        exit_model: ClassifierModel,
        collate: Callable[[Sequence[Input]], Mapping[str, Tensor]],
        rows: Sequence[Input],
        depths: Sequence[int],
        heads: ExitHeads,
        score: AgreementScore,
        tick: Callable[[], float],
    ) -> None:
        self._exit_model, self._rows, self._depths, self._tick = exit_model, rows, tuple(depths), tick
        self._engine = Engine(exit_model, collate, batch=len(rows))
        script: Any = _FixedScore(score, len(depths), alone=len(rows) == 1)
        exits = Exits(self._depths, heads, script, np.ones(len(depths)))
        self._exit_engine = Engine(exit_model, collate, batch=len(rows), exits=exits)
        inputs = collate(rows)
        width = int(inputs[exit_model.model.main_input_name].shape[1]) if exit_model.kind == "text" else 1
        self._group = Batch(np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64), inputs, width)
        self._half = self._group.select(np.arange(0, len(rows), 2))
        self._middle = self._depths[len(self._depths) // 2]
        self._stopped: State | None = None

    def measurements(self) -> dict[str, Measurement]:
        """Return the measurements of this batch by name."""
        alone: dict[str, Measurement] = {
            "full_depth": self.full_depth,
            "with_exits": self.with_exits,
            "without_exits": self.without_exits,
        }
        return alone if len(self._rows) == 1 else {**alone, "half": self.half, "merged": self.merged}

    def full_depth(self) -> list[float]:
        """Time a forward to each depth, and to the end."""
        return self._stamped(self._group)

    def half(self) -> list[float]:
        """Time the same with every second row."""
        return self._stamped(self._half)

    def _stamped(self, group: Batch) -> list[float]:
        stamps: list[float] = []

        def watch(_depth: int, _hidden: Tensor, _rows: Tensor) -> None:
            stamps.append(self._tick())

        began = self._tick()
        self._exit_model.run(group.inputs, watch=watch, exits=self._depths)
        return [stamp - began for stamp in (*stamps, self._tick())]

    def without_exits(self) -> list[float]:
        """Time rows to answers without exits."""
        began = self._tick()
        self._engine.window(self._rows)
        return [self._tick() - began]

    def with_exits(self) -> list[float]:
        """Time rows to answers with exits: every second row exits at the first; a single row at the last."""
        began = self._tick()
        self._exit_engine.window(self._rows)
        return [self._tick() - began]

    def merged(self) -> list[float]:
        """Time the rest of the forward for rows parked at the middle exit in two batches."""
        if self._stopped is None:
            self._stopped = self._exit_model.run(self._group.inputs, stop=self._middle).state
        rows = np.arange(len(self._rows))
        began = self._tick()
        parked = ParkedRows(self._exit_model.merges_lengths)
        logits = torch.zeros(len(rows), 1)
        stopped = replace(self._group, state=self._stopped, logits=logits)
        parked.add(stopped.select(rows[::2]))
        parked.add(stopped.select(rows[1::2]))
        group = parked.take(len(rows), lambda _: (self._group.inputs, self._group.width))
        self._exit_model.run(group.inputs, start=group.state)
        return [self._tick() - began]


class _FixedScore:
    """A score that computes the real one for its time, and returns fixed values: 1 to exit."""

    def __init__(self, score: AgreementScore, exits: int, *, alone: bool) -> None:
        self._score, self._exits, self._alone = score, exits, alone

    def __len__(self) -> int:
        return self._exits

    def __call__(self, k: int, logits: Any, previous: Any = None) -> NDArray[np.float64]:
        self._score(k, logits, previous)
        scores = np.zeros(len(logits))
        if self._alone:
            scores[:] = k == self._exits - 1
        elif k == 0:
            scores[1::2] = 1.0
        return scores


def _costs(medians: Mapping[str, NDArray[np.float64]], rows: int, half: int) -> Costs:
    """Derive costs per row from sums over batches of so many rows, or half of them."""
    *reached, end = medians["full_depth"]
    reach, exits = np.asarray(reached), len(reached)
    with_exits = float(medians["with_exits"][0])
    around = max(0.0, float(medians["without_exits"][0]) - end)  # before and after the forward
    full = (end + around) / rows
    if not half:  # a batch of one ends where its row exits
        check = (with_exits - around - reach[-1]) / exits
        return _ordered((reach + around) / rows, full, np.full(exits, check / rows))
    *reached_half, end_half = medians["half"]
    rest, rest_half = end - reach, end_half - np.asarray(reached_half)
    merging = max(0.0, float(medians["merged"][0]) - float(rest[exits // 2]))
    saved = np.maximum((rest - rest_half) / (rows - half), (rest - MERGES_PER_EXIT * merging) / rows)
    check = (with_exits - around - reach[0] - rest_half[0]) / exits
    arriving = np.where(np.arange(exits) == 0, rows, (rows + half) / 2)
    return _ordered(full - saved, full, check / arriving)


def _ordered(reach: NDArray[np.float64], full: float, check: NDArray[np.float64]) -> Costs:
    """Make costs consistent: a deeper exit never costs less to reach than a shallower one, nor more than the answer."""
    reach = np.maximum.accumulate(np.clip(reach, 0.0, full))
    return Costs(tuple(reach.tolist()), full, tuple(np.maximum(check, 0.0).tolist()))
