"""Read picture files as Pillow and diffusers would; what that leaves out of a file is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynx.errors import InvalidInput
from dynx.runtime.inputs import InputError
from dynx.runtime.pictures import opened

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

MAX_PIXELS = 1 << 26
"""Largest picture that is read, in pixels: 8192 × 8192."""

SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def size_of(picture: Image) -> str:
    """Return a picture's width and height in words."""
    return f"{picture.width}x{picture.height}"


def read_picture(path: str, parameter: str, mode: str, warn: Callable[[str], None]) -> Image:
    """Read one file in a mode of Pillow's, upright. Raises InvalidInput with the reason."""
    from PIL import ImageOps

    try:
        with opened(path) as file:
            if file.width * file.height > MAX_PIXELS:
                raise InputError(f"{size_of(file)} pixels are more than {MAX_PIXELS >> 20} million")
            if min(file.size) < 1:
                raise InputError("it has no pixels")
            if (frames := int(getattr(file, "n_frames", 1))) > 1:
                warn(f"{path} has {frames} frames, of which the first is used")
            file.load()
            held: Image = ImageOps.exif_transpose(file)
            clear = "A" in held.getbands() or "transparency" in held.info
            if clear and mode == "RGB" and _transparent(held):
                warn(f"{path} is transparent in places, where its hidden colours are used")
            return _in_eight_bits(held).convert(mode)
    except InputError as e:
        raise InvalidInput(f"`{parameter}`: {path}: {e}") from None


def _transparent(picture: Image) -> bool:
    lowest: Any = picture.convert("RGBA").getchannel("A").getextrema()[0]
    return bool(lowest < 255)


def _in_eight_bits(picture: Image) -> Image:
    """Scale greys of 16 bits and of floats to 8, which Pillow would cut off."""
    import numpy as np
    from PIL import Image as Pillow

    if picture.mode not in (*SIXTEEN_BIT_MODES, "F"):
        return picture
    values = np.asarray(picture, dtype=np.float64)
    top = values.max(initial=0.0)
    scale = 255.0 if picture.mode == "F" and top <= 1 else 1.0 if top <= 255 else 255 / 65535
    if not np.isfinite(values).all():
        raise InputError("some of its pixels are not numbers")
    return Pillow.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
