"""Of a model that reads images, too, the text part runs alone, and nothing else is read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import PROMPT, Result
from transformers import AutoConfig, AutoModelForImageTextToText

from dynx.errors import UnsupportedModelError
from dynx.runtime import loading
from dynx.runtime.loading.multimodal import text_name, text_part
from dynx.runtime.quantized import unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("alone")

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 400,
    "head_dim": 8,
    "pad_token_id": 0,
}
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
QWEN = {
    "depth": 1,
    "embed_dim": 16,
    "hidden_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "intermediate_size": 32,
    "out_hidden_size": 32,
}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}

MODELS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**TEXT, "model_type": "gemma3_text", "sliding_window": 16},
        "vision_config": {**CLIP, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
    },
    "llava": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**CLIP, "model_type": "clip_vision_model"},
        "image_token_index": 399,
    },
    "qwen2_vl": {"text_config": {**TEXT, "rope_parameters": MROPE}, "vision_config": QWEN},
    "qwen3_vl": {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {**QWEN, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    },
    "mistral3": {
        "text_config": {**TEXT, "model_type": "mistral"},
        "vision_config": {**CLIP, "model_type": "pixtral", "head_dim": 8},
        "image_token_index": 399,
    },
}


def write(kind: str, folder: Path, tokenizer: Path) -> Any:
    """A tiny multimodal model with random weights, in transformers' own layout, with a language model's tokenizer."""
    config = AutoConfig.for_model(kind, **MODELS[kind])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            del name
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        if (tokenizer / file).is_file():
            (folder / file).write_bytes((tokenizer / file).read_bytes())
    return model


@pytest.mark.parametrize("kind", MODELS)
def test_the_text_part_computes_what_the_whole_computes_on_text(
    kind: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of text alone; tensors of the other parts aren't even read."""
    whole = write(kind, tmp_path / "model", tiny_folder)
    source = loading.find(str(tmp_path / "model"))
    read: list[str] = []
    tensors = unpack.Packed.tensors

    def watched(self: Any, dtype: Any) -> Any:
        for name, tensor in tensors(self, dtype):
            read.append(name)
            yield name, tensor

    monkeypatch.setattr(unpack.Packed, "tensors", watched)
    part = loading.load_causal_lm(source, device="cpu", dtype="float32")
    ids = torch.tensor([[5, 9, 14, 2, 77, 30, 31, 8]])
    with torch.no_grad():
        assert torch.allclose(part(ids).logits, whole(input_ids=ids).logits, atol=1e-4)
    assert read
    assert all(name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")) for name in read)
    assert sum(p.numel() for p in part.parameters()) < sum(p.numel() for p in whole.parameters())


def test_it_runs_from_the_command_line(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """The plan says which part runs, and the text is greedy decoding's by the whole model."""
    whole = write("gemma3", tmp_path / "model", tiny_folder)
    said = json.loads(cli("generate", "-m", tmp_path / "model", "--dry-run", "--json", PROMPT).out)["decisions"]["part"]
    assert said["value"] == "gemma3_text"
    tokenizer = loading.load_tokenizer(loading.find(str(tmp_path / "model")))
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    want = whole.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, ids.shape[1] :].tolist()
    answered = cli("generate", "-m", tmp_path / "model", PROMPT, "-n", 8, "--json")
    assert answered.code == 0, answered.err
    found = json.loads(answered.out)
    assert found["text"] == tokenizer.decode(want)[: len(found["text"])]


def test_older_names_of_tensors(tiny_folder: Path, tmp_path: Path) -> None:
    """Checkpoints from before the parts had names of their own inside the whole."""
    whole = write("llava", tmp_path / "model", tiny_folder)
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    older = {text_name(name) or name: tensor for name, tensor in tensors.items()}
    older = {f"language_model.{name}" if text_name(name) == name else name: tensor for name, tensor in older.items()}
    save_file(older, file, {"format": "pt"})
    part = loading.load_causal_lm(loading.find(str(tmp_path / "model")), device="cpu", dtype="float32")
    ids = torch.tensor([[5, 9, 14, 2]])
    with torch.no_grad():
        assert torch.allclose(part(ids).logits, whole(input_ids=ids).logits, atol=1e-4)


def test_names() -> None:
    """Every spelling of the text part; nothing of the others."""
    assert text_name("language_model.model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert text_name("model.language_model.norm.weight") == "model.norm.weight"
    assert text_name("language_model.lm_head.weight") == text_name("lm_head.weight") == "lm_head.weight"
    for other in (
        "visual.blocks.0.attn.qkv.weight",
        "model.vision_tower.x",
        "multi_modal_projector.linear_1.weight",
        "vpm.x",
    ):
        assert text_name(other) is None


def test_a_text_part_that_cannot_run_alone_is_named(changed: Callable[..., Path]) -> None:
    """By its type; a model of text alone has no parts."""
    folder = changed("other")
    config = json.loads((folder / "config.json").read_text())
    assert text_part(config) is None
    config |= {"model_type": "florence2", "vision_config": {}, "text_config": {"model_type": "bart_text"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UnsupportedModelError, match=r"other reads more than text, and its text part \(bart_text\) can't run alone"
    ):
        loading.load_causal_lm(loading.find(str(folder)), device="cpu", dtype="float32")
