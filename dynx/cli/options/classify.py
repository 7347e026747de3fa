"""The options of `dynx classify`, each declared once: name, type, default and help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynx.cli import options as o
from dynx.cli.forms import form_fields

if TYPE_CHECKING:
    from dynx.early_exit.plan import ClassifierRequest

HELP = """Label texts, their entities or images with early exit, and bound how many answers differ from the full model's.

\b
Examples:
  dynx classify "What a fine day"
  dynx classify < lines.txt > labels.tsv
  dynx classify -m ./my-model --field body --jsonl < posts.jsonl
  dynx classify -m ./my-nli --pair premise,hypothesis < pairs.jsonl
  dynx classify -m ./my-nli --candidates sports,politics < news.txt
  dynx classify -m ./my-cross-encoder --rank --top-k 5 < queries.jsonl
  dynx classify -m ./my-ner-model < articles.txt > entities.tsv
  dynx classify -m ./my-vit photos/*.png
  dynx classify -m ./my-model --input 'data/*.parquet' --column text --output labels/
"""


@dataclass(frozen=True, kw_only=True)
class Options(o.OutputOptions, o.DeviceOptions, o.JobOptions):
    """The command line of `dynx classify`, by parameter name."""

    inputs: list[str] | None = o.argument(
        metavar="INPUT", help="A text or the path of an image; - reads stdin, one input per line."
    )
    model: str = o.MODEL("mood")
    nul: bool = o.option(False, "-0", "--null", help="Inputs on stdin end with NUL instead of a newline.")
    tsv: bool = o.TSV(False)
    column: str | None = o.COLUMN(None)
    field: str | None = o.FIELD(None)
    pair: str | None = o.PAIR(None)
    rank: bool = o.RANK(False)
    group: str | None = o.GROUP(None)
    candidates: str | None = o.CANDIDATES(None)
    hypothesis: str = o.HYPOTHESIS("This example is {}.")
    multi_label: bool = o.MULTI_LABEL(False)
    aggregation_strategy: str | None = o.AGGREGATION_STRATEGY(None)
    per_class: bool = o.PER_CLASS(False)
    skip_empty: bool = o.option(False, "--skip-empty", help="Skip empty texts.")
    no_stdin: bool = o.option(False, "--no-stdin", help="Never read stdin.")
    max_disagreement: float = o.MAX_DISAGREEMENT(0.02)
    confidence: float = o.CONFIDENCE(0.95)
    within: float | None = o.WITHIN(None)
    certify: bool = o.option(False, "--certify", help="Certify the exit rule on a random sample of this input.")
    audit: float = o.option(
        0.0,
        "--audit",
        metavar="SHARE",
        min=0.0,
        max=1.0,
        help="Check this share of the answers with the full model; disable exits if the bound is violated.",
    )
    batch_size: int = o.BATCH_SIZE(32)
    max_length: int | None = o.MAX_LENGTH(None)
    top_k: int | None = o.TOP_K(None)
    scores: bool = o.option(False, "--scores", help="Print the scores of all labels.")
    labels: str | None = o.option(
        None,
        "--labels",
        metavar="GOLD",
        help="File of true labels, one per input or in the last column: print accuracy and macro-F1 on stderr, and with "
        "--audit agreement with the full model.",
    )
    resume: str | None = o.option(
        None,
        "--resume",
        once=True,
        metavar="OUT",
        help="Write to this file, continuing after its last complete result.",
    )
    jsonl: bool = o.option(False, "--jsonl", help="Print one JSON line per input.")
    stats: bool = o.option(False, "--stats", help="Print the cost and the saving on stderr.")
    explain: bool = o.option(
        False, "--explain", help="Show exit layers, inputs that ran all layers, and the reason for each setting."
    )
    plain: bool = o.option(False, "--plain", help="Run the full model on every input, without early exit.")
    verify: bool = o.option(
        False, "--verify", help="Also run the full model on every input; exit with 3 if the bound is violated."
    )
    dry_run: bool = o.DRY_RUN(False)
    backend: o.Backend = o.BACKEND(o.Backend.auto)
    quantize: o.Quantize = o.QUANTIZE(o.Quantize.none)
    profile: str | None = o.PROFILE(None)
    require_profile: bool = o.option(False, "--require-profile", help="Exit with 4 unless a stored profile fits.")

    def request(self) -> ClassifierRequest:
        """Return the request for a classifier."""
        from dynx.early_exit.plan import ClassifierRequest

        return ClassifierRequest(
            self.model,
            backend=str(self.backend),
            quantize=str(self.quantize),
            batch_size=self.batch_size,
            max_length=self.max_length,
            max_disagreement=self.max_disagreement,
            confidence=self.confidence,
            within=self.within,
            **form_fields(self),
            profile=self.profile,
            require_profile=self.require_profile,
            plain=self.plain,
            **self.for_request(),
        )


COMMAND = o.Command(
    "classify",
    Options,
    HELP,
    short_help="Label texts or images.",
    epilog="Exit code 1 means that some inputs could not be labelled. Manual: man dynx-classify",
)
