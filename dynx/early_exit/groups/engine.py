"""Answer groups of rows whose results are decided together; rows that can't change their group's result leave early.

All rows of a window run to an exit before any is judged there, since a row is compared with the others of its group. Those that
go on are put into full batches again. Equal rows of a group are computed each, as their places differ.

Letters: G groups, D rows of the largest group, R rows of all groups, K exits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dynx.early_exit.batching import batches
from dynx.early_exit.groups.rule import padded, valid_places
from dynx.errors import DeviceError, InvalidInput
from dynx.runtime.memory import is_out_of_memory
from dynx.runtime.threads import torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.groups.rule import GroupRule
    from dynx.early_exit.groups.stages import Stages
    from dynx.early_exit.groups.values import Values
    from dynx.early_exit.heads import ExitHeads
    from dynx.early_exit.preprocessing import Example

MAX_WINDOW_TOKENS = 1 << 16
"""Most tokens of rows that wait at a border at a time, unless a single group has more: of 768 floats each that is 200 MB."""


@dataclass(frozen=True)
class GroupExits:
    """Where rows of groups may leave: after the blocks `depths`, by heads that estimate the full model's value of a row.

    `errors` (K,) are the usual errors of those estimates, `thresholds` (K,) the margins, in their units, from which a row leaves.
    """

    depths: tuple[int, ...]
    heads: ExitHeads
    errors: NDArray[np.float64]
    thresholds: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Raise InvalidInput where the parts don't fit each other."""
        if len({len(self.depths), len(self.heads), len(self.errors), len(self.thresholds)}) != 1:
            raise InvalidInput(f"exits after blocks {self.depths} don't fit their heads, errors and thresholds")

    @property
    def active(self) -> bool:
        """Whether any row could leave."""
        return bool(np.isfinite(self.thresholds).any())


@dataclass(frozen=True)
class GroupAnswer:
    """The answer to a group of D rows."""

    values: NDArray[np.float64]
    """(D,): the full model's, or of rows that left the estimate of their exit."""
    chosen: NDArray[np.bool_]
    """(D,): the rows that make the result."""
    exits: NDArray[np.int64]
    """(D,): the number of the exit that each left at, K for none."""
    layers: int
    """Block calls for all rows."""


def leave(
    rule: GroupRule,
    error: float,
    threshold: float,
    values: NDArray[np.float64],
    active: NDArray[np.bool_],
    running: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows (G, D) are still in question, and which of them run on, after an exit with these estimates."""
    leaving = running & (rule.margins(values, running) >= max(threshold * error, np.finfo(float).tiny))
    active, running = active & ~leaving, running & ~leaving
    return active, running & ~(rule.decided(active) if np.isfinite(threshold) else np.zeros_like(active))


class GroupEngine:
    """A classifier run stage by stage over groups of rows, with exits between stages.

    `values` makes a row's value of its logits. `threads` is the number that PyTorch computes with.
    """

    def __init__(
        self,
        stages: Stages,
        exits: GroupExits,
        rule: GroupRule,
        values: Values,
        *,
        batch: int,
        threads: int | None = None,
    ) -> None:
        if exits.depths != stages.borders:
            raise InvalidInput(f"exits after blocks {exits.depths} of a model cut after {stages.borders}")
        self._stages, self.exits, self._rule, self._values = stages, exits, rule, values
        self._batch, self._threads = batch, threads
        self.block_calls = 0
        """Block calls times rows computed so far."""

    def window(self, groups: Sequence[Sequence[Example]]) -> list[GroupAnswer]:
        """Answer groups, in order. DeviceError: out of memory."""
        answers: list[GroupAnswer] = []
        try:
            with torch.inference_mode(), torch_threads(self._threads):
                for part in _parts(groups):
                    answers += self._part(part)
        except Exception as e:
            if is_out_of_memory(e):
                raise DeviceError("out of memory", hint=f"try `batch_size` {max(1, self._batch // 2)}") from e
            raise
        finally:
            self._stages.clear()
            self.block_calls += sum(answer.layers for answer in answers)
        return answers

    def _part(self, groups: Sequence[Sequence[Example]]) -> list[GroupAnswer]:
        exits, rule, stages = self.exits, self._rule, self._stages
        rows = [row for group in groups for row in group]
        sizes = np.asarray([len(group) for group in groups])
        places = valid_places(sizes)
        count = len(exits.depths)
        values = np.full(len(rows), np.nan)
        heads: dict[int, torch.Tensor] = {}  # a row's logits at the exit before
        active, running = places.copy(), places.copy()
        left = np.full(places.shape, count)

        def estimate(k: int, numbers: Sequence[int], pooled: torch.Tensor) -> None:
            before = None if k == 0 else torch.stack([heads[number] for number in numbers])
            logits = exits.heads.logits(k, pooled.cpu(), before)
            values[list(numbers)] = logits[:, 0].double().numpy()
            heads.update(zip(numbers, logits, strict=True))

        lengths = {number: row.size for number, row in enumerate(rows)}
        for numbers in batches(lengths, self._batch, stages.merges_lengths):
            estimate(0, numbers, stages.begin(numbers, [rows[number] for number in numbers]))
        for k in range(count):
            at = padded(values, sizes, np.nan)
            active, after = leave(rule, exits.errors[k], exits.thresholds[k], at, active, running)
            left[running & ~after] = k
            running = after
            stages.keep(k, running[places])
            for found, out in stages.advance(k, self._batch):
                if k + 1 < count:
                    estimate(k + 1, found.tolist(), out)
                else:
                    values[found] = self._values(out.float().cpu().numpy())
        final = padded(values, sizes, np.nan)
        chosen = rule.chosen(final, active)
        layers = np.asarray([*exits.depths, stages.depth])[left]
        return [
            GroupAnswer(final[g, :n], chosen[g, :n], left[g, :n], int(layers[g, :n].sum()))
            for g, n in enumerate(sizes.tolist())
        ]


def _parts(groups: Sequence[Sequence[Example]]) -> Iterator[Sequence[Sequence[Example]]]:
    """Cut groups into windows of at most `MAX_WINDOW_TOKENS`."""
    part: list[Sequence[Example]] = []
    tokens = 0
    for group in groups:
        size = sum(row.size for row in group)
        if part and tokens + size > MAX_WINDOW_TOKENS:
            yield part
            part, tokens = [], 0
        part.append(group)
        tokens += size
    if part:
        yield part


def full_depth_answers(
    window: Callable[[Sequence[Example]], Sequence[NDArray[np.float32]]],
    groups: Sequence[Sequence[Example]],
    rule: GroupRule | None,
    values: Values,
    depth: int,
) -> list[GroupAnswer]:
    """Answer groups at full depth; `window` returns the logits of rows. Without a rule every row makes the result."""
    if not groups:
        return []
    rows = [row for group in groups for row in group]
    found = values(np.stack(window(rows))) if rows else np.empty(0)
    out, at = [], 0
    for group in groups:
        own = found[at : at + len(group)]
        at += len(group)
        every = np.ones((1, len(group)), dtype=bool)
        chosen = every[0] if rule is None or not len(group) else rule.chosen(own[None], every)[0]
        out.append(GroupAnswer(own, chosen, np.zeros(len(group), dtype=np.int64), depth * len(group)))
    return out
