"""A cross-encoder on an attached model.

Needs `sentence-transformers`: `tests/environments/integrations.py FOLDER sentence-transformers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.classifier_folders import sentences
from support.exits import EPS

import dynx

if TYPE_CHECKING:
    from pathlib import Path

library = pytest.importorskip("sentence_transformers", reason="sentence-transformers isn't installed")

pytestmark = [pytest.mark.usefixtures("known"), pytest.mark.filterwarnings("ignore")]

TEXTS = sentences(64, seed=5)


def test_a_cross_encoder_leaves_early(easy: Path) -> None:
    """`predict` gives the labels that `dynx classify` gives, in fewer layers, and its own ones once detached."""
    encoder = library.CrossEncoder(str(easy), device="cpu")
    own = encoder.predict(TEXTS, batch_size=32, convert_to_numpy=True)
    assert dynx.attach(encoder, max_disagreement=EPS) is encoder
    found = encoder.predict(TEXTS, batch_size=32, convert_to_numpy=True)
    attachment = encoder.model.dynx

    expected = list(dynx.load_classifier(str(easy), max_disagreement=EPS).classify(TEXTS))
    names = encoder.model.config.id2label
    assert [names[int(i)] for i in found.argmax(-1)] == [one.label for one in expected]
    assert attachment.stats.reason is None
    assert attachment.receipt.layers < attachment.depth * len(TEXTS)
    assert float((found.argmax(-1) != own.argmax(-1)).mean()) <= EPS

    dynx.detach(encoder)
    assert np.array_equal(encoder.predict(TEXTS, batch_size=32), own)


def test_pairs_are_told_from_single_texts(easy: Path) -> None:
    """The profile is about single texts: pairs with token types run the model's own forward."""
    encoder = library.CrossEncoder(str(easy), device="cpu")
    pairs = list(zip(TEXTS[:32], TEXTS[32:], strict=True))
    own = encoder.predict(pairs, batch_size=32)
    dynx.attach(encoder, max_disagreement=EPS)
    found = encoder.predict(pairs, batch_size=32)
    reason = encoder.model.dynx.stats.reason
    assert reason is None or ("pairs of texts" in reason and np.array_equal(found, own))
