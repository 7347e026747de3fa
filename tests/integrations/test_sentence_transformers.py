"""A cross-encoder on an attached model.

Needs `sentence-transformers`: `tests/environments/integrations.py FOLDER sentence-transformers`.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.classifier_folders import sentences
from support.exits import EPS
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import dynx

if TYPE_CHECKING:
    from pathlib import Path

library = pytest.importorskip("sentence_transformers", reason="sentence-transformers isn't installed")

pytestmark = [pytest.mark.usefixtures("known"), pytest.mark.filterwarnings("ignore")]

TEXTS = sentences(64, seed=5)
PAIRS = list(zip(TEXTS[:32], TEXTS[32:], strict=True))


def with_types(easy: Path, folder: Path) -> Path:
    """The same model with a tokenizer that marks which of two texts a token is of."""
    shutil.copytree(easy, folder)
    tokenizer = AutoTokenizer.from_pretrained(easy)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


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
    encoder = library.CrossEncoder(str(with_types(easy, tmp_path / "typed")), device="cpu")
    own = encoder.predict(PAIRS, batch_size=32)
    dynx.attach(encoder, max_disagreement=EPS)
    assert np.array_equal(encoder.predict(PAIRS, batch_size=32), own)
    assert encoder.model.dynx.stats.reason == "pairs of texts are given, and the profile is about single ones"
