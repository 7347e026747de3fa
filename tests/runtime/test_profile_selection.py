"""Which profile a run goes by, whatever the task: one asked for by its id fits, or is refused with what differs."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from dynx.errors import NoProfileError, UsageError
from dynx.runtime.profile import Profile, ProfileKey
from dynx.runtime.profile_selection import select_profile
from dynx.runtime.profile_store import ProfileStore, profiles_folder

if TYPE_CHECKING:
    from pathlib import Path

    from dynx.runtime.profile_selection import SelectedProfile

WEIGHTS = "0" * 32
KEY = ProfileKey("generate", "0123456789abcdef", "d" * 16, "fedcba987654-cpu-2t", "float32")


def profile(key: ProfileKey) -> Profile:
    """One with nothing in it."""
    versions = {"torch": torch_version()}
    return Profile(
        key,
        "tiny",
        "2026-01-01T00:00:00+00:00",
        versions,
        {"name": "Some CPU"},
        {},
        {},
        {},
        {"summary": "none"},
        weights=WEIGHTS,
    )


def torch_version() -> str:
    """As the store compares it."""
    from importlib import metadata

    return metadata.version("torch")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache."""
    monkeypatch.setenv("DYNX_CACHE_DIR", str(tmp_path / "cache"))


def found(key: ProfileKey, wanted: str | None = None, **more: Any) -> SelectedProfile:
    """What a run of `key` goes by."""
    options: dict[str, Any] = {"plain": False, "required": False, "weights": lambda: WEIGHTS} | more
    return select_profile(key, options.pop("bundled", profiles_folder() / "none.json"), wanted=wanted, **options)


@pytest.mark.parametrize("task", ["generate", "classify", "draw"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "0000ba987654-cpu-2t"}, "on another device (Some CPU)"),
        ({"device": "fedcba987654-cuda-2t"}, "on cuda, not cpu"),
        ({"device": "fedcba987654-cpu-16t"}, "with 16 threads, not 2"),
        ({"dtype": "bfloat16"}, "in bfloat16, not float32"),
        ({"quantization": "int8"}, "with int8 weights, not with weights as they are"),
        ({"model": "f" * 16}, "with other weights"),
        ({"companion": "e" * 16}, "with another draft model"),
        ({"companion": None}, "without a draft model"),
        ({"device": "fedcba987654-cpu-4t", "dtype": "float16"}, "with 4 threads, not 2 and in float16, not float32"),
    ],
)
def test_one_measured_under_other_conditions_is_refused(task: str, change: dict[str, Any], words: str) -> None:
    """In every task, with what differs and what to do."""
    key = replace(KEY, task=task)
    other = profile(replace(key, **change))
    ProfileStore(profiles_folder(), pytest.fail).save(other)
    with pytest.raises(UsageError, match=re.escape(f"doesn't fit: it was measured {words}") + "$") as caught:
        found(key, other.key.id)
    assert caught.value.hint == "without `profile` dynx takes one that fits"


def test_one_of_another_task_is_refused() -> None:
    """By its id it could be asked for anywhere."""
    other = profile(replace(KEY, task="draw"))
    ProfileStore(profiles_folder(), pytest.fail).save(other)
    with pytest.raises(UsageError, match=r"measured for dynx draw, not dynx generate$"):
        found(KEY, other.key.id)


def test_one_that_fits_is_taken() -> None:
    """By its id, and without; a run that has no draft model may name one that was measured with it."""
    own = profile(KEY)
    ProfileStore(profiles_folder(), pytest.fail).save(own)
    assert found(KEY, own.key.id).profile == own
    assert found(KEY).profile == own
    assert found(replace(KEY, companion=None), own.key.id).profile == own
    assert found(replace(KEY, companion=None)).profile is None


def test_one_that_came_with_the_model_was_not_measured_here(tmp_path: Path) -> None:
    """It fits on any device, and meets the requirement of a profile only where costs don't matter."""
    elsewhere = profile(replace(KEY, device="0000ba987654-cpu-64t"))
    path = tmp_path / "bundled.json"
    path.write_text(elsewhere.to_json(), encoding="utf-8")
    assert found(KEY, bundled=path).bundled
    assert found(KEY, bundled=path, required=True).profile == elsewhere
    with pytest.raises(NoProfileError, match="no profile fits the model here"):
        found(KEY, bundled=path, required=True, measured_here=True)
    assert found(KEY, "none", bundled=path).profile is None


def test_a_profile_of_another_form_of_prompts_stands_in() -> None:
    """Chats go by their own profile, else by that of texts, and say so; not where one is required."""
    store = ProfileStore(profiles_folder(), pytest.fail)
    chats = replace(KEY, form="chat")
    store.save(profile(KEY))
    stand_in = found(chats)
    assert stand_in.profile is not None
    assert stand_in.profile.key == KEY
    assert stand_in.decision.reason.endswith(" on plain texts")
    with pytest.raises(NoProfileError):
        found(chats, required=True)
    store.save(profile(chats))
    own = found(chats, required=True)
    assert own.profile is not None
    assert own.profile.key == chats
    assert " on " not in own.decision.reason
    texts = found(KEY)
    assert texts.profile is not None
    assert texts.profile.key == KEY
