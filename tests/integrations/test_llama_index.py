"""LlamaIndex on an attached model.

Needs `llama-index-llms-huggingface`: `tests/environments/integrations.py FOLDER llama-index`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.commands import CONTEXT, PROMPT
from transformers import AutoModelForCausalLM, AutoTokenizer

import dynx

if TYPE_CHECKING:
    from pathlib import Path

huggingface = pytest.importorskip("llama_index.llms.huggingface", reason="llama-index-llms-huggingface isn't installed")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]


def test_complete_and_stream_are_as_before(tiny_folder: Path) -> None:
    """`HuggingFaceLLM` gives the same texts, whole and in pieces."""
    answers = []
    for attach in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tiny_folder)
        if attach:
            dynx.attach(model)
        reader = huggingface.HuggingFaceLLM(
            model=model,
            tokenizer=AutoTokenizer.from_pretrained(tiny_folder),
            context_window=CONTEXT,
            max_new_tokens=24,
            generate_kwargs={"do_sample": False},
        )
        answers.append([reader.complete(PROMPT).text, [piece.text for piece in reader.stream_complete(PROMPT)][-1]])

    assert answers[0] == answers[1]
    assert all(answers[1])
    assert model.dynx.stats.reason is None
