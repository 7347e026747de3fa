"""Writes the documents of queries in the order of their scores, as a table or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dynx.cli.classify.output import escape, rounded
from dynx.cli.pieces import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dynx.cli.classify.records import Record
    from dynx.early_exit.types import Ranking

SCHEMA = "dynx.rank/1"


class RankTable:
    """A line per document: `query<TAB>rank<TAB>score<TAB>place<TAB>document`; place counts from 0 in the input.

    An error stands in the place of the score, with rank 0.
    """

    wants = ""

    def render(self, answers: Iterable[tuple[Record, Ranking]]) -> str:
        """Return the lines of these answers."""
        return "".join(self._lines(record, answer) for record, answer in answers)

    def _lines(self, record: Record, answer: Ranking) -> str:
        query = escape(record.raw)
        if answer.error is not None:
            return f"{query}\t0\terror: {escape(answer.error)}\t\t\n"
        texts = record.documents or ()
        return "".join(
            f"{query}\t{rank}\t{each.score:.6g}\t{each.index}\t{escape(texts[each.index])}\n"
            for rank, each in enumerate(answer.documents, 1)
        )

    def close(self) -> str:
        """Return nothing."""
        return ""

    def fits(self, line: bytes) -> bool:
        """Return False, as a query has several lines."""
        return False

    def echo(self, line: bytes) -> str:
        """Raise ValueError, as a query has several lines."""
        raise ValueError("a table of rankings")


class RankLines:
    """A JSON object per query, all with the same keys; null for what is unknown."""

    _START = f'{{"schema": "{SCHEMA}", "index": '.encode()
    wants = f"an object of schema {SCHEMA}"

    def __init__(self, *, ascii_only: bool = False) -> None:
        self._ascii = ascii_only
        self.guarantee: dict[str, Any] | None = None
        """Guarantee of the answers rendered from now on; None when it no longer holds."""

    def render(self, answers: Iterable[tuple[Record, Ranking]]) -> str:
        """Return a line for each answer."""
        return "".join(self._dump({"schema": SCHEMA, **self._body(*pair)}) + "\n" for pair in answers)

    def _dump(self, body: dict[str, Any]) -> str:
        return json.dumps(body, ensure_ascii=self._ascii, allow_nan=False)

    def _body(self, record: Record, answer: Ranking) -> dict[str, Any]:
        failed, texts = answer.error is not None, record.documents or ()
        ranked = [
            {"index": each.index, "score": rounded(each.score), "text": shown(texts[each.index])}
            for each in answer.documents
        ]
        body: dict[str, Any] = {
            "index": record.index,
            "query": shown(record.raw),
            "documents": None if failed else ranked,
            "of": None if failed else answer.pairs,
            "layers": None if failed else answer.layers,
            "guarantee": None if failed else self.guarantee,
            "error": answer.error,
        }
        return body if record.original is None else {**body, "original": record.original}

    def close(self) -> str:
        """Return nothing."""
        return ""

    def fits(self, line: bytes) -> bool:
        """Check the first keys."""
        return line.startswith(self._START)

    def echo(self, line: bytes) -> str:
        """Return the value of "query"."""
        try:
            return str(json.loads(line)["query"])
        except (KeyError, TypeError, RecursionError) as e:
            raise ValueError(str(e)) from None


class RankDocument(RankLines):
    """One JSON document, written piece by piece: the list of results."""

    wants = ""

    def __init__(self, *, ascii_only: bool = False) -> None:
        super().__init__(ascii_only=ascii_only)
        self._before = f'{{"schema": "{SCHEMA}", "results": [\n'

    def render(self, answers: Iterable[tuple[Record, Ranking]]) -> str:
        """Return the next results."""
        text = ""
        if bodies := [self._dump(self._body(*pair)) for pair in answers]:
            text, self._before = self._before + ",\n".join(bodies), ",\n"
        return text

    def close(self) -> str:
        """Return the end of the list, also of an empty one."""
        return "\n]}\n" if self._before == ",\n" else self._before + "]}\n"
