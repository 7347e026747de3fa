"""Writes results to files, in each format that people and tools read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dynx.bench import document, formats, table
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dynx.bench.result import BenchResult

FORMATS: dict[str, str] = {
    "json": "json",
    "md": "md",
    "csv": "csv",
    "junit": "xml",
    "github-action-benchmark": "json",
}
"""The formats, with the usual ending of a file."""


def write(results: Sequence[BenchResult], form: str, path: Path, environment: Mapping[str, str] | None = None) -> Path:
    """Write the results in one of `FORMATS` and return the path.

    Markdown also goes to the end of the file that `GITHUB_STEP_SUMMARY` names, if it is set. Raises UsageError for a path that
    can't be written.
    """
    text = content(form, results)
    _write(path, text.encode("utf-8", "replace"))
    summary = (os.environ if environment is None else environment).get("GITHUB_STEP_SUMMARY")
    if form == "md" and summary:
        _append(Path(summary), text + "\n")
    return path


def content(form: str, results: Sequence[BenchResult]) -> str:
    """Return the text of one format."""
    makers = {
        "json": document.to_json,
        "md": table.to_markdown,
        "csv": formats.to_csv,
        "junit": formats.to_junit,
        "github-action-benchmark": formats.to_action_benchmark,
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
