"""Rows that nobody asks for aren't computed behind the last attention, and the others keep their bits."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from support.models import VOCAB, tiny

from dynx.runtime.backends.interface import Part

if importlib.util.find_spec("openvino") is None:
    pytest.skip("OpenVINO isn't installed", allow_module_level=True)

from dynx.runtime.backends.openvino import convert
from dynx.runtime.backends.openvino import decoder as openvino
from dynx.runtime.backends.openvino.rows import take_early
from dynx.runtime.backends.openvino.weights import store_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TEXT = [(11 * i * i + 5 * i + 3) % VOCAB for i in range(60)]


def products_behind_rows(graph: Any) -> int:
    """Matrix products that only the rows chosen reach."""
    behind = {port.get_node().get_friendly_name() for port in graph.inputs if port.get_any_name() == "rows"}
    count = 0
    for node in graph.get_ordered_ops():
        if any(port.get_source_output().get_node().get_friendly_name() in behind for port in node.inputs()):
            behind.add(node.get_friendly_name())
            count += node.get_type_name() == "MatMul"
    return count


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("kind", "products"), [("llama", 5), ("qwen2", 5), ("gpt_neox", 4)])
def test_the_last_layer_runs_on_the_rows_that_are_wanted(kind: str, products: int, precision: Any) -> None:
    """Its output projection, its feed-forward block and the head; before, the head alone."""
    graph = convert.convert(tiny(kind))
    store_weights(graph, precision)
    convert.assemble(graph)
    assert products_behind_rows(graph) == 1
    take_early(graph)
    assert products_behind_rows(graph) == products
    take_early(graph)
    assert products_behind_rows(graph) == products


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_wanted_rows_have_the_bits_that_they_have_among_all(kind: str, precision: Any) -> None:
    """The last one, the last few, and those of several sequences in a pass."""
    backend = openvino.load(tiny(kind), precision=precision, threads=1, cache=None)
    whole = torch.as_tensor(backend.open().forward(TEXT))
    for keep in (1, 2, 7):
        assert torch.equal(torch.as_tensor(backend.open().forward(TEXT, keep=keep)), whole[-keep:])
    parts = [Part(backend.open(), TEXT, 1), Part(backend.open(), TEXT[:33], 3), Part(backend.open(), TEXT[9:30])]
    first, second, _ = (torch.as_tensor(rows) for rows in backend.forward(parts))
    assert torch.equal(first, whole[-1:])
    assert torch.equal(second, whole[30:33])
