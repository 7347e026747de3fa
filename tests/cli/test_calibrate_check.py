"""`dynx calibrate --check`: what is promised is tested on inputs that it wasn't learned from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support.classifier_folders import sentences
from support.exits import EPS, LESSONS

from dynx.runtime.profile_store import ProfileStore, profiles_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    from dynx.early_exit.calibrate import Findings

    Cli = Callable[..., Result]


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """Texts like those learned from, and others."""
    path = tmp_path / "fresh.txt"
    path.write_text("\n".join(sentences(60, seed=5)), encoding="utf-8")
    return path


def test_a_promise_that_holds(cli: Cli, easy: Path, known: Findings, fresh: Path) -> None:
    """Exit code 0, and a line that says so; as JSON the measurement."""
    words = ("calibrate", "-m", easy, "--data", fresh, "--check", "--max-disagreement", EPS)
    result, measured = cli(*words), cli(*words, "--json").document

    assert result.code == 0
    assert (measured["schema"], measured["verdict"]) == ("dynx.bench/1", "pass")
    assert result.out.splitlines()[-1].endswith(f"the promise of profile {known.profile.key.id} holds on these inputs")


def test_without_a_profile_for_this_device(cli: Cli, easy: Path, known: Findings, fresh: Path) -> None:
    """Exit code 4, and where the stored one is from."""
    store = ProfileStore(profiles_folder(), lambda _: None)
    store.remove(known.profile.key.id)
    nothing = cli("calibrate", "-m", easy, "--data", fresh, "--check")
    store.save(replace(known.profile, key=replace(known.profile.key, device="another")), known.arrays)
    other = cli("calibrate", "-m", easy, "--data", fresh, "--check")

    assert (nothing.code, "no profile of easy is stored" in nothing.err) == (4, True)
    assert (other.code, "was measured on another device" in other.err) == (4, True)


def test_inputs_learned_from_prove_nothing(cli: Cli, easy: Path, known: Findings, tmp_path: Path) -> None:
    """The very data of the calibration is refused, and so are options that a check has no use for."""
    path = tmp_path / "lessons.txt"
    path.write_text("".join(f"{text}\n" for text in LESSONS), encoding="utf-8")
    learned = cli("calibrate", "-m", easy, "--data", path, "--check", "--max-disagreement", EPS)
    dry = cli("calibrate", "-m", easy, "--data", path, "--check", "--dry-run")

    assert (learned.code, "a check needs fresh inputs" in learned.err) == (2, True)
    assert (dry.code, "--dry-run" in dry.err) == (2, True)


def test_a_promise_of_speed(cli: Cli, tiny_folder: Path) -> None:
    """A speed-up of 900 in a profile is found out, exit code 3; a profile of another device isn't tested, exit code 4."""
    assert cli("calibrate", "-m", tiny_folder, "--budget", 5, "-q").code == 0
    store = ProfileStore(profiles_folder(), lambda _: None)
    (made,) = store.list()
    store.save(replace(made, evidence={**made.evidence, "predicted_speedup": 900.0}), {})
    broken = cli("calibrate", "-m", tiny_folder, "--check", "--budget", 5)
    store.remove(made.key.id)
    store.save(replace(made, key=replace(made.key, device="another")), {})
    other = cli("calibrate", "-m", tiny_folder, "--check", "--budget", 5)

    assert (broken.code, "is below 720.00x as a whole" in broken.err) == (3, True)
    assert broken.out.splitlines()[-1].endswith(f"the promise of profile {made.key.id} is broken")
    assert (other.code, "was measured on another device" in other.err) == (4, True)
