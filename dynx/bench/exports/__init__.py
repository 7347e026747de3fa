"""What a result can be written as: `FORMAT:PATH` for files that people and tools read.

Each format takes a list of results, for a bench of one model or of several. Specifications are checked before anything is
measured. Nothing here measures, judges or prints.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynx.bench.report import BenchResult

FORMATS: dict[str, str] = {
    "json": "json",
    "md": "md",
    "csv": "csv",
    "junit": "xml",
    "github-action-benchmark": "json",
}
"""The formats, with the usual ending of a file."""


def parse_export(spec: str) -> tuple[str, Path]:
    """Return format and path of `FORMAT:PATH`, checked so that a bad one is told before anything is measured.

    Raises UsageError for an unknown format, a missing path, a folder that isn't there, or one that can't be written.
    """
    form, colon, name = spec.partition(":")
    if not colon:
        raise UsageError(f"--export wants FORMAT:PATH, not {spec!r}", hint=f"did you mean {_guess(spec)}?")
    if form not in FORMATS:
        close = difflib.get_close_matches(form, FORMATS, n=1)
        hint = f"did you mean {close[0]}:{name}?" if close else f"the formats are {', '.join(FORMATS)}"
        raise UsageError(f"--export has no format {form!r}", hint=hint)
    if not name:
        raise UsageError(f"--export {spec} names no file", hint=f"write {form}:bench.{FORMATS[form]}")
    return form, writable(Path(name), f"{form}:", FORMATS[form])


def _guess(spec: str) -> str:
    if spec in FORMATS:
        return f"{spec}:bench.{FORMATS[spec]}"
    suffix = Path(spec).suffix.lstrip(".")
    form = next((form for form, ending in FORMATS.items() if suffix in (form, ending)), "json")
    return f"{form}:{spec}"


def writable(path: Path, prefix: str, ending: str) -> Path:
    """The path with ~ filled in, where a file may be written there. Raises UsageError; its hint begins with `prefix`."""
    path = path.expanduser()
    if path.is_dir():
        hint = f"name a file in it: {prefix}{path / 'bench'}.{ending}"
        raise UsageError(f"can't write {path}: it is a folder", hint=hint)
    if not path.parent.is_dir():
        raise UsageError(f"can't write {path}: there is no folder {path.parent}", hint=f"mkdir -p {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"can't write {path}: permission denied", hint="choose a file in a folder of your own")
    return path


def write(results: Sequence[BenchResult], spec: str, environment: Mapping[str, str] | None = None) -> Path:
    """Write the results as `FORMAT:PATH` says and return the path.

    Markdown also goes to the end of the file that `GITHUB_STEP_SUMMARY` names, if it is set. Raises UsageError for an unknown
    format or a path that can't be written.
    """
    form, path = parse_export(spec)
    text = content(form, results)
    _write(path, text.encode("utf-8", "replace"))
    summary = (os.environ if environment is None else environment).get("GITHUB_STEP_SUMMARY")
    if form == "md" and summary:
        _append(Path(summary), text + "\n")
    return path


def content(form: str, results: Sequence[BenchResult]) -> str:
    """The text of one format."""
    from dynx.bench.exports import tables
    from dynx.bench.report import to_json, to_markdown

    makers = {
        "json": to_json,
        "md": to_markdown,
        "csv": tables.to_csv,
        "junit": tables.to_junit,
        "github-action-benchmark": tables.to_action_benchmark,
    }
    return makers[form](results)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror or error}") from error


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"can't write the step summary {path}: {error.strerror or error}") from error
