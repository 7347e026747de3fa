"""What classify reads and writes: cuts, errors in their place, windows, and outputs that can be continued."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynx.cli.classify.output import SCHEMA, Document, Format, JsonLines, Table, escape, resume, unescape
from dynx.cli.classify.records import MAX_WINDOW_BYTES, Layout, Record, Records, layout, read_records, windows
from dynx.cli.pieces import CHUNK_BYTES, MAX_LINE_BYTES, pieces
from dynx.early_exit.types import Prediction
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

SURE = Prediction("good", 0.9, [("bad", 0.1), ("good", 0.9)], exit=2, layers=3)


def records(data: bytes, *arguments: str, **options: Any) -> list[Record]:
    """Everything read from `data` on stdin."""
    found = read_records(arguments, io.BytesIO(data), layout(**options))
    assert found is not None
    return list(found)


def texts(data: bytes, **options: Any) -> list[str | None]:
    """The texts alone."""
    return [record.text for record in records(data, **options)]


def errors(data: bytes, **options: Any) -> list[str | None]:
    """The errors alone."""
    return [record.error for record in records(data, **options)]


def numbered(count: int) -> Iterator[Record]:
    """Records called 0, 1, 2 and so on."""
    return (Record(i, str(i), None, str(i), size=len(str(i))) for i in range(count))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\ntwo", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"\n\none\n\n", ["", "", "one", ""]),
        (b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n", ["one", "\ufefftwo"]),
        ("a\x0bb\u2028c\x85d\n".encode(), ["a\x0bb\u2028c\x85d"]),
        (b" \ttabs stay \n", [" \ttabs stay "]),
    ],
    ids=["ended", "not ended", "CRLF", "empty ones", "BOM", "other line ends", "white space"],
)
def test_a_text_per_line(data: bytes, expected: list[str]) -> None:
    """Lines end at \\n or \\r\\n and nowhere else; empty ones count, and a byte order mark goes from the start only."""
    assert texts(data) == expected


def test_empty_lines_are_skipped_when_asked() -> None:
    """With --skip-empty the others keep their place in the input, and the skipped ones are counted."""
    found = read_records([], io.BytesIO(b"\none\n  \ntwo\n\n"), layout(skip_empty=True))

    assert found is not None
    assert [(r.index, r.text) for r in found] == [(1, "one"), (3, "two")]
    assert (found.rows, found.skipped) == (5, 3)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"", {}, "stdin is empty"),
        (b"", {"tsv": True, "column": "text"}, "stdin is empty"),
        (b"text\n", {"tsv": True, "column": "text"}, "a header but no rows"),
        (b"\n\n", {"skip_empty": True}, "all texts are empty"),
    ],
)
def test_nothing_to_classify_is_an_error(data: bytes, options: dict[str, Any], message: str) -> None:
    """Input without a single record is a mistake, and says which kind."""
    with pytest.raises(UsageError, match=message):
        records(data, **options)


def test_nul_separates_texts_of_several_lines() -> None:
    """With -0 line ends, carriage returns included, belong to the text."""
    assert texts(b"one\r\nmore\r\0two\0\0", nul=True) == ["one\r\nmore\r", "two", ""]


@pytest.mark.parametrize(
    ("data", "options", "expected", "error"),
    [
        (b"good\nb\xffd\nmore\n", {}, ["good", None, "more"], "not UTF-8: byte 0xff at offset 6"),
        (b"\xef\xbb\xbfb\xffd\nmore\n", {}, [None, "more"], "not UTF-8: byte 0xff at offset 4"),
        (b"good\0b\xffd\0more", {"nul": True}, ["good", None, "more"], "not UTF-8: byte 0xff at offset 6"),
        (
            b"n\ttext\n1\tx\n2\tb\xff\n\xff\tmore\n",
            {"tsv": True, "column": "text"},
            ["x", None, "more"],
            "not UTF-8: byte 0xff in the row at offset 11",
        ),
        (
            b'{"text": "\xff"}\n{"text": "more"}\n',
            {"field": "text"},
            [None, "more"],
            "not UTF-8: byte 0xff at offset 10",
        ),
    ],
    ids=["lines", "BOM", "NUL", "table", "JSON lines"],
)
def test_bytes_that_are_not_utf8_are_an_error_in_their_row(
    data: bytes, options: dict[str, Any], expected: list[str | None], error: str
) -> None:
    """The rows around it are read; the offset counts from the start of stdin, whatever the layout."""
    found = records(data, **options)

    assert [r.text for r in found] == expected
    assert [r.error for r in found if r.error] == [error]


def test_an_argument_that_is_not_utf8_is_an_error_in_its_row() -> None:
    """The shell passes any bytes; the other arguments are read."""
    found = records(b"", "a\udcff", "b")

    assert [(r.text, r.error) for r in found] == [(None, "not UTF-8: byte 0xff at offset 1"), ("b", None)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_another_encoding_is_no_matter_of_rows(encoding: str) -> None:
    """After the byte order mark of UTF-16 or UTF-32 any line may look like text and be none: the whole input is refused."""
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"

    with pytest.raises(UsageError, match=r"stdin is not UTF-8: byte 0xf[ef] at offset 0"):
        records(f"{mark}one\ntwo\n".encode(encoding))


def test_names_of_files_are_any_bytes(tmp_path: Path) -> None:
    """On Linux a name needn't be UTF-8: as an argument, a line, with -0 and in a table it leads to its file."""
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_text("found")
    table = b"id\tpath\n1\t" + name + b"\n"

    found = [
        records(b"", os.fsdecode(name), images=True),
        records(name + b"\n", images=True),
        records(name + b"\0", images=True, nul=True),
        records(table, images=True, tsv=True, column="path"),
    ]
    for (record,) in found:
        assert record.path is not None
        assert (record.error, record.path.read_text()) == (None, "found")
        assert JsonLines().render([(record, SURE)]).encode().count("caf\ufffd.png".encode()) == 1
        row = Table().render([(record, SURE)]).removesuffix("\n")
        assert row.endswith("caf\\xe9.png")
        assert os.fsencode(unescape(row.split("\t")[2])) == name


def test_a_line_that_is_too_long_is_an_error_in_its_row() -> None:
    """It isn't kept whole, and the lines around it are read, whatever their layout."""
    long = b"x" * (MAX_LINE_BYTES + 10)
    for options, good, expected in (
        ({}, b"good", "good"),
        ({"tsv": True, "column": "1"}, b"good\t1", "good"),
        ({"field": "t"}, b'{"t": "good"}', "good"),
    ):
        found = records(good + b"\n" + long + b"\n" + good + b"\n" + long, **options)  # type: ignore[arg-type]
        assert [r.text for r in found] == [expected, None, expected, None]
        assert [r.error for r in found if r.error] == ["longer than the 16 MiB that a line may have"] * 2
        assert all(len(r.raw) < 300 for r in found)


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 12, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_a_piece_that_is_too_long_leaves_the_others_where_they_are(size: int) -> None:
    """Offsets after it count all of its bytes, and so much comes of it that it is known to be too long."""
    found = list(pieces(io.BytesIO(b"one\n" + b"x" * size + b"\ntwo\nlast"), "stdin", longest=10))

    assert [(offset, piece) for offset, piece in found if b"x" not in piece and piece] == [
        (0, b"one"),
        (5 + size, b"two"),
        (9 + size, b"last"),
    ]
    assert len(found) == 4
    assert found[1][0] == 4
    assert (len(found[1][1]) > 10) == (size > 10)


def test_a_stream_without_line_ends_is_refused_before_it_fills_the_memory() -> None:
    """/dev/zero as input is an error in its row at once, and ends in one: it has no rows."""
    tracemalloc.start()
    with Path("/dev/zero").open("rb") as zeros:
        found = pieces(zeros, "stdin")
        assert len(next(found)[1]) > MAX_LINE_BYTES
        with pytest.raises(UsageError, match="1024 MiB without a line end"):
            list(found)
    assert tracemalloc.get_traced_memory()[1] < 4 * MAX_LINE_BYTES
    tracemalloc.stop()
    assert MAX_LINE_BYTES == 16 << 20


def test_a_directory_on_stdin_is_refused() -> None:
    """What can't be read says so in one line."""
    folder = os.open("/", os.O_RDONLY)

    class Stdin(io.RawIOBase):
        def readinto(self, buffer: Any) -> int:
            return len(os.read(folder, len(buffer)))

    with pytest.raises(UsageError, match="can't read stdin: Is a directory"):
        list(pieces(Stdin(), "stdin"))  # type: ignore[arg-type]
    os.close(folder)


def test_a_column_by_name() -> None:
    """The header names the columns; a row that is too short is an error in its place, an empty line an empty text."""
    found = records(b"\xef\xbb\xbfid\ttext\r\n1\tone\r\n2\r\n\r\n3\tthree\t\r\n", tsv=True, column="text")

    assert [r.text for r in found] == ["one", None, "", "three"]
    assert [r.error for r in found] == [None, "1 columns, and text is number 2", None, None]
    assert [r.raw for r in found] == ["one", "2", "", "three"]


def test_a_row_with_more_columns_than_the_header_is_an_error() -> None:
    """A tab inside a text that isn't quoted cuts it: half of it would be labelled as if it were all."""
    found = records(b"id\ttext\n1\thalf\tand half\n2\twhole\n", tsv=True, column="text")

    assert [(r.text, r.error) for r in found] == [(None, "3 columns, and the header has 2"), ("whole", None)]


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        (b'{"text": "a", "text_pair": "b"}\n{"text": "c", "text_pair": null}\n', {"field": "text"}, [None, "c"]),
        (b'{"text": "a", "text_pair": "b"}\n{"text_pair": "d"}\n', {"field": "text_pair"}, [None, "d"]),
        (b'{"text": "a", "text_pair": ""}\n{"text": "c", "pair": "d"}\n', {"field": "text"}, [None, "c"]),
        (b"text\ttext_pair\na\tb\nc\t\n", {"tsv": True, "column": "text"}, [None, "c"]),
    ],
)
def test_a_pair_is_not_half_read(data: bytes, options: dict[str, Any], expected: list[str | None]) -> None:
    """What transformers' pipeline reads as a pair says that pairs aren't classified; other keys beside the text mean nothing."""
    found = records(data, **options)

    assert [r.text for r in found] == expected
    assert [bool(r.error and r.error.startswith("half of a pair")) for r in found] == [True, False]


def test_a_key_that_occurs_twice_is_an_error() -> None:
    """Python's json would take the last value in silence."""
    found = records(b'{"text": "a", "text": "b"}\n{"text": "c"}\n', field="text")

    assert [r.text for r in found] == [None, "c"]
    assert found[0].error == 'not JSON: the key "text" occurs twice'


def test_a_column_by_number_has_no_header() -> None:
    """Digits count columns from 1 and the first line is a row."""
    assert texts(b"one\t0\ntwo\t1\n", tsv=True, column="1") == ["one", "two"]
    assert texts(b"one\t0\ntwo\t1\n", tsv=True, column="2") == ["0", "1"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("body", 'no column "body" on stdin; there is id, text'),
        ("3", "no column 3 on stdin; its first line has 2: id, text"),
    ],
)
def test_a_missing_column_names_those_there_are(column: str, message: str) -> None:
    """The complaint lists the header."""
    with pytest.raises(UsageError, match=message):
        records(b"id\ttext\n1\tone\n", tsv=True, column=column)


def test_a_table_of_commas_gets_a_hint() -> None:
    """A single column may mean another separator."""
    with pytest.raises(UsageError) as caught:
        records(b"id,text\n1,one\n", tsv=True, column="text")
    assert caught.value.hint == "columns are separated by tabs"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tsv": True}, "--tsv requires --column"),
        ({"column": "text"}, "--column requires --tsv"),
        ({"tsv": True, "column": "0"}, "numbers start at 1"),
        ({"nul": True, "field": "text"}, "-0 and --field exclude each other"),
        ({"tsv": True, "column": "a", "field": "b"}, "--tsv and --field exclude each other"),
    ],
)
def test_layouts_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    """Options that lack or exclude each other are refused."""
    with pytest.raises(UsageError, match=message):
        layout(**options)


def test_json_lines_keep_the_object() -> None:
    """The field is the text, and the whole object stays with it."""
    (record,) = records(b'{"id": 7, "text": "na\\u00efve \\ud83d\\ude00"}\n', field="text")

    assert record.text == record.raw == "naïve 😀"
    assert record.original == {"id": 7, "text": "naïve 😀"}


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"{'text': 1}", "not JSON: Expecting property name"),
        (b'["text"]', "not a JSON object"),
        (b'{"body": "x"}', 'no field "text"'),
        (b'{"text": null}', 'field "text" is not text'),
        (b'{"text": "x", "n": NaN}', "NaN is not a JSON number"),
        (b'{"text": "x", "n": 1e999}', "1e999 is too large"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
        (b"", "an empty line"),
    ],
    ids=["syntax", "list", "no field", "null", "NaN", "inf", "surrogate", "deep", "digits", "empty"],
)
def test_a_bad_json_line_is_an_error_in_its_place(line: bytes, error: str) -> None:
    """The lines around it are read, and the bad one is echoed as it is."""
    before, bad, after = records(b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n', field="text")

    assert (before.text, after.text) == ("a", "b")
    assert bad.text is None
    assert error in (bad.error or "")
    assert bad.raw == line.decode()


def test_empty_json_lines_are_skipped_when_asked() -> None:
    """--skip-empty leaves out empty lines and empty texts, and keeps errors."""
    data = b'\n{"text": ""}\n{"text": "a"}\n{}\n'

    assert [r.index for r in records(data, field="text", skip_empty=True)] == [2, 3]


def test_images_are_paths() -> None:
    """With an image model every text is a path; undecided, the suffix tells; with a text model none is."""
    data = b"a.PNG\nb c.jpeg\nnotes\n"

    assert [r.path for r in records(data, images=True)] == [Path("a.PNG"), Path("b c.jpeg"), Path("notes")]
    assert [r.path for r in records(data, images=None)] == [Path("a.PNG"), Path("b c.jpeg"), None]
    assert [r.path for r in records(data)] == [None] * 3
    assert [r.text for r in records(data, images=None)] == [None, None, "notes"]
    assert [r.raw for r in records(data, images=True)] == ["a.PNG", "b c.jpeg", "notes"]


def test_no_image_has_an_empty_path() -> None:
    """A path that can't be one is an error in its place."""
    assert errors(b"\na\0b\nc.png\n", images=True) == ["no path", "a path can't hold a NUL", None]


def test_arguments_win_over_stdin() -> None:
    """Each argument is a record, and stdin isn't touched."""
    stdin = io.BytesIO(b"piped\n")
    found = read_records(["one", "two words"], stdin, Layout())

    assert found is not None
    assert [(r.index, r.text) for r in found] == [(0, "one"), (1, "two words")]
    assert stdin.tell() == 0


def test_a_dash_stands_for_the_records_of_stdin() -> None:
    """They come in its place."""
    assert [r.text for r in records(b"a\nb\n", "first", "-", "last")] == ["first", "a", "b", "last"]


@pytest.mark.parametrize(
    ("arguments", "options", "never", "message"),
    [
        (["-", "-"], {}, False, "only once"),
        (["-"], {}, True, "--no-stdin forbids"),
        (["file.tsv"], {"tsv": True, "column": "a"}, False, "--tsv reads stdin"),
        (["a"], {"nul": True}, False, "-0 reads stdin"),
    ],
)
def test_arguments_that_do_not_fit(arguments: list[str], options: dict[str, Any], never: bool, message: str) -> None:
    """Contradictions are refused before anything is read."""
    with pytest.raises(UsageError, match=message):
        read_records(arguments, io.BytesIO(b"x"), layout(**options), never=never)


def test_nothing_is_read_from_a_terminal_unasked() -> None:
    """Without arguments, a terminal or --no-stdin leave nothing to do, for the caller to show help."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "rb") as stdin:
        assert read_records([], stdin, Layout()) is None
    os.close(ours)
    assert read_records([], io.BytesIO(b"x"), Layout(), never=True) is None


def test_begin_finds_bad_input_early_and_loses_nothing() -> None:
    """The first record is waited for once and still comes out."""
    found = Records(["-"], io.BytesIO(b"a\nb\n"), Layout())
    found.begin()
    assert [r.text for r in found] == ["a", "b"]
    with pytest.raises(UsageError, match="no column"):
        Records(["-"], io.BytesIO(b"a\nb\n"), Layout(columns=("text",))).begin()


def test_a_pipe_that_would_not_block_is_waited_for() -> None:
    """Another program may have left the descriptor non-blocking."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(reading, "rb") as stdin:
        found = pieces(stdin, "stdin")

        def feed() -> None:
            os.write(writing, b"one\n")
            os.close(writing)

        threading.Timer(0.02, feed).start()
        assert list(found) == [(0, b"one")]


def test_windows_give_a_slow_producer_its_answer_at_once() -> None:
    """A record is handed over while the producer still waits, as with tail -f, here until it has been answered."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin:
        found = windows(Records(["-"], stdin, Layout()))
        for text in ("one", "two"):
            os.write(writing, f"{text}\nhalf of the".encode())
            assert [(r.text or "").removeprefix("half of the") for r in next(found)] == [text]
        os.close(writing)
        assert [r.text for r in next(found)] == ["half of the"]
        assert list(found) == []


def test_windows_are_full_when_the_producer_is_fast() -> None:
    """With a patient linger each holds as many as it may, in order."""
    found = list(windows(numbered(2500), linger=60))

    assert [len(window) for window in found] == [1024, 1024, 452]
    assert [r.index for window in found for r in window] == list(range(2500))


@pytest.mark.parametrize(("size", "window", "ahead"), [(1, 4, 8), (MAX_WINDOW_BYTES, 1, 1)], ids=["records", "bytes"])
def test_windows_read_ahead_within_bounds(size: int, window: int, ahead: int) -> None:
    """The reader stops at twice a window, or at `ROOM` bytes, with one more record in its hands."""
    made, reached = 0, threading.Event()

    def source() -> Iterator[Record]:
        nonlocal made
        for i in range(1000):
            made += 1
            if made == window + ahead + 1:
                reached.set()
            yield Record(i, "", None, "", size=size)

    found = windows(source(), most=4, linger=60)
    assert len(next(found)) == window
    assert reached.wait(10)
    found.close()
    assert made == window + ahead + 1


def test_windows_raise_an_error_after_the_records_before_it() -> None:
    """What was read before an error is handed over first."""
    seen: list[str | None] = []

    def failing() -> Iterator[Record]:
        yield from numbered(2)
        raise UsageError("can't read stdin")

    with pytest.raises(UsageError, match="can't read stdin"):  # noqa: PT012
        for window in windows(failing(), most=1):
            seen += [r.text for r in window]
    assert seen == ["0", "1"]


def test_windows_closed_early_let_the_reader_end() -> None:
    """A consumer that stops, as under head, leaves no thread waiting for room."""
    ended = threading.Event()

    def source() -> Iterator[Record]:
        try:
            yield from numbered(10**9)
        finally:
            ended.set()

    found = windows(source(), most=2)
    next(found)
    found.close()
    assert ended.wait(10)


def test_windows_closed_early_do_not_wait_for_a_silent_pipe() -> None:
    """Closing returns while the reader is still in its read."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin:
        found = windows(Records(["-"], stdin, Layout()))
        os.write(writing, b"one\n")
        next(found)
        found.close()
        os.close(writing)
        for thread in threading.enumerate():
            if thread.name == "dynx-reader":
                thread.join(10)


def test_the_interpreter_ends_while_the_reader_waits() -> None:
    """A reader that waits inside the buffer of stdin would make Python abort at its exit."""
    code = """
import sys
from dynx.cli.classify.records import Layout, read_records, windows
print(next(windows(read_records([], sys.stdin.buffer, Layout())))[0].text)
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.wait(30) == 0  # stdin is still open
        assert process.stdout is not None
        assert process.stderr is not None
        assert (process.stdout.read(), process.stderr.read()) == (b"one\n", b"")


def test_a_hundred_thousand_lines_take_bounded_memory() -> None:
    """The peak is the window and what is read ahead, not the file."""
    reading, writing = os.pipe()
    line = b"a sentence of about sixty bytes, as in a file of reviews. \n"

    def feed() -> None:
        with os.fdopen(writing, "wb") as out:
            out.writelines([line] * 1000 * 100)

    feeder = threading.Thread(target=feed)
    count = 0
    tracemalloc.start()
    feeder.start()
    with os.fdopen(reading, "rb") as stdin:
        for window in windows(Records(["-"], stdin, Layout())):
            count += len(window)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    feeder.join()

    assert count == 100_000
    assert peak < 5_000_000  # the file has 5,900,000 bytes, and as records 40 million


@given(st.text())
def test_escaping_round_trips_in_one_cell(text: str) -> None:
    """Any text fits one line and one column, and comes back."""
    escaped = escape(text)

    assert not set(escaped) & set("\t\n\r")
    assert unescape(escaped) == text


@given(st.lists(st.text(st.characters(codec="utf-8"))), st.booleans())
def test_texts_round_trip_through_both_formats(inputs: list[str], ascii_only: bool) -> None:
    """The input can be read back from every line of every format."""
    pairs = [(Record(i, text, None, text), SURE) for i, text in enumerate(inputs)]
    for form in (Table(), Table(2), JsonLines(), JsonLines(ascii_only=ascii_only)):
        written = form.render(pairs).encode().split(b"\n")[:-1]
        assert all(form.fits(line) for line in written)
        assert [form.echo(line) for line in written] == inputs


def test_the_table() -> None:
    """Label, score, input; and what breaks lines or columns is escaped."""
    assert Table().render([(Record(0, "a\tb\nc\\", None, "a\tb\nc\\"), SURE)]) == "good\t0.9000\ta\\tb\\nc\\\\\n"


def test_the_table_of_several_scores() -> None:
    """Pairs from best to worst, as many in each row, errors included."""
    failed = Prediction.failed("broken\timage")
    written = Table(2).render([(Record(0, "x", None, "x"), SURE), (Record(1, None, None, "y"), failed)])

    assert written == "good\t0.9000\tbad\t0.1000\tx\n\terror: broken\\timage\t\t\ty\n"


def test_json_lines() -> None:
    """All keys in each line, the guarantee as long as it holds, the original object if there was one."""
    form = JsonLines(guarantee={"epsilon": 0.01})
    first = json.loads(form.render([(Record(0, "é", None, "é", original={"id": 1}), SURE)]))
    form.guarantee = None
    second, third = form.render(
        [(Record(1, "x", None, "x"), SURE), (Record(2, None, None, "y"), Prediction.failed("no"))]
    ).splitlines()

    assert first == {
        "schema": SCHEMA,
        "index": 0,
        "input": "é",
        "label": "good",
        "score": 0.9,
        "scores": {"good": 0.9, "bad": 0.1},
        "exit": 2,
        "layers": 3,
        "guarantee": {"epsilon": 0.01},
        "error": None,
        "original": {"id": 1},
    }
    assert list(first["scores"]) == ["good", "bad"]
    assert json.loads(second)["guarantee"] is None
    assert {k: v for k, v in json.loads(third).items() if v is not None} == {
        "schema": SCHEMA,
        "index": 2,
        "input": "y",
        "error": "no",
    }


def test_json_has_neither_nan_nor_foreign_letters() -> None:
    """A score that is no number is null, and ASCII is kept where stdout wants it."""
    text = JsonLines(1, ascii_only=True).render(
        [(Record(0, "é", None, "é"), Prediction("a", math.nan, [("a", math.nan), ("b", 0.5)]))]
    )

    assert text.isascii()
    assert json.loads(text)["scores"] == {"a": None}


@pytest.mark.parametrize("batches", [[], [0], [1], [2, 0, 3]], ids=str)
def test_a_document_is_valid_however_it_grew(batches: list[int]) -> None:
    """Written piece by piece, it is one JSON document whenever it is closed."""
    form = Document()
    source = numbered(9)
    text = "".join(form.render([(next(source), SURE) for _ in range(size)]) for size in batches) + form.close()

    document = json.loads(text)
    assert document["schema"] == SCHEMA
    assert [result["input"] for result in document["results"]] == [str(i) for i in range(sum(batches))]


def test_a_document_of_a_single_input_is_its_result() -> None:
    """No list of one."""
    form = Document(single=True)

    assert json.loads(form.render([(next(numbered(1)), SURE)]) + form.close())["label"] == "good"


@pytest.mark.parametrize("form", [Table(), Table(2), JsonLines()], ids=["table", "scores", "json"])
@pytest.mark.parametrize("torn", [0, 1, 9, 10_000], ids=["whole", "one byte", "some bytes", "all but one byte"])
def test_resuming_continues_where_the_whole_lines_end(tmp_path: Path, form: Format, torn: int) -> None:
    """A torn last line is cut off and done again, and the file ends up as if nothing had happened."""
    path = tmp_path / "out"
    whole = form.render((record, SURE) for record in numbered(5)).encode()
    extra = form.render([(Record(5, "5", None, "5"), SURE)]).encode()[:-1][:torn]
    path.write_bytes(whole + extra)

    resumed = resume(path, form)

    assert resumed.done == 5
    assert path.read_bytes() == whole
    rest = list(resumed.skip(numbered(8)))
    assert [r.index for r in rest] == [5, 6, 7]
    with path.open("a") as out:
        out.write(form.render((record, SURE) for record in rest))
    assert path.read_text() == form.render((record, SURE) for record in numbered(8))


def test_resuming_from_nothing(tmp_path: Path) -> None:
    """A missing or empty file, or one with a torn first line, means from the start."""
    path = tmp_path / "out"
    assert resume(path, Table()).done == 0
    assert not path.exists()
    path.write_bytes(b"")
    assert list(resume(path, Table()).skip(numbered(2))) == list(numbered(2))
    path.write_bytes(b"good\t0.9000\thalf of an inp")
    assert resume(path, Table()).done == 0
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("content", "form", "line"),
    [
        (b"my notes without a line end", Table(), 1),
        (b"my notes without a line end", JsonLines(), 1),
        (b"one\ttwo\tthree\n", Table(), 1),
        (b"good\t0.9\tx\nother\n", Table(), 2),
        (b"good\t0.9\tx\n", Table(2), 1),
        (b"good\t0.9\tx\n", JsonLines(), 1),
        (b"good\t0.9\tx\xff\n", Table(), 1),
        (f'{{"schema": "{SCHEMA}", "index": 0, "inp\n'.encode(), JsonLines(), 1),
        (Document().render([(Record(0, "x", None, "x"), SURE)]).encode(), JsonLines(), 1),
        (b"\x89PNG\r\n\x1a\n\0\0", Table(), 1),
    ],
)
def test_a_file_of_another_format_is_left_alone(tmp_path: Path, content: bytes, form: Format, line: int) -> None:
    """It may be anything, so nothing is cut from it."""
    path = tmp_path / "out"
    path.write_bytes(content)

    with pytest.raises(UsageError, match=f"^line {line} of .* isn't a result to resume from") as caught:
        resume(path, form)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_what_can_not_be_resumed(tmp_path: Path) -> None:
    """One document has no complete lines, and a folder is no file."""
    with pytest.raises(UsageError, match="can't be resumed"):
        resume(tmp_path / "out", Document())
    with pytest.raises(UsageError, match="needs a regular file"):
        resume(tmp_path, Table())


def test_resuming_with_another_input_is_refused(tmp_path: Path) -> None:
    """The last result must be about the record in its place."""
    path = tmp_path / "out"
    path.write_text(Table().render((record, SURE) for record in numbered(3)))

    with pytest.raises(UsageError, match="its result 3 doesn't match record 3"):
        list(resume(path, Table()).skip(Record(i, "x", None, "x") for i in range(5)))
    with pytest.raises(UsageError, match="has 3 results but the input has only 2 records"):
        list(resume(path, Table()).skip(numbered(2)))
