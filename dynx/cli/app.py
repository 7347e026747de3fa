"""The command tree: names, options and help.

Everything else happens in the module of the command's name, imported when it runs.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dynx.cli import options as o

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


def _cold(temperature: float) -> float:
    """A temperature that float32 can't divide by means what 0 means: the likeliest token."""
    return 0.0 if temperature < 1e-6 else temperature


@app.callback()
def dynx(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Local AI inference that spends less on easy inputs, and says what it saved."""


@app.command(epilog="Text that is piped in comes before PROMPT. Manual: man dynx-generate")
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
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
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
    """Continue a text with a language model, faster than plain decoding and equal to it.

    \b
    Examples:
      dynx generate "Once upon a time"
      cat letter.txt | dynx generate "A short summary:" -m ./my-model
      dynx generate "The fox" --temperature 0.8 --seed 7 --stats
      dynx generate --lines --jsonl < prompts.txt
    """
    from dynx.cli import generate as command

    command.run(command.Options(**locals_without("command", locals())))


@app.command(epilog="Manual: man dynx-calibrate")
def calibrate(
    model: o.Model = "story",
    draft: o.Draft = "auto",
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="FILE", help="Prompts to learn from, one per line; by default the model writes its own."
        ),
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", metavar="SECONDS", min=5.0, max=3600.0, help="Time to spend measuring.")
    ] = 60.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be measured, and stop.")] = False,
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
      dynx calibrate --device-info
      dynx calibrate --list
    """
    from dynx.cli import calibrate as command

    command.run(command.Options(**locals_without("command", locals())))


@app.command(epilog="Exit code 3 means that a gate failed. Manual: man dynx-bench")
def bench(
    model: o.Model = "story",
    draft: o.Draft = "auto",
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE", help="Prompts to measure on, one per line.")
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", metavar="N", min=1, max=1000, help="Rounds; each runs every arm on every prompt.")
    ] = 5,
    max_new_tokens: Annotated[
        int, typer.Option("-n", "--max-new-tokens", metavar="N", min=2, help="Tokens per answer.")
    ] = 64,
    prompts: Annotated[int, typer.Option("--prompts", metavar="N", min=1, help="At most this many prompts.")] = 4,
    static: Annotated[
        str,
        typer.Option(
            "--static",
            metavar="LENGTHS",
            help="Static draft lengths to measure, e.g. 1-10 or 2,4; none for no such arm.",
        ),
    ] = "1-10",
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="PEER", help="Also measure a peer on the same prompts: transformers."),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature",
            metavar="T",
            min=0.0,
            max=100.0,
            callback=_cold,
            help="0 is greedy; with more, the seed is fixed.",
        ),
    ] = 0.0,
    min_speedup: Annotated[
        float | None,
        typer.Option("--min-speedup", metavar="X", min=0.0, help="Gate: dynamic must be at least X times plain."),
    ] = None,
    require_identical: Annotated[
        bool, typer.Option("--require-identical", help="Gate: dynamic must write what plain writes, token for token.")
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="SECONDS", min=1.0, help="Stop after a whole round when time runs out."),
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(
            "--export", metavar="FORMAT:PATH", help="Also write the result: json:PATH or md:PATH. Repeatable."
        ),
    ] = None,
    json: o.Json = False,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    threads: o.Threads = None,
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
      dynx bench -m ./my-model --draft ./my-drafter --min-speedup 1.2
      dynx bench --require-identical --export json:bench.json --export md:bench.md
    """
    from dynx.cli import bench as command

    command.run(command.Options(**locals_without("command", locals())))


def locals_without(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """A command's parameters by name, as its `Options` takes them."""
    return {k: v for k, v in values.items() if k != name}
