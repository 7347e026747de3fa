"""Prompts out of a tokenizer: whole words, whatever way a vocabulary marks them."""

from __future__ import annotations

import pytest
from support.pipelines import tokenizer

from dynx.diffusion.prompts import prompts, words


class Vocabulary:
    """A tokenizer that knows these tokens."""

    def __init__(self, *tokens: str) -> None:
        self._tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        """Token → id, in no order."""
        return {token: i for i, token in reversed(list(enumerate(self._tokens)))}


@pytest.mark.parametrize(
    "tokens",
    [
        ("<|start|>", "moon</w>", "app", "ing", "cat</w>", "of</w>", "moon</w>", "Cat</w>", "!</w>"),
        ("<s>", "Ġmoon", "app", "ing", "Ġcat", "Ġof", "ĠCat", "Ġ"),
        ("<pad>", "▁moon", "app", "ing", "▁cat", "▁of", "▁", "▁3d"),
        ("[CLS]", "moon", "##app", "##ing", "cat", "of", "…", ""),
    ],
    ids=["clip", "gpt-2", "sentencepiece", "wordpiece"],
)
def test_whole_words_in_the_order_of_ids(tokens: tuple[str, ...]) -> None:
    """Pieces of words, short ones, names and signs are left out."""
    assert words(Vocabulary(*tokens)) == ["moon", "cat"]


def test_words_of_a_real_tokenizer() -> None:
    """One of whole words, without marks."""
    assert words(tokenizer()) == ["red", "blue", "cat", "moon", "apple", "and", "the"]


def test_prompts_can_be_repeated() -> None:
    """One to three known words each, the same for the same seed; of a vocabulary without words, numbers."""
    made = prompts(tokenizer(), 50)

    assert made == prompts(tokenizer(), 50) != prompts(tokenizer(), 50, seed=1)
    assert {len(p.split()) for p in made} == {1, 2, 3}
    assert set(" ".join(made).split()) <= set(words(tokenizer()))
    assert prompts(Vocabulary("##x", "<s>"), 2) == ["picture 1", "picture 2"]
