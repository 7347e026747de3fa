"""Facts in a picture's file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dynx.cli.draw.png import encode, read
from dynx.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

PICTURE = Image.new("RGB", (4, 3), (1, 2, 3))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Any text, numbers to the last digit, and the pixels as they were."""
    facts = {"prompt": "größe “x” 🦊\nline", "seed": 2**63, "grid": [999.0, 1 / 3], "guidance": None}
    path = tmp_path / "a.png"
    path.write_bytes(encode(PICTURE, facts))

    assert read(path) == {"schema": "dynx.picture/1", **facts}
    with Image.open(path) as back:
        assert back.tobytes() == PICTURE.tobytes()
        assert back.info["Description"] == facts["prompt"]
        assert back.info["Software"].startswith("dynx ")


@pytest.mark.parametrize("kind", ["missing", "text", "foreign", "torn", "later"])
def test_other_files_are_refused(kind: str, tmp_path: Path) -> None:
    """In a line that names the file."""
    path = tmp_path / "b.png"
    if kind == "text":
        path.write_text("no picture")
    elif kind == "foreign":
        PICTURE.save(path)
    elif kind == "torn":
        path.write_bytes(encode(PICTURE, {})[:60])
    elif kind == "later":
        info = PngInfo()
        info.add_itxt("dynx", '{"schema": "dynx.picture/9"}')
        PICTURE.save(path, pnginfo=info)
    with pytest.raises(UsageError, match=r"b\.png"):
        read(path)
