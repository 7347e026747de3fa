"""LoRA adapters of diffusers' pipelines, folded into the weights when a pipeline is loaded.

An adapter is a file of safetensors, in the names of diffusers, of peft or of kohya. diffusers' own loader translates the names;
the sum W + weight · alpha / r · B·A is made here, in float32, and rounded once. So a folded pipeline runs on every backend at
the speed of its base, and no picture can be influenced by another one's adapters.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.errors import InvalidInput, ModelError, UnsupportedModelError
from dynx.runtime.lora import WEIGHT, Adapter
from dynx.runtime.weights import content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

DEFAULT_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""What diffusers and peft call an adapter's file in its folder."""

OTHER_KINDS = re.compile(
    r"\.(hada_w1|hada_w2|lokr_w1|lokr_w2|ia3_l|oft_blocks|diff|diff_b|dora_scale|lora_magnitude_vector)"
)
"""Tensors of adapters that aren't B·A alone: LoHa, LoKr, IA³, OFT, whole differences, DoRA."""

PART = re.compile(r"(?P<module>.+)\.(?P<part>lora_A|lora_B)\.(?:default\.)?(?P<kind>weight|bias)")

METADATA_KEY = "lora_adapter_metadata"
"""Key of a file's metadata under which diffusers keeps ranks and alphas."""


@dataclass(frozen=True)
class PictureAdapter(Adapter):
    """An adapter of a pipeline: a file, and the factor of the change that it makes."""

    file: Path = Path()

    def facts(self) -> list[Any]:
        """Return what identifies it: every byte, and the weight. Raises OSError."""
        return [content_hash(self.file), self.weight]


def find(texts: Sequence[str]) -> tuple[PictureAdapter, ...]:
    """Return the adapters called `texts`: files or folders, each maybe with a weight after a colon.

    Raises ModelError for one that isn't there, InvalidInput for a weight that is no number.
    """
    return tuple(_found(text) for text in texts)


def _found(text: str) -> PictureAdapter:
    whole, weight = text.strip(), 1.0
    matched = WEIGHT.fullmatch(whole)
    if matched and not Path(whole).expanduser().exists():
        whole, weight = matched[1], float(matched[2])
    if not whole or abs(weight) == float("inf"):
        raise InvalidInput(f"`lora`: {text!r} names no adapter", hint="a file, and after a colon its weight")
    path = Path(whole).expanduser()
    if path.is_dir():
        named = [path / name for name in DEFAULT_FILES if (path / name).is_file()]
        files = named or sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            what = "no safetensors file" if not files else f"{len(files)} safetensors files"
            raise ModelError(f"{path} has {what}", hint="`lora` takes the adapter's file")
        path = files[0]
    if not path.is_file():
        before, colon, after = whole.rpartition(":")
        if colon and Path(before).expanduser().exists():
            raise InvalidInput(f"`lora`: {after!r} is no weight", hint=f"a number, as in {before}:0.5")
        raise ModelError(f"there is no adapter {whole}", hint="`lora` takes a safetensors file")
    if path.suffix != ".safetensors":
        raise ModelError(f"{path} is no safetensors file", hint="a pickle can run any code; convert it first")
    return PictureAdapter(path.stem, path.parent, weight, path)


def fold(pipe: Any, adapters: Sequence[PictureAdapter], name: str) -> None:
    """Add adapters to the weights of a pipeline called `name`, in place, in their order.

    Raises ModelError for one that is damaged or made for another model, UnsupportedModelError for one of another kind.
    """
    import torch

    changed: dict[tuple[str, str], Any] = {}
    with torch.no_grad():
        for adapter in adapters:
            for slot, modules in _by_part(pipe, adapter, name).items():
                network = getattr(pipe, slot)
                for path, parts in modules.items():
                    module = _module(network, path, slot, adapter, name)
                    key = slot, path
                    held = changed.setdefault(key, (module, module.weight.detach().float().clone()))[1]
                    held += _change(adapter, f"{slot}.{path}", parts, tuple(held.shape), name).to(held.device)
        for module, weight in changed.values():
            module.weight.data.copy_(weight)


def _by_part(pipe: Any, adapter: PictureAdapter, name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return an adapter's tensors by the pipeline's part, the module in it, and A, B and the scale."""
    state, metadata = _read(adapter)
    if (other := next((key for key in state if OTHER_KINDS.search(key)), None)) is not None:
        kind = OTHER_KINDS.search(other)
        raise UnsupportedModelError(f"{adapter.name} is no plain LoRA: it holds {kind[1] if kind else other}")
    translate = getattr(pipe, "lora_state_dict", None)
    if translate is None:
        raise UnsupportedModelError(f"{name} takes no adapters: diffusers has no LoRA loader for {type(pipe).__name__}")
    unet = getattr(pipe, "unet", None)
    try:
        found = translate(dict(state), **({} if unet is None else {"unet_config": unet.config}))
    except Exception as e:  # noqa: BLE001 - any, about names that anybody wrote
        said = next(iter(str(e).splitlines()), "") or type(e).__name__
        raise ModelError(f"{adapter.name} can't be read as a LoRA: {said[:160]}") from None
    tensors, alphas = (found[0], found[1] or {}) if isinstance(found, tuple) else (found, {})
    slots = [slot for slot in getattr(pipe, "_lora_loadable_modules", ()) if getattr(pipe, slot, None) is not None]
    out: dict[str, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    left = []
    for slot in slots:
        mine = {k.removeprefix(f"{slot}."): v for k, v in tensors.items() if k.startswith(f"{slot}.")}
        tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{slot}.")}
        for key, tensor in _in_peft_names(mine, slot, getattr(pipe, slot)).items():
            matched = PART.fullmatch(key)
            if matched is None:
                left.append(f"{slot}.{key}")
                continue
            if matched["kind"] == "bias":
                raise UnsupportedModelError(f"{adapter.name} changes biases, which isn't folded")
            out[slot][matched["module"]][matched["part"]] = tensor
        known = {k.removeprefix(f"{slot}."): v for k, v in alphas.items() if k.startswith(f"{slot}.")}
        _scales(out[slot], _alphas_in_peft_names(known, slot, getattr(pipe, slot)), metadata, slot)
    left += list(tensors)
    if left:
        raise ModelError(f"{adapter.name} is an adapter for another model: {name} has no place for {left[0]}")
    if not any(out.values()):
        raise ModelError(f"{adapter.name} holds no LoRA")
    return out


def _read(adapter: PictureAdapter) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file and what diffusers wrote about them. Raises ModelError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter.file, framework="pt") as opened:
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is no dict
            text = (opened.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError, ValueError) as e:
        raise ModelError(f"{adapter.file} can't be read: {str(e).splitlines()[0]}") from None
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = {}
    return state, found if isinstance(found, dict) else {}


def _in_peft_names(state: Mapping[str, Tensor], slot: str, module: nn.Module) -> dict[str, Tensor]:
    """Translate the names of one part's tensors to peft's: MODULE.lora_A.weight and MODULE.lora_B.weight."""
    from diffusers.utils import state_dict_utils as names

    found = dict(state)
    if not found or all("lora_A" in key or "lora_B" in key for key in found):
        pass
    elif slot.startswith("text_encoder"):
        found = names.convert_state_dict(found, {**names.DIFFUSERS_OLD_TO_PEFT, **names.DIFFUSERS_TO_PEFT})
    else:
        found = names.convert_unet_state_dict_to_peft(found)
    if slot.startswith("text_encoder") and not hasattr(module, "text_model"):
        found = {key.removeprefix("text_model."): tensor for key, tensor in found.items()}
    return found


def _alphas_in_peft_names(alphas: Mapping[str, float], slot: str, module: nn.Module) -> dict[str, float]:
    """Return alphas by module; diffusers names each by its tensor of A or by the module, with "alpha" at the end."""
    out = {}
    for key, value in alphas.items():
        name = key.removesuffix(".alpha")
        if name.endswith(".weight"):
            name = next(iter(_in_peft_names({name: value}, slot, module)))  # type: ignore[dict-item]
        elif slot.startswith("text_encoder") and not hasattr(module, "text_model"):
            name = name.removeprefix("text_model.")
        out[name.split(".lora_")[0]] = float(value)
    return out


def _scales(
    modules: dict[str, dict[str, Any]], alphas: Mapping[str, float], metadata: Mapping[str, Any], slot: str
) -> None:
    """Add the scale alpha / r to each module's tensors: from the file's alphas, else its metadata, else 1."""
    said = {k.removeprefix(f"{slot}."): v for k, v in metadata.items() if k.startswith(f"{slot}.")}
    for path, parts in modules.items():
        rank = parts["lora_A"].shape[0] if "lora_A" in parts else 1
        alpha = alphas.get(path)
        if alpha is None and said.get("lora_alpha") is not None:
            patterns = said.get("alpha_pattern") or {}
            alpha = next((v for k, v in patterns.items() if re.fullmatch(rf"(.*\.)?({k})", path)), said["lora_alpha"])
        root = rank**0.5 if said.get("use_rslora") else rank
        parts["scale"] = 1.0 if alpha is None else float(alpha) / root


def _module(network: nn.Module, path: str, slot: str, adapter: PictureAdapter, name: str) -> Any:
    try:
        found = network.get_submodule(path)
    except AttributeError:
        found = None
    if found is None or getattr(found, "weight", None) is None:
        raise ModelError(f"{adapter.name} is an adapter for another model: {name} has no {slot}.{path}")
    return found


def _change(adapter: PictureAdapter, path: str, parts: Mapping[str, Any], shape: tuple[int, ...], name: str) -> Tensor:
    """Return what an adapter adds to a weight, float32."""
    first, second = parts.get("lora_A"), parts.get("lora_B")
    if first is None or second is None:
        raise ModelError(f"{adapter.name} is damaged: it holds one half of {path} only")
    a, b = first.float(), second.float()
    if a.dim() == 4 and b.dim() == 2:
        b = b[:, :, None, None]
    fits = a.dim() == b.dim() and a.dim() in (2, 4) and a.shape[0] == b.shape[1] and (b.shape[0], *a.shape[1:]) == shape
    if not fits and a.dim() == 4 and b.dim() == 4 and len(shape) == 2:  # 1 × 1 convolutions that became linear layers
        a, b = a.flatten(1), b.flatten(1)
        fits = a.shape[0] == b.shape[1] and (b.shape[0], a.shape[1]) == shape
    if not fits:
        raise ModelError(
            f"{adapter.name} is an adapter for another model: {path} is {tuple(second.shape[:1]) + tuple(first.shape[1:])} in it "
            f"and {shape} in {name}"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ModelError(f"{adapter.name} is damaged: {path} has values that aren't finite")
    delta: Tensor = (b.flatten(1) @ a.flatten(1)).reshape(shape)
    scaled: Tensor = adapter.weight * parts["scale"] * delta
    return scaled
