"""What a wheel holds: the program and its manual, without the tools that only developers run."""

from __future__ import annotations

import ast
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import dynx

ROOT = Path(__file__).resolve().parent.parent
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEEL: dict[str, Any] = SETTINGS["tool"]["hatch"]["build"]["targets"]["wheel"]
TOOLS = ("dynx/cli/reference", "dynx/shipped/recipes")


def imported(path: Path) -> set[str]:
    """Every module that a file names in an import, at whatever depth; of `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def test_the_wheel_leaves_developers_tools_out() -> None:
    assert WHEEL["packages"] == ["dynx"]
    assert sorted(WHEEL["exclude"]) == sorted(TOOLS)
    for tool in TOOLS:
        assert (ROOT / tool / "__init__.py").is_file(), "it stays in the repository"


@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_in_the_wheel_imports_what_it_leaves_out(tool: str) -> None:
    name = tool.replace("/", ".")
    files = [f for f in (ROOT / "dynx").rglob("*.py") if not str(f.relative_to(ROOT)).startswith(TOOLS)]
    assert len(files) > 100
    found = [str(f) for f in files if any(m == name or m.startswith(f"{name}.") for m in imported(f))]
    assert not found


def test_each_manual_page_is_installed_and_no_guide_is_one() -> None:
    pages = {name: to for name, to in WHEEL["shared-data"].items() if name.split("/")[0] == "man"}
    assert pages == {f"man/{f.name}": f"share/man/man1/{f.name}" for f in (ROOT / "man").glob("*.1")}
    assert all((ROOT / name).is_file() for name in WHEEL["shared-data"])


BOUNDED = ("typer", "torch", "transformers", "diffusers", "torchmetrics", "tokenizers", "huggingface-hub")
"""What breaks dynx when it changes, as parts of it are subclassed or called from within."""


@pytest.mark.parametrize("name", BOUNDED)
def test_releases_that_are_not_known_yet_are_not_installed(name: str) -> None:
    """There is an upper bound, and what is installed here is within."""
    known = {one.name: one.specifier for one in map(Requirement, SETTINGS["project"]["dependencies"])}

    assert "<" in {part.operator for part in known[name]}
    assert known[name].contains(metadata.version(name), prereleases=True)


def test_the_version_and_its_classifier_agree() -> None:
    """A development release before 1.0 is an alpha version."""
    (status,) = [c for c in SETTINGS["project"]["classifiers"] if c.startswith("Development Status")]
    version = Version(dynx.__version__)

    assert (version.is_devrelease and version.major == 0) == status.endswith("3 - Alpha")
