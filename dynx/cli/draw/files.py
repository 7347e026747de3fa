"""Where pictures go: one file, a folder, a pattern or stdout; nothing is overwritten unasked, and no half file is left."""

from __future__ import annotations

import os
import re
import secrets
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from dynx.errors import DynxError, UsageError

SUFFIX = ".png"
SLUG = 40
"""Letters of a prompt in a file's name."""

DEFAULT = "{slug}.png"
SEVERAL = "{n}-{slug}.png"
_FIELDS = re.compile(r"\{(\w*)\}")


def slug(prompt: str) -> str:
    """A prompt as part of a file name: letters and digits, the rest hyphens, cut at a word."""
    plain = unicodedata.normalize("NFKC", prompt).lower()
    name = re.sub(r"[^\w]+|_+", "-", plain).strip("-")
    if len(name) > SLUG:
        name = name[: SLUG + 1].rpartition("-")[0] or name[:SLUG]
    return name or "untitled"


@dataclass(frozen=True)
class Outputs:
    """File names for a run's pictures; `pattern` None writes to stdout."""

    pattern: str | None
    force: bool

    @classmethod
    def parse(cls, text: str | None, count: int, *, force: bool) -> Outputs:
        """From --output and the number of pictures to come. Raises UsageError, before anything is computed.

        None: here, named after the prompt. A folder, or a name ending in a slash: in it. A name: that file, numbered if
        there are several. `{n}` (from 1), `{slug}` and `{seed}` are filled in. `-`: stdout, for one picture.
        """
        if text == "-":
            if count > 1:
                raise UsageError(f"stdout takes one picture, not {count}", hint="-o FOLDER/ writes them all")
            return cls(None, force)
        several = count > 1
        if text is None or not text:
            pattern = SEVERAL if several else DEFAULT
        elif text.endswith("/") or Path(text).expanduser().is_dir():
            pattern = str(Path(text).expanduser() / (SEVERAL if several else DEFAULT))
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
        """The file for picture `n` (from 1), None for stdout. Raises UsageError where it can't be, or is already."""
        if self.pattern is None:
            return None
        values = {"n": str(n), "slug": slug(prompt), "seed": str(seed)}
        return vacant(Path(_FIELDS.sub(lambda field: values[field[1]], self.pattern)), force=self.force)


def vacant(path: Path, *, force: bool) -> Path:
    """`path`, where a picture may be written there. Raises UsageError."""
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
    """All of `data` or nothing: a full disk or Ctrl-C leaves no half file, and a file that came up meanwhile stays.

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
