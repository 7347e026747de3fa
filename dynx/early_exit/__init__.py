"""Early exit for classifiers: answer easy inputs after a few blocks and run only the rest through all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynx.early_exit.setup import assemble, make_plan

__all__ = ["assemble", "make_plan"]


def __getattr__(name: str) -> Any:
    """Import `setup` when one of its functions is used, so that importing the data modules stays cheap."""
    if name in __all__:
        from dynx.early_exit import setup

        return getattr(setup, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
