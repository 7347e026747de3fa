"""Answer rows that are several pairs each: rank the documents of a query, or choose among candidate labels.

A row is a whole group, so no shard cuts one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from dynx.early_exit.items import as_query
from dynx.jobs.functions import Classify

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COLUMNS = ("query", "documents")
"""Names of the columns that hold a query and the list of its documents."""


class ClassifyGroups(Classify):
    """Rank documents (`form="ranking"`) or label texts by candidate labels (`form="zero-shot"`), as `dynx.load_classifier` does.

    A value of the column is a text, or for a ranking a query with the list of its documents: a tuple, or an object that has them.
    """

    added: ClassVar[Mapping[str, str]] = {"layers": "int32"}
    totals: ClassVar[tuple[str, ...]] = ("layers",)
    grouped: ClassVar[bool] = True

    @property
    def columns(self) -> Mapping[str, str]:
        """The columns that it adds: documents as a list of their places and scores, from best to worst."""
        return {**({"documents": "json"} if self._ranks else self.labels), **self.added}

    @property
    def _ranks(self) -> bool:
        return bool(self.options.get("form") == "ranking")

    def _begin(self, classifier: Any, exits: Any) -> None:
        self._classifier = classifier

    def answer(self, values: Sequence[Any], keys: Sequence[int | str]) -> list[dict[str, Any]]:
        """Answer groups, as many together as make a window."""
        items = [as_query(v) if self._ranks else v if isinstance(v, str) else None for v in values]
        found = iter(self._classifier.window([item for item in items if item is not None]))
        wanted = "a query with a list of texts" if self._ranks else "a text"
        return [{"error": f"not {wanted}"} if item is None else self._cells(next(found)) for item in items]

    def _cells(self, answer: Any) -> dict[str, Any]:
        if answer.error is not None:
            return {"error": answer.error}
        documents = {"documents": [vars(each) for each in answer.documents]} if self._ranks else {}
        labels = {} if self._ranks else {"label": answer.label, "score": answer.score}
        return {**documents, **labels, "layers": answer.layers}
