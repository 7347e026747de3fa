"""transformers: `attach` makes a loaded model's own `generate` decode with drafts, `detach` gives the original back.

    attach(model, assistant=small, tokenizer=tokenizer)
    model.generate(**inputs, max_new_tokens=100)     # pipelines, streamers and servers call this too
    model.dynx.stats                                 # what the latest call cost, or why transformers decoded it
    detach(model)

What dynx doesn't do is left to transformers, with the reason in `stats`.
"""

from __future__ import annotations

import warnings
from typing import Any

from dynx.errors import UnsupportedModelError
from dynx.integrations.transformers.attachment import Attachment, attach, detach
from dynx.integrations.transformers.stats import CallStats

__all__ = ["Attachment", "CallStats", "attach", "detach", "generate"]


def generate(*args: Any, model: Any, **kwargs: Any) -> Any:
    """Attach `model` and generate; what `custom_generate/generate.py` in a model's folder hands to transformers.

    A model that can't be attached is decoded by its class's own `generate`, with a warning.
    """
    try:
        attach(model)
    except UnsupportedModelError as e:
        warnings.warn(f"decoded without dynx: {e}", stacklevel=2)
        return type(model).generate(model, *args, **kwargs)
    return model.generate(*args, **kwargs)
