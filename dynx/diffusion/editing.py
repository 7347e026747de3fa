"""Start from a picture: image-to-image, and inpainting where a mask says what may change.

Files are read before a model is loaded, as Pillow and diffusers would read them; what that leaves out of a file is said. The
pipeline is diffusers' own for the task, with the parts of the one that was loaded.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.errors import InvalidInput, UnsupportedModelError
from dynx.runtime.hashing import hash_json
from dynx.runtime.inputs import InputError
from dynx.runtime.pictures import opened
from dynx.runtime.weights import content_hash

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

MAX_PIXELS = 1 << 26
"""Largest picture that is read, in pixels: 8192 × 8192."""

SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


@dataclass(frozen=True)
class Start:
    """Hold the picture that pictures start from, in RGB and upright, and the mask of what may change, in grey; white changes."""

    image: Image
    mask: Image | None
    strength: float | None
    """How much of the noise is added, 0 … 1; None for the pipeline's own."""
    name: str
    identity: str
    """Hash of the files."""

    def fitted(self, size: tuple[int, int]) -> Start:
        """Return it in another size, resampled as diffusers does."""
        from PIL.Image import Resampling

        mask = self.mask
        if mask is not None and mask.size != size:
            mask = mask.resize(size, Resampling.LANCZOS)
        image = self.image if self.image.size == size else self.image.resize(size, Resampling.LANCZOS)
        return replace(self, image=image, mask=mask)


def read_start(
    image: str | None, mask: str | None, strength: float | None, warn: Callable[[str], None] = lambda _: None
) -> Start | None:
    """Read what pictures start from; None where they start from noise alone.

    Raises InvalidInput for files that can't be used, a mask of another size, and settings that exclude each other.
    """
    if image is None:
        for name, value in (("mask", mask), ("strength", strength)):
            if value is not None:
                raise InvalidInput(f"`{name}` is for pictures that start from a picture", hint="`image` FILE")
        return None
    if strength is not None and not (math.isfinite(strength) and 0 < strength <= 1):
        raise InvalidInput(f"`strength` {strength:g} must be above 0 and at most 1")
    found = _read(image, "image", "RGB", warn)
    masked = None if mask is None else _read(mask, "mask", "L", warn)
    if masked is not None and masked.size != found.size:
        raise InvalidInput(
            f"`mask`: {mask} is {_size(masked)}, and {image} is {_size(found)}: a mask must have the picture's size"
        )
    if masked is not None and not any(masked.point(lambda value: value >= 128).histogram()[1:]):
        raise InvalidInput(f"`mask`: {mask} is black everywhere, so nothing may change")
    files = [content_hash(Path(path)) for path in (image, mask) if path is not None]
    return Start(found, masked, strength, Path(image).name, hash_json(files))


def _size(picture: Image) -> str:
    return f"{picture.width}x{picture.height}"


def _read(path: str, parameter: str, mode: str, warn: Callable[[str], None]) -> Image:
    """Read one file in a mode of Pillow's, upright. Raises InvalidInput with the reason."""
    from PIL import ImageOps

    try:
        with opened(path) as file:
            if file.width * file.height > MAX_PIXELS:
                raise InputError(f"{_size(file)} pixels are more than {MAX_PIXELS >> 20} million")
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


def own_size(pipe: Any, multiple: int) -> tuple[int, int] | None:
    """Return the size that a pipeline draws by default, None where it doesn't tell."""
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    side: Any = getattr(pipe, "default_sample_size", None) or getattr(
        getattr(network, "config", None), "sample_size", None
    )
    if side is None:
        return None
    high, wide = (side, side) if isinstance(side, int) else side
    scale = int(getattr(pipe, "vae_scale_factor", 1))
    return int(wide) * scale // multiple * multiple, int(high) * scale // multiple * multiple


def size_for(start: Start, pipe: Any, multiple: int) -> tuple[int, int]:
    """Return the size to draw in: as many pixels as the pipeline draws by default, in the picture's shape."""
    own = own_size(pipe, multiple)
    factor = 1.0 if own is None else math.sqrt(own[0] * own[1] / (start.image.width * start.image.height))
    return tuple(max(multiple, round(side * factor / multiple) * multiple) for side in start.image.size)  # type: ignore[return-value]


def converted(pipe: Any, start: Start, name: str) -> Any:
    """Return diffusers' pipeline for starting from a picture, over the parts of `pipe`. Raises UnsupportedModelError."""
    call = inspect.signature(pipe.__call__).parameters
    needed = {"image", "strength"} | ({"mask_image"} if start.mask is not None else set())
    if needed <= call.keys() and (start.mask is not None or "mask_image" not in call):
        return pipe
    kind = type(pipe).__name__
    what = "image-to-image" if start.mask is None else "inpainting"
    wanted = re.sub(
        r"(Img2Img|Inpaint)?Pipeline$", "Img2ImgPipeline" if start.mask is None else "InpaintPipeline", kind
    )
    import diffusers

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = getattr(diffusers, wanted).from_pipe(pipe, torch_dtype=pipe.dtype)
    except AttributeError as e:
        raise UnsupportedModelError(f"{name} ({kind}) has no {what} in diffusers") from e
    except Exception as e:
        said = next(iter(str(e).splitlines()), "") or type(e).__name__
        raise UnsupportedModelError(f"{name} can't be made a {wanted} ({said[:120]})") from e
    if not needed <= inspect.signature(made.__call__).parameters.keys():
        raise UnsupportedModelError(f"{wanted} takes no strength: it edits a picture by other means")
    return made
