"""`dynx draw`: draws pictures from prompts, each to a file that records how it was made."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from dynx.cli.console import Terminal
from dynx.cli.draw import output as report
from dynx.cli.draw.drafts import print_facts
from dynx.cli.draw.records import SEED_LIMIT, parse_size
from dynx.cli.draw.requests import anything, finishing, ordered, parse_steps, takes_prompt
from dynx.cli.draw.studio import Studio
from dynx.cli.flags import in_flags
from dynx.cli.inputs import typed
from dynx.cli.jobs import is_job, run_job
from dynx.cli.remedy import calibrate_command, telling_the_remedy
from dynx.errors import DynxError, GateFailed, UsageError

if TYPE_CHECKING:
    from dynx.cli.draw.drafts import Asked
    from dynx.cli.draw.requests import Batch
    from dynx.cli.options.draw import Options
    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.plan import ImageGeneratorPlan, ImageGeneratorRequest
    from dynx.runtime.decision import Decision

NOT_IN_JOBS = (
    "prompt",
    "count",
    "finish",
    "info",
    "lines",
    "preview",
    "json",
    "stats",
    "explain",
    "force",
    "verify",
)
"""Options that don't go with --input."""


def run(options: Options) -> None:
    """Draw all pictures. Raises DynxError at the end where some failed."""
    check(options)
    if is_job(options, only=("column",), never=NOT_IN_JOBS) and not options.dry_run:
        work_off(options)
        return
    if options.info:
        paths = [typed(p, "FILE") for p in [*options.info, *(options.prompt or [])]]
        print_facts(paths, json=options.json, jsonl=options.jsonl, schema=report.SCHEMA)
        return
    terminal = Terminal(
        quiet=options.quiet, verbose=options.verbose, color=options.color, json=options.json or options.jsonl
    )
    batches = (
        finishing(options) if options.finish else [anything(options) if options.dry_run else ordered(options, terminal)]
    )
    plans = [open_plan(options, batch, terminal) for batch in batches]
    if options.dry_run:
        from dynx.cli.dry_run import print_plan

        for plan in plans:
            print_plan("draw", plan, options, terminal, _on_loading(plan, options))
        return
    studio = Studio(options, terminal)
    try:  # Ctrl-C and errors too report what was drawn before them
        for batch, plan in zip(batches, plans, strict=True):
            together = not options.preview
            assembly = open_assembly(plan, terminal, draft=options.draft, pictures=batch.pictures, together=together)
            studio.work(batch, assembly)
    finally:
        studio.printer.close()
    if studio.unlike:
        raise GateFailed(
            f"--verify: {studio.unlike} of {studio.seen} pictures have an SSIM below {options.quality:g} to the full run"
        )
    if studio.failed:
        raise DynxError(f"{studio.failed} of {studio.seen} pictures failed; the reasons are above")


def work_off(options: Options) -> None:
    """Draw a picture for each row of files as a job. Raises DynxError."""
    from dynx.jobs.functions import Draw

    request = request_of(options, anything(options).asked)
    seed = options.seed or 0
    function = Draw(**vars(request), seed=seed, draft=options.draft)
    run_job(options, function, request, {"seed": seed, "draft": options.draft})


def check(options: Options) -> None:
    """Check options that exclude each other, and ranges of values. Raises UsageError."""
    if options.json and options.jsonl:
        raise UsageError("--json and --jsonl exclude each other")
    if options.info and options.finish:
        raise UsageError("--info and --finish exclude each other")
    if options.draft and (options.plain or options.finish or options.steps != "auto"):
        other = "--plain" if options.plain else "--finish" if options.finish else "--steps"
        raise UsageError(f"--draft and {other} exclude each other")
    if options.draft and options.verify:
        raise UsageError("--verify and --draft exclude each other: a draft has no promise to verify")
    if options.output == "-" and (options.json or options.jsonl):
        raise UsageError("stdout can't take both the PNG and the JSON", hint="-o FILE")
    if options.output == "-" and sys.stdout.isatty() and not options.info:
        raise UsageError("a PNG can't be written to a terminal", hint="-o FILE, or a pipe: -o - | COMMAND")
    if options.finish:
        for name in ("seed", "size", "guidance", "negative", "image", "mask", "strength", "control_image"):
            if getattr(options, name) is not None:
                flag = in_flags(f"`{name}`")
                raise UsageError(f"--finish takes prompt, seed and settings from the draft; leave out {flag}")
        if options.lines or options.count > 1:
            raise UsageError(f"--finish draws each draft once; leave out {'--lines' if options.lines else '--count'}")
    if options.guidance is not None and not math.isfinite(options.guidance):
        raise UsageError(f"--guidance must be a finite number, not {options.guidance}")
    if options.seed is not None and options.seed + options.count > SEED_LIMIT:
        raise UsageError(f"--seed must be at most {SEED_LIMIT - 1}")
    parse_steps(options.steps)
    parse_size(options.size)


def request_of(options: Options, asked: Asked) -> ImageGeneratorRequest:
    """Return the request for the pipeline."""
    from dynx.diffusion.plan import ImageGeneratorRequest

    return ImageGeneratorRequest(
        options.model,
        backend=str(options.backend),
        quality=options.quality,
        steps=parse_steps(options.steps),
        guidance=asked.guidance,
        negative=asked.negative,
        size=asked.size,
        lora=tuple(options.lora or ()),
        image=options.image,
        mask=options.mask,
        strength=options.strength,
        control_image=options.control_image,
        control_scale=options.control_scale,
        profile=options.profile,
        require_profile=options.require_profile,
        plain=options.plain,
        **options.for_request(),
    )


def open_plan(options: Options, batch: Batch, terminal: Terminal) -> ImageGeneratorPlan:
    """Resolve the plan. Raises UsageError for drafts that another model drew."""
    from dynx.diffusion import make_plan

    request = request_of(options, batch.asked)
    with telling_the_remedy(request):
        plan = make_plan(request, warn=terminal.warn)
    for draft in batch.drafts:
        draft.check(plan.source.name, plan.weights)
    prompted = options.lines or bool(options.prompt)
    if prompted and not options.finish and not takes_prompt(plan.source):
        raise UsageError(f"{plan.source.name} takes no prompt", hint="leave it out")
    return plan


def open_assembly(
    plan: ImageGeneratorPlan,
    terminal: Terminal,
    *,
    draft: bool,
    pictures: int | None = None,
    together: bool = False,
) -> LoadedImageGenerator:
    """Load the pipeline; print its decisions with -v, and on a terminal why every step runs, unless that is chosen.

    `pictures` and `together` as in `assemble`.
    """
    from dynx.diffusion import assemble
    from dynx.runtime.decision import Decision

    with telling_the_remedy(plan.request):
        assembly = assemble(plan, stages=terminal.status, warn=terminal.warn, pictures=pictures, together=together)
    terminal.startup.mark("drawing")
    terminal.clear_status()
    adaptive = assembly.engine.adapter.adaptive.value
    if draft and adaptive:
        plan.decisions.steps = Decision("few", "--draft is given")
    for knob, decision in assembly.decisions.items():
        terminal.detail(f"{knob}: {decision.value} ({decision.reason})")
    wanted = (
        plan.request.plain or plan.request.profile == "none" or plan.request.steps is not None or (draft and adaptive)
    )
    if assembly.step_profile is None and not wanted and terminal.interactive:
        remedy = f"; {calibrate_command(plan.request)}" if plan.profile is None else ""
        terminal.notice(f"every step runs: {assembly.why_plain}{remedy}")
    return assembly


def _on_loading(plan: ImageGeneratorPlan, options: Options) -> dict[str, Decision[Any]]:
    """Say what is known beforehand of the steps, which loading settles."""
    from dynx.cli.dry_run import chosen_from_profile
    from dynx.runtime.decision import Decision

    if plan.decisions.steps is not None:
        return {}
    if options.steps != "auto" and not options.plain:
        return {"steps": Decision(options.steps, "asked for")}
    return {"steps": chosen_from_profile("plain", options, plan.profile)}
