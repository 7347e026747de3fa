"""The options of `dynx draw`, each declared once: name, type, default and help."""

from __future__ import annotations

from dataclasses import dataclass

from dynx.cli import options as o

HELP = """Draw pictures from prompts, in as few steps as each picture needs, within a promise about how much that changes it.

\b
Examples:
  dynx draw "a red apple"
  dynx draw "a red apple" "a blue moon" -o pictures/
  dynx draw "cat and moon" --count 9 --draft -o drafts/
  dynx draw --finish drafts/3-cat-and-moon.png
  dynx draw -m ./my-pipeline "a lighthouse" --size 512x768 --seed 7 --stats
  dynx draw --lines --jsonl -o pictures/ < prompts.txt
  dynx draw --info a-red-apple.png
"""


@dataclass(frozen=True, kw_only=True)
class Options(o.OutputOptions, o.DeviceOptions):
    """The command line of `dynx draw`, by parameter name."""

    prompt: list[str] | None = o.argument(
        metavar="PROMPT",
        help="What to draw, a picture for each PROMPT: quote one of several words. - reads it from stdin.",
    )
    model: str = o.MODEL("emoji")
    output: str | None = o.option(
        None,
        "-o",
        "--output",
        metavar="PATH",
        help="A file, a folder, or a pattern of {n}, {slug} (the prompt) and {seed}; - writes the PNG to stdout. By "
        "default {slug}.png here, {n}-{slug}.png of several.",
    )
    count: int = o.option(
        1, "-c", "--count", metavar="N", min=1, help="Pictures of each prompt, with seeds that follow."
    )
    seed: int | None = o.option(
        None, "--seed", metavar="SEED", min=0, help="Makes the picture reproducible; by default drawn by lot."
    )
    size: str | None = o.option(
        None, "--size", metavar="WxH", help="Width and height in pixels, or one number for both."
    )
    guidance: float | None = o.option(
        None, "--guidance", metavar="G", min=0.0, help="How much the prompt is enforced; the pipeline's own by default."
    )
    negative: str | None = o.option(None, "--negative", metavar="TEXT", help="What the picture should not be like.")
    quality: float = o.option(
        0.95, "--quality", metavar="SSIM", help="Likeness to the full run of the same seed that is kept, from 0 to 1."
    )
    steps: str = o.option(
        "auto", "--steps", metavar="N", help="A fixed number of steps; auto takes as many as the picture needs."
    )
    draft: bool = o.option(False, "--draft", help="A cheap preview in few steps.")
    finish: list[str] | None = o.option(
        None,
        "--finish",
        once=True,
        metavar="FILE",
        help="Draw a draft's PNG again in full quality; arguments are further files. It goes beside the draft, as NAME-"
        "finished.png, unless --output says where.",
    )
    info: list[str] | None = o.option(
        None,
        "--info",
        once=True,
        metavar="FILE",
        help="Say how a PNG was drawn, and stop; arguments are further files.",
    )
    lines: bool = o.option(False, "--lines", help="One prompt per line of stdin.")
    no_stdin: bool = o.option(False, "--no-stdin", help="Never read stdin.")
    show: o.Show = o.SHOW(o.Show.auto)
    preview: bool = o.option(
        False, "--preview", help="Show on the terminal what the picture is becoming while it is drawn."
    )
    jsonl: bool = o.option(False, "--jsonl", help="Print JSON lines: one for each step and each picture.")
    stats: bool = o.option(False, "--stats", help="Say on stderr what each picture cost and what was saved.")
    explain: bool = o.option(
        False, "--explain", help="Show which steps ran and which were skipped, and why each setting has its value."
    )
    plain: bool = o.option(False, "--plain", help="The pipeline as its author made it: nothing dynamic.")
    force: bool = o.option(False, "--force", once=True, help="Overwrite files that exist.")
    verify: bool = o.option(
        False,
        "--verify",
        help="Draw each picture plainly too, and say how alike they are; exit 3 if one misses --quality.",
    )
    dry_run: bool = o.DRY_RUN(False)
    backend: o.Backend = o.BACKEND(o.Backend.auto)
    profile: str | None = o.PROFILE(None)
    require_profile: bool = o.option(False, "--require-profile", help="Fail (exit 4) unless a profile fits.")


COMMAND = o.Command(
    "draw",
    Options,
    HELP,
    short_help="Draw pictures from prompts.",
    epilog="Exit code 1 means that some picture failed; the others are drawn. Manual: man dynx-draw",
)
