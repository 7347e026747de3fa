"""README.md is a program: each of its commands runs as written, and what it shows is what comes out.

Commands run in bash, in an empty folder with stand-ins for the reader's own models and data; `dynx` is the fork server's (see
`forkserver.py`). What runs for minutes is kept short by environment variables, which leaves the command as it is.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import typer
from PIL import Image
from support import pipelines
from support.classifier_folders import sentences, write_image_classifier, write_pictures, write_text_classifier
from support.commands import ROOT, train_tokenizer
from support.models import tiny
from transformers import AutoConfig, AutoModelForCausalLM

from dynx.cli.app import app
from dynx.cli.configuration import layers_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

README = (ROOT / "README.md").read_text(encoding="utf-8")
HERE = Path(__file__).parent
SHIPPED = ROOT / "dynx" / "shipped"

ELSEWHERE = {
    r"pip install": "needs the network; .ci/run does it in a fresh environment",
    r"python tests/all\.py": "is what runs this file",
}
"""Parts of a line that don't run here, and why."""

PLANNED = {
    r"dynx calibrate -m \./my-pipeline": "a minute with the smallest pipeline; test_cli_calibrate_drawing goes all the way",
}
"""Commands that run with --dry-run, and why."""

BUDGETS = (
    (r"dynx calibrate .*(story-280m|--draft)", {"DYNX_CALIBRATE_BUDGET": "5", "DYNX_CALIBRATE_BACKEND": "torch"}),
    (r"dynx calibrate", {"DYNX_CALIBRATE_BUDGET": "5"}),
    (
        r"dynx bench .*(--draft|my-model)",
        {"DYNX_BENCH_RUNS": "3", "DYNX_BENCH_PROMPTS": "1", "DYNX_BENCH_MAX_NEW_TOKENS": "8", "DYNX_BENCH_BUDGET": "3"},
    ),
    (r"dynx bench .*--data", {"DYNX_BENCH_RUNS": "3", "DYNX_BENCH_BUDGET": "3"}),
    (r"dynx generate .*(-m|In one|--lines)", {"DYNX_GENERATE_MAX_NEW_TOKENS": "32"}),
)
"""By the command, the variables that keep it short, and the compiler out of it; the command itself stays as it is."""

NEEDED = ("git", "jq")
"""Programs that some lines take; where one isn't installed, they are left."""

GATE = re.compile(r"--(min-speedup|max-disagreement|require-identical|min-quality)")
"""With one of these a command may end with 3: stand-ins are as fast as they are."""

DEPENDS = re.compile(
    r"early exit, layer|lookup|draft model|together|certify|profile # |dynamic: |accuracy|max-disagreement: |min-speedup: "
    r"|looked up to"
)
"""Lines of a table that a stand-in may lack."""


@dataclass(frozen=True)
class Command:
    """A command of the README, and the lines it shows after it."""

    number: int
    """Of its line in the file."""

    block: int
    text: str
    shown: tuple[str, ...]


def read_commands(page: str) -> Iterator[Command]:
    """All commands of shell blocks: every line of an `sh` block, and what follows `$` elsewhere."""
    kind, block, last = "", 0, ""
    pending: tuple[int, str, list[str]] | None = None
    for number, line in enumerate(page.splitlines(), start=1):
        fence = re.match(r"```(\w*)$", line)
        indented = not kind and line.startswith("    ") and (not last.strip() or last.startswith("    "))
        body = line[4:] if indented else line
        starts = (
            (kind == "sh" and body.strip() and not fence)
            or ((kind == "console" or indented) and body.startswith("$ "))
            or (indented and re.match(r"(mkdir .* && )?dynx ", body))
        )
        if pending and (starts or fence or not body.strip() or not (kind or indented)):
            yield Command(pending[0], block, pending[1], tuple(pending[2]))
            pending = None
        if fence:
            kind = "" if kind else fence[1] or "text"
        if fence or (not indented and not kind):
            block += 1
        if starts:
            pending = (number, body.removeprefix("$ "), [])
        elif pending:
            pending[2].append(body)
        last = line


COMMANDS = list(read_commands(README))


def runnable(command: Command) -> str:
    """A command without the parts that run elsewhere; with --dry-run where that is all that can be done here."""
    parts = command.text.split(" && ")
    left = " && ".join(part for part in parts if not any(re.match(p, part) for p in ELSEWHERE))
    planned = next((m for m in (re.match(p, left) for p in PLANNED) if m), None)
    return f"{planned[0]} --dry-run{left[planned.end() :]}" if planned else left


def budget(line: str) -> dict[str, str]:
    """The variables that keep a command line short."""
    return next((variables for pattern, variables in BUDGETS if re.search(pattern, line)), {})


@pytest.fixture(scope="module")
def dynx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of a shell that has `dynx`, an empty home, and no network."""
    folder = tmp_path_factory.mktemp("server")
    address, script = folder / "socket", folder / "bin" / "dynx"
    script.parent.mkdir()
    words = f'exec "{sys.executable}" -S -E "{HERE / "support" / "forkserver.py"}" "{address}" dynx "$@"'
    script.write_text(f"#!/bin/sh\n{words}\n")
    script.chmod(0o755)
    home = folder / "home"
    home.mkdir()
    variables = {
        "PATH": f"{script.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
    }
    server = subprocess.Popen([sys.executable, str(HERE / "support" / "forkserver.py"), str(address)], env=variables)
    while not address.exists():
        assert server.poll() is None
        time.sleep(0.05)
    yield variables
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for what is the reader's own."""
    folder = tmp_path_factory.mktemp("stock")
    write_text_classifier(folder / "classifier")
    write_image_classifier(folder / "my-vit")
    pipelines.stable_diffusion().save_pretrained(folder / "my-pipeline")
    tokenizer = train_tokenizer()
    torch.manual_seed(0)
    for name, seed in (("my-model", 3), ("my-smaller-model", 4)):
        tiny("llama", seed=seed, vocab=400, max_position_embeddings=512).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    config = AutoConfig.from_pretrained(SHIPPED / "story", num_hidden_layers=1, intermediate_size=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "random-weights")
    for path in (SHIPPED / "story").glob("tokenizer*"):
        shutil.copy(path, folder / "random-weights")
    return folder


def lay_out(folder: Path, stock: Path, block: str) -> None:
    """Put everything into `folder` that a block of the README names."""
    folder.mkdir()
    texts = sentences(1000)
    films = [
        f"a {a} , {b} film" for a in ("warm", "dull", "funny", "bad") for b in ("engaging", "empty", "brave", "long")
    ]
    for name, lines in {
        "prompts.txt": ["Once upon a time", "The king"],
        "texts.txt": texts,
        "dev.txt": films,
        "dev.tsv": [f"{film}\t{'positive' if 'warm' in film or 'brave' in film else 'negative'}" for film in films],
        "posts.jsonl": ['{"body": "a dull , empty film"}', '{"body": "a warm day"}'],
    }.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    write_pictures(folder / "photos", 3)
    for path in (folder / "photos").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
    for name in ("my-vit", "my-pipeline", "my-smaller-model", "random-weights"):
        (folder / name).symlink_to(stock / name)
    (folder / "my-model").symlink_to(stock / ("classifier" if "texts.txt" in block else "my-model"))
    (folder / "story-280m").symlink_to(SHIPPED / "story")


def shape(line: str) -> str:
    """A line of output without what a machine or a model of another size changes."""
    line = re.sub(r"[█▏▎▍▌▋▊▉░]+", "", line)
    line = re.sub(r"\[[\d.]+, [\d.]+\]", "#", line)
    line = re.sub(r"\b[0-9a-f]{12}\b", "#", line)
    line = re.sub(r"\d[\d.,]*", "#", line)
    line = re.sub(r"(?<=\s)–(?=\s|$)|# %", "#", line)
    return " ".join(line.split())


def test_there_are_commands() -> None:
    """What is read from the page is what a reader sees: commands with and without output, the first being the first."""
    assert COMMANDS[0].text == 'pip install . && dynx generate "Once upon a time"'
    assert len(COMMANDS) >= 20
    assert sum(bool(command.shown) for command in COMMANDS) >= 7
    written = set(re.findall(r"^(?:    )?\$ (.*)$", README, re.MULTILINE))
    assert written <= {command.text for command in COMMANDS}


def test_every_command_runs(dynx: dict[str, str], stock: Path, tmp_path: Path) -> None:
    """As written, in order, block by block: exit codes are as promised, and shown output has the shape of what comes out."""
    ran, planned, left, problems = 0, 0, [], []
    for block in dict.fromkeys(command.block for command in COMMANDS):
        commands = [command for command in COMMANDS if command.block == block]
        folder = tmp_path / str(block)
        lay_out(folder, stock, "\n".join(command.text for command in commands))
        for command in commands:
            line = runnable(command)
            if not line or not all(shutil.which(name) for name in NEEDED if re.search(rf"\b{name} ", line)):
                left.append(command.text)
                continue
            began = time.perf_counter()
            done = run(line, folder, dynx)
            sys.stdout.write(f"{time.perf_counter() - began:5.1f} s  {line}\n{done.stdout}{done.stderr}")
            ran, planned = ran + 1, planned + (line != command.text and "--dry-run" in line)
            wrong = (
                [] if done.returncode in ((0, 3) if GATE.search(line) else (0,)) else [f"exit code {done.returncode}"]
            )
            wrong += ["a traceback"] if "Traceback" in done.stderr else []
            wrong += list(differences(command, done.stdout + done.stderr))
            problems += [f"README.md:{command.number}: {line}\n  {what}\n{done.stderr}" for what in wrong]
    sys.stdout.write(f"{ran} of {len(COMMANDS)} commands ran, {planned} of them with --dry-run; not here: {left}\n")

    assert problems == [], "\n".join(problems)
    assert (ran, planned, left) == (len(COMMANDS) - 1, 1, ["pip install '.[test]' && python tests/all.py"])


def run(line: str, folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A line in bash, as a person types it who stops at the first error."""
    if line.startswith("git "):
        for words in ("init -q", "-c user.name=a -c user.email=a@example.org commit -q --allow-empty -m Change"):
            subprocess.run(["git", *words.split()], cwd=folder, check=True)
    return subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", line],
        cwd=folder,
        env={**variables, "DYNX_CACHE_DIR": str(folder / "cache"), **budget(line)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def differences(command: Command, output: str) -> Iterator[str]:
    """Say which shown lines have no counterpart in the output."""
    if "generate" in command.text and command.shown:  # one text, wrapped for the page
        if " ".join(" ".join(command.shown).split()) != " ".join(output.split()):
            yield f"the text is another: {output}"
        return
    came = {shape(line) for line in output.splitlines()}
    for line in command.shown:
        if line != "[…]" and shape(line) not in came and not DEPENDS.search(line):
            yield f"no line like {shape(line)!r} among {sorted(came)}"


def test_commands_in_the_text_are_commands() -> None:
    """What stands between backticks, and begins like a command line, has options that exist with values that they take."""
    group: Any = typer.main.get_command(app)
    found = re.findall(r"`dynx (\w+ [^`]*|\w+)`", README)
    assert len(found) > 5
    for text in found:
        name, *words = shlex.split(text.replace("ID", "0f3a9c1b22d4"))
        words += ["x"] if words[-1:] in (["--show"], ["--export"], ["--import"], ["--remove"]) else []
        with group.make_context("dynx", [], resilient_parsing=True) as outer:
            group.commands[name].make_context(name, words, parent=outer).close()


def test_the_settings_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of a dynx.toml is one: every key is known and has a value that it takes."""
    (text,) = re.findall(r"^```toml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    file = tmp_path / "dynx.toml"
    file.write_text(text, encoding="utf-8")

    found = [layer for layer in layers_of(file, "generate", trusted=False) if layer]
    assert [set(layer) for layer in found] == [{"model", "temperature", "stop"}, {"device"}]


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The example in Python runs on models of the reader's own, and prints what its comments say."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    for name, value in {"HF_HUB_OFFLINE": "1", "DYNX_CACHE_DIR": str(tmp_path), "DYNX_CONFIG": "none"}.items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {
        "model": tiny("llama", seed=3, vocab=400),
        "small_model": tiny("llama", seed=4, vocab=400),
        "input_ids": torch.tensor([[5, 6, 7, 8]]),
    }
    exec(code, names)  # noqa: S102 - our own page
    text = capsys.readouterr().out
    labels = [line.split()[0] for line in text.splitlines()[-2:]]

    assert labels == ["positive", "negative"]
    assert len(text) > 100
    assert names["ids"].shape == (1, 104)
