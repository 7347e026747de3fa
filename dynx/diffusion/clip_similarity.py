"""Whether two pictures show the same thing, by a CLIP vision tower that a pipeline happens to carry.

Stable Diffusion's folders have one in their safety checker, those with image prompts as `image_encoder`. What is compared are the
directions of its embeddings (Radford et al. 2021); pixels may differ a lot between pictures that it finds alike, and the reverse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class VisionTower:
    """A vision tower with its projection, and the processor that makes its pixels."""

    def __init__(self, vision: Any, project: Any, processor: Any) -> None:
        self._vision, self._project, self._processor = vision, project, processor

    @torch.inference_mode()
    def embed(self, picture: NDArray[np.uint8]) -> Tensor:
        """(D,) of length 1, from (H, W, 3)."""
        pixels = self._processor(images=picture, return_tensors="pt")["pixel_values"]
        place = next(self._vision.parameters())
        pooled = self._vision(pixels.to(place))[1]
        made: Tensor = self._project(pooled)[0].float()
        direction: Tensor = made / made.norm().clamp_min(1e-12)
        return direction

    def similarity(self, picture: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
        """Cosine, 1 for pictures that it can't tell apart."""
        return float(self.embed(picture) @ self.embed(reference))


def vision_tower_of(pipe: Any) -> VisionTower | None:
    """The pipeline's vision tower; None where it carries none, or no processor for it."""
    processor = getattr(pipe, "feature_extractor", None)
    if processor is None:
        return None
    for name in ("image_encoder", "safety_checker"):
        part = getattr(pipe, name, None)
        vision, project = getattr(part, "vision_model", None), getattr(part, "visual_projection", None)
        if vision is not None and project is not None:
            return VisionTower(vision, project, processor)
    return None
