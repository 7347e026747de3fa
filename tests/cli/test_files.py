"""Names of pictures, and that writing them leaves all or nothing."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from dynx.cli.draw.files import Outputs, slug, write
from dynx.errors import DynxError, UsageError


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red apple!", "a-red-apple"),
        ("../../etc/passwd", "etc-passwd"),
        ("größe_und Übermut", "größe-und-übermut"),
        ("…", "untitled"),
        ("🍎", "red-apple"),
        ("🍏 🍎!", "green-apple-red-apple"),
        ("❤️", "heavy-black-heart"),
        ("👩\u200d🚀", "woman-rocket"),
        ("👍🏽", "thumbs-up-sign-type-4"),
        ("🇩🇪", "de"),
        ("😀" * 50, "grinning-face-grinning-face-grinning"),
        ("\U0010ffff", "u10ffff"),
        ("a cat 🐱", "a-cat"),
        ("\u0301", "untitled"),
        ("हिन्दी में", "हिन्दी-में"),
        ("ภาษาไทย", "ภาษาไทย"),
        ("a very long prompt about a cat that sat on a mat", "a-very-long-prompt-about-a-cat-that-sat"),
        ("x" * 60, "x" * 40),
    ],
)
def test_prompts_become_names(prompt: str, name: str) -> None:
    """Letters of any language stay with their marks, symbols alone have names; nothing else gets out of the folder."""
    assert slug(prompt) == name


def test_without_output_the_prompt_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here; numbered if there are several."""
    monkeypatch.chdir(tmp_path)

    assert Outputs.parse(None, 1, force=False).path(1, "a cat", 7) == Path("a-cat.png")
    assert Outputs.parse(None, 2, force=False).path(2, "a cat", 7) == Path("2-a-cat.png")


def test_a_folder_takes_them_all(tmp_path: Path) -> None:
    """An existing one, or one that a slash asks for."""
    assert Outputs.parse(str(tmp_path), 1, force=False).path(1, "cat", 0) == tmp_path / "cat.png"
    assert Outputs.parse(f"{tmp_path}/new/deep/", 3, force=False).path(3, "cat", 0) == tmp_path / "new/deep/3-cat.png"
    assert (tmp_path / "new/deep").is_dir()


def test_a_pattern_is_filled_in(tmp_path: Path) -> None:
    """And a plain name gets numbers where it needs them."""
    assert (
        Outputs.parse(f"{tmp_path}/{{seed}}-{{slug}}.png", 2, force=False).path(1, "cat", 9) == tmp_path / "9-cat.png"
    )
    assert Outputs.parse(f"{tmp_path}/out.png", 2, force=False).path(2, "cat", 9) == tmp_path / "out-2.png"
    assert Outputs.parse(f"{tmp_path}/out.PNG", 1, force=False).path(1, "cat", 9) == tmp_path / "out.PNG"


def test_a_name_is_given_once(tmp_path: Path) -> None:
    """One that comes from the prompt is numbered, past names that are taken; a fixed one is refused."""
    outputs = Outputs.parse(f"{tmp_path}/{{slug}}.png", 2, force=False)
    named = [outputs.path(n, prompt, 0) for n, prompt in enumerate(("cat", "cat 2", "Cat!", "cat", "dog"), 1)]
    assert named == [tmp_path / f"{name}.png" for name in ("cat", "cat-2", "cat-3", "cat-4", "dog")]

    fixed = Outputs.parse(f"{tmp_path}/{{seed}}.png", 2, force=True)
    fixed.path(1, "cat", 0)
    with pytest.raises(UsageError, match=r"0\.png would be written twice"):
        fixed.path(2, "dog", 0)


@pytest.mark.parametrize(
    ("output", "count", "complaint"),
    [
        ("-", 2, "stdout takes one picture, not 2"),
        ("{tmp}/missing/x.png", 1, "doesn't exist"),
        ("{tmp}/x.jpg", 1, "PNG"),
        ("{tmp}/{{what}}.png", 1, "unknown field {what}"),
        ("{tmp}/file/x.png", 1, "is a file, not a folder"),
    ],
)
def test_wrong_outputs_are_refused_at_once(output: str, count: int, complaint: str, tmp_path: Path) -> None:
    """In a line that names the trouble."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=complaint.replace("{", r"\{")):
        Outputs.parse(output.format(tmp=tmp_path), count, force=False)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    """Not when named, and not when it came up since; --force does."""
    (tmp_path / "cat.png").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists"):
        Outputs.parse(f"{tmp_path}/cat.png", 1, force=False).path(1, "cat", 0)
    with pytest.raises(UsageError, match="exists"):
        write(tmp_path / "cat.png", b"new", force=False)
    assert (tmp_path / "cat.png").read_bytes() == b"mine"

    path = Outputs.parse(f"{tmp_path}/cat.png", 1, force=True).path(1, "cat", 0)
    assert path is not None
    write(path, b"new", force=True)
    assert (tmp_path / "cat.png").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["cat.png"]


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that was written goes, and the reason is told."""
    real = Path.open

    def full(self: Path, *args: Any, **kwargs: Any) -> Any:
        file = real(self, *args, **kwargs)
        if self.name.endswith(".part"):

            class Full:
                def __enter__(self) -> Full:
                    return self

                def __exit__(self, *_: object) -> None:
                    file.close()

                def write(self, data: bytes) -> int:
                    file.write(data[:3])
                    raise OSError(errno.ENOSPC, "No space left on device")

            return Full()
        return file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DynxError, match="No space left"):
        write(tmp_path / "cat.png", b"picture", force=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the file by renaming."""

    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    write(tmp_path / "cat.png", b"picture", force=False)

    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("cat.png", b"picture")]
