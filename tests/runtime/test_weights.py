"""What vouches for weights: every byte counts, whatever an edit does to hide, and a file that hasn't changed is read once."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynx.errors import ModelError
from dynx.runtime import weights
from dynx.runtime.hashing import model_hash
from dynx.runtime.weights import content_hash, still, weights_hash, why_others

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that is too large to be read whole by a hash of samples, without a header."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "llama"}')
    (made / "model.safetensors").write_bytes(bytes(range(256)) * (5 << 12))
    return made


@pytest.fixture
def hashed(folder: Path, tmp_path: Path) -> Callable[[], str]:
    """The folder's hash, by a cache of this test's."""
    return lambda: weights_hash(folder, cache=tmp_path / "known")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that are read through, of any age."""
    monkeypatch.setattr(weights, "MIN_AGE_NS", 0)
    seen: list[str] = []

    def watched(path: Path) -> str:
        seen.append(path.name)
        return content_hash(path)

    monkeypatch.setattr(weights, "content_hash", watched)
    return seen


def overwrite(path: Path, at: int = 1_300_000, *, keep_times: bool = False) -> None:
    """Change one byte in place, in a part of the file that isn't sampled."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 1]))
    while keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        now = path.stat()
        assert (now.st_size, now.st_mtime_ns, now.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
        if now.st_ctime_ns != before.st_ctime_ns:  # the clock of the file system ticks some hundred times a second
            break


def test_one_byte_that_samples_miss(folder: Path, hashed: Callable[[], str]) -> None:
    """A hash of samples stays as it was; this one doesn't, and comes back with the byte."""
    samples, whole = model_hash(folder), hashed()
    overwrite(folder / "model.safetensors")
    assert model_hash(folder) == samples
    assert hashed() != whole
    overwrite(folder / "model.safetensors")
    assert hashed() == whole


def test_a_file_is_read_once(folder: Path, hashed: Callable[[], str], read: list[str]) -> None:
    """A second start looks at size, times and inode; only what changed is read again."""
    first = hashed()
    assert sorted(read) == ["config.json", "model.safetensors"]
    assert hashed() == first
    assert len(read) == 2
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    assert hashed() != first
    assert read[2:] == ["config.json"]


@pytest.mark.usefixtures("read")
def test_an_edit_that_sets_the_time_back(folder: Path, hashed: Callable[[], str]) -> None:
    """Same size, same modification time, same inode: the time of the inode's change tells."""
    first = hashed()
    overwrite(folder / "model.safetensors", keep_times=True)
    assert hashed() != first


@pytest.mark.usefixtures("read")
def test_another_file_with_the_same_size_and_time(folder: Path, hashed: Callable[[], str]) -> None:
    """What `cp -p` and a rename put in its place is another file."""
    first, file = hashed(), folder / "model.safetensors"
    other = folder.parent / "other"
    shutil.copy2(file, other)
    overwrite(other)
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)
    assert hashed() != first


def test_what_changed_a_moment_ago_is_not_kept(folder: Path, hashed: Callable[[], str], tmp_path: Path) -> None:
    """A second change within the clock's tick would have the same times, so it's read again until it has settled."""
    hashed()
    assert not list(tmp_path.glob("known/*"))
    assert weights.MIN_AGE_NS >= 2e9  # FAT counts in steps of two seconds


@pytest.mark.usefixtures("read")
@pytest.mark.parametrize("damage", ["", "{", "[]", '{"model.safetensors": 1}', '{"model.safetensors": {"look": null}}'])
def test_what_is_kept_may_be_damaged(folder: Path, hashed: Callable[[], str], tmp_path: Path, damage: str) -> None:
    """Then everything is read; the same where nothing can be kept."""
    first = hashed()
    (kept,) = tmp_path.glob("known/*.json")
    kept.write_text(damage)
    assert hashed() == first
    assert weights_hash(folder, cache=folder / "config.json" / "inside a file") == first


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200), chunk=st.integers(1, 64), at=st.integers(0, 199))
def test_every_byte_counts_wherever_pieces_end(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, chunk: int, at: int
) -> None:
    """In files of no, one and several pieces; and the size, where bytes are missing at the end."""
    file = tmp_path_factory.mktemp("bytes") / "f"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "PIECE_BYTES", chunk)
        file.write_bytes(data)
        found = content_hash(file)
        assert found == content_hash(file)
        file.write_bytes(data + b"\0")
        assert content_hash(file) != found
        if at < len(data):
            file.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
            assert content_hash(file) != found


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("adapter_model.safetensors", True),
        ("pytorch_model.bin", True),  # although there is a safetensors file
        ("model-2.pt", True),
        ("modeling_own.py", True),
        ("model.safetensors.index.json", True),
        ("vae/config.json", True),
        ("scheduler/scheduler_config.json", True),
        ("quantize_config.json", True),
        ("tokenizer.json", False),
        ("tokenizer_config.json", False),
        ("generation_config.json", False),
        ("exits.json", False),  # a profile, which holds this hash
        ("README.md", False),
        (".cache/old.safetensors", False),
        ("drafter/model.safetensors", False),  # left out by the caller
    ],
)
def test_which_files_count(folder: Path, tmp_path: Path, name: str, counts: bool) -> None:
    """Whatever the network's output depends on."""

    def found() -> str:
        return weights_hash(folder, ["drafter"], tmp_path / "known")

    first = found()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"{}")
    assert (found() != first) == counts


def test_how_much_of_an_adapter_is_added(folder: Path, hashed: Callable[[], str]) -> None:
    """Counts; and one whose base lies elsewhere is as sure as that is: a folder is hashed, another name never the same."""
    config: dict[str, Any] = {"lora_alpha": 8}
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(config))
    first = hashed()
    assert hashed() == first
    file.write_text(json.dumps(config | {"lora_alpha": 16}))
    assert hashed() != first
    base = shutil.copytree(folder, folder.parent / "base", ignore=shutil.ignore_patterns("adapter*"))
    file.write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    first = hashed()
    assert hashed() == first
    overwrite(base / "model.safetensors")
    assert hashed() != first
    file.write_text(json.dumps(config | {"base_model_name_or_path": "someone/base"}))
    assert hashed() != hashed()


def test_links_to_folders(folder: Path, hashed: Callable[[], str]) -> None:
    """A shared encoder counts like one that lies in the folder, and a circle ends."""
    first = hashed()
    shared = folder.parent / "shared"
    shared.mkdir()
    (shared / "model.safetensors").write_bytes(b"1")
    (folder / "text_encoder").symlink_to(shared)
    (folder / "circle").symlink_to(folder)
    second = hashed()
    assert second != first
    (shared / "model.safetensors").write_bytes(b"2")
    assert hashed() != second


def test_what_was_measured_is_compared(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In words, or as an error where weights change while they are measured; a folder that isn't there can't be read."""
    monkeypatch.setenv("DYNX_CACHE_DIR", str(tmp_path / "cache"))
    before = weights_hash(folder)
    assert why_others(before, lambda: before) is None
    assert why_others("0" * 32, lambda: before) == "the weights were changed since it was measured"
    assert why_others(None, lambda: pytest.fail("read for nothing")) == (
        "it doesn't say which weights it was measured on"
    )
    assert still(before, folder) == before
    overwrite(folder / "model.safetensors")
    with pytest.raises(ModelError, match="changed while they were measured"):
        still(before, folder)
    with pytest.raises(ModelError, match="can't read the model"):
        weights_hash(folder / "nowhere")
