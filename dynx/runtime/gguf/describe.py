"""A GGUF file as a Hugging Face folder: configuration, tokenizer and settings in files of their own, the weights as links.

Reading a vocabulary and building a tokenizer takes seconds, so the folder is kept in dynx's cache and made again when the file
changed. What knows such a file by its folder (hashes, profiles, the tokenizer's loader) needs to know nothing of GGUF.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.errors import ModelError
from dynx.runtime.gguf.architectures import config_of
from dynx.runtime.gguf.header import HINT, check_kind, parts_of, read_header
from dynx.runtime.profile_store import cache_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.runtime.gguf.header import Header

FORMAT_VERSION = 1
"""Of the folders kept: raised when their contents change."""

FACTS_FILE = "gguf.json"
"""What the folder was made from."""

TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>")
"""Control tokens that end a turn of a conversation, whatever the file calls its end of text."""
CONTROL = 3

BEGINS_BY_DEFAULT = frozenset({"llama-bpe", "llama3", "llama-v3"})
"""Byte-level vocabularies whose texts begin with the token for it where the file doesn't say; they merge no whole tokens, too."""


def describe(path: Path, name: str) -> Path:
    """Return the folder that describes the model in a GGUF file, made if need be. Raises ModelError."""
    files = parts_of(path)
    try:
        look = [FORMAT_VERSION, _transformers(), *(_look(file) for file in files)]
    except OSError as e:
        raise ModelError(f"{path} can't be read: {e.strerror or e}") from None
    place = hashlib.sha256(os.fsencode(files[0].resolve())).hexdigest()[:24]
    folder = cache_folder() / "gguf" / place
    if _facts(folder).get("look") == look:
        return folder
    header = read_header(path)
    check_kind(header, name)
    config = config_of(header, name)
    draft = _draft(folder)
    facts = {"look": look, "architecture": header.architecture, "types": header.types, "files": [*map(str, files)]}
    _write_json(draft / "config.json", config)
    _write_json(draft / "generation_config.json", _generation(header, config))
    _save_tokenizer(header, draft, name)
    for index, file in enumerate(files):
        suffix = f"-{index + 1:05}-of-{len(files):05}" if len(files) > 1 else ""
        (draft / f"model{suffix}.gguf").symlink_to(file.resolve())
    _write_json(draft / FACTS_FILE, facts)
    return _put(draft, folder)


def types_of(folder: Path) -> dict[str, int]:
    """Return how many values a described file stores in each type, the most first; empty for other folders."""
    found = _facts(folder).get("types")
    return found if isinstance(found, dict) else {}


def _transformers() -> str:
    from importlib.metadata import version

    return version("transformers")


def _look(file: Path) -> list[Any]:
    """Return what shows a change of a file without reading it."""
    seen = file.stat()
    return [str(file.resolve()), seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_dev]


def _facts(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _draft(folder: Path) -> Path:
    """Make an empty folder beside `folder`, or, where the cache can't be written, one for this process."""
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        draft.mkdir(parents=True)
    except OSError:
        draft = Path(tempfile.mkdtemp(prefix="dynx-gguf-"))
        atexit.register(shutil.rmtree, draft, ignore_errors=True)
    return draft


def _put(draft: Path, folder: Path) -> Path:
    """Give a finished draft its name; return where it is."""
    if draft.parent != folder.parent:
        return draft
    try:
        if folder.exists():
            old = draft.with_name(f"{draft.name}.old")
            folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        draft.rename(folder)
    except OSError:  # another process was first: theirs is as good, and ours still whole
        atexit.register(shutil.rmtree, draft, ignore_errors=True)
        return draft
    return folder


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _generation(header: Header, config: dict[str, Any]) -> dict[str, Any]:
    """Return the decoding settings: the tokens that end an answer or a turn, by the metadata or by their names."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ends = {int(found) for key in keys if (found := header.metadata.get(f"tokenizer.ggml.{key}")) is not None}
    tokens, kinds = (header.metadata.get(f"tokenizer.ggml.{key}") or () for key in ("tokens", "token_type"))
    wanted = set(TURN_ENDS)
    ends |= {
        index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if kind == CONTROL and token in wanted
    }
    settings = {
        "eos_token_id": sorted(ends),
        "bos_token_id": config["bos_token_id"],
        "pad_token_id": config["pad_token_id"],
    }
    return {key: value for key, value in settings.items() if value not in (None, [])}


def _save_tokenizer(header: Header, folder: Path, name: str) -> None:
    """Write the tokenizer and its chat template as transformers reads them. Raises ModelError."""
    from transformers import PreTrainedTokenizerFast

    try:
        from transformers.integrations.gguf import convert_gguf_tokenizer
    except ImportError:  # an older transformers, which imports gguf for it
        from transformers.integrations.ggml import convert_gguf_tokenizer
    meta = {key.removeprefix("tokenizer.ggml."): value for key, value in header.metadata.items()}
    tokens: Sequence[str] = meta.get("tokens") or ()
    if not tokens or "model" not in meta:
        raise ModelError(f"{name} has no tokenizer", hint="its tokens belong into the file's metadata")
    parts: dict[str, Any] = {
        key: meta[key] for key in ("tokens", "scores", "token_type", "merges", "precompiled_charsmap") if key in meta
    }
    parts |= {"tokenizer_type": meta["model"], "pre_tokenizer_type": meta.get("pre")}
    parts |= {
        short: meta[key]
        for short, key in (
            ("bos_token_id", "bos_token_id"),
            ("eos_token_id", "eos_token_id"),
            ("unk_token_id", "unknown_token_id"),
            ("pad_token_id", "padding_token_id"),
            ("add_prefix_space", "add_space_prefix"),
        )
        if key in meta
    }
    try:
        backend, _ = convert_gguf_tokenizer(header.architecture, parts)
    except ImportError:
        raise ModelError("transformers needs the package gguf to read this tokenizer", hint=HINT) from None
    except KeyError as e:
        lacking = "merges" if meta["model"] == "gpt2" else e.args[0]
        raise ModelError(f"{name}'s tokenizer is incomplete: its metadata lacks tokenizer.ggml.{lacking}") from None
    except Exception as e:  # noqa: BLE001 - any library's, about files that anybody wrote
        said = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise ModelError(f"{name}'s tokenizer doesn't load: {said}") from None
    whole = meta["model"] == "gpt2" and meta.get("pre") in BEGINS_BY_DEFAULT
    if whole:
        backend.model.ignore_merges = True
    named = {
        key: tokens[meta[f"{long}_token_id"]]
        for key, long in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        )
        if isinstance(meta.get(f"{long}_token_id"), int) and meta[f"{long}_token_id"] < len(tokens)
    }
    begins = bool(meta.get("add_bos_token", whole or meta["model"] == "llama")) and "bos_token" in named
    ends = bool(meta.get("add_eos_token", False)) and "eos_token" in named
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **named, add_bos_token=begins, add_eos_token=ends
    )
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if key not in named:
            setattr(tokenizer, key, None)
    tokenizer.add_bos_token, tokenizer.add_eos_token = begins, ends
    tokenizer.update_post_processor()
    template = header.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
