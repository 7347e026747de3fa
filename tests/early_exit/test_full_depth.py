"""Models that exits can't be attached to: they run as one piece, padded only where padding changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from dynx.early_exit.attach.full_depth import FullDepthModel

PAD, END = 1, 2
IDS = torch.tensor([[5, 6, 7, END, PAD, PAD], [8, 9, 10, 11, 12, END], [4, END, PAD, PAD, PAD, PAD]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS != PAD).long()}

BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "eos_token_id": END,
}
FNET: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def model(kind: str, options: dict[str, Any]) -> Any:
    """A random classifier whose logits depend on its input."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=64, pad_token_id=PAD, initializer_range=0.2, **options)
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize(("kind", "options", "merges"), [("bart", BART, True), ("fnet", FNET, False)])
def test_lengths_go_together_only_where_padding_changes_nothing(
    kind: str, options: dict[str, Any], merges: bool
) -> None:
    """BART masks what is padded; FNet mixes all places with each other."""
    assert FullDepthModel(model(kind, options), "text", BATCH).merges_lengths is merges


def test_it_answers_as_the_model_does_and_in_no_other_way() -> None:
    """Logits are the model's; parts of it can't be had."""
    own = model("bart", BART)
    whole = FullDepthModel(own, "text", BATCH)
    with torch.no_grad():
        assert torch.equal(whole.run(BATCH).logits, own(**BATCH).logits)
    with pytest.raises(ValueError, match="in parts"):
        whole.run(BATCH, stop=1)
    assert whole.depth == own.config.num_hidden_layers


def test_one_text_says_nothing_about_padding() -> None:
    """So nothing is padded then."""
    one = {name: value[:1] for name, value in BATCH.items()}

    assert not FullDepthModel(model("bart", BART), "text", one).merges_lengths
