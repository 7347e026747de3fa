"""The inputs of a text classifier beside single texts: pairs of texts, and queries with documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

InputForm: TypeAlias = Literal["text", "pair", "ranking", "zero-shot"]
"""What an input of a classifier is: a text or image, a pair of texts, a query with documents, or a text with candidate labels."""

GROUPED: frozenset[InputForm] = frozenset({"ranking", "zero-shot"})
"""Forms whose input is several pairs with one result."""


class Pair(NamedTuple):
    """Two texts that the model reads as one sequence."""

    text: str
    text_pair: str

    @property
    def name(self) -> str:
        """A text that tells it from other pairs."""
        return f"{self.text} \0 {self.text_pair}"


@dataclass(frozen=True)
class Query:
    """A query and the documents to rank for it."""

    query: str
    documents: tuple[str, ...]

    def pairs(self) -> list[Pair]:
        """Return the query with each document."""
        return [Pair(self.query, document) for document in self.documents]

    @property
    def name(self) -> str:
        """A text that tells it from other queries."""
        return " \0 ".join((self.query, *self.documents))


def as_pair(value: Any) -> Pair | None:
    """Return a value as a pair: two texts in a tuple or list, or an object with "text" and "text_pair"; None for others."""
    if isinstance(value, Mapping):
        value = (value.get("text"), value.get("text_pair"))
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(each, str) for each in value):
        return Pair(*value)
    return None


def as_query(value: Any) -> Query | None:
    """Return a value as a query: a text and a list of texts, or an object with "query" and "documents"; None for others."""
    if isinstance(value, Query):
        return value
    if isinstance(value, Mapping):
        value = (value.get("query"), value.get("documents"))
    if not isinstance(value, tuple | list) or len(value) != 2:
        return None
    query, documents = value
    if not isinstance(query, str) or not isinstance(documents, tuple | list):
        return None
    return Query(query, tuple(documents)) if all(isinstance(each, str) for each in documents) else None
