"""Declares command-line options, and the options that several commands share.

An option is a field of its command's `Options` dataclass: its name, type and default are the field's, the rest is its
`Declaration`. Typer's signature, the help text, environment variables, `dynx.toml`, man pages and completions all read
these fields, so nothing about an option is written twice.
"""

from __future__ import annotations

import functools
import inspect
import sys
from dataclasses import Field, dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import typer

from dynx.cli.inputs import NoInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

_DECLARATION = "dynx.cli"


class Dtype(StrEnum):
    """Precisions to compute in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Backend(StrEnum):
    """Execution backends."""

    auto = "auto"
    torch = "torch"
    compiled = "compiled"
    graphs = "graphs"
    openvino = "openvino"
    ipex = "ipex"


class Quantize(StrEnum):
    """How weights are stored."""

    auto = "auto"
    none = "none"
    int8 = "int8"
    int4 = "int4"
    file = "file"


class Color(StrEnum):
    """When to use colour."""

    auto = "auto"
    always = "always"
    never = "never"


class Show(StrEnum):
    """When to show pictures in the terminal."""

    auto = "auto"
    always = "always"
    never = "never"


class Engine(StrEnum):
    """What runs the workers of a job."""

    local = "local"
    ray = "ray"


@dataclass(frozen=True)
class Declaration:
    """What help and the parser need of an option beyond its field's name, type and default."""

    names: tuple[str, ...]
    """Names as they are typed, like `-n` and `--max-new-tokens`; none for a positional argument."""
    about: dict[str, Any]
    """Typer's own settings: help, metavar, bounds, callback."""
    once: bool = False
    """Whether it is a single action rather than a setting, so that no file or variable may set it."""

    @property
    def key(self) -> str | None:
        """The long name without its dashes, as in `dynx.toml`; None for a positional argument."""
        return next((name[2:] for name in self.names if name.startswith("--")), None)

    def typer(self) -> Any:
        """Typer's own description of the parameter."""
        return typer.Option(*self.names, **self.about) if self.names else typer.Argument(**self.about)


def option(default: Any, *names: str, once: bool = False, **about: Any) -> Any:
    """Return a dataclass field that is an option of the command line."""
    return field(default=default, metadata={_DECLARATION: Declaration(names, about, once)})


def argument(**about: Any) -> Any:
    """Return a dataclass field that takes the positional arguments; None where there are none."""
    return field(default=None, metadata={_DECLARATION: Declaration((), about)})


class Declared:
    """An option of several commands: call it with a command's default to get its field."""

    def __init__(self, *names: str, once: bool = False, **about: Any) -> None:
        self._names, self._once, self._about = names, once, about

    def __call__(self, default: Any, *, hidden: bool = False) -> Any:
        """Make the field, with a command's own default; a hidden one is left out of lists of options."""
        about = {**self._about, "hidden": True} if hidden else self._about
        return option(default, *self._names, once=self._once, **about)


MODEL = Declared(
    "-m", "--model", metavar="MODEL", help="A shipped model's name, a GGUF file, a Hugging Face folder, or a hub id."
)
MODELS = Declared(
    "-m",
    "--model",
    metavar="MODEL",
    help="A shipped model's name, a GGUF file, a Hugging Face folder, or a hub id. Repeatable; all shipped models by default.",
)
DRAFT = Declared(
    "--draft",
    metavar="DRAFT",
    help="Draft source: auto, none, self (early-exit layers of the model), lookup (prompt lookup), mtp (the model's multi-token "
    "prediction), or a draft model or head, by name, folder or GGUF file. Separate several with commas.",
)
LOOKUP = Declared("--lookup", metavar="FILE", help="Prompt lookup also drafts from this text file.")
ADAPTER = Declared(
    "--adapter",
    metavar="ADAPTER[:W]",
    help="Fold a LoRA adapter, a folder or hub id, into the language model's weights; :W is its weight. Repeatable.",
)
LORA = Declared(
    "--lora",
    metavar="FILE[:W]",
    help="Fold a LoRA adapter, a safetensors file, into the pipeline's weights; :W is its weight. Repeatable.",
)
STRENGTH = Declared(
    "--strength",
    metavar="S",
    min=0.0,
    max=1.0,
    help="How much may change of the picture that --image gives, above 0 and at most 1; the pipeline's own by default.",
)
IMAGE = Declared("--image", metavar="FILE", help="Start from this picture (image-to-image) instead of noise alone.")
MASK = Declared(
    "--mask",
    metavar="FILE",
    help="Change only what is white in this picture (inpainting); it has the size of --image.",
)
CONTROL_IMAGE = Declared(
    "--control-image",
    metavar="FILE",
    help="Pipelines with a ControlNet: the picture of edges, depth or poses that controls what is drawn.",
)
CONTROL_SCALE = Declared(
    "--control-scale",
    metavar="S",
    min=0.0,
    help="How much the picture of --control-image counts, above 0; the pipeline's own by default.",
)
DEVICE = Declared("--device", metavar="DEVICE", help="Device: auto, cpu, cuda, cuda:1, xpu or mps.")
DTYPE = Declared("--dtype", help="Compute precision.")
BACKEND = Declared(
    "--backend",
    help="Execution backend; auto uses the fastest one that calibration measured, and torch without a profile. graphs uses "
    "CUDA graphs (CUDA or XPU). Classifiers run on torch or openvino, pipelines also on compiled.",
)
QUANTIZE = Declared(
    "--quantize",
    help="Quantize weights to 8 or 4 bits, or run a GGUF file's weights in the file's own bits (file; auto does so unless "
    "--dtype is given). Speculative decoding is lossless relative to the quantized model. A classifier (int8 only) is "
    "quantized only if it stays within --max-disagreement of the original model.",
)
THREADS = Declared("--threads", metavar="N", min=1, max=1024, help="CPU threads; by default all available cores.")
PROFILE = Declared(
    "--profile", metavar="ID", help="Use this stored profile, or none; dynx calibrate --list shows them."
)
BATCH_SIZE = Declared("--batch-size", metavar="N", min=1, max=4096, help="Inputs per batch.")
MAX_LENGTH = Declared(
    "--max-length", metavar="N", min=8, help="Truncate texts to N tokens; by default to the model's limit."
)
MAX_DISAGREEMENT = Declared(
    "--max-disagreement", metavar="SHARE", help="Largest share of answers that may differ from the full model's."
)
CONFIDENCE = Declared("--confidence", metavar="P", help="Confidence level of the bound.")
WITHIN = Declared(
    "--within", metavar="T", min=1e-9, help="Regression models: outputs that differ by at most T count as equal."
)
COLUMN = Declared(
    "--column",
    metavar="NAME",
    help="With --tsv: the column that holds the texts, by header or number from 1. With --input: the column or key, by name.",
)
JOB_COLUMN = Declared(
    "--column", metavar="NAME", help="With --input: the column, or the key of JSON lines, that holds the prompts."
)
INPUT = Declared(
    "--input",
    once=True,
    metavar="FILES",
    help="Run a job over all rows of these files: Parquet, CSV, TSV, JSON lines or text, maybe as .gz or .zst, or folders of "
    "images. A file, a folder, a quoted pattern, or any address that fsspec opens. Repeatable.",
)
OUTPUT = Declared(
    "--output",
    once=True,
    metavar="DIR",
    help="With --input: write the answers into this folder, as Parquet or with --jsonl as JSON lines. The same command "
    "continues a job that was stopped.",
)
ENGINE = Declared(
    "--engine", help="With --input: run workers as processes of this machine, or on the Ray cluster of RAY_ADDRESS."
)
WORKERS = Declared(
    "--workers",
    metavar="N",
    help="With --input: number of workers; auto is one with all cores, and on a cluster one per machine or GPU.",
)
SHARD_ROWS = Declared(
    "--shard-rows",
    metavar="N",
    min=1,
    max=1 << 20,
    help="With --input: rows that a worker answers and writes at a time; by default about 30 seconds of work.",
)
TIMEOUT_ROW = Declared(
    "--timeout-row",
    metavar="SECONDS",
    min=0.1,
    max=86400.0,
    help="With --input: give up a row that takes longer; it becomes an error.",
)
FIELD = Declared("--field", metavar="NAME", help="Read JSON lines; this key holds the text.")
PAIR = Declared(
    "--pair",
    metavar="A,B",
    help="The inputs are pairs of texts: read JSON lines, and take the texts under these two keys. With --tsv, and with --input, "
    "two columns.",
)
RANK = Declared(
    "--rank",
    help='Rank the documents of each query by a cross-encoder: read JSON lines with "query" and "documents", or with --pair and '
    "--group a row per document.",
)
GROUP = Declared(
    "--group",
    metavar="NAME",
    help="With --pair: the key or column that is equal for all documents of a query, in rows that follow one another.",
)
CANDIDATES = Declared(
    "--candidates",
    metavar="LABELS",
    help="Choose among these labels, separated by commas, with a model for natural language inference (zero-shot).",
)
TOP_K = Declared(
    "--top-k",
    metavar="K",
    min=1,
    help="The K best labels of each input; with --rank the K best documents of each query, which are the full model's.",
)
HYPOTHESIS = Declared(
    "--hypothesis", metavar="TEXT", help="With --candidates: the sentence that a label makes, with {} for the label."
)
MULTI_LABEL = Declared("--multi-label", help="With --candidates: several labels of a text may hold.")
AGGREGATION_STRATEGY = Declared(
    "--aggregation-strategy",
    metavar="NAME",
    help="Models that label tokens: how labels become entities, as transformers' pipeline does it: none, simple (the default), "
    "first, average or max.",
)
PER_CLASS = Declared(
    "--per-class",
    help="Bound the share of changed answers for each of the full model's labels, not only for all inputs.",
)
PROMPT_FIELD = Declared(
    "--field",
    metavar="NAME",
    help="Read JSON lines; this key, or dotted path such as turns.0, holds the text or a list of messages.",
)
CHAT = Declared("--chat", help="Apply the model's chat template to each prompt.")
SYSTEM = Declared("--system", metavar="TEXT", help="System message of conversations that have none; implies --chat.")
TSV = Declared(
    "--tsv", help="Read a tab-separated table, quoted as Python's csv module does; requires --column or --pair."
)
ALLOW_PICKLE = Declared(
    "--allow-pickle", help="Also load pickled weights. A pickle can run any code; use it only for authors you trust."
)
TRUST_REMOTE_CODE = Declared(
    "--trust-remote-code",
    help="Run Python code from the model's folder. It can do anything: use it only if you trust its author.",
)
OFFLINE = Declared("--offline", help="Never contact the hub; use only local files.")
QUALITY = Declared(
    "--quality", metavar="SSIM", help="Target SSIM to the full run of the same seed, from 0 to 1; 0.95 by default."
)
GUIDANCE = Declared("--guidance", metavar="G", min=0.0, help="Guidance scale; the pipeline's own by default.")
SIZE = Declared("--size", metavar="WxH", help="Width and height in pixels, or one number for both.")
SHOW = Declared("--show", help="Show the picture in the terminal.")
JSON = Declared(
    "--json", help="Print one JSON document instead of text. Errors are JSON on stderr unless it is a terminal."
)
DRY_RUN = Declared(
    "--dry-run", once=True, help="Print what would be done and why, without loading the model, and exit."
)
QUIET = Declared(
    "-q", "--quiet", count=True, show_default=False, help="Suppress notices on stderr; -qq suppresses warnings too."
)
VERBOSE = Declared(
    "-v",
    "--verbose",
    count=True,
    show_default=False,
    help="Print decisions and their reasons on stderr; -vv prints more.",
)
COLOR = Declared("--color", help="When to use colour.")


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Options for device and precision."""

    device: str = DEVICE("auto")
    dtype: Dtype = DTYPE(Dtype.auto)
    threads: int | None = THREADS(None)
    allow_pickle: bool = ALLOW_PICKLE(False)
    trust_remote_code: bool = TRUST_REMOTE_CODE(False)
    offline: bool = OFFLINE(False)

    def for_request(self) -> dict[str, Any]:
        """Return the fields of a model's request that these options fill."""
        return {
            "device": self.device,
            "dtype": str(self.dtype),
            "threads": self.threads,
            "allow_pickle": self.allow_pickle,
            "trust_remote_code": self.trust_remote_code,
            "offline": self.offline,
        }


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options for output."""

    json: bool = JSON(False)
    quiet: int = QUIET(0)
    verbose: int = VERBOSE(0)
    color: Color = COLOR(Color.auto)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options of jobs over files."""

    input: list[str] | None = INPUT(None)
    output: str | None = OUTPUT(None)
    engine: Engine = ENGINE(Engine.local)
    workers: str = WORKERS("auto")
    shard_rows: int | None = SHARD_ROWS(None)
    timeout_row: float | None = TIMEOUT_ROW(None)


@functools.cache
def _types(options: Hashable) -> dict[str, Any]:
    """Return the types of a dataclass's fields; finding them takes long, and each option asks."""
    return get_type_hints(options)


@dataclass(frozen=True)
class Command:
    """A subcommand: its options and help."""

    name: str
    options: type[Any]
    """Dataclass whose fields are its options."""
    help: str
    short_help: str
    epilog: str

    def declared(self) -> list[tuple[Field[Any], Declaration]]:
        """Return the options in the order of help: the command's own, then the shared ones."""
        found = [(f, f.metadata[_DECLARATION]) for f in fields(self.options) if _DECLARATION in f.metadata]
        own = inspect.get_annotations(self.options)
        return [pair for pair in found if pair[0].name in own] + [pair for pair in found if pair[0].name not in own]

    def types(self) -> dict[str, Any]:
        """Return the type of each option by its field's name."""
        return _types(cast("Hashable", self.options))

    def register(self, app: typer.Typer, run: Callable[[Any], None], cls: type[Any] | None = None) -> None:
        """Add the command to `app`; `run` is called with an instance of its options.

        A command that lacks its input prints its own help to stderr before it fails.
        """

        def callback(context: typer.Context, **values: Any) -> None:
            try:
                run(self.options(**values))
            except NoInputError:
                sys.stderr.write(context.get_help() + "\n\n")
                raise

        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("context", kind, annotation=typer.Context)]
        for each, declaration in self.declared():
            annotation = Annotated[self.types()[each.name], declaration.typer()]  # type: ignore[valid-type]
            parameters.append(inspect.Parameter(each.name, kind, default=each.default, annotation=annotation))
        callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        callback.__annotations__ = {p.name: p.annotation for p in parameters}
        callback.__doc__ = self.help
        app.command(self.name, cls=cls, short_help=self.short_help, epilog=self.epilog)(callback)

    @functools.cached_property
    def parser(self) -> Any:
        """Return a Click parser for a line of the command's options; running it does nothing."""
        app = typer.Typer(rich_markup_mode=None, add_completion=False)
        self.register(app, lambda _: None)
        return typer.main.get_command(app)
