"""A model that exits can't be attached to, with the same interface: every run computes all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynx.early_exit.attach.hidden_state import Outcome
from dynx.early_exit.attach.model import model_inputs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dynx.early_exit.attach.hidden_state import State, Watch
    from dynx.early_exit.attach.pooling import Kind


PADDING_TOLERANCE = 1e-4
"""Largest change of a logit by padding, relative to the largest logit, that counts as none."""


class FullDepthModel:
    """A classifier of `depth` layers that runs only as a whole.

    `probe_batch`, a batch of texts of several lengths, is run with and without padding. Where padding changes the logits, or the
    model fails, batches hold only texts of equal length.
    """

    def __init__(self, model: Any, kind: Kind, probe_batch: Mapping[str, Tensor]) -> None:
        self.model = model
        self.kind: Kind = kind
        self.merges_lengths = kind == "image" or self._takes_padding(probe_batch)
        config = model.config
        layers = getattr(config, "num_hidden_layers", None) or getattr(config, "n_layers", None)
        self.depth = int(layers) if isinstance(layers, int) and layers > 0 else 1

    def _takes_padding(self, probe_batch: Mapping[str, Tensor]) -> bool:
        mask = probe_batch.get("attention_mask")
        if mask is None or len(mask) < 2:
            return False
        try:
            together = self.run(probe_batch).logits
            for i, length in enumerate(mask.sum(1).tolist()):
                alone = self.run({name: value[i : i + 1, :length] for name, value in probe_batch.items()}).logits
                if alone is None or together is None:
                    return False
                own = together[i][:length] if together.dim() == 3 else together[i]
                far = float((alone[0] - own).abs().max())
                if not far <= PADDING_TOLERANCE * max(1.0, float(own.abs().max())):
                    return False
        except Exception:  # noqa: BLE001 - any failure of a foreign model means: don't pad
            return False
        return True

    def run(
        self,
        inputs: Mapping[str, Tensor],
        *,
        start: State | None = None,
        watch: Watch | None = None,
        exits: Collection[int] = (),
        stop: int | None = None,
    ) -> Outcome:
        """Run all rows to the logits. ValueError: exits, `start` or `stop` are given."""
        if start is not None or exits or stop is not None:
            raise ValueError("this model can't be run in parts")
        with torch.no_grad():
            logits = self._logits(model_inputs(inputs))
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
        """Raise ValueError, as there are no hidden states."""
        raise ValueError("this model can't be run in parts")

    def detach(self) -> None:
        """Do nothing, as nothing was attached."""
