"""What `--data` names for a classifier: files of any layout, folders and lists of pictures."""

from __future__ import annotations

import io
import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from support.classifier_folders import write_pictures

from dynx.cli.calibration_data import read_inputs
from dynx.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("one\n\ntwo words\r\n", {}),
        ("id\ttext\n1\tone\n2\ttwo words\n3\n", {"tsv": True, "column": "text"}),
        ('{"t": "one"}\nnot JSON\n{"t": "two words"}\n{"u": 1}\n', {"field": "t"}),
    ],
)
def test_texts(tmp_path: Path, content: str, options: dict[str, str]) -> None:
    """Empty rows and rows that are none are left out; what remains tells itself apart."""
    path = tmp_path / "data"
    path.write_text(content)
    inputs = read_inputs(str(path), "text", **options)  # type: ignore[arg-type]

    assert inputs.items == inputs.names == ["one", "two words"]


def test_rows_left_out_are_told(tmp_path: Path) -> None:
    """How many, and why the first of them; the others keep their places in the data."""
    path, said = tmp_path / "data", list[str]()
    path.write_bytes(b'{"t": "one"}\n\n{"t": "\xff"}\n{"t": "two"}\n{"t": "a", "text_pair": "b"}\n')
    inputs = read_inputs(str(path), "text", field="t", warn=said.append)

    assert (inputs.items, inputs.places, inputs.rows) == (["one", "two"], [0, 3], 5)
    assert said == ["2 of 5 rows of --data can't be read and were left out (row 3: not UTF-8: byte 0xff at offset 21)"]


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads it."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"one\n")))

    assert read_inputs("-", "text").items == ["one"]


def test_pictures(tmp_path: Path) -> None:
    """A folder is searched for pictures, at any depth; a file lists them. Equal bytes have equal names."""
    one, two = write_pictures(tmp_path / "pictures" / "deep", 2)
    (tmp_path / "pictures" / "copy.PNG").write_bytes(one.read_bytes())
    (tmp_path / "pictures" / "notes.txt").write_text("none")
    (tmp_path / "pictures" / "folder.png").mkdir()
    found = read_inputs(str(tmp_path / "pictures"), "image")
    (tmp_path / "list").write_text(f"{two}\nnowhere.png\n")
    listed = read_inputs(str(tmp_path / "list"), "image")

    assert found.items == [tmp_path / "pictures" / "copy.PNG", one, two]
    assert found.names[0] == found.names[1] != found.names[2]
    assert [os.fspath(path) for path in listed.items] == [str(two), "nowhere.png"]
    assert listed.names == [found.names[2], "nowhere.png"]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """Nothing there, nothing in it, a folder of texts, bytes that are no text, a column that isn't there."""
    empty, bad, folder = tmp_path / "empty", tmp_path / "bad", tmp_path / "folder"
    empty.write_text("\n \n")
    bad.write_bytes(b"\xff\n")
    folder.mkdir()
    for path, kind, options, words in (
        (tmp_path / "nowhere", "text", {}, "No such file"),
        (empty, "text", {}, "is empty"),
        (folder, "text", {}, "can't be read"),
        (folder, "image", {}, "has no images"),
        (bad, "text", {}, "0xff at offset 0"),
        (empty, "text", {"column": "x"}, "--column requires --tsv"),
    ):
        with pytest.raises(UsageError, match=words):
            read_inputs(str(path), kind, **options)  # type: ignore[arg-type]
