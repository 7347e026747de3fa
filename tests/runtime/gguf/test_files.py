"""GGUF files load as transformers loads them, keep the file's values, or are refused in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support import gguf_files
from support.commands import PROMPT, Result, train_tokenizer

from dynx.errors import ModelError, UnsupportedModelError
from dynx.runtime.gguf.architectures import config_of
from dynx.runtime.gguf.blocks import READERS, StoredWeights, as_integers
from dynx.runtime.gguf.describe import describe
from dynx.runtime.gguf.header import TYPES, check_kind, read_header
from dynx.runtime.gguf.tensors import fill, raw_rows, unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

gguf = pytest.importorskip("gguf")

WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def _model(path: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    header = read_header(path)
    settings = {key: value for key, value in config_of(header, path.name).items() if value is not None}
    config = AutoConfig.for_model(**settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    fill(model, header, path.name)
    return model.eval()


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["F32", "Q4_1", "Q8_0"])
def test_logits_are_those_of_transformers(tmp_path: Path, architecture: str, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    path = gguf_files.write(tmp_path / "a.gguf", architecture, kind)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        torch.testing.assert_close(_model(path)(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", WRITTEN)
def test_stored_values_are_bit_equal(tmp_path: Path, kind: str) -> None:
    header = read_header(gguf_files.write(tmp_path / "a.gguf", "qwen3", kind))
    tensor = next(each for each in header.tensors if each.name == "blk.0.ffn_up.weight")
    reader = next(each for each in gguf.GGUFReader(tmp_path / "a.gguf").tensors if each.name == tensor.name)
    want = gguf.quants.dequantize(reader.data, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(unpack(raw_rows(tensor), kind), want)
    found = StoredWeights(header, "a.gguf").integers("model.layers.0.mlp.up_proj.weight")
    assert (found is not None) == (kind in READERS)
    if found is not None:
        whole = found.values * found.scales
        np.testing.assert_array_equal(
            (whole if found.offsets is None else whole + found.offsets).reshape(want.shape), want
        )


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind not in WRITTEN])
def test_integers_of_random_blocks_are_bit_equal(tmp_path: Path, kind: str) -> None:
    columns = 2 * next(values for name, values, _ in TYPES.values() if name == kind)
    raw = gguf_files.random_blocks(np.random.default_rng(3), kind, 8, columns, 0.01)
    number = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("t.weight", raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tensor,) = read_header(tmp_path / "a.gguf").tensors
    found = as_integers(tensor)
    assert found is not None
    assert found.bits == 8 or (found.values.min() >= (-8 if found.offsets is None else 0) and found.values.max() <= 15)
    whole = found.values * found.scales
    whole = whole if found.offsets is None else whole + found.offsets
    assert tensor.shape == (8, columns)
    np.testing.assert_array_equal(whole.reshape(tensor.shape), gguf.quants.dequantize(raw, number))


@pytest.mark.parametrize("part", [0.01, 0.5, 0.999])
def test_truncated(tmp_path: Path, part: float) -> None:
    path = gguf_files.write(tmp_path / "a.gguf", "llama")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)] if part > 0.1 else data[:100])
    with pytest.raises(ModelError, match="truncated"):
        read_header(path)


def test_other_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"PK\3\4" * 20)
    with pytest.raises(ModelError, match="is not a GGUF file"):
        read_header(path)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.touch()
    with pytest.raises(ModelError, match=r"a\.gguf is empty"):
        read_header(path)


def test_unknown_tensor_type(tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "a.gguf", "llama")
    data = path.read_bytes()
    at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    path.write_bytes(data[:at] + (99).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(UnsupportedModelError, match=r"attn_q\.weight is of type 99"):
        read_header(path)


@pytest.mark.parametrize(
    ("architecture", "metadata", "words"),
    [
        ("clip", {}, "projector of pictures"),
        ("whisper", {}, "speech recognizer"),
        ("bert", {}, r"an encoder \(bert\)"),
        ("llama", {"general__type": "adapter"}, "a LoRA adapter"),
    ],
)
def test_other_kinds(tmp_path: Path, architecture: str, metadata: dict[str, str], words: str) -> None:
    header = read_header(gguf_files.write(tmp_path / "a.gguf", architecture, **metadata))
    with pytest.raises(UnsupportedModelError, match=words):
        check_kind(header, "a.gguf")


def test_unsupported_architecture(tmp_path: Path) -> None:
    header = read_header(gguf_files.write(tmp_path / "a.gguf", "mamba"))
    with pytest.raises(UnsupportedModelError, match="architecture mamba"):
        config_of(header, "a.gguf")


def test_missing_part(tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "a-00001-of-00003.gguf", "llama")
    with pytest.raises(ModelError, match=r"lacks a-00002-of-00003\.gguf \(2 of 3 parts missing\)"):
        read_header(path)


@pytest.mark.usefixtures("alone")
def test_a_tokenizer_without_merges_is_named(tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "a.gguf", "llama")
    with pytest.raises(
        ModelError, match=r"a\.gguf's tokenizer is incomplete: its metadata lacks tokenizer\.ggml\.merges"
    ):
        describe(path, path.name)


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_usable_file_is_one_line_on_the_command_line(cli: Callable[..., Result], tmp_path: Path) -> None:
    """Missing, empty, cut, of another kind, without a chat template: exit code, nothing on stdout, one line and a hint."""
    whole = gguf_files.write(tmp_path / "a.gguf", kind="Q8_0", tokenizer=train_tokenizer())
    for name, part in (("empty", 0), ("head", 100), ("cut", whole.stat().st_size - 64)):
        (tmp_path / f"{name}.gguf").write_bytes(whole.read_bytes()[:part])
    gguf_files.write(tmp_path / "speech.gguf", "whisper")
    for words, code, said in (
        (("nosuch.gguf",), 1, "there is no file nosuch.gguf"),
        ((tmp_path / "empty.gguf",), 1, "empty.gguf is empty"),
        ((tmp_path / "head.gguf",), 1, "head.gguf is truncated: it ends within its header"),
        ((tmp_path / "cut.gguf",), 1, "cut.gguf is truncated"),
        ((tmp_path / "speech.gguf",), 1, "speech.gguf is a speech recognizer"),
        ((whole, "--chat"), 2, "a.gguf has no chat template"),
    ):
        result = cli("generate", "-m", words[0], PROMPT, "-n", 4, *words[1:])
        assert (result.code, result.out) == (code, ""), result.err
        first, *rest = result.err.splitlines()
        assert first.startswith("dynx: ")
        assert said in first
        assert len(rest) <= 1
