"""Tab-separated tables: Python's csv module is the judge of what they say."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynx.cli.pieces import lines
from dynx.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CELLS = st.text(st.sampled_from('ab"\t\n\r é'), max_size=6)


def rows(data: bytes) -> list[tuple[Sequence[str], str | None]]:
    """Cells and error of each row."""
    return [(row.cells, row.error) for row in table(lines(io.BytesIO(data), "stdin", keep=True))]


def written(content: list[list[str]], end: str, quoting: int) -> bytes:
    """As the csv module writes it."""
    out = io.StringIO(newline="")
    csv.writer(out, "excel-tab", lineterminator=end, quoting=quoting).writerows(content)  # type: ignore[arg-type]
    return out.getvalue().encode()


@given(
    st.lists(st.lists(CELLS, min_size=1, max_size=3), max_size=5),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
)
def test_what_the_csv_module_writes_is_read_back(content: list[list[str]], end: str, quoting: int) -> None:
    """Cell by cell, whatever is in them; with line ends of its own it leaves carriage returns unquoted, and can't read them."""
    if end == "\n":
        content = [[cell.replace("\r", "") for cell in cells] for cells in content]
    assert rows(written(content, end, quoting)) == [(cells, None) for cells in content]


@given(st.text(st.sampled_from('ab"\t\n '), max_size=30))
def test_any_table_is_read_as_the_csv_module_reads_it(text: str) -> None:
    """Where it reads all of it; where it complains, some line has an error and no line is lost."""
    found = rows(text.encode())
    try:
        expected = [row or [""] for row in csv.reader(io.StringIO(text, newline=""), "excel-tab", strict=True)]
    except csv.Error:
        assert any(error for _, error in found)
    else:
        assert found == [(cells, None) for cells in expected]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'a\t"open\nb\tfine\nc\t"so is this"\n', [None, ["b", "fine"], ["c", "so is this"]]),
        (b'"so" it is\tx\n2\ty\n', [None, ["2", "y"]]),
        (b'5" wide\tx\nsay "hi"\ty\n', [['5" wide', "x"], ['say "hi"', "y"]]),
        (b'a\t"two\r\nlines"\r\nb\tc\r\n', [["a", "two\r\nlines"], ["b", "c"]]),
        (b"a\rb\tx\nc\ty\n", [None, ["c", "y"]]),
        (b'"one"', [["one"]]),
        (b'x\t"open', [None]),
    ],
    ids=["never closed", "closed too early", "inside", "lines", "carriage return", "no line end", "open at the end"],
)
def test_quotes_that_do_not_match_are_an_error_of_their_line(data: bytes, expected: list[list[str] | None]) -> None:
    """The lines after it are rows of their own, also those that the open quote had taken in."""
    found = rows(data)

    assert [None if error else list(cells) for cells, error in found] == expected


def test_rows_come_as_their_lines_do() -> None:
    """A row is known before the next line has arrived."""
    asked = 0

    def arriving() -> Iterator[bytes]:
        nonlocal asked
        for line in (b'a\t"b', b'c"', b"d\te"):
            asked += 1
            yield line

    source = (line for piece in arriving() for line in lines(io.BytesIO(piece), "stdin", keep=True))
    found = table(source)
    assert (next(found).cells, asked) == (["a", "b\nc"], 2)
    assert (next(found).cells, asked) == (["d", "e"], 3)


def test_an_open_quote_does_not_fill_the_memory() -> None:
    """A cell ends somewhere, or its line is an error, and the lines are read again."""
    data = b'x\t"open\n' + b"a line of some length\t1\n" * 2000
    found = list(table(lines(io.BytesIO(data), "stdin", keep=True), longest=1000))

    assert [row.error is None for row in found] == [False] + [True] * 2000


def test_long_cells() -> None:
    """A quoted cell may be longer than the csv module takes by default."""
    text = 'long "text" ' * 20_000
    assert rows(written([[text, "x"]], "\n", csv.QUOTE_ALL)) == [([text, "x"], None)]
