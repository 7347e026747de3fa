"""`dynx calibrate` for pipelines that draw: what it prints, keeps and refuses, and that `dynx draw` uses it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
from support import pipelines

from dynx.diffusion import evidence

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.commands import Result

    Cli = Callable[..., Result]

pytestmark = [
    pytest.mark.usefixtures("alone"),
    pytest.mark.filterwarnings("ignore:__array(_wrap)?__ (must|implementation):DeprecationWarning"),
]

PROMPTS = "a red cat\nblue moon\nthe apple\nmoon and cat\n"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that draws from prompts, one that draws from nothing, and one of few steps."""
    root = tmp_path_factory.mktemp("pipelines")
    pipelines.stable_diffusion().save_pretrained(root / "tiny")
    pipelines.ddpm().save_pretrained(root / "random")
    few = diffusers.LCMScheduler(**pipelines.SCALED)
    pipelines.stable_diffusion(few).save_pretrained(root / "few")
    return root


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few numbers of steps and pictures; what the latter can show is tested elsewhere."""
    pipelines.hurry(monkeypatch)


@pytest.mark.usefixtures("quick")
def test_from_measuring_to_drawing(cli: Cli, folders: Path, tmp_path: Path) -> None:
    """Table, words and curve; the profile is stored whole, nothing partial is left, and draw uses it."""
    prompts, plot = tmp_path / "prompts.txt", tmp_path / "curve.svg"
    prompts.write_text(PROMPTS, encoding="utf-8")
    options = ("-m", folders / "tiny", "--data", prompts, "--quality", 0.1, "--budget", 600)
    planned = cli("calibrate", *options, "--dry-run", "--json").document
    made = cli("calibrate", *options, "--plot", plot)
    rows = [re.split(r"  +", line.strip()) for line in made.out.splitlines()]

    assert made.code == 0
    assert planned["prompts"] == 4
    assert re.fullmatch(rf"profile {planned['profile']} stored in .*/draw-tiny-{planned['profile']}\.json\n", made.err)
    assert rows[0] == ["steps", "SSIM, median", "p5", "worst", "s a picture"]
    assert [row[0] for row in rows[1:5]] == ["6", "12", "plain, 50", "chosen"]
    assert re.match(r"62 of 104 pictures certify: ", made.out.splitlines()[5])
    assert re.search(r"^tiny: dpm\+\+2m in .* SSIM at least 0\.1 in \d+ of 62 pictures", made.out, re.MULTILINE)
    assert "<svg" in plot.read_text(encoding="utf-8")
    cache = Path(os.environ["DYNX_CACHE_DIR"])
    assert list((cache / "partial").iterdir()) == []

    drawn = cli("draw", "-m", folders / "tiny", "a red cat", "-o", tmp_path / "x.png", "--quality", 0.1, "--json")
    picture: Any = drawn.document
    assert picture["guarantee"]["certified_on"] == 62
    assert picture["receipt"]["calls"] < 50
    other = cli(
        "draw", "-m", folders / "tiny", "cat", "-o", tmp_path / "y.png", "--quality", 0.1, "--guidance", 2, "--json"
    )
    assert re.fullmatch(r"dynx: the profile was measured with guidance 7.5, not guidance 2; drawing plain\n", other.err)
    assert other.document["guarantee"] is None


@pytest.mark.usefixtures("quick")
def test_ctrl_c_is_gone_on_from(cli: Cli, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 130 and no profile; the same command goes on, says so, and prints one JSON document."""
    own, done = evidence.sweep_steps, []

    def stopping(*args: Any, **others: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(own(*args, **others))
        return done[-1]

    monkeypatch.setattr(evidence, "sweep_steps", stopping)
    monkeypatch.setattr("dynx.cli.main.die_of", lambda number: 128 + number)  # which would end this very process
    options = ("calibrate", "-m", folders / "tiny", "--quality", 0.1, "--budget", 600, "--json")
    stopped = cli(*options)
    assert (stopped.code, stopped.out) == (130, "")
    assert stopped.err.splitlines()[0] == "stopped; run the same command to continue from here"
    assert cli("calibrate", "--list", "--json").document["profiles"] == []
    cache = Path(os.environ["DYNX_CACHE_DIR"])
    assert [p.suffix for p in (cache / "partial").iterdir()] == [".safetensors"]

    monkeypatch.setattr(evidence, "sweep_steps", own)
    whole = cli(*options)
    assert whole.code == 0
    assert whole.err.splitlines()[0] == "going on after 16 pictures that an earlier calibration drew"
    assert whole.out.startswith('{"schema": "dynx.calibrate/1", ')
    assert json.loads(whole.out)["evidence"]["certificate"]["n"] == 62


@pytest.mark.parametrize(
    ("name", "words"),
    [("few", "LCMScheduler is for those only"), ("random", "DDPMScheduler draws noise at every step")],
)
def test_what_is_drawn_plain_is_said_in_a_line(cli: Cli, folders: Path, name: str, words: str) -> None:
    """Few-step and random pipelines: exit 1, the reason, nothing stored."""
    result = cli("calibrate", "-m", folders / name)

    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(rf"dynx: \w+ is drawn plain: .*{words}.*\n", result.err)
    assert not [file for file in Path(os.environ["DYNX_CACHE_DIR"]).rglob("*.*") if file.parent.name != "weights"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plot", "curve.pdf"], "--plot curve.pdf: a plot is an SVG or a PNG file"),
        (["--plot", "/nowhere/curve.svg"], "the folder /nowhere doesn't exist"),
        (["--draft", "self"], "--draft is for language models"),
        (["--max-length", "16"], "--max-length does not apply: "),
        (["--size", "17"], "multiples of"),
        (["--quality", "0"], "--quality 0 must lie between 0 and 1"),
        (["--budget", "5"], "120 pictures at every number of steps take at least"),
    ],
    ids=lambda o: " ".join(o) if isinstance(o, list) else "",
)
def test_what_is_refused_before_it_takes_time(cli: Cli, folders: Path, options: list[str], words: str) -> None:
    """Usage errors, with exit code 2 and at most a hint."""
    result = cli("calibrate", "-m", folders / "tiny", *options)

    assert (result.code, result.out) == (2, "")
    assert words in result.err.splitlines()[0]
    assert len(result.err.splitlines()) <= 2


def test_a_dry_run_in_words(cli: Cli, folders: Path) -> None:
    """What would be measured and shown, without loading a pipeline."""
    result = cli("calibrate", "-m", folders / "tiny", "--dry-run")
    lines = result.out.splitlines()

    assert (result.code, result.err) == (0, "")
    assert [line.split(":")[0] for line in lines[:-1]] == [
        *("model", "device", "dtype", "threads", "backend"),
        *("prompts", "power"),
    ]
    assert lines[-2].startswith("power: at the least 72 of 120 pictures certify: ")
    assert re.fullmatch(r"would measure for about 600 s and store profile [0-9a-f]{12}", lines[-1])
