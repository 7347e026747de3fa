"""Rows come back as they were written, from every format and for any cut into shards; a bad row is an error in its place."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
from typing import TYPE_CHECKING, Any

import pytest
from support.classifier_folders import write_pictures

from dynx.errors import InvalidInput
from dynx.jobs.inputs import MARK_ROWS, Source, count, find, read, shards
from dynx.runtime.inputs import InputError

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 2 * MARK_ROWS + 300
TEXTS = [
    f"row {i}" + (' with "quotes"' if i % 7 == 0 else "") + ("\nand lines" if i % 11 == 0 else "") for i in range(ROWS)
]
FLAT = [text.replace("\n", " ") for text in TEXTS]


def write(path: Path, texts: list[str]) -> Path:
    """A file of texts in the format of its name."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".txt"):
        data = "\ufeff" + "\r\n".join(texts)
    elif name.endswith(".jsonl"):
        data = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            table = csv.writer(file, delimiter="," if name.endswith(".csv") else "\t")
            table.writerows([["id", "text"], *([i, text] for i, text in enumerate(texts))])
        data = path.read_bytes().decode()
    path.write_bytes(gzip.compress(data.encode()) if path.suffix == ".gz" else data.encode())
    return path


def one(path: Path, column: str | None = None) -> Source:
    """The only source of a file."""
    [source] = count(find([str(path)]), column)
    return source


def values(source: Source, rows: int) -> list[Any]:
    """All rows of a source, read in shards."""
    return [value for shard in shards([source], rows) for value in read(source, shard)]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv", "b.txt.gz", "b.jsonl.gz", "b.csv.gz"])
def test_rows_come_back(tmp_path: Path, name: str) -> None:
    """Quotes, line ends in cells, byte order marks and compression change nothing, wherever a shard begins."""
    texts = FLAT if ".txt" in name else TEXTS
    source = one(write(tmp_path / name, texts))
    assert source.rows == ROWS
    for rows in (317, MARK_ROWS, ROWS):
        assert values(source, rows) == texts


def test_parquet_and_zstd(tmp_path: Path) -> None:
    """Rows of Parquet come from any row group, and from inside of cells; zstd is read too."""
    pa = pytest.importorskip("pyarrow", reason="dynx[jobs] isn't installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"id": range(ROWS), "text": TEXTS}), tmp_path / "a.parquet", row_group_size=700)
    with pa.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as file:
        file.write(write(tmp_path / "plain.jsonl", TEXTS).read_bytes())
    for name in ("a.parquet", "a.jsonl.zst"):
        assert values(one(tmp_path / name), 317) == TEXTS
    rows = [{"turns": [text, "more"], "of": {"text": text}} for text in TEXTS[:40]]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    for column in ("turns.0", "of.text"):
        assert values(one(tmp_path / "b.parquet", column), 7) == TEXTS[:40]
    with pytest.raises(InvalidInput, match="no `column`"):
        one(tmp_path / "b.parquet", "other.text")


def test_pieces_of_a_shard_hold_its_rows(tmp_path: Path) -> None:
    """A shard that is cut again and again still names the same rows, also past a mark of the file."""
    source = one(write(tmp_path / "a.csv", TEXTS))
    for shard in shards([source], 1500):
        pieces = [small for piece in shard.split(16) for small in piece.split(16)]
        assert [value for piece in pieces for value in read(source, piece)] == read(source, shard)
        assert next(piece.start for piece in pieces) == shard.start
        assert sum(piece.rows for piece in pieces) == shard.rows


def test_bad_rows_are_errors_in_their_places(tmp_path: Path) -> None:
    """A row of another width, bytes that aren't UTF-8, broken JSON, a missing key: each is that row's error."""
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,one\n2,two,too many\n3,\xff\n\n4,four\n")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n{"text"\n{"body": 1}\n{"text": 5}\n\xff\n{"text": "six"}\n')
    (tmp_path / "a.txt").write_bytes(b"one\n\xff\n\nfour\n")
    table, objects, lines = (values(one(tmp_path / name), 2) for name in ("a.csv", "a.jsonl", "a.txt"))
    assert [isinstance(v, InputError) for v in table] == [False, True, True, False]
    assert [isinstance(v, InputError) for v in objects] == [False, True, True, True, True, False]
    assert (table[0], table[-1], objects[-1]) == ("one", "four", "six")
    assert [v if isinstance(v, str) else None for v in lines] == ["one", None, "", "four"]


def test_a_quote_that_never_closes_ends_at_the_file(tmp_path: Path) -> None:
    """It takes the rest of its file, as one bad row; what comes before is read."""
    (tmp_path / "a.csv").write_text('text,n\none,1\n"two,2\nthree,3\n')
    first, second = values(one(tmp_path / "a.csv", "text"), 1)
    assert first == "one"
    assert isinstance(second, InputError)


def test_the_column(tmp_path: Path) -> None:
    """It is the one named, a usual one, or the only one; else the error lists what there is."""
    (tmp_path / "a.csv").write_text("id,body\n1,one\n")
    (tmp_path / "b.csv").write_text("body\none\n")
    (tmp_path / "c.jsonl").write_text('{"turns": ["one", "two"]}\n')
    with pytest.raises(InvalidInput, match="known to hold") as error:
        one(tmp_path / "a.csv")
    assert "id, body" in str(error.value.hint)
    with pytest.raises(InvalidInput, match='"text"'):
        one(tmp_path / "a.csv", "text")
    assert values(one(tmp_path / "a.csv", "body"), 9) == ["one"]
    assert values(one(tmp_path / "b.csv"), 9) == ["one"]
    assert values(one(tmp_path / "c.jsonl", "turns.1"), 9) == ["two"]


def test_patterns_folders_and_what_isn_t_there(tmp_path: Path) -> None:
    """Files come in the order of their names; nothing found, an unknown format and no rows are errors."""
    for name in ("b.txt", "a.txt", "c.dat"):
        (tmp_path / name).write_text("x\n")
    assert [source.path.rpartition("/")[2] for source in find([str(tmp_path)])] == ["a.txt", "b.txt"]
    assert len(find([str(tmp_path / "*.txt"), str(tmp_path / "a.txt")])) == 3
    with pytest.raises(InvalidInput, match="no file"):
        find([str(tmp_path / "none*")])
    with pytest.raises(InvalidInput, match="format"):
        find([str(tmp_path / "c.dat")])
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InvalidInput, match="no rows"):
        count(find([str(tmp_path / "a.txt")]), None)


def test_damaged_files_are_told_by_name(tmp_path: Path) -> None:
    """Not a traceback: a file cut short, one in another format, one that may not be read."""
    whole = gzip.compress("\n".join(FLAT).encode())
    (tmp_path / "cut.txt.gz").write_bytes(whole[:-20])
    (tmp_path / "other.txt.gz").write_bytes(b"no gzip")
    for name in ("cut.txt.gz", "other.txt.gz"):
        with pytest.raises(InvalidInput, match=f"{name} can't be read"):
            one(tmp_path / name)
    if importlib.util.find_spec("pyarrow"):
        (tmp_path / "other.parquet").write_bytes(b"no parquet file at all")
        with pytest.raises(InvalidInput, match=r"other.parquet can't be read"):
            one(tmp_path / "other.parquet")


def test_images_are_one_source(tmp_path: Path) -> None:
    """The images of a folder are rows in the order of their names."""
    paths = write_pictures(tmp_path / "pictures", 5)
    source = one(tmp_path / "pictures")
    assert values(source, 2) == sorted(paths)


def test_other_file_systems(tmp_path: Path) -> None:
    """Any address that fsspec opens is read."""
    import fsspec

    with fsspec.open("memory://jobs/a.txt", "wb") as file:
        file.write("\n".join(FLAT).encode())
    [source] = count(find(["memory://jobs/*.txt"]), None)
    assert values(source, 999) == FLAT


@pytest.mark.parametrize("name", ["a.jsonl", "a.tsv", "a.csv"])
def test_pairs_come_from_two_columns(tmp_path: Path, name: str) -> None:
    """A tuple for each row; a row that lacks one of the texts has the reason in its place."""
    rows = [(f"one {i}", f"other {i}") for i in range(5)]
    if name.endswith(".jsonl"):
        lines = [json.dumps({"a": a, "b": b}) for a, b in rows] + [json.dumps({"a": "alone"})]
    else:
        mark = "\t" if name.endswith(".tsv") else ","
        lines = [f"a{mark}b", *(f"{a}{mark}{b}" for a, b in rows), "alone"]
    (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    [source] = count(find([str(tmp_path / name)]), "a", "b")
    found = values(source, 2)
    assert found[:5] == rows
    assert isinstance(found[5], InputError)


def test_pairs_need_columns(tmp_path: Path) -> None:
    """A file of lines has none."""
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(InvalidInput, match="no columns"):
        count(find([str(tmp_path / "a.txt")]), "a", "b")
