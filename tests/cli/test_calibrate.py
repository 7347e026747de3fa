"""`dynx calibrate`: what it prints, what it stores, and that the next `dynx generate` uses it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.commands import CONTEXT, PROMPT, Result, finish, spawn

from dynx import shipped

if TYPE_CHECKING:
    from collections.abc import Callable

    Cli = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("alone")

BUDGET = ("--budget", 5)


def test_device_info_in_both_forms(cli: Cli) -> None:
    """--device-info says what there is and what dynx picks with its reasons; JSON says the same."""
    text = cli("calibrate", "--device-info")
    document = cli("calibrate", "--device-info", "--json")

    assert (text.code, text.err) == (document.code, document.err) == (0, "")
    labels = [line.split("  ")[0] for line in text.out.splitlines()]
    assert labels[0] == "processor"
    assert labels[-3:] == ["→ device", "→ dtype", "→ threads"]
    assert all(re.search(r"  \S+ \(.+\)$", line) for line in text.out.splitlines()[-3:])
    assert document.out.startswith('{"schema": "dynx.device/1"')
    choices = document.document["choices"]
    assert choices["threads"] == {"value": 1, "reason": "OMP_NUM_THREADS=1"}
    assert f"→ device      {choices['device']['value']} ({choices['device']['reason']})" in text.out


def test_a_dry_run_reads_no_weights(tiny_folder: Path) -> None:
    """--dry-run says what would be measured, and under which id it would be kept, without loading torch."""
    code = """
import sys
from dynx.cli.main import run
code = run(sys.argv[1:])
sys.stderr.write(" ".join({"torch", "transformers", "numpy"} & set(sys.modules)))
sys.exit(code)
"""
    result = finish(spawn("calibrate", "-m", tiny_folder, "--dry-run", "--json", code=code))

    assert (result.code, result.err) == (0, "")
    assert result.out.startswith('{"schema": "dynx.calibrate/1", ')
    assert result.document["drafters"] == ["draft", "lookup", "self"]
    assert result.document["budget_seconds"] == 75
    assert re.fullmatch(r"[0-9a-f]{12}", result.document["profile"])


def test_a_dry_run_in_words(cli: Cli, tiny_folder: Path) -> None:
    """The same, a line for each choice."""
    result = cli("calibrate", "-m", tiny_folder, "--dry-run", "--draft", "self", "--budget", 9)
    knobs = [line.split(":")[0] for line in result.out.splitlines()]

    assert (result.code, result.err) == (0, "")
    assert knobs[:-1] == ["model", "device", "dtype", "threads", "backend", "drafters"]
    assert re.fullmatch(r"would measure for at most 9 s and store profile [0-9a-f]{12}", result.out.splitlines()[-1])


def test_from_measuring_to_use_and_removal(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """A calibration prints its findings, is stored, listed, shown, used by generate, carried elsewhere, and removed."""
    planned = cli("calibrate", "-m", tiny_folder, "--dry-run", "--json").document["profile"]
    made = cli("calibrate", "-m", tiny_folder, *BUDGET)
    rows = [re.split(r"  +", line.strip()) for line in made.out.splitlines()]

    assert made.code == 0
    assert re.fullmatch(rf"profile {planned} stored in .*generate-tiny-{planned}\.json\n", made.err)
    assert rows[0] == ["cost per draft token", "first accepted", "expected alone"]
    *table, kernels, summary = made.out.splitlines()
    exits = [] if kernels.startswith("backend openvino") else ["early exit, layer N of N"]  # it computes whole models
    named = [re.sub(r"\d", "N", row[0]) for row in rows[1:]]
    assert named[: 4 + len(exits)] == ["draft model", *exits, "lookup", "plain decoding", "together"]
    assert kernels.startswith("backend ")
    assert summary.startswith("tiny: ")
    assert max(map(len, table)) <= 80

    answer = cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, "--plain").out
    used = cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, "--require-profile", "--stats")
    assert (used.code, used.out) == (0, answer)
    assert used.err.splitlines()[-1].split() == ["profile", planned]
    receipt = cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, "--json").document["receipt"]
    assert (receipt["profile"], receipt["plain_measured"]) == (planned, "profile")

    listed = cli("calibrate", "--list", "--json")
    assert [p["id"] for p in listed.document["profiles"]] == [planned]
    assert listed.out.startswith('{"schema": "dynx.profiles/1"')
    assert cli("calibrate", "--list").out.split()[:4] == [planned, "generate", "tiny", "float32"]
    shown = cli("calibrate", "--show", planned[:6])
    assert shown.document["schema"] == "dynx.profile/1"
    assert shown.document["id"] == planned

    file = tmp_path / "carried.json"
    exported = cli("calibrate", "--export", "tiny", "--output", file)
    assert (exported.code, exported.out, exported.err) == (0, "", f"wrote {file}\n")
    assert cli("calibrate", "--export", "tiny").out == file.read_text(encoding="utf-8")

    removed = cli("calibrate", "--remove", planned)
    assert (removed.code, removed.out, removed.err.startswith("removed ")) == (0, "", True)
    empty = cli("calibrate", "--list")
    assert (empty.code, empty.out) == (0, "")
    assert re.fullmatch(r"no profiles in .*; dynx calibrate makes one\n", empty.err)

    imported = cli("calibrate", "--import", file)
    assert (imported.code, imported.out, imported.err) == (0, "", f"stored profile {planned} for tiny\n")
    assert cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, "--require-profile").out == answer


def test_findings_are_printed_even_if_they_cannot_be_kept(
    cli: Cli, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cache folder that can't be written there is one warning, and the JSON document all the same."""
    (tmp_path / "a file").touch()
    monkeypatch.setenv("DYNX_CACHE_DIR", str(tmp_path / "a file" / "cache"))
    data = tmp_path / "prompts.txt"
    data.write_text(f"{PROMPT}\n{'too long ' * CONTEXT}\nThe miller's daughter\n", encoding="utf-8")
    result = cli("calibrate", "-m", tiny_folder, "--draft", "self,lookup", *BUDGET, "--data", data, "--json")

    assert result.code == 0
    assert re.fullmatch(r"dynx: the profile can't be stored \(.*\); set DYNX_CACHE_DIR .*\n", result.err)
    assert result.out.startswith('{"schema": "dynx.calibrate/1", ')
    assert result.document["evidence"]["self_written"] is False
    assert set(result.document["evidence"]["first_guess_acceptance"]) == {"self", "lookup"}
    assert result.document["decision"]["summary"]


def test_show_prints_a_pipelines_grid_for_diffusers_alone(cli: Cli) -> None:
    """The profile on stdout as ever, and on stderr lines to paste; -q leaves them out."""
    folder = shipped.folder("emoji")
    assert folder is not None
    stored = cli("calibrate", "--import", folder / "steps.json")
    profile = json.loads((folder / "steps.json").read_text(encoding="utf-8"))["id"]
    assert stored.code == 0

    shown = cli("calibrate", "--show", profile)
    assert shown.document["id"] == profile
    assert "pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config" in shown.err
    assert re.search(r"^pipe\(prompt, timesteps=\[\d+(, \d+)*\], guidance_scale=2.5\)$", shown.err, re.MULTILINE)
    assert cli("calibrate", "--show", profile, "-q").err == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--list", "--show", "x"], "--list and --show exclude each other"),
        (["--device-info", "--remove", "x"], "--device-info and --remove exclude each other"),
        (["--export", "x", "--import", "y"], "--export and --import exclude each other"),
        (["--output", "x"], "--output requires --export"),
        (["--show", "x"], "no profile 'x'"),
        (["--remove", "x"], "no profile 'x'"),
        (["--data", "/nowhere"], "--data /nowhere can't be read: No such file"),
        (["--data", os.devnull], "--data /dev/null is empty"),
        (["--budget", "1"], "--budget"),
        (["--budget", "nan"], "--budget"),
        (["--draft", "none,self", "--dry-run"], "stand alone"),
    ],
    ids=str,
)
def test_what_excludes_each_other(cli: Cli, tiny_folder: Path, options: list[str], words: str) -> None:
    """One thing at a time, and files and ids that are there."""
    result = cli("calibrate", "-m", tiny_folder, *options)

    assert (result.code, result.out) == (2, "")
    assert words in result.err.splitlines()[0]
    assert len(result.err.splitlines()) <= 2


@pytest.mark.parametrize("content", [b"{}", b"not JSON", b"\xff\xfe"], ids=repr)
def test_a_foreign_file_is_not_imported(cli: Cli, tmp_path: Path, content: bytes) -> None:
    """A file that isn't a profile is named, and nothing is stored."""
    file = tmp_path / "x.json"
    file.write_bytes(content)
    result = cli("calibrate", "--import", file)

    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("dynx: x.json isn't imported: ")
    assert not list(Path(os.environ["DYNX_CACHE_DIR"]).rglob("*.json"))


def test_prompts_come_from_stdin_too(cli: Cli, tiny_folder: Path) -> None:
    """--data - reads stdin; prompts that leave no room for an answer can't be learned from."""
    result = cli("calibrate", "-m", tiny_folder, "--data", "-", stdin=b"the fox " * CONTEXT + b"\n")

    assert (result.code, result.out) == (2, "")
    assert result.err == f"dynx: --data has only prompts too long for the model's context of {CONTEXT} tokens\n"
