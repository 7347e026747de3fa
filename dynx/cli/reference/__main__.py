"""Write the completions, man pages, table of settings and JSON Schemas, or check that they match their sources."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dynx import shipped
from dynx.cli.app import app
from dynx.cli.reference import reference_files
from dynx.cli.reference.schemas import schema_files
from dynx.cli.reference.settings_table import with_table
from dynx.cli.reference.tree import read_tree
from dynx.cli.settings import by_command

REPAIR = "python -m dynx.cli.reference"
CHECKOUT = Path(__file__).resolve().parents[3]
SETTINGS_PAGE = "man/guides/configuration.md"


def main(arguments: list[str] | None = None) -> int:
    """Run with the given arguments, or the process's; returns the exit code."""
    parser = argparse.ArgumentParser(prog=REPAIR, description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    parser.add_argument(
        "--root", type=Path, default=CHECKOUT, metavar="FOLDER", help="the checkout, by default this one"
    )
    options = parser.parse_args(arguments)
    root: Path = options.root
    if not (root / "pyproject.toml").is_file():
        sys.stderr.write(f"{root} is no source checkout: it has no pyproject.toml\n")
        return 1
    tree = read_tree(app)
    settings = by_command()
    files = reference_files(tree, shipped.by_task(), settings)
    page = root / SETTINGS_PAGE
    if page.is_file():
        files[SETTINGS_PAGE] = with_table(page.read_text(encoding="utf-8"), settings)
    schemas = schema_files()
    files |= schemas
    differing = [name for name, text in files.items() if not _holds(root / name, text)]
    written = [*(root / "man").glob(f"{tree.path[0]}*.1"), *(root / "dynx" / "schemas").glob("*.json")]
    stale = [name for name in sorted(str(path.relative_to(root)) for path in written) if name not in files]
    if options.check:
        for name in differing:
            source = "dynx.schemas.documents" if name in schemas else "the command tree"
            sys.stderr.write(f"{name} differs from {source}\n")
        for name in stale:
            what = "schema of no document" if name.endswith(".json") else "page of no command"
            sys.stderr.write(f"{name} is the {what}\n")
        if differing or stale:
            sys.stderr.write(f"repair with: {REPAIR}\n")
        return 1 if differing or stale else 0
    for name in differing:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(files[name].encode())
    for name in stale:
        (root / name).unlink()
    for name in (*differing, *stale):
        sys.stdout.write(f"{name}\n")
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


if __name__ == "__main__":
    sys.exit(main())
