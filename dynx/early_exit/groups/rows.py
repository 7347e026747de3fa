"""Turn queries with documents, and texts with candidate labels, into groups of pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynx.early_exit.items import Pair, Query
from dynx.early_exit.preprocessing import Example

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.early_exit.plan import ClassifierRequest
    from dynx.early_exit.preprocessing import Preprocessor


@dataclass(frozen=True)
class Group:
    """An input as rows, or why it can't be read."""

    rows: list[Example]
    error: str | None = None

    @property
    def truncated(self) -> bool:
        """Whether a row was longer than the model takes."""
        return any(row.truncated for row in self.rows)


def pairs_of(item: Any, request: ClassifierRequest) -> list[Pair]:
    """Return the pairs of an input: a `Query`, or a text with the request's candidate labels."""
    if isinstance(item, Query):
        return item.pairs()
    return [Pair(str(item), request.hypothesis.format(label)) for label in request.candidates]


def name_of(item: Any) -> str:
    """Return a text that tells an input from others."""
    return item.name if isinstance(item, Query) else str(item)


def groups_of(items: Sequence[Any], request: ClassifierRequest, preprocessor: Preprocessor) -> list[Group]:
    """Tokenize the pairs of inputs, in order; an input with a pair that can't be read has the reason."""
    pairs = [pairs_of(item, request) for item in items]
    made = iter(preprocessor.rows([pair for each in pairs for pair in each]))
    out = []
    for each in pairs:
        rows = [next(made) for _ in each]
        bad = next(((i, row) for i, row in enumerate(rows) if isinstance(row, str)), None)
        if bad is not None:
            what = f"document {bad[0] + 1}" if request.form == "ranking" else f"label {request.candidates[bad[0]]}"
            out.append(Group([], f"{what}: {bad[1]}"))
        elif not rows:
            out.append(Group([], "there are no documents"))
        else:
            out.append(Group([row for row in rows if isinstance(row, Example)]))
    return out
