"""Tiny random classifiers of pairs on disk, whose tokenizers mark both texts as their architectures do, and pairs for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from support.classifiers import classifier
from support.commands import SENTENCES, train_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

VOCAB = 404
KINDS = ("bert", "roberta", "deberta-v2", "modernbert", "distilbert")
TYPED = ("bert", "deberta-v2")
"""Architectures whose tokenizers mark which of the two texts a token is of."""

NLI = {0: "entailment", 1: "neutral", 2: "contradiction"}
WORDS = " ".join(SENTENCES).split()


def pair_tokenizer(kind: str, limit: int = 60) -> Any:
    """A byte-level tokenizer that frames texts by a first token and separators; `limit` is the longest pair."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer(VOCAB - 4)
    tokenizer.add_special_tokens(
        {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    )
    double = "[SEP] [SEP]" if kind == "roberta" else "[SEP]"
    second = 1 if kind in TYPED else 0
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A {double} $B:{second} [SEP]:{second}",
        special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.model_max_length = limit
    tokenizer.model_input_names = ["input_ids", *(["token_type_ids"] if kind in TYPED else []), "attention_mask"]
    return tokenizer


def write_pair_classifier(
    folder: Path, kind: str = "bert", *, labels: dict[int, str] | None = None, easy: bool = False, **changes: Any
) -> Path:
    """A classifier of pairs; without labels one score, as a cross-encoder has. An `easy` one knows most answers early."""
    tokenizer = pair_tokenizer(kind)
    names = labels or {0: "LABEL_0"}
    settings = {"vocab_size": VOCAB, "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 512}
    model = classifier(kind, **settings, type_vocab_size=2, **changes)
    if easy:
        damp(model)
    model.config.id2label, model.config.label2id = names, {name: i for i, name in names.items()}
    head = _head(model, len(names))
    model.num_labels = len(names)
    head.out_features = len(names)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def damp(model: Any) -> None:
    """Have a BERT's blocks after the first hardly change anything, so that early estimates are worth something."""
    import torch

    with torch.no_grad():
        for layer in model.bert.encoder.layer[1:]:
            for part in (layer.attention.output, layer.output):
                part.dense.weight.mul_(0.03)
                part.dense.bias.zero_()
                part.LayerNorm.weight.fill_(1)
                part.LayerNorm.bias.zero_()


def _head(model: Any, outputs: int) -> Any:
    """Cut the last layer down to as many outputs."""
    import torch

    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight = torch.nn.Parameter(last.weight[:outputs].clone())
        last.bias = torch.nn.Parameter(last.bias[:outputs].clone())
    return last


def pairs(count: int, seed: int = 0, *, longest: int = 30) -> list[tuple[str, str]]:
    """Different pairs, some of them longer than the models take."""
    rng = np.random.default_rng(seed)

    def text(number: int) -> str:
        return f"{number} " + " ".join(rng.choice(WORDS, int(rng.integers(1, longest))))

    return [(text(i), text(i + 1)) for i in range(count)]


def queries(count: int, documents: int, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Queries with different documents."""
    rng = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(rng.choice(WORDS, int(rng.integers(2, 12))))

    return [(f"{i} {text()}", [f"{d} {text()}" for d in range(documents)]) for i in range(count)]


def fix_group_costs(monkeypatch: Any) -> None:
    """Every block costs the same, and the clock says 1.5 times as fast."""
    from dynx.early_exit import group_calibrate
    from dynx.runtime.certify import Costs

    def measured(stages: Any, *_: Any, **__: Any) -> Costs:
        return Costs(tuple(d / stages.depth for d in stages.borders), 1.0, tuple(0.02 for _ in stages.borders))

    monkeypatch.setattr(group_calibrate, "measure_stage_costs", measured)
    monkeypatch.setattr(group_calibrate, "_confirm", lambda *_: (1.5, 1.5, 1.5))
