"""16-bit weights under float32 arithmetic.

Most checkpoints are in 16 bits, and their values are all there is: held as float32 they take twice the memory, and a pass of one
token, which is bound by reading them, twice the bandwidth. The plugin multiplies 16-bit weights in float32 where the conversion
is marked as decompression, and makes a float32 copy where it isn't.

The values are the same to the bit. Sums are not: the plugin's kernel adds in another order, as its kernels for other numbers of
tokens do, so logits differ by float32's rounding. SmolLM2-135M on two cores of an EPYC, ms a pass by tokens, float32 weights
and 16-bit ones: 1 token 19.1 and 15.3, 4 tokens 20.0 and 16.2, 6 tokens 22.2 and 32.8, 12 tokens 29.5 and 44.4, 64 tokens 115 and
123; memory after loading 1,249 and 329 MiB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynx.errors import UnsupportedModelError

FORMATS = (torch.bfloat16, torch.float16)
"""Data types that weights may turn out to have been in, the likelier first."""


def halved(weight: Tensor) -> Tensor | None:
    """Return `weight`, float32, in a 16-bit format that holds each of its values exactly; None where none does."""
    for dtype in FORMATS:
        half = weight.to(dtype)
        if torch.equal(half.float(), weight):
            return half
    return None


def decompressed(constant: Any) -> Any:
    """Return the conversion of a 16-bit constant to float32, marked for the plugin to multiply with what is stored.

    The mark can't be made from Python, so a conversion is taken that OpenVINO marked itself, of a model made for that.
    """
    import openvino as ov
    from openvino import opset15 as ops
    from openvino._offline_transformations import compress_model_transformation

    states = ops.parameter([1, 2], np.float32)
    product = ops.matmul(states, ops.constant(np.full((2, 2), 0.5, np.float32)), False, True)
    compress_model_transformation(ov.Model([product.output(0)], [states], "marked"))
    conversion = product.input_value(1).get_node()
    if conversion.get_type_name() != "Convert":
        raise UnsupportedModelError("this version of OpenVINO doesn't mark 16-bit weights")
    conversion.input(0).replace_source_output(constant.output(0))
    return conversion.output(0)
