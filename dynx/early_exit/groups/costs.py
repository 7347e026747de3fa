"""What stages cost and save on this device, in seconds per row, at one batch size.

Rows are put into full batches again at every border, so a row that leaves saves its share of the stages behind. An exit costs
its head, and the border itself: stages take longer than one forward through the same blocks. Measurements alternate over
several rounds, and medians count.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynx.early_exit.batching import batches
from dynx.early_exit.segments.costs import MAX_MEASURED_BATCHES, MAX_ROUNDS, MIN_ROUNDS, costs_of_stages
from dynx.runtime.threads import torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dynx.early_exit.groups.stages import Stages
    from dynx.early_exit.heads import ExitHeads
    from dynx.early_exit.preprocessing import Example
    from dynx.runtime.certify import Costs


def measure_stage_costs(
    stages: Stages,
    answer: Callable[[Sequence[Example]], Any],
    rows: Sequence[Example],
    heads: ExitHeads,
    *,
    batch: int,
    budget: float,
    clock: Callable[[], float],
    threads: int | None = None,
) -> Costs:
    """Measure seconds per row of leaving at each border, of the whole model, and of what an exit adds.

    `answer` runs rows at full depth; `rows` represent those to come, at least one. It takes about `budget` seconds, more where
    `MIN_ROUNDS` rounds do.
    """
    sizes = {number: row.size for number, row in enumerate(rows)}
    groups = list(batches(sizes, batch, stages.merges_lengths))
    full = [group for group in groups if len(group) == len(groups[0])]
    count = min(MAX_MEASURED_BATCHES, len(full))
    chosen = [[rows[i] for i in full[len(full) * (2 * i + 1) // (2 * count)]] for i in range(count)]
    exits = len(stages.borders)

    def stamped(group: Sequence[Example]) -> list[float]:
        """Time each stage, then each exit's head, and the batch at full depth."""
        stages.clear()
        everything = np.ones(len(group), dtype=bool)
        stage_times, exit_times = list[float](), list[float]()
        before: torch.Tensor | None = None
        began = clock()
        pooled = stages.begin(range(len(group)), group)
        stage_times.append(clock() - began)
        for k in range(exits):
            began = clock()
            before = heads.logits(k, pooled.cpu(), before)
            before.double().numpy()
            stages.keep(k, everything)
            exit_times.append(clock() - began)
            began = clock()
            pooled = torch.cat([out for _, out in stages.advance(k, batch)])
            stage_times.append(clock() - began)
        began = clock()
        answer(group)
        whole = clock() - began
        return [*stage_times, *exit_times, whole, whole]

    order, rng = list(range(count)), random.Random(0)  # noqa: S311 - the order of measurements is no secret
    samples: list[list[list[float]]] = [[] for _ in chosen]
    with torch.inference_mode(), torch_threads(threads):
        for group in chosen:
            stamped(group)  # first calls of a shape allocate and choose kernels
        started = clock()
        for done in range(1, MAX_ROUNDS + 1):
            rng.shuffle(order)
            for number in order:
                samples[number].append(stamped(chosen[number]))
            if done >= MIN_ROUNDS and (clock() - started) * (done + 1) / done > budget:
                break
    stages.clear()
    medians = sum(np.median(np.asarray(each), axis=0) for each in samples) / sum(map(len, chosen))
    return costs_of_stages(np.asarray(medians), exits)
