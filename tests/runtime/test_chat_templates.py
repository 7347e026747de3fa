"""Templates rendered by jinja2 alone give transformers' text, and whatever they wouldn't is left to transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dynx.runtime.loading import chat_templates, kept_tokenizer
from tests.runtime.test_kept_tokenizer import never, whole

if TYPE_CHECKING:
    from pathlib import Path

CHATML = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system
You help.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

STRICT = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception('no system message') }}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('out of turn') }}{%- endif -%}
    {%- if message.content is none -%}{%- continue -%}{%- endif -%}
    {{ '<turn>' + message['role'] + ' ' + (message['content'] | trim) + '\n' + (message | tojson) }}
{%- endfor -%}
{%- if tools is not none %}tools{% endif %}
{%- if add_generation_prompt %}<turn>model{% endif %}"""

NAMED = """{%- set found = namespace(n=0) %}{% for m in messages %}{% set found.n = found.n + 1 %}
    {{ found.n }}: {{ m.content.split('</think>')[-1] }} {{ m['content'][::-1] }}
{% endfor %}"""

DATED = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"

MARKED = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"

BROKEN = "{{ messages[0]['nothing']['at_all'] }}"


@pytest.fixture
def made(tokenizer_folder: Path) -> Any:
    """A transformers tokenizer with special tokens."""
    return whole(tokenizer_folder)


def special(made: Any) -> dict[str, Any]:
    """Its special tokens."""
    return {name: value for name, value in made.special_tokens_map.items() if isinstance(value, str)}


@pytest.mark.parametrize(
    ("template", "alike"),
    [
        pytest.param(CHATML, True, id="chatml"),
        pytest.param(STRICT, True, id="strict"),
        pytest.param(NAMED, True, id="namespace"),
        pytest.param(DATED, False, id="dated"),
        pytest.param(MARKED, False, id="marked"),
        pytest.param(BROKEN, False, id="broken"),
        pytest.param(None, False, id="none"),
    ],
)
def test_a_template_counts_where_all_conversations_are_rendered_alike(made: Any, template: str, alike: bool) -> None:
    """One with the date, with marks of its own, or that renders nothing is left to transformers."""
    made.chat_template = template
    assert chat_templates.renders_alike(made, special(made)) is alike


def test_a_template_that_renders_otherwise_does_not_count(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison decides, not a list of templates."""
    made.chat_template = CHATML
    own = chat_templates.render
    monkeypatch.setattr(chat_templates, "render", lambda *a, **k: own(*a, **k).replace("Three", "3"))
    assert not chat_templates.renders_alike(made, special(made))


@pytest.mark.parametrize("template", [CHATML, STRICT, NAMED])
def test_a_kept_tokenizer_renders_conversations_without_transformers(tokenizer_folder: Path, template: str) -> None:
    """Ids are transformers'."""
    (tokenizer_folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    want = kept_tokenizer.load(tokenizer_folder, lambda: whole(tokenizer_folder))
    found = kept_tokenizer.load(tokenizer_folder, never)
    for messages in ([{"role": "user", "content": "Grüße\n "}], chat_templates.PROBES[2]):
        for begin in (True, False):
            given = {"add_generation_prompt": begin, "return_dict": True}
            assert (
                found.apply_chat_template(messages, **given)["input_ids"]
                == want.apply_chat_template(messages, **given)["input_ids"]
            )


@pytest.mark.parametrize(
    ("messages", "settings"),
    [
        ([{"role": "user", "content": "a", "name": "b"}], {}),
        ([{"role": "user", "content": None}], {}),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], {}),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], {"continue_final_message": True}),
        ([{"role": "user", "content": "a"}], {"tools": []}),
        ([{"role": "system", "content": "refused by the template"}], {}),
    ],
)
def test_everything_else_is_asked_of_transformers(
    tokenizer_folder: Path, messages: list[dict[str, Any]], settings: dict[str, Any]
) -> None:
    """More in a message than a text, continued answers, tools, and what the template refuses: errors are transformers'."""
    (tokenizer_folder / "chat_template.jinja").write_text(STRICT, encoding="utf-8")
    kept_tokenizer.load(tokenizer_folder, lambda: whole(tokenizer_folder))
    with pytest.raises(AssertionError, match="transformers was asked"):
        kept_tokenizer.load(tokenizer_folder, never).apply_chat_template(messages, return_dict=True, **settings)
