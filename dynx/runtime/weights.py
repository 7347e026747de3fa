"""Checks that a model's weights are unchanged to the byte, for what was converted from them or certified about them.

`hashing.model_hash` reads samples, which is enough to look costs up by and not to vouch for an answer. Here every byte counts.
A file is read once: its hash is kept in the cache folder with size, times, inode and device, and counts for as long as all of
these are equal. The time of the last change of the inode is among them, which copying with times kept, or setting them
back, moves on. A file that changed a moment ago isn't kept yet: a second change within the clock's tick would show in none
of them.

It loads no library beyond Python's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.errors import ModelError
from dynx.runtime.hashing import hash_json
from dynx.runtime.profile_store import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

HASH_DIGITS = 32
"""Hexadecimal digits of a hash: 128 bits."""

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
ADAPTER_CONFIG = "adapter_config.json"
"""Names the model that an adapter belongs to, and how much of it is added."""

IGNORED_CONFIGS = frozenset(
    {"generation_config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"}
)
"""Configuration files that don't describe the network."""

PIECE_BYTES = 64 << 20
"""Bytes hashed as one piece; a part of what the hash means, since the hash of a file is that of its pieces' hashes."""

READ_BYTES = 1 << 20
"""Bytes of one read."""

HASH_THREADS = 4
"""Pieces hashed at the same time: SHA-256 takes 1.7 GB a second of a current core, as much as disks give to a few."""

MIN_AGE_NS = 2_000_000_000
"""Age of a file's last change from which its times tell further changes: more than the coarsest file system's tick."""


def weights_hash(folder: Path, exclude: Iterable[str] = (), cache: Path | None = None) -> str:
    """Identify what a model computes with by 32 hex digits, of every byte of its weights.

    Counted are relative names and contents of all files of weights in `folder` and below it, of the networks' configurations,
    indices and code; hidden files aren't, nor what lies under the relative paths in `exclude`. Known hashes are looked up
    and kept in the folder `cache`, by default dynx's own; one that can't be written costs a reading each time. Raises
    `ModelError` where a file can't be read.
    """
    book = _Book(folder, cache_folder() / "weights" if cache is None else cache)
    digest = hashlib.sha256()
    try:
        for name, path in _files(folder, frozenset(item.strip("/") for item in exclude)):
            digest.update(hash_json([name, book.hash_of(name, path)]).encode())
            if path.name == ADAPTER_CONFIG:
                digest.update(_base_of(path, folder).encode())
    except OSError as error:
        raise ModelError(f"can't read the model in {folder}: {error.strerror or error}") from error
    book.close()
    return digest.hexdigest()[:HASH_DIGITS]


def why_others(measured: str | None, weights: Callable[[], str]) -> str | None:
    """Why what was `measured` on weights of that hash can't be relied on with these, in words; None where they are the same."""
    if measured is None:
        return "it doesn't say which weights it was measured on"
    return None if measured == weights() else "the weights were changed since it was measured"


def still(before: str, folder: Path, exclude: Iterable[str] = ()) -> str:
    """Return the hash `before` if it still holds. Raises `ModelError` where weights changed in between."""
    if weights_hash(folder, exclude) != before:
        raise ModelError(f"the weights in {folder} changed while they were measured", hint="run it again")
    return before


def _files(folder: Path, exclude: frozenset[str]) -> Iterator[tuple[str, Path]]:
    """Yield (relative name, path) of each file that counts in a fixed order, through links to folders, too."""
    found: dict[str, Path] = {}
    ahead: list[tuple[Path, str]] = [(folder, "")]
    met: set[tuple[int, int]] = set()
    while ahead:
        at, prefix = ahead.pop()
        known = at.stat()
        if (known.st_dev, known.st_ino) in met and known.st_ino:
            continue  # a link to a folder above
        met.add((known.st_dev, known.st_ino))
        for path in at.iterdir():
            name = prefix + path.name
            if path.name.startswith(".") or name in exclude:
                continue
            if path.is_dir():
                ahead.append((path, f"{name}/"))
            elif _counts(path.name):
                found[name] = path
    for name in sorted(found):
        yield name, found[name]


def _counts(name: str) -> bool:
    if name.endswith((*WEIGHT_SUFFIXES, ".py", ".index.json")) or name in ("model_index.json", "openvino_model.xml"):
        return True
    return name.endswith("config.json") and name not in IGNORED_CONFIGS


def _base_of(path: Path, folder: Path) -> str:
    """Identify the model that an adapter in `folder` is loaded onto; a random value where it is unknown."""
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    if not base or (folder / "model_index.json").is_file():
        return "none"
    other = Path(str(base))
    if not other.is_dir():
        return secrets.token_hex(16)
    if other.resolve() == folder.resolve():
        return "itself"
    return secrets.token_hex(16) if (other / ADAPTER_CONFIG).is_file() else weights_hash(other)


class _Book:
    """The hashes of a folder's files that are known, and what they were like."""

    def __init__(self, folder: Path, cache: Path) -> None:
        place = os.fsencode(folder.resolve())
        self._path = cache / f"{hashlib.sha256(place).hexdigest()[:24]}.json"
        self._known: dict[str, Any] = {}
        self._kept: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._known = dict(json.loads(self._path.read_text(encoding="utf-8")).items())

    def hash_of(self, name: str, path: Path) -> str:
        """Return the hash of a file's content, from the book or by reading it."""
        before = _look(path)
        known = self._known.get(name)
        if isinstance(known, dict) and known.get("look") == before and isinstance(known.get("sha256"), str):
            self._kept[name] = known
            return str(known["sha256"])
        began = time.time_ns()
        found = content_hash(path)
        if _look(path) == before and _changed(path) <= began - MIN_AGE_NS:
            self._kept[name] = {"look": before, "sha256": found}
        return found

    def close(self) -> None:
        """Write the hashes known now."""
        if self._kept == self._known:
            return
        draft = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            draft.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(self._kept, indent=1), encoding="utf-8")
            draft.replace(self._path)


def _look(path: Path) -> list[Any]:
    """Return a file's path, size, times and inode, which show a change without reading it."""
    seen = path.stat()
    place = os.fsencode(path.resolve()).decode("utf-8", "backslashreplace")
    return [place, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_dev]


def _changed(path: Path) -> int:
    """When a file last changed, in nanoseconds; on Windows, which calls the time of creation ctime, when it was written."""
    seen = path.stat()
    return seen.st_mtime_ns if os.name == "nt" else seen.st_ctime_ns


def content_hash(path: Path) -> str:
    """SHA-256 of the SHA-256 of each piece of `PIECE_BYTES` bytes of a file, pieces read side by side. Raises OSError."""
    size = path.stat().st_size

    def piece(start: int) -> bytes:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(READ_BYTES))
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            left = min(PIECE_BYTES, size - start)
            while left and (count := file.readinto(buffer[: min(READ_BYTES, left)])):
                digest.update(buffer[:count])
                left -= count
        return digest.digest()

    starts = range(0, size, PIECE_BYTES)
    if len(starts) < 2:
        pieces = [piece(start) for start in starts]
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(min(HASH_THREADS, os.cpu_count() or 1)) as pool:
            pieces = list(pool.map(piece, starts))
    whole = hashlib.sha256(size.to_bytes(8, "little"))
    for each in pieces:
        whole.update(each)
    return whole.hexdigest()
