"""Makes a model's folder bring dynx along: transformers, told to trust it, then decodes with drafts wherever it is loaded.

`from_pretrained(folder, trust_remote_code=True)` puts the function of `custom_generate/generate.py` in the place of the model's
`generate`, so servers and evaluation tools that load models by transformers need no plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILES = {
    "custom_generate/generate.py": '''"""Decode with dynx: draft tokens, verify them, and write the same text in fewer passes."""

from dynx.integrations.transformers import generate

__all__ = ["generate"]
''',
    "custom_generate/requirements.txt": "dynx\n",
}
"""What is written, by path in the folder."""


def write(folder: Path) -> Sequence[Path]:
    """Write the files into a model's folder, and return them.

    Raises ModelError for a folder without a model, and for one that has other files in those places.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json", hint="name the folder of a model in transformers' format")
    paths = {folder / name: text for name, text in FILES.items()}
    for path, text in paths.items():
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise ModelError(f"{path} is there already, and isn't dynx's", hint="move it away first")
    try:
        for path, text in paths.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise ModelError(f"{folder} can't be written to: {e.strerror}") from None
    return list(paths)
