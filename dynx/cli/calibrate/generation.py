"""`dynx calibrate` for language models."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from dynx.cli.calibrate.common import SCHEMA, refuse, store
from dynx.cli.forms import ONLY_CLASSIFIERS
from dynx.cli.generate.model import hint_template
from dynx.cli.generate.stats import NAMES
from dynx.errors import UsageError
from dynx.speculation.disk_drafters import drafters_for, named

if TYPE_CHECKING:
    from rich.table import Table

    from dynx.cli.console import Terminal
    from dynx.cli.options.calibrate import Options
    from dynx.cli.prompts import Prompt
    from dynx.speculation.assembly import LoadedGenerator
    from dynx.speculation.calibrate import Findings
    from dynx.speculation.plan import GeneratorPlan

MIN_ANSWER_TOKENS = 16
"""Smallest number of new tokens that a prompt must leave room for."""


BUDGET_SECONDS, LEARNING_SECONDS = 75.0, 225.0
"""Time for measuring and for learning a drafter, in seconds, where none is asked for."""

MEASURING_SHARE = 0.5
"""Most of a budget that measuring may take where a drafter is to be learned."""

MIN_LESSONS = 10
"""Fewest prompts to learn from: one in five tests what was learned."""


def calibrate(options: Options, terminal: Terminal) -> None:
    """Measure costs and acceptance, store the profile, and report."""
    others = (
        *ONLY_CLASSIFIERS,
        "tsv",
        "column",
        "within",
        "max_length",
        "lora",
        "image",
        "strength",
        "control_image",
        "control_scale",
        "mask",
        "quality",
        "guidance",
        "negative",
        "size",
        "plot",
        "anew",
    )
    refuse(options, others, "is a language model")
    budget, learning = budgets(options)
    from dynx.cli.prompts import is_chat, read_data
    from dynx.speculation import assemble, make_plan
    from dynx.speculation.plan import GeneratorRequest

    if options.field is not None and options.data is None:
        raise UsageError("--field requires --data")
    prompts = read_data(options.data, options.field, terminal.warn) if options.data else []
    chat = is_chat(prompts, chat=options.chat, system=options.system)
    request = GeneratorRequest(
        options.model,
        adapters=tuple(options.adapters or ()),
        draft=options.draft,
        backend=str(options.backend or "auto"),
        quantize=str(options.quantize or "auto"),
        profile="none",  # what is stored must not colour what is measured
        chat=chat,
        **options.for_request(),
    )
    plan = make_plan(request, warn=terminal.warn)
    if options.dry_run:
        dry_run(plan, budget + learning, options, terminal)
        return
    assembly = assemble(plan, stages=terminal.status, warn=terminal.warn, clock=time.perf_counter)
    terminal.clear_status()
    hint_template(assembly, terminal)
    from dynx.speculation import calibrate as measuring
    from dynx.speculation.chat import require_template

    if chat:
        require_template(assembly.tokenizer, plan.source.name)
    cases = fitting(prompts, assembly, chat=chat, system=options.system)
    if options.learn_drafter and cases and len(cases) < MIN_LESSONS:
        raise UsageError(f"--learn-drafter takes at least {MIN_LESSONS} prompts, and --data has {len(cases)}")
    with terminal.progress(f"calibrating {plan.source.name}") as move:
        found = measuring.calibrate(
            assembly,
            budget=budget,
            clock=time.perf_counter,
            prompts=cases,
            system=options.system,
            learning=learning,
            progress=lambda share, what: move(share, 1.0, what),
        )
    report(found, assembly, terminal, options)
    store(found.profile, terminal, found.arrays)


def budgets(options: Options) -> tuple[float, float]:
    """Return the seconds for measuring and for learning a drafter."""
    if not options.learn_drafter:
        return (BUDGET_SECONDS if options.budget is None else options.budget), 0.0
    if options.budget is None:
        return BUDGET_SECONDS, LEARNING_SECONDS
    measuring = min(BUDGET_SECONDS, MEASURING_SHARE * options.budget)
    return measuring, options.budget - measuring


def fitting(prompts: list[Prompt], assembly: LoadedGenerator, *, chat: bool, system: str | None) -> list[list[int]]:
    """Return the token ids of the prompts that leave room for an answer. Raises UsageError if none of them does."""
    from dynx.speculation.chat import encode

    limit, name = assembly.engine.target.context, assembly.plan.source.name
    cases = [encode(assembly.tokenizer, p.content, chat=chat, system=system, model=name)[0] for p in prompts]
    short = [case for case in cases if limit is None or len(case) + MIN_ANSWER_TOKENS <= limit]
    if cases and not short:
        raise UsageError(f"--data has only prompts too long for the model's context of {limit} tokens")
    return short


def dry_run(plan: GeneratorPlan, budget: float, options: Options, terminal: Terminal) -> None:
    """Print what would be measured, without loading anything."""
    document = {
        "schema": SCHEMA,
        "model": plan.source.name,
        "drafter": plan.drafter.name if plan.drafter else None,
        "drafters": sorted(plan.kinds),
        "profile": plan.key.id,
        "budget_seconds": budget,
        "decisions": plan.decisions.to_json(),
    }
    if options.json:
        terminal.document(document)
        return
    drafters = ", ".join(NAMES[o] for o in ("draft", "self", "lookup") if o in plan.kinds) or "none"
    lines = [f"{knob}: {d.value} ({d.reason})" for knob, d in plan.decisions.items() if knob != "profile"]
    lines += [
        f"drafters: {drafters}",
        f"would measure for at most {budget:.0f} s and store profile {plan.key.id}",
    ]
    terminal.write("\n".join(lines) + "\n")


def report(found: Findings, assembly: LoadedGenerator, terminal: Terminal, options: Options) -> None:
    """Print the findings: a table and the decision in words, or one JSON document."""
    if options.json:
        terminal.document(json.loads(found.profile.to_json()) | {"schema": SCHEMA})  # which stays in first place
        return
    console = terminal.rich(sys.stdout)
    console.print(table_of(found, assembly))
    kernels = assembly.decisions.backend
    console.print(f"backend {kernels.value}: {kernels.reason}", soft_wrap=True, markup=False)
    on = ", on chats" if assembly.plan.request.chat else ""
    console.print(f"{assembly.plan.source.name}{on}: {found.summary}", soft_wrap=True, markup=False)
    if assembly.plan.drafter is None and (others := named(drafters_for(assembly.plan.source))):
        console.print(f"on this disk, to be measured with --draft NAME,lookup: {others}", soft_wrap=True, markup=False)


def table_of(found: Findings, assembly: LoadedGenerator) -> Table:
    """Return a table of costs and acceptance by drafter, then the expected speed of each set of drafters."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "cost per draft token", "first accepted", "expected alone"):
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
    table.caption = f"percentages are of a forward pass; milliseconds of passes over n tokens: {passes}"
    table.caption_justify = "left"
    return table
