"""The options of `dynx calibrate`, each declared once: name, type, default and help."""

from __future__ import annotations

from dataclasses import dataclass

from dynx.cli import options as o

HELP = """Measure this device and a model once, and store what was learned.

\b
Examples:
  dynx calibrate
  dynx calibrate -m ./my-model --draft ./my-drafter
  dynx calibrate -m ./my-classifier --data texts.txt --max-disagreement 0.01
  dynx calibrate -m ./my-classifier --data fresh.txt --check
  dynx calibrate --device-info
  dynx calibrate --list
"""


@dataclass(frozen=True, kw_only=True)
class Options(o.OutputOptions, o.DeviceOptions):
    """The command line of `dynx calibrate`, by parameter name."""

    model: str = o.MODEL("story")
    draft: str = o.DRAFT("auto")
    data: str | None = o.option(
        None,
        "--data",
        metavar="FILE",
        help="What to learn from: prompts, one per line (by default the model's own); for a classifier unlabelled "
        "inputs like those to come, or a folder of images.",
    )
    tsv: bool = o.TSV(False)
    column: str | None = o.COLUMN(None)
    field: str | None = o.FIELD(None)
    max_disagreement: float = o.MAX_DISAGREEMENT(0.02)
    confidence: float = o.CONFIDENCE(0.95)
    within: float | None = o.WITHIN(None)
    batch_size: int = o.BATCH_SIZE(32)
    max_length: int | None = o.MAX_LENGTH(None)
    quality: float | None = o.QUALITY(None)
    guidance: float | None = o.GUIDANCE(None)
    negative: str | None = o.option(
        None, "--negative", metavar="TEXT", help="For a pipeline that draws: the negative prompt it will be drawn with."
    )
    size: str | None = o.SIZE(None)
    plot: str | None = o.option(
        None,
        "--plot",
        metavar="PATH",
        help="For a pipeline that draws: quality against steps, SVG or PNG; needs dynx[plot].",
        hidden=True,
    )
    budget: float | None = o.option(
        None,
        "--budget",
        metavar="SECONDS",
        min=5.0,
        max=86400.0,
        help="Time to spend measuring: by default 60, and 600 for a pipeline that draws.",
    )
    dry_run: bool = o.option(False, "--dry-run", once=True, help="Say what would be measured, and stop.")
    check: bool = o.option(
        False,
        "--check",
        help="Test on fresh inputs what the stored profile promises: exit code 3 if that is broken, 4 if no profile "
        "fits this device.",
    )
    device_info: bool = o.option(
        False, "--device-info", once=True, help="Show what this machine has and what dynx picks from it."
    )
    list_: bool = o.option(False, "--list", once=True, help="List the stored profiles.")
    show: str | None = o.option(None, "--show", once=True, metavar="ID", help="Print a stored profile.")
    export: str | None = o.option(
        None, "--export", once=True, metavar="ID", help="Write a stored profile as one file (to --output, or stdout)."
    )
    output: str | None = o.option(None, "-o", "--output", once=True, metavar="FILE", help="Where --export writes.")
    import_: str | None = o.option(
        None, "--import", once=True, metavar="FILE", help="Store a profile that --export wrote."
    )
    remove: str | None = o.option(None, "--remove", once=True, metavar="ID", help="Delete a stored profile.")
    backend: o.Backend | None = o.BACKEND(None)
    quantize: o.Quantize | None = o.QUANTIZE(None)


COMMAND = o.Command(
    "calibrate", Options, HELP, short_help="Measure this device and a model once.", epilog="Manual: man dynx-calibrate"
)
