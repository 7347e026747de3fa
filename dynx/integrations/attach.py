"""Attach dynx to an object of another library, by what it is; `detach` gives back what was there before."""

from __future__ import annotations

import sys
from typing import Any

from dynx.errors import UnsupportedModelError


def attach(model: Any, tokenizer: Any = None, **options: Any) -> Any:
    """Attach dynx to a language model, a classifier, a pipeline or a cross-encoder, and return the object."""
    if _is(model, "diffusers", "DiffusionPipeline"):
        from dynx.integrations import diffusers

        return diffusers.attach(model, **({} if tokenizer is None else {"tokenizer": tokenizer}), **options)
    inner, own = _inside(model)
    if inner is not None:
        if getattr(model, "task", None) == "token-classification":
            from dynx.integrations.transformers.token_classifier import options_of_pipeline

            options = options_of_pipeline(model) | options
        attach(inner, own if tokenizer is None else tokenizer, **options)
        return model
    if hasattr(model, "main_input_name"):
        from dynx.integrations.transformers.classifier import attach_classifier, is_classifier

        if is_classifier(model):
            return attach_classifier(model, tokenizer, **options)
        from dynx.integrations.transformers.token_classifier import attach_token_classifier, is_token_classifier

        if is_token_classifier(model):
            return attach_token_classifier(model, tokenizer, **options)
    if not hasattr(model, "generate") and not hasattr(model, "main_input_name"):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no generate, and is neither a classifier nor a pipeline",
            hint="attach takes models of transformers and pipelines of diffusers",
        )
    from dynx.integrations import transformers

    return transformers.attach(model, tokenizer=tokenizer, **options)


def detach(model: Any) -> Any:
    """Give an attached object its own methods back, and return it; any other stays as it is."""
    if _is(model, "diffusers", "DiffusionPipeline"):
        from dynx.integrations import diffusers

        return diffusers.detach(model)
    inner, _ = _inside(model)
    if inner is not None:
        detach(inner)
        return model
    if "dynx" not in getattr(model, "__dict__", {}):
        return model
    from dynx.integrations import transformers
    from dynx.integrations.transformers.classifier import detach_classifier

    return transformers.detach(detach_classifier(model))


def _inside(model: Any) -> tuple[Any, Any]:
    """Return the model of transformers inside a pipeline or a cross-encoder, and what prepares its inputs; None for others."""
    if _is(model, "sentence_transformers", "CrossEncoder"):
        return model.model, model.tokenizer
    if _is(model, "transformers", "Pipeline"):
        image = getattr(model, "image_processor", None)
        return model.model, image if model.task == "image-classification" else getattr(model, "tokenizer", None)
    return None, None


def _is(model: Any, library: str, name: str) -> bool:
    """Whether an object is of a library's class; the library isn't imported for it."""
    if library not in sys.modules:
        return False
    return any(c.__name__ == name and c.__module__.partition(".")[0] == library for c in type(model).__mro__)
