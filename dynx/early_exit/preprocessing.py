"""Turn texts and images into examples, and examples into batches that a model takes.

An example is one preprocessed input: token ids truncated to what the model takes, or pixels from its image processor. A batch of
texts is padded on the right. An input that can't be preprocessed is replaced by the reason.
"""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dynx.early_exit.items import Pair
from dynx.errors import InvalidInput, ModelError
from dynx.runtime.inputs import InputError
from dynx.runtime.pictures import read_picture

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from pathlib import Path

UNLIMITED_TOKENS = 1_000_000
"""Limit in tokens from which a tokenizer is taken to have none."""

MIN_TEXT_TOKENS = 8
"""Fewest tokens that texts may be truncated to: fewer leave no room beside special tokens."""


@dataclass(frozen=True)
class Example:
    """One preprocessed input: token ids by argument name, or pixels."""

    values: Mapping[str, Sequence[int]] | Tensor
    size: int
    """Number of tokens, which batches are sorted by; 1 for an image."""
    identity: Hashable
    """Key that is equal for equal examples."""
    truncated: bool = False
    """Whether the text was longer than the model takes."""
    text: str = ""
    """The text, where answers name places in it."""


class Preprocessor(Protocol):
    """The preprocessing of one model's inputs."""

    kind: Literal["text", "image"]

    def rows(self, items: Sequence[Any]) -> list[Example | str]:
        """Preprocess texts or paths, in order; an input that can't be read is replaced by the reason."""

    def collate(self, rows: Sequence[Example]) -> Mapping[str, Tensor]:
        """Make a batch on the model's device."""

    def probe(self) -> Mapping[str, Tensor]:
        """Make a small batch to test a model with."""


Truncation = Literal["longest_first", "only_first"]
"""How a pair that is too long is truncated: tokens leave the longer text, or the first one only."""


class TextPreprocessor:
    """Preprocessing of texts and pairs of texts, truncated to `limit` tokens: the model's, or fewer by `max_length`.

    `pairs`: the inputs are pairs, which the tokenizer joins and marks as its model expects. `own_limit` is a limit that the
    model's folder states elsewhere.
    """

    kind: Literal["text", "image"] = "text"

    def __init__(
        self,
        tokenizer: Any,
        model: Any,
        max_length: int | None = None,
        *,
        pairs: bool = False,
        truncation: Truncation = "longest_first",
        own_limit: int | None = None,
    ) -> None:
        if max_length is not None and max_length < MIN_TEXT_TOKENS:
            raise InvalidInput(f"`max_length` {max_length}: at least {MIN_TEXT_TOKENS} tokens")
        known = (token_limit(tokenizer, model), own_limit)
        self.own_limit = min((n for n in known if n is not None), default=None)
        self.limit = min((n for n in (self.own_limit, max_length) if n is not None), default=None)
        self._tokenizer, self._device = tokenizer, device_of(model)
        self._pairs, self._truncation = pairs, truncation
        takes = inspect.signature(model.forward).parameters
        pad = _pad_id(tokenizer, model)
        self.pads_batches = pad is not None
        """Whether a batch may hold several rows: without padding token a causal model can't find each last token."""
        fills = {
            "input_ids": 0 if pad is None else pad,
            "attention_mask": 0,
            "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0),
        }
        self._fills = {name: fill for name, fill in fills.items() if name in takes}

    @property
    def marks_pairs(self) -> bool:
        """Whether rows tell a pair from a single text, by token types."""
        types = self._encode([Pair("a", "b")]).get("token_type_ids")
        return bool(types and any(types[0]))

    def rows(self, items: Sequence[str | Pair]) -> list[Example | str]:
        """Tokenize each text or pair."""
        if not items:
            return []
        encoded = self._encode(list(items))
        return [self._row(item, {k: v[i] for k, v in encoded.items()}) for i, item in enumerate(items)]

    def _encode(self, items: list[str | Pair], limit: int | None = None) -> dict[str, list[list[int]]]:
        cutting = (
            {} if limit is None else {"truncation": self._truncation if self._pairs else True, "max_length": limit}
        )
        texts: list[list[str]] = [[item] if isinstance(item, str) else list(item) for item in items]
        parts = [list(column) for column in zip(*texts, strict=True)]
        out = self._tokenized(parts, cutting)
        return {name: out[name] for name in self._names if name in out}

    @property
    def _names(self) -> list[str]:
        """What is kept of the tokenizer's output."""
        return list(self._fills)

    def _tokenized(self, parts: list[list[str]], cutting: dict[str, Any]) -> Mapping[str, list[list[int]]]:
        out: Mapping[str, list[list[int]]] = self._tokenizer(
            *parts, return_attention_mask=True, verbose=False, **cutting
        )
        return out

    def _row(self, item: str | Pair, values: dict[str, list[int]]) -> Example | str:
        truncated = self.limit is not None and len(values["input_ids"]) > self.limit
        if truncated:
            try:
                values = {name: ids[0] for name, ids in self._encode([item], self.limit).items()}
            except Exception as e:  # noqa: BLE001 - tokenizers raise bare Exceptions
                reason = next(iter(str(e).splitlines()), "") or type(e).__name__
                return f"it can't be truncated to {self.limit} tokens: {reason}"
            if self.limit is not None and len(values["input_ids"]) > self.limit:
                return f"its second text alone is longer than the {self.limit} tokens that the model takes"
        if not values["input_ids"]:  # a tokenizer without special tokens, and an empty text
            start = next((i for i in _special_ids(self._tokenizer) if i is not None), None)
            if start is None:
                return "an empty text, and the tokenizer has no special token to stand for it"
            values = {"input_ids": [start], "attention_mask": [1], "token_type_ids": [0]}
            values = {name: ids for name, ids in values.items() if name in self._fills}
        ids = tuple(values["input_ids"])
        types = values.get("token_type_ids") if self._pairs else None
        return Example(values, len(ids), ids if types is None else (ids, tuple(types)), truncated)

    def collate(self, rows: Sequence[Example]) -> Mapping[str, Tensor]:
        """Make a batch (R, T) of each argument, padded on the right to the longest."""
        width = max(row.size for row in rows)
        batch = {}
        for name, fill in self._fills.items():
            table = np.full((len(rows), width), fill, dtype=np.int64)
            for i, row in enumerate(rows):
                ids = row.values.get(name) if not isinstance(row.values, Tensor) else None
                if ids is not None:
                    table[i, : row.size] = ids
            if rows and not isinstance(rows[0].values, Tensor) and name in rows[0].values:
                batch[name] = torch.from_numpy(table).to(self._device)
        return batch

    def probe(self) -> Mapping[str, Tensor]:
        """Make a batch of four texts of different lengths."""
        texts = ["one", "a little more of it", "and then something longer than that, of several words", "the end."]
        items = list(map(Pair, texts, texts[1:] + texts[:1])) if self._pairs else texts
        rows = [row for row in self.rows(items) if isinstance(row, Example)]
        if not rows:
            raise ModelError("the tokenizer makes no tokens")
        return self.collate(rows if self.pads_batches else rows[:1])


def device_of(model: Any) -> torch.device:
    """Return where a model's inputs go; the processor for one without weights, whose segments run elsewhere."""
    device: torch.device = model.device
    return torch.device("cpu") if device.type == "meta" else device


def token_limit(tokenizer: Any, model: nn.Module) -> int | None:
    """Return the most tokens of a text that a model takes, None for any number.

    It is the smaller of the tokenizer's limit and the size of the model's position table. RoBERTa-like tables leave the places up
    to their padding index unused, which the configuration's `max_position_embeddings` counts.
    """
    limits = []
    declared = getattr(tokenizer, "model_max_length", None)
    if declared is not None and declared < UNLIMITED_TOKENS:
        limits.append(int(declared))
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("position_embeddings", "wpe") and isinstance(module, nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - offset)
    if len(limits) == (declared is not None and declared < UNLIMITED_TOKENS):  # no table: rotary or relative positions
        config: Any = getattr(model, "config", None)
        if (most := getattr(config, "max_position_embeddings", None)) and most > 0:
            limits.append(int(most))
    return min(limits) if limits else None


def _special_ids(tokenizer: Any) -> list[int | None]:
    return [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "pad")]


def _pad_id(tokenizer: Any, model: Any) -> int | None:
    """Return the padding token. A causal classifier finds the last token by it, so its config must agree."""
    own = getattr(model.config, "pad_token_id", None)
    if own is not None:
        return int(own)
    declared = getattr(tokenizer, "pad_token_id", None)
    if declared is None:
        return None
    if hasattr(model, "score"):  # the causal ones, whose head is called so, look for it in the config
        model.config.pad_token_id = declared
    return int(declared)


class ImagePreprocessor:
    """Preprocessing of image files by an image classifier's own processor; all must get the same shape."""

    kind: Literal["text", "image"] = "image"

    def __init__(self, processor: Any, model: Any) -> None:
        self._processor, self._device, self._dtype = processor, device_of(model), model.dtype
        self._shape: tuple[int, ...] | None = None

    def rows(self, items: Sequence[Path]) -> list[Example | str]:
        """Load and preprocess each file."""
        return [self._row(path) for path in items]

    def _row(self, path: Path) -> Example | str:
        try:
            picture = read_picture(path)
        except InputError as e:
            return str(e)
        return self.row(picture)

    def row(self, picture: Any) -> Example | str:
        """Preprocess a PIL image."""
        try:
            values: Tensor = torch.as_tensor(self._processor(images=picture, return_tensors="pt")["pixel_values"][0])
        except (
            ValueError,
            TypeError,
            IndexError,
            ArithmeticError,
            MemoryError,
            RuntimeError,
        ) as e:  # a shape it can't take
            reason = next(iter(str(e).splitlines()), "") or type(e).__name__
            return f"the model's image processor can't take its {picture.width} × {picture.height} pixels: {reason}"
        self._shape = self._shape or tuple(values.shape)
        if tuple(values.shape) != self._shape:
            return f"comes out of the processor as {tuple(values.shape)}, others as {self._shape}"
        mark = hashlib.blake2b(values.numpy().tobytes(), digest_size=16).digest()
        return Example(values, 1, mark)

    def collate(self, rows: Sequence[Example]) -> Mapping[str, Tensor]:
        """Make a batch of pixels (R, C, H, W)."""
        pixels = torch.stack([row.values for row in rows if isinstance(row.values, Tensor)])
        return {"pixel_values": pixels.to(self._device, self._dtype)}

    def probe(self) -> Mapping[str, Tensor]:
        """Make a batch of four images of noise."""
        from PIL import Image

        noise = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
        rows = [self.row(Image.fromarray(n)) for n in noise]
        return self.collate([row for row in rows if isinstance(row, Example)])
