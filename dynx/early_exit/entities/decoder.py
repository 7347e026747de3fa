"""Transformers' own pipeline for token classification without its model: from logits to entities, and from tokens to words."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynx.runtime.loading import quietly

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynx.early_exit.preprocessing import Example

OFFSETS, SPECIAL = "offset_mapping", "special_tokens_mask"
"""What the tokenizer says of tokens beside the model's arguments: their places in the text, and which ones it added."""


class EntityDecoder:
    """The second half of the pipeline, for a model's config, its tokenizer and a strategy of aggregation."""

    def __init__(self, config: Any, tokenizer: Any, strategy: str) -> None:
        with quietly():
            from transformers.pipelines.token_classification import AggregationStrategy, TokenClassificationPipeline

        class WithoutModel(TokenClassificationPipeline):  # type: ignore[misc]
            """The pipeline with what its second half uses."""

            def __init__(self) -> None:
                self.tokenizer = tokenizer
                self.model = SimpleNamespace(config=config)

        self._pipeline, self._strategy = WithoutModel(), AggregationStrategy[strategy.upper()]

    def entities(self, row: Example, logits: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Return what the pipeline makes of a text's logits (T, C); rows past its tokens are padding."""
        values: Any = row.values
        given = {
            "logits": torch.from_numpy(np.nan_to_num(logits[: row.size]))[None],
            "sentence": row.text,
            "input_ids": [values["input_ids"]],
            "offset_mapping": [values[OFFSETS]],
            "special_tokens_mask": torch.tensor([values[SPECIAL]]),
        }
        found: list[dict[str, Any]] = self._pipeline.postprocess([given], aggregation_strategy=self._strategy)
        return found

    def inside_words(self, row: Example) -> list[int]:
        """Return the numbers of tokens that the pipeline takes for a word's second or later piece."""
        values: Any = row.values
        with silent():
            pieces = self._pipeline.gather_pre_entities(
                row.text,
                values["input_ids"],
                np.zeros((row.size, 1), dtype=np.float32),
                values[OFFSETS],
                values[SPECIAL],
                self._strategy,
            )
        return [each["index"] for place, each in enumerate(pieces) if each["is_subword"] and place]


def silent() -> warnings.catch_warnings[Any]:
    """Hide what the pipeline says of tokenizers that know no words: it says so for every token."""
    return warnings.catch_warnings(action="ignore")
