"""What each precision of a converted model means: groups that share a scale, and how far its logits may be from torch's."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "float16", "bfloat16", "int8", "int4", "file"]

WEIGHT_GROUP_SIZE = 64
"""Weights that share a 4-bit scale."""

CACHE_PRECISION = {"int8": "f16"}
"""Of keys and values, where it isn't that of the computation. float16 rounds them by 0.05 %, weights in 8 bits by ten times that,
and of float32 a pass reads twice the memory: a seventh of its time after 1,000 tokens (SmolLM2-135M, two cores of an EPYC).
Nothing is rounded so of a GGUF file's own values ("file")."""

ACTIVATION_GROUP_SIZE = {"int8": 64, "int4": WEIGHT_GROUP_SIZE, "file": 32}
"""Activations that share a scale where weights are integers; no more than weights do, and a divisor of usual row lengths, or they
aren't quantized at all."""

MAX_LOGIT_ERROR: dict[str, float] = {
    "float32": 1e-3,
    "float16": 0.08,
    "bfloat16": 0.08,
    "int8": 0.25,
    "int4": 1.0,
    "file": 0.25,
}
"""Largest difference of a logit from the torch model's, relative to the largest logit. A cache in the wrong place changes
logits by their own scale; 4-bit weights may too, so there the root mean square is judged instead."""
