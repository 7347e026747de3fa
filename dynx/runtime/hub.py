"""A model's folder from the hub: what is in the local cache, else a download of the files that loading takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dynx.errors import ModelError
from dynx.runtime import own_code

if TYPE_CHECKING:
    from collections.abc import Sequence

BASE_PATTERNS = ("*.json", "*.model", "*.txt", "*.jinja")
IGNORED_PATTERNS = ["consolidated*", "original/*", "onnx/*", "openvino/*"]
"""Patterns of files that aren't downloaded: the same weights in other formats."""


def fetch(name: str, weights: Sequence[str], *, offline: bool, code: bool, local: bool, hint: str | None) -> Path:
    """Return the folder of the repository `name` with files of the patterns `weights`, and with `code` its Python files.

    Nothing is downloaded `offline`, nor where `local` says that the name is likelier a shipped model's, misspelt; `hint` goes
    with the ModelError that tells why there is no such folder.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    offline = offline or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    cached: Path | None = None
    try:
        cached = Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    except ValueError as e:  # a name that no repository can have
        raise ModelError(f"no model {name}: {_first_line(e)}", hint=hint) from None
    if cached is not None and _has_any(cached, weights) and (offline or not code or not own_code.lacks(cached)):
        return cached
    if offline:
        where = "without weights in the hub's local cache" if cached else "not in the hub's local cache"
        raise ModelError(f"no model {name}: not shipped, no such folder, {where}", hint=hint)
    if local:
        raise ModelError(f"no model {name}", hint=hint)
    patterns = [*BASE_PATTERNS, *weights, *((own_code.CODE_PATTERN,) if code else ())]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=IGNORED_PATTERNS))
    except GatedRepoError:
        raise ModelError(
            f"{name} is gated: its owner decides who may load it", hint="ask on its page, then run: hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(f"no model {name}: not shipped, no such folder, not on the hub", hint=hint) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        raise ModelError(
            f"no model {name}: not shipped, no such folder, and the hub can't be reached ({_first_line(e)})", hint=hint
        ) from None


def _has_any(folder: Path, patterns: Sequence[str]) -> bool:
    within = (
        "*/" if (folder / own_code.PIPELINE_FILE).is_file() else ""
    )  # a pipeline's weights are in its parts' folders
    return any(file for pattern in patterns for file in folder.glob(within + pattern))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
