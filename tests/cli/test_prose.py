"""User-visible text is plain English in the field's terms: help, messages of the command line, README and guides."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest
from support.commands import ROOT

from dynx.cli.app import app
from dynx.cli.reference.tree import read_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

BANNED = re.compile(
    r"\b(guess(es|er|ed|ing)?|hears?|is told|are told|asks? for|drawn by lot|went deep|by itself alone|so many|that very|"
    r"is no (number|JSON|file|folder|terminal|text|setting)|means nothing|wants? (a|an|one|--?\w+)|"
    r"nothing is promised|the author's|kernels|wish)\b",
    re.IGNORECASE,
)
"""Home-made words, machines as people, and translated syntax."""

OLDER_WORDS = "## Older words"
"""Where the glossary's own list of replaced words begins."""


def helps() -> Iterator[tuple[str, str]]:
    """Each help text with where it stands."""
    for command in read_tree(app).walk():
        yield command.name, command.summary
        for parameter in (*command.options, *command.arguments):
            yield f"{command.name} {getattr(parameter, 'long', parameter.metavar)}", parameter.help


def messages() -> Iterator[tuple[str, str]]:
    """Each message that the command line raises or prints, with its file and line; {…} where values go."""
    for path in sorted((ROOT / "dynx" / "cli").rglob("*.py")):
        if "reference" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if not (name.endswith(("Error", "Failed", "Undecided")) or name in ("warn", "say", "detail")):
                continue
            for given in (*node.args, *(keyword.value for keyword in node.keywords)):
                if isinstance(given, ast.JoinedStr):
                    parts = (str(v.value) if isinstance(v, ast.Constant) else "{…}" for v in given.values)
                    yield f"{path.name}:{node.lineno}", "".join(parts)
                elif isinstance(given, ast.Constant) and isinstance(given.value, str):
                    yield f"{path.name}:{node.lineno}", given.value


@pytest.mark.parametrize(("where", "text"), list(helps()))
def test_help_is_plain(where: str, text: str) -> None:
    """A help text is sentences of known words."""
    assert re.fullmatch(r"[A-Z-].*\.", text, re.DOTALL) or text.startswith(("generate,", "auto,")), (where, text)
    assert not BANNED.search(text), (where, text)


def test_messages_are_plain() -> None:
    """A message says what is wrong in the field's words."""
    found = list(messages())
    assert len(found) > 150
    assert [(where, text) for where, text in found if BANNED.search(text)] == []


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", *(f"man/guides/{p.name}" for p in sorted((ROOT / "man" / "guides").glob("*.md")))],
)
def test_pages_are_plain(page: str) -> None:
    """README and guides use the glossary's terms; only the glossary lists what they replaced."""
    text = (ROOT / page).read_text(encoding="utf-8").split(OLDER_WORDS)[0]
    assert [line for line in text.splitlines() if BANNED.search(line)] == []
