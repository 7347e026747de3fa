"""Early exit for classifiers: answer the easy rows after a few blocks and send only the rest through the whole model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynx.early_exit.setup import assemble, make_plan

__all__ = ["assemble", "make_plan"]


def __getattr__(name: str) -> Any:
    """Import the two ways in when one is used, so that the data modules stay light."""
    if name in __all__:
        from dynx.early_exit import setup

        return getattr(setup, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
