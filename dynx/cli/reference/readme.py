"""The parts of README.md between marks, which list what can be set."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

from dynx.cli.reference import facts

if TYPE_CHECKING:
    from dynx.cli.reference.facts import Settings

WIDTH = 140
MARKS = re.compile(r"(<!-- settings[^>]*-->\n).*?(<!-- end of settings -->)", re.DOTALL)


def readme(text: str, settings: Settings) -> str:
    """The README with its marked part written anew; as it was, where it has none."""
    table = settings_table(settings)
    return MARKS.sub(lambda found: f"{found[1]}{table}{found[2]}", text)


def settings_table(settings: Settings) -> str:
    """What can be set, by table of `dynx.toml`."""
    common = [setting for setting in next(iter(settings.values())).values() if setting.shared]
    rows = [("(head)", "DYNX_…", [setting.key for setting in common])]
    rows += [
        (f"[{name}]", f"DYNX_{name.upper()}_…", [key for key, setting in known.items() if not setting.shared])
        for name, known in settings.items()
    ]
    lines = [f"| `{where}` | `{start}` | {', '.join(keys)} |" for where, start, keys in rows]
    head = ["| in `dynx.toml` | variables | keys |", "| --- | --- | --- |"]
    words = textwrap.wrap(facts.PRECEDENCE, WIDTH)
    return "\n".join([*words, "", "```toml", *facts.CONFIGURATION.splitlines(), "```", "", *head, *lines, ""])
