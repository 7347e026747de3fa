"""From a name to a model's place: shipped, a folder, or a hub id."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynx import shipped
from dynx.errors import ModelError, UnsupportedModelError
from dynx.runtime import hub
from dynx.runtime.adapters import CONFIG_FILE, PIPELINE_FILE, refuse_alone
from dynx.runtime.gguf import names as gguf_names
from dynx.runtime.gguf.describe import describe
from dynx.runtime.gguf.header import is_gguf
from dynx.runtime.loading.exported import is_exported
from dynx.runtime.loading.quiet import importing
from dynx.runtime.lora import Adapter, refuse_weight, split_weight
from dynx.runtime.model_names import hub_id, snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
PICKLES = ("pytorch_model*.bin", "diffusion_pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
DRAFTER_FOLDER = "drafter"
"""A model folder may carry its drafter in this subfolder."""
"""A model folder may carry its drafter in this subfolder."""


@dataclass(frozen=True)
class Source:
    """Where a model is: `name` as the user knows it, and whether code in its folder may run."""

    name: str
    folder: Path
    kind: Literal["shipped", "folder", "file", "hub"]
    trusted: bool = False
    file: Path | None = None
    """The one file in another format that holds the model; `folder` then describes it (config, tokenizer) as a Hugging Face
    folder would."""

    adapters: tuple[Adapter, ...] = ()
    """LoRA adapters that are folded into the weights, in this order."""
    part: str = ""
    """Which part of the folder's weights it means; empty: all."""
    base: str = ""
    """Name of the model under the adapters; `name` may be an adapter's."""

    @property
    def is_exported(self) -> bool:
        """Whether it is a model in OpenVINO's own format, which that backend alone runs."""
        return is_exported(self.folder)

    @property
    def bundled_drafter(self) -> Source | None:
        """The drafter that came with it."""
        inner = self.folder / DRAFTER_FOLDER
        there = (inner / "config.json").is_file()
        return Source(f"{self.name}/{DRAFTER_FOLDER}", inner, self.kind, self.trusted) if there else None

    def config(self) -> dict[str, Any]:
        """config.json. Raises ModelError if it is missing or isn't a JSON object."""
        path = self.folder / "config.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            refuse_alone(self.name, self.folder)
            hint = "a Hugging Face model folder holds config.json, tokenizer.json and model.safetensors"
            raise ModelError(f"{self.folder} has no config.json", hint=hint) from None
        except (OSError, ValueError) as e:
            raise ModelError(f"{path} can't be read: {e}") from None
        if not isinstance(data, dict):
            raise ModelError(f"{path} is not a JSON object")
        return data


def find(
    name: str,
    *,
    offline: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    task: str = "generate",
) -> Source:
    """Find the model called `name`: a shipped one, else a folder, else one of the hub's. `task` is for the hints alone.

    Raises ModelError with the closest shipped name where there is no such thing.
    """
    if not name.strip():
        raise ModelError("the model's name is empty", hint=_shipped_in_words(task))
    bundled = re.fullmatch(rf"(\w[\w-]*)/{DRAFTER_FOLDER}", name)
    inside = shipped.folder(bundled[1]) if bundled else None
    for folder in (shipped.folder(name), inside / DRAFTER_FOLDER if inside else None):
        if folder is not None:
            return Source(name, folder, "shipped")
    try:
        path = Path(name).expanduser()
        folder = path.resolve() if path.is_dir() else None
    except (OSError, RuntimeError) as e:  # ~somebody, or a name no file system takes
        raise ModelError(f"there is no folder {name} ({getattr(e, 'strerror', None) or e})") from None
    if folder is not None:
        if _holds_gguf_alone(path):
            file = gguf_names.choose(gguf_names.names_in(path), None, name, f"{name.rstrip('/')}/")
            return gguf_source(path / file, "file")
        name, path = snapshot(folder) or (folder.name or name, path)
        found = Source(name, path, "folder", trust_remote_code)
        return _with_base(found, offline=offline, allow_pickle=allow_pickle, task=task)
    if path.is_file():
        if is_gguf(path) or path.suffix == gguf_names.SUFFIX:
            return gguf_source(path, "file")
        raise ModelError(f"{name} is a file, and no GGUF; other models are folders", hint=f"try -m {path.parent}")
    name = hub_id(name)
    of_hub = gguf_names.HUB_FILE.fullmatch(name)
    if of_hub and not name.startswith("."):
        return _gguf_from_hub(of_hub["id"], of_hub["which"] or of_hub["path"], offline=offline)
    missing = name.endswith(gguf_names.SUFFIX) and "/" not in name  # a hub id would have an owner
    if missing or name.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name):
        raise ModelError(f"there is no {'file' if name.endswith(gguf_names.SUFFIX) else 'folder'} {name}")
    found = _from_hub(name, offline=offline, allow_pickle=allow_pickle, trusted=trust_remote_code, task=task)
    return _with_base(found, offline=offline, allow_pickle=allow_pickle, task=task)


def _with_base(found: Source, *, offline: bool, allow_pickle: bool, task: str) -> Source:
    """Return the model that an adapter's folder is for, with that adapter; a model's folder as it is. Raises ModelError."""
    if (found.folder / "config.json").is_file() or not (found.folder / CONFIG_FILE).is_file():
        return found
    adapter = Adapter(found.name, found.folder)
    if adapter.base is None:
        raise ModelError(
            f"{found.name} is an adapter that names no model", hint="name its model, and the adapter with `adapters`"
        )
    permissions: dict[str, Any] = {"offline": offline, "allow_pickle": allow_pickle, "trust_remote_code": found.trusted}
    try:
        base = find(_base_near(adapter), task=task, **permissions)
    except ModelError as e:
        hint = "name its model, and the adapter with `adapters`"
        raise ModelError(f"{found.name} is an adapter for {adapter.base}, which isn't found: {e}", hint=hint) from None
    if base.adapters:
        raise UnsupportedModelError(f"{found.name} is an adapter for another adapter, {base.name}")
    return replace(base, name=found.name, adapters=(adapter,), base=base.name)


def _base_near(adapter: Adapter) -> str:
    """Return the name of an adapter's base model, or the path where it lies relative to the adapter's folder."""
    name = str(adapter.base)
    for folder in (Path(name).expanduser(), adapter.folder / name, adapter.folder.resolve().parent / name):
        if folder.is_dir():
            return str(folder)
    return name


def with_adapters(source: Source, texts: Sequence[str], *, offline: bool = False, allow_pickle: bool = False) -> Source:
    """Return `source` with the adapters called `texts`: folders or hub ids, each maybe with a weight after a colon.

    Raises ModelError for one that isn't there, InvalidInput for a name that can't be one.
    """
    found = list(source.adapters)
    for text in texts:
        whole = Path(text).expanduser()
        name, weight = (text, 1.0) if text and whole.is_dir() else split_weight(text)
        path = Path(name).expanduser()
        if path.is_dir():
            called, folder = snapshot(path.resolve()) or (path.resolve().name, path)
        else:
            name = hub_id(name)
            if path.is_file():
                raise ModelError(f"{name} is a file and no adapter", hint="an adapter is a folder, as peft saves it")
            if name.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name) or "/" not in name:
                refuse_weight(text)
                raise ModelError(f"there is no adapter {name}", hint="`adapters` takes folders and hub ids")
            weights = ("adapter_model.safetensors", *(("adapter_model.bin",) if allow_pickle else ()))
            folder = hub.fetch(name, weights, offline=offline, code=False, local=False, hint=None)
            called = name
        if (folder / "config.json").is_file() and not (folder / CONFIG_FILE).is_file():
            raise ModelError(f"{called} is a model and no adapter", hint="`model` takes models")
        found.append(Adapter(called, folder, weight))
    return replace(source, adapters=tuple(found), base=source.base or source.name)


def _shipped_in_words(task: str) -> str | None:
    return f"shipped models: {', '.join(shipped.names(task))}" if shipped.names(task) else None


def _from_hub(name: str, *, offline: bool, allow_pickle: bool, trusted: bool, task: str) -> Source:
    close = get_close_matches(name, shipped.names(), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else _shipped_in_words(task)
    patterns = ("*.safetensors", *(PICKLES if allow_pickle else ()))
    known = bool(close) and "/" not in name
    if not known and (files := hub.gguf_files(name, offline=offline)):
        return _gguf_from_hub(name, None, offline=offline, files=files)
    folder = hub.fetch(name, patterns, offline=offline, code=trusted, local=known, hint=hint)
    return Source(name, folder, "hub", trusted)


def _holds_gguf_alone(folder: Path) -> bool:
    """Whether a folder's weights are GGUF files; what is in Hugging Face layout comes first."""
    if any(folder.glob("*.safetensors")) or (folder / PIPELINE_FILE).is_file():
        return False
    if (folder / "config.json").is_file() and any(found for pattern in PICKLES for found in folder.glob(pattern)):
        return False
    return bool(gguf_names.models_in(gguf_names.names_in(folder)))


def _gguf_from_hub(name: str, which: str | None, *, offline: bool, files: list[str] | None = None) -> Source:
    if files is None:
        files = hub.gguf_files(name, offline=offline, alone=False)
    if not files:
        where = "in the hub's local cache" if offline else "on the hub"
        raise ModelError(f"no GGUF file of {name} is {where}")
    chosen = gguf_names.choose(files, which, name, f"{name}:")
    return gguf_source(hub.fetch_gguf(name, chosen, offline=offline), "hub", f"{name}:{chosen}")


def gguf_source(file: Path, kind: Literal["file", "hub"], name: str | None = None) -> Source:
    """Describe the model in a GGUF file, which is read through unless it is known already. Raises ModelError."""
    name = name or file.name
    with importing():
        return Source(name, describe(file, name), kind, file=file)
