"""Loads what `source` found, by transformers and diffusers: safetensors and no code, unless told otherwise."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dynx.errors import DeviceError, DynxError, ModelError, UnsupportedModelError
from dynx.runtime import lora, own_code
from dynx.runtime.lazy_imports import skipped_meta_fills
from dynx.runtime.loading import kept_tokenizer, plain_settings
from dynx.runtime.loading.check import (
    CLASSIFIERS,
    SUPPORTED,
    ClassifierKind,
    check_causal_lm,
    check_classifier,
    check_pipeline,
)
from dynx.runtime.loading.multimodal import text_part
from dynx.runtime.loading.quiet import importing, loading
from dynx.runtime.loading.unpacked import load_unpacked, needs_unpacking
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dynx.runtime.gguf.blocks import StoredWeights
    from dynx.runtime.loading.source import Source

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Load the folder's tokenizer. Raises ModelError."""
    with importing():
        from transformers import AutoTokenizer
    with loading(source.folder, trusted=source.trusted):
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
        if source.adapters and not getattr(tokenizer, "chat_template", None):
            tokenizer.chat_template = lora.chat_template(source.adapters)
        return tokenizer


def load_text_tokenizer(source: Source) -> Any:
    """`load_tokenizer` for what turns texts into ids and back: without transformers, where it was loaded before."""
    if source.adapters or source.trusted:
        return load_tokenizer(source)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return kept_tokenizer.load(source.folder, lambda: load_tokenizer(source))


def generation_config(source: Source) -> Any:
    """Read the folder's decoding settings, from a file of their own or, in older folders, from config.json.

    None where it says nothing. Raises ModelError for a file that can't be read.
    """
    file = source.folder / "generation_config.json"
    if (plain := plain_settings.read(file)) is not None:
        return plain
    with loading(source.folder, trusted=source.trusted):
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


def load_causal_lm(
    source: Source, *, device: str, dtype: str, allow_pickle: bool = False, packed: bool = False
) -> PreTrainedModel:
    """Load the model in evaluation mode on `device` ("cpu", "cuda:0", …) in `dtype` ("float32", …), its adapters folded in.

    Quantized weights are unpacked, unless `packed` leaves them to their package. Of a multimodal model the text part is loaded.
    Raises ModelError, UnsupportedModelError or DeviceError.
    """
    check_causal_lm(source, allow_pickle=allow_pickle)
    if source.is_exported:
        raise UnsupportedModelError(f"{source.name} is an OpenVINO model, which PyTorch can't run")
    with importing():
        from transformers import AutoModelForCausalLM
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

        _check_text_type(source, KNOWN, AutoModelForCausalLM)
    if packed:
        return _load(AutoModelForCausalLM, source, device, dtype, allow_pickle, device_map={"": device})
    if source.file is not None:
        model = _load_gguf(source, source.file, device, dtype)
    else:
        model = _load(AutoModelForCausalLM, source, device, dtype, allow_pickle, unpack=needs_unpacking(source))
    if source.adapters:
        lora.fold(model, source.adapters, source.base)
    return model


def _check_text_type(source: Source, known: Any, loader: Any) -> None:
    part = text_part(source.config())
    if part is None:
        _check_type(source, known, loader, "causal language model", SUPPORTED)
    elif part.runs_as not in known:
        raise UnsupportedModelError(
            f"{source.name} reads more than text, and its text part ({part.type or 'of no named type'}) can't run alone",
            hint=SUPPORTED,
        )


def load_classifier(
    source: Source, kind: ClassifierKind, *, device: str, dtype: str, allow_pickle: bool = False
) -> PreTrainedModel:
    """Load a classifier of texts or images, as `load_causal_lm` loads a language model."""
    check_classifier(source, allow_pickle=allow_pickle)
    with importing():
        loader = _classifier_loader(source, kind)
    return _load(loader, source, device, dtype, allow_pickle)


def outline_classifier(source: Source, kind: ClassifierKind) -> PreTrainedModel:
    """Make a classifier without reading its weights: modules and config, on the device "meta". Raises ModelError."""
    with importing():
        import torch
        from transformers import AutoConfig

        loader = _classifier_loader(source, kind)
    with loading(source.folder, trusted=source.trusted):
        try:
            config = AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=source.trusted)
            with torch.device("meta"):
                outline: PreTrainedModel = loader.from_config(
                    config, dtype=torch.float32, trust_remote_code=source.trusted
                )
        except Exception as e:  # noqa: BLE001 - any library's, about files that anybody wrote
            if own_code.refused(e):
                raise own_code.refusal(f"a part of {source.name}") from None
            raise ModelError(f"{source.name} doesn't load: {_first_line(e)}") from None
    return outline.eval()


def _classifier_loader(source: Source, kind: ClassifierKind) -> Any:
    import transformers
    from transformers.models.auto import modeling_auto

    if kind == "image":
        known = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        loader: Any = transformers.AutoModelForImageClassification
    elif kind == "tokens":
        known = modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES
        loader = transformers.AutoModelForTokenClassification
    else:
        known = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
        loader = transformers.AutoModelForSequenceClassification
    _check_type(source, known, loader, "token classifier" if kind == "tokens" else f"{kind} classifier", CLASSIFIERS)
    return loader


def load_pipeline(source: Source, *, device: str, dtype: str, allow_pickle: bool = False) -> Any:
    """Load a diffusers pipeline on `device` in `dtype`. Raises ModelError, UnsupportedModelError or DeviceError."""
    check_pipeline(source, allow_pickle=allow_pickle)
    with loading(source.folder, trusted=source.trusted):
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
    with loading(source.folder, trusted=source.trusted):
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


def _check_type(source: Source, known: Any, loader: Any, what: str, hint: str) -> None:
    config = source.config()
    kind = config.get("model_type")
    if kind not in known and not (source.trusted and own_code.of_model(config, loader.__name__)):
        raise UnsupportedModelError(
            f"{source.name}: transformers has no {what} of type {kind or '(none named)'}", hint=hint
        )


def _load(
    loader: Any, source: Source, device: str, dtype: str, allow_pickle: bool, *, unpack: bool = False, **options: Any
) -> PreTrainedModel:
    with importing():
        import torch
        import transformers.modeling_utils  # noqa: F401 - most of what any model's own module imports
    with loading(source.folder, trusted=source.trusted):
        safe = None if allow_pickle and not list(source.folder.glob("*.safetensors")) else True
        try:
            if unpack:
                model, seen = load_unpacked(loader, source, getattr(torch, dtype))
            else:
                model, seen = _from_pretrained(
                    loader,
                    source.folder,
                    dtype=getattr(torch, dtype),
                    use_safetensors=safe,
                    local_files_only=True,
                    output_loading_info=True,
                    trust_remote_code=source.trusted,
                    **options,
                )
            model = model if options else model.to(device)
        except DynxError:
            raise
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


def _load_gguf(source: Source, file: Path, device: str, dtype: str) -> PreTrainedModel:
    """Allocate the model that a GGUF file's description names, and write the file's values into it."""
    with importing():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
        from transformers.initialization import no_init_weights
    from dynx.runtime.gguf.header import read_header
    from dynx.runtime.gguf.tensors import fill

    with loading(source.folder, trusted=source.trusted):
        try:
            config = AutoConfig.from_pretrained(source.folder, local_files_only=True)
            with no_init_weights():
                model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
            model.tie_weights()
            fill(model, read_header(file), source.name)
            model.generation_config = GenerationConfig.from_pretrained(source.folder, local_files_only=True)
            loaded: PreTrainedModel = model.to(device).eval().requires_grad_(requires_grad=False)
        except (ModelError, DeviceError):
            raise
        except Exception as e:  # noqa: BLE001 - any library's, about files that anybody wrote
            if is_out_of_memory(e):
                raise DeviceError(
                    f"{source.name} doesn't fit into the memory of {device}", hint="try `dtype` bfloat16"
                ) from None
            raise ModelError(f"{source.name} doesn't load: {_first_line(e)}") from None
        return loaded


def stored_weights(source: Source) -> StoredWeights | None:
    """Return the weights of a GGUF file as they are stored; None for other models."""
    if source.file is None:
        return None
    from dynx.runtime.gguf.blocks import StoredWeights
    from dynx.runtime.gguf.header import read_header

    return StoredWeights(read_header(source.file), source.name)


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
