"""Writes the answers of `dynx classify` in a format, and finds how far an interrupted run came.

A format (`Table`, `JsonLines`, `Document`) turns pairs of record and answer into text. Where it writes a line for each, `resume`
counts those complete in an earlier output and cuts a torn last one.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dynx.cli.pieces import MAX_LINE_BYTES, pieces, shown
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from dynx.cli.classify.records import Record
    from dynx.early_exit.types import Prediction

SCHEMA = "dynx.classify/1"


_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_ESCAPED = str.maketrans(_ESCAPES)
_BYTE = re.compile("[\udc80-\udcff]")
_PLAIN = {escaped: plain for plain, escaped in _ESCAPES.items()}


def escape(text: str) -> str:
    """Return `text` on one line and in one column: backslash, tab and line ends written as \\\\, \\t, \\n and \\r.

    A byte that isn't UTF-8, which a file's name may have, is written as \\x and two digits.
    """
    text = text.translate(_ESCAPED)
    return text if text.isascii() else _BYTE.sub(lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", text)


def unescape(text: str) -> str:
    """Return the text that `escape` wrote."""
    return re.sub(
        r"\\(?:x([89a-f][0-9a-f])|[\\tnr])",
        lambda match: chr(0xDC00 + int(match[1], 16)) if match[1] else _PLAIN[match[0]],
        text,
    )


class Format(Protocol):
    """A format of answers: `render` writes them as they come, `close` ends them; the other methods are for `resume`."""

    wants: str
    """Description of a line; empty if an output in this format can't be continued."""

    def render(self, answers: Iterable[tuple[Record, Any]]) -> str:
        """Return these answers as text."""

    def close(self) -> str:
        """Return the text after the last answer."""

    def fits(self, line: bytes) -> bool:
        """Whether a line, or the beginning of one that was cut short, is in this format."""

    def echo(self, line: bytes) -> str:
        """Return the input echoed in a line of this format. Raises ValueError if it can't be read."""


class Table:
    """`label<TAB>score<TAB>input`; with `shown` > 1 that many labels and scores, from best to worst, before the input.

    An error leaves the label empty and stands in the place of the score.
    """

    def __init__(self, shown: int = 1) -> None:
        self._shown = shown
        self.wants = f"{2 * shown + 1} columns: {'label, score, ' * min(shown, 2)}{'… ' if shown > 2 else ''}input"

    def render(self, answers: Iterable[tuple[Record, Prediction]]) -> str:
        """Return a line for each answer."""
        return "".join(self._line(record, answer) for record, answer in answers)

    def _line(self, record: Record, answer: Prediction) -> str:
        if answer.error is not None or answer.label is None or answer.score is None:
            cells = ["", "error: " + escape(answer.error or "no answer")]
        elif self._shown == 1:
            cells = [escape(answer.label), f"{answer.score:.4f}"]
        else:
            cells = [
                cell for label, score in answer.ranked()[: self._shown] for cell in (escape(label), f"{score:.4f}")
            ]
        cells += [""] * (2 * self._shown - len(cells))
        return "\t".join([*cells, escape(record.raw)]) + "\n"

    def close(self) -> str:
        """Return nothing."""
        return ""

    def fits(self, line: bytes) -> bool:
        """Check the number of columns, and the score or error in the second."""
        cells = line.split(b"\t")
        return len(cells) == 2 * self._shown + 1 and (_is_number(cells[1]) or cells[1].startswith(b"error: "))

    def echo(self, line: bytes) -> str:
        """Return the last column."""
        return unescape(line.rpartition(b"\t")[2].decode())


def _is_number(cell: bytes) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


class JsonLines:
    """A JSON object per line, all with the same keys; null for what is unknown."""

    schema = SCHEMA

    def __init__(
        self, top_k: int | None = None, *, ascii_only: bool = False, guarantee: dict[str, Any] | None = None
    ) -> None:
        self._top_k, self._ascii = top_k, ascii_only
        self._start = f'{{"schema": "{self.schema}", "index": '
        self.wants = f"an object of schema {self.schema}"
        self.guarantee = guarantee
        """Guarantee of the answers rendered from now on; set it to None when it no longer holds."""

    def render(self, answers: Iterable[tuple[Record, Any]]) -> str:
        """Return a line for each answer."""
        return "".join(self._dump({"schema": self.schema, **self._body(*pair)}) + "\n" for pair in answers)

    def _dump(self, body: dict[str, Any]) -> str:
        return json.dumps(body, ensure_ascii=self._ascii, allow_nan=False)

    def _answer(self, answer: Any) -> dict[str, Any]:
        """Return what is special to this kind of answers."""
        failed = answer.error is not None
        return {
            "label": answer.label,
            "score": rounded(answer.score),
            "scores": None if failed else {k: rounded(v) for k, v in answer.ranked()[: self._top_k]},
        }

    def _body(self, record: Record, answer: Any) -> dict[str, Any]:
        failed = answer.error is not None
        body: dict[str, Any] = {
            "index": record.index,
            "input": shown(record.raw),
            **self._answer(answer),
            "exit": answer.exit,
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
        return line.startswith(self._start.encode())

    def echo(self, line: bytes) -> str:
        """Return the value of "input"."""
        try:
            return str(json.loads(line)["input"])
        except (KeyError, TypeError, RecursionError) as e:
            raise ValueError(str(e)) from None


def rounded(score: float | None) -> float | None:
    """Return a score with six decimals; None for one that isn't finite."""
    return round(score, 6) if score is not None and math.isfinite(score) else None


class Document(JsonLines):
    """One JSON document, written piece by piece: the list of results, or for a `single` input only its result."""

    def __init__(
        self,
        top_k: int | None = None,
        *,
        ascii_only: bool = False,
        guarantee: dict[str, Any] | None = None,
        single: bool = False,
    ) -> None:
        super().__init__(top_k, ascii_only=ascii_only, guarantee=guarantee)
        self.wants = ""
        self._single = single
        self._before = f'{{"schema": "{self.schema}", "results": [\n'

    def render(self, answers: Iterable[tuple[Record, Any]]) -> str:
        """Return the next results."""
        if self._single:
            return super().render(answers)
        text = ""
        if bodies := [self._dump(self._body(record, answer)) for record, answer in answers]:
            text, self._before = self._before + ",\n".join(bodies), ",\n"
        return text

    def close(self) -> str:
        """Return the end of the list, also of an empty one."""
        if self._single:
            return ""
        return "\n]}\n" if self._before == ",\n" else self._before + "]}\n"


@dataclass(frozen=True)
class Resumed:
    """The part of an earlier output that is complete."""

    path: Path
    done: int = 0
    """Number of complete results in it, one for each of the first records."""
    last: str | None = None
    """Echoed input of its last result."""

    def skip(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records still to do. Raises UsageError, before the first, if the finished ones don't match `records`."""
        source = iter(records)
        for count in range(self.done):
            record = next(source, None)
            if record is None:
                raise UsageError(f"{self.path} has {self.done} results but the input has only {count} records")
            if count == self.done - 1 and shown(record.raw) != self.last:
                raise UsageError(
                    f"{self.path} belongs to another input: its result {self.done} doesn't match record {self.done}"
                )
        yield from source


def resume(path: Path, form: Format) -> Resumed:
    """Count the complete results that `form` wrote to `path` and cut off a torn last line; a missing file has none.

    Raises UsageError, and leaves the file as it is, if anything in it is of another format.
    """
    if not form.wants:
        raise UsageError("this format can't be resumed", hint="use JSON lines: --jsonl")
    done, kept, tail, last = 0, 0, b"", b""
    try:
        if not path.exists():
            return Resumed(path)
        if not path.is_file():
            raise UsageError(f"--resume needs a regular file; {path} isn't one")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            # escaped, a record is longer than it was
            for offset, line in pieces(file, str(path), longest=8 * MAX_LINE_BYTES):
                if offset + len(line) >= size:
                    tail = line
                    break
                if len(line) > 8 * MAX_LINE_BYTES or not form.fits(line):
                    raise _foreign(path, done, form)
                done, kept, last = done + 1, offset + len(line) + 1, line
        echo = shown(form.echo(last)) if done else None
        if tail:
            if not done and not form.fits(tail):  # it may be somebody's notes
                raise _foreign(path, done, form)
            os.truncate(path, kept)
    except OSError as e:
        raise UsageError(f"can't resume {path}: {e.strerror or e}") from None
    except ValueError:
        raise _foreign(path, done - 1, form) from None
    return Resumed(path, done, echo)


def _foreign(path: Path, line: int, form: Format) -> UsageError:
    return UsageError(f"line {line + 1} of {path} isn't a result to resume from: it is not {form.wants}")
