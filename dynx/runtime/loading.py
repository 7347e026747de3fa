"""From a name to a model: shipped, a folder, or a hub id; safetensors and no code, unless told otherwise.

`find` turns a name into a folder on disk and says where it came from; `check` looks at that folder before anything heavy is
imported, so that a wrong one is refused in a line; `load_causal_lm` loads it. Shipped models take the same path as
anybody's.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynx import shipped
from dynx.errors import DeviceError, ModelError, UnsupportedModelError
from dynx.runtime import hub, own_code
from dynx.runtime.adapters import refuse, refuse_alone
from dynx.runtime.lazy_imports import paused_gc, skipped_meta_fills
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
PICKLES = ("pytorch_model*.bin", "diffusion_pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
SUPPORTED = "generate takes decoder-only models: Llama, Qwen, Gemma, Mistral, GPT-2, GPT-NeoX and their like"
PIPELINES = "draw takes text-to-image pipelines of diffusers, folders with a model_index.json"
PIPELINE = own_code.PIPELINE_FILE
CLASSIFIERS = "classify takes models for sequence classification (BERT, RoBERTa, Llama, …) or images (ViT, ResNet, …)"
DRAFTER_FOLDER = "drafter"
"""A model folder may carry its drafter in this subfolder."""


@dataclass(frozen=True)
class Source:
    """Where a model is: `name` as the user knows it, and whether code in its folder may run."""

    name: str
    folder: Path
    kind: Literal["shipped", "folder", "hub"]
    trusted: bool = False

    @property
    def bundled_drafter(self) -> Source | None:
        """The drafter that came with it."""
        inner = self.folder / DRAFTER_FOLDER
        there = (inner / "config.json").is_file()
        return Source(f"{self.name}/{DRAFTER_FOLDER}", inner, self.kind, self.trusted) if there else None

    def config(self) -> dict[str, Any]:
        """config.json. Raises ModelError if it is missing or isn't a JSON object."""
        path = self.folder / "config.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            refuse_alone(self.name, self.folder)
            hint = "a Hugging Face model folder holds config.json, tokenizer.json and model.safetensors"
            raise ModelError(f"{self.folder} has no config.json", hint=hint) from None
        except (OSError, ValueError) as e:
            raise ModelError(f"{path} can't be read: {e}") from None
        if not isinstance(data, dict):
            raise ModelError(f"{path} is not a JSON object")
        return data


def find(
    name: str,
    *,
    offline: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    task: str = "generate",
) -> Source:
    """Find the model called `name`: a shipped one, else a folder, else one of the hub's. `task` is for the hints alone.

    Raises ModelError with the closest shipped name where there is no such thing.
    """
    if not name.strip():
        raise ModelError("the model's name is empty", hint=_shipped_in_words(task))
    bundled = re.fullmatch(rf"(\w[\w-]*)/{DRAFTER_FOLDER}", name)
    inside = shipped.folder(bundled[1]) if bundled else None
    for folder in (shipped.folder(name), inside / DRAFTER_FOLDER if inside else None):
        if folder is not None:
            return Source(name, folder, "shipped")
    try:
        path = Path(name).expanduser()
        folder = path.resolve() if path.is_dir() else None
    except (OSError, RuntimeError) as e:  # ~somebody, or a name no file system takes
        raise ModelError(f"there is no folder {name} ({getattr(e, 'strerror', None) or e})") from None
    if folder is not None:
        return Source(folder.name or name, path, "folder", trust_remote_code)
    if path.is_file():
        raise ModelError(f"{name} is a file; a model is a folder", hint=f"try -m {path.parent}")
    if name.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name):
        raise ModelError(f"there is no folder {name}")
    return _from_hub(name, offline=offline, allow_pickle=allow_pickle, trusted=trust_remote_code, task=task)


def _shipped_in_words(task: str) -> str | None:
    return f"shipped models: {', '.join(shipped.names(task))}" if shipped.names(task) else None


def _from_hub(name: str, *, offline: bool, allow_pickle: bool, trusted: bool, task: str) -> Source:
    close = get_close_matches(name, shipped.names(), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else _shipped_in_words(task)
    patterns = ("*.safetensors", *(PICKLES if allow_pickle else ()))
    known = bool(close) and "/" not in name
    folder = hub.fetch(name, patterns, offline=offline, code=trusted, local=known, hint=hint)
    return Source(name, folder, "hub", trusted)


def check(source: Source, *, allow_pickle: bool = False) -> None:
    """Look at the weights' files: whole safetensors, or pickles that were asked for. Raises ModelError.

    UnsupportedModelError for an adapter that transformers might apply.
    """
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
    _check_code(source, config, "CausalLM")
    check(source, allow_pickle=allow_pickle)


def task_of(source: Source) -> Literal["generate", "classify", "draw"]:
    """Which task a folder's model is for. Raises ModelError where it has no config."""
    if (source.folder / PIPELINE).is_file():
        return "draw"
    architectures = [str(name) for name in source.config().get("architectures") or ()]
    return "classify" if any("Classification" in name for name in architectures) else "generate"


def check_classifier(source: Source, *, allow_pickle: bool = False) -> Literal["text", "image"]:
    """`check`, and what kind of input the classifier takes by its config. Raises ModelError, UnsupportedModelError."""
    if (source.folder / PIPELINE).is_file():
        raise UnsupportedModelError(f"{source.name} is a pipeline that draws, not a classifier", hint=CLASSIFIERS)
    config = source.config()
    architectures = [str(name) for name in config.get("architectures") or ()]
    if not architectures:
        raise UnsupportedModelError(f"{source.name}'s config.json names no architecture", hint=CLASSIFIERS)
    first = architectures[0]
    if "ForImageClassification" in first:
        kind: Literal["text", "image"] = "image"
        _check_code(source, config, "ImageClassification")
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


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the libraries' advice, progress bars and warnings off the user's terminal."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging as chatter

        chatter.disable_progress_bar()
        logging.getLogger("transformers").setLevel(logging.ERROR)
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # of every library, also of those that these try to import
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def _loading(source: Source) -> Iterator[None]:
    """`quietly`, for loading what is in a folder: nothing is asked, and no code in it runs but a trusted one's."""
    with quietly(), own_code.answering(source.folder, trusted=source.trusted):
        yield


@contextmanager
def importing() -> Iterator[None]:
    """`quietly`, for importing the libraries: as fast as that goes."""
    with paused_gc(), quietly():
        yield


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Load the folder's tokenizer. Raises ModelError."""
    with importing():
        from transformers import AutoTokenizer
    with _loading(source):
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                source.folder, local_files_only=True, trust_remote_code=source.trusted
            )
        except Exception as e:  # noqa: BLE001 - tokenizers raise bare Exceptions
            if own_code.refused(e):
                raise own_code.refusal(f"{source.folder}'s tokenizer") from None
            if any((source.folder / file).is_file() for file in TOKENIZERS):
                raise ModelError(f"{source.folder}'s tokenizer doesn't load: {_first_line(e)}") from None
            raise ModelError(f"{source.folder} has no tokenizer", hint="tokenizer.json belongs in it") from None
        return tokenizer


def generation_config(source: Source) -> Any:
    """Read the folder's decoding settings, from a file of their own or, in older folders, from config.json.

    None where it says nothing. Raises ModelError for a file that can't be read.
    """
    file = source.folder / "generation_config.json"
    with _loading(source):
        from transformers import GenerationConfig

        try:
            if file.exists():
                return GenerationConfig.from_pretrained(source.folder, local_files_only=True)
            return GenerationConfig.from_pretrained(
                source.folder, config_file_name="config.json", local_files_only=True, _from_model_config=True
            )
        except Exception as e:  # noqa: BLE001 - any library's, about a file that anybody wrote
            if file.exists():
                raise ModelError(f"{file} can't be read: {_first_line(e)}") from None
    return None


def load_causal_lm(source: Source, *, device: str, dtype: str, allow_pickle: bool = False) -> PreTrainedModel:
    """Load the model in evaluation mode on `device` ("cpu", "cuda:0", …) in `dtype` ("float32", …).

    Raises ModelError, UnsupportedModelError or DeviceError.
    """
    check_causal_lm(source, allow_pickle=allow_pickle)
    with importing():
        from transformers import AutoModelForCausalLM
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

        _check_type(source, KNOWN, AutoModelForCausalLM, "causal language model", SUPPORTED)
    return _load(AutoModelForCausalLM, source, device, dtype, allow_pickle)


def load_classifier(
    source: Source, kind: Literal["text", "image"], *, device: str, dtype: str, allow_pickle: bool = False
) -> PreTrainedModel:
    """Load a classifier of texts or images, as `load_causal_lm` loads a language model."""
    check_classifier(source, allow_pickle=allow_pickle)
    with importing():
        import transformers
        from transformers.models.auto import modeling_auto

        if kind == "image":
            known = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
            loader = transformers.AutoModelForImageClassification
        else:
            known = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
            loader = transformers.AutoModelForSequenceClassification
        _check_type(source, known, loader, f"{kind} classifier", CLASSIFIERS)
    return _load(loader, source, device, dtype, allow_pickle)


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


def load_pipeline(source: Source, *, device: str, dtype: str, allow_pickle: bool = False) -> Any:
    """Load a diffusers pipeline on `device` in `dtype`. Raises ModelError, UnsupportedModelError or DeviceError."""
    check_pipeline(source, allow_pickle=allow_pickle)
    with _loading(source):
        import torch
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging as chatter

        chatter.disable_progress_bar()
        chatter.set_verbosity_error()
        try:
            pipe = _from_pretrained(
                DiffusionPipeline,
                source.folder,
                torch_dtype=getattr(torch, dtype),
                use_safetensors=None if allow_pickle else True,
                local_files_only=True,
                trust_remote_code=source.trusted,
            )
            return pipe.to(device)
        except Exception as e:  # noqa: BLE001 - any library's, about files that anybody wrote
            if own_code.refused(e):
                raise own_code.refusal(f"a part of {source.name}") from None
            if is_out_of_memory(e):
                raise DeviceError(
                    f"{source.name} doesn't fit into the memory of {device}", hint="try `dtype` bfloat16"
                ) from None
            raise ModelError(f"{source.name} doesn't load: {_first_line(e)}") from None


def load_image_processor(source: Source) -> Any:
    """Load the processor that turns a picture into the model's pixels. Raises ModelError."""
    with _loading(source):
        from transformers import AutoImageProcessor

        try:
            return AutoImageProcessor.from_pretrained(
                source.folder, local_files_only=True, trust_remote_code=source.trusted
            )
        except Exception as e:  # noqa: BLE001 - any library's, about files that anybody wrote
            if own_code.refused(e):
                raise own_code.refusal(f"{source.folder}'s image processor") from None
            if not (source.folder / "preprocessor_config.json").is_file():
                raise ModelError(
                    f"{source.folder} has no image processor", hint="preprocessor_config.json belongs in it"
                ) from None
            raise ModelError(f"{source.folder}'s image processor doesn't load: {_first_line(e)}") from None


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


def _check_type(source: Source, known: Any, loader: Any, what: str, hint: str) -> None:
    config = source.config()
    kind = config.get("model_type")
    if kind not in known and not (source.trusted and own_code.of_model(config, loader.__name__)):
        raise UnsupportedModelError(
            f"{source.name}: transformers has no {what} of type {kind or '(none named)'}", hint=hint
        )


def _load(loader: Any, source: Source, device: str, dtype: str, allow_pickle: bool) -> PreTrainedModel:
    with importing():
        import torch
        import transformers.modeling_utils  # noqa: F401 - most of what any model's own module imports
    with _loading(source):
        safe = None if allow_pickle and not list(source.folder.glob("*.safetensors")) else True
        try:
            model, seen = _from_pretrained(
                loader,
                source.folder,
                dtype=getattr(torch, dtype),
                use_safetensors=safe,
                local_files_only=True,
                output_loading_info=True,
                trust_remote_code=source.trusted,
            )
            model = model.to(device)
        except Exception as e:  # noqa: BLE001 - any library's, about files that anybody wrote
            if own_code.refused(e):
                raise own_code.refusal(f"a part of {source.name}") from None
            if is_out_of_memory(e):
                raise DeviceError(
                    f"{source.name} doesn't fit into the memory of {device}", hint="try `dtype` bfloat16"
                ) from None
            if "mismatched" in str(e):
                raise ModelError(f"{source.name}'s weights have other shapes than its config.json says") from None
            raise ModelError(f"{source.name} doesn't load: {_first_line(e)}") from None
        if missing := sorted(seen["missing_keys"]):  # transformers would make them up
            raise ModelError(f"{source.name} lacks {len(missing)} of its weights, among them {missing[0]}")
        loaded: PreTrainedModel = model.eval()
        return loaded


def _from_pretrained(loader: Any, folder: Path, **options: Any) -> Any:
    """`loader.from_pretrained`, without work on tensors that have no values yet, where the model can be built so."""
    try:
        with skipped_meta_fills():
            return loader.from_pretrained(folder, **options)
    except (RuntimeError, NotImplementedError, TypeError) as e:
        if "meta" not in str(e):  # else its code mixes what has values with what has none
            raise
    return loader.from_pretrained(folder, **options)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return line if len(line) <= 200 else line[:200].rsplit(" ", 1)[0] + " …"


def same_vocabulary(a: Any, b: Any) -> str | None:
    """Why two tokenizers' ids don't mean the same, or None. Compares content: equal sizes prove nothing."""
    first, second = a.get_vocab(), b.get_vocab()
    if first == second:
        return None
    differ = sum(second.get(token) != i for token, i in first.items())
    return f"{differ} of {len(first)} tokens have other ids" if differ else f"{len(second) - len(first)} tokens more"
