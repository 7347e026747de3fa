"""`--input FILES --output DIR`: runs a command over the rows of files as a job, which can be killed and repeated."""

from __future__ import annotations

import json
import sys
import time
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from dynx.cli.console import Terminal
from dynx.cli.inputs import typed
from dynx.cli.options import Engine
from dynx.cli.pairs import names_of_pair
from dynx.cli.remedy import telling_the_remedy
from dynx.errors import DynxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dynx.jobs.driver import Progress
    from dynx.jobs.pool import Pool
    from dynx.jobs.row_function import RowFunction

LOG_SECONDS = 60.0
"""Seconds between lines of progress where stderr isn't a terminal."""

TIME_ONLY = ("threads", "offline", "allow_pickle", "require_profile")
"""Settings of a request on which no answer depends: a job may be taken up again with others."""

MAX_WORKERS = 4096


ONLY_IN_JOBS = ("engine", "workers", "shard_rows", "timeout_row")
"""Options that require --input."""


def is_job(options: Any, *, only: Sequence[str] = (), never: Sequence[str] = ()) -> bool:
    """Whether --input is given. Raises UsageError for an option that goes `only` or `never` with it."""
    defaults = {name: field.default for name, field in type(options).__dataclass_fields__.items()}
    for name in never if options.input is not None else (*ONLY_IN_JOBS, *only):
        if getattr(options, name) != defaults[name]:
            flag = _flag(options, name)
            raise UsageError(
                f"{flag} requires --input" if options.input is None else f"--input and {flag} exclude each other"
            )
    if options.input is not None and options.output is None:
        raise UsageError("--input requires --output", hint="a new folder, which will hold the answers")
    return options.input is not None


def _flag(options: Any, name: str) -> str:
    declared = type(options).__dataclass_fields__[name].metadata["dynx.cli"]
    return f"--{declared.key}" if declared.key else str(declared.about.get("metavar", name))


def run_job(
    options: Any,
    function: RowFunction,
    request: Any,
    settings: Mapping[str, Any],
    *,
    certify: bool = False,
    audit: bool = False,
) -> None:
    """Run `function` over the files of --input. `settings` are options on which answers depend, besides the `request`'s."""
    from dynx.jobs.driver import Job, run
    from dynx.jobs.groups import COLUMNS

    terminal = Terminal(quiet=options.quiet, verbose=options.verbose, color=options.color)
    column, second = options.column or getattr(options, "field", None) or None, None
    pair, rank = getattr(options, "pair", None), getattr(options, "rank", False)
    if column is not None and (pair is not None or rank):
        names = f"{'--rank' if pair is None else '--pair'} and {'--column' if options.column else '--field'}"
        raise UsageError(f"{names} exclude each other")
    if pair is not None:
        column, second = names_of_pair(pair)
    elif rank:
        column, second = COLUMNS
    asked = {k: v for k, v in vars(request).items() if k not in TIME_ONLY} | dict(settings) | {"column": column}
    if second is not None:
        asked["second"] = second
    job = Job(
        function,
        [typed(pattern, "--input") for pattern in options.input],
        typed(options.output, "--output"),
        json.loads(json.dumps(asked, default=str)),
        column,
        second,
        "jsonl" if options.jsonl else "parquet",
        options.shard_rows,
        certify,
        audit,
        getattr(options, "max_disagreement", 0.02),
        1 - getattr(options, "confidence", 0.95),
        options.timeout_row,
    )
    seen: list[Progress] = []
    try:
        # Ray prints on stdout that a worker has died
        with redirect_stdout(sys.stderr), terminal.progress("rows") as move, telling_the_remedy(request):
            show = _shower(terminal, move, seen)
            stats = run(
                job, _pool_opener(options), show=show, say=terminal.notice, warn=terminal.warn, detail=terminal.detail
            )
    except KeyboardInterrupt:
        if seen:
            kept = f"{seen[-1].done:,} of {seen[-1].rows:,} rows are done and kept"
            terminal.notice(f"stopped: {kept} in {options.output}; the same command goes on")
        raise
    _report(terminal, options, stats)


def _pool_opener(options: Any) -> Callable[[], Pool]:
    """Return the function that opens the workers' pool. Raises UsageError for a bad --workers, or where Ray is missing."""
    workers = None if options.workers == "auto" else _number(options.workers)
    if options.engine == Engine.ray:
        from dynx.jobs.ray import RayPool, load

        load()
        return lambda: RayPool(workers, options.threads)
    from dynx.jobs.local import LocalPool

    return lambda: LocalPool(workers or 1)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_WORKERS:
        raise UsageError(f"--workers {text}: auto, or a number from 1 to {MAX_WORKERS}")
    return int(text)


def _shower(
    terminal: Terminal, move: Callable[[float, float, str], None], seen: list[Progress]
) -> Callable[[Progress], None]:
    """Return the function that shows progress: a bar on a terminal, elsewhere a line a minute."""
    last = [time.monotonic()]

    def show(progress: Progress) -> None:
        seen[:] = [progress]
        words = f"{progress.done:,} of {progress.rows:,}"
        if progress.began is None:
            words += " · loading the model"
        if progress.rate is not None and progress.seconds_left is not None:
            words += f" · {_rate(progress.rate)} · {_duration(progress.seconds_left)} left"
        if progress.errors:
            words += f" · {progress.errors:,} errors"
        move(progress.done, progress.rows, words)
        if not terminal.interactive and time.monotonic() - last[0] >= LOG_SECONDS:
            last[0] = time.monotonic()
            terminal.notice(f"{words} rows" if progress.rate is None else words)

    return show


def _rate(rows: float) -> str:
    return f"{rows:,.0f}/s" if rows >= 10 else f"{rows:.2g}/s" if rows >= 1 else f"{rows * 60:.2g}/min"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return (
        f"{minutes:.0f} min"
        if minutes < 100
        else f"{minutes / 60:.1f} h"
        if minutes < 6000
        else f"{minutes / 1440:.0f} d"
    )


def _report(terminal: Terminal, options: Any, stats: Mapping[str, Any]) -> None:
    """Tell the outcome. Raises DynxError where rows have errors."""
    rows, errors = stats["rows"], stats["errors"]
    for name in ("certificate", "audit"):
        if stats[name]:
            terminal.notice(f"{name}: {stats[name]['words']}")
    terminal.notice(f"{rows:,} rows in {options.output}")
    if errors:
        raise DynxError(f"{errors:,} of {rows:,} rows have no answer; {options.output}/errors.jsonl has the reasons")
