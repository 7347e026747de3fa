"""The options of `dynx draw`, each declared once: name, type, default and help."""

from __future__ import annotations

from dataclasses import dataclass

from dynx.cli import options as o

HELP = """Draw pictures from prompts in as few diffusion steps as each needs, within a bound on the change.

\b
Examples:
  dynx draw "a red apple"
  dynx draw "a red apple" "a blue moon" -o pictures/
  dynx draw "cat and moon" --count 9 --draft -o drafts/
  dynx draw --finish drafts/3-cat-and-moon.png
  dynx draw -m ./my-pipeline "a lighthouse" --size 512x768 --seed 7 --stats
  dynx draw --lines --jsonl -o pictures/ < prompts.txt
  dynx draw "a blue apple" --image apple.png --strength 0.6
  dynx draw "a red apple" --lora tone.safetensors:0.8
  dynx draw --info a-red-apple.png
  dynx draw --input prompts.txt --output pictures/ --seed 1
"""


@dataclass(frozen=True, kw_only=True)
class Options(o.OutputOptions, o.DeviceOptions, o.JobOptions):
    """The command line of `dynx draw`, by parameter name."""

    prompt: list[str] | None = o.argument(
        metavar="PROMPT",
        help="What to draw, a picture for each PROMPT: quote one of several words. - reads it from stdin.",
    )
    model: str = o.MODEL("emoji")
    lora: list[str] | None = o.LORA(None)
    image: str | None = o.IMAGE(None)
    strength: float | None = o.STRENGTH(None)
    mask: str | None = o.MASK(None)
    control_image: str | None = o.CONTROL_IMAGE(None)
    control_scale: float | None = o.CONTROL_SCALE(None)
    output: str | None = o.option(
        None,
        "-o",
        "--output",
        metavar="PATH",
        help="A file, a folder, or a pattern with {n}, {slug} (the prompt) and {seed}; {slug}.png by default, "
        "{n}-{slug}.png for several pictures. - writes the PNG to stdout.",
    )
    count: int = o.option(1, "-c", "--count", metavar="N", min=1, help="Pictures per prompt, with consecutive seeds.")
    seed: int | None = o.option(None, "--seed", metavar="SEED", min=0, help="Random seed; chosen at random by default.")
    size: str | None = o.option(
        None, "--size", metavar="WxH", help="Width and height in pixels, or one number for both."
    )
    guidance: float | None = o.option(
        None, "--guidance", metavar="G", min=0.0, help="Guidance scale; the pipeline's own by default."
    )
    negative: str | None = o.option(None, "--negative", metavar="TEXT", help="Negative prompt.")
    quality: float = o.option(
        0.95, "--quality", metavar="SSIM", help="Target SSIM to the full run of the same seed, from 0 to 1."
    )
    steps: str = o.option(
        "auto", "--steps", metavar="N", help="Number of steps; auto predicts how many the picture needs."
    )
    draft: bool = o.option(False, "--draft", help="Draw a cheap preview in few steps.")
    finish: list[str] | None = o.option(
        None,
        "--finish",
        once=True,
        metavar="FILE",
        help="Draw a draft's PNG again in full quality; arguments are further files. Writes NAME-finished.png beside the draft "
        "unless --output is given.",
    )
    info: list[str] | None = o.option(
        None,
        "--info",
        once=True,
        metavar="FILE",
        help="Print how a PNG was drawn, and exit; arguments are further files.",
    )
    column: str | None = o.JOB_COLUMN(None)
    lines: bool = o.option(
        False,
        "--lines",
        help="One prompt per line of stdin, or a JSON object with prompt, and size and seed if they differ.",
    )
    no_stdin: bool = o.option(False, "--no-stdin", help="Never read stdin.")
    show: o.Show = o.SHOW(o.Show.auto)
    preview: bool = o.option(False, "--preview", help="Show intermediate images in the terminal.")
    jsonl: bool = o.option(False, "--jsonl", help="Print JSON lines: one per step and picture.")
    stats: bool = o.option(False, "--stats", help="Print the cost and the saving on stderr.")
    explain: bool = o.option(False, "--explain", help="Show run and skipped steps, and the reason for each setting.")
    plain: bool = o.option(False, "--plain", help="Run the unmodified pipeline.")
    force: bool = o.option(False, "--force", once=True, help="Overwrite existing files.")
    verify: bool = o.option(
        False,
        "--verify",
        help="Also draw each picture with the unmodified pipeline and print the SSIM; exit with 3 if one is below --quality.",
    )
    dry_run: bool = o.DRY_RUN(False)
    backend: o.Backend = o.BACKEND(o.Backend.auto)
    profile: str | None = o.PROFILE(None)
    require_profile: bool = o.option(False, "--require-profile", help="Exit with 4 unless a stored profile fits.")


COMMAND = o.Command(
    "draw",
    Options,
    HELP,
    short_help="Draw pictures from prompts.",
    epilog="Exit code 1 means that some pictures failed; the others are written. Manual: man dynx-draw",
)
