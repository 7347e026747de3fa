"""Draft models on disk: which could serve, and which one calibration has found worth having."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dynx.errors import ModelError
from dynx.runtime.hashing import model_hash
from dynx.runtime.loading import Source
from dynx.runtime.profile import Profile, ProfileKey
from dynx.runtime.profile_store import ProfileStore, profiles_folder
from dynx.speculation.disk_drafters import MAX_SIZE_SHARE, drafters_for, forecast, named
from dynx.speculation.known_drafters import known_drafter, place_of


def model(folder: Path, size: int, kind: str = "LlamaForCausalLM") -> Path:
    """A folder that looks like a model of so many bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [kind], "model_type": "llama"}), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"\0" * size)
    return folder


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models and a hub cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("DYNX_CACHE_DIR", str(tmp_path / "cache"))
    model(tmp_path / "models" / "target", 10_000)
    return tmp_path


def target(disk: Path) -> Source:
    """The model to draft for."""
    return Source("target", disk / "models" / "target", "folder")


def test_what_could_draft_is_found(disk: Path) -> None:
    """Beside the model and in the hub's cache: language models that are small enough, the most promising first."""
    model(disk / "models" / "small", 1_000)
    model(disk / "models" / "tiny", 100)
    model(disk / "models" / "large", 9_000)
    model(disk / "models" / "labels", 100, "BertForSequenceClassification")
    (disk / "models" / "file.gguf").write_bytes(b"GGUF" + b"\0" * 2_000)
    (disk / "models" / "mmproj-file.gguf").write_bytes(b"GGUF")
    model(disk / "hub" / "models--org--name" / "snapshots" / "abc", 500)
    (disk / "hub" / "models--org--torn" / "snapshots").mkdir(parents=True)

    found = drafters_for(target(disk))
    beside = str(disk / "models")
    assert [each.name for each in found] == [f"{beside}/tiny", "org/name", f"{beside}/small", f"{beside}/file.gguf"]
    assert [each.size for each in found] == [100, 500, 1_000, 2_004]
    assert all(a.gain >= b.gain for a, b in itertools.pairwise(found))
    said = named(found)
    assert said is not None
    assert said.startswith(f"{beside}/tiny (0 MB, about 2.")


def test_nothing_to_find(disk: Path) -> None:
    """No weights, nobody beside it, no cache: nothing, and no error."""
    assert drafters_for(target(disk)) == []
    assert named([]) is None
    assert drafters_for(Source("gone", disk / "nowhere", "folder")) == []


def test_forecasts() -> None:
    """A free drafter gives the tokens that a round yields; a dear one less; the largest that is listed still gains."""
    assert forecast(0.0, 0.5) == pytest.approx(sum(0.5**i for i in range(9)))
    assert forecast(0.1) > forecast(0.3) > forecast(MAX_SIZE_SHARE) > 0.9
    assert forecast(0.2, 0.8) == pytest.approx(max((1 - 0.8 ** (k + 1)) / 0.2 / (1 + 0.2 * k) for k in range(1, 9)))


def stored(key: ProfileKey, rate: float, *, drafter: str | None = None, origins: tuple[str, ...] = ("draft",)) -> None:
    """Store a profile of `rate` tokens per second."""
    fields: dict[str, Any] = {"measured": {}, "decision": {"summary": "so"}}
    profile = Profile(
        key=key,
        model_name="target",
        created="2026-01-01T00:00:00+00:00",
        versions={},
        device={"name": "here"},
        fitted={"tokens_per_second": rate, "origins": list(origins)},
        evidence={"drafter": drafter},
        weights=None,
        **fields,
    )
    ProfileStore(profiles_folder(), lambda _: None).save(profile)


KEY = ProfileKey("generate", "a" * 16, None, "b" * 16, "float32")


def find(name: str) -> Source:
    """Find a folder."""
    if not Path(name).is_dir():
        raise ModelError(f"no {name}")
    return Source(Path(name).name, Path(name), "folder")


def test_the_drafter_that_paid_is_taken(disk: Path) -> None:
    """The fastest, where it is faster than none, is still there and still the same; under the same conditions."""
    fast, slow = model(disk / "models" / "fast", 300), model(disk / "models" / "slow", 400)
    assert known_drafter(KEY, find) is None

    stored(replace(KEY, companion=model_hash(slow)), 20.0, drafter=str(slow))
    stored(replace(KEY, companion=model_hash(fast)), 30.0, drafter=str(fast))
    found = known_drafter(KEY, find)
    assert found is not None
    assert found.folder == fast
    assert known_drafter(replace(KEY, dtype="bfloat16"), find) is None

    (fast / "model.safetensors").write_bytes(b"\1" * 300)
    found = known_drafter(KEY, find)
    assert found is not None
    assert found.folder == slow

    stored(KEY, 25.0, origins=("lookup",))
    assert known_drafter(KEY, find) is None


def test_a_drafter_that_didnt_pay_isnt_taken(disk: Path) -> None:
    """Nor one whose place isn't known."""
    small = model(disk / "models" / "small", 300)
    stored(replace(KEY, companion=model_hash(small)), 30.0, drafter=str(small), origins=("lookup",))
    stored(replace(KEY, companion="c" * 16), 40.0)
    assert known_drafter(KEY, find) is None


def test_places(disk: Path) -> None:
    """Folders and files are found again from any folder, others by name."""
    assert place_of(target(disk)) == str((disk / "models" / "target").resolve())
    assert place_of(Source("org/name", disk, "hub")) == "org/name"
    file = disk / "models" / "x.gguf"
    assert place_of(Source("x", disk, "file", file=file)) == str(file.resolve())
