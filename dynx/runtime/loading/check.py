"""Looks at a model's folder before anything heavy is imported, so that a wrong one is refused in a line."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dynx.errors import ModelError, UnsupportedModelError
from dynx.runtime import lora, own_code
from dynx.runtime.adapters import HINT, refuse, refuse_alone
from dynx.runtime.loading.exported import check_files
from dynx.runtime.loading.quiet import importing
from dynx.runtime.loading.source import PICKLES, Source
from dynx.runtime.loading.unpacked import scheme_of

if TYPE_CHECKING:
    from pathlib import Path

SUPPORTED = "generate takes decoder-only models: Llama, Qwen, Gemma, Mistral, GPT-2, GPT-NeoX and their like"
PIPELINES = "draw takes text-to-image pipelines of diffusers, folders with a model_index.json"
PIPELINE = own_code.PIPELINE_FILE
CLASSIFIERS = (
    "classify takes models for sequence classification (BERT, Llama, …), token classification or images (ViT, …)"
)

ClassifierKind: TypeAlias = Literal["text", "image", "tokens"]
"""What a classifier labels: whole texts, images, or the tokens of texts."""


def check(source: Source, *, allow_pickle: bool = False) -> None:
    """Look at the weights' files: whole safetensors, or pickles that were asked for. Raises ModelError.

    UnsupportedModelError for an adapter that transformers might apply.
    """
    if source.file is not None:
        return  # its header was read when it was found
    refuse(source.name, source.folder)
    weights = sorted(source.folder.glob("*.safetensors"))
    for index in sorted(source.folder.glob("*.safetensors.index.json")):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as e:
            raise ModelError(f"{index} can't be read: {e}") from None
        missing = sorted(named - {w.name for w in weights})
        if missing:
            raise ModelError(f"{source.folder} lacks {missing[0]} ({len(missing)} of {len(named)} parts missing)")
    for file in weights:
        _check_safetensors(file)
    if not weights:
        pickles = sorted(p for pattern in PICKLES for p in source.folder.glob(pattern))
        if not pickles:
            raise ModelError(f"{source.folder} has no weights (*.safetensors)")
        if not allow_pickle:
            raise ModelError(
                f"{source.folder} has pickled weights only ({pickles[0].name})",
                hint="a pickle can run any code; `allow_pickle` loads it, if you trust its author",
            )


def _check_safetensors(file: Path) -> None:
    """Check that the header is complete and the file as long as it says. Raises ModelError."""
    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(length)) if 0 < length <= size - 8 else None
    except (OSError, ValueError) as e:
        raise ModelError(f"{file} is not a safetensors file: {e}") from None
    if not isinstance(header, dict):
        raise ModelError(f"{file} is truncated or not a safetensors file", hint="download or copy it again")
    try:
        end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
    except (KeyError, TypeError, IndexError):
        raise ModelError(f"{file} has a damaged header") from None
    if size != 8 + length + end:
        wrong = "truncated" if size < 8 + length + end else "damaged"
        raise ModelError(
            f"{file} is {wrong}: {size} bytes, {8 + length + end} expected", hint="download or copy it again"
        )


def check_causal_lm(source: Source, *, allow_pickle: bool = False) -> None:
    """`check`, after a look at what kind of model the config describes. Raises ModelError, UnsupportedModelError."""
    config = source.config()
    if config.get("is_encoder_decoder"):
        raise UnsupportedModelError(
            f"{source.name} ({config.get('model_type')}) is an encoder-decoder model", hint=SUPPORTED
        )
    architectures = [str(name) for name in config.get("architectures") or ()]
    if architectures and all(name.endswith("Classification") for name in architectures):
        raise UnsupportedModelError(
            f"{source.name} ({architectures[0]}) is a classifier and writes no text", hint=SUPPORTED
        )
    if source.is_exported:
        check_files(source.folder)
        return
    _check_code(source, config, "CausalLM")
    check(source, allow_pickle=allow_pickle)
    if scheme_of(source) is not None and not list(source.folder.glob("*.safetensors")):
        raise UnsupportedModelError(
            f"{source.name}'s quantized weights are pickled; they are read from safetensors only"
        )
    for adapter in source.adapters:
        lora.check(adapter, allow_pickle=allow_pickle)


def task_of(source: Source) -> Literal["generate", "classify", "draw"]:
    """Which task a folder's model is for. Raises ModelError where it has no config."""
    if (source.folder / PIPELINE).is_file():
        return "draw"
    architectures = [str(name) for name in source.config().get("architectures") or ()]
    return "classify" if any("Classification" in name for name in architectures) else "generate"


def check_classifier(source: Source, *, allow_pickle: bool = False) -> ClassifierKind:
    """`check`, and what the classifier labels by its config. Raises ModelError, UnsupportedModelError."""
    if (source.folder / PIPELINE).is_file():
        raise UnsupportedModelError(f"{source.name} is a pipeline that draws, not a classifier", hint=CLASSIFIERS)
    if source.adapters:
        raise UnsupportedModelError(
            f"{source.name} is an adapter for a classifier; only language models' are folded in", hint=HINT
        )
    config = source.config()
    architectures = [str(name) for name in config.get("architectures") or ()]
    if not architectures:
        raise UnsupportedModelError(f"{source.name}'s config.json names no architecture", hint=CLASSIFIERS)
    first = architectures[0]
    if "ForImageClassification" in first:
        kind: ClassifierKind = "image"
        _check_code(source, config, "ImageClassification")
    elif first.endswith("ForTokenClassification"):
        kind = "tokens"
        _check_code(source, config, "TokenClassification")
    elif first.endswith("ForSequenceClassification"):
        kind = "text"
        _check_code(source, config, "SequenceClassification")
    else:
        words, hint = _other_task(first)
        raise UnsupportedModelError(f"{source.name} ({first}) {words}", hint=hint)
    check(source, allow_pickle=allow_pickle)
    return kind


def _other_task(architecture: str) -> tuple[str, str]:
    """Describe what a model that isn't a classifier does, and which command fits."""
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "writes text and has no labels", "dynx generate runs it"
    if architecture.endswith("Classification"):
        return "labels something else than whole texts or images", CLASSIFIERS
    return "has no classification head", CLASSIFIERS


def check_pipeline(source: Source, *, allow_pickle: bool = False) -> None:
    """Whether a folder is a diffusers pipeline with whole weights. Raises ModelError, UnsupportedModelError."""
    index = source.folder / PIPELINE
    if not index.is_file():
        if not (source.folder / "config.json").is_file():
            refuse_alone(source.name, source.folder)
            raise ModelError(f"{source.folder} has no {PIPELINE}", hint=PIPELINES)
        task = task_of(source)
        words = "is a classifier; dynx classify runs it" if task == "classify" else "writes text; dynx generate runs it"
        raise UnsupportedModelError(f"{source.name} {words}", hint=PIPELINES)
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ModelError(f"{index} can't be read: {e}") from None
    if isinstance(parts, dict) and not source.trusted and (code := own_code.in_pipeline(source.folder, parts)):
        raise own_code.refusal(f"{source.name} ({code})")
    if not isinstance(parts, dict) or not isinstance(parts.get("_class_name"), (str, list)):
        raise ModelError(f"{index} names no pipeline")
    for name, part in sorted(parts.items()):
        folder = source.folder / name
        if name.startswith("_") or not isinstance(part, list) or not part or part[0] is None:
            continue
        if not folder.is_dir():
            raise ModelError(f"{source.folder} lacks the folder {name}", hint="download or copy it again")
        if (folder / "config.json").is_file():
            check(Source(f"{source.name}/{name}", folder, source.kind), allow_pickle=allow_pickle)


def _check_code(source: Source, config: dict[str, Any], task: str) -> None:
    """Refuse a model that needs the folder's own code where that isn't trusted: ModelError."""
    if source.trusted or not own_code.of_model(config, f"AutoModelFor{task}"):
        return
    with importing():
        from transformers.models.auto import modeling_auto
    title = re.sub("(?<=[a-z])(?=[A-Z])", "_", task.replace("LM", "Lm")).upper()
    kind = config.get("model_type")
    if kind not in getattr(modeling_auto, f"MODEL_FOR_{title}_MAPPING_NAMES"):
        raise own_code.refusal(f"{source.name}, a model of type {kind or '(none named)'},")
