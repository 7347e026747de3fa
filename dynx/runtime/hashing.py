"""Short, stable names for things: a model's folder, a set of texts, a JSON value.

A model's hash has to be ready before the first token, whatever the model weighs, so weight files are sampled rather
than read through. What that sees and what it can't see is written at `model_hash`. Nothing here loads a model.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any, BinaryIO

from dynx.errors import ModelError
from dynx.runtime.folders import walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

HASH_DIGITS = 16  # 64 bits: a collision among a million models has odds of 3 in 100 million
SAMPLES_PER_FILE = 64
SAMPLE_BYTES = 64 * 1024
WHOLE_BYTES = SAMPLES_PER_FILE * SAMPLE_BYTES  # up to 4 MiB a file is read through
WHOLE_TENSOR_BYTES = (
    16 * 1024
)  # norms, biases and classifier heads are read whole: a fine-tune may have touched only those
TENSOR_SAMPLE_BYTES = 4 * 1024
MAX_HEADER_BYTES = 100_000_000  # safetensors refuses longer headers itself

CONFIG_FILES = frozenset({"config.json", "model_index.json", "scheduler_config.json"})
CODE_SUFFIX = ".py"
WEIGHT_SUFFIXES = (".safetensors", ".gguf")
"""Of the files that hold a folder's weights, the first that there are; `.bin` where there are none."""


def model_hash(folder: Path, exclude: Iterable[str] = (), *, code: bool = False) -> str:
    """Identify a model's weights and configuration by 16 hex digits, reading a few MiB of each weight file.

    `folder` is in Hugging Face layout, transformers or diffusers; subfolders count, linked ones too, hidden ones
    don't, nor what lies under the relative paths in `exclude` (a helper model kept inside). Hashed are relative names,

    the whole of `config.json`, `model_index.json` and `scheduler_config.json`, and of each `*.safetensors` (of `*.gguf`, else
    of `*.bin`, where a folder has none) its size and, up to 4 MiB, every byte. Of a larger file: the header, 64 evenly spaced samples of
    64 KiB (the last ends the file, where a `.bin` keeps its parts' checksums), each tensor up to 16 KiB, and 4 KiB from
    the middle of each larger one.

    With `code` the folder's Python files count too, for a model that is run by them. They are read whole.

    So retraining, another precision, one changed layer or a new head are seen; a few values edited by hand inside a
    large tensor are not, and neither are the tokenizer and preprocessor. Raises `ModelError` when there are no weights
    or they can't be read.
    """
    digest = hashlib.sha256()
    weights = 0
    try:
        for name, path in _model_files(folder, frozenset(item.strip("/") for item in exclude), code=code):
            weights += path.name not in CONFIG_FILES and path.suffix != CODE_SUFFIX
            _feed(digest, os.fsencode(name))
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                _feed(digest, str(size).encode())
                for start, end in _spans(file, size, path.name):
                    file.seek(start)
                    _feed(digest, file.read(end - start))
    except OSError as error:
        raise ModelError(f"can't read the model in {folder}: {error.strerror or error}") from error
    if not weights:
        raise ModelError(f"{folder} holds no weights", hint="a model folder has *.safetensors beside its config.json")
    return digest.hexdigest()[:HASH_DIGITS]


def text_hash(texts: Iterable[str]) -> str:
    """Identify a sequence of texts by 16 hex digits; order and borders between texts count."""
    digest = hashlib.sha256()
    for text in texts:
        _feed(digest, text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:HASH_DIGITS]


def hash_json(value: Any) -> str:
    """Identify a JSON value by 16 hex digits, whatever the order of its objects' keys.

    Raises `TypeError` for what JSON can't hold and `ValueError` for NaN and Infinity.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:HASH_DIGITS]


def _feed(digest: hashlib._Hash, data: bytes) -> None:
    """Add one field with its length, so that ("ab", "c") and ("a", "bc") differ."""
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)


def _model_files(folder: Path, exclude: frozenset[str], *, code: bool = False) -> Iterator[tuple[str, Path]]:
    """Yield (relative name, path) of each file that counts, in an order that doesn't depend on the file system."""

    def counts(path: Path) -> bool:
        return path.name[0] != "." and path.as_posix() not in exclude

    found = []
    for inside, names in walk(folder, counts):
        suffix = next((s for s in WEIGHT_SUFFIXES if any(name.endswith(s) for name in names)), ".bin")
        ends = (suffix, CODE_SUFFIX) if code else (suffix,)
        found += [(inside / name).as_posix() for name in names if name in CONFIG_FILES or name.endswith(ends)]
    for name in sorted(found):
        yield name, folder / name


def _spans(file: BinaryIO, size: int, name: str) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges of a file that stand for it."""
    if size <= WHOLE_BYTES or name in CONFIG_FILES or name.endswith(CODE_SUFFIX):
        yield 0, size
        return
    for index in range(SAMPLES_PER_FILE):
        start = (size - SAMPLE_BYTES) * index // (SAMPLES_PER_FILE - 1)
        yield start, start + SAMPLE_BYTES
    if name.endswith(".safetensors"):
        yield from _tensor_spans(file, size)


def _tensor_spans(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Yield the header's range and one range in each tensor; nothing where the header is damaged.

    Loading tells what is wrong with a damaged file, and better than a hash could.
    """
    file.seek(0)
    data = 8 + int.from_bytes(file.read(8), "little")
    if data > min(size, MAX_HEADER_BYTES):
        return
    yield 0, data
    file.seek(8)
    try:
        header = json.loads(file.read(data - 8))
        offsets = sorted(tuple(item["data_offsets"]) for name, item in header.items() if name != "__metadata__")
        ranges = [(data + int(start), data + int(end)) for start, end in offsets]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    for start, end in ranges:
        if not 0 <= start <= end <= size:
            return
        if end - start > WHOLE_TENSOR_BYTES:
            start = (start + end - TENSOR_SAMPLE_BYTES) // 2
            end = start + TENSOR_SAMPLE_BYTES
        yield start, end
