"""`dynx bench --fresh`: every round in a process of its own, so that what differs from process to process averages out.

Where memory lies, what the caches hold and how the model was loaded is drawn once for each process and biases all of its rounds
alike. Loading isn't timed. A process that hangs is ended, the arm that it hung in is dropped, and the round is run again.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dynx.errors import DynxError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from dynx.bench.runner import Arm, Failure, Outcome, Play, Played
    from dynx.cli.bench.command import Options, Prepared

PATIENCE = 600.0
"""Seconds for a process to load its model, and for one run where --timeout says nothing."""


def player(options: Options, prepared: Prepared) -> Play:
    """Runs rounds in fresh processes; what they remember is recalled here."""
    from dynx.bench.runner import Failure, Played

    def play(number: int, names: Sequence[str], seed: int) -> Played:
        left = list(names)
        failures: dict[str, Failure] = {}
        while True:
            said, hung = _round(options, left, seed)
            if hung is None:
                samples = [(name, replace(s, round=number)) for name, found in said["samples"].items() for s in found]
                prepared.recall(said["memory"])
                failed = {name: replace(failure, round=number) for name, failure in said["failures"].items()}
                return Played(samples, failures | failed)
            failures[hung] = Failure(f"no end after {options.timeout or PATIENCE:g} s", number, 0)
            left.remove(hung)
            if next(arm.name for arm in prepared.arms if arm.reference) == hung:
                raise DynxError(f"the reference arm {hung!r} failed: {failures[hung].message}")

    return play


def _round(options: Options, names: Sequence[str], seed: int) -> tuple[dict[str, Any], str | None]:
    """What a child says at its end; and the arm that it hung in, if it did."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(options, list(names), seed, theirs), daemon=True)
    child.start()
    theirs.close()
    running: str | None = None
    try:
        while True:
            if not ours.poll(PATIENCE if running is None else options.timeout or PATIENCE):
                if running is None:
                    raise DynxError(f"a fresh process was not ready after {PATIENCE:g} s")
                return {}, running
            what, value = ours.recv()
            if what == "done":
                return value, None
            if what == "error":
                raise value
            running = value
    except EOFError:
        child.join(5)
        raise DynxError(f"a fresh process ended with exit code {child.exitcode} in the arm {running!r}") from None
    finally:
        child.kill()
        child.join()
        ours.close()


def _child(options: Options, names: list[str], seed: int, pipe: Connection) -> None:
    """One round, in a process of its own."""
    import os

    from dynx.bench import runner
    from dynx.bench.limits import metered, parse_slow, slowed
    from dynx.cli.bench.command import task_of
    from dynx.cli.bench.measure import SLOW
    from dynx.cli.console import Terminal

    try:
        prepared: Prepared = task_of(options).prepare(options, Terminal(quiet=2))
        from dynx.bench import energy

        meter = energy.find(str(prepared.header["device"])).value
        arms = [arm for arm in prepared.arms if arm.name in names]
        if setting := os.environ.get(SLOW):
            name, share = parse_slow(setting)
            arms = [slowed(arm, share, time.perf_counter, time.sleep) if arm.name == name else arm for arm in arms]
        if meter is not None:
            arms = [metered(arm, meter) for arm in arms]
        measured = runner.measure(
            [_announced(arm, pipe) for arm in arms],
            prepared.cases,
            rounds=1,
            warmup=1,
            clock=time.perf_counter,
            rng=random.Random(seed),  # noqa: S311
        )
        found = {"samples": dict(measured.samples), "failures": dict(measured.failures), "memory": prepared.remember()}
        pipe.send(("done", found))
    except DynxError as e:
        pipe.send(("error", type(e)(str(e), hint=e.hint)))
    except KeyboardInterrupt:
        return


def _announced(arm: Arm[Any], pipe: Connection) -> Arm[Any]:
    """The arm, telling the parent that it is about to run."""

    def run(case: Any) -> Outcome:
        pipe.send(("running", arm.name))
        return arm.run(case)

    return replace(arm, run=run)
