"""Preprocessing for models that label tokens: texts as tokens, with their places and whether they may be part of an entity."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dynx.early_exit.attach.pooling import COUNTED
from dynx.early_exit.preprocessing import Example, TextPreprocessor
from dynx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OFFSETS, SPECIAL = "offset_mapping", "special_tokens_mask"
"""What the tokenizer says of tokens beside the model's arguments: their places in the text, and which ones it added."""


class TokenPreprocessor(TextPreprocessor):
    """Preprocessing of texts whose tokens are labelled. UnsupportedModelError: the tokenizer doesn't tell places of tokens."""

    def __init__(self, tokenizer: Any, model: Any, max_length: int | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedModelError(
                f"{type(tokenizer).__name__} doesn't tell where a token is in the text",
                hint="a fast tokenizer does (a folder with tokenizer.json)",
            )
        super().__init__(tokenizer, model, max_length)

    def _tokenized(self, parts: list[list[str]], cutting: dict[str, Any]) -> Mapping[str, list[list[Any]]]:
        given = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
        return super()._tokenized(parts, cutting | given)

    @property
    def _names(self) -> list[str]:
        return [*super()._names, OFFSETS, SPECIAL]

    def _row(self, item: Any, values: dict[str, list[Any]]) -> Example | str:
        row = super()._row(item, values)
        if isinstance(row, str) or isinstance(row.values, Tensor):
            return row
        places: dict[str, Any] = {OFFSETS: [(0, 0)] * row.size, SPECIAL: [1] * row.size}  # where nothing was tokenized
        return replace(row, values=places | dict(row.values), text=str(item))

    def collate(self, rows: Sequence[Example]) -> Mapping[str, Tensor]:
        """Make a batch (R, T) of each argument, and of which tokens count."""
        batch = dict(super().collate(rows))
        table = np.zeros((len(rows), max(row.size for row in rows)), dtype=np.int64)
        for i, row in enumerate(rows):
            table[i, : row.size] = counted_of(row)
        return batch | {COUNTED: torch.from_numpy(table).to(self._device)}

    def probe(self) -> Mapping[str, Tensor]:
        """Make a batch with the model's own arguments only."""
        return {name: value for name, value in super().probe().items() if name != COUNTED}


def counted_of(row: Example) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which tokens (T,) of a row may be part of an entity: those that the tokenizer didn't add."""
    if isinstance(row.values, Tensor):
        raise TypeError("an image has no tokens")
    counted: np.ndarray[Any, np.dtype[np.bool_]] = np.asarray(row.values[SPECIAL], dtype=np.int64) == 0
    return counted
