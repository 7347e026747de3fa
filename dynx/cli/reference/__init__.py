"""Writes completions, man pages and the table of settings from the command tree, and JSON Schemas from dataclasses.

    python -m dynx.cli.reference            write completions/, man/, dynx/schemas/*.json and the table of settings in man/guides/
    python -m dynx.cli.reference --check    say which of them differ from their sources

`tree` reads the tree; `facts` holds what it can't know; `bash`, `zsh`, `fish`, `man` and `settings_table` each write one
format. What can be set by variables and files comes from `dynx.cli.settings`. `schemas` reads `dynx.schemas.documents`.
The files are committed and installed as they are. `dynx` itself never imports this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.cli.reference.bash import bash_completion
from dynx.cli.reference.fish import fish_completion
from dynx.cli.reference.man import man_pages
from dynx.cli.reference.tree import read_tree
from dynx.cli.reference.zsh import zsh_completion

if TYPE_CHECKING:
    from dynx.cli.reference.facts import Settings, Shipped
    from dynx.cli.reference.tree import Command

__all__ = ["read_tree", "reference_files"]


def reference_files(root: Command, shipped: Shipped, settings: Settings) -> dict[str, str]:
    """Return every generated file by its path in the repository.

    `shipped` are the models that dynx brings, by task; `settings` what can be set without typing it, by command.
    """
    name = root.path[0]
    return {
        f"completions/{name}.bash": bash_completion(root, shipped),
        f"completions/_{name}": zsh_completion(root, shipped),
        f"completions/{name}.fish": fish_completion(root, shipped),
        **{f"man/{page}": text for page, text in man_pages(root, settings).items()},
    }
