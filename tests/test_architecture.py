"""The package keeps to its architecture: the contracts in pyproject.toml hold, and no modules import each other in a circle.

Imports under TYPE_CHECKING and inside functions count as any other.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

grimp = pytest.importorskip("grimp")
pytest.importorskip("importlinter")

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dynx"


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Module to the modules that it imports directly."""
    graph = grimp.build_graph("dynx", cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def test_the_contracts_hold(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """import-linter finds layers in order, tasks independent, `setup` private, and no circle among sibling packages."""
    from importlinter import cli

    monkeypatch.chdir(ROOT)
    code = cli.lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert code == 0, capsys.readouterr().out


def test_no_circle_between_modules(imports: dict[str, set[str]]) -> None:
    """No module reaches itself by imports."""
    left = {module: set(found) for module, found in imports.items()}
    while free := [module for module, found in left.items() if not found & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}, f"these import each other: {sorted(left)}"


def texts(path: Path) -> Iterator[ast.Constant]:
    """Yield a module's string literals without its docstrings and the strings under constants."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node


def test_flags_are_named_on_the_command_line_alone() -> None:
    """No text of a library names an option: parameters stand between backquotes. Schemas describe what commands print."""
    libraries = [
        p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in {"cli", "schemas", "shipped"}
    ]
    found = [
        f"{path.relative_to(ROOT)}:{text.lineno}: {text.value}"
        for path in libraries
        for text in texts(path)
        if re.search(r"(^|[\s('`])--[a-z]", text.value)
    ]
    assert found == []


def test_modules_are_small_and_the_application_only_registers() -> None:
    """No module passes 500 lines, and the Typer application 100."""
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {str(p): n for p, n in lines.items() if n > 500 and "recipes" not in p.parts} == {}
    assert lines[PACKAGE / "cli" / "app.py"] <= 100
