"""Merged products and bypassed reshapes compute what the graph computed before, in fewer operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

openvino = pytest.importorskip("openvino", reason="OpenVINO isn't installed")

from openvino import opset15 as ops  # noqa: E402
from support.models import tiny  # noqa: E402

from dynx.runtime.backends.openvino import convert  # noqa: E402
from dynx.runtime.backends.openvino.merging import merge  # noqa: E402
from dynx.runtime.backends.openvino.weights import _quantized, _sixteen  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH, ROWS = 64, (64, 32, 32)


def stored(kind: str, rows: int, seed: int) -> Any:
    """Weights (rows, WIDTH) as `weights` stores them."""
    weight = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    if kind == "float32":
        return ops.constant(weight.numpy()).output(0)
    if kind == "bfloat16":
        return ops.convert(_sixteen(weight.bfloat16()), "f32").output(0)
    return _quantized(weight, 8 if kind == "int8" else 4)


def graph_of(outputs: Callable[[Any], list[Any]]) -> Any:
    """A graph of one input, (1, T, WIDTH)."""
    states = ops.parameter([1, -1, WIDTH], np.float32)
    return openvino.Model(outputs(states.output(0)), [states], "tested")


def count(graph: Any, kind: str) -> int:
    """Operations of a kind."""
    return sum(node.get_type_name() == kind for node in graph.get_ordered_ops())


def run(graph: Any) -> list[np.ndarray[Any, Any]]:
    """What the graph computes of five tokens, in float32."""
    states = np.random.default_rng(0).standard_normal((1, 5, WIDTH), np.float32)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    done = openvino.Core().compile_model(graph, "CPU", settings)(states)
    return [np.array(done[i]) for i in range(len(done))]


def check_same(graph: Any, products: int) -> None:
    """Merge and compare; `products` should be left."""
    before = run(graph.clone())
    merge(graph)
    assert count(graph, "MatMul") == products
    for old, new in zip(before, run(graph), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-5 * np.abs(old).max())


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4"])
def test_products_of_the_same_states_become_one(kind: str, biased: bool) -> None:
    """However weights are stored, with biases or without, one product gives each reader its part."""

    def outputs(states: Any) -> list[Any]:
        made = [ops.matmul(states, stored(kind, rows, i), False, True) for i, rows in enumerate(ROWS)]
        if biased:
            biases = [np.random.default_rng(i).standard_normal(rows, np.float32) for i, rows in enumerate(ROWS)]
            made = [ops.add(product, ops.constant(bias)) for product, bias in zip(made, biases, strict=True)]
        return [ops.sin(product).output(0) for product in made]

    graph = graph_of(outputs)
    check_same(graph, 1)
    assert count(graph, "Add") == int(biased)


def test_what_differs_stays_apart() -> None:
    """Weights stored otherwise, other states, a product with an activation, and weights that something else reads too."""

    def outputs(states: Any) -> list[Any]:
        shared = stored("bfloat16", 32, 4)
        made = [
            ops.matmul(states, stored("bfloat16", 32, 0), False, True),
            ops.matmul(states, stored("int8", 32, 1), False, True),
            ops.matmul(ops.sin(states), stored("bfloat16", 32, 2), False, True),
            ops.swish(ops.matmul(states, stored("bfloat16", 32, 3), False, True)),
            ops.matmul(states, shared, False, True),
            ops.matmul(ops.cos(states), shared, False, True),
        ]
        return [ops.sin(product).output(0) for product in made]

    check_same(graph_of(outputs), 6)


@pytest.mark.parametrize(
    ("sizes", "adds"), [((ROWS, ROWS), 1), ((ROWS, (32, 32, 64)), 3)], ids=["the same parts", "other parts"]
)
def test_sums_of_parts_become_parts_of_a_sum(sizes: tuple[tuple[int, ...], ...], adds: int) -> None:
    """Values that are split alike and added part by part are added whole; parts of other sizes stay."""

    def outputs(states: Any) -> list[Any]:
        made = [ops.matmul(ops.sin(states), stored("float32", 128, i), False, True) for i in range(2)]
        parts = [
            ops.variadic_split(value, np.int64(2), np.array(kind, np.int64))
            for value, kind in zip(made, sizes, strict=True)
        ]
        ends = [ops.sin(ops.reduce_sum(parts[1].output(i), np.array([2], np.int64), True)) for i in range(3)]
        if sizes[0] == sizes[1]:
            ends = [parts[1].output(i) for i in range(3)]
        return [ops.cos(ops.add(parts[0].output(i), end)).output(0) for i, end in enumerate(ends)]

    graph = graph_of(outputs)
    check_same(graph, 2)
    assert count(graph, "Add") == adds


def test_reshapes_of_reshapes_go_where_the_last_says_all() -> None:
    """A zero that stands for a size of the shape in between keeps that."""

    def reshaped(states: Any, *shapes: tuple[int, ...], special: bool = False) -> Any:
        for shape in shapes:
            states = ops.reshape(states, np.array(shape, np.int64), special)
        return ops.sin(states).output(0)

    graph = graph_of(lambda states: [reshaped(states, (1, -1, 4, 16), (-1, 64))])
    check_same(graph, 0)
    assert count(graph, "Reshape") == 1

    graph = graph_of(lambda states: [reshaped(states, (1, -1, 4, 16), (0, 0, 64), special=True)])
    check_same(graph, 0)
    assert count(graph, "Reshape") == 2


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_rotations_leave_heads_in_place(kind: str) -> None:
    """A converted model has no transpositions, and transformers' own function is what it was afterwards."""
    model = tiny(kind)
    module = __import__(type(model).__module__, fromlist=["x"])
    before = module.apply_rotary_pos_emb
    graph = convert.convert(model)
    assert module.apply_rotary_pos_emb is before
    wide = [node for node in graph.get_ordered_ops() if node.get_type_name() == "Transpose"]
    assert not [node for node in wide if len(node.get_output_partial_shape(0)) == 4]
