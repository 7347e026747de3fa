"""README.md and the guides are programs: each of their commands runs as written, and the output has the shape that they show.

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

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "man" / "guides").glob("*.md")))
}
README = PAGES["README.md"]
LONGEST_README = 1200
"""Words, so that it stays a front door; the guides have the rest."""
CHAT = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
"""A chat template."""
HERE = Path(__file__).parent
SHIPPED = ROOT / "dynx" / "shipped"

ELSEWHERE = {
    r"pip install": "needs the network; .ci/run does it in a fresh environment",
    r"python tests/all\.py": "is what runs this file",
    r"(llm|transformers|lm-eval) [a-z-]": "need packages of their own; tests/environments/integrations.py brings them",
    r"dynx (calibrate|generate) -m \S*SmolLM2": "needs the network, or a file from there",
    r"dynx generate -m \./my-model --chat +#": "needs a terminal; tests/cli/test_conversation.py has one",
}
"""Parts of a line that don't run here, and why."""

NOT_HERE = {
    "README.md": [
        "pip install '.[test]' && python tests/all.py",
        "dynx calibrate -m ./SmolLM2-135M-Instruct.Q4_1.gguf --chat",
        "dynx generate -m ./SmolLM2-135M-Instruct.Q4_1.gguf --chat --stats < note.txt",
        'dynx generate -m HuggingFaceTB/SmolLM2-135M-Instruct --chat "What is a lighthouse for?"',
        'dynx generate -m ./SmolLM2-135M-Instruct.Q4_1.gguf --chat "What is a lighthouse for?"',
    ],
    "man/guides/integrations.md": [
        "transformers serve --trust-remote-code ./my-model",
        "pip install 'dynx[lm-eval]'",
        "lm-eval run --model dynx --model_args pretrained=./my-model,dtype=float32 --tasks gsm8k",
        "llm install 'dynx[llm]'",
        'llm -m dynx/story "Once upon a time" -o max_tokens 80',
    ],
    "man/guides/scripting.md": [
        "dynx generate -m ./my-model --chat                                          # on a terminal: a conversation",
    ],
}
"""By page, exactly the commands that don't run here; every other one does."""

PLANNED = {
    r"dynx calibrate -m \./my-(controlnet-)?pipeline": "a minute; test_calibrate_drawing goes all the way",
}
"""Commands that run with --dry-run, and why."""

BUDGETS = (
    (r"dynx calibrate .*(story-280m|--draft)", {"DYNX_CALIBRATE_BUDGET": "5", "DYNX_CALIBRATE_BACKEND": "torch"}),
    (r"dynx calibrate", {"DYNX_CALIBRATE_BUDGET": "5"}),
    (r"dynx bench .*--data texts", {"DYNX_BENCH_RUNS": "3", "DYNX_BENCH_BUDGET": "3"}),
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

GATE = re.compile(r"--(min-speedup|max-disagreement|require-identical|min-quality|baseline)")
"""With one of these a command may end with 3: stand-ins are as fast as they are."""

DEPENDS = re.compile(
    r"early exit, layer|lookup|draft model|together|certify|profile # |dynamic: |accuracy|max-disagreement: |min-speedup: "
    r"|looked up to"
)
"""Lines of a table that a stand-in may lack."""


@dataclass(frozen=True)
class Command:
    """A command of a page, and the output that the page shows for it."""

    page: str
    number: int
    """Of its line in the page."""

    block: int
    text: str
    shown: tuple[str, ...]


def read_commands(page: str, text: str) -> Iterator[Command]:
    """All commands of shell blocks: every line of an `sh` block, and what follows `$` elsewhere."""
    kind, block, last = "", 0, ""
    pending: tuple[int, str, list[str]] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        fence = re.match(r"```(\w*)$", line)
        indented = not kind and line.startswith("    ") and (not last.strip() or last.startswith("    "))
        body = line[4:] if indented else line
        starts = (
            (kind == "sh" and body.strip() and not fence)
            or ((kind == "console" or indented) and body.startswith("$ "))
            or (indented and re.match(r"(mkdir .* && )?dynx ", body))
        )
        if pending and (starts or fence or not body.strip() or not (kind or indented)):
            yield Command(page, pending[0], block, pending[1], tuple(pending[2]))
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


COMMANDS = [command for page, text in PAGES.items() for command in read_commands(page, text)]
LEAD = COMMANDS[0]


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
    pipelines.controlled("stable-diffusion").save_pretrained(folder / "my-controlnet-pipeline")
    pipelines.write_lora(folder / "tone.safetensors")
    tokenizer = train_tokenizer()
    torch.manual_seed(0)
    for name, seed in (("my-model", 3), ("my-smaller-model", 4)):
        tiny("llama", seed=seed, vocab=400, max_position_embeddings=512).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    shutil.copytree(folder / "my-model", folder / "my-chat-model")
    (folder / "my-chat-model" / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    config = AutoConfig.from_pretrained(SHIPPED / "story", num_hidden_layers=1, intermediate_size=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "random-weights")
    for path in (SHIPPED / "story").glob("tokenizer*"):
        shutil.copy(path, folder / "random-weights")
    return folder


def lay_out(folder: Path, stock: Path, block: str) -> None:
    """Put everything into `folder` that a block of a page names."""
    folder.mkdir(parents=True)
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
        "questions.jsonl": [
            '{"question": "Who was king?", "turns": ["Who was king?"], "category": "tales"}',
            '{"question": "Where?", "turns": ["Where did he live?"], "category": "places"}',
        ],
        "conversation.json": ['[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]'],
    }.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    write_pictures(folder / "photos", 3)
    for path in (folder / "photos").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
    Image.new("RGB", (32, 32), (90, 120, 160)).save(folder / "day.jpg")
    Image.new("L", (32, 32), 255).save(folder / "roof.png")
    (folder / "edges").mkdir()
    for place in ("edges.png", "edges/one.png"):
        Image.new("RGB", (32, 32), (255, 255, 255)).save(folder / place)
    for name in (
        "my-vit",
        "my-pipeline",
        "my-controlnet-pipeline",
        "my-smaller-model",
        "random-weights",
        "tone.safetensors",
    ):
        (folder / name).symlink_to(stock / name)
    chatty = "my-chat-model" if "--chat" in block else "my-model"
    (folder / "my-model").symlink_to(stock / ("classifier" if "texts.txt" in block else chatty))
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
    """The commands found are those a reader sees, with and without output, and the first one is the README's first."""
    assert (LEAD.page, LEAD.text) == ("README.md", 'pip install . && dynx draw "red apple" --seed 3 --stats')
    assert len(COMMANDS) >= 30
    assert sum(bool(command.shown) for command in COMMANDS) >= 6
    for page, text in PAGES.items():
        written = set(re.findall(r"^(?:    )?\$ (.*)$", text, re.MULTILINE))
        assert written <= {command.text for command in COMMANDS if command.page == page}


def test_the_readme_is_short() -> None:
    """A newcomer reads it in a few minutes; details are in the guides, each of which it links to."""
    assert len(README.split()) <= LONGEST_README
    assert all(f"({page})" in README for page in PAGES if page != "README.md")


def test_the_lead_command_shows_a_saving(dynx: dict[str, str], tmp_path: Path) -> None:
    """The first command of the README draws in a tenth of the network calls, as the README shows."""
    done = run(runnable(LEAD), tmp_path, dynx)
    again = next(command for command in COMMANDS if command is not LEAD and command.text == runnable(LEAD))
    (calls,) = [line for line in again.shown if line.startswith("calls ")]

    assert done.returncode == 0
    assert calls in done.stderr.splitlines()
    assert "5 network calls instead of 50" in calls


@pytest.mark.parametrize("page", PAGES)
def test_every_command_runs(page: str, dynx: dict[str, str], stock: Path, tmp_path: Path) -> None:
    """As written, in order, block by block: exit codes are as promised, and shown output has the shape of what comes out."""
    ran, planned, left, problems = 0, 0, [], []
    found = [command for command in COMMANDS if command.page == page]
    for block in dict.fromkeys(command.block for command in found):
        commands = [command for command in found if command.block == block]
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
            problems += [f"{page}:{command.number}: {line}\n  {what}\n{done.stderr}" for what in wrong]
    sys.stdout.write(f"{ran} of {len(found)} commands ran, {planned} of them with --dry-run; not here: {left}\n")

    assert problems == [], "\n".join(problems)
    assert planned == sum(any(re.match(p, command.text) for p in PLANNED) for command in found)
    assert left == NOT_HERE.get(page, [])


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
    if "generate" in command.text and command.shown and "--stats" not in command.text:  # one text, wrapped for the page
        if " ".join(" ".join(command.shown).split()) != " ".join(output.split()):
            yield f"the text is another: {output}"
        return
    came = {shape(line) for line in output.splitlines()}
    for line in command.shown:
        if line != "[…]" and shape(line) not in came and not DEPENDS.search(line):
            yield f"no line like {shape(line)!r} among {sorted(came)}"


def test_commands_in_the_text_are_commands() -> None:
    """Command lines in backticks, in workflows and in text blocks have options that exist with values that they take."""
    group: Any = typer.main.get_command(app)
    everything = "\n".join(PAGES.values())
    found = re.findall(r"`dynx (\w+ [^`]*|\w+)`", everything)
    found += re.findall(r"^(?: +run:|git bisect run) dynx (.*)$", everything, re.MULTILINE)
    found += [
        " ".join(text.split())
        for text in re.findall(r"^ +run: >\n +dynx ((?:.*\n)+?)(?= +- )", everything, re.MULTILINE)
    ]
    assert sum("--bisect" in text or "junit" in text for text in found) == 3
    assert len(found) > 20
    for text in found:
        name, *words = shlex.split(text.replace("ID", "0f3a9c1b22d4"))
        words += ["x"] if words[-1:] in (["--show"], ["--export"], ["--import"], ["--remove"]) else []
        with group.make_context("dynx", [], resilient_parsing=True) as outer:
            group.commands[name].make_context(name, words, parent=outer).close()


def test_the_settings_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of a dynx.toml is one: every key is known and has a value that it takes."""
    (text,) = blocks("toml").values()
    file = tmp_path / "dynx.toml"
    file.write_text(text, encoding="utf-8")

    found = [layer for layer in layers_of(file, "generate", trusted=False) if layer]
    assert [set(layer) for layer in found] == [{"model", "temperature", "stop"}, {"device"}]


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The examples in Python run on models of the reader's own, and print what they say."""
    codes = blocks("python")
    for name, value in {"HF_HUB_OFFLINE": "1", "DYNX_CACHE_DIR": str(tmp_path), "DYNX_CONFIG": "none"}.items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {
        "model": tiny("llama", seed=3, vocab=400),
        "small_model": tiny("llama", seed=4, vocab=400),
        "inputs": {"input_ids": torch.tensor([[5, 6, 7, 8]])},
    }
    exec(codes.pop("README.md"), names)  # noqa: S102 - our own page
    text = capsys.readouterr().out
    labels = [line.split()[0] for line in text.splitlines()[-2:]]

    assert labels == ["positive", "negative"]
    assert len(text) > 100
    assert names["ids"].shape == (1, 104)
    for code in codes.values():
        exec(code, {})  # noqa: S102 - our own page
        assert capsys.readouterr().out.strip()


def blocks(language: str) -> dict[str, str]:
    """The code block of a language by page; a page has one at most."""
    pattern = rf"^```{language}\n(.*?)^```$"
    pages = {page: text for page, text in PAGES.items() if page != "man/guides/integrations.md"}  # needs other packages
    found = {page: re.findall(pattern, text, re.MULTILINE | re.DOTALL) for page, text in pages.items()}
    assert all(len(codes) <= 1 for codes in found.values())
    return {page: codes[0] for page, codes in found.items() if codes}


def test_links_lead_somewhere() -> None:
    """Every relative link of a page names a file of the repository, and its anchor a heading there."""
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith("http"):
                continue
            name, _, anchor = target.partition("#")
            path = (ROOT / page).parent / name if name else ROOT / page
            assert path.is_file(), (page, target)
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
            assert not anchor or anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, (
                target
            )
