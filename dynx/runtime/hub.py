"""A model's folder from the hub: what is in the local cache, else a download of the files that loading takes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dynx.errors import ModelError
from dynx.runtime import own_code

if TYPE_CHECKING:
    from collections.abc import Sequence

BASE_PATTERNS = ("*.json", "*.model", "*.txt", "*.jinja")
IGNORED_PATTERNS = ["consolidated*", "original/*", "onnx/*", "openvino/*"]
"""Patterns of files that aren't downloaded: the same weights in other formats."""

ANSWER_SECONDS = 10.0
"""Time that the hub has to answer before it counts as out of reach."""


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
    fault = _unreachable()
    if fault is not None:
        raise ModelError(
            f"no model {name}: not shipped, no such folder, and the hub can't be reached ({fault})", hint=hint
        )
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


def gguf_files(name: str, *, offline: bool, alone: bool = True) -> list[str]:
    """List the GGUF files of a repository, by the hub where it can be asked, else by the local cache.

    `alone`: none where the repository has weights in another format as well, or where the hub can't be asked and the cache
    has none; whatever is wrong then is told by `fetch`.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        found = [path.relative_to(cached).as_posix() for path in cached.rglob("*") if path.is_file()]
    except (OSError, ValueError):  # not there, or a name that no repository can have
        found = []
    others = any(file.endswith((".safetensors", ".bin")) for file in found)
    if alone and others:
        return []
    known = [file for file in found if file.endswith(".gguf")]
    if known or offline or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return known
    if _unreachable() is not None:
        return []
    try:
        found = HfApi().list_repo_files(name)
    except Exception:  # noqa: BLE001 - unreachable, gated, unknown: told by whoever fetches
        return []
    others = any(file.endswith((".safetensors", ".bin")) for file in found)
    return [] if alone and others else [file for file in found if file.endswith(".gguf")]


def fetch_gguf(name: str, file: str, *, offline: bool) -> Path:
    """Return the path of a repository's GGUF file, downloaded with all its parts if need be. Raises ModelError."""
    from huggingface_hub import hf_hub_download

    from dynx.runtime.gguf.header import PART

    part = PART.fullmatch(file)
    count = int(part["parts"]) if part else 1
    files = [f"{part['stem']}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)] if part else [file]
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")

    def first(*, local: bool) -> Path:
        paths = [Path(hf_hub_download(name, each, local_files_only=local)) for each in files]  # all of them
        return paths[0]

    with suppress(OSError, ValueError):  # not there, or not all of it
        return first(local=True)
    if offline:
        raise ModelError(f"{name}'s {file} isn't in the hub's local cache")
    try:
        fault = _unreachable()
        if fault is None:
            return first(local=False)
    except (OSError, ValueError) as e:
        fault = _first_line(e)
    raise ModelError(f"{name}'s {file} can't be had ({fault})")


def _unreachable() -> str | None:
    """Return why the hub doesn't answer; None where it does, whatever it says.

    Asked once: the hub's own library asks again for 23 seconds, also where there is no network.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
    except Exception as e:  # noqa: BLE001 - the library's client differs between its versions, and so do its errors
        return _first_line(e)
    return None


def _has_any(folder: Path, patterns: Sequence[str]) -> bool:
    within = (
        "*/" if (folder / own_code.PIPELINE_FILE).is_file() else ""
    )  # a pipeline's weights are in its parts' folders
    return any(file for pattern in patterns for file in folder.glob(within + pattern))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
