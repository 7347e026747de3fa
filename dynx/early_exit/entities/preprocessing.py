"""Preprocessing for models that label tokens: texts as tokens, with their places and whether they may be part of an entity."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dynx.early_exit.attach.pooling import COUNTED
from dynx.early_exit.entities.decoder import OFFSETS, SPECIAL, EntityDecoder
from dynx.early_exit.preprocessing import Example, TextPreprocessor
from dynx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

COUNTS = "counts"
"""Of each token, whether it may be part of an entity, or decide what a word is."""


class TokenPreprocessor(TextPreprocessor):
    """Preprocessing of texts whose tokens are labelled. UnsupportedModelError: the tokenizer doesn't tell places of tokens."""

    def __init__(self, tokenizer: Any, model: Any, max_length: int | None = None, strategy: str | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedModelError(
                f"{type(tokenizer).__name__} doesn't tell where a token is in the text",
                hint="a fast tokenizer does (a folder with tokenizer.json)",
            )
        super().__init__(tokenizer, model, max_length)
        self._decoder = EntityDecoder(model.config, tokenizer, strategy) if strategy == "first" else None

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
        kept: dict[str, Any] = {OFFSETS: [(0, 0)] * row.size, SPECIAL: [1] * row.size}  # where nothing was tokenized
        kept |= row.values
        row = replace(row, values=kept, text=str(item))
        counts = [1 - special for special in kept[SPECIAL]]
        for number in self._decoder.inside_words(row) if self._decoder else ():  # whose labels that strategy leaves out
            counts[number] = 0
        return replace(row, values={**kept, COUNTS: counts}, identity=(row.identity, tuple(counts)))

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


def counted_of(row: Example) -> NDArray[np.bool_]:
    """Return which tokens (T,) of a row count: those that the strategy looks at, and that the tokenizer didn't add."""
    if isinstance(row.values, Tensor):
        raise TypeError("an image has no tokens")
    counted: NDArray[np.bool_] = np.asarray(row.values[COUNTS], dtype=np.int64) == 1
    return counted
