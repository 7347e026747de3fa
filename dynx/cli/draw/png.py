"""Stores how a picture was made in its PNG: a JSON text, and the standard's own keywords for other programs."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from dynx.errors import UsageError
from dynx.runtime.inputs import InputError
from dynx.runtime.pictures import opened

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

KEYWORD = "dynx"
SCHEMA = "dynx.picture/1"


def encode(picture: Image, facts: dict[str, Any]) -> bytes:
    """Return a PNG of `picture` with `facts`; "prompt" among them is also its description."""
    from PIL.PngImagePlugin import PngInfo

    from dynx import __version__

    info = PngInfo()
    text = json.dumps({"schema": SCHEMA, **facts}, ensure_ascii=False, allow_nan=False)
    info.add_itxt(KEYWORD, text)
    info.add_text("Software", f"dynx {__version__}")
    if prompt := facts.get("prompt"):
        info.add_itxt("Description", str(prompt))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read(path: Path) -> dict[str, Any]:
    """Return the facts of a file that `encode` made. Raises UsageError for any other file."""
    if not path.exists():
        raise UsageError(f"no such file: {path}")
    try:
        with opened(path) as file:
            file.load()
            text = file.info.get(KEYWORD)
    except InputError as e:
        raise UsageError(f"{path} can't be used as a picture: {e}") from None
    if not isinstance(text, str):
        raise UsageError(f"{path} has no dynx metadata: it wasn't drawn by dynx, or the metadata was removed")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
        raise UsageError(f"{path} has dynx metadata of an unknown version")
    return facts
