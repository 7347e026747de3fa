"""The options of `dynx generate`, each declared once: name, type, default and help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynx.cli import options as o

if TYPE_CHECKING:
    from dynx.speculation.plan import GeneratorRequest

HELP = """Continue a text with a language model, by speculative decoding with the text of plain decoding.

\b
Examples:
  dynx generate "Once upon a time"
  cat letter.txt | dynx generate "A short summary:" -m ./my-model
  dynx generate "The fox" --temperature 0.8 --seed 7 --stats
  dynx generate --lines --jsonl < prompts.txt
  dynx generate -m ./my-model --chat
  dynx generate -m ./my-model --input prompts.jsonl --output answers/ -n 200
  dynx generate -m ./my-model --messages conversation.json
"""


@dataclass(frozen=True, kw_only=True)
class Options(o.OutputOptions, o.DeviceOptions, o.JobOptions):
    """The command line of `dynx generate`, by parameter name."""

    prompt: list[str] | None = o.argument(metavar="PROMPT", help="The text to continue; - reads it from stdin.")
    model: str = o.MODEL("story")
    adapters: list[str] | None = o.ADAPTER(None)
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
        help="Sampling temperature; 0 is greedy decoding.",
    )
    top_k: int = o.option(0, "--top-k", metavar="K", min=0, help="Sample from the K most likely tokens; 0 means all.")
    top_p: float = o.option(
        1.0,
        "--top-p",
        metavar="P",
        min=0.0,
        max=1.0,
        help="Sample from the most likely tokens whose probabilities sum to P.",
    )
    repetition_penalty: float | None = o.option(
        None,
        "--repetition-penalty",
        metavar="R",
        min=0.01,
        max=100.0,
        help="Repetition penalty, above 1 for less repetition; the model's own by default.",
    )
    seed: int | None = o.option(
        None, "--seed", metavar="SEED", min=0, help="Random seed; the text does not depend on the drafter."
    )
    stop: list[str] | None = o.option(None, "--stop", metavar="STRING", help="Stop before this text. Repeatable.")
    chat: bool = o.CHAT(False)
    system: str | None = o.SYSTEM(None)
    messages: str | None = o.option(
        None,
        "--messages",
        metavar="FILE",
        help="Answer a conversation: a JSON list of messages with role and content; - reads it from stdin.",
    )
    lines: bool = o.option(
        False,
        "--lines",
        help="One prompt per line of stdin, one answer per line of stdout; empty, and exit code 1, if there is none.",
    )
    field: str | None = o.option(
        None,
        "--field",
        metavar="NAME",
        help="With --lines: read JSON lines; this key, or dotted path such as turns.0, holds the prompt: a text or a list of "
        "messages.",
    )
    batch: str = o.option(
        "auto",
        "--batch",
        metavar="N",
        help="With --lines or --input: the largest number of prompts per batch; auto uses the fastest measured.",
    )
    column: str | None = o.JOB_COLUMN(None)
    no_stdin: bool = o.option(False, "--no-stdin", help="Never read stdin.")
    jsonl: bool = o.option(False, "--jsonl", help="Print JSON lines: one per token and result.")
    stats: bool = o.option(False, "--stats", help="Print the cost and the saving on stderr.")
    explain: bool = o.option(
        False, "--explain", help="Colour each token by its draft source, and show the reason for each setting."
    )
    plain: bool = o.option(False, "--plain", help="Plain decoding, without speculation.")
    verify: bool = o.option(
        False,
        "--verify",
        help="Score the answer with plain decoding; exit with 3 if plain decoding would differ.",
    )
    exact: bool = o.option(
        False,
        "--exact",
        help="Guarantee the text of --plain --exact also in bfloat16 or int8, where rounding can decide near ties.",
    )
    dry_run: bool = o.DRY_RUN(False)
    backend: o.Backend = o.BACKEND(o.Backend.auto)
    quantize: o.Quantize = o.QUANTIZE(o.Quantize.auto)
    profile: str | None = o.PROFILE(None)
    require_profile: bool = o.option(False, "--require-profile", help="Exit with 4 unless a stored profile fits.")

    def request(self) -> GeneratorRequest:
        """Return the request for the engine."""
        from dynx.speculation.plan import GeneratorRequest

        return GeneratorRequest(
            self.model,
            adapters=tuple(self.adapters or ()),
            draft=self.draft,
            lookup=Path(self.lookup) if self.lookup else None,
            backend=str(self.backend),
            quantize=str(self.quantize),
            profile=self.profile,
            require_profile=self.require_profile,
            plain=self.plain,
            exact=self.exact,
            chat=self.chat or self.system is not None or self.messages is not None,
            **self.for_request(),
        )


COMMAND = o.Command(
    "generate",
    Options,
    HELP,
    short_help="Continue a text with a language model.",
    epilog="Piped text is placed before PROMPT. Manual: man dynx-generate",
)
