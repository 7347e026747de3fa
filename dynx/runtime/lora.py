"""LoRA adapters in peft's layout, folded into a language model's weights when it is loaded.

An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`. For each module that it changes it holds A
(r, in) and B (out, r), and the weights become W + s·B·A with s = alpha / r, or alpha / sqrt(r) for rank-stabilised adapters.
The sum is made in float32 and rounded once to the model's precision, so a folded model runs on every backend at the speed of
its base.

Nothing here loads a model. Letters in shapes: r rank, in and out the widths of a linear layer.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.errors import InvalidInput, ModelError, UnsupportedModelError
from dynx.runtime.adapters import CONFIG_FILE
from dynx.runtime.hashing import hash_json
from dynx.runtime.weights import content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"

WEIGHT = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)")
"""An adapter with its weight, as it is typed."""

TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\.(?:modules_to_save\.(?:default\.)?|base_layer\.|original_module\.)?"
    r"(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|weight|bias)"
    r"(?:\.default)?(?:\.(?P<kind>weight|bias))?"
)
"""Name of a tensor in peft's files: the module and what of it."""

UNFOLDABLE: dict[str, str] = {
    "alora_invocation_tokens": "it acts on a part of the text only (activated LoRA)",
    "layer_replication": "it repeats layers",
    "target_parameters": "it changes parameters of experts",
    "trainable_token_indices": "it changes single tokens' embeddings",
    "arrow_config": "it routes between adapters",
    "use_qalora": "its inputs are pooled (QA-LoRA)",
    "use_bdlora": "it is block-diagonal",
    "monteclora_config": "it samples its weights",
    "velora_config": "its inputs are projected",
    "kasa_config": "it changes the base's weights, too (KaSA)",
    "lora_ga_config": "it changes the base's weights, too (LoRA-GA)",
}
"""Settings under which weights plus B·A isn't what the adapter computes, and what they mean."""

BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that change the base's weights, too; peft repeats them on loading unless the adapter was converted."""


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, and the factor of the change that it makes."""

    name: str
    folder: Path
    weight: float = 1.0

    def __str__(self) -> str:
        return self.name if self.weight == 1 else f"{self.name}:{self.weight:g}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """`adapter_config.json`. Raises ModelError where it is missing or can't be read."""
        path = self.folder / CONFIG_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            hint = f"an adapter's folder holds {CONFIG_FILE} and {WEIGHTS_FILE}, as peft saves them"
            raise ModelError(f"{self.folder} has no {CONFIG_FILE} and is no adapter", hint=hint) from None
        except (OSError, ValueError) as e:
            raise ModelError(f"{path} can't be read: {e}") from None
        if not isinstance(found, dict):
            raise ModelError(f"{path} is not a JSON object")
        return found

    def facts(self) -> list[Any]:
        """Return what identifies it: its settings, every byte, and the weight. Raises ModelError, OSError."""
        file = self.folder / WEIGHTS_FILE
        file = file if file.is_file() else self.folder / PICKLED_FILE
        return [{**self.config, "base_model_name_or_path": None}, content_hash(file), self.weight]

    @property
    def base(self) -> str | None:
        """Name of the model that it was made for."""
        named = self.config.get("base_model_name_or_path")
        return named if isinstance(named, str) and named.strip() and named.isprintable() else None


def split_weight(text: str) -> tuple[str, float]:
    """Return name and weight of an adapter as it is typed: `FOLDER` or `FOLDER:0.5`. Raises InvalidInput."""
    found = WEIGHT.fullmatch(text.strip())
    name, weight = (found[1], float(found[2])) if found else (text.strip(), 1.0)
    if not name or name.startswith(":") or weight in (float("inf"), float("-inf")):
        raise InvalidInput(
            f"`adapters`: {text!r} names no adapter", hint="a folder or hub id, and after a colon its weight"
        )
    return name, weight


def refuse_weight(text: str) -> None:
    """Raise InvalidInput for a folder followed by a colon and something that is not a number."""
    name, colon, weight = text.strip().rpartition(":")
    if colon and Path(name).expanduser().is_dir():
        raise InvalidInput(f"`adapters`: {weight!r} is no weight", hint=f"a number, as in {name}:0.5")


def check(adapter: Adapter, *, allow_pickle: bool = False) -> None:
    """Check without loading anything that the adapter can be folded. Raises ModelError, UnsupportedModelError."""
    config, name = adapter.config, adapter.name
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(
            f"{name} is an adapter of type {kind or '(none named)'}, and only LORA can be folded into weights",
            hint="merge it into its model with peft (merge_and_unload)",
        )
    for setting, words in UNFOLDABLE.items():
        if config.get(setting):
            raise UnsupportedModelError(f"{name} can't be folded into weights: {words}")
    how = str(config.get("init_lora_weights", "")).lower()
    if how.startswith(BASE_CHANGING):
        raise UnsupportedModelError(
            f"{name} was trained on weights that its initialisation ({how}) had changed",
            hint="save it with peft's path_initial_model_for_weight_conversion, which makes a plain LoRA of it",
        )
    if not (adapter.folder / WEIGHTS_FILE).is_file():
        if not (adapter.folder / PICKLED_FILE).is_file():
            raise ModelError(f"{adapter.folder} has no {WEIGHTS_FILE}")
        if not allow_pickle:
            hint = "a pickle can run any code; `allow_pickle` loads it, if you trust its author"
            raise ModelError(f"{adapter.folder} has pickled weights only ({PICKLED_FILE})", hint=hint)


def chat_template(adapters: Sequence[Adapter]) -> str | None:
    """Return the chat template that lies in an adapter's folder, the last one's first; None where there is none."""
    for each in reversed(adapters):
        file = each.folder / "chat_template.jinja"
        try:
            if file.is_file():
                return file.read_text(encoding="utf-8")
            found = json.loads((each.folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(found, str):
            return found
    return None


def identity(adapters: Sequence[Adapter]) -> str:
    """Identify what adapters add to a model, of every byte of theirs, by 16 hex digits; their order counts. Raises ModelError."""
    found = []
    for each in adapters:
        try:
            found.append(each.facts())
        except OSError as e:
            raise ModelError(f"can't read the adapter in {each.folder}: {e.strerror or e}") from e
    return hash_json(found)


def fold(model: nn.Module, adapters: Sequence[Adapter], name: str) -> None:
    """Add adapters to the weights of `model`, which is called `name`, in place: in float32, rounded once to its precision.

    Raises ModelError where an adapter was made for another model.
    """
    import torch

    by_module: dict[str, list[tuple[Adapter, dict[str, Tensor]]]] = defaultdict(list)
    for adapter in adapters:
        for module, parts in _parts(adapter).items():
            by_module[_known(model, module, adapter, name)].append((adapter, parts))
    with torch.no_grad():
        for module, changes in by_module.items():
            _untie(model, module)
            _apply(model.get_submodule(module), module, changes, name)


def _parts(adapter: Adapter) -> Mapping[str, dict[str, Tensor]]:
    """Return the adapter's tensors by module and part. Raises ModelError."""
    from safetensors import SafetensorError, safe_open

    file = adapter.folder / WEIGHTS_FILE
    tensors: dict[str, Tensor] = {}
    try:
        if file.is_file():
            with safe_open(file, framework="pt") as opened:
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is no dict
        else:
            import torch

            file = adapter.folder / PICKLED_FILE
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError) as e:
        raise ModelError(f"{file} can't be read: {str(e).splitlines()[0]}") from None
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        matched = TENSOR.fullmatch(key)
        if matched is None:
            raise UnsupportedModelError(
                f"{adapter.name} holds {key}, which isn't a part of a LoRA adapter that can be folded"
            )
        part = matched["part"] + (".bias" if matched["kind"] == "bias" else "")
        found[matched["module"]][part] = tensor
    if not found:
        raise ModelError(f"{file} holds no tensors")
    return found


def _known(model: nn.Module, module: str, adapter: Adapter, name: str) -> str:
    """Return the model's name of a module: with or without the prefix of the decoder inside it. Raises ModelError."""
    known = dict(model.named_modules())
    prefix = str(getattr(model, "base_model_prefix", ""))
    for each in (module, f"{prefix}.{module}", module.removeprefix(f"{prefix}.")):
        if each in known:
            return each
    raise ModelError(f"{adapter.name} is an adapter for another model: {name} has no {module}", hint=_for(adapter))


def _for(adapter: Adapter) -> str | None:
    return f"it was made for {adapter.base}" if adapter.base else None


def _untie(model: Any, path: str) -> None:
    """Give a module weights of its own where another one shares them: an adapter changes one of the two."""
    from torch import nn

    module = model.get_submodule(path)
    weight: Any = getattr(module, "weight", None)
    if weight is None:
        return
    own = weight.detach()
    for other in model.modules():
        if other is not module and getattr(other, "weight", None) is weight:
            module.weight = nn.Parameter(own.clone(), requires_grad=False)
            for config in {id(c): c for c in (model.config, model.config.get_text_config(decoder=True))}.values():
                config.tie_word_embeddings = False
            return


def _apply(module: nn.Module, path: str, changes: Sequence[tuple[Adapter, dict[str, Tensor]]], name: str) -> None:
    """Change the weights and the bias of one module by its parts of all adapters."""
    for what in ("weight", "bias"):
        wanted = [(a, p) for a, p in changes if any(_changes(part) == what for part in p)]
        if not wanted:
            continue
        held = getattr(module, what, None)
        if held is None:
            adapter = wanted[0][0]
            raise ModelError(
                f"{adapter.name} is an adapter for another model: {name}'s {path} has no {what}", hint=_for(adapter)
            )
        total = held.detach().float()
        for adapter, parts in wanted:
            total = _changed(module, path, what, total, adapter, parts, name)
        held.data.copy_(total)


def _changes(part: str) -> str:
    return "bias" if part in ("bias", "lora_B.bias") else "weight"


def _changed(
    module: nn.Module, path: str, what: str, before: Tensor, adapter: Adapter, parts: Mapping[str, Tensor], name: str
) -> Tensor:
    """Return weights or bias, float32, after one adapter."""
    import torch

    def fitting(tensor: Tensor) -> Tensor:
        if tensor.shape != before.shape:
            raise ModelError(
                f"{adapter.name} is an adapter for another model: {path} is {tuple(tensor.shape)} in it and "
                f"{tuple(before.shape)} in {name}",
                hint=_for(adapter),
            )
        return tensor

    given = {part: tensor.to(before.device, torch.float32) for part, tensor in parts.items()}
    if (saved := given.get(what)) is not None:  # replaced as a whole
        saved = fitting(saved)
        before = saved if adapter.weight == 1 else before + adapter.weight * (saved - before)
    if what == "bias":
        extra = given.get("lora_B.bias")
        return before if extra is None else before + _scale(adapter, path, given) * fitting(extra)
    first, second = (given.get("lora_A"), given.get("lora_B"))
    inner = type(module).__name__ == "Conv1D"  # which holds (in, out)
    if first is None and second is None:
        first, second, inner = given.get("lora_embedding_A"), given.get("lora_embedding_B"), True
    if first is None and second is None:
        return before
    if first is None or second is None or first.ndim != 2 or second.ndim != 2 or first.shape[0] != second.shape[1]:
        raise ModelError(f"{adapter.name} is damaged: its parts for {path} don't belong together")
    delta = second @ first
    after = before + _scale(adapter, path, given) * fitting(delta.T if inner else delta)
    magnitude = given.get("lora_magnitude_vector")
    if magnitude is None:
        return after
    if "lora_embedding_A" in given:
        raise UnsupportedModelError(
            f"{adapter.name} can't be folded into weights: it is a DoRA of {path}, an embedding"
        )
    length = torch.linalg.vector_norm(after, dim=0 if inner else 1)
    factor = magnitude.flatten() / length
    scaled: Tensor = after * (factor[None, :] if inner else factor[:, None])
    return scaled


def _scale(adapter: Adapter, path: str, parts: Mapping[str, Tensor]) -> float:
    """Factor of B·A: the adapter's own times the caller's weight. Raises ModelError for a config without one."""
    first = parts["lora_A"] if "lora_A" in parts else parts["lora_embedding_A"]
    rank, config = int(first.shape[0]), adapter.config
    alpha = config.get("lora_alpha")
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            alpha = value
            break
    if not isinstance(alpha, (int, float)) or rank == 0:
        raise ModelError(f"{adapter.folder / CONFIG_FILE} has no lora_alpha")
    return adapter.weight * float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
