"""Names and writes the files of pictures: one file, a folder, a pattern or stdout; never overwrites a file without --force."""

from __future__ import annotations

import os
import re
import secrets
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from dynx.errors import DynxError, UsageError

SUFFIX = ".png"
MAX_SLUG_CHARS = 40
"""Largest length of a prompt in a file name, in characters."""

SINGLE_PATTERN = "{slug}.png"
SEVERAL_PATTERN = "{n}-{slug}.png"
_FIELDS = re.compile(r"\{(\w*)\}")


FLAG_NAME_PREFIX = "REGIONAL INDICATOR SYMBOL LETTER "
"""Prefix of the Unicode names of the two letters that make a flag."""

SKIN_TONE_NAME_PREFIX = "EMOJI MODIFIER FITZPATRICK "
"""Prefix of the Unicode names of skin tones."""

DISPLAY_SELECTORS = frozenset(map(chr, (*range(0xFE00, 0xFE10), 0x20E3, *range(0xE0100, 0xE01F0))))
"""Characters that only select how the one before them is displayed."""


def slug(prompt: str) -> str:
    """Return a prompt as part of a file name: letters and digits, hyphens for the rest, cut at a word.

    A prompt without any is called by its symbols' names in Unicode.
    """
    plain = unicodedata.normalize("NFKC", prompt).lower()
    spelt = any(c.isalnum() for c in plain)
    name = _words("".join(c if _spells(c) else " " for c in plain) if spelt else "".join(map(_called, prompt)))
    if len(name) > MAX_SLUG_CHARS:
        name = name[: MAX_SLUG_CHARS + 1].rpartition("-")[0] or name[:MAX_SLUG_CHARS]
    return name or "untitled"


def _words(text: str) -> str:
    return "-".join(text.split())


def _spells(letter: str) -> bool:
    """Whether a character is part of a word: accents and vowel signs follow the letters that they belong to."""
    return letter.isalnum() or (unicodedata.category(letter)[0] == "M" and letter not in DISPLAY_SELECTORS)


def _called(symbol: str) -> str:
    """Return a symbol's Unicode name in lower case, letters and digits only; its code point where this Python lacks the name."""
    category, name = unicodedata.category(symbol), unicodedata.name(symbol, "")
    if category in ("Cn", "Co"):
        return f" u{ord(symbol):x} "
    if name.startswith(FLAG_NAME_PREFIX):
        return name.removeprefix(FLAG_NAME_PREFIX).lower()
    words = re.sub(r"[^a-z0-9]+", " ", name.removeprefix(SKIN_TONE_NAME_PREFIX).lower())
    return f" {words} " if category[0] == "S" else " "


@dataclass(frozen=True)
class Outputs:
    """File names for a run's pictures; `pattern` None writes to stdout."""

    pattern: str | None
    force: bool
    _taken: dict[Path, int] = field(default_factory=dict, repr=False, compare=False)
    """Names given so far, each with the last number that was appended."""

    @classmethod
    def parse(cls, text: str | None, count: int, *, force: bool) -> Outputs:
        """Build the names from --output and the number of pictures. Raises UsageError before anything is computed.

        None: here, named after the prompt. A folder, or a name ending in a slash: in it. A name: that file, numbered if
        there are several. `{n}` (from 1), `{slug}` and `{seed}` are filled in. `-`: stdout, for one picture.
        """
        if text == "-":
            if count > 1:
                raise UsageError(f"stdout takes one picture, not {count}", hint="-o FOLDER/ writes them all")
            return cls(None, force)
        several = count > 1
        if text is None or not text:
            pattern = SEVERAL_PATTERN if several else SINGLE_PATTERN
        elif text.endswith("/") or Path(text).expanduser().is_dir():
            pattern = str(Path(text).expanduser() / (SEVERAL_PATTERN if several else SINGLE_PATTERN))
        else:
            pattern = str(Path(text).expanduser())
            if not pattern.lower().endswith(SUFFIX):
                raise UsageError(f"--output {text}: pictures are PNG files", hint=f"-o {text}{SUFFIX}, or -o {text}/")
            if several and not _FIELDS.search(pattern):
                pattern = pattern[: -len(SUFFIX)] + "-{n}" + SUFFIX
        unknown = [name for name in _FIELDS.findall(pattern) if name not in ("n", "slug", "seed")]
        if unknown:
            raise UsageError(
                f"--output has an unknown field {{{unknown[0]}}}; the fields are {{n}}, {{slug}} and {{seed}}"
            )
        folder = Path(pattern).parent
        if text is not None and text.endswith("/") and not folder.exists():
            try:
                folder.mkdir(parents=True)
            except OSError as e:
                raise UsageError(f"can't make the folder {folder}: {e.strerror or e}") from None
        if not _FIELDS.search(str(folder)):
            _check_folder(folder)
        return cls(pattern, force)

    def path(self, n: int, prompt: str, seed: int) -> Path | None:
        """Return the file for picture `n` (from 1), None for stdout. Raises UsageError where it can't be written or is taken.

        Where an earlier picture of this run has that name and it comes from the prompt, it is numbered: `a-cat-2.png`.
        """
        if self.pattern is None:
            return None
        values = {"n": str(n), "slug": slug(prompt), "seed": str(seed)}
        path = first = Path(_FIELDS.sub(lambda field: values[field[1]], self.pattern))
        number = self._taken.get(first, 1)
        if first in self._taken and "slug" not in _FIELDS.findall(self.pattern):
            raise UsageError(f"{path} would be written twice", hint="use {n} in --output to tell pictures apart")
        while path in self._taken:
            number += 1
            path = first.with_name(f"{first.stem}-{number}{first.suffix}")
        vacant(path, force=self.force)
        self._taken[path] = 1
        self._taken[first] = number
        return path


def vacant(path: Path, *, force: bool) -> Path:
    """Return `path` if a picture may be written there. Raises UsageError."""
    _check_folder(path.parent)
    if path.is_dir():
        raise UsageError(f"{path} is a folder")
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="--force overwrites it")
    return path


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = "doesn't exist" if not folder.exists() else "is a file, not a folder"
        raise UsageError(f"{folder} {what}", hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"can't write in {folder}: permission denied")


def write(path: Path, data: bytes, *, force: bool) -> None:
    """Write all of `data` or nothing: a full disk or Ctrl-C leaves no partial file, and a file made meanwhile is kept.

    Raises DynxError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        if force:
            temporary.replace(path)
        else:
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                raise UsageError(f"{path} exists", hint="--force overwrites it") from None
            except OSError:  # a file system without hard links
                temporary.replace(path)
    except OSError as e:
        raise DynxError(f"can't write {path}: {e.strerror or e}") from None
    finally:
        temporary.unlink(missing_ok=True)
