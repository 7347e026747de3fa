"""What the inputs of a classifier are, by the options that say so: texts, pairs, queries with documents, or candidate labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from dynx.errors import UsageError

if TYPE_CHECKING:
    from dynx.early_exit.items import InputForm


class FormOptions(Protocol):
    """The options that say what inputs are."""

    pair: str | None
    rank: Any
    group: str | None
    candidates: str | None
    hypothesis: Any
    multi_label: Any
    per_class: Any
    top_k: int | None


def form_of(options: FormOptions) -> InputForm:
    """Return what inputs are. Raises UsageError for options that exclude or require each other."""
    ranked = bool(options.rank) or options.group is not None
    if options.candidates is not None:
        for name, given in (("--pair", options.pair), ("--rank", ranked)):
            if given:
                raise UsageError(f"--candidates and {name} exclude each other")
        return "zero-shot"
    if options.multi_label:
        raise UsageError("--multi-label requires --candidates")
    if options.group is not None and options.pair is None:
        raise UsageError("--group requires --pair", hint="--pair query,document --group id")
    if ranked:
        return "ranking"
    return "text" if options.pair is None else "pair"


def form_fields(options: FormOptions) -> dict[str, Any]:
    """Return the fields of a classifier's request that these options fill. Raises UsageError."""
    form = form_of(options)
    if options.per_class and form not in ("text", "pair"):
        raise UsageError("--per-class is for models with one label per input")
    found: dict[str, Any] = {"form": form, "per_class": bool(options.per_class)}
    if form == "ranking":
        found["top_k"] = options.top_k
    if form == "zero-shot":
        found["candidates"] = tuple(each.strip() for each in (options.candidates or "").split(","))
        found["multi_label"] = bool(options.multi_label)
        if options.hypothesis is not None:
            found["hypothesis"] = options.hypothesis
    return found


def reading(options: FormOptions) -> dict[str, Any]:
    """Return how inputs are read: arguments of `records.layout`."""
    form = form_of(options)
    return {"pair": options.pair, "rank": form == "ranking", "group": options.group}
