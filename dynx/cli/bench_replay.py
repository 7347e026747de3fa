"""`dynx bench --record` and `--replay`: what drafters and exits would have said, kept, and policies scored on it offline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from dynx.bench.replay import Score, Scores
    from dynx.cli.bench.command import Options
    from dynx.cli.console import Terminal

GATES = ("min_speedup", "max_disagreement", "min_quality", "baseline")
UNITS = {"generate": "texts", "classify": "inputs", "draw": "pictures"}
PLACES = {"generate": "tokens/pass", "classify": "layers", "draw": "steps"}
WRONG = {"classify": "differ", "draw": "below"}


def check(options: Options) -> None:
    """Raises UsageError for what these don't go with, before anything is loaded."""
    from dynx.bench.exports import writable

    if options.policy and options.replay is None:
        raise UsageError("--policy says what --replay scores; there is no --replay")
    if options.record is not None and options.replay is not None:
        raise UsageError("--record and --replay exclude each other")
    if options.record is not None:
        writable(Path(options.record), "", "jsonl")
    name = "--record" if options.record is not None else "--replay"
    for gate in GATES:
        if options.record is not None and gate == "max_disagreement":
            continue  # the promise under which the dynamic policy is recorded
        if getattr(options, gate) is not None:
            raise UsageError(f"--{gate.replace('_', '-')} judges a measurement, and {name} measures none")
    if options.export or options.plot:
        raise UsageError(f"--export and --plot are of a measurement, and {name} measures none", hint="--json")


def record(options: Options, terminal: Terminal) -> None:
    """Write the recording of one model. Raises UsageError for several."""
    from dynx.cli.bench.command import check as check_options
    from dynx.cli.bench.command import check_tasks, choose, task_of

    chosen = choose(options)
    if len(chosen) != 1:
        names = ", ".join(one.model for one in chosen)
        raise UsageError(f"a recording is of one model, not of {names}", hint=f"-m {chosen[0].model}")
    (one,) = chosen
    check_options(one)
    module = task_of(one)
    check_tasks(one, [(one, module)])
    prepared = module.prepare(one, terminal)
    path = Path(one.record or "").expanduser()
    with terminal.progress("recording") as move:
        lines = list(prepared.record(lambda share: move(share, 1.0, "")))
    try:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as e:
        raise UsageError(f"can't write {path}: {e.strerror or e}") from None
    terminal.notice(f"recorded {prepared.header['model']} in {path}; dynx bench --replay {path} scores policies on it")


def replay(options: Options, terminal: Terminal) -> None:
    """Score policies on a recording, as a table or one JSON document."""
    from dynx.bench import replay as scoring

    path = Path(options.replay or "").expanduser()
    head, lines = scoring.read(path)
    found = scoring.score(head, lines, options.policy or ())
    if options.json:
        terminal.document(found.document())
        return
    console = terminal.rich(sys.stdout)
    console.print(table(found, terminal.unicode))
    for sentence in sentences(found):
        console.print(sentence, soft_wrap=True, markup=False)


def table(found: Scores, unicode: bool) -> Table:
    """A row for each policy, the oracles below a line."""
    from rich.table import Table
    from rich.text import Text

    task = str(found.head["task"])
    drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    drawn.add_column("policy", no_wrap=True)
    wrong = WRONG.get(task)
    for title in ("of plain", "of oracle", PLACES[task], *([wrong] if wrong else [])):
        drawn.add_column(title, justify="right", no_wrap=True)
    nothing = "–" if unicode else "-"
    for score in found.scores:
        cells = [f"{score.speedup:.2f}x", f"{100 * score.of_oracle:.1f} %", _place(score, nothing)]
        if wrong:
            cells.append(nothing if score.wrong is None else f"{score.wrong:,}{'' if score.within else ' (!)'}")
        style = "green" if score.policy == "dynamic" else "dim" if "oracle" in score.policy else ""
        drawn.add_row(Text(score.policy, style=style), *map(Text, cells))
    return drawn


def _place(score: Score, nothing: str) -> str:
    return nothing if score.mean is None else f"{score.mean:.2f}"


def sentences(found: Scores) -> Sequence[str]:
    """How far from the best possible, and what that is."""
    from dynx.bench.replay import INFORMED

    head: Any = found.head
    task = str(head["task"])
    out = []
    for name in ("dynamic", "cold"):
        score = found.of(name)
        if score is not None:
            out.append(f"{name} reaches {100 * score.of_oracle:.1f} % of the {INFORMED}'s speed")
            break
    about = (
        "costs, acceptance and the rate beforehand"
        if task == "generate"
        else "the best rule that could have been certified"
    )
    out.append(f"the {INFORMED} knows {about}; the clairvoyant one also how each guess turns out")
    if any(score.within is False for score in found.scores):
        out.append(f"(!) more than {100 * (1 - float(head['share'])):g} % {WRONG[task]}, so the promise is broken here")
    model = head["header"].get("model", "a model")
    out.append(f"from {found.count:,} {UNITS[task]} of {model}, recorded {head['created']}")
    return out
