"""Writes the entities of texts, as a table or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynx.cli.classify.output import Document, JsonLines, escape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dynx.cli.classify.records import Record
    from dynx.early_exit.types import Entities

SCHEMA = "dynx.entities/1"


class EntityTable:
    """A line per entity: `label<TAB>score<TAB>start<TAB>end<TAB>word<TAB>input`; places count characters, from 0.

    A text without entities has a line whose first cells are empty; an error stands in the place of the score.
    """

    wants = ""

    def render(self, answers: Iterable[tuple[Record, Entities]]) -> str:
        """Return the lines of these answers."""
        return "".join(self._lines(record, answer) for record, answer in answers)

    def _lines(self, record: Record, answer: Entities) -> str:
        text = escape(record.raw)
        if answer.error is not None:
            return f"\terror: {escape(answer.error)}\t\t\t\t{text}\n"
        if not answer.entities:
            return f"\t\t\t\t\t{text}\n"
        return "".join(
            f"{escape(each.label)}\t{each.score:.4f}\t{each.start}\t{each.end}\t{escape(each.word)}\t{text}\n"
            for each in answer.entities
        )

    def close(self) -> str:
        """Return nothing."""
        return ""

    def fits(self, line: bytes) -> bool:
        """Return False, as a text may have several lines."""
        return False

    def echo(self, line: bytes) -> str:
        """Raise ValueError, as a text may have several lines."""
        raise ValueError("a table of entities")


class EntityLines(JsonLines):
    """A JSON object per text, with its entities as transformers' pipeline gives them."""

    schema = SCHEMA

    def _answer(self, answer: Any) -> dict[str, Any]:
        return {"entities": None if answer.error is not None else [each.json() for each in answer.entities]}


class EntityDocument(EntityLines, Document):
    """One JSON document with the entities of all texts, or of a single one."""
