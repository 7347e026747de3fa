"""The `forward` of an attached model that labels tokens: texts leave early under the promise on their entities.

A profile is about the entities of one aggregation strategy, which a forward isn't told: `aggregation_strategy` names it. Tokens
that can't be part of an entity are those that the tokenizer puts around a text. Their logits are 0 where a text left early.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynx.early_exit.entities.decoder import SPECIAL
from dynx.early_exit.entities.labels import EntityLabels
from dynx.early_exit.entities.preprocessing import COUNTS, TokenPreprocessor
from dynx.errors import UnsupportedModelError
from dynx.integrations.transformers import classifier_inputs as inputs
from dynx.integrations.transformers.classifier import ClassifierAttachment, attach_classifier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.engine import Answer
    from dynx.early_exit.plan import ClassifierPlan
    from dynx.early_exit.preprocessing import Example


class TokenClassifierAttachment(ClassifierAttachment):
    """The `forward` of an attached model that labels tokens."""

    _around: tuple[list[int], list[int]] = ([], [])
    """Tokens that the tokenizer puts before and behind a text."""

    def _assemble(self, plan: ClassifierPlan) -> LoadedClassifier:
        if plan.request.aggregation_strategy == "first":
            raise UnsupportedModelError("the strategy first looks at words, and a forward is given tokens alone")
        assembly = super()._assemble(plan)
        self._around = tokens_around(assembly.preprocessor)
        return assembly

    def _prepared(self, plan: ClassifierPlan, model: Any, tokenizer: Any) -> tuple[TokenPreprocessor, EntityLabels]:
        strategy = plan.request.aggregation_strategy
        preprocessor = TokenPreprocessor(tokenizer, model, plan.request.max_length, strategy)
        return preprocessor, EntityLabels(model.config, tokenizer, strategy)

    def _reason(self, given: Mapping[str, Any]) -> str | None:
        reason = super()._reason(given)
        if reason is None and not all(self._is_whole(row) for row in inputs.text_rows(given)):
            reason = "a row doesn't begin and end as the tokenizer's rows do"
        return reason

    def _is_whole(self, row: Example) -> bool:
        before, behind = self._around
        values: Any = row.values
        ids = values["input_ids"]
        fits = len(ids) >= len(before) + len(behind)
        return fits and ids[: len(before)] == before and ids[len(ids) - len(behind) :] == behind

    def _rows(self, given: Mapping[str, Any]) -> Sequence[Example]:
        before, behind = map(len, self._around)
        rows = []
        for row in super()._rows(given):
            counts = [int(before <= i < row.size - behind) for i in range(row.size)]
            rows.append(replace(row, values={**row.values, COUNTS: counts}))  # type: ignore[dict-item]
        return rows

    def _logits(self, answers: Sequence[Answer], given: Mapping[str, Any]) -> torch.Tensor:
        width = given["input_ids"].shape[1]
        out = np.zeros((len(answers), width, answers[0].logits.shape[1]), dtype=np.float32)
        for own, answer in zip(out, answers, strict=True):
            kept = answer.logits[:width]
            own[: len(kept)] = np.nan_to_num(kept)
        return torch.from_numpy(out)


def tokens_around(preprocessor: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer puts before and behind a text. UnsupportedModelError: it puts some in its middle."""
    (row,) = preprocessor.rows(["a b"])
    ids, added = list(row.values["input_ids"]), list(row.values[SPECIAL])
    own = [i for i, special in enumerate(added) if not special]
    if not own or any(added[own[0] : own[-1] + 1]):
        raise UnsupportedModelError("its tokenizer puts special tokens inside a text")
    return ids[: own[0]], ids[own[-1] + 1 :]


def options_of_pipeline(pipe: Any) -> dict[str, Any]:
    """Return what a pipeline tells of its entities. UnsupportedModelError: it cuts texts, and the promise is on whole ones."""
    if pipe._preprocess_params.get("tokenizer_params", {}).get("stride") is not None:
        raise UnsupportedModelError("the pipeline reads texts in windows (stride), and the promise is on whole texts")
    strategy = pipe._postprocess_params.get("aggregation_strategy")
    return {"aggregation_strategy": "none" if strategy is None else strategy.value}


def is_token_classifier(model: Any) -> bool:
    """Whether a model is one of transformers' classifiers of tokens, by its name."""
    return type(model).__name__.endswith("ForTokenClassification")


def attach_token_classifier(model: Any, tokenizer: Any = None, **options: Any) -> Any:
    """Make the `forward` of a model that labels tokens exit early, and return the model."""
    return attach_classifier(model, tokenizer, made=TokenClassifierAttachment, **options)
