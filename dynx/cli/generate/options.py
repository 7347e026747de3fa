"""The options of `dynx generate`, each declared once: name, type, default and help."""

from __future__ import annotations

from dataclasses import dataclass

from dynx.cli import options as o

HELP = """Continue a text with a language model, faster than plain decoding and equal to it.

\b
Examples:
  dynx generate "Once upon a time"
  cat letter.txt | dynx generate "A short summary:" -m ./my-model
  dynx generate "The fox" --temperature 0.8 --seed 7 --stats
  dynx generate --lines --jsonl < prompts.txt
"""


@dataclass(frozen=True, kw_only=True)
class Options(o.OutputOptions, o.DeviceOptions):
    """The command line of `dynx generate`, by parameter name."""

    prompt: list[str] | None = o.argument(metavar="PROMPT", help="The text to continue; - reads it from stdin.")
    model: str = o.MODEL("story")
    draft: str = o.DRAFT("auto")
    lookup: str | None = o.LOOKUP(None)
    max_new_tokens: int = o.option(
        256, "-n", "--max-new-tokens", metavar="N", min=0, help="Stop after this many tokens."
    )
    temperature: float = o.option(
        0.0,
        "--temperature",
        metavar="T",
        min=0.0,
        max=100.0,
        help="0 takes the likeliest token; more is bolder.",
    )
    top_k: int = o.option(0, "--top-k", metavar="K", min=0, help="Sample among the K likeliest tokens; 0 means all.")
    top_p: float = o.option(
        1.0,
        "--top-p",
        metavar="P",
        min=0.0,
        max=1.0,
        help="Sample among the likeliest tokens that make up this probability.",
    )
    repetition_penalty: float | None = o.option(
        None,
        "--repetition-penalty",
        metavar="R",
        min=0.01,
        max=100.0,
        help="Above 1 makes repeating less likely; the model's own setting by default.",
    )
    seed: int | None = o.option(
        None, "--seed", metavar="SEED", min=0, help="Makes sampling reproducible, whatever is drafted."
    )
    stop: list[str] | None = o.option(
        None, "--stop", metavar="STRING", help="End the answer before this text. Repeatable."
    )
    chat: bool = o.option(False, "--chat", help="Put the prompt into the model's chat template.")
    system: str | None = o.option(
        None, "--system", metavar="TEXT", help="System message for the chat template; implies --chat."
    )
    lines: bool = o.option(
        False,
        "--lines",
        help="One prompt per line of stdin, one answer per line of stdout; empty, and exit code 1, if there is none.",
    )
    batch: str = o.option(
        "auto",
        "--batch",
        metavar="N",
        help="With --lines, answer up to so many prompts at once; auto takes what is measured to be fastest.",
    )
    no_stdin: bool = o.option(False, "--no-stdin", help="Never read stdin.")
    jsonl: bool = o.option(False, "--jsonl", help="Print JSON lines: one for each token and each result.")
    stats: bool = o.option(False, "--stats", help="Say on stderr what the answer cost and what was saved.")
    explain: bool = o.option(
        False, "--explain", help="Shade each token by who guessed it, and say why each setting has its value."
    )
    plain: bool = o.option(False, "--plain", help="Plain decoding: nothing dynamic.")
    verify: bool = o.option(
        False,
        "--verify",
        help="Score the answer again on the plain model; exit 3 unless that would have written the same.",
    )
    exact: bool = o.option(
        False,
        "--exact",
        help="The text of --plain --exact to the token, also where bfloat16 or int8 could round a tie.",
    )
    dry_run: bool = o.DRY_RUN(False)
    backend: o.Backend = o.BACKEND(o.Backend.auto)
    quantize: o.Quantize = o.QUANTIZE(o.Quantize.none)
    profile: str | None = o.PROFILE(None)
    require_profile: bool = o.option(False, "--require-profile", help="Fail (exit 4) unless a profile fits.")


COMMAND = o.Command(
    "generate",
    Options,
    HELP,
    short_help="Continue a text with a language model.",
    epilog="Text that is piped in comes before PROMPT. Manual: man dynx-generate",
)
