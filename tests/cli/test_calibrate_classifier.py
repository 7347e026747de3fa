"""`dynx calibrate` for a classifier: what it asks for, what it says before and after, and that classify uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.classifier_folders import write_image_classifier, write_pictures
from support.exits import EPS, LESSONS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]


@pytest.fixture
def lessons(tmp_path: Path) -> Path:
    """A text per line."""
    path = tmp_path / "lessons.txt"
    path.write_text("".join(f"{text}\n" for text in LESSONS), encoding="utf-8")
    return path


def test_from_data_to_answers(cli: Cli, steady: None, easy: Path, lessons: Path) -> None:
    """The power is told first, then a table and the decision; the profile is stored, listed, and used."""
    done = cli("calibrate", "-m", easy, "--data", lessons, "--max-disagreement", EPS)
    listed = cli("calibrate", "--list").out
    used = cli("classify", "-m", easy, "--max-disagreement", EPS, "--json", LESSONS[0]).document

    assert done.code == 0
    assert done.err.startswith("150 of 300 inputs certify: 29 inputs are the fewest for 10 %")
    assert done.out.splitlines()[0].split() == [
        "exit", "after", "agrees", "cost", "to", "reach", "of", "looking", "leave", "there",
    ]  # fmt: skip
    assert "all layers" in done.out
    assert "costs per input at batches of 32; 150 of 300 inputs certify" in done.out
    assert "easy: exits after layer 1" in done.out
    assert "  classify  easy  float32  " in listed
    assert used["guarantee"]["basis"] == "profile"
    assert used["guarantee"]["certified_on"] == 150


def test_as_json(cli: Cli, steady: None, easy: Path, lessons: Path) -> None:
    """One document: the profile, under the command's own schema."""
    document = cli("calibrate", "-m", easy, "--data", lessons, "--max-disagreement", EPS, "--json").document

    assert document["schema"] == "dynx.calibrate/1"
    assert document["key"]["task"] == "classify"
    assert document["evidence"]["certificate"]["n"] == 150
    assert document["fitted"]["max_disagreement"] == EPS


def test_a_dry_run(cli: Cli, easy: Path, lessons: Path) -> None:
    """What the data can show, without a model or a profile."""
    result = cli("calibrate", "-m", easy, "--data", lessons, "--dry-run")
    document = cli("calibrate", "-m", easy, "--data", lessons, "--dry-run", "--json").document

    assert result.code == 0
    assert "inputs: 300, 300 different" in result.out
    assert "150 of them certify: 149 inputs are the fewest for 2 % at 95 %" in result.out
    assert (document["certify"], document["may_differ"], document["distinct"]) == (150, 0, 300)
    assert cli("calibrate", "--list").out == ""


def test_what_it_refuses(cli: Cli, easy: Path, lessons: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """No data, data that isn't there, options of language models, and models that can't be calibrated."""
    few = tmp_path / "few.txt"
    few.write_text("a fox\na key\n")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    for code, words, arguments in (
        (2, "classifiers need --data", ["-m", easy]),
        (2, "can't be read: No such file", ["-m", easy, "--data", tmp_path / "nowhere"]),
        (2, "--draft is for language models", ["-m", easy, "--data", lessons, "--draft", "self"]),
        (2, "2 different inputs; at least 60", ["-m", easy, "--data", few]),
        (2, "--max-disagreement 2", ["-m", easy, "--data", lessons, "--max-disagreement", 2]),
        (2, "--column does not apply: ", ["-m", tiny_folder, "--column", "x"]),
        (1, "names no pipeline", ["-m", tmp_path / "pipeline", "--data", lessons]),
    ):
        result = cli("calibrate", *arguments)
        assert (result.code, result.out) == (code, "")
        assert words in result.err
        assert "dynx: " in result.err


def test_pictures(cli: Cli, steady: None, tmp_path: Path) -> None:
    """A folder of them; what can't be read is counted, and repeated pictures count once."""
    vit = write_image_classifier(tmp_path / "vit")
    files = write_pictures(tmp_path / "pictures", 70)
    (tmp_path / "pictures" / "again.png").write_bytes(files[0].read_bytes())
    (tmp_path / "pictures" / "torn.png").write_bytes(files[0].read_bytes()[:80])
    result = cli("calibrate", "-m", vit, "--data", tmp_path / "pictures", "--max-disagreement", 0.3)

    assert result.code == 0
    assert "35 of 71 inputs certify" in result.err
    assert "1 inputs can't be read and were skipped" in result.err
    assert "vit: " in result.out
    assert cli("calibrate", "--list").out.count("\n") == 1
