"""The `dynx calibrate` command that measures the profile a request lacks."""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from dynx.cli.options.calibrate import COMMAND
from dynx.errors import NoProfileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dynx.runtime.plan import ModelRequest

PROMISE_OPTIONS = frozenset({"max_disagreement", "confidence", "quality", "batch_size", "per_class"})
"""Options of `dynx calibrate` that a profile doesn't depend on: the same evidence certifies another promise."""


FORM_WORDS = {"pair": ("--pair", "A,B"), "ranking": ("--rank",)}
"""Options that say what inputs are, by form."""


def calibrate_command(request: ModelRequest) -> str:
    """Return the command that measures a profile for this request: its model, and the options that aren't at their default."""
    usual = {each.name: each.default for each in fields(request)}
    words = ["dynx", "calibrate", "-m", request.model]
    if hasattr(request, "max_disagreement"):
        words += ["--data", "FILE", *FORM_WORDS.get(getattr(request, "form", "text"), ())]
    for field, declaration in COMMAND.declared():
        name = field.name
        if name in {"model", "plain", *PROMISE_OPTIONS} or name not in usual or declaration.key is None:
            continue
        value = getattr(request, name)
        if name == "candidates":
            words += [f"--{declaration.key}", ",".join(value)] if value else []
        elif name in ("adapters", "lora"):
            words += [word for each in value for word in (f"--{declaration.key}", each)]
        elif value != usual[name]:
            words += [f"--{declaration.key}", *([] if value is True else [_as_typed(value)])]
    return shlex.join(words)


def _as_typed(value: Any) -> str:
    """Format a value as it is typed; a size is a pair."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


@contextmanager
def telling_the_remedy(request: ModelRequest) -> Iterator[None]:
    """Add the command that measures a profile to the error for a missing one."""
    try:
        yield
    except NoProfileError as e:
        e.hint = e.hint or f"{calibrate_command(request)} measures one"
        raise
