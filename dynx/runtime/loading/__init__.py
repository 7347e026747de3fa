"""From a name to a model: `source` finds it, `check` looks at its files, `libraries` loads it.

Shipped models take the same path as anybody's.
"""

from dynx.runtime.loading.check import (
    CLASSIFIERS,
    PIPELINE,
    PIPELINES,
    SUPPORTED,
    check,
    check_causal_lm,
    check_classifier,
    check_pipeline,
    task_of,
)
from dynx.runtime.loading.libraries import (
    generation_config,
    load_causal_lm,
    load_classifier,
    load_image_processor,
    load_pipeline,
    load_tokenizer,
    same_vocabulary,
    stored_weights,
)
from dynx.runtime.loading.quiet import importing, quietly
from dynx.runtime.loading.source import DRAFTER_FOLDER, PICKLES, Source, find

__all__ = [
    "CLASSIFIERS",
    "DRAFTER_FOLDER",
    "PICKLES",
    "PIPELINE",
    "PIPELINES",
    "SUPPORTED",
    "Source",
    "check",
    "check_causal_lm",
    "check_classifier",
    "check_pipeline",
    "find",
    "generation_config",
    "importing",
    "load_causal_lm",
    "load_classifier",
    "load_image_processor",
    "load_pipeline",
    "load_tokenizer",
    "quietly",
    "same_vocabulary",
    "stored_weights",
    "task_of",
]
