"""Compare what two pictures show, by the CLIP vision tower of a pipeline that has one.

Stable Diffusion's folders have one in their safety checker, those with image prompts as `image_encoder`. The cosine of its
embeddings is compared (Radford et al. 2021); similar embeddings don't imply similar pixels, nor the reverse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class VisionTower:
    """Embed pictures with a vision tower, its projection and its image processor."""

    def __init__(self, vision: Any, project: Any, processor: Any) -> None:
        self._vision, self._project, self._processor = vision, project, processor

    @torch.inference_mode()
    def embed(self, picture: NDArray[np.uint8]) -> Tensor:
        """Return the embedding (D,) of a picture (H, W, 3), normalised to length 1."""
        pixels = self._processor(images=picture, return_tensors="pt")["pixel_values"]
        place = next(self._vision.parameters())
        pooled = self._vision(pixels.to(place))[1]
        made: Tensor = self._project(pooled)[0].float()
        direction: Tensor = made / made.norm().clamp_min(1e-12)
        return direction

    def similarity(self, picture: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
        """Return the cosine of two embeddings, 1 for equal ones."""
        return float(self.embed(picture) @ self.embed(reference))


def vision_tower_of(pipe: Any) -> VisionTower | None:
    """Return the pipeline's vision tower, or None if it lacks one or an image processor."""
    processor = getattr(pipe, "feature_extractor", None)
    if processor is None:
        return None
    for name in ("image_encoder", "safety_checker"):
        part = getattr(pipe, name, None)
        vision, project = getattr(part, "vision_model", None), getattr(part, "visual_projection", None)
        if vision is not None and project is not None:
            return VisionTower(vision, project, processor)
    return None
