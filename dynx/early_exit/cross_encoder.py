"""The settings that sentence-transformers keeps beside a cross-encoder: its activation, its limit of tokens, its modules.

A cross-encoder's folder is one of transformers with these files beside it, all of them optional.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.errors import ModelError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dynx.runtime.loading import Source

SETTINGS, MODULES, TEXTS = "config_sentence_transformers.json", "modules.json", "sentence_bert_config.json"
"""The files: of the whole, of its modules, and of how texts are read."""

ACTIVATIONS = ("Sigmoid", "Identity", "Tanh")
"""Activations of scores by class name; all of them keep the order of documents."""


@dataclass(frozen=True)
class CrossEncoder:
    """What the files say."""

    activation: str = "Sigmoid"
    max_length: int | None = None
    """Tokens that pairs are truncated to, where that is fewer than the model takes."""

    def score(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scores of documents from the model's outputs."""
        if self.activation == "Sigmoid":
            out: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(values, -700, 700)))
            return out
        return np.tanh(values) if self.activation == "Tanh" else values


def read_cross_encoder(source: Source) -> CrossEncoder:
    """Read the files of a model's folder. Raises ModelError for a broken one, UnsupportedModelError for what dynx doesn't run."""
    folder, config = source.folder, source.config()
    settings = _object(folder / SETTINGS)
    modules = _read(folder / MODULES)
    if isinstance(modules, list) and len(modules) > 1:
        kinds = [str(each.get("type", "?")).rpartition(".")[2] for each in modules if isinstance(each, dict)]
        raise UnsupportedModelError(f"{source.name} has modules behind the model, which dynx doesn't run: {kinds[-1]}")
    prompts, name = settings.get("prompts"), settings.get("default_prompt_name")
    if name is not None and isinstance(prompts, dict) and prompts.get(name):
        raise UnsupportedModelError(f"{source.name} puts the prompt {name!r} before every text, which dynx doesn't do")
    texts = _object(folder / TEXTS)
    if texts.get("do_lower_case"):
        raise UnsupportedModelError(f"{source.name} lowers the case of texts before its tokenizer does")
    longest = texts.get("max_seq_length")
    inner = config.get("sentence_transformers")
    named = (
        settings.get("activation_fn")
        or (inner.get("activation_fn") if isinstance(inner, dict) else None)
        or config.get("sbert_ce_default_activation_function")
    )
    kind = "Sigmoid" if named is None else str(named).rpartition(".")[2]
    if kind not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{source.name}'s scores go through {named}", hint=f"known: {', '.join(ACTIVATIONS)}"
        )
    return CrossEncoder(kind, longest if isinstance(longest, int) and longest > 0 else None)


def _object(file: Path) -> dict[str, Any]:
    found = _read(file)
    return found if isinstance(found, dict) else {}


def _read(file: Path) -> Any:
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ModelError(f"{file} can't be read: {e}") from None
