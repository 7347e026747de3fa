"""Models on this disk that could draft for a model: those beside it and those in the hub's cache.

Only sizes and configurations are read. What a drafter would gain is a forecast from its size and a usual acceptance;
`dynx calibrate` with that drafter measures it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynx.errors import DynxError
from dynx.runtime.gguf.names import SUFFIX, models_in, names_in
from dynx.runtime.model_names import snapshot
from dynx.shipped import ENDINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynx.runtime.loading import Source

MAX_SIZE_SHARE = 0.6
"""Size of a drafter, as a share of the model's, from which it can't pay."""

MIN_GAIN = 1.05
"""Forecast from which a drafter is worth naming."""

USUAL_ACCEPTANCE = 0.6
"""Share of draft tokens that a smaller model of another maker usually has accepted."""

MAX_FORECAST_DRAFTS = 8

MAX_ENTRIES = 500
"""Folders and files looked at in one place."""


@dataclass(frozen=True)
class DiskDrafter:
    """A model that could draft; `name` is what finds it again."""

    name: str
    size: int  # bytes of weights
    gain: float
    """Forecast factor over plain decoding, if drafts are accepted as often as usual."""

    def __str__(self) -> str:
        gain = f"about {self.gain:.1f}x if {USUAL_ACCEPTANCE:.0%} of its tokens are accepted"
        return f"{self.name} ({self.size / 1e6:.0f} MB, {gain})"


def drafters_for(source: Source) -> list[DiskDrafter]:
    """List the models that could draft for `source`, the largest forecast first."""
    own = _weights(source.file or source.folder)
    if not own:
        return []
    here = (source.file or source.folder).resolve()
    places = [here.parent] if source.kind in ("file", "folder") else []
    found: dict[Path, DiskDrafter] = {}
    for name, path in (*(each for place in places for each in _beside(place)), *_in_hub_cache()):
        if path.resolve() in found or path.resolve() == here or here.is_relative_to(path.resolve()):
            continue
        size = _weights(path)
        if 0 < size <= MAX_SIZE_SHARE * own and (gain := forecast(size / own)) >= MIN_GAIN:
            found[path.resolve()] = DiskDrafter(name, size, gain)
    return sorted(found.values(), key=lambda each: (-each.gain, each.name))


def forecast(cost: float, acceptance: float = USUAL_ACCEPTANCE) -> float:
    """Return the best factor over plain decoding of drafts that cost `cost` of a pass each, where wider passes cost no more."""
    return max(
        (1 - acceptance ** (count + 1)) / (1 - acceptance) / (1 + count * cost)
        for count in range(1, MAX_FORECAST_DRAFTS + 1)
    )


def named(drafters: list[DiskDrafter], most: int = 3) -> str | None:
    """Name the first few in a phrase, or None."""
    return ", ".join(str(each) for each in drafters[:most]) or None


def _beside(folder: Path) -> Iterator[tuple[str, Path]]:
    """Models in a folder: Hugging Face folders and GGUF files."""
    try:
        entries = sorted(folder.iterdir())[:MAX_ENTRIES]
        for name in models_in(names_in(folder)):
            yield str(folder / name), folder / name
    except OSError:
        return
    for entry in entries:
        if _is_language_model(entry):
            yield str(entry), entry


def _in_hub_cache() -> Iterator[tuple[str, Path]]:
    root = Path(
        os.environ.get("HF_HUB_CACHE")
        or Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub"
    )
    try:
        entries = sorted(root.glob("models--*"))[:MAX_ENTRIES]
    except OSError:
        return
    for entry in entries:
        try:
            known = snapshot(entry)
        except (DynxError, OSError):
            known = None  # a torn download
        if known is None:
            continue
        name, folder = known
        if _is_language_model(folder):
            yield name, folder
        for file in models_in(names_in(folder)):
            yield f"{name}:{file}", folder / file


def _is_language_model(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kinds = config.get("architectures") or []
        return any(str(kind).endswith(ENDINGS["generate"]) for kind in kinds)
    except (OSError, ValueError, AttributeError):
        return False


def _weights(path: Path) -> int:
    """Bytes of weights in a file or a folder; 0 where there are none."""
    try:
        if path.is_file():
            return path.stat().st_size if path.suffix == SUFFIX else 0
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    except OSError:
        return 0
