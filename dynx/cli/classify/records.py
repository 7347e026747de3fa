"""Reads the records of `dynx classify`. Knows nothing of models; `output` writes the answers.

Input is streamed, so a file may be larger than memory, and cut by a `Layout`: a text per line, per NUL, per row of a
tab-separated table or per line of JSON. A reader thread (`windows`) hands over whatever has arrived: one line of a
`tail -f` at once, a thousand of a file.

    records = read_records(texts, sys.stdin.buffer, layout(tsv=True, column="text"))
    for window in windows(records):
        terminal.write(table.render(zip(window, answers(window), strict=True)))
"""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dynx.cli.pairs import names_of_pair
from dynx.cli.pieces import lines, not_utf8, shown, undecoded
from dynx.cli.tables import table
from dynx.errors import UsageError
from dynx.runtime.json_lines import NotAnObjectError, parse_object

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

    from dynx.cli.pieces import Line
    from dynx.cli.tables import Cells

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

MAX_WINDOW_RECORDS = 1024
MAX_WINDOW_BYTES = 8 << 20
"""Bytes of one window's records, and of the records read ahead."""

LINGER_SECONDS = 0.005
"""Seconds that a window waits for more records after its first one: too short to notice, long enough for a file to fill it."""

PAIR_SEPARATOR = "\t"
"""What stands between the texts of a pair in the input that the output echoes."""

QUERY_FIELDS = ("query", "documents")
"""Keys of a query and its documents in JSON lines."""

PAIR_KEY = "text_pair"
"""The key of a pair's second text, in the objects that transformers' pipeline takes."""


@dataclass(frozen=True)
class Record:
    """One input to classify: a text, the path of an image, or the reason why it can't be read."""

    index: int
    """Position in the input, from 0; skipped rows count."""
    text: str | None
    path: Path | None
    raw: str
    """Text that the output echoes; bytes that aren't UTF-8 as `surrogateescape` keeps them."""
    error: str | None = None
    original: dict[str, Any] | None = None
    """The whole JSON object, for JSON lines."""
    text_pair: str | None = None
    """The second text of a pair."""
    documents: tuple[str, ...] | None = None
    """The documents to rank for the text, a query."""
    size: int = 0
    """Number of its bytes in the input."""


@dataclass(frozen=True)
class Layout:
    """How stdin is split into records. At most one of `nul`, `columns` and `fields` is set; `layout` makes one.

    Two columns or fields are those of pairs.
    """

    nul: bool = False
    columns: tuple[str, ...] = ()
    """Column names in the header line, or numbers from 1 in a table without header."""
    fields: tuple[str, ...] = ()
    """Keys of the texts in JSON lines."""
    ranked: bool = False
    """Whether inputs are queries with documents: JSON lines, or rows of which the last column or key names the query."""
    images: bool | None = False
    """Whether each text is the path of an image; None decides by its suffix."""
    skip_empty: bool = False


def layout(
    *,
    nul: bool = False,
    tsv: bool = False,
    column: str | None = None,
    field: str | None = None,
    pair: str | None = None,
    rank: bool = False,
    group: str | None = None,
    images: bool | None = False,
    skip_empty: bool = False,
) -> Layout:
    """Return the layout for these options. Raises UsageError for options that exclude or require each other."""
    if group is not None and pair is None:
        raise UsageError("--group requires --pair", hint="--pair query,document --group id")
    if rank and pair is not None and group is None:
        raise UsageError("--rank with --pair requires --group, the name of what is equal for documents of one query")
    if rank and tsv and pair is None:
        raise UsageError("--rank with --tsv requires --pair and --group")
    names: tuple[str, ...] = () if pair is None else names_of_pair(pair)
    names = names if group is None else (*names, group)
    if tsv and column is None and not names:
        raise UsageError("--tsv requires --column", hint="a name from the header line, or 1, 2, … without a header")
    if column is not None and not tsv:
        raise UsageError("--column requires --tsv")
    columns = names if tsv and names else () if column is None else (column,)
    if any(_number(each) == 0 for each in columns):
        raise UsageError("--column numbers start at 1")
    if len({_number(each) is None for each in columns}) > 1:
        raise UsageError(f"--pair {pair}: two names, or two numbers")
    asked = [name for name, given in (("-0", nul), ("--tsv", tsv), ("--field", field is not None)) if given]
    if len(asked) > 1:
        raise UsageError(f"{asked[0]} and {asked[1]} exclude each other")
    given = [name for name, value in (("-0", nul), ("--column", column), ("--field", field)) if value]
    if (names or rank) and given:
        raise UsageError(f"{'--pair' if names else '--rank'} and {given[0]} exclude each other")
    fields = names if names and not tsv else () if field is None else (field,)
    if rank and not names:
        fields = QUERY_FIELDS
    return Layout(nul, columns, fields, rank or group is not None, images, skip_empty)


def _number(column: str | None) -> int | None:
    return int(column) if column is not None and column.isascii() and column.isdigit() else None


def read_records(arguments: Sequence[str], stdin: BinaryIO, layout: Layout, *, never: bool = False) -> Records | None:
    """Return the records, or None if there is no input and stdin is a terminal.

    Arguments are a record each and stdin is left alone, unless one of them is `-`: its records come in that place. Nothing
    may have been read from `stdin` before. Raises UsageError on arguments that don't fit together.
    """
    shaped = "-0" if layout.nul else "--tsv" if layout.columns else "--field" if layout.fields else ""
    if len(layout.columns or layout.fields) > 1:
        shaped = "--rank" if layout.ranked else "--pair"
    if "-" in arguments:
        if never:
            raise UsageError("- reads stdin, which --no-stdin forbids")
        if arguments.count("-") > 1:
            raise UsageError("- can be given only once")
    elif arguments and shaped:
        raise UsageError(f"{shaped} reads stdin, but the inputs are given as arguments", hint="a file: < FILE")
    elif not arguments and (never or stdin.closed or stdin.isatty()):
        return None
    return Records(list(arguments) or ["-"], stdin, layout)


class Records:
    """The records of one run, to iterate once.

    A row that is bad becomes a record with an error, whatever is wrong with it: bytes that aren't UTF-8 where a text is wanted
    (a path may be any bytes), a length beyond measure, quotes that don't match, half of a pair. Iterating raises UsageError for
    what is wrong with the whole input: a column that isn't there, no record at all, a stream that can't be read.
    """

    def __init__(self, arguments: Sequence[str], stdin: BinaryIO, layout: Layout, *, name: str = "stdin") -> None:
        self._arguments, self._stdin, self._layout = arguments, stdin, layout
        self._name = name  # of what stands in for stdin
        self._stream = self._read()
        self.rows = 0
        """Number of rows read so far, including skipped ones."""
        self.skipped = 0

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        return next(self._stream)

    def begin(self) -> None:
        """Wait for the first record and keep it, so that bad input is reported before a model is loaded."""
        first = next(self._stream, None)
        if first is not None:
            self._stream = chain([first], self._stream)

    def _read(self) -> Iterator[Record]:
        for argument in self._arguments:
            stdin = argument == "-"
            rows = _rows(self._stdin, self._layout, self._name) if stdin else iter([_typed(argument)])
            for row in rows:
                index, self.rows = self.rows, self.rows + 1
                if self._layout.skip_empty and row.empty and (row.error is None or row.blank):
                    self.skipped += 1
                else:
                    yield _record(index, row, self._layout.images)
        if self.rows == 0:
            raise UsageError(f"{self._name} is empty", hint="give a text: dynx classify 'What a fine day'")
        if self.rows == self.skipped:
            raise UsageError("all texts are empty, and --skip-empty skips them")


@dataclass(frozen=True)
class _Row:
    text: str | None
    size: int
    error: str | None = None
    line: str = ""
    original: dict[str, Any] | None = None
    bad: str | None = None
    """Why `text` isn't valid text; it may still be a path."""
    text_pair: str | None = None
    documents: tuple[str, ...] | None = None
    group: str | None = None
    """What is equal for all documents of a query."""

    @property
    def empty(self) -> bool:
        return not (self.text or "").strip() and not (self.text_pair or "").strip()

    @property
    def blank(self) -> bool:
        return not (self.text or self.line).strip()


def _record(index: int, row: _Row, images: bool | None) -> Record:
    text, error, path = row.text, row.error, None
    if text is not None and (images or (images is None and Path(text).suffix.lower() in IMAGE_SUFFIXES)):
        if not text:
            error = "no path"
        elif "\0" in text:
            error = "a path can't hold a NUL"
        else:
            path = Path(os.fsdecode(text.encode("utf-8", "surrogateescape")))  # its bytes, whatever the locale
        return Record(index, None, path, text, error, row.original, size=row.size)
    raw = text if text is None or row.text_pair is None else f"{text}{PAIR_SEPARATOR}{row.text_pair}"
    if row.bad is not None and raw is not None:
        return Record(index, None, None, raw, row.bad, row.original, size=row.size)
    raw = row.line if raw is None else raw
    return Record(index, text, None, raw, error, row.original, row.text_pair, row.documents, row.size)


def _typed(argument: str) -> _Row:
    data = argument.encode("utf-8", "surrogateescape")  # in a locale of ASCII alone any text comes escaped
    return _Row(data.decode("utf-8", "surrogateescape"), len(data), bad=not_utf8(data))


def _rows(stdin: BinaryIO, layout: Layout, name: str) -> Iterator[_Row]:
    if layout.columns:
        rows = _table_rows(table(lines(stdin, name, keep=True)), layout.columns, name)
        return _grouped(rows) if layout.ranked else rows
    found = lines(stdin, name, b"\0" if layout.nul else b"\n")
    if layout.ranked:
        if layout.fields == QUERY_FIELDS:
            return (_query_row(line) for line in found)
        return _grouped(_json_row(line, layout.fields) for line in found)
    if layout.fields:
        return (_json_row(line, layout.fields) for line in found)
    return (_line_row(line) for line in found)


def _line_row(line: Line) -> _Row:
    text, size, error, _, cut = line
    return _Row(None, size, error, text) if cut else _Row(text, size, bad=error)


def _table_rows(rows: Iterator[Cells], columns: Sequence[str], name: str) -> Iterator[_Row]:
    first = next(rows, None)
    if first is None:
        return
    header: Sequence[str] = ()
    if _number(columns[0]) is None:
        header = first.cells
        if first.error is not None:
            raise UsageError(f"the header of {name} can't be read: {first.error}")
        for column in columns:
            if column not in header:
                raise UsageError(
                    f'no column "{column}" on {name}; there is {shown(", ".join(header))}',
                    hint="columns are separated by tabs" if len(header) == 1 else None,
                )
        places = [header.index(column) for column in columns]
    else:
        places = [(_number(column) or 1) - 1 for column in columns]
        if first.error is None and max(places) >= len(first.cells):
            there = shown(", ".join(first.cells))
            raise UsageError(f"no column {max(places) + 1} on {name}; its first line has {len(first.cells)}: {there}")
        rows = chain([first], rows)
    empty = True
    for row in rows:
        empty = False
        yield _table_row(row, places, columns, header)
    if empty:
        raise UsageError(f"{name} has a header but no rows")


def _table_row(row: Cells, places: Sequence[int], columns: Sequence[str], header: Sequence[str]) -> _Row:
    """Return the chosen cells, or why there are none; a row with more cells than the header may be a text cut by a tab."""
    cells, error = row.cells, row.error
    missing = next((i for i, at in enumerate(places) if at >= len(cells)), None)
    if error is None and missing is None:
        if header and any(cells[len(header) :]):
            error = f"{len(cells)} columns, and the header has {len(header)}"
        elif len(places) == 1 and _is_half(header, cells, columns[0]):
            error = PAIR_ERROR
    elif error is None and missing is not None and row.line.strip():
        error = f"{len(cells)} columns, and {columns[missing]} is number {places[missing] + 1}"
    if error is not None:
        return _Row(None, row.size, error, row.line)
    texts = [cells[at] if at < len(cells) else "" for at in places]
    bad = next(filter(None, (undecoded(text, row.offset) for text in texts)), None)
    second, group = (*texts[1:], None, None)[:2]
    return _Row(texts[0], row.size, bad=bad, text_pair=second, group=group)


def _is_half(header: Sequence[str], cells: Sequence[str], column: str) -> bool:
    return PAIR_KEY in header and _is_pair({k: v for k, v in zip(header, cells, strict=False) if v}, column)


PAIR_ERROR = f'half of a pair: the row has a "{PAIR_KEY}" too, which --pair text,{PAIR_KEY} reads'


def _is_pair(row: Mapping[str, Any], key: str) -> bool:
    """Whether a row with a text under `key` is a pair in the form that transformers' pipeline takes."""
    return row.get(PAIR_KEY) is not None and (key != PAIR_KEY or row.get("text") is not None)


def _json_row(found: Line, keys: Sequence[str]) -> _Row:
    line, size, bad, _, _ = found
    if bad is not None:
        return _Row(None, size, bad, line)
    try:
        value = parse_object(line)
    except NotAnObjectError as e:
        return _Row(None, size, str(e), line)
    texts = [value.get(key) for key in keys]
    if len(texts) > 2 and isinstance(texts[2], int):  # a number names a query as well as a text
        texts[2] = str(texts[2])
    if all(isinstance(text, str) for text in texts):
        if len(keys) == 1 and _is_pair(value, keys[0]):
            return _Row(None, size, PAIR_ERROR, line, value)
        second, group = (*texts[1:], None, None)[:2]
        return _Row(texts[0], size, original=value, text_pair=second, group=group)
    key = next(key for key, text in zip(keys, texts, strict=True) if not isinstance(text, str))
    reason = f'field "{key}" is not text' if key in value else f'no field "{key}"'
    return _Row(None, size, reason, line, value)


def _query_row(found: Line) -> _Row:
    """Return a query with its documents."""
    line, size, bad, _, _ = found
    if bad is not None:
        return _Row(None, size, bad, line)
    try:
        value = parse_object(line)
    except NotAnObjectError as e:
        return _Row(None, size, str(e), line)
    for key in QUERY_FIELDS:
        if key not in value:
            return _Row(None, size, f'no field "{key}"', line, value)
    query, documents = (value[key] for key in QUERY_FIELDS)
    if not isinstance(query, str):
        return _Row(None, size, 'field "query" is not text', line, value)
    if not isinstance(documents, list) or not all(isinstance(each, str) for each in documents):
        return _Row(None, size, 'field "documents" is not a list of texts', line, value)
    return _Row(query, size, original=value, documents=tuple(documents))


def _grouped(rows: Iterator[_Row]) -> Iterator[_Row]:
    """Join rows that follow one another and are of the same query."""
    held: _Row | None = None
    documents: list[str] = []
    size = 0
    for row in rows:
        whole = row.error is None and row.bad is None and row.text_pair is not None
        if held is not None and whole and row.group == held.group:
            documents.append(row.text_pair or "")
            size += row.size
            if row.text != held.text and held.error is None:
                held = replace(
                    held, error=f"rows of {shown(held.group or '')} have different queries", line=held.text or ""
                )
            continue
        if held is not None:
            yield _joined(held, documents, size)
            held = None
        if not whole:
            yield row
            continue
        held, documents, size = row, [row.text_pair or ""], row.size
    if held is not None:
        yield _joined(held, documents, size)


def _joined(first: _Row, documents: Sequence[str], size: int) -> _Row:
    if first.error is not None:
        return _Row(None, size, first.error, first.line)
    return _Row(first.text, size, documents=tuple(documents))


def windows(
    records: Iterable[Record], most: int = MAX_WINDOW_RECORDS, *, linger: float = LINGER_SECONDS
) -> Generator[list[Record], None, None]:
    """Yield what has been read so far, 1 to `most` records at a time, while a thread reads at most `2 * most` ahead.

    An error of `records` is raised after the records before it. Closing the iterator early never waits for the thread.
    """
    shelf = _Shelf(most)
    threading.Thread(target=shelf.fill, args=(records,), name="dynx-reader", daemon=True).start()
    try:
        while window := shelf.take(linger):
            yield window
    finally:
        shelf.abandon()


class _Shelf:
    """A bounded queue whose consumer takes everything in it at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._records: deque[Record] = deque()
        self._size = 0
        self._ended = self._abandoned = False
        self._error: BaseException | None = None

    def fill(self, records: Iterable[Record]) -> None:
        """Put records in, in the reader thread, until they end, fail, or the queue is abandoned."""
        error: BaseException | None = None
        try:
            for record in records:
                if not self._put(record):
                    break
        except BaseException as e:  # noqa: BLE001 - raised again where the records are used
            error = e
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def _put(self, record: Record) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or not self._full(2 * self._most))
            self._records.append(record)
            self._size += record.size
            if len(self._records) == 1 or self._full(self._most):  # not each time: the consumer would wake for nothing
                self._changed.notify_all()
            return not self._abandoned

    def _full(self, most: int) -> bool:
        return len(self._records) >= most or (self._size >= MAX_WINDOW_BYTES and bool(self._records))

    def take(self, linger: float) -> list[Record]:
        """Take the next window, in the consumer; it is empty at the end. Raises what `records` raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or bool(self._records))
            self._changed.wait_for(lambda: self._ended or self._full(self._most), linger)
            window = [self._records.popleft() for _ in range(min(self._most, len(self._records)))]
            self._size -= sum(record.size for record in window)
            self._changed.notify_all()
        if not window and self._error is not None:
            raise self._error
        return window

    def abandon(self) -> None:
        """Stop the reader thread: nothing more is taken."""
        with self._changed:
            self._abandoned = True
            self._records.clear()
            self._changed.notify_all()
