"""LangChain on an attached model. Needs `langchain-huggingface`: `tests/environments/integrations.py FOLDER langchain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.commands import PROMPT
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import dynx

if TYPE_CHECKING:
    from pathlib import Path

huggingface = pytest.importorskip("langchain_huggingface", reason="langchain-huggingface isn't installed")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]


def test_invoke_batch_and_stream_are_as_before(tiny_folder: Path) -> None:
    """`HuggingFacePipeline` gives the same texts, by all of its ways of asking."""
    answers = []
    for attach in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tiny_folder)
        if attach:
            dynx.attach(model)
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
        pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, max_new_tokens=24, do_sample=False)
        chain = huggingface.HuggingFacePipeline(pipeline=pipe)
        texts = [PROMPT, PROMPT[:9]]
        answers.append([chain.invoke(PROMPT), chain.batch(texts), "".join(chain.stream(PROMPT))])

    assert answers[0] == answers[1]
    assert all(answers[1])
    assert model.dynx.stats.reason is None
