"""A cross-encoder on an attached model.

Needs `sentence-transformers`: `tests/environments/integrations.py FOLDER sentence-transformers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.classifier_folders import sentences, with_token_types
from support.exits import EPS, assembled, keep, learned

import dynx

if TYPE_CHECKING:
    from pathlib import Path

library = pytest.importorskip("sentence_transformers", reason="sentence-transformers isn't installed")

pytestmark = [pytest.mark.usefixtures("known"), pytest.mark.filterwarnings("ignore")]

TEXTS = sentences(64, seed=5)
PAIRS = list(zip(TEXTS[:32], TEXTS[32:], strict=True))


def test_a_cross_encoder_leaves_early(easy: Path) -> None:
    """`predict` takes fewer layers, few labels differ, and its own scores come back once it is detached."""
    encoder = library.CrossEncoder(str(easy), device="cpu")  # its tokenizer doesn't mark the second text
    own = encoder.predict(PAIRS, batch_size=32)
    assert dynx.attach(encoder, max_disagreement=EPS) is encoder
    found = encoder.predict(PAIRS, batch_size=32)

    attachment = encoder.model.dynx
    assert attachment.why_full_depth is None
    assert attachment.stats.reason is None
    assert attachment.receipt.layers < attachment.depth * len(PAIRS)
    assert found.shape == own.shape
    assert float((found.argmax(-1) != own.argmax(-1)).mean()) <= EPS

    dynx.detach(encoder)
    assert np.array_equal(encoder.predict(PAIRS, batch_size=32), own)


def test_pairs_with_token_types_run_the_models_own_forward(easy: Path, tmp_path: Path) -> None:
    """The profile is about single texts, whose token types are all the same."""
    encoder = library.CrossEncoder(str(with_token_types(easy, tmp_path / "typed")), device="cpu")
    own = encoder.predict(PAIRS, batch_size=32)
    dynx.attach(encoder, max_disagreement=EPS)
    assert np.array_equal(encoder.predict(PAIRS, batch_size=32), own)
    assert encoder.model.dynx.stats.reason == "pairs of texts are given, and the profile is about single ones"


def test_a_cross_encoder_of_marked_pairs_leaves_early(easy: Path, steady: None, tmp_path: Path) -> None:
    """Under a profile that was calibrated on pairs."""
    folder = with_token_types(easy, tmp_path / "typed")
    lessons = list(zip(sentences(300, seed=8), sentences(300, seed=9), strict=True))
    keep(learned(assembled(folder, max_disagreement=EPS, profile="none", pairs=True), lessons))
    encoder = library.CrossEncoder(str(folder), device="cpu")
    pairs = list(zip(sentences(200, seed=5), sentences(200, seed=6), strict=True))
    own = encoder.predict(pairs, batch_size=32)
    dynx.attach(encoder, max_disagreement=EPS)
    found = encoder.predict(pairs, batch_size=32)
    attachment = encoder.model.dynx
    assert attachment.stats.reason is None
    assert attachment.receipt.layers < attachment.depth * len(pairs)
    assert float((found.argmax(-1) != own.argmax(-1)).mean()) <= EPS
