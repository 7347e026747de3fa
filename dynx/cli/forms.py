"""What the inputs of a classifier are, by the options that say so: texts, pairs, queries with documents, or candidate labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from dynx.errors import UsageError

if TYPE_CHECKING:
    from dynx.early_exit.items import InputForm


FORM_OPTIONS = (
    "pair",
    "rank",
    "group",
    "candidates",
    "hypothesis",
    "multi_label",
    "aggregation_strategy",
    "per_class",
    "top_k",
)
"""Their names."""

ONLY_CLASSIFIERS = tuple(name for name in FORM_OPTIONS if name != "hypothesis")
"""Those without a default, which other tasks refuse."""


class FormOptions(Protocol):
    """The options that say what inputs are."""

    @property
    def pair(self) -> str | None:
        """Names of the texts of pairs."""

    @property
    def rank(self) -> Any:
        """Whether inputs are queries with documents."""

    @property
    def group(self) -> str | None:
        """Name of what is equal for the documents of a query."""

    @property
    def candidates(self) -> str | None:
        """Candidate labels with commas."""

    @property
    def hypothesis(self) -> str | None:
        """The sentence that a label makes."""

    @property
    def multi_label(self) -> Any:
        """Whether several labels may hold."""

    @property
    def aggregation_strategy(self) -> str | None:
        """How labels of tokens become entities."""

    @property
    def per_class(self) -> Any:
        """Whether the guarantee holds for each label."""

    @property
    def top_k(self) -> int | None:
        """Number of labels or documents."""


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
    found: dict[str, Any] = {
        "form": form,
        "per_class": bool(options.per_class),
        "aggregation_strategy": options.aggregation_strategy,
    }
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
