"""From the logits of tokens to entities, by transformers' own pipeline, and the comparison that the promise is about.

The promise is on a text's entities: the same labels at the same places. Scores don't count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from dynx.early_exit.entities.decoder import EntityDecoder, silent
from dynx.early_exit.plan import AGGREGATION_STRATEGY
from dynx.early_exit.types import Entities, Entity

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dynx.early_exit.agreement import Problem
    from dynx.early_exit.engine import Answer
    from dynx.early_exit.preprocessing import Example

EntitySet: TypeAlias = frozenset[tuple[str, int, int]]
"""What two results are compared by: label, begin and end of each entity."""


class EntityLabels:
    """The names of a model's labels, and how logits (T, C) of a text's tokens become entities."""

    problem: Problem = "single"
    """Of each token."""

    def __init__(self, config: Any, tokenizer: Any, strategy: str | None) -> None:
        self.strategy = strategy or AGGREGATION_STRATEGY
        named = getattr(config, "id2label", None) or {}
        self.names = [str(named.get(i, f"LABEL_{i}")) for i in range(int(config.num_labels))]
        self._decoder = EntityDecoder(config, tokenizer, self.strategy)

    def entities(self, row: Example, logits: NDArray[np.float32]) -> list[Entity]:
        """Return the entities of a text in order; rows of `logits` past its tokens are padding."""
        return [
            Entity(
                str(one.get("entity_group", one.get("entity"))),
                float(one["score"]),
                str(one["word"]),
                int(one["start"]),
                int(one["end"]),
                one.get("index"),
            )
            for one in self._decoder.entities(row, logits)
        ]

    def read(self, rows: Sequence[Example], answers: Sequence[Answer], depths: Sequence[int]) -> list[Entities]:
        """Return the results of answers to texts; `depths` are the blocks that exits come after."""
        with silent():
            return [
                Entities(
                    self.entities(row, answer.logits),
                    None if answer.exit is None else depths[answer.exit],
                    answer.layers,
                )
                for row, answer in zip(rows, answers, strict=True)
            ]

    def sets(self, rows: Iterable[Example], logits: Iterable[NDArray[np.float32]]) -> list[EntitySet]:
        """Return what results are compared by, of logits (T, C) of each text."""
        with silent():
            return [entity_set(self.entities(row, own)) for row, own in zip(rows, logits, strict=True)]

    def same(
        self,
        rows: Sequence[Example],
        answers: Sequence[Answer],
        full_rows: Sequence[Example],
        full: Sequence[Answer],
        tolerance: float,
    ) -> list[bool]:
        """Tell whether each answer is the full model's, which may have read more of a text."""
        own, truth = (
            self.sets(some, [answer.logits for answer in several])
            for some, several in ((rows, answers), (full_rows, full))
        )
        return [a == b for a, b in zip(own, truth, strict=True)]

    def ids(self, _logits: Any) -> None:
        """Return None: a text has no single class."""
        return


def entity_set(entities: Iterable[Entity]) -> EntitySet:
    """Return what two results are compared by."""
    return frozenset((each.label, each.start, each.end) for each in entities)
