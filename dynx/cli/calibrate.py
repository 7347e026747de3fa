"""`dynx calibrate`: measure a model here, and keep house among the stored profiles."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dynx.cli.console import Terminal
from dynx.cli.receipt import NAMES
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from dynx.cli.options import Color, Dtype
    from dynx.runtime.profile import Profile
    from dynx.speculation.calibrate import Findings
    from dynx.speculation.setup import Assembly, Plan

SCHEMA = "dynx.calibrate/1"

ROOM = 16
"""Tokens that a prompt must leave for an answer to learn from."""


@dataclass(frozen=True)
class Options:
    """The command line of `dynx calibrate`, by parameter name."""

    model: str
    draft: str
    data: str | None
    budget: float
    dry_run: bool
    device_info: bool
    list_: bool
    show: str | None
    export: str | None
    output: str | None
    import_: str | None
    remove: str | None
    json: bool
    device: str
    dtype: Dtype
    threads: int | None
    allow_pickle: bool
    offline: bool
    quiet: int
    verbose: int
    color: Color


def run(options: Options) -> None:
    """One of the housekeeping actions, or a calibration."""
    actions: list[tuple[bool, str, Callable[[Options, Terminal], None]]] = [
        (options.device_info, "--device-info", device_info),
        (options.list_, "--list", list_profiles),
        (options.show is not None, "--show", show),
        (options.export is not None, "--export", export),
        (options.import_ is not None, "--import", import_profile),
        (options.remove is not None, "--remove", remove),
    ]
    wanted = [(name, action) for asked, name, action in actions if asked]
    if len(wanted) > 1:
        raise UsageError(f"{' and '.join(name for name, _ in wanted)} exclude each other")
    if options.output is not None and options.export is None:
        raise UsageError("--output says where --export writes; there is no --export")
    terminal = Terminal(quiet=options.quiet, verbose=options.verbose, color=options.color, json=options.json)
    (wanted[0][1] if wanted else calibrate)(options, terminal)


def calibrate(options: Options, terminal: Terminal) -> None:
    """Measure, store, and say what was found."""
    from dynx.cli.bench import read_prompts
    from dynx.runtime.store import ProfileStore, StoreError, profiles_folder
    from dynx.speculation.setup import Wish, assemble, make_plan

    texts = read_prompts(options.data) if options.data else []
    wish = Wish(
        model=options.model,
        draft=options.draft,
        device=options.device,
        dtype=str(options.dtype),
        threads=options.threads,
        profile="none",  # what is stored must not colour what is measured
        allow_pickle=options.allow_pickle,
        offline=options.offline,
    )
    plan = make_plan(wish, warn=terminal.warn)
    if options.dry_run:
        dry_run(plan, options, terminal)
        return
    assembly = assemble(plan, stages=terminal.status, warn=terminal.warn)
    terminal.clear_status()
    from dynx.speculation import calibrate as learning

    prompts = fitting(texts, assembly)
    with terminal.progress(f"calibrating {plan.source.name}") as move:
        found = learning.calibrate(
            assembly,
            budget=options.budget,
            clock=time.perf_counter,
            prompts=prompts,
            progress=lambda share, what: move(share, 1.0, what),
        )
    report(found, assembly, terminal, options)
    try:
        path = ProfileStore(profiles_folder(), terminal.warn).save(found.profile)
        terminal.notice(f"profile {found.profile.key.id} stored in {path}")
    except StoreError as e:
        terminal.warn(f"the profile can't be stored ({e}); set DYNX_CACHE_DIR to a folder that can be written")


def fitting(texts: list[str], assembly: Assembly) -> list[list[int]]:
    """The token ids of those texts that leave room for an answer. Raises UsageError if none of them does."""
    limit = assembly.engine.target.context
    prompts = [list(assembly.tokenizer(text)["input_ids"]) for text in texts]
    short = [prompt for prompt in prompts if limit is None or len(prompt) + ROOM <= limit]
    if prompts and not short:
        raise UsageError(f"--data has only prompts too long for the model's context of {limit} tokens")
    return short


def dry_run(plan: Plan, options: Options, terminal: Terminal) -> None:
    """What would be measured, without loading anything."""
    document = {
        "schema": SCHEMA,
        "model": plan.source.name,
        "drafter": plan.drafter.name if plan.drafter else None,
        "drafters": sorted(plan.kinds),
        "profile": plan.key.id,
        "budget_seconds": options.budget,
        "decisions": {k: {"value": d.value, "reason": d.reason} for k, d in plan.decisions.items()},
    }
    if options.json:
        terminal.document(document)
        return
    drafters = ", ".join(NAMES[o] for o in ("draft", "self", "lookup") if o in plan.kinds) or "none"
    lines = [f"{knob}: {d.value} ({d.reason})" for knob, d in plan.decisions.items() if knob != "profile"]
    lines += [
        f"drafters: {drafters}",
        f"would measure for at most {options.budget:.0f} s and store profile {plan.key.id}",
    ]
    terminal.write("\n".join(lines) + "\n")


def report(found: Findings, assembly: Assembly, terminal: Terminal, options: Options) -> None:
    """The findings: a table and the decision in words, or one JSON document."""
    if options.json:
        terminal.document(json.loads(found.profile.to_json()) | {"schema": SCHEMA})  # which stays in first place
        return
    console = terminal.rich(sys.stdout)
    console.print(table_of(found, assembly))
    console.print(f"{assembly.plan.source.name}: {found.summary}", soft_wrap=True, markup=False)


def table_of(found: Findings, assembly: Assembly) -> Table:
    """Costs and acceptance by drafter, then what each set of drafters promises."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "cost of a guess", "first guess right", "expected alone"):
        table.add_column(heading, justify="left" if not heading else "right")
    whole = found.costs.target(1)
    for origin, rate in found.acceptance.items():
        cost = 0.0 if origin == "lookup" else found.costs.draft[origin](1)
        where = f", layer {found.exit_layers} of {assembly.engine.target.layers}" if origin == "self" else ""
        name = NAMES[origin] + where
        share = f"{cost * 1e3:.2f} ms, {cost / whole:.0%}" if cost else "free"
        table.add_row(name, share, f"{rate:.0%}", f"{found.predictions.get(origin, 1.0):.2f}x")
    widths = [1, 2, 4, 8, 16]
    passes = ", ".join(f"{n}: {found.costs.target(n) * 1e3:.1f}" for n in widths)
    table.add_section()
    table.add_row("plain decoding", f"{whole * 1e3:.2f} ms a token", "", "1.00x")
    table.add_row("together", "", "", f"{max(found.predictions.values()):.2f}x")
    table.caption = f"shares are of a pass; passes of n tokens, in ms: {passes}"
    table.caption_justify = "left"
    return table


def device_info(options: Options, terminal: Terminal) -> None:
    """What this machine has, and the choices that follow."""
    from dynx.runtime.device import choose_device, choose_dtype, choose_threads, probe

    machine = probe(measure_bandwidth=True)
    device = choose_device(options.device, machine)
    wanted = None if str(options.dtype) == "auto" else str(options.dtype)
    choices: dict[str, Any] = {
        "device": device,
        "dtype": choose_dtype(wanted, device.value, machine),
        "threads": choose_threads(options.threads, machine),
    }
    if options.json:
        picked = {k: {"value": d.value, "reason": d.reason} for k, d in choices.items()}
        terminal.document(machine.describe() | {"choices": picked})
        return
    rows = machine.rows() + [(f"→ {k}", f"{d.value} ({d.reason})") for k, d in choices.items()]
    width = max(len(label) for label, _ in rows)
    terminal.write("".join(f"{label:<{width}}  {value}\n" for label, value in rows))


def _store(terminal: Terminal) -> Any:
    from dynx.runtime.store import ProfileStore, profiles_folder

    return ProfileStore(profiles_folder(), terminal.warn)


def list_profiles(options: Options, terminal: Terminal) -> None:
    """A line per profile."""
    store = _store(terminal)
    profiles: list[Profile] = list(store.list())
    if options.json:
        rows = [
            {
                "id": p.key.id,
                "task": p.key.task,
                "model": p.model_name,
                "dtype": p.key.dtype,
                "created": p.created,
                "stale": store.stale(p),
                "summary": p.decision["summary"],
            }
            for p in profiles
        ]
        terminal.document({"schema": "dynx.profiles/1", "profiles": rows})
        return
    if not profiles:
        terminal.notice(f"no profiles in {store.folder}; dynx calibrate makes one")
    for p in profiles:
        note = f"  [unused: {store.stale(p)}]" if store.stale(p) else ""
        name = "".join(c for c in p.model_name if c.isprintable())
        terminal.write(f"{p.key.id}  {p.key.task}  {name}  {p.key.dtype}  {p.created}{note}\n")


def show(options: Options, terminal: Terminal) -> None:
    """A stored profile, as it is."""
    terminal.write(_store(terminal).get(options.show).to_json())


def export(options: Options, terminal: Terminal) -> None:
    """A stored profile as one file."""
    if options.output not in (None, "-"):
        terminal.notice(f"wrote {_store(terminal).export(options.export, Path(options.output))}")
        return
    with TemporaryDirectory() as folder:
        file = _store(terminal).export(options.export, Path(folder) / "profile.json")
        terminal.write(file.read_text(encoding="utf-8"))


def import_profile(options: Options, terminal: Terminal) -> None:
    """Store a file that --export wrote."""
    profile = _store(terminal).import_file(Path(options.import_ or ""))
    terminal.notice(f"stored profile {profile.key.id} for {profile.model_name}")


def remove(options: Options, terminal: Terminal) -> None:
    """Delete a stored profile."""
    terminal.notice(f"removed {_store(terminal).remove(options.remove)}")
