"""Diffusion pipelines: as many network calls as the picture needs, on a grid made for the checkpoint.

`families` knows what a pipeline is, `denoiser` counts and answers its network's calls, `solver` and `sampler` stand in for its
scheduler, `engine` draws. `schedule` is what they are told; calibration makes it from `trajectory`, `grid` and `quality`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynx.diffusion.setup import assemble, make_plan

__all__ = ["assemble", "make_plan"]


def __getattr__(name: str) -> Any:
    """Import the two ways in when one is used, so that the data modules stay light."""
    if name in __all__:
        from dynx.diffusion import setup

        return getattr(setup, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
