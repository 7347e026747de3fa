"""Answer one shard at a time: read its rows, answer them, write the part and then its receipt. Imports no model's library."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.jobs.inputs import IMAGES, Shard, Source, read
from dynx.jobs.store import PARTS, PICTURES, RECEIPTS, Store, encoder, part_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.jobs.row_function import RowFunction

KILLED = "killed the worker that answered it"
"""The error of a row at which processes died."""

PROBE_ROWS, PROBE_SECONDS = (4, 16, 64, 256, 1024, 4096), 2.0
"""Rows that are answered to learn how long one takes, until they take so long."""

AFTER_ALARM = ".full"
"""Ending of the receipts of parts that were written at full depth because an audit had raised its alarm."""


@dataclass(frozen=True)
class Work:
    """What a worker needs to know, sent to it once."""

    function: RowFunction
    store: Store
    sources: Sequence[Source]
    form: str
    folder: str
    """The driver's working folder, which the names of models may be relative to."""


@dataclass(frozen=True)
class Hello:
    """What a worker found when it loaded the model."""

    kind: str
    identity: dict[str, Any]


@dataclass(frozen=True)
class Mode:
    """How rows exit, where the caller doesn't leave that to the profile."""

    full_depth: bool = False
    reference: bool = False
    """Whether the full model itself answers, and not another backend at full depth."""
    after_alarm: bool = False
    thresholds: tuple[float, ...] | None = None
    shard_rows: int = 0
    """Rows of the job's largest shard."""


@dataclass(frozen=True)
class Done:
    """A shard that is finished."""

    shard: Shard
    errors: int
    seconds: float
    audit: tuple[tuple[int, bool], ...]
    """Audited rows by their numbers in the job, and whether each differs from the full model."""


class Worker:
    """The worker of a process; its methods are called from elsewhere, by `call`."""

    def __init__(self, work: Work) -> None:
        self._work, self._function = work, work.function
        self._thresholds: tuple[float, ...] | None = None
        columns = {"file": "string", "row": "int64", **work.function.columns, "error": "string"}
        if "picture" in columns:
            columns["picture"] = "string"
        self._columns = columns

    def call(self, method: str, *arguments: Any) -> tuple[bool, Any]:
        """Return True and a method's result, or False and what it raised."""
        try:
            return True, getattr(self, method)(*arguments)
        except Exception as e:  # noqa: BLE001 - raised again by the driver
            return False, e

    def open(self) -> Hello:
        """Load the model. Raises DynxError."""
        function = self._function
        function.open()
        return Hello(function.kind, function.identity)

    def measure(self, shards: Sequence[Shard]) -> float:
        """Return the seconds that a row takes, from the job's first rows."""
        seconds, rows = 0.0, 1
        values = [value for shard in shards for value in read(self._work.sources[shard.file], shard)]
        for rows in PROBE_ROWS:
            began = time.perf_counter()
            self._function.rows(values[:rows], range(rows))
            seconds = time.perf_counter() - began
            if seconds >= PROBE_SECONDS or rows >= len(values):
                break
        return seconds / min(rows, len(values))

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the function."""
        return getattr(self._function, method)(*arguments)

    def run(self, shard: Shard, mode: Mode) -> Done:
        """Answer a shard."""
        began = time.perf_counter()
        function: Any = self._function
        if mode.thresholds != self._thresholds:
            function.set_thresholds(mode.thresholds)
            self._thresholds = mode.thresholds
        function.full_depth, function.reference = mode.full_depth, mode.reference
        function.expected_rows = mode.shard_rows
        values = read(self._work.sources[shard.file], shard)
        answers = function.rows(values, range(shard.start, shard.start + shard.rows))
        return self._write(shard, answers, began, mode, values)

    def give_up(self, shard: Shard, mode: Mode, reason: str) -> Done:
        """Write the error of rows that no process survives, or that take too long."""
        source = self._work.sources[shard.file]
        paths = read(source, shard) if source.format == IMAGES else ()
        return self._write(shard, [{"error": reason} for _ in range(shard.rows)], time.perf_counter(), mode, paths)

    def _write(
        self, shard: Shard, answers: Sequence[dict[str, Any]], began: float, mode: Mode, values: Sequence[Any] = ()
    ) -> Done:
        store, function, path = self._work.store, self._function, self._work.sources[shard.file].path
        rows = []
        for number, answer in enumerate(answers, shard.first):
            value = values[number - shard.first] if values else None
            row = {"file": str(value) if isinstance(value, Path) else path, "row": number, **answer}
            if isinstance(picture := answer.get("picture"), bytes):
                row["picture"] = f"{PICTURES}/{shard.file:05}-{number:012}.png"
                store.write(row["picture"], picture)
            rows.append(row)
        errors = [{"file": row["file"], "row": row["row"], "error": row["error"]} for row in rows if row.get("error")]
        audit = [(shard.start + i, not row["agrees"]) for i, row in enumerate(answers) if row.get("audited")]
        store.write(f"{PARTS}/{part_name(shard, self._work.form)}", encoder(self._work.form, self._columns)(rows))
        seconds = time.perf_counter() - began
        receipt = {
            "part": part_name(shard, self._work.form),
            "first_in_job": shard.start,
            "rows": shard.rows,
            "errors": errors,
            "seconds": seconds,
            "kind": function.kind,
            "totals": {name: sum(row.get(name) or 0 for row in answers) for name in function.totals},
            "audit": audit,
        }
        store.write_json(f"{RECEIPTS}/{shard.name}{AFTER_ALARM if mode.after_alarm else ''}.json", receipt)
        return Done(shard, len(errors), seconds, tuple(audit))
