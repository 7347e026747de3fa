"""A model that exits can't be attached to, behind the same face: every run goes all the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynx.early_exit.attach import Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dynx.early_exit.attach import State, Watch
    from dynx.early_exit.pooling import Kind


class Whole:
    """A classifier as one piece of `depth` layers. Nothing is known of how it takes padding: equal lengths go together only."""

    merges_lengths = False

    def __init__(self, model: Any, kind: Kind) -> None:
        self.model = model
        self.kind: Kind = kind
        config = model.config
        layers = getattr(config, "num_hidden_layers", None) or getattr(config, "n_layers", None)
        self.depth = int(layers) if isinstance(layers, int) and layers > 0 else 1

    def run(
        self,
        inputs: Mapping[str, Tensor],
        *,
        start: State | None = None,
        watch: Watch | None = None,
        exits: Collection[int] = (),
        stop: int | None = None,
    ) -> Outcome:
        """All rows, to the logits. ValueError where anything else is asked for."""
        if start is not None or exits or stop is not None:
            raise ValueError("this model can't be run in parts")
        with torch.no_grad():
            logits = self._logits(inputs)
        return Outcome(torch.arange(len(logits), device=logits.device), logits, None)

    def _logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        rows = len(next(iter(inputs.values())))
        try:
            logits: Tensor = self.model(**inputs).logits
        except ValueError:  # as BART's, of rows that hold different numbers of end tokens
            if rows == 1:
                raise
            each = [{name: value[i : i + 1] for name, value in inputs.items()} for i in range(rows)]
            return torch.cat([self._logits(row) for row in each])
        return logits

    def pool(self, hidden: Tensor, inputs: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """ValueError: there are no hidden states."""
        raise ValueError("this model can't be run in parts")

    def detach(self) -> None:
        """Nothing was changed."""
