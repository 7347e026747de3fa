"""Quantized folders load as ordinary models with the weights that their formats say, or are refused by name."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import packers
from support.commands import PROMPT, Result
from support.models import tiny
from torch import nn

from dynx.errors import ModelError, UnsupportedModelError
from dynx.runtime import loading

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    Cli = Callable[..., Result]
    Made = tuple[dict[str, Tensor], Tensor]

pytestmark = pytest.mark.usefixtures("alone")

NF4 = torch.linspace(-1, 1, 16).tolist()
GROUP = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True}


def _int8(weight: Tensor) -> Made:
    scale = weight.abs().amax(1, keepdim=True) / 127
    stored = (weight / scale).round().to(torch.int8)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def _float8(weight: Tensor) -> Made:
    scale = weight.abs().max() / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale": scale, "input_scale": torch.ones(())}, stored.float() * scale


def _bytes8(weight: Tensor) -> Made:
    parts, _ = _int8(weight)
    peak = weight.abs().amax(1)
    return {"weight": parts["weight"], "SCB": peak}, parts["weight"].float() * (peak[:, None] / 127)


def _mxfp4(weight: Tensor) -> Made:
    packed, exponents, want = packers.mxfp4(weight)
    return {"weight_packed": packed, "weight_scale": exponents}, want


def _compressed(kind: str, weights: dict[str, Any]) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": groups, "ignore": ["lm_head"]}


FORMATS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Made]]] = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True},
        lambda w: packers.gptq(w, 4, 16, order=True),
    ),
    "gptq 3": ({"quant_method": "gptq", "bits": 3, "group_size": 32}, lambda w: packers.gptq(w, 3, 32)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}, lambda w: packers.awq(w, 16)),
    "pack": (
        _compressed("pack-quantized", GROUP),
        lambda w: packers.compressed_integers(w, 4, 16, symmetric=True),
    ),
    "pack asymmetric": (
        _compressed("pack-quantized", {**GROUP, "symmetric": False}),
        lambda w: packers.compressed_integers(w, 4, 16, symmetric=False),
    ),
    "int8": (_compressed("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}), _int8),
    "float8": (_compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}), _float8),
    "nvfp4": (_compressed("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "group_size": 16}), packers.nvfp4),
    "mxfp4": (_compressed("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "group_size": 32}), _mxfp4),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [16, 16]}, lambda w: packers.float8_blocks(w, 16)),
    "nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        lambda w: packers.bitsandbytes4(w, NF4, "nf4", nested=True),
    ),
    "llm.int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, _bytes8),
}


def quantize(
    folder: Path, settings: dict[str, Any], make: Callable[[Tensor], Made], *, shards: int = 1
) -> dict[str, Tensor]:
    """Rewrite a folder's linear layers in blocks, and return the weights that they stand for."""
    tensors = load_file(folder / "model.safetensors")
    linear = [name for name in tensors if name.endswith("_proj.weight")]
    stored, want = {}, dict(tensors)
    for name, tensor in tensors.items():
        if name not in linear:
            stored[name] = tensor
            continue
        parts, want[name] = make(tensor.float())
        stored |= {name.removesuffix("weight") + own: part.contiguous().clone() for own, part in parts.items()}
    (folder / "model.safetensors").unlink()
    names = list(stored)
    index = {}
    for number in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number::shards]
        save_file({name: stored[name] for name in part}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return want


def loaded(folder: Path, dtype: str = "float32") -> Any:
    """The folder's model, unpacked."""
    return loading.load_causal_lm(loading.find(str(folder)), device="cpu", dtype=dtype)


def assert_equal(model: Any, want: dict[str, Tensor], dtype: torch.dtype) -> None:
    """All weights of the model are those wanted, rounded to `dtype`."""
    found = model.state_dict()
    assert set(want) <= set(found)
    for name, tensor in want.items():
        assert torch.equal(found[name], tensor.to(dtype)), name
    assert all(type(module) is nn.Linear for name, module in model.named_modules() if name.endswith("_proj"))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_quantized_folder_is_unpacked_exactly(kind: str, changed: Callable[..., Path]) -> None:
    """Every weight is the format's value, rounded once to the run's precision."""
    folder = changed("quantized")
    want = quantize(folder, *FORMATS[kind])
    assert_equal(loaded(folder, "bfloat16"), want, torch.bfloat16)


def test_parts_of_a_module_may_lie_in_several_files(changed: Callable[..., Path]) -> None:
    """Numbers in one shard, scales in the next."""
    folder = changed("quantized")
    want = quantize(folder, *FORMATS["gptq"], shards=3)
    loading.check_causal_lm(loading.find(str(folder)))
    assert_equal(loaded(folder), want, torch.float32)


def test_modelopt_says_so_in_a_file_of_its_own(changed: Callable[..., Path]) -> None:
    """`hf_quant_config.json`, FP8 and NVFP4."""
    folder = changed("quantized")
    want = quantize(folder, {}, _float8)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    facts = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(facts))
    assert_equal(loaded(folder), want, torch.float32)
    facts["quantization"] = {"quant_algo": "W4A8_AWQ"}
    (folder / "hf_quant_config.json").write_text(json.dumps(facts))
    with pytest.raises(UnsupportedModelError, match="ModelOpt as W4A8_AWQ"):
        loaded(folder)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "awq for other kernels": (
        {"quant_method": "awq", "version": "gemv"},
        "quantized can't be unpacked.*AWQ with version gemv",
    ),
    "gptq of odd width": ({"quant_method": "gptq", "bits": 5}, "GPTQ with bits 5"),
    "sparse": (
        {**_compressed("pack-quantized", GROUP), "sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparse-24-bitmask of compressed-tensors",
    ),
    "marlin": (_compressed("marlin-24", GROUP), "format marlin-24 of compressed-tensors"),
    "rotated": ({**_compressed("pack-quantized", GROUP), "transform_config": {"u": {}}}, "rotated"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_unpacked_is_named(kind: str, changed: Callable[..., Path]) -> None:
    """The model, the format and the setting, in one line."""
    settings, words = REFUSED[kind]
    folder = changed("quantized")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    with pytest.raises(UnsupportedModelError, match=words):
        loading.check_causal_lm(loading.find(str(folder)))


def test_parts_that_are_missing_or_unknown_are_named(changed: Callable[..., Path], tmp_path: Path) -> None:
    """Never weights without their scales."""
    folder = changed("quantized")
    quantize(folder, *FORMATS["fp8"])
    file = folder / "model.safetensors"
    whole = load_file(file)
    name = next(name for name in whole if name.endswith("weight_scale_inv"))
    save_file({key: tensor for key, tensor in whole.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(
        UnsupportedModelError, match=r"quantized can't be unpacked: its .* is in f8_e4m3, without scales"
    ):
        loaded(folder)

    shutil.rmtree(folder)
    folder = changed("quantized")
    quantize(folder, *FORMATS["gptq"])
    whole = load_file(file)
    name = next(name for name in whole if name.endswith("qzeros"))
    whole[name] = whole[name][:, :1].clone()
    save_file(whole, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"GPTQ, 4 bits weights of .* can't be unpacked"):
        loaded(folder)


def test_formats_without_an_unpacker_say_what_to_install(cli: Cli, changed: Callable[..., Path]) -> None:
    """Before anything is loaded."""
    folder = changed("quantized")
    config = json.loads((folder / "config.json").read_text())
    settings = {"quant_method": "hqq", "quant_config": {}}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    refused = cli("generate", "-m", folder, "--dry-run", PROMPT)
    assert refused.code == 1
    assert "quantized's weights are quantized by HQQ" in refused.err
    assert "pip install hqq" in refused.err


def test_a_quantized_folder_on_the_command_line(cli: Cli, changed: Callable[..., Path]) -> None:
    """The plan says what becomes of the weights; the text is that of the same weights in an ordinary folder."""
    folder, plain = changed("quantized"), changed("plain")
    want = quantize(folder, *FORMATS["gptq"])
    save_file(want, plain / "model.safetensors", {"format": "pt"})
    said = json.loads(cli("generate", "-m", folder, "--dry-run", "--json", PROMPT).out)["decisions"]
    assert said["weights"]["value"] == "unpacked"
    assert said["weights"]["reason"].startswith("GPTQ, 4 bits, unpacked to float32")
    assert (
        said["dtype"]["value"]
        == json.loads(cli("generate", "-m", plain, "--dry-run", "--json", PROMPT).out)["decisions"]["dtype"]["value"]
    )
    texts = [cli("generate", "-m", each, PROMPT, "-n", 12).out for each in (folder, plain)]
    assert texts[0] == texts[1] != ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings", [{"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, {"bnb_4bit_quant_type": "fp4"}]
)
def test_unpacked_as_bitsandbytes_does(settings: dict[str, Any], tmp_path: Path) -> None:
    """What the package itself writes, and its own function for unpacking; rows are whole blocks, as its processor code needs."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = tmp_path / "base"
    tiny("llama", hidden_size=64, intermediate_size=128).save_pretrained(folder)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, **settings)
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "saved")
    ours = loaded(tmp_path / "saved", "bfloat16")
    seen = 0
    for name, module in theirs.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = module.weight
            want = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            assert torch.equal(ours.get_submodule(name).weight, want), name
            seen += 1
    assert seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["pack", "pack asymmetric", "int8", "float8", "nvfp4", "mxfp4"])
def test_unpacked_as_compressed_tensors_does(kind: str, changed: Callable[..., Path]) -> None:
    """transformers with the package, told to dequantize, gives the same weights up to the rounding of 16-bit arithmetic."""
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    folder = changed("quantized")
    quantize(folder, *FORMATS[kind])
    config = CompressedTensorsConfig(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    ours = loaded(folder).state_dict()
    for name, want in theirs.state_dict().items():
        if name in ours:
            assert torch.allclose(ours[name], want.float(), rtol=2e-2, atol=1e-5), name
