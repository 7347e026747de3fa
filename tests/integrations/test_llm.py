"""The plugin of `llm`: models, streaming, conversations, usage.

Needs `dynx[llm]`: `tests/environments/integrations.py FOLDER llm`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import CHAT, PROMPT, ROOT
from support.entry_points import declare

import dynx

if TYPE_CHECKING:
    from pathlib import Path

llm = pytest.importorskip("llm", reason="llm isn't installed")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("alone")]


def model(folder: Path) -> Any:
    """The plugin's model for a folder."""
    from dynx.integrations.llm import DynxModel

    return DynxModel(str(folder))


@pytest.fixture
def chatty(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model with a chat template."""
    made = shutil.copytree(tiny_folder, tmp_path / "chatty", ignore=shutil.ignore_patterns("drafter"))
    (made / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    return made


def test_an_answer_is_dynxs(tiny_folder: Path) -> None:
    """Text, pieces, usage and what it took."""
    want = dynx.generate(PROMPT, model=str(tiny_folder), max_new_tokens=30)
    response = model(tiny_folder).prompt(PROMPT, max_tokens=30)
    pieces = list(response)

    assert "".join(pieces) == want.text
    assert len(pieces) > 5
    assert response.usage().output == len(want.tokens)
    assert response.usage().input == want.stats.prompt_tokens
    assert response.response_json["finish_reason"] == "length"


def test_options_are_honoured(tiny_folder: Path) -> None:
    """A seed repeats a sampled text; nonsense is an error that names the option."""
    made = model(tiny_folder)
    texts = {made.prompt(PROMPT, max_tokens=20, temperature=1.2, top_k=20, seed=4).text() for _ in range(2)}

    assert len(texts) == 1
    assert texts != {made.prompt(PROMPT, max_tokens=20).text()}
    with pytest.raises(ValueError, match="temperature"):
        made.prompt(PROMPT, temperature=-1).text()


def test_a_conversation_goes_through_the_template(chatty: Path) -> None:
    """System prompt, earlier turns and answers, then the new turn."""
    conversation = model(chatty).conversation()
    first = conversation.prompt("Who lives there?", system="Be brief.", max_tokens=12)
    told = "[system] Be brief.\n[user] Who lives there?\n[assistant] "
    assert first.text() == dynx.generate(told, model=str(chatty), max_new_tokens=12).text
    second = conversation.prompt("And then?", max_tokens=12)
    told += f"{first.text()}\n[user] And then?\n[assistant] "
    second.text()

    tokens = dynx.load_generator(str(chatty)).generate(told, max_new_tokens=1).stats.prompt_tokens
    assert second.usage().input == tokens


def test_a_base_model_goes_on_with_the_text(tiny_folder: Path) -> None:
    """Without a template the conversation is one text."""
    conversation = model(tiny_folder).conversation()
    first = conversation.prompt(PROMPT, max_tokens=8).text()
    second = conversation.prompt(" And", max_tokens=8).text()

    assert second == dynx.generate(f"{PROMPT}{first} And", model=str(tiny_folder), max_new_tokens=8).text


def test_what_goes_wrong_is_an_error_of_llms(tiny_folder: Path, chatty: Path) -> None:
    """One line, not a traceback."""
    with pytest.raises(llm.ModelError, match="no folder"):
        model(tiny_folder / "nowhere").prompt("hi").text()
    with pytest.raises(llm.ModelError, match="context"):
        model(tiny_folder).prompt("the fox " * 300).text()
    with pytest.raises(llm.ModelError, match="no such role"):
        model(chatty).prompt("hi", system="forbidden").text()


def test_the_command_finds_the_plugin(tmp_path: Path) -> None:
    """`llm models` lists story, and `llm -m dynx/story` writes what `dynx generate` writes."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(declare(tmp_path / "site")), str(ROOT), *sys.path]),
        "LLM_USER_PATH": str(tmp_path / "user"),
    }

    def run(*arguments: str) -> str:
        code = "import sys; from llm.cli import cli; cli()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=240,
        ).stdout

    assert "dynx/story" in run("models")
    text = run("-m", "dynx/story", "Once upon a time", "-o", "max_tokens", "20")
    assert text.strip() == dynx.generate("Once upon a time", max_new_tokens=20).text.strip()
