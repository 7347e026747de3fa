"""The command tree: names, options and help.

Everything else happens in the module of the command's name, imported when it runs.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dynx.cli import options as o
from dynx.cli.configuration import Configured

app = typer.Typer(
    name="dynx",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Local AI inference that spends less on easy inputs, and says what it saved.",
    epilog="Try: dynx generate 'Once upon a time'. Each command's --help starts with examples.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from dynx import __version__

        typer.echo(f"dynx {__version__}")
        raise typer.Exit


def _cold(temperature: float | None) -> float | None:
    """A temperature that float32 can't divide by means what 0 means: the likeliest token."""
    return 0.0 if temperature is not None and temperature < 1e-6 else temperature


@app.callback()
def dynx(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Local AI inference that spends less on easy inputs, and says what it saved."""


@app.command(
    cls=Configured,
    short_help="Continue a text with a language model.",
    epilog="Text that is piped in comes before PROMPT. Manual: man dynx-generate",
)
def generate(
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from stdin.")
    ] = None,
    model: o.Model = "story",
    draft: o.Draft = "auto",
    lookup: o.Lookup = None,
    max_new_tokens: Annotated[
        int, typer.Option("-n", "--max-new-tokens", metavar="N", min=0, help="Stop after this many tokens.")
    ] = 256,
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature",
            metavar="T",
            min=0.0,
            max=100.0,
            callback=_cold,
            help="0 takes the likeliest token; more is bolder.",
        ),
    ] = 0.0,
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="K", min=0, help="Sample among the K likeliest tokens; 0 means all.")
    ] = 0,
    top_p: Annotated[
        float,
        typer.Option(
            "--top-p",
            metavar="P",
            min=0.0,
            max=1.0,
            help="Sample among the likeliest tokens that make up this probability.",
        ),
    ] = 1.0,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            "--repetition-penalty",
            metavar="R",
            min=0.01,
            max=100.0,
            help="Above 1 makes repeating less likely; the model's own setting by default.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="SEED", min=0, help="Makes sampling reproducible, whatever is drafted."),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="STRING", help="End the answer before this text. Repeatable.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="System message for the chat template; implies --chat."),
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="One prompt per line of stdin, one answer per line of stdout.")
    ] = False,
    batch: Annotated[
        str,
        typer.Option(
            "--batch",
            metavar="N",
            help="With --lines, answer up to so many prompts at once; auto takes what is measured to be fastest.",
        ),
    ] = "auto",
    no_stdin: Annotated[bool, typer.Option("--no-stdin", help="Never read stdin.")] = False,
    json: o.Json = False,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print JSON lines: one for each token and each result.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Say on stderr what the answer cost and what was saved.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Shade each token by who guessed it, and say why each setting has its value."),
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Plain decoding: nothing dynamic.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Score the answer again on the plain model; exit 3 unless that would have written the same.",
        ),
    ] = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="The text of --plain --exact to the token, also where bfloat16 or int8 could round a tie."
        ),
    ] = False,
    dry_run: o.DryRun = False,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    threads: o.Threads = None,
    backend: o.BackendOption = o.Backend.auto,
    quantize: o.QuantizeOption = o.Quantize.none,
    profile: o.ProfileOption = None,
    require_profile: Annotated[
        bool, typer.Option("--require-profile", help="Fail (exit 4) unless a profile fits.")
    ] = False,
    allow_pickle: o.AllowPickle = False,
    offline: o.Offline = False,
    quiet: o.Quiet = 0,
    verbose: o.Verbose = 0,
    color: o.ColorOption = o.Color.auto,
) -> None:
    """Continue a text with a language model, faster than plain decoding and equal to it.

    \b
    Examples:
      dynx generate "Once upon a time"
      cat letter.txt | dynx generate "A short summary:" -m ./my-model
      dynx generate "The fox" --temperature 0.8 --seed 7 --stats
      dynx generate --lines --jsonl < prompts.txt
    """
    from dynx.cli.generate import command as command

    command.run(command.Options(**locals_without("command", locals())))


@app.command(
    cls=Configured,
    short_help="Label texts or images.",
    epilog="Exit code 1 means that some input has no label. Manual: man dynx-classify",
)
def classify(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT", help="A text, or an image's path; - stands for stdin, one input per line."),
    ] = None,
    model: o.Model = "mood",
    nul: Annotated[
        bool, typer.Option("-0", "--null", help="Inputs on stdin end with NUL, not with a line end.")
    ] = False,
    tsv: o.Tsv = False,
    column: o.Column = None,
    field: o.Field = None,
    skip_empty: Annotated[bool, typer.Option("--skip-empty", help="Leave out empty texts.")] = False,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", help="Never read stdin.")] = False,
    max_disagreement: o.MaxDisagreement = 0.02,
    confidence: o.Confidence = 0.95,
    within: o.Within = None,
    certify: Annotated[
        bool,
        typer.Option("--certify", help="Let a random sample of this very input decide how early the rest may leave."),
    ] = False,
    audit: Annotated[
        float,
        typer.Option(
            "--audit",
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="Check this share of the answers with the full model, and end the exits if the promise is broken.",
        ),
    ] = 0.0,
    batch_size: o.BatchSize = 32,
    max_length: o.MaxLength = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="K", min=1, help="Show the K best labels of each input.")
    ] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Show all labels of each input.")] = False,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="GOLD",
            help="A file with the true label of each input, alone or as last column: accuracy and macro-F1 on stderr; with "
            "--audit also agreement with the full model.",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="OUT", help="Write to this file, and go on where it ends."),
    ] = None,
    json: o.Json = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print a JSON line for each input.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Say on stderr what the answers cost and what was saved.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Show where inputs left, which went deep, and why each setting has its value."),
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="The full model for every input: nothing dynamic.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Run the full model on every input too; exit 3 if more labels differ than was promised."
        ),
    ] = False,
    dry_run: o.DryRun = False,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    threads: o.Threads = None,
    backend: o.BackendOption = o.Backend.auto,
    quantize: o.QuantizeOption = o.Quantize.none,
    profile: o.ProfileOption = None,
    require_profile: Annotated[
        bool, typer.Option("--require-profile", help="Fail (exit 4) unless a profile fits.")
    ] = False,
    allow_pickle: o.AllowPickle = False,
    offline: o.Offline = False,
    quiet: o.Quiet = 0,
    verbose: o.Verbose = 0,
    color: o.ColorOption = o.Color.auto,
) -> None:
    """Label texts or images, stopping early where the answer is clear, within a promise about how often that differs.

    \b
    Examples:
      dynx classify "What a fine day"
      dynx classify < lines.txt > labels.tsv
      dynx classify -m ./my-model --field body --jsonl < posts.jsonl
      dynx classify -m ./my-vit photos/*.png
    """
    from dynx.cli.classify import command as command

    command.run(command.Options(**locals_without("command", locals())))


@app.command(
    cls=Configured,
    short_help="Draw pictures from prompts.",
    epilog="Exit code 1 means that some picture failed. Manual: man dynx-draw",
)
def draw(
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw; - reads it from stdin.")
    ] = None,
    model: o.Model = "emoji",
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="A file, a folder, or a pattern of {n}, {slug} (the prompt) and {seed}; - writes the PNG to stdout. By "
            "default {slug}.png here.",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("-c", "--count", metavar="N", min=1, help="Pictures of each prompt, with seeds that follow.")
    ] = 1,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="SEED", min=0, help="Makes the picture reproducible; by default drawn by lot."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="WxH", help="Width and height in pixels, or one number for both."),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance", metavar="G", min=0.0, help="How much the prompt is enforced; the pipeline's own by default."
        ),
    ] = None,
    negative: Annotated[
        str | None, typer.Option("--negative", metavar="TEXT", help="What the picture should not be like.")
    ] = None,
    quality: Annotated[
        float,
        typer.Option(
            "--quality", metavar="SSIM", help="Likeness to the full run of the same seed that is kept, from 0 to 1."
        ),
    ] = 0.95,
    steps: Annotated[
        str,
        typer.Option("--steps", metavar="N", help="A fixed number of steps; auto takes as many as the picture needs."),
    ] = "auto",
    draft: Annotated[bool, typer.Option("--draft", help="A cheap preview in few steps.")] = False,
    finish: Annotated[
        list[str] | None,
        typer.Option(
            "--finish",
            metavar="FILE",
            help="Draw a draft's PNG again in full quality; arguments are further files. It goes beside the draft, as "
            "NAME-finished.png, unless --output says where.",
        ),
    ] = None,
    info: Annotated[
        list[str] | None,
        typer.Option("--info", metavar="FILE", help="Say how a PNG was drawn, and stop; arguments are further files."),
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="One prompt per line of stdin.")] = False,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", help="Never read stdin.")] = False,
    show: o.ShowOption = o.Show.auto,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show on the terminal what the picture is becoming while it is drawn.")
    ] = False,
    json: o.Json = False,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print JSON lines: one for each step and each picture.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Say on stderr what each picture cost and what was saved.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Show which steps ran and which were skipped, and why each setting has its value."
        ),
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="The pipeline as its author made it: nothing dynamic.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Draw each picture plainly too, and say how alike they are; exit 3 if one misses --quality.",
        ),
    ] = False,
    dry_run: o.DryRun = False,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    backend: o.BackendOption = o.Backend.auto,
    threads: o.Threads = None,
    profile: o.ProfileOption = None,
    require_profile: Annotated[
        bool, typer.Option("--require-profile", help="Fail (exit 4) unless a profile fits.")
    ] = False,
    allow_pickle: o.AllowPickle = False,
    offline: o.Offline = False,
    quiet: o.Quiet = 0,
    verbose: o.Verbose = 0,
    color: o.ColorOption = o.Color.auto,
) -> None:
    """Draw pictures from prompts, in as few steps as each picture needs, within a promise about how much that changes it.

    \b
    Examples:
      dynx draw "a red apple"
      dynx draw "cat and moon" --count 9 --draft -o drafts/
      dynx draw --finish drafts/3-cat-and-moon.png
      dynx draw -m ./my-pipeline "a lighthouse" --size 512x768 --seed 7 --stats
      dynx draw --lines --jsonl -o pictures/ < prompts.txt
      dynx draw --info a-red-apple.png
    """
    from dynx.cli.draw import command as command

    command.run(command.Options(**locals_without("command", locals())))


@app.command(
    cls=Configured,
    short_help="Measure this device and a model once.",
    epilog="Manual: man dynx-calibrate",
)
def calibrate(
    model: o.Model = "story",
    draft: o.Draft = "auto",
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="What to learn from: prompts, one per line (by default the model's own); for a classifier unlabelled inputs "
            "like those to come, or a folder of images.",
        ),
    ] = None,
    tsv: o.Tsv = False,
    column: o.Column = None,
    field: o.Field = None,
    max_disagreement: o.MaxDisagreement = 0.02,
    confidence: o.Confidence = 0.95,
    within: o.Within = None,
    batch_size: o.BatchSize = 32,
    max_length: o.MaxLength = None,
    quality: o.Quality = None,
    guidance: o.Guidance = None,
    negative: Annotated[
        str | None,
        typer.Option(
            "--negative", metavar="TEXT", help="For a pipeline that draws: the negative prompt it will be drawn with."
        ),
    ] = None,
    size: o.Size = None,
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot", metavar="PATH", help="For a pipeline that draws: quality against steps as an SVG or PNG file."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            metavar="SECONDS",
            min=5.0,
            max=86400.0,
            help="Time to spend measuring: by default 60, and 600 for a pipeline that draws.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be measured, and stop.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Test on fresh inputs what the stored profile promises: exit code 3 if that is broken, 4 if no profile fits "
            "this device.",
        ),
    ] = False,
    device_info: Annotated[
        bool, typer.Option("--device-info", help="Show what this machine has and what dynx picks from it.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the stored profiles.")] = False,
    show: Annotated[str | None, typer.Option("--show", metavar="ID", help="Print a stored profile.")] = None,
    export: Annotated[
        str | None,
        typer.Option("--export", metavar="ID", help="Write a stored profile as one file (to --output, or stdout)."),
    ] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="Where --export writes.")] = None,
    import_: Annotated[
        str | None, typer.Option("--import", metavar="FILE", help="Store a profile that --export wrote.")
    ] = None,
    remove: Annotated[str | None, typer.Option("--remove", metavar="ID", help="Delete a stored profile.")] = None,
    json: o.Json = False,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    threads: o.Threads = None,
    backend: o.BackendWish = None,
    quantize: o.QuantizeWish = None,
    allow_pickle: o.AllowPickle = False,
    offline: o.Offline = False,
    quiet: o.Quiet = 0,
    verbose: o.Verbose = 0,
    color: o.ColorOption = o.Color.auto,
) -> None:
    """Measure this device and a model once, and store what was learned.

    \b
    Examples:
      dynx calibrate
      dynx calibrate -m ./my-model --draft ./my-drafter
      dynx calibrate -m ./my-classifier --data texts.txt --max-disagreement 0.01
      dynx calibrate -m ./my-classifier --data fresh.txt --check
      dynx calibrate --device-info
      dynx calibrate --list
    """
    from dynx.cli.calibrate import command as command

    command.run(command.Options(**locals_without("command", locals())))


@app.command(
    cls=Configured,
    short_help="Measure plain, static and dynamic side by side.",
    epilog="Exit code 3 means that a gate failed. Manual: man dynx-bench",
)
def bench(
    task: Annotated[
        str | None,
        typer.Argument(metavar="TASK", help="generate, classify, draw or all: the shipped models of this task."),
    ] = None,
    models: o.Models = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="What to measure on: prompts, one per line (a pipeline that draws makes its own); for a classifier texts, "
            "one per line, or a folder of images.",
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            "--runs",
            metavar="N",
            min=1,
            max=1000,
            help="Rounds; each runs every arm on every input. 5 by default, 2 of a pipeline that draws; with a gate on speed as "
            "many as it takes.",
        ),
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(
            "--prompts",
            "--inputs",
            metavar="N",
            min=1,
            help="At most this many inputs: the first 4 prompts by default; of a classifier's, 1024 drawn at random; for a "
            "pipeline that draws 16 pictures, each of another seed.",
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option("--draft", metavar="DRAFT", help="Who guesses ahead, as in dynx generate: auto, a model, …"),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("-n", "--max-new-tokens", metavar="N", min=2, help="Tokens per answer; 64 by default."),
    ] = None,
    static: Annotated[
        str | None,
        typer.Option(
            "--static",
            metavar="LENGTHS",
            help="Static draft lengths to measure, e.g. 2,4; 1-10 by default, none for no such arm. Of a pipeline that draws "
            "the numbers of steps; 6,8,10,15,20,25 by default.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            metavar="T",
            min=0.0,
            max=100.0,
            callback=_cold,
            help="0, the default, is greedy; with more, the seed is fixed.",
        ),
    ] = None,
    tsv: o.Tsv = False,
    column: o.Column = None,
    field: o.Field = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="GOLD",
            help="A file with the true label of each of a classifier's inputs, alone or as last column: accuracy.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", metavar="N", min=1, max=4096, help="A classifier's inputs computed together; 32 by default."
        ),
    ] = None,
    max_length: o.MaxLength = None,
    confidence: Annotated[
        float | None,
        typer.Option("--confidence", metavar="P", help="How sure a classifier's promise is; 0.95 by default."),
    ] = None,
    within: o.Within = None,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            metavar="NAME=OPTIONS",
            help="Also measure this with other options (-m, --dtype, --profile, --static K, …), the peer transformers, or a "
            "program: NAME=!COMMAND, the input on its stdin or in place of {input}. Repeatable.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=0.1,
            help="An arm of which one run takes longer has failed; 600 for programs by default.",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run every round in a process of its own.")] = False,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="PEER", help="Also measure a peer on the same inputs: transformers."),
    ] = None,
    min_speedup: Annotated[
        float | None,
        typer.Option(
            "--min-speedup",
            metavar="X",
            min=0.0,
            help="Gate: dynamic must be at least X times plain, which for a pipeline that draws is its author's run; of a "
            "classifier, X times the faster of plain and length-bucketed batches.",
        ),
    ] = None,
    require_identical: Annotated[
        bool,
        typer.Option(
            "--require-identical",
            help="Gate: dynamic must write what plain writes, token for token, give the same labels, or draw the same pixels.",
        ),
    ] = False,
    max_disagreement: Annotated[
        float | None,
        typer.Option(
            "--max-disagreement",
            metavar="SHARE",
            help="A classifier's promise (0.02 by default) and, where given, a gate: at most this share of answers may "
            "differ from the full model's.",
        ),
    ] = None,
    quality: o.Quality = None,
    guidance: o.Guidance = None,
    size: o.Size = None,
    min_quality: Annotated[
        float | None,
        typer.Option(
            "--min-quality",
            metavar="SSIM",
            help="Gate for a pipeline that draws: at least 95 % of dynamic's pictures must be so like plain's.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="FILE",
            help="Gate: dynamic must be as many times plain as in this JSON result of before. Where device, versions, model "
            "or inputs differ, it only advises.",
        ),
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(
            "--tolerance",
            metavar="PERCENT",
            help="How much slower still passes: 5% for --baseline by default, 0% for --min-speedup.",
        ),
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Exit with 125 where nothing can be judged: for git bisect run.")
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            metavar="SECONDS",
            min=1.0,
            help="Stop after a whole round when time runs out; where a gate waits, also within one, with what was measured. "
            "A gate on speed is measured until it is decided, by default for 120 seconds at most; with --runs, and any other "
            "gate, for 300. Loading has time of its own: 120 seconds, or the budget where that is more.",
        ),
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(
            "--export",
            metavar="FORMAT:PATH",
            help="Also write the result as json, md, csv, junit, github-action-benchmark, benchstat, html or svg. Repeatable.",
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option("--plot", metavar="PATH", help="Draw speed, and speed against quality, to an SVG or PNG file."),
    ] = None,
    record: Annotated[
        str | None,
        typer.Option(
            "--record",
            metavar="FILE",
            help="Measure nothing: write what every drafter, exit or number of steps would have said, for --replay.",
        ),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(
            "--replay",
            metavar="FILE",
            help="Score policies on such a recording, and how far each is from the best possible.",
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="POLICY",
            help="For --replay: plain, dynamic, cold (dynamic without a profile), DRAFTER=K, at=LAYER or at=STEPS, threshold=T, "
            "or FILE.py:NAME of your own. Repeatable.",
        ),
    ] = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test", help="Check that this installation keeps what it says about streams and exit codes."
        ),
    ] = False,
    workflow: Annotated[
        bool, typer.Option("--workflow", help="Print a GitHub Actions workflow that gates a repository.")
    ] = False,
    json: o.Json = False,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    threads: o.Threads = None,
    backend: o.BackendWish = None,
    quantize: o.QuantizeWish = None,
    profile: o.ProfileOption = None,
    allow_pickle: o.AllowPickle = False,
    offline: o.Offline = False,
    quiet: o.Quiet = 0,
    verbose: o.Verbose = 0,
    color: o.ColorOption = o.Color.auto,
) -> None:
    """Measure plain against static against dynamic, interleaved, and gate on the result.

    \b
    Examples:
      dynx bench
      dynx bench generate --baseline main.json --tolerance 5%
      dynx bench -m ./my-model --arm 'bf16=--dtype bfloat16' --arm 'other=!my-program {input}'
      dynx bench -m ./my-model --draft ./my-drafter --min-speedup 1.2
      dynx bench -m ./my-classifier --data texts.txt --max-disagreement 0.02
      dynx bench -m ./my-pipeline --data prompts.txt --inputs 60 --min-quality 0.95
      dynx bench --require-identical --export json:bench.json --export md:bench.md
    """
    from dynx.cli.bench import command as command

    command.run(command.Options(**locals_without("command", locals())))


def locals_without(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """A command's parameters by name, as its `Options` takes them."""
    return {k: v for k, v in values.items() if k != name}
