"""The options of `dynx bench`, each declared once: name, type, default and help."""

from __future__ import annotations

from dataclasses import dataclass

from dynx.cli import options as o

HELP = """Measure plain, static and dynamic execution in turns, and gate on the result.

--with takes options of the model's own command: --temperature; --tsv, --column, --field, --batch-size, --max-length,
--confidence, --within; --quality, --guidance, --size; --profile. --allow-pickle, --trust-remote-code and --offline work here too.

\b
Examples:
  dynx bench
  dynx bench generate --baseline main.json --tolerance 5%
  dynx bench -m ./my-model --arm 'bf16=--dtype bfloat16' --arm hf=transformers
  dynx bench -m ./my-model --draft ./my-drafter --min-speedup 1.2
  dynx bench -m ./my-classifier --data texts.txt --max-disagreement 0.02
  dynx bench -m ./my-classifier --data table.tsv --with '--tsv --column text --batch-size 8'
  dynx bench -m ./my-pipeline --data prompts.txt --inputs 60 --min-quality 0.95
  dynx bench --require-identical --export json:bench.json --export md:bench.md
"""


@dataclass(frozen=True, kw_only=True)
class Options(o.OutputOptions, o.DeviceOptions):
    """The command line of `dynx bench`, by parameter name; None stands for the default of the model's task."""

    task: str | None = o.argument(
        metavar="TASK", help="generate, classify, draw or all: the shipped models of this task."
    )
    models: list[str] | None = o.MODELS(None)
    data: str | None = o.option(
        None,
        "--data",
        metavar="FILE",
        help="What to measure on: prompts, one per line (a pipeline that draws makes its own); for a classifier texts, "
        "one per line, or a folder of images.",
    )
    runs: int | None = o.option(
        None,
        "--runs",
        metavar="N",
        min=1,
        max=1000,
        help="Rounds; each runs every arm on every input. 5 by default, 2 for a pipeline that draws; with a gate on "
        "speed as many as it takes.",
    )
    prompts: int | None = o.option(
        None,
        "--prompts",
        "--inputs",
        metavar="N",
        min=1,
        help="At most this many inputs: the first 4 prompts by default; for a classifier 1024 drawn at random; for a "
        "pipeline that draws 16 pictures, each with another seed.",
    )
    draft: str | None = o.option(
        None, "--draft", metavar="DRAFT", help="What makes draft tokens, as in dynx generate: auto, a model, …"
    )
    max_new_tokens: int | None = o.option(
        None, "-n", "--max-new-tokens", metavar="N", min=2, help="Tokens per answer; 64 by default."
    )
    static: str | None = o.option(
        None,
        "--static",
        metavar="LENGTHS",
        help="Static draft lengths to measure, e.g. 2,4; 1-10 by default, none for no such arm. For a pipeline that "
        "draws the numbers of steps; 6,8,10,15,20,25 by default.",
    )
    labels: str | None = o.option(
        None,
        "--labels",
        metavar="GOLD",
        help="A file with the true label of each of a classifier's inputs, alone or as last column, to measure accuracy.",
    )
    with_: list[str] | None = o.option(
        None,
        "--with",
        metavar="OPTIONS",
        help="Options of the model's own command for every arm, in one argument: '--temperature 0.8', '--tsv "
        "--column text', … Repeatable; the list is above.",
    )
    arms: list[str] | None = o.option(
        None,
        "--arm",
        metavar="NAME=OPTIONS",
        help="Also measure this with other options (-m, --dtype, --profile, --static K, …), or the peer transformers: "
        "NAME=transformers. Repeatable.",
    )
    min_speedup: float | None = o.option(
        None,
        "--min-speedup",
        metavar="X",
        min=0.0,
        help="Gate: dynamic must be at least X times as fast as plain, which for a pipeline that draws is its author's run; "
        "for a classifier, as the faster of plain and length-bucketed batches.",
    )
    require_identical: bool = o.option(
        False,
        "--require-identical",
        help="Gate: dynamic must write what plain writes, token for token, give the same labels, or draw the same "
        "pixels.",
    )
    max_disagreement: float | None = o.option(
        None,
        "--max-disagreement",
        metavar="SHARE",
        help="A classifier's promise (0.02 by default) and, where given, a gate: at most this share of answers may "
        "differ from the full model's.",
    )
    min_quality: float | None = o.option(
        None,
        "--min-quality",
        metavar="SSIM",
        help="Gate for a pipeline that draws: at least 95 % of dynamic's pictures must be that similar to plain's.",
    )
    baseline: str | None = o.option(
        None,
        "--baseline",
        metavar="FILE",
        help="Gate: dynamic must be as many times as fast as plain as in this earlier JSON result. Where device, versions, "
        "model or inputs differ, it is only advisory.",
    )
    tolerance: str | None = o.option(
        None,
        "--tolerance",
        metavar="PERCENT",
        help="How much slower still passes: 5% for --baseline by default, 0% for --min-speedup.",
    )
    bisect: bool = o.option(False, "--bisect", help="Exit with 125 where nothing can be judged: for git bisect run.")
    budget: float | None = o.option(
        None,
        "--budget",
        metavar="SECONDS",
        min=1.0,
        help="Stop after a whole round when time runs out; where a gate waits, also within one, with what was measured. "
        "A gate on speed is measured until it is decided, by default for 120 seconds at most; with --runs, and any other "
        "gate, for 300. Loading has time of its own: 120 seconds, or the budget where that is more.",
    )
    export: list[str] | None = o.option(
        None,
        "--export",
        metavar="FORMAT:PATH",
        help="Also write the result as json, md, csv, junit or github-action-benchmark. Repeatable.",
    )
    plot: str | None = o.option(
        None, "--plot", metavar="PATH", help="Draw speed, and speed against quality, as SVG or PNG; needs dynx[plot]."
    )
    backend: o.Backend | None = o.BACKEND(None)
    quantize: o.Quantize | None = o.QUANTIZE(None)
    allow_pickle: bool = o.ALLOW_PICKLE(False, hidden=True)
    trust_remote_code: bool = o.TRUST_REMOTE_CODE(False, hidden=True)
    offline: bool = o.OFFLINE(False, hidden=True)

    @property
    def gates_speed(self) -> bool:
        """Whether a verdict depends on how fast something is."""
        return self.min_speedup is not None or self.baseline is not None

    @property
    def gated(self) -> bool:
        """Whether there is a verdict to wait for at all."""
        others = (self.max_disagreement, self.min_quality)
        return self.gates_speed or self.require_identical or any(bar is not None for bar in others)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What `--with` takes: options of the models' own commands. None stands for the default there."""

    temperature: float | None = o.option(None, "--temperature", metavar="T", min=0.0, max=100.0)
    tsv: bool | None = o.TSV(None)
    column: str | None = o.COLUMN(None)
    field: str | None = o.FIELD(None)
    batch_size: int | None = o.BATCH_SIZE(None)
    max_length: int | None = o.MAX_LENGTH(None)
    confidence: float | None = o.CONFIDENCE(None)
    within: float | None = o.WITHIN(None)
    quality: float | None = o.QUALITY(None)
    guidance: float | None = o.GUIDANCE(None)
    size: str | None = o.SIZE(None)
    profile: str | None = o.PROFILE(None)


@dataclass(frozen=True, kw_only=True)
class Request(Options, ModelOptions):
    """What is asked for one model: the command line, with what `--with` holds as fields of their own."""

    model: str = ""
    """The model that is measured; not an option."""


LINE = o.Command("bench", Request, "", short_help="", epilog="")
"""Reads the options in `--with` and `--arm`."""

COMMAND = o.Command(
    "bench",
    Options,
    HELP,
    short_help="Measure plain, static and dynamic side by side.",
    epilog="Exit code 3 means that a gate failed. Manual: man dynx-bench",
)
