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
    from pathlib import Path

BANNED = re.compile(
    r"\b(guess(es|er|ed|ing)?|hears?|is told|are told|asks? for|drawn by lot|went deep|by itself alone|so many|that very|"
    r"(?<!there )is no (number|JSON|file|folder|terminal|text|setting)|means nothing|wants? (a|an|one|--?\w+)|"
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


def modules() -> Iterator[tuple[Path, ast.Module]]:
    """Each module of the package that a user or a reader of the library meets."""
    for path in sorted((ROOT / "dynx").rglob("*.py")):
        if not {"reference", "recipes"} & set(path.parts):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def banned(path: Path, text: str) -> bool:
    """Whether a text breaks the rule; in the libraries, kernels are those of processors, and settings may ask for things."""
    library = not path.is_relative_to(ROOT / "dynx" / "cli")
    return any(
        not (library and found[0].lower() in ("kernels", "ask for", "asks for")) for found in BANNED.finditer(text)
    )


def messages() -> Iterator[tuple[Path, str, str]]:
    """Each text of more than a word in the code, docstrings aside, with its file and line; {…} where values go."""
    for path, module in modules():
        docstrings = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
        for node in ast.walk(module):
            if isinstance(node, ast.JoinedStr):
                parts = (str(v.value) if isinstance(v, ast.Constant) else "{…}" for v in node.values)
                yield path, f"{path.name}:{node.lineno}", "".join(parts)
            elif isinstance(node, ast.Constant) and id(node) not in docstrings and " " in str(node.value):
                yield path, f"{path.name}:{node.lineno}", str(node.value)


def summaries() -> Iterator[tuple[Path, str, str]]:
    """Each docstring's summary."""
    for path, module in modules():
        for node in ast.walk(module):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield path, f"{path.name}:{getattr(node, 'lineno', 1)}", text.splitlines()[0]


@pytest.mark.parametrize(("where", "text"), list(helps()))
def test_help_is_plain(where: str, text: str) -> None:
    """A help text is sentences of known words."""
    assert re.fullmatch(r"[A-Z-].*\.", text, re.DOTALL) or text.startswith(("generate,", "auto,")), (where, text)
    assert not BANNED.search(text), (where, text)


def test_messages_are_plain() -> None:
    """A message says what is wrong in the field's words."""
    found = list(messages())
    assert len(found) > 2000
    assert [(where, text) for path, where, text in found if banned(path, text)] == []


def test_summaries_are_plain() -> None:
    """A docstring's summary needs no solving."""
    found = list(summaries())
    assert len(found) > 1500
    assert [(where, text) for path, where, text in found if banned(path, text)] == []


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", *(f"man/guides/{p.name}" for p in sorted((ROOT / "man" / "guides").glob("*.md")))],
)
def test_pages_are_plain(page: str) -> None:
    """README and guides use the glossary's terms; only the glossary lists what they replaced."""
    text = (ROOT / page).read_text(encoding="utf-8").split(OLDER_WORDS)[0]
    assert [line for line in text.splitlines() if BANNED.search(line)] == []
