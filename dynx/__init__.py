"""dynx: local AI inference that spends less on easy inputs, with a stated and tested promise.

    import dynx

    answer = dynx.generate("Once upon a time", model="story")       # an Answer: text, receipt
    for piece in dynx.load("story").stream("The fox said"): ...     # loads once, streams

    for p in dynx.classify(["What a fine day"], model="mood"): ...  # Predictions: label, score, the layer it left after
    picture = dynx.draw("a lighthouse", model="./pipeline", seed=7)  # a Picture: pixels, receipt

    fast = dynx.wrap(model, assistant=small)                        # any transformers causal LM already loaded
    ids = fast.generate(input_ids, max_new_tokens=100)

Importing this loads nothing heavy; the names below arrive on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynx.api import (
        Answer,
        Labeller,
        Wrapped,
        Writer,
        classify,
        draw,
        generate,
        load,
        load_artist,
        load_classifier,
        wrap,
    )

__version__ = "0.1.0.dev0"
__all__ = [
    "Answer",
    "Labeller",
    "Wrapped",
    "Writer",
    "__version__",
    "classify",
    "draw",
    "generate",
    "load",
    "load_artist",
    "load_classifier",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from dynx import api

        return getattr(api, name)
    raise AttributeError(f"module 'dynx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
