"""`dynx calibrate` for pipelines: reports what the data can certify before the run, and the findings after it."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.cli.calibrate.common import SCHEMA, refuse, store
from dynx.cli.calibration_data import read_prompts
from dynx.cli.draw.records import parse_size
from dynx.cli.forms import ONLY_CLASSIFIERS
from dynx.diffusion.prompts import own_prompts
from dynx.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from dynx.cli.console import Terminal
    from dynx.cli.options.calibrate import Options
    from dynx.diffusion.assembly import LoadedImageGenerator
    from dynx.diffusion.calibrate import Findings
    from dynx.diffusion.control import Control
    from dynx.diffusion.editing import Start
    from dynx.diffusion.plan import ImageGeneratorPlan

BUDGET_SECONDS = 600.0
"""Default budget in seconds."""


def calibrate(options: Options, terminal: Terminal) -> None:
    """Learn grids and numbers of steps, certify and store them, and report."""
    from dynx.bench import plot
    from dynx.cli.output_files import parse_plot
    from dynx.diffusion import assemble, make_plan
    from dynx.diffusion.plan import DEFAULT_QUALITY, ImageGeneratorRequest

    if options.draft != "auto":
        raise UsageError(f"--draft is for language models; {options.model} is a text-to-image pipeline")
    others = (
        *ONLY_CLASSIFIERS,
        "tsv",
        "column",
        "field",
        "adapters",
        "chat",
        "system",
        "learn_drafter",
        "within",
        "max_length",
        "quantize",
    )
    refuse(options, others, "is a text-to-image pipeline")
    size = parse_size(options.size)
    texts = read_prompts(options.data) if options.data else []
    pictures = _pictures(options.image, "--image") if options.image else []
    controls = _pictures(options.control_image, "--control-image") if options.control_image else []
    request = ImageGeneratorRequest(
        options.model,
        backend=str(options.backend or "auto"),
        quality=DEFAULT_QUALITY if options.quality is None else options.quality,
        guidance=options.guidance,
        negative=options.negative,
        size=size,
        lora=tuple(options.lora or ()),
        image=str(pictures[0]) if pictures else None,
        mask=options.mask,
        strength=options.strength,
        control_image=str(controls[0]) if controls else None,
        control_scale=options.control_scale,
        profile="none",  # what is stored must not colour what is measured
        **options.for_request(),
    )
    plan = make_plan(request, warn=terminal.warn)
    budget = BUDGET_SECONDS if options.budget is None else options.budget
    if options.dry_run:
        dry_run(plan, texts, budget, options, terminal)
        return
    plot_path = parse_plot(options.plot) if options.plot else None
    assembly = assemble(plan, stages=terminal.status, warn=terminal.warn, racing=True)
    terminal.clear_status()
    if len(pictures) > 1 and assembly.engine.start is not None:
        size = assembly.engine.start.image.size
        assembly.starts = tuple(_start(path, options, assembly.engine.start).fitted(size) for path in pictures)
    if len(controls) > 1 and assembly.engine.control is not None:
        size = assembly.engine.control.image.size
        assembly.controls = tuple(_control(path, options).fitted(size) for path in controls)
    from dynx.diffusion import calibrate as learning
    from dynx.diffusion.remeasure import Known, remeasure
    from dynx.diffusion.step_sweep import Partial
    from dynx.runtime.profile_store import cache_folder

    prompts = texts or own_prompts(assembly.engine)
    partial = Partial(cache_folder() / "partial" / f"{plan.key.id}.safetensors", learning.settings(assembly, prompts))
    known = None if options.anew else Known.of(assembly, prompts, terminal.warn)
    if known is not None:
        whose = known.profile.device.get("name", "another machine")
        terminal.notice(
            f"the evidence of {known.pictures} pictures is taken over from profile {known.profile.key.id} ({whose}); "
            "times are measured here (--anew draws all of it here)"
        )
    try:
        with terminal.progress(f"calibrating {plan.source.name}") as move:
            common: dict[str, Any] = {
                "budget": budget,
                "clock": time.perf_counter,
                "progress": lambda share, what: move(share, 1.0, what),
                "partial": partial,
                "say": terminal.notice,
            }
            if known is None:
                found = learning.calibrate(assembly, prompts, **common)
            else:
                found = remeasure(assembly, known, prompts, **common)
    except KeyboardInterrupt:
        if partial.load() is not None:
            terminal.notice("stopped; run the same command to continue from here")
        raise
    report(found, assembly, terminal, options)
    store(found.profile, terminal, found.arrays)
    partial.remove()
    if plot_path is not None:
        plot.curve(found, plot_path)


def _pictures(path: str, flag: str) -> list[Path]:
    """Return the pictures of a folder in order, or the file. Raises UsageError for an empty folder."""
    from PIL import Image

    place = Path(path).expanduser()
    if not place.is_dir():
        return [place]
    kinds = Image.registered_extensions()
    found = sorted(each for each in place.iterdir() if each.suffix.lower() in kinds and not each.name.startswith("."))
    if not found:
        raise UsageError(f"{flag}: {path} holds no pictures")
    return found


def _control(path: Path, options: Options) -> Control:
    """Read a further control picture."""
    from dynx.diffusion.control import read_control

    found = read_control(str(path), options.control_scale)
    if found is None:
        raise RuntimeError("a file gives a control picture")
    return found


def _start(path: Path, options: Options, first: Start) -> Start:
    """Read a further picture to start from, with the mask of the first."""
    from dynx.diffusion.editing import read_start

    found = read_start(str(path), None, options.strength)
    return replace(first, image=found.image, identity=found.identity) if found is not None else first


def dry_run(plan: ImageGeneratorPlan, texts: list[str], budget: float, options: Options, terminal: Terminal) -> None:
    """Print what would be learned, without loading a pipeline."""
    from dynx.diffusion.calibrate import power
    from dynx.diffusion.evidence import MIN_PICTURES

    said = power(MIN_PICTURES)
    if options.json:
        terminal.document(
            {
                "schema": SCHEMA,
                "model": plan.source.name,
                "profile": plan.key.id,
                "prompts": len(texts) or None,
                "budget_seconds": budget,
                "supports": said,
                "decisions": plan.decisions.to_json(),
            }
        )
        return
    lines = [f"{knob}: {d.value} ({d.reason})" for knob, d in plan.decisions.items() if knob != "profile"]
    lines += [
        f"prompts: {len(texts) if texts else 'made from the vocabulary'}",
        f"power: at the least {said}",
        f"would measure for about {budget:.0f} s and store profile {plan.key.id}",
    ]
    terminal.write("\n".join(lines) + "\n")


def report(found: Findings, assembly: LoadedImageGenerator, terminal: Terminal, options: Options) -> None:
    """Print the findings: quality against calls and the decision in words, or one JSON document."""
    if options.json:
        terminal.document(json.loads(found.profile.to_json()) | {"schema": SCHEMA})  # which stays in first place
        return
    console = terminal.rich(sys.stdout)
    console.print(table_of(found))
    console.print(found.power, soft_wrap=True, markup=False)
    console.print(f"{assembly.plan.source.name}: {found.summary}", soft_wrap=True, markup=False)
    if found.correlation is not None:
        console.print(f"steps used and steps needed: rank correlation {found.correlation:.2f}", markup=False)


def table_of(found: Findings) -> Table:
    """Return a table of SSIM to the plain run by number of steps, on the held-out pictures."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("steps", "SSIM, median", "p5", "worst", "s a picture"):
        table.add_column(heading, justify="right")
    for steps, tail in found.likeness.items():
        row = (f"{tail.median:.3f}", f"{tail.p5:.3f}", f"{tail.worst:.3f}", f"{found.seconds[steps]:.3f}")
        table.add_row(str(steps), *row)
    table.add_row(f"plain, {found.full_steps}", "1", "1", "1", f"{found.plain_seconds:.3f}")
    if found.reached is not None:
        table.add_section()
        tail = found.reached
        mean = found.certificate.cost
        table.add_row("chosen", f"{tail.median:.3f}", f"{tail.p5:.3f}", f"{tail.worst:.3f}", f"{mean:.3f}")
    return table
