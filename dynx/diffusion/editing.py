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

from dynx.diffusion.pictures import read_picture, size_of
from dynx.errors import InvalidInput, UnsupportedModelError
from dynx.runtime.hashing import hash_json
from dynx.runtime.weights import content_hash

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from dynx.diffusion.control import Control


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
    found = read_picture(image, "image", "RGB", warn)
    masked = None if mask is None else read_picture(mask, "mask", "L", warn)
    if masked is not None and masked.size != found.size:
        raise InvalidInput(
            f"`mask`: {mask} is {size_of(masked)}, and {image} is {size_of(found)}: a mask must have the picture's size"
        )
    if masked is not None and not any(masked.point(lambda value: value >= 128).histogram()[1:]):
        raise InvalidInput(f"`mask`: {mask} is black everywhere, so nothing may change")
    files = [content_hash(Path(path)) for path in (image, mask) if path is not None]
    return Start(found, masked, strength, Path(image).name, hash_json(files))


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


def size_for(start: Start | Control, pipe: Any, multiple: int) -> tuple[int, int]:
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
