"""The profile cache never trusts a file that it shouldn't, never loses one, and never stops a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from filelock import FileLock

from dynx.errors import UsageError
from dynx.runtime import profile_store as store_module
from dynx.runtime.profile import Profile, ProfileError, ProfileFault, ProfileKey, device_key
from dynx.runtime.profile_store import ProfileStore, StoreError, cache_folder, profiles_folder

if TYPE_CHECKING:
    from pathlib import Path

KEY = ProfileKey("generate", "0123456789abcdef", None, "this-device", "float32")
OTHER = replace(KEY, device="other")
ARRAYS = {"w": np.arange(4.0)}


def profile(key: ProfileKey = KEY, summary: str = "plain", name: str = "story", **changes: Any) -> Profile:
    made = Profile(
        key=key,
        model_name=name,
        created="2026-03-01T12:00:00Z",
        versions={"torch": "2.13.0+cpu"},
        device={"name": f"machine {key.device}"},
        measured={},
        fitted={},
        evidence={},
        decision={"summary": summary},
    )
    return replace(made, **changes)


class Shelf:
    """A store in a fresh folder, and what it warned of."""

    def __init__(self, folder: Path) -> None:
        self.warnings: list[str] = []
        self.folder = folder
        self.store = ProfileStore(folder, self.warnings.append, torch_version="2.13.1")

    def only_warning(self) -> str:
        """Return the one warning there was."""
        assert len(self.warnings) == 1, self.warnings
        assert self.warnings[0].isprintable()
        return self.warnings[0]

    def names(self) -> list[str]:
        """Name the folder's files, locks left out."""
        return sorted(path.name for path in self.folder.iterdir() if not path.name.endswith(".lock"))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "profiles")


def test_override_names_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DYNX_CACHE_DIR decides where profiles lie, an empty one counts as unset, and the process's own is the default."""
    assert cache_folder({"DYNX_CACHE_DIR": str(tmp_path)}) == tmp_path
    assert cache_folder({"DYNX_CACHE_DIR": ""}) == cache_folder({})
    assert cache_folder({}).name == "dynx"
    monkeypatch.setenv("DYNX_CACHE_DIR", str(tmp_path))
    assert profiles_folder() == tmp_path / "profiles"


def test_empty_cache_is_silent(shelf: Shelf) -> None:
    """A folder that isn't there finds nothing, lists nothing, warns of nothing and isn't made."""
    assert shelf.store.find(KEY) is None
    assert (shelf.store.near(KEY), shelf.store.list(), shelf.warnings) == ([], [], [])
    assert not shelf.folder.exists()


def test_saved_profile_is_found(shelf: Shelf) -> None:
    """A saved profile is found by exactly its key, with its arrays, in a file named after task, model and id."""
    path = shelf.store.save(profile(), ARRAYS)
    assert path.name == f"generate-story-{KEY.id}.json"
    found = shelf.store.find(KEY)
    assert found is not None
    assert replace(found, arrays=None) == profile()
    np.testing.assert_array_equal(shelf.store.arrays(found)["w"], ARRAYS["w"])
    assert shelf.store.find(replace(KEY, dtype="bfloat16")) is None
    assert shelf.warnings == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "org/Model-7B", "", "模型", "a" * 300, ".hidden", "[*?]"])
def test_any_model_name_makes_a_safe_file_name(shelf: Shelf, name: str) -> None:
    """Whatever a model is called, its profile stays inside the folder and is found again."""
    path = shelf.store.save(profile(name=name), ARRAYS)
    assert path.parent == shelf.folder
    assert len(shelf.names()) == 2
    assert all(len(found) < 100 for found in shelf.names())
    found = shelf.store.find(KEY)
    assert found is not None
    assert found.model_name == name


def test_lookup_loads_nothing_heavy(shelf: Shelf) -> None:
    """Finding, listing and showing profiles load neither torch nor NumPy nor safetensors."""
    shelf.store.save(profile(), ARRAYS)
    script = f"""
import sys
from pathlib import Path
from dynx.runtime.profile import ProfileKey
from dynx.runtime.profile_store import ProfileStore
store = ProfileStore(Path({str(shelf.folder)!r}), print)
assert [found.key.id for found in store.list()] == ["{KEY.id}"]
store.find(store.get("story").key), store.near(ProfileKey("", "", None, "", ""))
print(sorted({{"torch", "numpy", "safetensors", "filelock", "transformers"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def arrays_of(path: Path) -> Path:
    return next(path.parent.glob("*.safetensors"))


def cut(path: Path, end: bytes = b"") -> None:
    path.write_bytes(path.read_bytes()[:-1] + end)


DAMAGES = [
    (lambda path: path.write_text(path.read_text()[:100]), ProfileFault.NOT_JSON, "not JSON"),
    (lambda path: path.write_bytes(b""), ProfileFault.NOT_JSON, "not JSON"),
    (lambda path: path.write_bytes(b"\xff"), ProfileFault.NOT_UTF8, "not UTF-8 at byte 0"),
    (lambda path: path.write_text('{"schema": "dynx.profile/2"}'), ProfileFault.SCHEMA_UNKNOWN, "dynx.profile/2"),
    (lambda path: path.write_text(profile(OTHER).to_json()), ProfileFault.ID_MISMATCH, "holds the profile"),
    (lambda path: arrays_of(path).unlink(), ProfileFault.ARRAYS_MISSING, "missing"),
    (lambda path: cut(arrays_of(path)), ProfileFault.ARRAYS_TORN, "torn"),
    (lambda path: cut(arrays_of(path), b"!"), ProfileFault.ARRAYS_CHANGED, "changed"),
    (lambda path: (path.unlink(), path.mkdir()), ProfileFault.UNREADABLE, "can't be read"),
]


@pytest.mark.parametrize(("damage", "kind", "message"), DAMAGES)
def test_damaged_profile_is_never_trusted(shelf: Shelf, damage: Any, kind: ProfileFault, message: str) -> None:
    """A damaged profile is passed over with one line that names file and fault, and an error when asked for by id."""
    path = shelf.store.save(profile(), ARRAYS)
    damage(path)
    assert shelf.store.find(KEY) is None
    assert path.name in shelf.only_warning()
    assert message in shelf.only_warning()
    with pytest.raises(ProfileError, match=message) as caught:
        shelf.store.get(KEY.id)
    assert caught.value.kind is kind


@pytest.mark.parametrize(("damage", "kind", "message"), DAMAGES[:-1])
def test_calibrating_again_repairs(shelf: Shelf, damage: Any, kind: ProfileFault, message: str) -> None:
    """Saving over a damaged profile makes it whole."""
    damage(shelf.store.save(profile(), ARRAYS))
    shelf.store.save(profile(summary="again"), ARRAYS)
    found = shelf.store.find(KEY)
    assert found is not None
    assert found.decision == {"summary": "again"}
    assert shelf.warnings == []


def test_other_device_is_said(shelf: Shelf) -> None:
    """A profile that would fit, had it been measured here, is named in one line and not used."""
    shelf.store.save(profile(replace(KEY, device="laptop")))
    shelf.store.save(profile(replace(KEY, device="phone", dtype="bfloat16")))
    assert shelf.store.find(KEY) is None
    assert "another device (machine laptop)" in shelf.only_warning()


def test_other_threads_are_no_other_device(shelf: Shelf) -> None:
    """On the machine that it was measured on, only the threads are what differs."""
    shelf.store.save(profile(replace(KEY, device=device_key("0a1b2c3d4e5f", "cpu", 4))))
    assert shelf.store.find(replace(KEY, device=device_key("0a1b2c3d4e5f", "cpu", 2))) is None
    assert shelf.only_warning() == "the profile for story was measured with 4 threads, not 2, and isn't used"


def test_other_precision_is_silent_and_near(shelf: Shelf) -> None:
    """What fits in all but some fields is listed with those fields, nearest first, other models left out."""
    far = profile(replace(KEY, device="laptop", dtype="bfloat16"))
    close = profile(replace(KEY, dtype="bfloat16"))
    for item in (far, close, profile(), profile(replace(KEY, model="f" * 16)), profile(replace(KEY, task="draw"))):
        shelf.store.save(item)
    assert list(shelf.store.near(KEY)) == [(close, ("dtype",)), (far, ("device", "dtype"))]
    assert shelf.store.find(replace(KEY, quantization="int8")) is None
    assert shelf.warnings == []


@pytest.mark.parametrize(("torch", "stale"), [("2.13.9+cu130", False), ("2.12.1", True), ("2.1.3", True), (None, True)])
def test_other_torch_is_stale(shelf: Shelf, torch: str | None, stale: bool) -> None:
    """A profile measured under another major.minor of torch, or an unknown one, is ignored in one line."""
    shelf.store.save(profile(versions={"torch": torch} if torch else {}))
    assert (shelf.store.find(KEY) is None) == stale
    if stale:
        assert "2.13.1 is installed" in shelf.only_warning()
    else:
        assert shelf.warnings == []


def test_installed_torch_is_the_default(tmp_path: Path) -> None:
    """Without being told, the store compares with the torch that is installed."""
    import torch

    store = ProfileStore(tmp_path, pytest.fail)
    assert store.stale(profile(versions={"torch": torch.__version__})) is None
    assert "1.0" in (store.stale(profile(versions={"torch": "1.0"})) or "")


def test_warnings_hold_no_escape_sequences(shelf: Shelf) -> None:
    """Names in somebody else's file can't write to the terminal through a warning."""
    hostile = profile(OTHER, name="a\x1b[2Jb\nc", device={"name": "\x07\r"})
    shelf.store.save(hostile)
    shelf.store.find(KEY)
    assert "a [2Jb c" in shelf.only_warning()


@pytest.mark.parametrize("failing", [1, 2], ids=["arrays", "document"])
def test_crash_before_replacing_keeps_the_old(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """A failure just before either file is put in place leaves the old profile whole and no temporary file."""
    shelf.store.save(profile(summary="old"), ARRAYS)
    calls = 0
    replace_file = os.replace

    def crash(*paths: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        replace_file(*paths)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(StoreError, match="No space left") as caught:
        shelf.store.save(profile(summary="new"), {"w": np.zeros(9)})
    assert caught.value.hint
    found = shelf.store.find(KEY)
    assert found is not None
    assert found.decision == {"summary": "old"}
    np.testing.assert_array_equal(shelf.store.arrays(found)["w"], ARRAYS["w"])
    assert not [name for name in shelf.names() if name.endswith(".tmp")]
    assert shelf.warnings == []


def test_content_is_on_disk_before_the_name(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is synced before it takes its name, arrays before the document, so that power may fail at any point."""
    done: list[str] = []
    sync, replace_file = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append("sync") or sync(file))  # type: ignore[func-returns-value]
    monkeypatch.setattr(os, "replace", lambda old, new: done.append(str(new)[-5:]) or replace_file(old, new))  # type: ignore[func-returns-value]
    shelf.store.save(profile(), ARRAYS)
    assert done == ["sync", "nsors", "sync", "sync", ".json", "sync"]


def test_leftovers_go_with_the_next_save(shelf: Shelf) -> None:
    """What a killed writer left, and the files of a model since renamed, are gone after the next two saves."""
    shelf.store.save(profile(name="before"), {"w": np.zeros(2)})
    (shelf.folder / f".generate-story-{KEY.id}.json.00ff.tmp").write_bytes(b"half")
    shelf.store.save(profile(), {"w": np.zeros(3)})
    shelf.store.save(profile(), ARRAYS)
    shelf.store.save(profile(), ARRAYS)
    assert [name.rsplit(".", 1)[1] for name in shelf.names()] == ["safetensors", "json"]
    assert [found.model_name for found in shelf.store.list()] == ["story"]


def test_newest_of_two_counts(shelf: Shelf) -> None:
    """Of two files with one id, as a crash after renaming a model leaves them, the newer readable one counts."""
    older = shelf.store.save(profile(name="z-older")).read_text()
    shelf.store.save(profile(name="newer", created="2026-03-02T00:00:00Z"))
    (shelf.folder / f"generate-z-older-{KEY.id}.json").write_text(older)
    (shelf.folder / f"generate-a-torn-{KEY.id}.json").write_text("{")
    found = shelf.store.find(KEY)
    assert found is not None
    assert found.model_name == "newer"
    assert [item.model_name for item in shelf.store.list()] == ["newer"]
    assert shelf.warnings == []


def test_reader_keeps_what_it_has_just_read(shelf: Shelf) -> None:
    """A reader that was overtaken by one save still gets the arrays of the profile that it read."""
    shelf.store.save(profile(), ARRAYS)
    read = shelf.store.get("story")
    shelf.store.save(profile(), {"w": np.zeros(4)})
    np.testing.assert_array_equal(shelf.store.arrays(read)["w"], ARRAYS["w"])
    shelf.store.save(profile(), {"w": np.ones(4)})
    with pytest.raises(ProfileError) as caught:
        shelf.store.arrays(read)
    assert caught.value.kind is ProfileFault.ARRAYS_MISSING


def test_saving_again_keeps_or_drops_arrays(shelf: Shelf) -> None:
    """Saving a profile that was read keeps its arrays unless others, or none, are given."""
    shelf.store.save(profile(), ARRAYS)
    read = shelf.store.get("story")
    shelf.store.save(replace(read, created="2026-03-02T00:00:00Z"))
    np.testing.assert_array_equal(shelf.store.arrays(shelf.store.get("story"))["w"], ARRAYS["w"])
    shelf.store.save(read, {})
    assert shelf.store.arrays(shelf.store.get("story")) == {}


def test_unwritable_value_leaves_the_old(shelf: Shelf) -> None:
    """A profile that JSON can't hold is refused before anything is touched."""
    shelf.store.save(profile(), ARRAYS)
    before = shelf.names()
    with pytest.raises(ProfileError):
        shelf.store.save(profile(measured={"a": float("nan")}), {"w": np.zeros(1)})
    assert shelf.names() == before


def test_unwritable_folder_is_a_store_error(tmp_path: Path) -> None:
    """A cache folder that can't be made raises one error that names it, and looking things up still works."""
    (tmp_path / "file").write_text("in the way")
    shelf = Shelf(tmp_path / "file" / "profiles")
    with pytest.raises(StoreError, match="can't write in") as caught:
        shelf.store.save(profile(), ARRAYS)
    assert "DYNX_CACHE_DIR" in (caught.value.hint or "")
    assert shelf.store.find(KEY) is None
    assert shelf.store.list() == []


def test_held_lock_is_a_store_error(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that can't get the lock gives up with an error; readers and other keys don't need that lock."""
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.0)
    shelf.store.save(profile())
    with FileLock(shelf.folder / f".{KEY.id}.lock"):
        with pytest.raises(StoreError, match="locked"):
            shelf.store.save(profile(summary="new"))
        assert shelf.store.find(KEY) == profile()
        shelf.store.save(profile(replace(KEY, dtype="bfloat16")))


WRITER = """
import sys
from pathlib import Path
import numpy as np
from dynx.runtime.profile import Profile, ProfileKey
from dynx.runtime.profile_store import ProfileStore
folder, start = sys.argv[1:]
key = ProfileKey("generate", "0123456789abcdef", None, "this-device", "float32")
store = ProfileStore(Path(folder), sys.exit)
sys.stdin.readline()
for number in range(int(start), int(start) + 40):
    made = Profile(key, "story", "2026-03-01T12:00:00Z", {"torch": "2.13.0"}, {}, {}, {}, {}, {"summary": str(number)})
    store.save(made, {"number": np.full(1000, number)})
"""


def test_two_processes_can_save_at_once(shelf: Shelf) -> None:
    """Of two processes that save the same profile over and over, one wins, document and arrays; neither fails."""
    command = [sys.executable, "-c", WRITER, str(shelf.folder)]
    writers = [
        subprocess.Popen([*command, start], stdin=subprocess.PIPE, stderr=subprocess.PIPE) for start in ("100", "200")
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        _, complaints = writer.communicate()
        assert (writer.returncode, complaints) == (0, b"")
    found = shelf.store.get("story")
    assert set(shelf.store.arrays(found)["number"].tolist()) == {int(found.decision["summary"])}
    assert len(shelf.names()) <= 3  # the document, its arrays, and those of the one before
    assert shelf.warnings == []


def test_list_is_sorted_and_reports_the_rest(shelf: Shelf) -> None:
    """Listing gives every readable profile, whatever its device or torch, and one line for each other file."""
    items = [
        profile(replace(KEY, task="draw"), name="emoji"),
        profile(replace(KEY, device="elsewhere"), created="2025-01-01T00:00:00Z", versions={}),
        profile(),
        profile(replace(KEY, model="1" * 16), name="tale"),
    ]
    for item in reversed(items):
        shelf.store.save(item)
    (shelf.folder / "notes.json").write_text("{}")
    (shelf.folder / "copy.json").write_text(profile().to_json())
    assert list(shelf.store.list()) == items
    assert [warning.split()[1] for warning in shelf.warnings] == ["copy.json", "notes.json"]


def test_references(shelf: Shelf) -> None:
    """A profile answers to its id, a beginning of it in either case, its file's name and its model's name."""
    path = shelf.store.save(profile())
    shelf.store.save(profile(replace(KEY, model="1" * 16), name="tale"))
    for reference in (KEY.id, KEY.id[:4], KEY.id[:7].upper(), path.name, "story"):
        assert shelf.store.get(reference).key == KEY


def test_ambiguous_reference_lists_what_it_fits(shelf: Shelf) -> None:
    """A name that fits several profiles is refused with all of them, and removes none."""
    other = replace(KEY, device="laptop")
    shelf.store.save(profile())
    shelf.store.save(profile(other))
    with pytest.raises(UsageError, match="fits 2 profiles") as caught:
        shelf.store.remove("story")
    assert KEY.id in (caught.value.hint or "")
    assert other.id in (caught.value.hint or "")
    assert len(shelf.store.list()) == 2


@pytest.mark.parametrize("reference", ["stroy", KEY.id[:3], "", "*", KEY.id + "0"])
def test_unknown_reference_suggests(shelf: Shelf, reference: str) -> None:
    """A reference that fits nothing is refused with what there is, the closest first, or that there is nothing."""
    with pytest.raises(UsageError) as caught:
        shelf.store.get(reference)
    assert caught.value.hint == "there are none yet"
    shelf.store.save(profile())
    shelf.store.save(profile(replace(KEY, model="1" * 16), name="unlike"))
    with pytest.raises(UsageError, match="no profile") as caught:
        shelf.store.get(reference)
    assert "unlike" in (caught.value.hint or "")
    if reference == "stroy":
        assert (caught.value.hint or "").startswith(f"closest is {KEY.id} (generate, story, machine this-device)")


def test_remove_takes_all_files(shelf: Shelf) -> None:
    """Removing deletes the document and its arrays, and leaves other profiles alone."""
    shelf.store.save(profile(), {"w": np.zeros(1)})
    path = shelf.store.save(profile(), ARRAYS)
    kept = shelf.store.save(profile(replace(KEY, dtype="bfloat16"), name="kept"))
    assert shelf.store.remove("story") == path
    assert shelf.names() == [kept.name]


@pytest.mark.parametrize("reference", [KEY.id, f"generate-story-{KEY.id}.json", "notes.json"])
def test_damaged_file_can_be_removed(shelf: Shelf, reference: str) -> None:
    """A file that can't be read can still be removed, by its id or by the name that the warning shows."""
    shelf.store.save(profile(), ARRAYS).write_text("{")
    (shelf.folder / "notes.json").write_text("never a profile")
    before = shelf.names()
    shelf.store.remove(reference)
    left = shelf.names()
    assert left == (["notes.json"] if KEY.id in reference else [name for name in before if name != "notes.json"])


@pytest.mark.parametrize("arrays", [ARRAYS, None], ids=["arrays", "no arrays"])
def test_export_and_import_round_trip(shelf: Shelf, tmp_path: Path, arrays: Any) -> None:
    """An exported profile is one file; imported elsewhere it is equal, arrays included, and exports the same bytes."""
    shelf.store.save(profile(), arrays)
    out = shelf.store.export("story", tmp_path / "out.json")
    other = Shelf(tmp_path / "other")
    imported = other.store.import_file(out, device="this-device")
    assert imported == shelf.store.get("story") == other.store.find(KEY)
    for name, value in (arrays or {}).items():
        np.testing.assert_array_equal(other.store.arrays(imported)[name], value)
    assert other.store.export("story", tmp_path / "again.json").read_bytes() == out.read_bytes()
    assert other.warnings == []


def test_import_says_what_is_odd(shelf: Shelf, tmp_path: Path) -> None:
    """A profile of another device, of another torch, or in place of another is imported and each is said."""
    other = Shelf(tmp_path / "other")
    for target in (other, shelf):
        target.store.save(profile(replace(KEY, device="laptop"), versions={"torch": "2.9.0"}))
    out = other.store.export("story", tmp_path / "out.json")
    shelf.store.import_file(out, device="this-device")
    assert [line.split(" ", 2)[2] for line in shelf.warnings] == [
        "was measured on another device (machine laptop), unused here",
        "won't be used: it was measured with torch 2.9.0, and 2.13.1 is installed",
        "replaces the one of 2026-03-01T12:00:00Z",
    ]


def test_wrong_file_isnt_imported(shelf: Shelf, tmp_path: Path) -> None:
    """A wrong or incomplete file is refused by name and kind before anything is stored."""
    shelf.store.save(profile(), ARRAYS)
    before = shelf.names()
    out = shelf.store.export("story", tmp_path / "out.json")
    document = json.loads(out.read_text())
    document["arrays"]["base64"] = "AAAA" + document["arrays"]["base64"][4:]
    out.write_text(json.dumps(document))
    with pytest.raises(ProfileError, match=r"out\.json isn't imported: its arrays were changed") as caught:
        shelf.store.import_file(out)
    assert caught.value.kind is ProfileFault.ARRAYS_CHANGED
    with pytest.raises(ProfileError) as caught:  # a document out of the cache, without its arrays
        shelf.store.import_file(shelf.folder / f"generate-story-{KEY.id}.json")
    assert "--export" in (caught.value.hint or "")
    assert shelf.names() == before


def test_imported_names_stay_inside(shelf: Shelf, tmp_path: Path) -> None:
    """Whatever task and model an imported file claims, what is stored lies in the folder."""
    hostile = replace(KEY, task="../../../evil")
    (tmp_path / "in.json").write_text(profile(hostile, name="/root/../x").to_json())
    shelf.store.import_file(tmp_path / "in.json")
    assert shelf.names() == [f"evil-root-x-{hostile.id}.json"]
    assert shelf.store.find(hostile) is not None


def test_unreadable_import_and_unwritable_export(shelf: Shelf, tmp_path: Path) -> None:
    """A path that can't be read or written is one error that names it."""
    shelf.store.save(profile())
    with pytest.raises(StoreError, match=r"can't read .*gone\.json"):
        shelf.store.import_file(tmp_path / "gone.json")
    with pytest.raises(StoreError, match="can't write"):
        shelf.store.export("story", tmp_path / "gone" / "out.json")
