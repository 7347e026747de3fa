"""Reads picture files as pixels, in one place, so that every command sees the same picture.

A picture is read as it is meant to be seen, as transformers' pipelines read it: turned as its EXIF orientation says, the first
frame of an animation, then converted to RGB by Pillow.
"""

from __future__ import annotations

import stat
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dynx.runtime.inputs import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image


def read_picture(path: str | Path) -> Image:
    """Read a file's pixels in RGB, upright. Raises InputError with the reason, which doesn't name the file."""
    from PIL import ImageOps

    with opened(path) as file:
        ImageOps.exif_transpose(file, in_place=True)
        return file.convert("RGB")


@contextmanager
def opened(path: str | Path) -> Iterator[Image]:
    """Open a file with Pillow without reading its pixels. Any failure inside becomes InputError with the reason."""
    from PIL import Image

    try:
        mode = Path(path).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a pipe may never be written to, and a device never end
            raise InputError("no file: a pipe, a socket or a device")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as file:
                yield file
    except FileNotFoundError:
        raise InputError("no such file") from None
    except IsADirectoryError:
        raise InputError("a folder, not an image") from None
    except OSError as e:
        reason = f"can't be read as an image: {e.strerror}" if e.strerror else "not an image that can be read"
        raise InputError(reason) from None
    except MemoryError:
        raise InputError("an image too large for the memory") from None
    except InputError:
        raise
    except Exception as e:  # noqa: BLE001 - Pillow's plugins raise anything on damaged files: struct.error, KeyError, zlib.error …
        said = next(iter(str(e).splitlines()), "") or type(e).__name__
        raise InputError(f"not an image that can be read: {said}") from None
