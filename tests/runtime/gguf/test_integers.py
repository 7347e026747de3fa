"""The weights that a converted model computes with are the values of its GGUF file, as the package gguf unpacks them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import gguf_files
from support.commands import train_tokenizer

pytest.importorskip("gguf")
pytest.importorskip("openvino")

import openvino as ov

from dynx.runtime.backends.openvino import convert
from dynx.runtime.backends.openvino.integers import store_integers
from dynx.runtime.backends.openvino.weights import constant_of, matrices
from dynx.runtime.gguf.header import read_header
from dynx.runtime.loading import find, load_causal_lm, stored_weights

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]

WIDTH, INNER, LAYERS = 256, 256, 2
PLACES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
EMBEDDING = "model.embed_tokens.weight"
NAMES = {
    "token_embd.weight": EMBEDDING,
    **{
        f"blk.{layer}.{theirs}.weight": f"model.layers.{layer}.{ours}.weight"
        for layer in range(LAYERS)
        for theirs, ours in PLACES.items()
    },
}
"""Names of the model's matrices by those of the file's tensors."""


class Computed:
    """A model converted for OpenVINO with a file's integers, taken apart product by product."""

    def __init__(self, path: Path) -> None:
        source = find(str(path))
        self._model = load_causal_lm(source, device="cpu", dtype="bfloat16")
        stored = stored_weights(source)
        self.graph = convert.convert(self._model, stored.exact)
        names = {p.data_ptr(): name for name, p in self._model.named_parameters()}
        self.products: dict[str, list[str]] = {}
        """Products by their input; the embedding is "ids"."""
        self._inputs: dict[str, Any] = {}
        self._nodes: dict[str, str] = {}
        for node, at, _ in list(matrices(self.graph)):
            name = names[constant_of(node.input_value(at)).data.__array_interface__["data"][0]]
            looked_up = node.get_type_name() == "Gather"
            source_of = node.input_value(1 if looked_up else 0)
            group = "ids" if looked_up else f"{source_of.get_node().get_friendly_name()}:{source_of.get_index()}"
            self._inputs[group] = source_of
            self._nodes[name if looked_up or name != EMBEDDING else "head"] = node.get_friendly_name()
            self.products.setdefault(group, []).append(name if looked_up or name != EMBEDDING else "head")
        store_integers(self.graph, names, stored)

    def values(self, group: str) -> dict[str, NDArray[np.float32]]:
        """Return the matrices of all products with the same input: what they make of the unit vectors, by reference code."""
        cut = self._inputs[group]
        rank = cut.get_partial_shape().rank.get_length()
        found = {node.get_friendly_name(): node for node in self.graph.get_ordered_ops()}
        nodes = {name: found[self._nodes[name]] for name in self.products[group]}
        if group == "ids":
            rows = self._model.config.vocab_size
            given = np.arange(rows, dtype=np.int64).reshape([1] * (rank - 1) + [rows])
            given = given.astype(cut.get_element_type().to_dtype())
        else:
            first = self.products[group][0]
            columns = self._model.get_parameter(EMBEDDING if first == "head" else first).shape[1]
            given = np.eye(columns, dtype=np.float32).reshape([1] * (rank - 2) + [columns, columns])
        parameter = ov.op.Parameter(cut.get_element_type(), ov.PartialShape(list(given.shape)))
        for target in cut.get_target_inputs():
            target.replace_source_output(parameter.output(0))
        part = ov.Model([node.output(0) for node in nodes.values()], [parameter], "part")
        part.validate_nodes_and_infer_types()
        outputs = [ov.Tensor(ov.Type.f32, ov.Shape(port.get_shape())) for port in part.outputs]
        assert part.evaluate(outputs, [ov.Tensor(given)])
        matrix = [out.data.reshape(-1, out.data.shape[-1]) for out in outputs]
        return {name: each if group == "ids" else each.T for name, each in zip(nodes, matrix, strict=True)}


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q4_K"])
def test_products_compute_with_the_values_of_the_file(tmp_path: Path, kind: str) -> None:
    """Every matrix to the last bit: embedding, head, and products that share their inputs, and so their product with offsets."""
    path = gguf_files.write(
        tmp_path / "a.gguf", "qwen3", kind, layers=LAYERS, width=WIDTH, inner=INNER, tokenizer=train_tokenizer()
    )
    want = {NAMES[each.name]: gguf_files.dequantized(each) for each in read_header(path).tensors if each.name in NAMES}
    computed = Computed(path)
    shared = [sorted(name.split(".")[-2] for name in names) for names in computed.products.values() if len(names) > 1]
    assert shared == [["k_proj", "q_proj", "v_proj"], ["gate_proj", "up_proj"]] * LAYERS
    whole = {name: values for group in computed.products for name, values in computed.values(group).items()}

    assert whole.keys() == want.keys() | {"head"}
    for name, values in whole.items():
        np.testing.assert_array_equal(values, want[EMBEDDING if name == "head" else name], err_msg=name)


def test_rows_are_in_the_order_of_transformers(tmp_path: Path) -> None:
    """Where llama.cpp keeps rotated halves in another order, offsets move with the rows."""
    from transformers import AutoModelForCausalLM

    path = gguf_files.write(
        tmp_path / "a.gguf", "llama", "Q4_1", layers=LAYERS, width=WIDTH, inner=INNER, tokenizer=train_tokenizer()
    )
    theirs = dict(
        AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype="float32").named_parameters()
    )
    computed = Computed(path)
    for group in computed.products:
        for name, values in computed.values(group).items():
            want = theirs[EMBEDDING if name == "head" else name].detach().numpy()
            np.testing.assert_array_equal(values, want, err_msg=name)


def test_offsets_of_products_with_the_same_inputs_are_one_product(tmp_path: Path) -> None:
    """Types with offsets take one further product for each input; types without take none."""
    counts = {}
    for kind in ("Q4_0", "Q4_1"):
        path = gguf_files.write(
            tmp_path / f"{kind}.gguf",
            "qwen3",
            kind,
            layers=LAYERS,
            width=WIDTH,
            inner=INNER,
            tokenizer=train_tokenizer(),
        )
        computed = Computed(path)
        counts[kind] = sum(node.get_type_name() == "MatMul" for node in computed.graph.get_ordered_ops())
        inputs = len(computed.products) - 1  # but the ids
    assert counts["Q4_1"] - counts["Q4_0"] == inputs
