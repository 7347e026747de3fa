"""Hashes see what changes a model and don't see what doesn't."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from dynx.errors import ModelError
from dynx.runtime import hashing
from dynx.runtime.hashing import hash_json, model_hash, text_hash

if TYPE_CHECKING:
    import hashlib
    from pathlib import Path


def small_model(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"w": np.random.default_rng(seed).random((8, 8))}, folder / "model.safetensors")
    return folder


def large_model(folder: Path, **changes: int) -> Path:
    """Write a model too large to be read through; each change adds 1 to one value of the tensor named."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    tensors = {"body": np.arange(2_000_000, dtype=np.float32), "head": np.zeros(1000, np.float32)}
    for name, index in changes.items():
        tensors[name][index] += 1
    save_file(tensors, folder / "model.safetensors")
    assert (folder / "model.safetensors").stat().st_size > hashing.WHOLE_BYTES
    return folder


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_copy_has_the_same_hash(tmp_path: Path) -> None:
    """A model keeps its hash wherever its folder lies and whatever the folder is called."""
    original = small_model(tmp_path / "a")
    shutil.copytree(original, tmp_path / "elsewhere" / "b")
    assert model_hash(original) == model_hash(tmp_path / "elsewhere" / "b")
    assert len(model_hash(original)) == 16
    assert set(model_hash(original)) <= set("0123456789abcdef")


def test_links_hash_as_what_they_lead_to(tmp_path: Path) -> None:
    """A hub snapshot, whose files are symbolic links to blobs, hashes like a plain folder."""
    plain = small_model(tmp_path / "plain")
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in plain.iterdir():
        (linked / path.name).symlink_to(path)
    assert model_hash(linked) == model_hash(plain)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_any_byte_of_a_small_file_counts(tmp_path: Path, name: str) -> None:
    """Changing any one byte of a small file changes the hash, and no two changes agree."""
    folder = small_model(tmp_path)
    size = (folder / name).stat().st_size
    offsets = {0, size - 1, *range(0, size, max(1, size // 15))}
    seen = {model_hash(folder)}
    for offset in offsets:
        flip(folder / name, offset)
        seen.add(model_hash(folder))
        flip(folder / name, offset)
    assert len(seen) == len(offsets) + 1


@pytest.mark.parametrize("changes", [{"body": 0}, {"body": 1_000_000}, {"body": 1_999_999}, {"head": 0}, {"head": 999}])
def test_large_file_is_sampled_where_fine_tunes_show(tmp_path: Path, changes: dict[str, int]) -> None:
    """In a file that is only sampled, a change at a tensor's ends or middle, or anywhere in a small one, counts."""
    assert model_hash(large_model(tmp_path / "a")) == model_hash(large_model(tmp_path / "b"))
    assert model_hash(large_model(tmp_path / "c", **changes)) != model_hash(tmp_path / "a")


def test_small_tensor_between_samples_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head retrained on the same backbone changes the hash even where no evenly spaced sample falls."""
    monkeypatch.setattr(hashing, "SAMPLES_PER_FILE", 2)  # only the first and the last 64 KiB
    folders = []
    for index in range(2):
        folder = tmp_path / str(index)
        folder.mkdir()
        head = np.full(100, index, np.float32)
        tensors = {"a": np.zeros(1_000_000, np.float32), "b_head": head, "c": np.zeros(1_000_000, np.float32)}
        save_file(tensors, folder / "model.safetensors")
        folders.append(folder)
    assert model_hash(folders[0]) != model_hash(folders[1])


def test_reading_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes read from a weight file don't grow with it."""
    read = 0
    feed = hashing._feed

    def counting(digest: hashlib._Hash, data: bytes) -> None:
        nonlocal read
        read += len(data)
        feed(digest, data)

    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(8 << 30)  # sparse: 8 GiB that take no room
    monkeypatch.setattr(hashing, "_feed", counting)
    model_hash(tmp_path)
    assert read < 2 * hashing.WHOLE_BYTES


@pytest.mark.parametrize("length", [0, 7, 2**62, 1000])
def test_damaged_header_still_hashes(tmp_path: Path, length: int) -> None:
    """A weight file with a nonsense header gets a hash; saying what is wrong with it is for loading."""
    data = length.to_bytes(8, "little") + b"\xff" * hashing.WHOLE_BYTES
    (tmp_path / "model.safetensors").write_bytes(data)
    assert len(model_hash(tmp_path)) == 16


@pytest.mark.parametrize("offsets", ["[0, 99999999999]", "[-99, 5]", "[5, 0]", '["a", 2]', "[1]", "7"])
def test_lying_offsets_still_hash(tmp_path: Path, offsets: str) -> None:
    """Tensor offsets that point nowhere don't break or mislead hashing."""
    header = f'{{"w": {{"data_offsets": {offsets}}}}}'.encode()
    data = len(header).to_bytes(8, "little") + header + bytes(hashing.WHOLE_BYTES)
    (tmp_path / "model.safetensors").write_bytes(data)
    assert len(model_hash(tmp_path)) == 16


def test_pipeline_subfolders_count(tmp_path: Path) -> None:
    """A diffusers pipeline is hashed through its subfolders: networks, scheduler and index."""
    for part in ("unet", "vae"):
        small_model(tmp_path / part)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    (tmp_path / "model_index.json").write_text("{}")
    seen = [model_hash(tmp_path)]
    small_model(tmp_path / "vae", seed=1)
    seen.append(model_hash(tmp_path))
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    seen.append(model_hash(tmp_path))
    (tmp_path / "vae").rename(tmp_path / "vae_1_0")
    seen.append(model_hash(tmp_path))
    assert len(set(seen)) == 4


def test_shards_count(tmp_path: Path) -> None:
    """Each shard of a split checkpoint counts, and so does which shard is which."""
    for index in range(3):
        save_file({f"w{index}": np.full(4, index)}, tmp_path / f"model-0000{index}-of-00003.safetensors")
    before = model_hash(tmp_path)
    first, second = tmp_path / "model-00000-of-00003.safetensors", tmp_path / "model-00001-of-00003.safetensors"
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    swapped = model_hash(tmp_path)
    second.unlink()
    assert len({before, swapped, model_hash(tmp_path)}) == 3


def test_excluded_and_hidden_and_other_files_dont_count(tmp_path: Path) -> None:
    """A helper model kept inside, hidden folders and files that hold no weights leave the hash alone."""
    folder = small_model(tmp_path)
    before = model_hash(folder)
    small_model(folder / "helpers" / "drafter", seed=1)
    small_model(folder / ".cache", seed=2)
    save_file({"e": np.ones(3)}, folder / "exits.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"pickle")
    assert model_hash(folder, exclude=["helpers/drafter/", "exits.safetensors"]) == before
    assert model_hash(folder, exclude=["helpers/drafter"]) != before
    assert model_hash(folder, exclude=["drafter", "exits.safetensors"]) != before


def test_bin_counts_where_there_is_no_safetensors(tmp_path: Path) -> None:
    """A pickle checkpoint is hashed when it is all there is."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"one")
    before = model_hash(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"two")
    assert model_hash(tmp_path) != before


@pytest.mark.parametrize("make", [False, True], ids=["no folder", "no weights"])
def test_nothing_to_hash_is_an_error(tmp_path: Path, make: bool) -> None:
    """A folder that isn't there, or has a config and no weights, is a model error that names it."""
    folder = tmp_path / "gone"
    if make:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="gone"):
        model_hash(folder)


def test_link_to_nowhere_is_an_error(tmp_path: Path) -> None:
    """A half-deleted hub snapshot is an error rather than a hash of what is left."""
    folder = small_model(tmp_path)
    (folder / "model-2.safetensors").symlink_to(tmp_path / "blob-gone")
    with pytest.raises(ModelError, match="can't read"):
        model_hash(folder)


@given(st.lists(st.text()), st.lists(st.text()))
def test_text_hash_tells_lists_apart(one: list[str], two: list[str]) -> None:
    """Two lists of texts share a hash only when they are equal: order, borders and empty texts count."""
    assert (text_hash(one) == text_hash(iter(two))) == (one == two)


def test_text_hash_takes_undecodable_names() -> None:
    """Text that came from undecodable bytes can be hashed."""
    assert text_hash(["\udcff"]) != text_hash(["\udcfe"])


@given(st.dictionaries(st.text(), st.integers() | st.none() | st.floats(allow_nan=False, allow_infinity=False)))
def test_hash_json_ignores_key_order(value: dict[str, object]) -> None:
    """An object's hash doesn't depend on the order of its keys, nor on a trip through JSON."""
    backwards = dict(reversed(value.items()))
    assert hash_json(value) == hash_json(backwards) == hash_json(json.loads(json.dumps(value)))


def test_hashes_never_change(tmp_path: Path) -> None:
    """Hashes are written into profiles, so their values are part of the format."""
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert model_hash(tmp_path) == "7407aa49128cf3d7"
    assert hash_json({"b": [1, 2.5, None], "a": "é"}) == "84afbf1d4853005f"
    assert text_hash(["Once upon", " a time"]) == "626edcf3ac05cb1d"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_hash_json_refuses_what_json_cant_say(value: float) -> None:
    """NaN and Infinity have no hash."""
    with pytest.raises(ValueError, match="JSON"):
        hash_json([value])
