"""lm-evaluation-harness: the model type `dynx`, which is its `hf` on an attached model.

    lm-eval run --model dynx --model_args pretrained=./my-model --tasks gsm8k

Only tasks that generate gain anything; log-likelihoods are computed by the model's own passes. In batches each request ends at
a stop sequence of its own, where the harness cuts its text anyway; a model needs an end token for that.
"""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from transformers import StoppingCriteriaList

from dynx.integrations.transformers import attach
from dynx.integrations.transformers.criteria import BySequence


class DynxLM(HFLM):  # type: ignore[misc]
    """`hf` of lm-evaluation-harness with `generate` attached; all of its arguments, and the path of an `assistant`."""

    def __init__(self, *args: Any, assistant: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        small = None
        if assistant is not None:
            small = self.AUTO_MODEL_CLASS.from_pretrained(assistant, dtype=self.model.dtype).to(self.device).eval()
        attach(self.model, assistant=small, tokenizer=self.tokenizer)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Any:
        """Generate for a batch (B, T) with stop sequences that are looked for row by row."""
        generate, rows = self.model.generate, len(context)
        if rows == 1:
            return super()._model_generate(context, max_length, stop, **kwargs)

        def by_row(**given: Any) -> Any:
            each = [stop_sequences_criteria(self.tokenizer, stop, context.shape[1], 1) for _ in range(rows)]
            return generate(**given | {"stopping_criteria": StoppingCriteriaList([BySequence(each)])})

        self.model.generate = by_row
        try:
            return super()._model_generate(context, max_length, stop, **kwargs)
        finally:
            self.model.generate = generate
