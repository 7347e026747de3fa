"""The options that commands share, each declared once.

Help texts and metavars here are what `--help`, the man pages and the completions say.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Dtype(StrEnum):
    """Precisions to compute in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Backend(StrEnum):
    """Kernels to compute with."""

    auto = "auto"
    torch = "torch"
    compiled = "compiled"
    graphs = "graphs"
    openvino = "openvino"
    ipex = "ipex"


class Quantize(StrEnum):
    """How weights are stored."""

    none = "none"
    int8 = "int8"
    int4 = "int4"


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


Model = Annotated[
    str,
    typer.Option("-m", "--model", metavar="MODEL", help="A shipped model's name, a Hugging Face folder, or a hub id."),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL",
        help="A shipped model's name, a Hugging Face folder, or a hub id. Repeatable; all shipped models by default.",
    ),
]
Draft = Annotated[
    str,
    typer.Option(
        "--draft",
        metavar="DRAFT",
        help="Who guesses ahead: auto, none, self (the model's own first layers), lookup (repeated text), or a smaller "
        "model of the same vocabulary by name or folder. Several with commas.",
    ),
]
Lookup = Annotated[
    str | None,
    typer.Option(
        "--lookup", metavar="FILE", help="A text file whose passages may be repeated; lookup guesses from it."
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, xpu or mps.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Precision to compute in.")]
_backend = typer.Option(
    "--backend",
    help="Whose kernels compute the model: auto is what calibration measured to be fastest, torch without a profile. "
    "graphs replays recorded passes, on CUDA or XPU. Classifiers run on torch or openvino, pictures on those or compiled.",
)
_quantize = typer.Option(
    "--quantize",
    help="Store weights in 8 or 4 bits: faster, and another model. A language model's guessing stays lossless relative to it; "
    "a classifier (8 bits) stays within --max-disagreement of the model as it was, or isn't quantized.",
)
BackendOption = Annotated[Backend, _backend]
BackendWish = Annotated[Backend | None, _backend]
QuantizeOption = Annotated[Quantize, _quantize]
QuantizeWish = Annotated[Quantize | None, _quantize]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, max=1024, help="Processor threads; the cores available by default."),
]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", metavar="ID", help="Use this stored profile (see dynx calibrate --list), or none."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, max=4096, help="Inputs computed together.")]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", metavar="N", min=8, help="Cut texts to N tokens; by default to what the model takes."),
]
MaxDisagreement = Annotated[
    float,
    typer.Option(
        "--max-disagreement",
        metavar="SHARE",
        help="At most this share of answers may differ from the full model's.",
    ),
]
Confidence = Annotated[float, typer.Option("--confidence", metavar="P", help="How sure the promise is.")]
Within = Annotated[
    float | None,
    typer.Option(
        "--within",
        metavar="T",
        min=1e-9,
        help="For models that give numbers: how far one may be off and still agree.",
    ),
]
Column = Annotated[
    str | None,
    typer.Option(
        "--column", metavar="NAME", help="With --tsv: the column of the texts, by header or by number from 1."
    ),
]
Field = Annotated[
    str | None, typer.Option("--field", metavar="NAME", help="Read JSON lines; the texts are under this key.")
]
Tsv = Annotated[
    bool, typer.Option("--tsv", help="Read a tab-separated table, quoted as Python's csv module does; needs --column.")
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Load pickled weights too. A pickle can run any code: only if you trust its author."
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never contact the hub; use what is on disk.")]
Quality = Annotated[
    float | None,
    typer.Option(
        "--quality", metavar="SSIM", help="Likeness to the full run of the same seed that is kept, from 0 to 1; 0.95."
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance", metavar="G", min=0.0, help="How much the prompt is enforced; the pipeline's own by default."
    ),
]
Size = Annotated[
    str | None, typer.Option("--size", metavar="WxH", help="Width and height in pixels, or one number for both.")
]
ShowOption = Annotated[Show, typer.Option("--show", help="Show the picture in the terminal.")]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document instead of text. An error is a JSON line on stderr, if that is no terminal.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done and why, without loading the model, and stop.")
]
Quiet = Annotated[
    int, typer.Option("-q", "--quiet", count=True, show_default=False, help="Fewer words on stderr; -qq: errors only.")
]
Verbose = Annotated[
    int,
    typer.Option("-v", "--verbose", count=True, show_default=False, help="Say what was decided and why; -vv: more."),
]
ColorOption = Annotated[Color, typer.Option("--color", help="Colour on the terminal.")]
