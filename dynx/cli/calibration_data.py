"""Reads `--data`: a file of prompts; a classifier's texts, or a folder or list of its pictures."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dynx.cli.classify.records import IMAGE_SUFFIXES, Records, layout
from dynx.cli.forms import reading
from dynx.errors import UsageError
from dynx.runtime.folders import walk
from dynx.runtime.utf8 import blank, read

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.cli.classify.records import Record
    from dynx.cli.forms import FormOptions
    from dynx.early_exit.features import Inputs
    from dynx.runtime.loading.check import ClassifierKind


def read_prompts(path: str) -> list[str]:
    """Return the prompts of a file, one per line; `-` is stdin. Raises UsageError for a file that is empty or unreadable."""
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as e:
        raise UsageError(f"--data {path} can't be read: {e.strerror}") from None
    # Cut where `generate --lines` cuts: a form feed or a Unicode line separator doesn't end a prompt.
    lines = [line.rstrip("\r") for line in read(data, path).split("\n") if line.strip()]
    if not lines:
        raise UsageError(f"--data {path} is empty", hint="one prompt per line")
    return lines


def read_inputs(
    path: str,
    kind: ClassifierKind,
    *,
    tsv: bool = False,
    column: str | None = None,
    field: str | None = None,
    forms: FormOptions | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> Inputs:
    """Return the inputs of a file (`-` is stdin), read whole: texts, pairs, or with `kind` "image" paths; or a folder's pictures.

    Rows that are no input are left out, and `warn` is called with how many and why. Raises UsageError where nothing can be read.
    """
    from dynx.early_exit.features import Inputs
    from dynx.early_exit.items import Pair, Query

    if kind == "image" and path != "-" and Path(path).is_dir():
        try:
            found = [Path(path) / inside / name for inside, names in walk(Path(path)) for name in names]
        except OSError as e:
            raise UsageError(f"--data {path} can't be read: {e.strerror}") from None
        files = sorted(p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not files:
            raise UsageError(f"--data {path} has no images", hint=f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
        return Inputs(files, [_mark(file) for file in files])
    as_read = {} if forms is None else reading(forms)
    shape = layout(tsv=tsv, column=column, field=field, **as_read, images=kind == "image", skip_empty=True)
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as e:
        raise UsageError(f"--data {path} can't be read: {e.strerror}") from None
    name = "stdin" if path == "-" else path
    if blank(data):
        raise UsageError(f"--data {path} is empty", hint="one input per line")
    rows = Records(["-"], io.BytesIO(data), shape, name=name)
    records: list[Record] = []
    bad: list[Record] = []
    for record in rows:
        (records if record.error is None else bad).append(record)
    if bad:
        reason = f"row {bad[0].index + 1}: {bad[0].error}"
        if not records:
            raise UsageError(f"--data {path} has no row that can be read; {reason}")
        warn(f"{len(bad):,} of {rows.rows:,} rows of --data can't be read and were left out ({reason})")
    places = [record.index for record in records]
    if kind == "image":
        paths = [record.path for record in records if record.path is not None]
        return Inputs(paths, [_mark(p) for p in paths], places, rows.rows)
    texts = [record.text for record in records if record.text is not None]
    if shape.ranked:
        queries = [Query(text, record.documents or ()) for text, record in zip(texts, records, strict=True)]
        return Inputs(queries, [each.name for each in queries], places, rows.rows)
    if not as_read.get("pair"):
        return Inputs(texts, texts, places, rows.rows)
    pairs = [Pair(text, record.text_pair or "") for text, record in zip(texts, records, strict=True)]
    return Inputs(pairs, [each.name for each in pairs], places, rows.rows)


def _mark(file: Path) -> str:
    """Identify a picture by its bytes, or by its name where the file can't be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else str(file)
    except OSError:
        return str(file)
