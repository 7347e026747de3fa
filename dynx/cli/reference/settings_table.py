"""Write the part between marks of a Markdown page that lists every setting."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

from dynx.cli.reference import facts

if TYPE_CHECKING:
    from dynx.cli.reference.facts import Settings

WIDTH = 140
MARKS = re.compile(r"(<!-- settings[^>]*-->\n).*?(<!-- end of settings -->)", re.DOTALL)


def with_table(text: str, settings: Settings) -> str:
    """Return the page with its marked part rewritten, or unchanged where it has no marks."""
    table = settings_table(settings)
    return MARKS.sub(lambda found: f"{found[1]}{table}{found[2]}", text)


def settings_table(settings: Settings) -> str:
    """Return the precedence, an example file and the keys of each table of `dynx.toml`, as Markdown."""
    common = [setting for setting in next(iter(settings.values())).values() if setting.shared]
    rows = [("(top)", "DYNX_…", [setting.key for setting in common])]
    rows += [
        (f"[{name}]", f"DYNX_{name.upper()}_…", [key for key, setting in known.items() if not setting.shared])
        for name, known in settings.items()
    ]
    lines = [f"| `{where}` | `{start}` | {', '.join(keys)} |" for where, start, keys in rows]
    head = ["| in `dynx.toml` | variables | keys |", "| --- | --- | --- |"]
    words = textwrap.wrap(facts.PRECEDENCE, WIDTH)
    return "\n".join([*words, "", "```toml", *facts.CONFIGURATION.splitlines(), "```", "", *head, *lines, ""])
