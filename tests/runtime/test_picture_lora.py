"""Adapters of pipelines: folded weights give the pictures of the layers that the adapter describes, whatever its names' style."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import pipelines

from dynx.diffusion import make_plan
from dynx.diffusion.plan import ImageGeneratorRequest
from dynx.errors import InvalidInput, ModelError, UnsupportedModelError
from dynx.runtime import picture_lora

if TYPE_CHECKING:
    from pathlib import Path

ASKED = pipelines.request("stable-diffusion", (3,))
LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
TEXT = "encoder.layers.0.self_attn.q_proj"


def halves(module: Any, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B for a layer, large enough to be seen."""
    made = torch.Generator().manual_seed(seed)
    shape = tuple(module.weight.shape)
    first = torch.randn(rank, *shape[1:], generator=made) / 4
    second = torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=made) / 4
    return first, second


def by_layers(changes: list[tuple[str, str, torch.Tensor, torch.Tensor, float]]) -> np.ndarray:
    """The picture of a pipeline whose layers add scale · B(A(x)), as an adapter is defined."""
    pipe = pipelines.stable_diffusion()
    for slot, path, first, second, scale in changes:
        module = getattr(pipe, slot).get_submodule(path)

        def added(m: Any, given: Any, out: Any, a: Any = first, b: Any = second, s: float = scale) -> Any:
            if a.dim() == 2:
                return out + s * torch.nn.functional.linear(torch.nn.functional.linear(given[0], a), b)
            down = torch.nn.functional.conv2d(given[0], a, stride=m.stride, padding=m.padding)
            return out + s * torch.nn.functional.conv2d(down, b)

        module.register_forward_hook(added)
    return pipelines.directly("", ASKED, pipe)


def folded(*texts: str) -> np.ndarray:
    pipe = pipelines.stable_diffusion()
    picture_lora.fold(pipe, picture_lora.find(texts), "tiny")
    return pipelines.directly("", ASKED, pipe)


def tensors() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    pipe = pipelines.pipeline("stable-diffusion")
    named = {"unet": (LINEAR, CONVOLUTION), "text_encoder": (TEXT,)}
    return {
        f"{slot}.{path}": halves(getattr(pipe, slot).get_submodule(path), 3, len(path))
        for slot, paths in named.items()
        for path in paths
    }


def changes(scale: float) -> list[tuple[str, str, torch.Tensor, torch.Tensor, float]]:
    return [(*name.split(".", 1), *both, scale) for name, both in tensors().items()]  # type: ignore[misc]


def saved(path: Path, state: dict[str, torch.Tensor], **metadata: str) -> str:
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata=metadata or None)
    return str(path)


def diffusers_file(folder: Path) -> str:
    state = {}
    for name, (first, second) in tensors().items():
        state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = first, second
    return saved(folder / "tone.safetensors", state)


def test_the_picture_is_that_of_the_layers_it_describes(tmp_path: Path) -> None:
    """Linear layers, convolutions and a text encoder; half the weight is half the change; the adapter is seen at all."""
    file = diffusers_file(tmp_path)
    own = pipelines.directly("", ASKED, pipelines.stable_diffusion())
    for text, scale in ((file, 1.0), (f"{file}:0.5", 0.5), (f"{tmp_path}:-1", -1.0)):
        want = by_layers(changes(scale))
        assert np.abs(want - own).max() > 0.01
        assert np.abs(folded(text) - want).max() < 1e-4


def test_kohyas_names_and_alphas(tmp_path: Path) -> None:
    """The names of other trainers, with alpha / r as the scale."""
    state: dict[str, torch.Tensor] = {}
    for name, (first, second) in tensors().items():
        slot, path = name.split(".", 1)
        if path == CONVOLUTION:
            continue
        prefix = "lora_unet_" if slot == "unet" else "lora_te_text_model_"
        key = prefix + path.replace(".", "_")
        state |= {f"{key}.lora_down.weight": first, f"{key}.lora_up.weight": second, f"{key}.alpha": torch.tensor(6.0)}
    want = by_layers([each for each in changes(6.0 / 3) if each[1] != CONVOLUTION])
    assert np.abs(folded(saved(tmp_path / "kohya.safetensors", state)) - want).max() < 1e-4


def test_ranks_and_alphas_that_diffusers_writes_down(tmp_path: Path) -> None:
    """Its metadata's alpha scales the change."""
    first, second = tensors()[f"unet.{LINEAR}"]
    state = {f"unet.{LINEAR}.lora_A.weight": first, f"unet.{LINEAR}.lora_B.weight": second}
    file = saved(
        tmp_path / "tone.safetensors", state, lora_adapter_metadata='{"unet.r": 3, "unet.lora_alpha": 6, "unet.x": 0}'
    )
    want = by_layers([("unet", LINEAR, first, second, 2.0)])
    assert np.abs(folded(file) - want).max() < 1e-4


def test_several_add_up_and_each_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of both; a profile is about weights with the adapters in them, and their weights."""
    monkeypatch.setenv("DYNX_CACHE_DIR", str(tmp_path / "cache"))
    file = diffusers_file(tmp_path)
    assert np.abs(folded(f"{file}:0.25", f"{file}:0.75") - by_layers(changes(1.0))).max() < 1e-4
    pipelines.stable_diffusion().save_pretrained(tmp_path / "tiny")
    plans = [
        make_plan(ImageGeneratorRequest(str(tmp_path / "tiny"), lora=lora))
        for lora in ((), (file,), (f"{file}:0.5",), (file, file))
    ]
    assert len({plan.key.id for plan in plans}) == len({plan.weights for plan in plans}) == 4
    assert "tone:0.5" in str(plans[2].decisions.adapters)


def test_two_pictures_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing with an adapter leaves nothing behind for the next one without."""
    from dynx.diffusion import assemble
    from dynx.diffusion.generator import ImageGenerator

    monkeypatch.setenv("DYNX_CACHE_DIR", str(tmp_path / "cache"))
    file = diffusers_file(tmp_path)
    pipelines.stable_diffusion().save_pretrained(tmp_path / "tiny")

    def drawn(*lora: str) -> Any:
        request = ImageGeneratorRequest(str(tmp_path / "tiny"), lora=lora, steps=10)
        return ImageGenerator(assemble(make_plan(request))).draw("a red cat", 3).pixels

    without, with_it, again = drawn(), drawn(file), drawn()
    assert np.abs(without - with_it).max() > 0.01
    assert np.array_equal(without, again)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (lambda s: {k.replace("attn2", "attn9"): v for k, v in s.items()}, ModelError, "adapter for another model"),
        (
            lambda s: {k: v[:, :5] if "lora_A" in k else v for k, v in s.items()},
            ModelError,
            "adapter for another model",
        ),
        (lambda s: {k: v for k, v in s.items() if "lora_B" not in k}, ModelError, "one half"),
        (lambda s: {k: v * torch.nan for k, v in s.items()}, ModelError, "aren't finite"),
        (lambda s: {f"unet.{LINEAR}.hada_w1_a": torch.ones(2, 2)}, UnsupportedModelError, "no plain LoRA"),
        (lambda s: {"weight": torch.ones(2, 2)}, ModelError, "no place for weight"),
    ],
    ids=["names", "shapes", "half", "nan", "loha", "none"],
)
def test_adapters_that_do_not_fit_are_one_line(tmp_path: Path, change: Any, kind: Any, said: str) -> None:
    """Another model's, a damaged one and other kinds each say so."""
    first, second = tensors()[f"unet.{LINEAR}"]
    state = {f"unet.{LINEAR}.lora_A.weight": first, f"unet.{LINEAR}.lora_B.weight": second}
    file = saved(tmp_path / "odd.safetensors", change(state))
    with pytest.raises(kind, match=said) as caught:
        folded(file)
    assert "\n" not in str(caught.value)


def test_what_is_no_adapter(tmp_path: Path) -> None:
    """Missing files, folders, weights that are no numbers, pickles and torn files."""
    file = diffusers_file(tmp_path)
    for text, kind in ((f"{file}:much", InvalidInput), ("none.safetensors", ModelError), (" ", InvalidInput)):
        with pytest.raises(kind):
            picture_lora.find([text])
    (tmp_path / "old.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="no safetensors file"):
        picture_lora.find([str(tmp_path / "old.bin")])
    (tmp_path / "torn.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="can't be read"):
        folded(str(tmp_path / "torn.safetensors"))
    with pytest.raises(ModelError, match="2 safetensors files"):
        picture_lora.find([str(tmp_path)])
    with pytest.raises(UnsupportedModelError, match="takes no adapters"):
        picture_lora.fold(pipelines.ddim(), picture_lora.find([file]), "bare")
