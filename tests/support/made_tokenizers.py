"""Tokenizers of the two usual kinds, trained on a few sentences: byte-level, and pieces with a sign for the space."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SENTENCES = (
    "the fox and the dog and the old man went to the house",
    "a computer computes, and then the dog's computation ends.\n\nthe end",
    "naïve café — größer 日本語 😀 \t tabs  and   spaces",
)
END, BEGIN, ROLE = "<|end|>", "<|begin|>", "<|role|>"


@cache
def byte_level(size: int = 330, names: tuple[str, ...] = (END, ROLE)) -> Any:
    """A byte-level BPE: each text has its tokens, whatever its bytes."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(names),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=names[0], additional_special_tokens=list(names[1:]))


@cache
def pieces(size: int = 420, *, prefix: bool = False) -> Any:
    """A BPE over pieces with byte fallback, as Gemma's; with `prefix` it puts a space before a text, as Llama 2's."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))  # noqa: S106
    steps = [normalizers.Prepend("▁")] if prefix else []
    raw.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", BEGIN, END, *(f"<0x{byte:02X}>" for byte in range(256))]
    raw.train_from_iterator(
        SENTENCES[:2], trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    return _without_bytes_as_special(raw)


def _without_bytes_as_special(raw: Tokenizer) -> Any:
    """Bytes are ordinary tokens of the vocabulary; only the names stay special."""
    document = json.loads(raw.to_str())
    document["added_tokens"] = [t for t in document["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        bos_token=BEGIN,
        unk_token="<unk>",  # noqa: S106
    )


@cache
def letters(names: str) -> Any:
    """A byte-level tokenizer whose tokens are the given ASCII letters, in this order; pairs after a comma are merges."""
    single, *pairs = names.split(",")
    vocab = {name: i for i, name in enumerate([*single, *pairs])}
    raw = Tokenizer(models.BPE(vocab, [(pair[0], pair[1]) for pair in pairs]))
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)
