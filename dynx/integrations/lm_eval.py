"""lm-evaluation-harness: the model type `dynx`, which is its `hf` on an attached model.

    lm-eval run --model dynx --model_args pretrained=./my-model --tasks gsm8k

Only tasks that generate gain anything; log-likelihoods are computed by the model's own passes. One request at a time
(`batch_size` 1, the default) is drafted for; in larger batches a task's stop sequences leave decoding to transformers.
"""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM

from dynx.integrations.transformers import attach


class DynxLM(HFLM):  # type: ignore[misc]
    """`hf` of lm-evaluation-harness with `generate` attached; all of its arguments, and the path of an `assistant`."""

    def __init__(self, *args: Any, assistant: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        small = None
        if assistant is not None:
            small = self.AUTO_MODEL_CLASS.from_pretrained(assistant, dtype=self.model.dtype).to(self.device).eval()
        attach(self.model, assistant=small, tokenizer=self.tokenizer)
