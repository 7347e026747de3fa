"""Draw under control of a picture: pipelines with a ControlNet, which sees a picture of edges, depth or poses at every step.

The ControlNet runs before the network, once a step, and its outputs are further inputs of the network's call. In a step whose
call is answered without the network, its latest outputs stand in for it. It runs on PyTorch whatever computes the network.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.diffusion.pictures import read_picture
from dynx.errors import InvalidInput, UnsupportedModelError
from dynx.runtime.weights import content_hash

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from PIL.Image import Image

    from dynx.diffusion.denoiser import Denoiser

SLOT = "controlnet"
"""Attribute of pipelines that holds the ControlNet."""

SCALE = "controlnet_conditioning_scale"
"""Argument of a pipeline's call that weighs it."""


@dataclass(frozen=True)
class Control:
    """Hold the picture that controls what is drawn, in RGB and upright."""

    image: Image
    scale: float | None
    """How much it counts; None for the pipeline's own."""
    name: str
    identity: str
    """Hash of the file."""

    def fitted(self, size: tuple[int, int]) -> Control:
        """Return it in another size, resampled as diffusers does."""
        from PIL.Image import Resampling

        return self if self.image.size == size else replace(self, image=self.image.resize(size, Resampling.LANCZOS))


def read_control(
    image: str | None, scale: float | None, warn: Callable[[str], None] = lambda _: None
) -> Control | None:
    """Read the picture that controls what is drawn; None for none.

    Raises InvalidInput for a file that can't be used, and a scale that isn't a positive number or is without a picture.
    """
    if image is None:
        if scale is not None:
            raise InvalidInput("`control_scale` is for pictures drawn under control", hint="`control_image` FILE")
        return None
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise InvalidInput(f"`control_scale` {scale:g} must be above 0")
    return Control(
        read_picture(image, "control_image", "RGB", warn), scale, Path(image).name, content_hash(Path(image))
    )


def control_argument(pipe: Any) -> str | None:
    """Return the argument of a pipeline's call that takes the control picture, or None without a ControlNet."""
    call = inspect.signature(pipe.__call__).parameters
    if getattr(pipe, SLOT, None) is None:
        return None
    return next((name for name in ("control_image", "image") if name in call), None)


def check_control(pipe: Any, control: Control | None, name: str) -> None:
    """Raise InvalidInput for a control picture that a pipeline lacks or can't take, UnsupportedModelError for several."""
    argument, module = control_argument(pipe), getattr(pipe, SLOT, None)
    if argument is None:
        if control is not None:
            raise InvalidInput(
                f"{name} ({type(pipe).__name__}) has no ControlNet, so `control_image` has nothing to control"
            )
        return
    if several := len(getattr(module, "nets", ())):
        raise UnsupportedModelError(f"{name} has {several} ControlNets, and dynx gives a picture to one")
    if control is None:
        raise InvalidInput(f"{name} draws under control of a picture", hint="`control_image` FILE")


class Companion:
    """Run the ControlNet in the steps in which the network runs, between `attach` and `detach`."""

    def __init__(self, module: Any, denoiser: Denoiser) -> None:
        self._module, self._denoiser = module, denoiser
        self._known: list[Any] = []
        self.calls = 0
        """Number of times it ran."""
        self._before: Any = None
        self._forward: Any = None

    @classmethod
    def all_of(cls, pipe: Any, denoisers: list[Denoiser]) -> list[Self]:
        """Make the companions of a pipeline's only network."""
        module = getattr(pipe, SLOT, None)
        return [cls(module, denoisers[0])] if module is not None and len(denoisers) == 1 else []

    def attach(self) -> None:
        """Replace `forward` on the instance."""
        self._before = self._module.__dict__.get("forward")
        self._forward = self._module.forward
        self._module.__dict__["forward"] = self._answer

    def detach(self) -> None:
        """Restore the module's own `forward`."""
        if self._forward is None:
            return
        if self._before is None:
            del self._module.__dict__["forward"]
        else:
            self._module.__dict__["forward"] = self._before
        self._forward = self._before = None

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        number = self._denoiser.calls_in_step
        if self._denoiser.order.kind != "compute" and number < len(self._known):
            return self._known[number]
        self.calls += 1
        answer = self._forward(*args, **kwargs)
        self._known[number : number + 1] = [answer]
        return answer
