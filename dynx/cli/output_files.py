"""Checks the files that a command will write, before anything is measured: `--export FORMAT:PATH`, `--plot PATH`."""

from __future__ import annotations

import difflib
import os
from importlib.util import find_spec
from pathlib import Path

from dynx.bench.export import FORMATS
from dynx.bench.plot import FORMATS as PLOT_FORMATS
from dynx.errors import UsageError


def parse_export(spec: str) -> tuple[str, Path]:
    """Return format and path of `FORMAT:PATH`, checked before anything is measured.

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


def parse_plot(name: str) -> Path:
    """Return the path of --plot, checked before anything is measured.

    Raises UsageError for an ending that no plot has, a path that can't be written, and where matplotlib isn't installed.
    """
    path = Path(name)
    if path.suffix.lower().lstrip(".") not in PLOT_FORMATS:
        raise UsageError(f"--plot {name}: a plot is an SVG or a PNG file", hint=f"--plot {path.with_suffix('.svg')}")
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which isn't installed", hint="pip install 'dynx[plot]'")
    return writable(path, "", path.suffix.lstrip("."))


def writable(path: Path, prefix: str, ending: str) -> Path:
    """Return the path with ~ expanded, if a file may be written there. Raises UsageError; its hint begins with `prefix`."""
    path = path.expanduser()
    if path.is_dir():
        hint = f"name a file in it: {prefix}{path / 'bench'}.{ending}"
        raise UsageError(f"can't write {path}: it is a folder", hint=hint)
    if not path.parent.is_dir():
        raise UsageError(f"can't write {path}: the folder {path.parent} doesn't exist", hint=f"mkdir -p {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"can't write {path}: permission denied", hint="choose a file in a folder of your own")
    return path
