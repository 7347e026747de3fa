"""Speculative decoding of language models: draft cheaply, verify in one pass, keep the text of plain decoding.

`engine` runs the loop, `drafters` propose tokens, `acceptance` verifies them, `policy` decides from measured costs how many to
draft, `acceptance_model` turns a drafter's confidence into a probability, `calibrate` measures all of it once, `simulate` scores
a policy on a recording.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynx.speculation.setup import acceptance_profile_of, assemble, make_plan

__all__ = ["acceptance_profile_of", "assemble", "make_plan"]


def __getattr__(name: str) -> Any:
    """Import the functions of `setup` on first use, so that the data modules stay light."""
    if name in __all__:
        from dynx.speculation import setup

        return getattr(setup, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
