"""`dynx calibrate` for classifiers: reports what the data can certify before the run, and the findings after it."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import TYPE_CHECKING

from dynx.cli.calibrate.common import BUDGET_SECONDS, SCHEMA, refuse, store
from dynx.cli.calibration_data import read_inputs
from dynx.cli.forms import form_fields
from dynx.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from dynx.cli.console import Terminal
    from dynx.cli.options.calibrate import Options
    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.calibrate import Findings
    from dynx.early_exit.features import Inputs
    from dynx.early_exit.plan import ClassifierPlan

MAX_REPORTED_CLASSES = 3
"""Largest number of classes in the report of the most changed ones."""


def calibrate(options: Options, terminal: Terminal) -> None:
    """Learn exits, certify and store them, and report."""
    from dynx.early_exit import assemble, make_plan
    from dynx.early_exit.plan import ClassifierRequest

    if options.draft != "auto":
        raise UsageError(f"--draft is for language models; {options.model} is a classifier")
    refuse(
        options,
        (
            "adapters",
            "lora",
            "image",
            "strength",
            "control_image",
            "control_scale",
            "mask",
            "chat",
            "system",
            "quality",
            "guidance",
            "negative",
            "size",
            "plot",
            "anew",
            "learn_drafter",
        ),
        "is a classifier",
    )
    budget = BUDGET_SECONDS if options.budget is None else options.budget
    request = ClassifierRequest(
        options.model,
        backend=str(options.backend or "auto"),
        quantize=str(options.quantize or "none"),
        batch_size=options.batch_size,
        max_length=options.max_length,
        max_disagreement=options.max_disagreement,
        confidence=options.confidence,
        within=options.within,
        **form_fields(options),
        profile="none",  # what is stored must not colour what is measured
        **options.for_request(),
    )
    plan = make_plan(request, warn=terminal.warn)
    if options.data is None:
        what = "a folder of images" if plan.kind == "image" else "a file of texts, one per line"
        raise UsageError("classifiers need --data: unlabelled inputs like those to come", hint=f"--data {what}")
    inputs = read_inputs(
        options.data,
        plan.kind,
        tsv=options.tsv,
        column=options.column,
        field=options.field,
        forms=options,
        warn=terminal.warn,
    )
    if options.dry_run:
        dry_run(plan, inputs, budget, options, terminal)
        return
    from dynx.early_exit import calibrate as learning
    from dynx.early_exit import group_calibrate
    from dynx.early_exit.items import GROUPED
    from dynx.runtime.certify import deduplicate

    terminal.notice(learning.power(len(deduplicate(inputs.names)), options.max_disagreement, plan.request.delta))
    assembly = assemble(plan, stages=terminal.status, warn=terminal.warn, calibrating=True)
    terminal.clear_status()
    with terminal.progress(f"calibrating {plan.source.name}") as move:
        learn = group_calibrate.calibrate if plan.request.form in GROUPED else learning.calibrate
        found = learn(
            assembly,
            inputs,
            budget=budget,
            clock=time.perf_counter,
            progress=lambda share, what: move(share, 1.0, what),
        )
    if found.unreadable:
        terminal.warn(f"{found.unreadable:,} inputs can't be read and were skipped")
    report(found, assembly, terminal, options)
    store(found.profile, terminal, found.arrays or None)


def dry_run(plan: ClassifierPlan, inputs: Inputs, budget: float, options: Options, terminal: Terminal) -> None:
    """Print what would be learned and what the data can certify, without loading a model."""
    from dynx.runtime.binomial import most_failures, supports
    from dynx.runtime.certify import deduplicate, split

    count = len(deduplicate(inputs.names))
    certify = len(split(count, 0)[2])
    said = supports(certify, options.max_disagreement, plan.request.delta)
    if options.json:
        terminal.document(
            {
                "schema": SCHEMA,
                "model": plan.source.name,
                "profile": plan.key.id,
                "inputs": len(inputs.items),
                "distinct": count,
                "certify": certify,
                "may_differ": most_failures(certify, options.max_disagreement, plan.request.delta),
                "supports": said,
                "budget_seconds": budget,
                "decisions": plan.decisions.to_json(),
            }
        )
        return
    lines = [f"{knob}: {d.value} ({d.reason})" for knob, d in plan.decisions.items() if knob != "profile"]
    lines += [
        f"inputs: {len(inputs.items):,}, {count:,} different",
        f"power: {certify:,} of them certify: {said}",
        f"would time exits for about {budget:.0f} s and store profile {plan.key.id}",
    ]
    terminal.write("\n".join(lines) + "\n")


def report(found: Findings, assembly: LoadedClassifier, terminal: Terminal, options: Options) -> None:
    """Print the findings: a table and the decision in words, or one JSON document."""
    if options.json:
        terminal.document(json.loads(found.profile.to_json()) | {"schema": SCHEMA})  # which stays in first place
        return
    console = terminal.rich(sys.stdout)
    if found.fitted is not None:
        console.print(table_of(found, assembly))
        console.print(f"costs per input at batches of {assembly.batch}; {found.power}", soft_wrap=True, markup=False)
    console.print(f"{assembly.plan.source.name}: {found.summary}", soft_wrap=True, markup=False)
    if worst := worst_classes(found, assembly):
        console.print(worst, soft_wrap=True, markup=False)


def table_of(found: Findings, assembly: LoadedClassifier) -> Table:
    """Return a table of the exits tried: agreement, cost, and share of inputs that exit there."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("exit after", "agrees", "cost to reach", "of looking", "leave there"):
        table.add_column(heading, justify="left" if heading == "exit after" else "right")
    fitted, certificate = found.fitted, found.certificate
    if fitted is None or certificate is None:
        return table
    costs = fitted.costs_at(assembly.batch)
    for depth, share in found.agreement.items():
        reach = look = left = "–"
        if depth in fitted.depths:
            k = fitted.depths.index(depth)
            reach, look = f"{costs.reach[k] / costs.full:.0%}", f"{costs.check[k] / costs.full:.1%}"
            if certificate.thresholds[k] != math.inf:
                left = f"{certificate.exits[k] / sum(certificate.exits):.0%}"
        table.add_row(f"layer {depth}", f"{share:.1%}", reach, look, left)
    table.add_row(
        "all layers", "", f"{costs.full * 1e3:.2f} ms", "", f"{certificate.exits[-1] / sum(certificate.exits):.0%}"
    )
    return table


def worst_classes(found: Findings, assembly: LoadedClassifier) -> str:
    """Return the classes whose labels exits change most, if they change any."""
    if found.certificate is None or not found.certificate.active:
        return ""
    pairs = [
        (bad / rows, bad, rows, name)
        for name, (rows, bad) in zip(assembly.labels.names, found.certificate.by_class, strict=False)
        if bad
    ]
    named = [
        f"{name} {bad} of {rows} ({share:.1%})"
        for share, bad, rows, name in sorted(pairs, reverse=True)[:MAX_REPORTED_CLASSES]
    ]
    return f"answers that differ, by the full model's label: {', '.join(named)}" if named else ""
