"""Answer rows that are several pairs each: rank the documents of a query, or choose among candidate labels.

A row is a whole group, so no shard cuts one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from dynx.early_exit.items import GROUPED, as_query
from dynx.errors import InvalidInput
from dynx.jobs.row_function import RowFunction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

COLUMNS = ("query", "documents")
"""Names of the columns that hold a query and the list of its documents."""


class ClassifyGroups(RowFunction):
    """Rank documents (`form="ranking"`) or label texts by candidate labels (`form="zero-shot"`), as `dynx.load_classifier` does.

    A value of the column is a text, or for a ranking a query with the list of its documents: a tuple, or an object that has them.
    """

    rankings: ClassVar[Mapping[str, str]] = {"documents": "json"}
    labels: ClassVar[Mapping[str, str]] = {"label": "string", "score": "double"}
    """The columns of answers, by the form."""

    added: ClassVar[Mapping[str, str]] = {"layers": "int32"}
    totals: ClassVar[tuple[str, ...]] = ("layers",)

    @property
    def columns(self) -> Mapping[str, str]:
        """The columns that it adds: documents as a list of their places and scores, from best to worst."""
        return {**(self.rankings if self.options.get("form") == "ranking" else self.labels), **self.added}

    def _make_plan(self, warn: Callable[[str], None]) -> Any:
        from dynx.early_exit import make_plan
        from dynx.early_exit.plan import ClassifierRequest

        request = ClassifierRequest(self.model, **self.options)
        if request.form not in GROUPED:
            raise InvalidInput(f"`form` {request.form}: `Classify` answers inputs that are one row each")
        return make_plan(request, warn=warn)

    def _open(self) -> None:
        from dynx.early_exit import assemble
        from dynx.early_exit.group_classifier import GroupClassifier
        from dynx.runtime.hashing import hash_json
        from dynx.runtime.threads import torch_threads

        with torch_threads():
            assembly = assemble(self._plan())
        self._classifier = GroupClassifier(assembly)
        known, promise = assembly.group_profile, self._classifier.receipt.guarantee
        self.identity = {
            "model": assembly.plan.key.model,
            "dtype": assembly.plan.dtype,
            "weights": assembly.block_backend.precision,
            "guarantee": None if promise is None else promise.json(),
        }
        if known is not None:
            exits = known.exits()
            heads = {name: array.tolist() for name, array in exits.heads.to_arrays().items()}
            self.identity["exits"] = hash_json([list(exits.depths), heads, exits.thresholds.astype(str).tolist()])

    def answer(self, values: Sequence[Any], keys: Sequence[int | str]) -> list[dict[str, Any]]:
        """Answer groups, as many together as make a window."""
        ranking = self.options["form"] == "ranking"
        items = [as_query(v) if ranking else v if isinstance(v, str) else None for v in values]
        found = iter(self._classifier.window([item for item in items if item is not None]))
        wanted = "a query with a list of texts" if ranking else "a text"
        return [{"error": f"not {wanted}"} if item is None else self._cells(next(found)) for item in items]

    def _cells(self, answer: Any) -> dict[str, Any]:
        if answer.error is not None:
            return {"error": answer.error}
        if self.options["form"] == "ranking":
            documents = [{"index": each.index, "score": each.score} for each in answer.documents]
            return {"documents": documents, "layers": answer.layers}
        return {"label": answer.label, "score": answer.score, "layers": answer.layers}
