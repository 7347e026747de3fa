"""`dynx draw` as a user meets it: what it writes and where, what it says, and how it ends."""

from __future__ import annotations

import errno
import io
import os
import pty
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from support import pipelines
from support.commands import Result, environment, spawn

from dynx.cli import main as program
from dynx.cli.classify.truncation import unread
from dynx.cli.draw import png
from dynx.diffusion.generator import ImageGenerator
from dynx.diffusion.profile_data import Guarantee

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.diffusion.types import Step

    Cli = Callable[..., Result]

STEPS = 10
"""Enough to be no few-step model."""

KEYS = [
    *("schema", "index", "path", "prompt", "negative", "seed", "model", "size", "guidance", "draft", "source"),
    *("flagged", "error", "receipt", "guarantee", "decisions"),
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that draws from prompts, and one that draws from nothing."""
    root = tmp_path_factory.mktemp("pipelines")
    pipelines.stable_diffusion().save_pretrained(root / "tiny")
    pipelines.ddim().save_pretrained(root / "bare")
    return root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to draw in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def draw(cli: Cli, folders: Path, here: Path) -> Cli:
    """`dynx draw` with the tiny pipeline in few steps, unless told otherwise."""

    def run(*arguments: object, steps: int | None = STEPS, model: str = "tiny", stdin: bytes | None = None) -> Result:
        told = [] if steps is None else ["--steps", steps]
        return cli("draw", "-m", folders / model, *told, *arguments, stdin=stdin)

    return run


@pytest.fixture
def died(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Signals that the process would have ended by."""
    numbers: list[int] = []
    monkeypatch.setattr(program, "die_of", lambda number: numbers.append(number) or 128 + number)
    return numbers


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def at_step(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], Any]) -> None:
    """Do something when a picture's step `at` is done."""
    real = ImageGenerator.draw_all

    def spied(self: ImageGenerator, wanted: Any, *, callback: Callable[[int, Step], None], **others: Any) -> Any:
        def both(place: int, step: Step) -> None:
            if step.index == at:
                act()
            callback(place, step)

        return real(self, wanted, callback=both, **others)

    monkeypatch.setattr(ImageGenerator, "draw_all", spied)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_a_picture_and_its_path(draw: Cli, here: Path) -> None:
    """The path on stdout and nothing on stderr; the pixels are the pipeline's own."""
    result = draw("a red cat", "--seed", 1)
    own = pipelines.stable_diffusion()(
        "a red cat",
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).images[0]

    assert result == Result(0, "a-red-cat.png\n", "")
    np.testing.assert_array_equal(pixels(here / "a-red-cat.png"), (own * 255).round().astype("uint8"))


def test_the_file_says_how_it_was_made(draw: Cli, cli: Cli, here: Path, folders: Path) -> None:
    """All that it takes to draw it again; drawn again it is the same file to the byte."""
    draw("a red cat", "--seed", 7, "--negative", "moon", "--guidance", 3, "-o", "one.png")
    draw("a red cat", "--seed", 7, "--negative", "moon", "--guidance", 3, "-o", "two.png")
    facts = cli("draw", "--info", "one.png", "--json").document
    shown = cli("draw", "--info", "one.png", "two.png")
    both = cli("draw", "--info", "one.png", "--info", "two.png", "--json").document

    assert (here / "one.png").read_bytes() == (here / "two.png").read_bytes()
    expected = {"prompt": "a red cat", "negative": "moon", "seed": 7, "size": [16, 16], "guidance": 3.0, "calls": STEPS}
    assert {key: facts[key] for key in expected} == expected
    assert (facts["rows"], facts["model"], facts["solver"]) == (2 * STEPS, "tiny", "DDIMScheduler")
    assert facts["steps"] == {"planned": STEPS, "run": STEPS, "skipped": 0, "cached": 0, "unguided": 0}
    assert len(facts["timesteps"]) == STEPS
    assert (facts["draft"], facts["landed"]) == (False, False)
    assert re.search(r"^prompt +a red cat$", shown.out, re.MULTILINE)
    assert len(re.findall(r"^file ", shown.out, re.MULTILINE)) == 2
    assert (shown.code, shown.err) == (0, "")
    assert [r["path"] for r in both["results"]] == ["one.png", "two.png"]


def test_json(draw: Cli, here: Path) -> None:
    """A picture is an object, several are a list; lines tell each step besides."""
    one = draw("a cat", "--json").document
    many = draw("a cat", "-c", 2, "--seed", 4, "--json").document
    *steps, last = draw("blue moon", "--jsonl").documents

    assert list(one) == KEYS
    assert one["path"] == "a-cat.png"
    assert png.read(here / "a-cat.png")["seed"] == one["seed"]
    assert [(r["path"], r["seed"], r["index"]) for r in many["results"]] == [
        ("1-a-cat.png", 4, 0),
        ("2-a-cat.png", 5, 1),
    ]
    assert [s["step"] for s in steps] == list(range(1, STEPS + 1))
    assert {(s["event"], s["of"], s["computed"]) for s in steps} == {("step", STEPS, True)}
    assert (last["event"], last["receipt"]["calls"]) == ("result", STEPS)
    assert last["decisions"]["steps"] == {"value": STEPS, "reason": "asked for"}


def test_prompts_from_stdin(draw: Cli, here: Path) -> None:
    """A line each, or all of it as one; every prompt gets the same seeds."""
    result = draw("--lines", "-c", 2, "--seed", 1, "-o", "out/", stdin=b"a cat\n\nblue moon\n")
    whole = draw(stdin=b"the apple\n")

    assert result.out.splitlines() == [f"out/{n}.png" for n in ("1-a-cat", "2-a-cat", "3-blue-moon", "4-blue-moon")]
    assert [png.read(here / line)["seed"] for line in result.out.splitlines()] == [1, 2, 1, 2]
    assert whole.out == "the-apple.png\n"


def own_pixels(prompt: str, seed: int) -> np.ndarray:
    """What diffusers draws by itself."""
    made = pipelines.stable_diffusion()(
        prompt, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(seed), output_type="np"
    )
    return np.asarray((made.images[0] * 255).round().astype("uint8"))


def test_every_argument_is_a_picture(draw: Cli, here: Path) -> None:
    """Each the pipeline's own of that prompt; - is what stdin holds, and what is piped in stands before each."""
    result = draw("a red cat", "blue moon", "--seed", 1)
    with_dash = draw("the", "-", "--seed", 1, "-o", "dash/", stdin=b"apple\n")
    piped = draw("cat", "moon", "--seed", 1, "-o", "piped/", "--json", stdin=b"blue\n").document

    assert result == Result(0, "1-a-red-cat.png\n2-blue-moon.png\n", "")
    for path, prompt in (("1-a-red-cat.png", "a red cat"), ("2-blue-moon.png", "blue moon")):
        np.testing.assert_array_equal(pixels(here / path), own_pixels(prompt, 1))
    assert with_dash.out == "dash/1-the.png\ndash/2-apple.png\n"
    assert [r["prompt"] for r in piped["results"]] == ["blue\ncat", "blue\nmoon"]


def test_lines_with_several_arguments(draw: Cli, here: Path) -> None:
    """Each line with each of them."""
    result = draw("--lines", "cat", "moon", "-o", "out/", "--json", stdin=b"a\nthe\n").document

    assert [r["prompt"] for r in result["results"]] == ["a\ncat", "a\nmoon", "the\ncat", "the\nmoon"]


def test_lines_with_sizes_and_seeds_of_their_own(draw: Cli, here: Path) -> None:
    """In the order of the lines, each as if it had been asked for alone; text in braces is a prompt."""
    lines = [
        '{"prompt": "a cat", "size": "32x16"}',
        "a moon",
        '{"prompt": "a king", "size": [32, 16], "seed": 9}',
        '{"prompt": "a fox", "size": 24}',
        "{a red cat}",
    ]
    found = draw("--lines", "--seed", 4, "-o", "out/", "--json", stdin="\n".join(lines).encode()).document["results"]
    assert [each["prompt"] for each in found] == ["a cat", "a moon", "a king", "a fox", "{a red cat}"]
    assert [each["size"] for each in found] == [[32, 16], [16, 16], [32, 16], [24, 24], [16, 16]]
    assert [each["seed"] for each in found] == [4, 4, 9, 4, 4]
    for each in found:
        name = f"{each['index']}.png"
        size = "x".join(map(str, each["size"]))
        assert draw(each["prompt"], "--size", size, "--seed", each["seed"], "-o", name).code == 0
        np.testing.assert_allclose(pixels_of(here / each["path"]), pixels_of(here / name), atol=1)
    again = draw("--finish", found[2]["path"], "-o", "again.png")
    assert again.code == 0, again.err
    assert pixels_of(here / "again.png").shape == (16, 32, 3)


def pixels_of(path: Path) -> Any:
    """The pixels of a file."""
    return np.asarray(Image.open(path).convert("RGB"), dtype=int)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a cat", "size": 15}', "multiples of"),
        ('{"prompt": "a cat", "size": "wide"}', "the line's size wide"),
        ('{"prompt": "a cat", "size": [16]}', "the line's size [16]"),
        ('{"prompt": "a cat", "seed": -1}', "the line's seed -1"),
        ('{"prompt": "a cat", "seed": true}', "the line's seed true"),
        ('{"prompt": 3}', "without a text as its prompt"),
        ('{"prompt": "a cat", "steps": 3}', "the line has the field steps"),
    ],
)
def test_a_line_that_cannot_be_used_fails_alone(draw: Cli, here: Path, line: str, said: str) -> None:
    """The others are drawn, and the reason is in its place."""
    result = draw("--lines", "--seed", 1, "-o", "out/", stdin=f"{line}\na moon\n".encode())
    assert result.code == 1
    assert said in result.err
    assert result.out.splitlines() == ["out/2-a-moon.png"]


def test_lines_of_one_name(draw: Cli, here: Path) -> None:
    """The second is numbered; where the name is fixed it is an error in its place, and the rest is drawn."""
    named = draw("--lines", "--seed", 1, "-o", "{slug}.png", stdin="A cat\n🍎\na cat!\n🍏\n".encode())
    fixed = draw("--lines", "-c", 2, "--seed", 1, "-o", "{seed}.png", "--json", stdin=b"a cat\nblue moon\n")

    assert named == Result(0, "a-cat.png\nred-apple.png\na-cat-2.png\ngreen-apple.png\n", "")
    assert png.read(here / "a-cat-2.png")["prompt"] == "a cat!"
    assert fixed.code == 1
    assert [(r["path"], r["index"]) for r in fixed.document["results"]] == [
        ("1.png", 0),
        ("2.png", 1),
        (None, 2),
        (None, 3),
    ]
    assert fixed.document["results"][2]["error"].startswith("1.png would be written twice (use {n} in --output")
    assert png.read(here / "1.png")["prompt"] == "a cat"


@pytest.mark.parametrize("mode", ["--json", "--jsonl"])
def test_a_bad_line_is_an_error_in_its_place(draw: Cli, here: Path, mode: str) -> None:
    """Of bytes that aren't UTF-8, or with a file in its way; all others are drawn, and the exit code tells."""
    Path("3-blue-moon.png").write_bytes(b"mine")
    data = b"a cat\nred \xff\nblue moon\nthe apple\n"
    result = draw("--lines", "--seed", 1, mode, stdin=data)
    found = result.document["results"] if mode == "--json" else [d for d in result.documents if d["event"] == "result"]

    assert result.code == 1
    assert [(r["index"], r["path"]) for r in found] == [
        (0, "1-a-cat.png"),
        (1, None),
        (2, None),
        (3, "4-the-apple.png"),
    ]
    assert [(r["prompt"], r["receipt"] is None) for r in found[1:3]] == [("red \ufffd", True), ("blue moon", True)]
    assert found[1]["error"].startswith(f"stdin is not UTF-8: byte 0xff at offset {data.index(255)}")
    assert found[2]["error"] == "3-blue-moon.png exists (--force overwrites it)"
    assert (found[0]["error"], found[3]["error"]) == (None, None)
    np.testing.assert_array_equal(pixels(here / "4-the-apple.png"), own_pixels("the apple", 1))
    assert Path("3-blue-moon.png").read_bytes() == b"mine"


def test_a_line_that_cannot_be_read_first(draw: Cli, here: Path) -> None:
    """Ends nothing either; a run of bad lines alone fails, and no line is an error as ever."""
    result = draw("--lines", stdin=b"\xff\na cat\n")
    bad = draw("--lines", stdin=b"\xff\n")
    none = draw("--lines", stdin=b"\n")

    assert (result.code, result.out, bad.code, none.code) == (1, "2-a-cat.png\n", 1, 2)
    assert result.err.splitlines()[1] == "dynx: 1 of 2 pictures failed; the reasons are above"


@pytest.mark.parametrize("lines", [True, False], ids=["lines", "arguments"])
def test_what_fails_while_it_is_drawn(draw: Cli, here: Path, monkeypatch: pytest.MonkeyPatch, lines: bool) -> None:
    """A prompt that the pipeline chokes on, and a file that can't be written: in their places, the rest is drawn."""
    real, link = ImageGenerator.draw_all, Path.hardlink_to

    def picky(self: ImageGenerator, wanted: Any, **others: Any) -> Any:
        if any(prompt == "blue moon" for prompt, _ in wanted):
            raise ValueError("index out of range\nin self")
        return real(self, wanted, **others)

    def full(self: Path, target: Path) -> None:
        if "red" in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        link(self, target)

    monkeypatch.setattr(ImageGenerator, "draw_all", picky)
    monkeypatch.setattr(Path, "hardlink_to", full)
    monkeypatch.setattr(Path, "replace", full)
    prompts = ["a cat", "blue moon", "a red cat", "the apple"]
    given = ["--lines"] if lines else prompts
    result = draw(*given, "--seed", 1, stdin="\n".join(prompts).encode() if lines else None)

    assert (result.code, result.out) == (1, "1-a-cat.png\n4-the-apple.png\n")
    assert result.err.splitlines() == [
        "dynx: no picture of 'blue moon' with seed 1: ValueError: index out of range",
        "dynx: no picture of 'a red cat' with seed 1: can't write 3-a-red-cat.png: No space left on device",
        "dynx: 2 of 4 pictures failed; the reasons are above",
    ]
    assert names(here) == ["1-a-cat.png", "4-the-apple.png"]


@pytest.mark.signals
def test_ctrl_c_beside_a_failure(draw: Cli, here: Path, died: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is told, and no further picture begins."""

    def fail() -> None:
        ctrl_c()
        raise ValueError("no")

    at_step(monkeypatch, 2, fail)
    result = draw("a cat", "blue moon")

    assert (died, names(here)) == ([signal.SIGINT], [])
    assert len(result.err.splitlines()) == 1


def test_a_pipeline_of_linked_parts(cli: Cli, folders: Path, here: Path, tmp_path: Path) -> None:
    """Is drawn as diffusers draws it."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for part in (folders / "tiny").iterdir():
        (linked / part.name).symlink_to(part)
    result = cli("draw", "-m", linked, "a red cat", "--seed", 1, "--steps", STEPS)

    assert result == Result(0, "a-red-cat.png\n", "")
    np.testing.assert_array_equal(pixels(here / "a-red-cat.png"), own_pixels("a red cat", 1))


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("StableDiffusionImg2ImgPipeline", "image"), ("StableDiffusionInpaintPipeline", "image and mask_image")],
)
def test_a_pipeline_that_starts_from_a_picture(cli: Cli, here: Path, tmp_path: Path, kind: str, missing: str) -> None:
    """Is refused in one line with what is missing, by every command that loads it."""
    folder = tmp_path / "edits"
    parts = pipelines.stable_diffusion().components
    getattr(diffusers, kind)(**parts, requires_safety_checker=False).save_pretrained(folder)
    for command in (("draw", "a cat", "a dog"), ("calibrate",), ("bench", "draw")):
        result = cli(*command, "-m", folder)
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith(f"dynx: {kind} needs {missing}, and dynx draws from prompts alone (")
        assert len(result.err.splitlines()) == 2
    assert names(here) == []


def test_the_png_on_stdout(draw: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-o -` writes nothing else there."""
    out = io.BytesIO()

    class Binary(io.StringIO):
        buffer = out

    with monkeypatch.context() as changed:
        changed.setattr(sys, "stdout", Binary())
        result = draw("a cat", "-o", "-", "--seed", 3)
    assert result == Result(0, "", "")
    assert Image.open(io.BytesIO(out.getvalue())).size == (16, 16)


def test_a_draft_is_finished(draw: Cli, here: Path) -> None:
    """Few calls first; finished it is what would have been drawn without the draft."""
    drafted = draw("a red cat", "--seed", 3, "--guidance", 4, "--draft", "--json", steps=None).document
    finished = draw("--finish", "a-red-cat.png")
    draw("a red cat", "--seed", 3, "--guidance", 4, "-o", "whole.png")
    again = draw("--finish", "a-red-cat.png")

    assert drafted["draft"]
    assert drafted["receipt"]["calls"] < STEPS
    assert drafted["guarantee"] is None
    assert png.read(here / "a-red-cat.png")["draft"]
    assert finished == Result(0, "a-red-cat-finished.png\n", "")
    assert (here / "a-red-cat-finished.png").read_bytes() == (here / "whole.png").read_bytes()
    assert (again.code, again.err.splitlines()[0]) == (2, "dynx: a-red-cat-finished.png exists")


def test_drafts_of_different_settings_are_finished_in_order(draw: Cli, here: Path) -> None:
    """Each as it was asked for, into the folder named."""
    for size in ("16", "32x16"):
        draw("a cat", "--size", size, "--draft", "-o", f"{size}.png", steps=None)
    result = draw("--finish", "16.png", "32x16.png", "-o", "done/", "--json").document

    assert [(r["path"], r["size"], r["source"]) for r in result["results"]] == [
        ("done/1-a-cat.png", [16, 16], "16.png"),
        ("done/2-a-cat.png", [32, 16], "32x16.png"),
    ]


def test_what_cannot_be_finished(draw: Cli, here: Path, folders: Path) -> None:
    """Another model's picture and a foreign file are refused in a line, before anything is loaded."""
    draw("--seed", 1, "-o", "bare.png", model="bare")
    Image.new("RGB", (4, 4)).save("foreign.png")
    facts = {"prompt": "x", "seed": "soon", "asked": {}}
    Path("odd.png").write_bytes(png.encode(Image.new("RGB", (4, 4)), facts))

    for name, words in (
        ("bare", "drawn by the model bare"),
        ("foreign", "wasn't drawn by dynx"),
        ("odd", "lacks some settings"),
    ):
        result = draw("--finish", f"{name}.png")
        assert (result.code, result.out) == (2, "")
        assert words in result.err
    assert names(here) == ["bare.png", "foreign.png", "odd.png"]


def test_a_foreign_file_cannot_move_the_cursor(cli: Cli, here: Path) -> None:
    """Escapes in a file's facts are shown, not sent."""
    Path("odd.png").write_bytes(png.encode(Image.new("RGB", (4, 4)), {"prompt": "a\x1b[2Jb\nc", "steps": 3}))
    result = cli("draw", "--info", "odd.png")

    assert result.code == 0
    assert "a\\x1b[2Jb\\nc" in result.out


def test_a_pipeline_without_prompts(draw: Cli, here: Path) -> None:
    """Draws from nothing, reads no stdin, and says so politely if it's given a prompt."""
    result = draw("-c", 2, "--seed", 1, model="bare")
    refused = draw("a cat", model="bare")

    assert result == Result(0, "1-bare.png\n2-bare.png\n", "")
    assert (refused.code, refused.err) == (2, "dynx: bare takes no prompt\n  leave it out\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--json", "--jsonl"], "exclude"),
        (["--draft", "--steps", "4"], "exclude"),
        (["--draft", "--plain", "--steps", "auto"], "exclude"),
        (["--finish", "x.png", "--seed", "1"], "leave out --seed"),
        (["--finish", "x.png", "--lines"], "leave out --lines"),
        (["--info", "x.png"], "no such file: x.png"),
        (["-o", "-", "--json"], "both"),
        (["-o", "-", "-c", "2"], "stdout takes one picture, not 2"),
        (["-o", "-", "--lines"], "stdout takes one picture"),
        (["-o", "missing/x.png"], "missing doesn't exist"),
        (["-o", "x.jpg"], "PNG"),
        (["-o", "{seed}/x.png"], "doesn't exist"),
        (["-o", "seeds-{seed}.png", "a dog"], "written twice"),
        (["-o", "-", "a dog"], "stdout takes one picture, not 2"),
        (["-", "-"], "stand for stdin once"),
        ([" "], "PROMPT 2 of 2 is empty"),
        (["--size", "large"], "--size large"),
        (["--size", "15"], "multiples of"),
        (["--steps", "many"], "--steps many"),
        (["--steps", "0"], "--steps 0"),
        (["--guidance", "inf"], "must be a finite number, not inf"),
        (["--seed", str(2**63)], "--seed must be at most"),
        (["--quality", "2"], "--quality 2"),
        (["--no-stdin", "--lines"], "--no-stdin forbids"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_told(
    draw: Cli, here: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    """In one line, before anything is drawn."""
    monkeypatch.setattr(ImageGenerator, "draw_all", None)
    prompt = [] if {"--finish", "--info", "--lines"} & set(arguments) else ["a cat"]
    result = draw(*prompt, *arguments, stdin=b"a cat\n" if "--lines" in arguments else None, steps=None)

    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert names(here) == []


def test_no_prompt(draw: Cli, here: Path) -> None:
    """Help and a complaint; silence on stdin is no prompt either."""
    nothing = draw("--no-stdin")
    empty = draw()
    blank = draw(" ")

    assert [r.code for r in (nothing, empty, blank)] == [2, 2, 2]
    assert "Examples:" in nothing.err
    assert nothing.err.endswith("dynx: no prompt\n  for example: dynx draw 'a red apple'\n")
    assert empty.err == "dynx: stdin is empty\n  give a prompt: dynx draw 'a red apple'\n"
    assert names(here) == []


def test_files_are_not_overwritten_unasked(draw: Cli, here: Path) -> None:
    """Not after minutes of drawing either: it's told first."""
    Path("a-cat.png").write_bytes(b"mine")
    refused = draw("a cat")
    kept = Path("a-cat.png").read_bytes()
    forced = draw("a cat", "--force")

    assert (refused.code, refused.err, kept) == (2, "dynx: a-cat.png exists\n  --force overwrites it\n", b"mine")
    assert (forced.code, pixels(here / "a-cat.png").shape) == (0, (16, 16, 3))


def test_a_folder_that_cannot_be_written(draw: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told before anything is computed."""
    Path("locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")
    monkeypatch.setattr(ImageGenerator, "draw_all", None)
    result = draw("a cat", "-o", "locked")

    assert result == Result(2, "", "dynx: can't write in locked: permission denied\n")


def test_what_is_no_pipeline(cli: Cli, here: Path, tiny_folder: Path) -> None:
    """Is told with the command that fits."""
    result = cli("draw", "-m", tiny_folder, "a cat")
    assert result.code == 1
    assert "dynx generate runs it" in result.err


def test_a_prompt_that_is_too_long(draw: Cli, here: Path) -> None:
    """One warning names what isn't read, of the prompt and of what it shouldn't be."""
    result = draw("a red cat and the blue moon of a", "-c", 2)
    negative = draw("a cat", "--negative", "red " * 9, "-o", "x.png")

    assert result.err.splitlines() == [
        "dynx: the prompt is longer than the 8 tokens that the text encoder takes; cut: 'moon of a'"
    ]
    assert negative.err == (
        "dynx: the negative prompt is longer than the 8 tokens that the text encoder takes; cut: 'red red red'\n"
    )


def test_encoders_that_read_more_or_less() -> None:
    """The most that any leaves out; nothing where all of it is read."""
    pipe = pipelines.stable_diffusion_xl()
    pipe.tokenizer_2.model_max_length = 6
    cut = unread(pipe, "a red cat and the")

    assert cut is not None
    assert (cut.text, cut.limit, cut.some) == ("the", 6, True)
    assert unread(pipe, "a red cat") is None


def test_pictures_that_are_no_numbers(draw: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reported, not saved; the others go on, and the exit code tells."""
    real = ImageGenerator.draw_all

    def broken(self: ImageGenerator, wanted: Any, **others: Any) -> Any:
        for place, picture in real(self, wanted, **others):
            failed = replace(picture, pixels=None, error="all of its pixels are not numbers")
            yield place, failed if wanted[place][1] == 2 else picture

    monkeypatch.setattr(ImageGenerator, "draw_all", broken)
    result = draw("a cat", "-c", 3, "--seed", 1)
    document = draw("a cat", "--seed", 2, "-o", "x.png", "--json")

    assert result.out == "1-a-cat.png\n3-a-cat.png\n"
    assert result.err.splitlines() == [
        "dynx: no picture of 'a cat' with seed 2: all of its pixels are not numbers",
        "dynx: 1 of 3 pictures failed; the reasons are above",
    ]
    assert (result.code, document.code) == (1, 1)
    assert (document.document["path"], document.document["error"]) == (None, "all of its pixels are not numbers")
    assert names(here) == ["1-a-cat.png", "3-a-cat.png"]


def test_a_full_disk(draw: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure, and no half file."""

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", full)
    monkeypatch.setattr(Path, "replace", full)
    result = draw("a cat")

    assert result == Result(1, "", "dynx: can't write a-cat.png: No space left on device\n")
    assert names(here) == []


@pytest.mark.signals
def test_ctrl_c_lands(draw: Cli, here: Path, died: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is finished stays, the picture in work is what it was heading for, and no further one begins."""
    done = iter(range(10**6))
    at_step(monkeypatch, 4, lambda: ctrl_c() if next(done) == 1 else None)
    result = draw("a cat", "-c", 3, "--seed", 1, "--jsonl")
    results = [d for d in result.documents if d["event"] == "result"]
    first, second = (png.read(here / f"{n}-a-cat.png") for n in (1, 2))

    assert died == [signal.SIGINT]
    assert names(here) == ["1-a-cat.png", "2-a-cat.png"]
    assert (first["landed"], second["landed"]) == (False, True)
    assert second["calls"] == second["steps"]["run"] == 5
    assert [r["receipt"]["landed"] for r in results] == [False, True]
    assert result.err == (
        f"dynx: stopped after 5 of {STEPS} steps, at the estimate of the clean image; --finish draws it in full\n"
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.signals
def test_a_landed_picture_is_finished(draw: Cli, here: Path, died: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a draft is."""
    with monkeypatch.context() as changed:
        at_step(changed, 4, ctrl_c)
        draw("a cat", "--seed", 1)
    finished = draw("--finish", "a-cat.png")
    draw("a cat", "--seed", 1, "-o", "whole.png")

    assert finished.code == 0
    assert (here / "a-cat-finished.png").read_bytes() == (here / "whole.png").read_bytes()


@pytest.mark.signals
def test_a_second_ctrl_c_ends_at_once(draw: Cli, here: Path, died: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file; JSON stays JSON."""
    at_step(monkeypatch, 2, lambda: (ctrl_c(), ctrl_c()))
    result = draw("a cat", "--json")

    assert (died, result.out, result.err) == ([signal.SIGINT], "", "")
    assert names(here) == []


PRESSED = """
import os, signal
from dynx.diffusion.generator import ImageGenerator
real = ImageGenerator.draw_all
def spied(self, *args, callback, **others):
    def both(place, step):
        if step.index == 3:
            os.kill(os.getpid(), signal.SIGINT)
        callback(place, step)
    return real(self, *args, callback=both, **others)
ImageGenerator.draw_all = spied
from dynx.cli.main import main
main()
"""


@pytest.mark.usefixtures("alone")
def test_ctrl_c_and_the_terminal_of_a_process(folders: Path, here: Path) -> None:
    """On a terminal: a bar, the picture in half blocks, its path; Ctrl-C ends by the signal."""
    ours, theirs = pty.openpty()
    settings = {"TERM": "xterm-256color", "COLUMNS": "60", "LINES": "20"}
    arguments = ("draw", "-m", folders / "tiny", "a cat", "--steps", STEPS)
    process = spawn(*arguments, code=PRESSED, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**settings))
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    shown = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", seen.decode()).replace("\r", "")

    assert process.wait(timeout=60) == -signal.SIGINT
    assert "▀" * 16 in shown
    assert "a-cat.png\n" in shown
    assert f"stopped after 4 of {STEPS} steps" in shown
    assert png.read(here / "a-cat.png")["landed"]


class Tty(io.StringIO):
    """A terminal to look at."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        """Yes."""
        return True


def tty(monkeypatch: pytest.MonkeyPatch) -> Tty:
    """Stderr as a terminal of 256 colours; called by a test itself, as pytest puts its own stderr back before."""
    shown = Tty()
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("TMUX", "KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL", "COLORTERM", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stderr", shown)
    return shown


def test_pictures_are_shown_where_a_person_looks(draw: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr if that is the terminal; not with -q or --show never or JSON; anywhere if always."""
    terminal = tty(monkeypatch)
    draw("a cat")
    shown = terminal.getvalue()
    terminal.truncate(0)
    for i, options in enumerate((["-q"], ["--show", "never"], ["--json"])):
        draw("a cat", "-o", f"{i}.png", *options)

    assert shown.count("▀") == 16 * 8
    assert "▀" not in terminal.getvalue()
    draw("a cat", "-o", "x.png", "--json", "--show", "always")
    assert terminal.getvalue().count("▀") == 16 * 8


def test_always_is_always_where_there_is_colour(draw: Cli) -> None:
    """Into a pipe too, on stderr; without colour the reason is said once, and nothing is shown."""
    coloured = draw("a cat", "--show", "always", "--color", "always")
    plain = draw("a cat", "-c", 2, "-o", "x{n}.png", "--show", "always")

    assert coloured.out == "a-cat.png\n"
    assert coloured.err.count("▀") == 16 * 8
    assert plain.err == "dynx: the picture can't be shown: the output lacks colour\n"


def test_the_preview_is_drawn_in_place(draw: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture for each step, each over the one before, and nothing of them left."""
    terminal = tty(monkeypatch)
    draw("--preview", "--show", "never", model="bare")
    frames = re.split(r"\x1b\[\d+A\r\x1b\[J", terminal.getvalue())

    assert len(frames) == STEPS + 1
    assert f"step 1 of {STEPS}: 1 run, 0 skipped" in frames[0]
    assert all("▀" in frame for frame in frames[:-1])
    assert "▀" not in frames[-1]
    assert re.search(r"seed \d+ · 10 network calls", frames[-1])


def test_a_preview_without_colours_says_so_once(draw: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents have no colours until they're measured."""
    terminal = tty(monkeypatch)
    draw("a cat", "-c", 2, "--preview")
    assert terminal.getvalue().count("no preview:") == 1


def test_stats_and_explain(draw: Cli) -> None:
    """What it cost, which steps ran, and why each setting has its value, all on stderr."""
    result = draw("a cat", "--seed", 5, "--stats", "--explain")

    assert result.out == "a-cat.png\n"
    assert "█" * STEPS + f"  █ {STEPS} run\n" in result.err
    assert re.search(r"^picture +16×16, seed 5$", result.err, re.MULTILINE)
    assert re.search(rf"^calls +{STEPS} network calls, {2 * STEPS} rows$", result.err, re.MULTILINE)
    assert re.search(rf"^guarantee +the pipeline's own run of {STEPS} steps$", result.err, re.MULTILINE)
    assert re.search(rf"^steps +{STEPS} \(asked for\)$", result.err, re.MULTILINE)


class Promise:
    """Stands for what a profile promises."""

    def __str__(self) -> str:
        return "SSIM at least 0.95"

    def json(self) -> dict[str, Any]:
        """For a document."""
        return Guarantee(0.95, 0.95, 0.05, n=60, failures=0, p5=0.97, worst=0.96, bundled=False).json()


def test_a_promise_is_passed_on(draw: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the JSON, the receipt and the file of a picture drawn by a schedule; not to drafts."""
    real = ImageGenerator.draw_all
    monkeypatch.setattr(ImageGenerator, "guarantee", Promise())
    drafted = draw("a cat", "--draft", "-o", "draft.png", "--json", steps=None).document
    monkeypatch.setattr(ImageGenerator, "draw_all", lambda *args, **others: real(*args, **{**others, "draft": True}))
    result = draw("a cat", "--json", "--stats", steps=None)

    assert drafted["guarantee"] is None
    assert png.read(here / "draft.png")["guarantee"] == "none: a draft"
    assert result.document["guarantee"] == Promise().json()
    assert png.read(here / "a-cat.png")["guarantee"] == "SSIM at least 0.95"
    assert re.search(r"^guarantee +SSIM at least 0.95$", result.err, re.MULTILINE)
    assert re.search(r"^calls +6 network calls instead of 50, 12 rows$", result.err, re.MULTILINE)


def test_what_was_not_done_is_said_once(draw: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all pictures of a run, and not with -q."""
    real = ImageGenerator.draw_all

    def noted(self: ImageGenerator, *args: Any, **others: Any) -> Any:
        for place, picture in real(self, *args, **others):
            yield place, replace(picture, stats=replace(picture.stats, notes=("plain: it must",)))

    monkeypatch.setattr(ImageGenerator, "draw_all", noted)
    assert draw("a cat", "-c", 2).err == "plain: it must\n"
    assert draw("a cat", "-c", 2, "-q", "--force").err == ""


def test_a_few_step_model_has_no_drafts(draw: Cli, folders: Path) -> None:
    """It's drawn as its author made it, and the word draft isn't in its file."""
    pipelines.pipeline("consistency").save_pretrained(folders / "quick")
    result = draw("a cat", "--draft", model="quick", steps=None)

    assert result.out == "a-cat.png\n"
    assert result.err.startswith("drawn in full, not as a draft: a few-step model")
    assert not png.read(Path("a-cat.png"))["draft"]


def test_a_strip_shows_what_became_of_each_step() -> None:
    """Run, unguided, cached, skipped and left out are told apart, also without Unicode."""
    from types import SimpleNamespace

    from dynx.cli.draw import output as report

    kinds = ((True, True, False), (False, True, False), (True, False, False), (False, True, True))
    steps = [SimpleNamespace(computed=c, guided=g, cached=k) for c, g, k in kinds]
    drawn: Any = SimpleNamespace(
        strip=[report.mark(step) for step in steps],  # type: ignore[arg-type]
        picture=SimpleNamespace(stats=SimpleNamespace(planned=5)),
    )
    assert report.strip(drawn, unicode=True).startswith("█░▒▓·  █ 1 run, ▒ 1 run without guidance, ▓ 1 cached")
    assert report.strip(drawn, unicode=False).startswith("#.=+   ")
