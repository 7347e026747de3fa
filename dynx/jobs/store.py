"""Keep a job's files: its manifest, the parts of its output, a receipt for each part.

    out/parts/part-00000-000000000000-002048.parquet  answers, in files that sort as the input does
    out/pictures/00000-000000000000.png               pictures, which the answers name
    out/_dynx/job.json                                the manifest, written once
    out/_dynx/receipts/NAME.json                      a finished part: written last, so that only whole parts count
    out/_dynx/kinds/HASH.json                     what answers cost on a kind of machine
    out/_dynx/deaths                                  a line for each worker that died on a shard
    out/errors.jsonl, out/stats.json, out/_SUCCESS    written at the end, from the receipts

A file appears whole or not at all: locally it is written aside and renamed, elsewhere it is one upload.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.errors import DynxError, InvalidInput
from dynx.jobs.inputs import Shard, Source, filesystem, is_local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

FORMAT = 2
"""Version of the manifest."""

MANIFEST, RECEIPTS, DEATHS, KINDS = "_dynx/job.json", "_dynx/receipts", "_dynx/deaths", "_dynx/kinds"
PARTS, PICTURES = "parts", "pictures"


@dataclass(frozen=True)
class Store:
    """The folder of a job's output, at any address that fsspec writes to."""

    address: str

    @cached_property
    def _place(self) -> tuple[Any, str]:
        fs, path = filesystem(self.address)
        return fs, path.rstrip("/")

    def absolute(self) -> Store:
        """Return the same folder by an address that other processes know it by."""
        return Store(self._place[1]) if self.local else self

    @property
    def local(self) -> bool:
        """Whether it lies on this machine's disk."""
        return is_local(self._place[0])

    def path(self, name: str) -> str:
        """Return a file's path on its file system."""
        return f"{self._place[1]}/{name}"

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole. Raises DynxError where that can't be done."""
        fs, path = self._place[0], self.path(name)
        try:
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            if not self.local:
                fs.pipe_file(path, data)
                return
            aside = Path(path).with_name(
                f".{Path(path).name}.{os.getpid()}"
            )  # readers of a folder leave out such names
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError as e:
            raise DynxError(f"can't write {path}: {e.strerror or e}") from None

    def write_json(self, name: str, body: Any) -> None:
        """Write a JSON document."""
        self.write(name, json.dumps(body, ensure_ascii=False, allow_nan=False).encode() + b"\n")

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes; None where there is none."""
        try:
            data: bytes = self._place[0].cat_file(self.path(name))
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise self._no_folder from None
        except OSError as e:
            raise DynxError(f"can't read {self.path(name)}: {e.strerror or e}") from None
        return data

    @property
    def _no_folder(self) -> InvalidInput:
        return InvalidInput(f"`output` {self.address} is a file, and a job writes a folder")

    def read_json(self, name: str) -> Any:
        """Return a JSON document; None where there is none. Raises InvalidInput for anything else."""
        data = self.read(name)
        try:
            return None if data is None else json.loads(data)
        except ValueError:
            raise InvalidInput(f"{self.path(name)} isn't what a job writes") from None

    def documents(self, folder: str) -> Iterator[Any]:
        """Yield the JSON documents of a folder."""
        for name in self.names(folder):
            yield self.read_json(f"{folder}/{name}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this machine from working on the same job. Raises InvalidInput where one does."""
        if not self.local:
            yield
            return
        from filelock import FileLock, Timeout

        try:
            Path(self.path("_dynx")).mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise DynxError(f"can't write into `output` {self.address}: {e.strerror or e}") from None
        lock = FileLock(self.path("_dynx/lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InvalidInput(f"another process works on `output` {self.address}") from None
        try:
            yield
        finally:
            lock.release()

    def append(self, name: str, line: str) -> None:
        """Add a line to a file."""
        self.write(name, (self.read(name) or b"") + line.encode() + b"\n")

    def names(self, folder: str = "") -> set[str]:
        """Return the names of a folder's files and folders; none where it isn't there."""
        fs, path = self._place[0], self.path(folder).rstrip("/")
        fs.invalidate_cache()
        try:
            return {name.rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False)}
        except FileNotFoundError:
            return set()
        except NotADirectoryError:
            raise self._no_folder from None

    def keep_only(self, folder: str, names: set[str]) -> None:
        """Delete a folder's other files, which processes left when they were killed."""
        for name in self.names(folder) - names:
            self._place[0].rm_file(self.path(f"{folder}/{name}"))


@dataclass
class Manifest:
    """What a job is: written once, and what every later run of it must agree with."""

    about: dict[str, Any]
    """Task, the caller's options and the versions of packages, by name."""
    sources: list[Source]
    model: dict[str, Any]
    """What the answers depend on beyond the options, as the first worker found it: weights, precision, exits."""
    shards: list[Shard]
    certificate: dict[str, Any] | None = None
    """The rule that a sample of the job certified."""

    def write(self, store: Store) -> None:
        """Write it."""
        sources = [{f: v for f, v in asdict(s).items() if f != "marks"} for s in self.sources]
        body = {"format": FORMAT, "about": self.about, "model": self.model, "certificate": self.certificate}
        shards = [[getattr(shard, f.name) for f in fields(Shard)] for shard in self.shards]
        store.write_json(MANIFEST, {**body, "inputs": sources, "shards": shards})

    @classmethod
    def read(cls, store: Store) -> Manifest | None:
        """Return the manifest of a job that has begun, None where there is none. Raises InvalidInput for a foreign folder."""
        body = store.read_json(MANIFEST)
        if body is None:
            if store.names() - {"_dynx"}:
                raise InvalidInput(f"`output` {store.address} isn't empty and holds no job", hint="name a new folder")
            return None
        try:
            if body["format"] != FORMAT:
                raise InvalidInput(f"`output` {store.address} holds a job of another version of dynx")
            sources = [Source(**{**source, "columns": tuple(source["columns"])}) for source in body["inputs"]]
            return cls(body["about"], sources, body["model"], [Shard(*s) for s in body["shards"]], body["certificate"])
        except (KeyError, TypeError):
            raise InvalidInput(f"{store.path(MANIFEST)} isn't what a job writes") from None

    def check(self, about: Mapping[str, Any], sources: Sequence[Source]) -> None:
        """Raise InvalidInput with the difference where a caller now asks for something else, or the input has changed."""
        refuse_difference(self.about, about)
        now = {source.path: source for source in sources}
        then = {source.path: source for source in self.sources}
        for path in [*then, *now]:
            if path not in now or path not in then:
                what = "is no longer there" if path in then else "is new"
                raise refusal(f"{path} {what} among the inputs")
            if (now[path].size, now[path].version) != (then[path].size, then[path].version):
                raise refusal(f"{path} has changed since the job began")


def refuse_difference(then: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> None:
    """Raise InvalidInput that names the first value that differs; `where` it is another."""
    for name in [*then, *(name for name in now if name not in then)]:
        if then.get(name) != now.get(name):
            raise refusal(f"`{name}` was {_shown(then.get(name))} and is {_shown(now.get(name))} now{where}")


def refusal(difference: str) -> InvalidInput:
    """Return the error for a job that can't go on."""
    return InvalidInput(
        f"this isn't the job that `output` holds: {difference}",
        hint="repeat the command as it was, or name another folder for the output",
    )


def _shown(value: Any) -> str:
    return "given" if value is True else "not given" if value is None or value is False else str(value)


def part_name(shard: Shard, ending: str) -> str:
    """Return the name of a shard's part."""
    return f"part-{shard.name}.{ending}"


def encoder(form: str, columns: Mapping[str, str]) -> Callable[[list[dict[str, Any]]], bytes]:
    """Return the function that writes rows as Parquet with these columns and types of Arrow, or as JSON lines."""
    if form == "jsonl":

        def as_lines(rows: list[dict[str, Any]]) -> bytes:
            lines = (json.dumps({c: row.get(c) for c in columns}, ensure_ascii=False, allow_nan=False) for row in rows)
            return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")

        return as_lines
    from dynx.jobs.inputs import arrow
    from dynx.jobs.row_function import arrow_cell, arrow_type

    pa = arrow("; or write JSON lines: `jsonl`")
    schema = pa.schema([(name, pa.type_for_alias(arrow_type(kind))) for name, kind in columns.items()])

    def as_parquet(rows: list[dict[str, Any]]) -> bytes:
        sink = pa.BufferOutputStream()
        cells = [{name: arrow_cell(row.get(name), kind) for name, kind in columns.items()} for row in rows]
        pa.parquet.write_table(pa.Table.from_pylist(cells, schema=schema), sink, compression="zstd")
        written: bytes = sink.getvalue().to_pybytes()
        return written

    return as_parquet
