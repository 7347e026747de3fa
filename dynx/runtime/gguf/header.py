"""What a GGUF file says about itself: its metadata, and where each tensor lies. No tensor is read.

A model may be split into parts (`NAME-00001-of-00003.gguf`), of which the first holds the metadata; all of them are opened.
It loads no library beyond Python's own.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from dynx.errors import ModelError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

HINT = "pip install 'dynx[gguf]'"
"""What brings the package that unpacks weights and reads vocabularies."""

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4

PART = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")
"""The name of a part of a split model."""

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Formats of metadata values, by their type's number."""
STRING, ARRAY = 8, 9

TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""Tensor types by number: name, values in a block, bytes of a block."""

INTEGER_TYPES = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"})
"""Types whose values are integers in groups, each with a scale and perhaps an offset."""

KINDS = {
    "clip": "a projector of pictures or sound (mmproj), which goes with a language model",
    "whisper": "a speech recognizer",
}
ENCODERS = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "t5encoder"}
)
PICTURES = frozenset({"flux", "sd1", "sd3", "sdxl", "lumina2", "wan", "hyvid", "qwen_image", "pig", "aura", "ltxv"})


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and how it is stored."""

    name: str
    shape: tuple[int, ...]
    """In torch's order: the last dimension is contiguous."""
    type: str
    file: Path
    start: int
    """Its first byte in the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Header:
    """The metadata of a model and its tensors, from one file or from all its parts."""

    files: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...] = field(repr=False)

    @property
    def architecture(self) -> str:
        """The architecture by llama.cpp's name."""
        return str(self.metadata["general.architecture"])

    @cached_property
    def names(self) -> frozenset[str]:
        """The tensors' names."""
        return frozenset(tensor.name for tensor in self.tensors)

    @cached_property
    def types(self) -> dict[str, int]:
        """How many values are stored in each type, the most first."""
        counts: dict[str, int] = {}
        for tensor in self.tensors:
            counts[tensor.type] = counts.get(tensor.type, 0) + prod(tensor.shape)
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value of the architecture's own: `get("block_count")` is `llama.block_count` of a llama."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def parts_of(path: Path) -> tuple[Path, ...]:
    """List the files of the model that a file is of, in order. Raises ModelError where one is missing."""
    found = PART.fullmatch(path.name)
    if found is None:
        return (path,)
    count = int(found["parts"])
    parts = tuple(path.with_name(f"{found['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1))
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelError(f"{path.parent} lacks {missing[0]} ({len(missing)} of {count} parts missing)")
    return parts


def read_header(path: Path) -> Header:
    """Read the header of the model in a GGUF file, or in the files that it is a part of.

    Raises ModelError for files that aren't whole, UnsupportedModelError for tensors of an unknown type.
    """
    files = parts_of(path)
    metadata: dict[str, Any] = {}
    tensors: list[TensorInfo] = []
    for file in files:
        found, inside = _read(file)
        metadata = metadata or found
        tensors += inside
    if not isinstance(metadata.get("general.architecture"), str):
        raise ModelError(f"{path} names no architecture (general.architecture)")
    expected = metadata.get("split.tensors.count")
    if expected is not None and expected != len(tensors):
        raise ModelError(f"{path} has {len(tensors)} tensors in its {len(files)} parts, {expected} expected")
    return Header(files, metadata, tuple(tensors))


def check_kind(header: Header, name: str) -> None:
    """Raise UnsupportedModelError for what is no language model."""
    kind, what = header.architecture, header.metadata.get("general.type")
    words = None
    if what == "adapter" or any(tensor.endswith((".lora_a", ".lora_b")) for tensor in header.names):
        base = header.metadata.get("general.base_model.0.name")
        words = f"a LoRA adapter{f' for {base}' if base else ''} and no model"
    elif what == "mmproj" or kind in KINDS:
        words = KINDS.get(kind, KINDS["clip"])
    elif kind in ENCODERS:
        words = f"an encoder ({kind}) and writes no text"
    elif kind in PICTURES:
        words = f"a part of a pipeline that draws ({kind})"
    elif what in ("imatrix", "controlvector") or kind in ("imatrix", "controlvector"):
        words = f"no model but a {what or kind}"
    if words:
        raise UnsupportedModelError(f"{name} is {words}", hint="generate takes GGUF files of language models")


class _DamagedError(Exception):
    """The header contradicts itself or the file's length."""


def _read(path: Path) -> tuple[dict[str, Any], list[TensorInfo]]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size == 0:
                raise ModelError(f"{path} is empty", hint="download or copy it again")
            if file.read(len(MAGIC)) != MAGIC:
                raise ModelError(f"{path} is not a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                reader = _Reader(data)
                metadata, tensors, start = reader.read()
    except OSError as e:
        raise ModelError(f"{path} can't be read: {e.strerror or e}") from None
    except struct.error:
        raise ModelError(f"{path} is truncated: it ends within its header", hint="download or copy it again") from None
    except (_DamagedError, UnicodeDecodeError, OverflowError) as e:
        raise ModelError(f"{path} has a damaged header ({e})", hint="download or copy it again") from None
    placed = list(_placed(path, tensors, start))
    end = max((tensor.start + tensor.size for tensor in placed), default=0)
    if end > size:
        raise ModelError(f"{path} is truncated: {size} bytes, {end} expected", hint="download or copy it again")
    return metadata, placed


def _placed(path: Path, tensors: list[tuple[str, tuple[int, ...], int, int]], start: int) -> Iterator[TensorInfo]:
    for name, shape, number, offset in tensors:
        if number not in TYPES:
            raise UnsupportedModelError(
                f"{path.name}: tensor {name} is of type {number}, which dynx doesn't know",
                hint=f"known are {', '.join(kind for kind, _, _ in TYPES.values())}",
            )
        kind, values, size = TYPES[number]
        if shape and shape[-1] % values:
            raise ModelError(f"{path} has a damaged header ({name}: rows of {shape[-1]} in blocks of {values})")
        yield TensorInfo(name, shape, kind, path, start + offset, prod(shape) // values * size)


class _Reader:
    """Reads a header from its first byte to its last."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, len(MAGIC)

    def read(self) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]], int]:
        """Return the metadata, (name, shape, type, offset) of each tensor, and where the tensors begin."""
        (version,) = self._take("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            why = "big-endian" if swapped else f"version {version}"
            raise ModelError(f"GGUF files that are {why} aren't supported", hint="convert the model again")
        count, keys = self._take("QQ")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            (kind,) = self._take("I")
            metadata[key] = self._value(kind)
        tensors = [self._tensor() for _ in range(count)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise _DamagedError(f"general.alignment is {alignment}")
        return metadata, tensors, -(-self._at // alignment) * alignment

    def _take(self, what: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{what}", self._data, self._at)
        self._at += struct.calcsize(f"<{what}")
        return found

    def _string(self) -> str:
        (length,) = struct.unpack_from("<Q", self._data, self._at)
        start, self._at = self._at + 8, self._at + 8 + length
        if self._at > len(self._data):
            raise struct.error("a string passes the end")
        return self._data[start : self._at].decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._take(self._format(kind))[0]
        kind, count = self._take("IQ")
        if kind == STRING:
            return [self._string() for _ in range(count)]
        if kind == ARRAY:
            return [self._value(ARRAY) for _ in range(count)]
        return list(self._take(f"{count}{self._format(kind)}"))

    def _format(self, kind: int) -> str:
        if kind not in NUMBERS:
            raise _DamagedError(f"a value of type {kind}")
        return NUMBERS[kind]

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (dimensions,) = self._take("I")
        if dimensions > MAX_DIMENSIONS:
            raise _DamagedError(f"{name} has {dimensions} dimensions")
        shape = self._take(f"{dimensions}Q")
        number, offset = self._take("IQ")
        return name, tuple(reversed(shape)), number, offset
