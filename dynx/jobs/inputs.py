"""Find the files of a job, count their rows, and read ranges of rows again.

Files lie on a disk or at any address that fsspec opens: Parquet, CSV, TSV, JSON lines or text, maybe compressed by gzip or zstd,
and folders of images. A row that can't be read becomes an InputError in its place.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from array import array
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.errors import InvalidInput, UsageError
from dynx.runtime.hashing import text_hash
from dynx.runtime.inputs import InputError
from dynx.runtime.json_lines import NoFieldError, NotAnObjectError, field_of, parse_object
from dynx.runtime.utf8 import BOM

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

IMAGES = "images"
FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".text": "text",
    **dict.fromkeys((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"), IMAGES),
}
"""Formats by a file's suffix, without that of its compression."""

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
DELIMITERS = {"csv": ",", "tsv": "\t"}

USUAL_COLUMNS = ("text", "prompt", "messages", "question", "sentence", "turns.0")
"""Columns that hold the input where none is named, the first that there is."""

MARK_ROWS = 1024
"""Rows between the noted places of a file, from which a range of rows is read."""

BUFFER_BYTES = 1 << 20
"""Bytes read at a time."""

MAX_ROW_BYTES = 16 << 20
"""Bytes after which a quote that is never closed ends its row."""

csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))


@dataclass(frozen=True)
class Source:
    """A file of the input, or a set of images: what is known of it before a row is read."""

    path: str
    format: str
    size: int
    version: str
    """The time of its last change, its ETag, or the hash of the images' names and sizes."""
    columns: tuple[str, ...] = ()
    """The column that holds the inputs, or the two of pairs."""
    rows: int = 0
    marks: Sequence[int] = field(default=(), compare=False, repr=False)
    """Offsets in bytes of every `MARK_ROWS`-th row; empty where rows are found otherwise."""

    @property
    def compression(self) -> str | None:
        """How the file is compressed."""
        return COMPRESSIONS.get(Path(self.path).suffix.lower())


@dataclass(frozen=True, slots=True)
class Shard:
    """A range of rows of a file, which one worker answers at a time."""

    file: int
    first: int
    rows: int
    start: int
    """The number in the whole job of its first row."""
    mark: int = 0
    """Offset in bytes of a row at or before its first; 0 is the file's beginning."""
    skip: int = 0
    """Number of rows from there to its first."""

    @property
    def name(self) -> str:
        """A name that sorts as the input does."""
        return f"{self.file:05}-{self.first:012}-{self.rows:06}"

    def split(self, parts: int) -> list[Shard]:
        """Cut it into up to `parts` ranges."""
        size = -(-self.rows // parts)
        return [
            replace(self, first=self.first + i, rows=min(size, self.rows - i), start=self.start + i, skip=self.skip + i)
            for i in range(0, self.rows, size)
        ]


def find(patterns: Sequence[str]) -> list[Source]:
    """Return the sources that addresses and patterns name, in order. Raises InvalidInput."""
    return [source for pattern in patterns for source in _sources(pattern)]


def count(sources: Sequence[Source], column: str | None, second: str | None = None) -> list[Source]:
    """Choose each source's column and count its rows. Raises InvalidInput for a column that isn't there, or no rows at all.

    `second` is the column of the second texts, where inputs are pairs.
    """
    asked = [name for name in (column, second) if name is not None]
    counted = [_counted(_with_columns(source, asked)) for source in sources]
    if not any(source.rows for source in counted):
        raise InvalidInput("the input has no rows")
    return counted


def shards(sources: Sequence[Source], rows: int) -> list[Shard]:
    """Cut the sources into shards of at most `rows` rows."""
    made: list[Shard] = []
    start = 0
    for number, source in enumerate(sources):
        made += [
            _shard(source, number, first, min(rows, source.rows - first), start + first)
            for first in range(0, source.rows, rows)
        ]
        start += source.rows
    return made


def _shard(source: Source, file: int, first: int, rows: int, start: int) -> Shard:
    """Make a shard that begins to read at the nearest mark."""
    if not len(source.marks) or first < MARK_ROWS:
        return Shard(file, first, rows, start, 0, first)
    return Shard(file, first, rows, start, source.marks[first // MARK_ROWS], first % MARK_ROWS)


def read(source: Source, shard: Shard) -> list[Any]:
    """Return the input of each row: a text, a list of messages, the Path of an image, or the InputError of a bad row.

    Where inputs are pairs, each is a tuple of two texts.
    """
    if source.format == IMAGES:
        return [Path(path) for path in _images(source.path)[shard.first : shard.first + shard.rows]]
    if source.format == "parquet":
        return _parquet_rows(source, shard)
    table = source.format in DELIMITERS
    skip = shard.skip + (table and not shard.mark)
    with _open(source, shard.mark) as file:
        records = [row for _, row in islice(_records(file, source), skip, skip + shard.rows)]
    if len(records) != shard.rows:
        raise InvalidInput(f"{source.path} has changed: it has fewer rows than before")
    if table:
        names = list(_columns(source))
        places = [names.index(name) for name in source.columns]
        return [_cells(record, places, len(names)) for record in records]
    return [_value(record, source) for record in records]


def _with_columns(source: Source, asked: Sequence[str]) -> Source:
    """Return the source with the columns that hold its inputs: those asked for, or a usual one. Raises InvalidInput."""
    if source.format in (IMAGES, "text"):
        if len(asked) > 1:
            hint = "JSON lines, a table or Parquet has"
            raise InvalidInput(f"{source.path} has no columns, and two are asked for", hint=hint)
        return source
    if source.size == 0:
        raise InvalidInput(f"{source.path} is empty")
    there = _columns(source)
    shown = ", ".join(map(str, there))
    if not asked:
        usual = [name for name in USUAL_COLUMNS if _has(there, name)] or (list(there) if len(there) == 1 else [])
        if not usual:
            hint = f"`column` with one of: {shown}"
            raise InvalidInput(f"no column of {source.path} is known to hold the input", hint=hint)
        return replace(source, columns=(usual[0],))
    for name in asked:
        nested = source.format == "parquet" and name.partition(".")[0] in there
        if source.format != "jsonl" and not nested and not _has(there, name):  # other objects of JSON lines may have it
            raise InvalidInput(f'no `column` "{name}" in {source.path}; there is {shown}')
    return replace(source, columns=tuple(asked))


def _has(columns: dict[str, Any], name: str) -> bool:
    try:
        field_of(columns, name)
    except NoFieldError:
        return False
    return True


def filesystem(address: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and the path on it. Raises InvalidInput."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as e:
        raise InvalidInput(f"{address} can't be opened: {e}") from None
    return fs, path


def is_local(fs: Any) -> bool:
    """Whether files lie on this machine's disk."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _sources(pattern: str) -> Iterator[Source]:
    """Yield the data files that a pattern names, and its images as one source."""
    fs, path = filesystem(pattern)
    try:
        infos = _listed(fs, path)
    except OSError as e:
        raise InvalidInput(f"{pattern} can't be read: {e.strerror or e}") from None
    by_format = [(info, _format(info["name"])) for info in infos]
    known = [(info, form) for info, form in by_format if form is not None]
    if not known:
        if infos:
            hint = f"known: {', '.join(sorted(FORMATS))}, also with {' or '.join(COMPRESSIONS)}"
            raise InvalidInput(f"{infos[0]['name']} has no format that is known by its name", hint=hint)
        raise InvalidInput(f"no file matches {pattern}")
    for info, form in known:
        if form != IMAGES:
            name = fs.unstrip_protocol(info["name"]) if not is_local(fs) else info["name"]
            changed = next((str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified") if key in info), "")
            yield Source(name, form, int(info["size"] or 0), changed)
    if images := [info for info, form in known if form == IMAGES]:
        if not is_local(fs):
            raise InvalidInput(f"images are read from local folders, and {pattern} isn't one")
        version = text_hash(f"{info['name']} {info['size']}" for info in images)
        size = sum(int(info["size"]) for info in images)
        yield Source(path, IMAGES, size, version, rows=len(images))


def _listed(fs: Any, path: str) -> list[dict[str, Any]]:
    """Return what is known of each file that a path or pattern names, in order of their names."""
    if fs.isdir(path):
        found = fs.find(path, detail=True)
    elif any(mark in path for mark in "*?["):
        found = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
    else:
        found = {path: fs.info(path)} if fs.exists(path) else {}
    visible = {name: info for name, info in found.items() if not name.rpartition("/")[2].startswith(".")}
    return [visible[name] for name in sorted(visible)]


@cache
def _images(pattern: str) -> list[str]:
    fs, path = filesystem(pattern)
    return [info["name"] for info in _listed(fs, path) if _format(info["name"]) == IMAGES]


def _format(path: str) -> str | None:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


@contextmanager
def _open(source: Source, mark: int = 0) -> Iterator[Any]:
    """Open a file's uncompressed bytes at `mark`; at 0, after a byte order mark. Any failure inside becomes InvalidInput."""
    try:
        fs, path = filesystem(source.path)
        with ExitStack() as stack:
            file: Any = Path(path).open("rb") if is_local(fs) else fs.open(path, "rb")  # noqa: SIM115 - the stack closes it
            stack.enter_context(file)
            if source.compression == "gzip":
                file = stack.enter_context(gzip.open(file))
            elif source.compression == "zstd":
                file = stack.enter_context(arrow().input_stream(file, compression="zstd"))
            if not isinstance(file, io.BufferedReader):
                file = stack.enter_context(io.BufferedReader(file, BUFFER_BYTES))
            if mark:
                file.seek(mark)
            elif source.format != "parquet" and file.peek(len(BOM)).startswith(BOM):
                file.read(len(BOM))
            yield file
    except InvalidInput:
        raise
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as e:  # pyarrow's errors are ValueErrors
        reason = getattr(e, "strerror", None) or next(iter(str(e).splitlines()), type(e).__name__)
        raise InvalidInput(f"{source.path} can't be read: {reason}") from None


def arrow(instead: str = "") -> Any:
    """Return pyarrow. Raises UsageError where it isn't installed, with what else can be done `instead`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError:
        hint = f"pip install 'dynx[jobs]'{instead}"
        raise UsageError("Parquet and zstd need pyarrow, which isn't installed", hint=hint) from None
    return pa


class _Lines:
    """The lines of a file as text, and how many bytes they have."""

    def __init__(self, file: Iterator[bytes]) -> None:
        self._file, self.size = file, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.size += len(line)
        return line.decode("utf-8", "surrogateescape")


def _records(file: Iterator[bytes], source: Source) -> Iterator[tuple[int, Any]]:
    """Yield the number of bytes since the last row, and each row: a line, or the cells of a table, or the csv.Error of a bad one.

    Empty lines aren't rows of a table.
    """
    if source.format not in DELIMITERS:
        for line in file:
            yield len(line), line
        return
    lines, before = _Lines(file), 0
    rows = csv.reader(lines, delimiter=DELIMITERS[source.format], strict=True)
    while True:
        try:
            row: Any = next(rows)
        except StopIteration:
            return
        except csv.Error as e:
            row = e
        if row:
            yield lines.size - before, row
            before = lines.size


def _counted(source: Source) -> Source:
    """Return the source with its rows counted and marked."""
    if source.format == IMAGES:
        return source
    with _open(source) as file:
        if source.format == "parquet":
            return replace(source, rows=arrow().parquet.ParquetFile(file).metadata.num_rows)
        offset = 0 if source.compression else file.tell()
        records = _records(file, source)
        if source.format in DELIMITERS:
            offset += next(records, (0, None))[0]
        marks, rows = array("q"), 0
        for size, _ in records:
            if rows % MARK_ROWS == 0:
                marks.append(offset)
            offset += size
            rows += 1
    return replace(source, rows=rows, marks=() if source.compression else marks)


def _cells(cells: list[str] | csv.Error, places: Sequence[int], width: int) -> Any:
    if isinstance(cells, csv.Error):
        return InputError(f"not a row of a table: {cells}")
    if len(cells) != width:
        return InputError(f"{len(cells)} columns, and the header has {width}")
    found = tuple(cells[at] for at in places)
    try:
        "".join(found).encode()
    except UnicodeEncodeError:
        return InputError("not UTF-8")
    return found if len(found) > 1 else found[0]


def _value(record: bytes, source: Source) -> Any:
    """Return the text of a line, or what the columns of its object hold."""
    try:
        line = record.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as e:
        return InputError(f"not UTF-8: byte {record[e.start]:#04x} at offset {e.start} of the line")
    if source.format == "text":
        return line
    try:
        return _fields(parse_object(line), source.columns)
    except NotAnObjectError as e:
        return InputError(str(e))


def _fields(values: dict[str, Any], names: Sequence[str]) -> Any:
    found = []
    for name in names:
        try:
            found.append(field_of(values, name))
        except NoFieldError:
            return InputError(f'no column "{name}"')
        if not isinstance(found[-1], str | list | dict):
            return InputError(f'column "{name}" holds no text')
    return tuple(found) if len(found) > 1 else found[0]


def _parquet_rows(source: Source, shard: Shard) -> list[Any]:
    with _open(source) as raw:
        file = arrow().parquet.ParquetFile(raw)
        there = set(file.schema_arrow.names)
        columns = list(dict.fromkeys(n if n in there else n.partition(".")[0] for n in source.columns))
        groups, before, end = [], 0, 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if end + rows <= shard.first:
                before += rows
            elif end < shard.first + shard.rows:
                groups.append(group)
            end += rows
        table = file.read_row_groups(groups, columns=columns).slice(shard.first - before, shard.rows)
    return [_fields(row, source.columns) for row in table.to_pylist()]


@cache
def _columns(source: Source) -> dict[str, Any]:
    """Return the columns of a source by name, or the first object of JSON lines."""
    with _open(source) as file:
        if source.format == "parquet":
            return dict.fromkeys(arrow().parquet.ParquetFile(file).schema_arrow.names)
        _, first = next(_records(file, source), (0, b""))
        if isinstance(first, csv.Error):
            raise first
    if source.format in DELIMITERS:
        return dict.fromkeys(first)
    try:
        return parse_object(first.decode("utf-8", "replace"))
    except NotAnObjectError:
        return {}
