"""What exits cost and save between segments on this device, in seconds per row, at one batch size.

Batches are filled again at every border, so a row that exits saves its share of the segments behind. What it costs to have the
exit is the time of scoring it, and of the border itself: two segments take longer than one graph of the same blocks.
Measurements alternate over several rounds, and medians count.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dynx.early_exit.attach.pooling import COUNTED
from dynx.early_exit.batching import batches
from dynx.early_exit.segments.engine import SegmentEngine
from dynx.early_exit.segments.scoring import exit_logits, given
from dynx.runtime.certify import Costs
from dynx.runtime.threads import BESIDE_ANOTHER_RUNTIME, torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from dynx.early_exit.agreement import AgreementScore
    from dynx.early_exit.heads import ExitHeads
    from dynx.early_exit.segments.segments import Segments

Input = TypeVar("Input")

MAX_MEASURED_BATCHES = 8
"""Most batches measured, of lengths spread over those of the rows."""

MAX_ROUNDS, MIN_ROUNDS = 15, 3
"""Most rounds, after which medians no longer change, and fewest."""


def measure_segment_costs(
    segments: Segments,
    collate: Callable[[Sequence[Input]], Mapping[str, Tensor]],
    rows: Sequence[Input],
    *,
    heads: ExitHeads,
    score: AgreementScore,
    length: Callable[[Input], int],
    batch: int,
    budget: float,
    clock: Callable[[], float],
) -> Costs:
    """Measure seconds per row of exiting at each border, of the whole model, and of what an exit adds.

    `rows` represent the inputs to come, at least one. It takes about `budget` seconds, more where `MIN_ROUNDS` rounds do.
    """
    parts, whole = segments.parts, SegmentEngine(segments.whole, collate, length=length, batch=batch)
    sizes = {number: length(row) for number, row in enumerate(rows)}
    groups = list(batches(sizes, batch, parts.merges_lengths))
    full = [group for group in groups if len(group) == len(groups[0])]
    count = min(MAX_MEASURED_BATCHES, len(full))
    chosen = [[rows[i] for i in full[len(full) * (2 * i + 1) // (2 * count)]] for i in range(count)]
    computed = heads.as_arrays()
    exits = len(parts.borders)

    def stamped(group: Sequence[Input]) -> list[float]:
        """Time each segment, then the scoring of each exit; and a batch to its answers on the whole model, and alone."""
        collated = collate(group)
        inputs: dict[str, Any] = {name: collated[name].numpy() for name in given(parts, collated)}
        hidden, previous, segment_times, exit_times = None, None, list[float](), list[float]()
        for number in range(len(parts)):
            parts.run(number, inputs, hidden)  # as the engine runs several batches of a segment in turn
            began = clock()
            out = parts.run(number, inputs, hidden)
            segment_times.append(clock() - began)
            if number == exits:
                break
            began = clock()
            logits = exit_logits(computed[number], out[1], previous, inputs.get(COUNTED))
            score(number, logits, previous)
            hidden, previous = out[0][np.arange(len(group))], logits
            exit_times.append(clock() - began)
        segments.whole.run(0, inputs)
        began = clock()
        segments.whole.run(0, inputs)
        alone = clock() - began
        began = clock()
        whole.window(group)
        return [*segment_times, *exit_times, alone, clock() - began]

    order, rng = list(range(count)), random.Random(0)  # noqa: S311 - the order of measurements is no secret
    samples: list[list[list[float]]] = [[] for _ in chosen]
    with torch_threads(BESIDE_ANOTHER_RUNTIME):
        for group in chosen:
            stamped(group)  # first calls of a shape choose kernels
        started = clock()
        for done in range(1, MAX_ROUNDS + 1):
            rng.shuffle(order)
            for number in order:
                samples[number].append(stamped(chosen[number]))
            if done >= MIN_ROUNDS and (clock() - started) * (done + 1) / done > budget:
                break
    medians = sum(np.median(np.asarray(each), axis=0) for each in samples) / sum(map(len, chosen))
    return costs_of_stages(np.asarray(medians), exits)


def costs_of_stages(seconds: np.ndarray[Any, np.dtype[np.float64]], exits: int) -> Costs:
    """Derive costs from seconds per row: of each segment, of each exit's score, of the whole model alone and to its answers."""
    run, scored, (alone, answered) = seconds[: exits + 1], seconds[exits + 1 : 2 * exits + 1], seconds[2 * exits + 1 :]
    around = max(0.0, answered - alone)  # before and after the model
    total = float(run.sum())
    border = max(0.0, total - alone) / exits
    reach = np.cumsum(run[:-1]) * min(1.0, alone / total) + around
    return Costs(tuple(reach.tolist()), float(alone + around), tuple((scored + border).tolist()))
