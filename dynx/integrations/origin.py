"""Where a loaded model came from, and whether it still is what lies there: a profile is about exactly those weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

WEIGHTS = "*.safetensors"


def name_of(model: Any) -> str | None:
    """Return the folder or hub id that a model of transformers or a pipeline of diffusers was loaded from; None if it wasn't."""
    config = getattr(model, "config", {})
    name = config.get("_name_or_path") if hasattr(config, "get") else getattr(config, "_name_or_path", None)
    return str(name or getattr(model, "name_or_path", "") or "") or None


def runs_own_code(model: Any) -> bool:
    """Whether a model's class comes from Python files in its folder."""
    return type(model).__module__.partition(".")[0] == "transformers_modules"


def difference(module: nn.Module, folder: Path, reload: Callable[[], nn.Module] | None = None) -> str | None:
    """Return how a module's weights differ from the safetensors files in `folder`; None where every one is equal.

    Stored values are compared in the module's own precision. A module whose weights have other names than in the files is
    compared with what `reload` returns.
    """
    own = module.state_dict()
    missing, changed = _compare(own, _stored(sorted(folder.glob(WEIGHTS)), getattr(module, "base_model_prefix", "")))
    if missing and not changed and reload is not None:
        try:
            again: Mapping[str, Tensor] = reload().state_dict()
        except Exception as e:  # noqa: BLE001 - any library's
            return f"its weights can't be compared with those in {folder} ({type(e).__name__})"
        missing, changed = _compare(own, lambda name: [again[name]] if name in again else [])
    if changed:
        return f"its weights aren't those in {folder} any more ({changed})"
    if missing:
        return f"its weights can't be compared with those in {folder} ({missing} isn't there)"
    return None


def _compare(own: Mapping[str, Any], stored: Callable[[str], Sequence[Tensor]]) -> tuple[str, str]:
    """Return the first weight that isn't stored, and the first that is another; empty for none."""
    seen, missing = set[tuple[int, torch.Size]](), dict[str, Any]()
    for name, tensor in own.items():
        if not isinstance(tensor, torch.Tensor):
            return name, ""
        there = stored(name)
        if not there:
            missing[name] = tensor
            continue
        if not any(
            one.shape == tensor.shape and torch.equal(one.to(tensor.device, tensor.dtype), tensor) for one in there
        ):
            return "", name
        seen.add(_place(tensor))
    return next(
        (name for name, tensor in missing.items() if _place(tensor) not in seen), ""
    ), ""  # tied ones are stored once


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def _stored(files: Iterable[Path], prefix: str) -> Callable[[str], list[Tensor]]:
    """Return a function that reads the weights of a name, which may lack the prefix of a base model or have it besides.

    There are several where a folder holds the same model in several precisions.
    """
    from safetensors import safe_open

    where: dict[str, list[Any]] = {}
    for file in files:
        opened = safe_open(str(file), "pt")
        for name in opened.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118 - not a dict
            where.setdefault(name, []).append(opened)

    def read(name: str) -> list[Tensor]:
        others = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}") if prefix else (name,)
        found = next((other for other in others if other in where), None)
        return [] if found is None else [file.get_tensor(found) for file in where[found]]

    return read


class State:
    """What modules consist of at a moment: their tensors, and how often each was changed in place."""

    def __init__(self, *modules: nn.Module) -> None:
        self.parts = [part for module in modules for part in module.modules()]
        """The modules themselves, each with its parts after it."""
        self._then = self._now()

    def _now(self) -> list[tuple[int, int, int]]:
        """Return what marks every tensor and part, without looking for parts anew: one that was replaced is another child."""
        out = []
        for part in self.parts:
            out += [(id(child), 0, 0) for child in part._modules.values()]
            for tensor in (*part._parameters.values(), *part._buffers.values()):
                if tensor is not None:
                    out.append((id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version))
        return out

    @property
    def holds(self) -> bool:
        """Whether nothing was replaced, moved or changed since."""
        return self._now() == self._then
