"""An adapter in a model's folder is never passed over in silence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support import pipelines
from support.classifier_folders import write_text_classifier
from support.commands import PROMPT, Result

from dynx.runtime.adapters import adapters, base_of, unapplied

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., Result]

STYLES = {
    "peft": "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
    "diffusers": "unet.down_blocks.0.attentions.0.to_q.lora.up.weight",
    "old diffusers": "down_blocks.0.attn1.processor.to_q_lora.down.weight",
    "kohya": "lora_unet_down_blocks_0_to_q.lora_down.weight",
    "lycoris": "lycoris_unet_to_q.hada_w1_a.hada_w1_a",
}


def put(file: Path, *names: str) -> None:
    """Tensors of these names in a file."""
    save_file({name: torch.zeros(2, 2) for name in names}, file)


def put_adapter(folder: Path, base: str = "somebody/base") -> None:
    """As peft saves one."""
    put(folder / "adapter_model.safetensors", STYLES["peft"])
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))


@pytest.mark.parametrize("style", STYLES)
def test_adapters_are_known_by_their_tensors(tmp_path: Path, style: str) -> None:
    """Whatever the file is called; names alone suffice for what peft and diffusers write."""
    put(tmp_path / "my-style.safetensors", STYLES[style])
    assert adapters(tmp_path) == ["my-style.safetensors"]


def test_what_is_no_adapter(tmp_path: Path) -> None:
    """A model that has adapters of its own among its weights, other weights, damaged and empty files."""
    put(tmp_path / "model.safetensors", STYLES["peft"])
    put(tmp_path / "diffusion_pytorch_model.fp16.safetensors", STYLES["diffusers"])
    put(tmp_path / "heads.safetensors", "flora.weight", "exploration.bias", "a.b")
    put(tmp_path / "mixed.safetensors", STYLES["peft"], "a.weight", "b.weight")
    put(tmp_path / "none.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\xff" * 20)

    assert adapters(tmp_path) == []
    assert adapters(tmp_path / "missing") == []


def test_pickled_adapters_and_lone_configs(tmp_path: Path) -> None:
    """Are known by name; the base is what the config says, if it can be printed."""
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "a\\u001b[2J"}')
    assert (adapters(tmp_path), base_of(tmp_path)) == (["adapter_config.json"], None)
    for name in ("adapter_model.bin", "pytorch_lora_weights.bin"):
        (tmp_path / name).touch()
    assert adapters(tmp_path) == ["adapter_model.bin", "pytorch_lora_weights.bin"]


def test_a_language_model_with_an_adapter_is_refused(cli: Cli, changed: Callable[..., Path], tmp_path: Path) -> None:
    """transformers would apply it or not, as peft is installed or not; and an adapter alone is no model."""
    folder = changed("tuned")
    put_adapter(folder)
    alone = tmp_path / "alone"
    alone.mkdir()
    put_adapter(alone)
    tuned, bare, drawn = (
        cli("generate", "-m", folder, PROMPT),
        cli("generate", "-m", alone, PROMPT),
        cli("draw", "-m", alone, "x"),
    )

    assert (tuned.code, tuned.out) == (1, "")
    assert tuned.err.splitlines()[0] == (
        "dynx: tuned has a LoRA adapter (adapter_model.safetensors) among its weights, where it isn't applied"
    )
    for result in (bare, drawn):
        assert (result.code, result.err.splitlines()[0]) == (
            1,
            "dynx: alone is an adapter for somebody/base, which isn't found: no model somebody/base: not shipped, no such "
            "folder, not in the hub's local cache",
        )


def test_a_classifier_with_an_adapter_is_refused(cli: Cli, tmp_path: Path) -> None:
    """As a language model is."""
    folder = write_text_classifier(tmp_path / "bert")
    put_adapter(folder)
    result = cli("classify", "-m", folder, "a text")

    assert (result.code, result.out) == (1, "")
    assert "bert has a LoRA adapter (adapter_model.safetensors)" in result.err


def test_a_pipeline_with_an_adapter_says_that_it_is_not_applied(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning, and in the JSON; the picture is what diffusers draws with that folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "styled"
    pipelines.stable_diffusion().save_pretrained(folder)
    put(folder / "pytorch_lora_weights.safetensors", STYLES["diffusers"])
    put(folder / "unet" / "style.safetensors", STYLES["kohya"])
    result = cli("draw", "-m", folder, "a cat", "--seed", 1, "--steps", 10, "--json")
    own = diffusers.DiffusionPipeline.from_pretrained(folder)(
        "a cat", num_inference_steps=10, generator=torch.Generator().manual_seed(1), output_type="np"
    ).images[0]

    words = (
        "pytorch_lora_weights.safetensors, unet/style.safetensors are LoRA adapters and aren't applied: "
        "the pictures are the pipeline's own without them"
    )
    assert (result.code, result.err) == (0, f"dynx: styled: {words}\n")
    assert result.document["decisions"]["adapters"] == {"value": "none", "reason": words}
    np.testing.assert_array_equal(np.asarray(Image.open("a-cat.png")), (own * 255).round().astype("uint8"))
    assert unapplied(tmp_path) == []


def test_an_adapter_that_peft_would_apply_in_a_part_is_refused(cli: Cli, tmp_path: Path) -> None:
    """A text encoder is transformers' to load."""
    folder = tmp_path / "styled"
    pipelines.stable_diffusion().save_pretrained(folder)
    put_adapter(folder / "text_encoder")
    result = cli("draw", "-m", folder, "a cat")

    assert result.code == 1
    assert "styled/text_encoder has a LoRA adapter (adapter_model.safetensors)" in result.err
