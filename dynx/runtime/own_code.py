"""Keeps code in a model's folder from running unless the user allows it, without questions on the terminal.

transformers and diffusers run a folder's Python where its JSON files name it (`auto_map`, a pipeline's own class). transformers
asks first, on stdout, and takes whatever stands on stdin for the answer, which may be a prompt. So each loader gets the setting,
and remaining questions are answered here. Where transformers knows the model by itself, its own class is loaded and the
folder's code stays unread.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dynx.errors import ModelError
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

CODE_PATTERN = "*.py"
PIPELINE_FILE = "model_index.json"
HINT = "code can do anything; `trust_remote_code` runs it, if you trust its author"

DECLARING_FILES = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
"""Files of a folder that may name code, under `auto_map`."""

REFUSAL_TEXT = "trust_remote_code"
"""Text that the libraries' refusals have in common: the option to allow the code."""


def refusal(what: str) -> ModelError:
    """Return the error for something that can only be loaded by code from its folder."""
    return ModelError(f"{what} needs code from its folder, which isn't run", hint=HINT)


def refused(error: BaseException) -> bool:
    """Whether a library refused to run a folder's code."""
    return isinstance(error, ValueError) and REFUSAL_TEXT in str(error)


def declared(folder: Path) -> list[str]:
    """List the code that a folder's files name, as `module.Class`, or `repository--module.Class` where it is somebody else's."""
    found: set[str] = set()
    for name in DECLARING_FILES:
        try:
            parts = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # its loader reports what is wrong with it
        found.update(_named(parts.get("auto_map") if isinstance(parts, dict) else None))
    return sorted(found)


def _named(part: Any) -> Iterator[str]:
    """Yield the class names in an `auto_map`: one each, or for tokenizers a slow and a fast one."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, (list, dict)):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from _named(inner)


def files(folder: Path) -> list[str]:
    """Names of the Python files in a folder and in those right below it."""
    return sorted(
        p.relative_to(folder).as_posix()
        for pattern in (CODE_PATTERN, f"*/{CODE_PATTERN}")
        for p in folder.glob(pattern)
    )


def lacks(folder: Path) -> bool:
    """Whether a folder's files name code of its own that isn't there."""
    own = [name.partition(".")[0] for name in declared(folder) if "--" not in name]
    try:
        whole = json.loads((folder / PIPELINE_FILE).read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        whole = None
    own += [str(whole[0])] if isinstance(whole, list) and whole else []
    return any(not (folder / f"{module}.py").is_file() for module in own)


def decision(folder: Path, *, trusted: bool) -> Decision[str] | None:
    """Describe the code that a trusted folder brings along; None where there is none."""
    found = files(folder) if trusted else []
    return Decision("yes", f"code of its own may run: {', '.join(found)}") if found else None


def of_model(config: Mapping[str, Any], loader: str) -> bool:
    """Whether a model's config names code to load it with by `loader`, one of transformers' Auto classes."""
    named = config.get("auto_map")
    return isinstance(named, dict) and loader in named


def in_pipeline(folder: Path, index: Mapping[str, Any]) -> str | None:
    """Return the first file of code that diffusers would run for a pipeline's `model_index.json`, or None."""
    whole = index.get("_class_name")
    own = [f"{whole[0]}.py"] if isinstance(whole, list) and whole else []
    own.append("None.py")  # diffusers looks for the file of a custom pipeline that nobody named, too
    parts = {name: part for name, part in index.items() if not name.startswith("_") and isinstance(part, list)}
    own += [f"{name}/{part[0]}.py" for name, part in parts.items() if part and part[0]]
    return next((name for name in own if (folder / name).is_file()), None)


@contextmanager
def answering(folder: Path | None, *, trusted: bool = False) -> Iterator[None]:
    """Answer what transformers would ask the terminal: yes for a trusted folder and what is in it, no for all else."""
    from transformers import dynamic_module_utils

    names = vars(dynamic_module_utils)
    before = names.get("input")

    def answer(question: str = "") -> str:
        return "y" if trusted and folder is not None and str(folder) in question else "n"

    names["input"] = answer  # found before the built-in function of that name
    try:
        yield
    finally:
        if before is None:
            names.pop("input", None)
        else:
            names["input"] = before
