"""Language models: draft cheaply, verify in one pass, keep exactly what the model would have said.

`engine` runs it, `drafters` guess, `acceptance` decides what stays, `policy` decides how far to guess from measured
costs, `confidence` turns a drafter's confidence into a probability, `calibrate` learns all of it once, `replay` scores a
policy on a recorded run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynx.speculation.setup import assemble, make_plan

__all__ = ["assemble", "make_plan"]


def __getattr__(name: str) -> Any:
    """Import the two ways in when one is used, so that the data modules stay light."""
    if name in __all__:
        from dynx.speculation import setup

        return getattr(setup, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
