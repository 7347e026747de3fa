"""Run local AI models with less compute on easy inputs, under a stated and tested guarantee.

    import dynx

    answer = dynx.generate("Once upon a time", model="story")       # an Answer: text, stats
    for piece in dynx.load_generator("story").stream("The fox said"): ...  # loads once, streams

    for p in dynx.classify(["What a fine day"], model="mood"): ...  # Predictions: label, score, exit layer
    picture = dynx.draw("a lighthouse", model="./pipeline", seed=7)  # a Picture: pixels, stats

    dynx.attach(model, assistant=small)                             # any loaded transformers causal LM
    ids = model.generate(**inputs, max_new_tokens=100)              # and so in pipelines, streamers, servers
    dynx.attach(classifier, tokenizer)                              # a loaded classifier: rows exit early
    dynx.attach(pipe)                                               # a loaded pipeline of diffusers: fewer steps

Importing dynx loads nothing heavy; the names below are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynx.api import (
        Answer,
        Classifier,
        TextGenerator,
        attach,
        classify,
        detach,
        draw,
        generate,
        load_classifier,
        load_generator,
        load_image_generator,
    )
    from dynx.diffusion.generator import ImageGenerator

__version__ = "0.1.0.dev0"
__all__ = [
    "Answer",
    "Classifier",
    "ImageGenerator",
    "TextGenerator",
    "__version__",
    "attach",
    "classify",
    "detach",
    "draw",
    "generate",
    "load_classifier",
    "load_generator",
    "load_image_generator",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "ImageGenerator":
        from dynx.diffusion.generator import ImageGenerator

        return ImageGenerator
    if name in __all__:
        from dynx import api

        return getattr(api, name)
    raise AttributeError(f"module 'dynx' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
