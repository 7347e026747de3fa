"""Draw with diffusion pipelines in as many network calls as each picture needs, on a grid planned for the checkpoint.

`pipelines` describes a pipeline, `denoiser` counts and intercepts its network's calls, `solver` and `sampler` replace its
scheduler during a run, and `engine` draws. They follow a `schedule`, which calibration plans from `trajectory`, `grid` and
`similarity`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynx.diffusion.setup import assemble, assemble_over, make_plan

__all__ = ["assemble", "assemble_over", "make_plan"]


def __getattr__(name: str) -> Any:
    """Import `setup` on first use, so that importing a data module of this package stays light."""
    if name in __all__:
        from dynx.diffusion import setup

        return getattr(setup, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
