"""The inputs that `--data` names for a classifier: a file of texts, or a folder or list of pictures."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dynx.cli.classify.records import IMAGE_SUFFIXES, Records, layout
from dynx.errors import UsageError

if TYPE_CHECKING:
    from dynx.early_exit.features import Inputs


def read_inputs(
    path: str, kind: Literal["text", "image"], *, tsv: bool = False, column: str | None = None, field: str | None = None
) -> Inputs:
    """The inputs of a file (`-` is stdin), read whole: texts, or with `kind` "image" paths; or a folder's pictures.

    Raises UsageError where it can't be read or holds none. Rows that are no input are left out.
    """
    from dynx.early_exit.features import Inputs

    if kind == "image" and path != "-" and Path(path).is_dir():
        files = sorted(p for p in Path(path).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not files:
            raise UsageError(f"--data {path} has no images", hint=f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
        return Inputs(files, [_mark(file) for file in files])
    shape = layout(tsv=tsv, column=column, field=field, images=kind == "image", skip_empty=True)
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as e:
        raise UsageError(f"--data {path} can't be read: {e.strerror}") from None
    name = "stdin" if path == "-" else path
    if not data.strip():
        raise UsageError(f"--data {path} is empty", hint="one input per line")
    records = [record for record in Records(["-"], io.BytesIO(data), shape, name=name) if record.error is None]
    if kind == "image":
        paths = [record.path for record in records if record.path is not None]
        return Inputs(paths, [_mark(p) for p in paths])
    texts = [record.text for record in records if record.text is not None]
    return Inputs(texts, texts)


def _mark(file: Path) -> str:
    """What tells a picture apart: its bytes; a file that can't be read is told apart by its name."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return str(file)
