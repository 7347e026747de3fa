"""--verify of labels and pictures: what keeps the promise passes, what breaks it ends with exit code 3."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import pipelines
from support.classifier_folders import sentences
from support.exits import EPS, keep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    from dynx.early_exit.calibrate import Findings

    Cli = Callable[..., Result]

TEXTS = "".join(f"{text}\n" for text in sentences(3000, seed=8)).encode()


def test_labels_without_exits_are_the_full_models(cli: Cli, easy: Path) -> None:
    """Where nothing leaves early there is nothing to compare, and that is said."""
    result = cli("classify", "-m", easy, "a fox", "--verify", "--stats")

    assert result.code == 0
    assert "verified: no input exited early" in result.err


def test_labels_that_keep_the_promise(cli: Cli, easy: Path, known: Findings) -> None:
    """Certified exits pass on inputs like those they were learned from; the answers are all there."""
    result = cli("classify", "-m", easy, "--max-disagreement", EPS, "--verify", stdin=TEXTS)

    assert result.code == 0
    assert len(result.out.splitlines()) == 3000


def test_labels_that_break_the_promise(cli: Cli, easy: Path, findings: Findings) -> None:
    """A profile that promises too much is found out: exit code 3, the count in words, and every answer printed."""
    rosy = {**findings.arrays, "evidence.agree": np.ones_like(findings.arrays["evidence.agree"])}
    keep(replace(findings, arrays=rosy))
    result = cli("classify", "-m", easy, "--verify", stdin=TEXTS)

    assert result.code == 3
    assert "answers differ from the full model's, more than 0.02 of them" in result.err
    assert len(result.out.splitlines()) == 3000


@pytest.fixture
def draw(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`dynx draw` of a few-step run of a tiny pipeline, in a folder of its own."""
    pipelines.stable_diffusion().save_pretrained(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    return lambda *more: cli("draw", "-m", "tiny", "a cat", "--seed", 1, "--steps", 4, "--force", *more)


def test_a_picture_like_its_own_run(draw: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The likeness is in the JSON; a picture that reaches the quality asked for is a success."""
    result = draw("--verify", "--json", "--quality", 0.01)

    assert result.code == 0
    assert 0 < result.document["verification"]["ssim"] <= 1


def test_a_picture_unlike_its_own_run(draw: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the quality asked for it is exit code 3, and the picture is kept to be looked at."""
    from dynx.diffusion import similarity

    def unlike(*_: Any) -> similarity.Likeness:
        fields = dict.fromkeys(similarity.Likeness.__dataclass_fields__, 0.1)
        return similarity.Likeness(**fields)

    monkeypatch.setattr("dynx.cli.draw.studio.likeness", unlike)
    result = draw("--verify", "--quality", 0.9)

    assert result.code == 3
    assert (tmp_path / result.out.strip()).read_bytes().startswith(b"\x89PNG")
    assert result.err.splitlines()[-1] == ("dynx: --verify: 1 of 1 pictures have an SSIM below 0.9 to the full run")
