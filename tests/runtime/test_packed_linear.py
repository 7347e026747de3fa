"""int8 layers whose inputs have outliers: rounded in two steps, they change no more than their weights do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dynx.runtime.backends import packed_linear
from tests.support.models import tiny

pytestmark = pytest.mark.skipif(not packed_linear.available("int8").value, reason="no int8 kernels here")


def errors(peak: float) -> tuple[float, float]:
    """Relative error of a layer in one step and in two, on inputs of which a channel is `peak` times as large as the others."""
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(96, 64)
    layer.weight.data = torch.randint(-127, 128, (64, 96), generator=generator) / 127  # no error of the weights' own
    layer.weight.data[:, 0] = 1.0
    x = torch.randn(5, 96, generator=generator)
    x[:, 7] *= peak
    packed = packed_linear.pack_layers([layer], "int8")[0]
    out = []
    with torch.inference_mode():
        want = layer(x)
        for packed.two_steps in (False, True):
            got = packed(x)
            out.append(float((got - want)[:, :].norm() / want.norm()))
    return out[0], out[1]


@pytest.mark.parametrize("peak", [1.0, 40.0, 1000.0])
def test_two_steps_make_outliers_harmless(peak: float) -> None:
    """The error of the inputs all but vanishes, whatever the outlier."""
    one, two = errors(peak)

    assert two < 2e-4
    assert two < one / 20


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_model_gets_the_second_step_where_it_needs_it(limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one step changes logits by more than the limit, and only there, all layers get two."""
    monkeypatch.setattr(packed_linear, "MAX_ONE_LEVEL_ERROR", limit)
    model = tiny("llama")
    packed_linear.quantize(model)
    layers = [module for module in model.modules() if isinstance(module, packed_linear.PackedLinear)]

    assert layers
    assert {layer.two_steps for layer in layers} == {limit == 0.0}
