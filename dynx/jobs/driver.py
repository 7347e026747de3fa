"""Run a job: hand shards to workers, keep what is done, and take up again what an earlier run left.

The driver holds a line for each shard and never a row. It loads no model. A worker that dies costs the shard that it had, which
another one gets. Where processes die on the same rows again and again, those are cut into ever smaller ranges, until the row
that kills them is alone and gets an error.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.errors import DynxError
from dynx.jobs import promise
from dynx.jobs.finish import ALARM, finish
from dynx.jobs.inputs import MARK_ROWS, count, find, shards
from dynx.jobs.store import DEATHS, KINDS, PARTS, RECEIPTS, Manifest, Store, encoder, part_name, refuse_difference
from dynx.jobs.worker import AFTER_ALARM, KILLED, PROBE_ROWS, Mode, Work
from dynx.runtime.hashing import text_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dynx.jobs.inputs import Shard, Source
    from dynx.jobs.pool import Event, Pool
    from dynx.jobs.row_function import RowFunction
    from dynx.jobs.worker import Done, Hello

SHARD_SECONDS = 30.0
"""Seconds of work in a shard: what a worker's death costs, and large beside what a shard costs itself."""

SHORTEST_SHARD = 16
"""How much shorter than `SHARD_SECONDS` shards may be, so that each worker gets some."""

MAX_SHARD_ROWS = 1 << 17
"""Most rows of a shard, which a worker holds in memory."""

UNMEASURED_ROWS = 64
"""Rows of a shard where the first rows kill the worker that measures them."""

SHARDS_PER_WORKER = 4
"""Fewest shards for each worker, where there are rows enough."""

MAX_DEATHS, MAX_DEATHS_OF_A_ROW = 2, 3
"""Deaths of workers on a range of rows before it is cut, and on a single row before it is an error.

The second is larger, as processes are also killed from outside, and a row must not be blamed for that.
"""

CUT = 16
"""Ranges that a shard is cut into where workers die on it: few deaths find the row, as each level of cutting costs two."""

MAX_FAILED_STARTS = 3
"""Workers in a row that may die before they have loaded the model."""

GATHER_SECONDS = 60.0
"""Seconds that a certificate waits for more workers after the first is ready, to cover their kinds of machines."""

SLOW_FACTOR = 3.0
"""How much longer than usual rows may take, besides the time that one of them has."""

SLOW = ".slow"
"""Ending of a range's name among the deaths where its worker was ended because it took too long."""


@dataclass(frozen=True)
class Job:
    """What a caller asks for."""

    function: RowFunction
    inputs: Sequence[str]
    output: str
    options: Mapping[str, Any]
    """The caller's options on which answers depend, by parameter name."""
    column: str | None = None
    """The column that holds the inputs; None: a usual one."""
    second: str | None = None
    """The column of the second texts, where inputs are pairs."""
    form: str = "parquet"
    shard_rows: int | None = None
    certify: bool = False
    audit: bool = False
    max_disagreement: float = 0.02
    delta: float = 0.05
    timeout_row: float | None = None
    """Seconds that a row may take before the process that answers it is ended."""


@dataclass
class Progress:
    """How far a job is."""

    rows: int
    done: int = 0
    before: int = 0
    """Rows that earlier runs had done."""
    errors: int = 0
    began: float | None = None
    """When the first worker was ready, by `time.monotonic`."""

    @property
    def rate(self) -> float | None:
        """Rows per second of this run."""
        if self.began is None or self.done == self.before:
            return None
        return (self.done - self.before) / max(1e-9, time.monotonic() - self.began)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all rows are done at this rate."""
        return None if self.rate is None else (self.rows - self.done) / self.rate


def versions() -> dict[str, str]:
    """Return the versions of the packages that answers depend on."""
    found = {}
    for name in ("dynx", "torch", "transformers", "diffusers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def run(
    job: Job,
    open_pool: Callable[[], Pool],
    *,
    show: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    detail: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run a job, or what is left of it, and return its statistics. Raises DynxError."""
    store = Store(job.output).absolute()
    about = {"task": type(job.function).__name__.lower(), "jsonl": job.form == "jsonl", "certify": job.certify}
    about |= {**job.options, **versions()}
    manifest = Manifest.read(store)
    encoder(job.form, job.function.columns)  # raises where a package is missing
    sources = find(job.inputs)
    with store.locked():
        if manifest is not None:
            manifest.check(about, sources)
            if (stats := store.read_json("stats.json")) is not None and "_SUCCESS" in store.names():
                say(f"{job.output} is complete already")
                return dict(stats)
        for decision in job.function.prepare(warn):
            detail(decision)
        if manifest is not None:
            sources = manifest.sources
        else:
            say("counting rows")
            sources = count(sources, job.column, job.second)
        driver = Driver(job, store, about, sources, manifest, (show, say, warn))
        return driver.run(open_pool())


@dataclass
class _State:
    """What a worker is doing."""

    method: str = "open"
    shard: Shard | None = None
    kind: str = ""
    mode: Mode = field(default_factory=Mode)
    deadline: float = math.inf
    """When to end it, by `time.monotonic`."""
    slow: bool = False
    measures: bool = False
    """Whether it measures what answers cost on its kind of machine."""
    knows_costs: bool = False


class Driver:
    """One run of a job."""

    def __init__(
        self,
        job: Job,
        store: Store,
        about: dict[str, Any],
        sources: list[Source],
        manifest: Manifest | None,
        callbacks: tuple[Callable[[Progress], None], Callable[[str], None], Callable[[str], None]],
    ) -> None:
        self._job, self._store, self._about, self._sources, self._manifest = job, store, about, sources, manifest
        self._show, self._say, self._warn = callbacks
        self._work = Work(job.function, store, [replace(s, marks=()) for s in sources], job.form, str(Path.cwd()))
        self._states: dict[int, _State] = {}
        self._failed_starts = 0
        self._costs: dict[str, Any] = {found["kind"]: found["costs"] for found in store.documents(KINDS)}
        self._row_seconds: float | None = None  # on average
        self._spent = 0.0, 0  # seconds, and rows that took them
        self._deaths = Counter((store.read(DEATHS) or b"").decode().split())
        self._done = {name.removesuffix(".json") for name in store.names(RECEIPTS)}
        self._parts = store.names(PARTS)
        self._progress = Progress(sum(source.rows for source in sources))
        self._audit = promise.OrderedAudit(job.max_disagreement, job.delta) if job.audit else None
        self._alarm: int | None = (store.read_json(ALARM) or {}).get("first_in_job")
        self._identity: dict[str, Any] | None = None if manifest is None else manifest.model

    def run(self, pool: Pool) -> dict[str, Any]:
        """Do all shards that are left, and write what is derived from them."""
        self._pool = pool
        try:
            left = None if self._manifest is None else self._left()
            self._progress.before = self._progress.done
            if left is None or left:
                for _ in range(pool.size if left is None else min(pool.size, len(left))):
                    self._start()
                self._begin()
                self._serve(deque(self._left() if left is None else left))
        finally:
            pool.close()
        pieces = [piece for shard in self._plan.shards for piece in self._pieces(shard)]
        names = [n + AFTER_ALARM if n + AFTER_ALARM in self._done else n for n in (piece.name for piece in pieces)]
        delta = None if self._audit is None else self._job.delta
        return finish(self._store, self._plan, names, self._progress.rows, delta)

    @property
    def _plan(self) -> Manifest:
        assert self._manifest is not None  # noqa: S101 - `_begin` makes it
        return self._manifest

    # workers

    def _start(self) -> None:
        worker = self._pool.start(self._work)
        self._states[worker] = _State()
        self._pool.call(worker, "open")

    def _events(self, seconds: float = 1.0) -> list[tuple[_State, Event]]:
        """Return what workers have answered; greet new ones, and replace dead ones. Raises what they raised."""
        events = []
        for worker, state in self._states.items():
            if time.monotonic() > state.deadline and not state.slow:
                state.slow = True
                self._pool.kill(worker)
        for event in self._pool.wait(seconds):
            state = self._states[event.worker]
            if event.ok is False:
                raise event.value
            if event.ok is None:
                del self._states[event.worker]
                if state.method == "open":
                    self._failed_starts += 1
                    if self._failed_starts >= MAX_FAILED_STARTS:
                        raise DynxError(f"workers die before they have loaded the model ({event.value})")
                self._start()
            elif state.method == "open":
                self._greet(state, event.value)
            state.method, state.deadline = "", math.inf
            events.append((state, event))
        return events

    def _greet(self, state: _State, hello: Hello) -> None:
        self._failed_starts = 0
        if self._identity is None:
            self._identity = hello.identity
        refuse_difference(self._identity, hello.identity, f", on the machine {hello.kind}")
        state.kind = hello.kind
        if self._progress.began is None:
            self._progress.began = time.monotonic()

    def _ask(self, worker: int, method: str, *arguments: Any) -> Any:
        """Call a method of one worker and wait for the result; None where it died. Others may open meanwhile."""
        state = self._states[worker]
        state.method = method
        if method == "measure" and self._job.timeout_row is not None:
            state.deadline = time.monotonic() + PROBE_ROWS[0] * self._job.timeout_row
        self._pool.call(worker, method, *arguments)
        while True:
            for _, event in self._events():
                if event.worker == worker:
                    return event.value if event.ok else None

    def _idle(self) -> list[int]:
        return [worker for worker, state in self._states.items() if not state.method]

    # beginning

    def _begin(self) -> None:
        """Make the manifest, where the job is new."""
        self._show(self._progress)
        while not self._idle():
            self._events()
        if self._manifest is not None:
            return
        rows = self._job.shard_rows or self._rows_by_time()
        certificate = self._certify() if self._job.certify else None
        made = shards(self._sources, rows)
        self._manifest = Manifest(self._about, self._sources, self._identity or {}, made, certificate)
        self._manifest.write(self._store)
        self._sources = list(self._work.sources)  # the marks are in the shards now

    def _rows_by_time(self) -> int:
        first = list(islice(shards(self._sources, MARK_ROWS), 4))
        seconds = self._ask(self._idle()[0], "measure", first)
        if seconds is None:
            return UNMEASURED_ROWS
        self._row_seconds = seconds
        by_time = min(SHARD_SECONDS / max(seconds, 1e-9), MAX_SHARD_ROWS)
        fair = -(-self._progress.rows // (SHARDS_PER_WORKER * self._pool.size))
        rows = max(1, int(min(by_time, max(fair, by_time / SHORTEST_SHARD))))
        return 1 << (rows - 1).bit_length() if rows > 1 else 1

    def _certify(self) -> dict[str, Any]:
        """Certify exits on a sample of the rows, which a worker of each kind of machine answers."""
        until = time.monotonic() + GATHER_SECONDS
        while len(self._idle()) < self._pool.size and time.monotonic() < until:
            self._events()
        job, total = self._job, self._progress.rows
        drawn = min(promise.MAX_SAMPLE, self._ask(self._idle()[0], "ask", "sample_size", total) or 0)
        if not drawn:
            words = f"full depth: there are no exits to certify, or {total:,} rows are too few for a sample"
            return {"thresholds": None, "words": words, "kinds": []}
        self._say(f"certifying on a sample of {drawn:,} rows")
        values = promise.pick(self._sources, promise.draw(total, drawn))
        kinds = {self._states[worker].kind: worker for worker in self._idle()}
        found, truth = [], None
        for worker in kinds.values():
            one = self._ask(worker, "ask", "sample_differences", values, truth)
            if one is None:
                raise DynxError("a worker died while it answered the sample of the certificate")
            truth = one["reference_logits"]
            found.append(one)
        made = promise.certify(
            [one["differs"] for one in found],
            found[0]["thresholds"].tolist(),
            found[0]["pays"].tolist(),
            total,
            job.max_disagreement,
            job.delta,
        )
        self._say(made["words"])
        return {**made, "kinds": list(kinds)}

    # shards

    def _after_alarm(self, shard: Shard) -> bool:
        return self._alarm is not None and shard.start >= self._alarm

    def _is_done(self, shard: Shard) -> bool:
        if part_name(shard, self._job.form) not in self._parts:
            return False
        return shard.name + AFTER_ALARM in self._done or (not self._after_alarm(shard) and shard.name in self._done)

    def _may_run(self, shard: Shard) -> bool:
        """Whether a shard is to be answered as a whole: few workers have died on it."""
        return self._deaths[shard.name] < (MAX_DEATHS_OF_A_ROW if shard.rows == 1 else MAX_DEATHS)

    def _pieces(self, shard: Shard) -> Iterator[Shard]:
        """Yield the ranges of a shard that are answered, and written, each by itself."""
        if self._is_done(shard) or shard.rows == 1 or self._may_run(shard):
            yield shard
            return
        for piece in shard.split(CUT):
            yield from self._pieces(piece)

    def _left(self) -> list[Shard]:
        """Return the ranges still to do, in order; count those that are done."""
        pieces = [piece for shard in self._plan.shards for piece in self._pieces(shard)]
        left = [piece for piece in pieces if not self._is_done(piece)]
        self._progress.done = self._progress.rows - sum(piece.rows for piece in left)
        if self._audit is not None and self._alarm is None:
            for piece in pieces:
                if piece.name in self._done and self._is_done(piece):
                    receipt = self._store.read_json(f"{RECEIPTS}/{piece.name}.json")
                    if self._audit.add(piece.start, piece.rows, [(n, bad) for n, bad in receipt["audit"]]):
                        self._raise_alarm()
                        return self._left()
        return left

    def _serve(self, todo: deque[Shard]) -> None:
        """Have workers do all shards."""
        self._shard_rows = max(shard.rows for shard in self._plan.shards)
        self._show(self._progress)
        while todo or any(state.shard for state in self._states.values()):
            for worker in self._idle():
                if todo and not self._learns_costs(worker):
                    self._send(worker, todo.popleft())
            for state, event in self._events():
                shard, state.shard = state.shard, None
                if state.measures:
                    self._keep_costs(state, event.value if event.ok else None)
                if shard is None:
                    continue
                if event.ok is None:
                    self._died(shard, todo, slow=state.slow)
                elif state.mode.after_alarm != self._after_alarm(shard):
                    todo.appendleft(shard)  # the alarm came while it was being answered
                else:
                    self._book(event.value, state.mode, todo)
            self._show(self._progress)

    def _send(self, worker: int, shard: Shard) -> None:
        state, certificate = self._states[worker], self._plan.certificate
        mode = Mode(after_alarm=self._after_alarm(shard), shard_rows=self._shard_rows)
        if certificate is not None:
            known = certificate["thresholds"]
            late = known is not None and state.kind not in certificate["kinds"]
            full = known is None or late
            mode = replace(mode, full_depth=full, reference=late, thresholds=None if full else tuple(known))
        if mode.after_alarm:
            mode = replace(mode, full_depth=True, reference=True)
        state.shard, state.mode = shard, mode
        if self._may_run(shard):
            state.method, state.deadline = "run", self._deadline(shard)
            self._pool.call(worker, "run", shard, mode)
        else:
            slow = self._deaths[shard.name + SLOW] and self._job.timeout_row is not None
            state.method = "give_up"
            reason = f"took longer than {self._job.timeout_row:g} seconds" if slow else KILLED
            self._pool.call(worker, "give_up", shard, mode, reason)

    def _deadline(self, shard: Shard) -> float:
        """Return when a worker that begins a range now has taken too long.

        One row has its time, and the others what rows usually take and more, or one row's time while that isn't known: a range
        that is cut for nothing costs time alone, since no row is given up before it was alone.
        """
        each, others = self._job.timeout_row, shard.rows - 1
        if each is None:
            return math.inf
        usual = min(1, others) * each if self._row_seconds is None else others * SLOW_FACTOR * self._row_seconds
        return time.monotonic() + each + usual

    def _learns_costs(self, worker: int) -> bool:
        """Whether a worker, before its first shard, measures what answers cost on its kind of machine, or waits to learn it.

        One of each kind measures, while the others of its machine are idle.
        """
        state = self._states[worker]
        if state.knows_costs or not self._job.function.timed:
            return False
        if state.kind in self._costs:
            state.knows_costs, state.method = True, "ask"
            self._pool.call(worker, "ask", "use_costs", self._costs[state.kind])
        elif not any(other.measures and other.kind == state.kind for other in self._states.values()):
            state.measures, state.method = True, "ask"
            self._pool.call(worker, "ask", "measure_costs", self._shard_rows)
        return True

    def _keep_costs(self, state: _State, costs: Any) -> None:
        """Keep what a worker has measured, for all of its kind and for later runs; None: each finds out by itself."""
        state.measures, self._costs[state.kind] = False, costs
        self._store.write_json(f"{KINDS}/{text_hash([state.kind])}.json", {"kind": state.kind, "costs": costs})

    def _died(self, shard: Shard, todo: deque[Shard], *, slow: bool) -> None:
        marks = [shard.name] * MAX_DEATHS_OF_A_ROW + [shard.name + SLOW] if slow else [shard.name]
        self._deaths.update(marks)
        self._store.append(DEATHS, " ".join(marks))
        path = self._sources[shard.file].path
        what = "took too long" if slow else "died"
        self._warn(f"a worker {what} on rows {shard.first:,} to {shard.first + shard.rows - 1:,} of {path}")
        todo.extendleft(reversed([piece for piece in self._pieces(shard) if not self._is_done(piece)]))

    def _book(self, done: Done, mode: Mode, todo: deque[Shard]) -> None:
        shard = done.shard
        self._done.add(shard.name + (AFTER_ALARM if mode.after_alarm else ""))
        self._parts.add(part_name(shard, self._job.form))
        self._progress.done += shard.rows
        self._progress.errors += done.errors
        self._spent = self._spent[0] + done.seconds, self._spent[1] + shard.rows
        self._row_seconds = self._spent[0] / self._spent[1]
        if self._audit is not None and self._alarm is None and self._audit.add(shard.start, shard.rows, done.audit):
            self._raise_alarm()
            busy = {state.shard for state in self._states.values()}
            todo.clear()
            todo.extend(piece for piece in self._left() if piece not in busy)

    def _raise_alarm(self) -> None:
        assert self._audit is not None  # noqa: S101 - who calls has one
        self._alarm = self._audit.alarm
        self._store.write_json(ALARM, {"first_in_job": self._alarm, "words": str(self._audit)})
        self._warn(f"{self._audit}; from row {self._alarm:,} of the job on every answer is the full model's")
