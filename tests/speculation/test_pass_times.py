"""A pass inside generation takes as long as the same pass in a loop, with a tolerance for busy machines."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from dynx.runtime.backends.eager import EagerBackend
from dynx.speculation.engine import Drafters, Engine
from tests.support.models import tiny
from tests.support.pass_times import pass_times

MAX_RATIO = 1.5
"""Of medians; 1.05 is the aim on an idle machine with a model of some size."""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "openvino"])
def test_a_pass_in_generation_takes_as_long_as_in_a_loop(backend: str) -> None:
    """PyTorch has two threads, as on a user's machine, and the other pool two as well."""
    model = tiny("llama", hidden_size=256, intermediate_size=512)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        if backend == "eager":
            target = EagerBackend(model)
        else:
            if importlib.util.find_spec("openvino") is None:
                pytest.skip("OpenVINO isn't installed")
            from dynx.runtime.backends.openvino import kept

            target = kept.load(model, precision="float32", threads=2, cache=None)
        engine = Engine(target, Drafters(lookup=True))
        inside, alone, count = pass_times(engine, [5, 6, 7, 8] * 6, 60)
    finally:
        torch.set_num_threads(before)

    assert count > 10
    assert inside < MAX_RATIO * alone
