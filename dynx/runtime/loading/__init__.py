"""From a name to a model: `source` finds it, `check` looks at its files, `libraries` loads it.

Shipped models take the same path as anybody's.
"""

from dynx.runtime.loading.ahead import Ahead
from dynx.runtime.loading.check import (
    CLASSIFIERS,
    PIPELINE,
    PIPELINES,
    SUPPORTED,
    ClassifierKind,
    check,
    check_causal_lm,
    check_classifier,
    check_pipeline,
    task_of,
)
from dynx.runtime.loading.exported import weights_kind
from dynx.runtime.loading.libraries import (
    generation_config,
    load_causal_lm,
    load_classifier,
    load_image_processor,
    load_pipeline,
    load_text_tokenizer,
    load_tokenizer,
    outline_classifier,
    same_vocabulary,
    stored_weights,
)
from dynx.runtime.loading.multimodal import text_part
from dynx.runtime.loading.packed import PACKED, decide
from dynx.runtime.loading.quiet import importing, quietly
from dynx.runtime.loading.source import DRAFTER_FOLDER, PICKLES, Source, find, with_adapters
from dynx.runtime.loading.unpacked import elements, needs_unpacking, scheme_of, stored_dtype

__all__ = [
    "CLASSIFIERS",
    "DRAFTER_FOLDER",
    "PACKED",
    "PICKLES",
    "PIPELINE",
    "PIPELINES",
    "SUPPORTED",
    "Ahead",
    "ClassifierKind",
    "Source",
    "check",
    "check_causal_lm",
    "check_classifier",
    "check_pipeline",
    "decide",
    "elements",
    "find",
    "generation_config",
    "importing",
    "load_causal_lm",
    "load_classifier",
    "load_image_processor",
    "load_pipeline",
    "load_text_tokenizer",
    "load_tokenizer",
    "needs_unpacking",
    "outline_classifier",
    "quietly",
    "same_vocabulary",
    "scheme_of",
    "stored_dtype",
    "stored_weights",
    "task_of",
    "text_part",
    "weights_kind",
    "with_adapters",
]
