"""Completions and manual pages: in step with the command tree, well formed, and working in each shell that is here."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Annotated

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from dynx import shipped
from dynx.cli.app import app
from dynx.cli.reference import reference_files
from dynx.cli.reference.__main__ import REPAIR, main
from dynx.cli.reference.man import escape
from dynx.cli.reference.tree import NO_REWRAP, brief, read_tree
from dynx.cli.settings import by_command

ROOT = Path(__file__).resolve().parents[2]
COMPLETIONS = ROOT / "completions"
TREE = read_tree(app)
FILES = reference_files(TREE, shipped.by_task(), by_command())
COMMANDS = [command.path[1:] for command in TREE.walk()]
PROFILE, OTHER = "0f3a9c1b22d4", "1e0099aabbcc"
PATIENCE = 20.0  # seconds until a shell that says nothing is given up


def has(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    assert main(["--root", str(tmp_path)]) == 0
    return tmp_path


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder to complete in: a book, a report, a folder of models, a cache with two profiles, the hub's with four models."""
    (tmp_path / "a book.txt").touch()
    (tmp_path / "report.json").touch()
    (tmp_path / "models").mkdir()
    hub = tmp_path / ".cache" / "huggingface" / "hub"
    (hub / "datasets--acme--texts").mkdir(parents=True)
    (hub / "models--gpt--unfinished" / "snapshots").mkdir(parents=True)
    for name, file, text in (
        ("acme--tiny", "config.json", '{"architectures": ["LlamaForCausalLM"]}'),
        ("gpt99", "config.json", '{\n  "architectures": [\n    "GPT2LMHeadModel"\n  ]\n}'),
        ("acme--tone", "config.json", '{"architectures": ["BertForSequenceClassification"]}'),
        ("acme--paint", "model_index.json", '{"_class_name": "StableDiffusionPipeline"}'),
    ):
        for revision in ("0a1b", "2c3d"):
            folder = hub / f"models--{name}" / "snapshots" / revision
            folder.mkdir(parents=True)
            (folder / file).write_text(text)
    profiles = tmp_path / "cache" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / f"generate-my-model-{PROFILE}.json").touch()
    (profiles / f"classify-generate-that-{OTHER}.json").touch()
    (profiles / f"generate-my-model-{PROFILE}.91b2c07d.safetensors").touch()
    return tmp_path


def environment(desk: Path) -> dict[str, str]:
    """What a shell needs, and nothing of whoever runs the tests."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(desk),
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
        "DYNX_CACHE_DIR": str(desk / "cache"),
    }


@pytest.mark.parametrize("name", FILES)
def test_the_committed_files_are_what_the_tree_makes(name: str) -> None:
    """A command or option that changes without its completions and pages is caught."""
    assert (ROOT / name).read_bytes() == FILES[name].encode(), f"repair with: {REPAIR}"


def test_no_page_is_left_of_a_command_that_is_gone() -> None:
    """Every manual page belongs to a command."""
    assert {f"man/{path.name}" for path in (ROOT / "man").iterdir() if path.is_file()} == {
        n for n in FILES if n.startswith("man/")
    }


def help_options(command: tuple[str, ...]) -> set[str]:
    """The options in the first column of `--help`."""
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    lines = [line for line in shown.partition("\nOptions:\n")[2].splitlines() if re.match(r"  -", line)]
    return {name for line in lines for name in re.findall(r"--[a-z-]+", re.split(r" {2,}", line.strip())[0])}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_long_option_of_help_is_in_each_file(command: tuple[str, ...]) -> None:
    """Help, manual page and completions know the same options, read from each without the generator's help."""
    expected = help_options(command)
    assert "--help" in expected
    page = (ROOT / "man" / f"{'-'.join(('dynx', *command))}.1").read_text()
    options = page.partition("\n.SH OPTIONS\n")[2].partition("\n.SH ")[0]
    terms = " ".join(re.findall(r"^\.TP\n(.*)$", options, re.MULTILINE)).replace("\\-", "-")
    assert set(re.findall(r"--[a-z-]+", terms)) == expected

    typed = " ".join(("dynx", *command))
    bash = (COMPLETIONS / "dynx.bash").read_text()
    entry = re.search(rf"^    '?{typed}'?\)\n.*\n +options='([^']*)'", bash, re.MULTILINE)
    assert entry
    assert set(re.findall(r"--[a-z-]+", entry[1])) == expected

    zsh = (COMPLETIONS / "_dynx").read_text()
    function = zsh.partition(f"\n{'_'.join(('_dynx', *command))}() {{\n")[2].partition("\n}\n")[0]
    assert set(re.findall(r"^ +'[^-\[]*(?:\([^)]*\))?\*?(--[a-z-]+)=?\[", function, re.MULTILINE)) == expected

    fish = (COMPLETIONS / "dynx.fish").read_text()
    lines = [line for line in fish.splitlines() if f"'__dynx_at {typed}'" in line]
    assert {f"--{name}" for line in lines for name in re.findall(r" -l ([a-z-]+)", line)} == expected


def test_check_is_quiet_about_what_fits(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check succeeds without a word on files just written, and writing again changes nothing."""
    capsys.readouterr()
    assert main(["--check", "--root", str(checkout)]) == 0
    assert main(["--root", str(checkout)]) == 0
    assert capsys.readouterr() == ("", "")


def test_check_names_what_differs_and_the_repair(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check exits 1 on changed, missing and left-over files, names each, and says which command repairs."""
    with (checkout / "man/dynx.1").open("a") as file:
        file.write("by hand\n")
    (checkout / "completions/_dynx").unlink()
    (checkout / "man/dynx-gone.1").touch()
    with (checkout / "dynx/schemas/plan.1.json").open("a") as file:
        file.write("\n")
    (checkout / "dynx/schemas/error.1.json").unlink()
    (checkout / "dynx/schemas/gone.1.json").touch()
    capsys.readouterr()
    assert main(["--check", "--root", str(checkout)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "completions/_dynx differs from the command tree",
        "man/dynx.1 differs from the command tree",
        "dynx/schemas/error.1.json differs from dynx.schemas.documents",
        "dynx/schemas/plan.1.json differs from dynx.schemas.documents",
        "dynx/schemas/gone.1.json is the schema of no document",
        "man/dynx-gone.1 is the page of no command",
        "repair with: python -m dynx.cli.reference",
    ]
    assert main(["--root", str(checkout)]) == 0
    assert main(["--check", "--root", str(checkout)]) == 0


def test_the_command_runs_as_the_repair_line_says() -> None:
    """`python -m dynx.cli.reference --check` is a program, and agrees with the committed files."""
    done = subprocess.run(
        [sys.executable, "-m", "dynx.cli.reference", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_folder_that_is_no_checkout_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run from an installed copy, nothing is strewn into site-packages."""
    assert main(["--root", str(tmp_path)]) == 1
    assert "no source checkout" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_wheel_installs_every_file() -> None:
    """Each generated file has a place under share/ where its reader looks."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    places = {
        "completions/dynx.bash": "share/bash-completion/completions/dynx",
        "completions/_dynx": "share/zsh/site-functions/_dynx",
        "completions/dynx.fish": "share/fish/vendor_completions.d/dynx.fish",
    }
    for name in FILES:
        page = name.startswith("man/")
        assert shared[name] == (f"share/man/man1/{name.removeprefix('man/')}" if page else places[name])


def test_help_does_not_load_the_generator() -> None:
    """`dynx --help` doesn't pay for what only writes files."""
    code = (
        "import sys; from dynx.cli.main import run; run(['--help']);"
        "sys.exit(any(m.startswith('dynx.cli.reference') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


other = typer.Typer(name="tool", add_completion=False, rich_markup_mode=None, help="A tool.")
nested = typer.Typer(help="Things inside.")
other.add_typer(nested, name="inside")


@other.callback()
def tool(config: Annotated[Path | None, typer.Option("--config", help="Its 'settings'.")] = None) -> None:
    pass


@nested.command()
def first(
    source: Annotated[str, typer.Argument(metavar="FILE", help="What to read.")],
    rate: Annotated[float, typer.Option("--rate", min=0.5, envvar="RATE", help=r"A \ rate, [about] it: ~5.")] = 60.0,
    must: Annotated[str, typer.Option("--must", metavar="X", help="Needed.")] = ...,  # type: ignore[assignment]
    secret: Annotated[bool, typer.Option("--secret", hidden=True)] = False,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Keep it.")] = True,
) -> None:
    """Go first.

    .dots and 'quotes' begin this line.

    \b
    kept as
      it stands
    """


@nested.command(hidden=True)
def second() -> None:
    """Stay unseen."""


def test_any_tree_can_be_read() -> None:
    """Nested commands, hidden ones, bounds, defaults, variables and paragraphs arrive as the tree has them."""
    root = read_tree(other, "tool")
    assert [command.name for command in root.walk()] == ["tool", "tool inside", "tool inside first"]
    inside = root.commands[0].commands[0]
    assert inside.summary == "Go first."
    assert inside.description == (".dots and 'quotes' begin this line.", f"{NO_REWRAP}kept as\n  it stands")
    options = {option.long: option for option in inside.options}
    assert list(options) == ["--rate", "--must", "--cache", "--help"]
    rate = options["--rate"]
    assert (rate.default, rate.bounds, rate.envvar, rate.metavar) == ("60", (0.5, None), "RATE", "RATE")
    assert options["--must"].required
    assert options["--cache"].names == ("--cache", "--no-cache")
    assert inside.arguments[0].required
    assert root.options[0].metavar == "PATH"


def test_a_new_command_appears_everywhere_by_itself(tmp_path: Path) -> None:
    """The files of a tree never seen before are well formed in every shell and for mandoc."""
    files = reference_files(read_tree(other, "tool"), {}, {})
    assert sorted(name for name in files if name.startswith("man/")) == [
        "man/tool-inside-first.1",
        "man/tool-inside.1",
        "man/tool.1",
    ]
    for name, text in files.items():
        (tmp_path / Path(name).name).write_text(text)
    for program, file in (("bash", "tool.bash"), ("zsh", "_tool"), ("fish", "tool.fish")):
        if shutil.which(program):
            subprocess.run([program, "-n", str(tmp_path / file)], check=True)
    if shutil.which("mandoc"):
        for page in tmp_path.glob("*.1"):
            lint(page)
    if shutil.which("bash"):
        assert bash_candidates(tmp_path, "tool --config x inside f", tmp_path / "tool.bash", "_tool") == ["first"]
        assert "tool.bash" in bash_candidates(tmp_path, "tool inside first to", tmp_path / "tool.bash", "_tool")
        assert bash_candidates(tmp_path, "tool inside first --no", tmp_path / "tool.bash", "_tool") == ["--no-cache"]
    if shutil.which("fish"):
        assert fish_candidates(tmp_path, "tool --config x inside f", tmp_path / "tool.fish") == ["first"]
        assert fish_candidates(tmp_path, "tool inside first --no", tmp_path / "tool.fish") == ["--no-cache"]
    if shutil.which("zsh"):
        shell = zsh_terminal(tmp_path, tmp_path)
        try:
            assert shell.complete("tool inside first --no") == "tool inside first --no-cache "
        finally:
            shell.close()


def test_roff_prints_what_was_written() -> None:
    """No character of a help text is taken for markup, and hyphens can be pasted into a shell."""
    assert escape(".5 a-b") == r"\&.5 a\-b"
    assert escape("'x' \\ \"y\" ~ ^ `") == r"\(aqx\(aq \e \(dqy\(dq \(ti \(ha \(ga"
    assert escape("4×") == r"4\[u00D7]"


def test_a_description_is_one_sentence() -> None:
    """Lists of completions get a help text's first sentence, and an abbreviation doesn't end one."""
    assert brief("Rounds; each runs every arm.") == "Rounds"
    assert brief("Lengths, e.g. 1-10. Then more.") == "Lengths, e.g. 1-10"
    assert brief("Who guesses: " + "auto, " * 20) == "Who guesses"


@pytest.mark.parametrize(
    ("program", "file"),
    [
        pytest.param("bash", "dynx.bash", marks=has("bash")),
        pytest.param("zsh", "_dynx", marks=has("zsh")),
        pytest.param("fish", "dynx.fish", marks=has("fish")),
    ],
)
def test_each_shell_can_parse_its_file(program: str, file: str) -> None:
    """A completion file is valid in its shell's language."""
    done = subprocess.run([program, "-n", str(COMPLETIONS / file)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def lint(page: Path) -> None:
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", str(page)], capture_output=True, text=True)
    # A clock that is behind the day of revision is no fault of the page.
    assert [line for line in done.stdout.splitlines() if "date in the future" not in line] == []


@has("mandoc")
@pytest.mark.parametrize("page", sorted((ROOT / "man").glob("*.1")), ids=lambda page: page.name)
def test_manual_pages_are_lint_free(page: Path) -> None:
    """mandoc has nothing to warn of."""
    lint(page)


@pytest.mark.parametrize("page", sorted((ROOT / "man").glob("*.1")), ids=lambda page: page.name)
def test_manual_pages_have_the_sections_people_look_for(page: Path) -> None:
    """Every page says how it ends, what it reads and where it writes, with examples."""
    sections = re.findall(r"^\.SH (.*)$", page.read_text(), re.MULTILINE)
    wanted = [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "EXAMPLES",
        "EXIT STATUS",
        "ENVIRONMENT",
        "FILES",
        "SEE ALSO",
    ]
    assert [section for section in sections if section in wanted] == wanted


def bash_candidates(
    desk: Path, line: str, file: Path = COMPLETIONS / "dynx.bash", function: str = "_dynx"
) -> list[str]:
    """What the bash function offers for a line whose words hold no quotes, split as readline would."""
    words = re.findall(r"[=:]+|[^\s=:]+", line) + ([""] if line.endswith(" ") else [])
    script = f"""
        source "$1"; shift
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$LINE" COMP_POINT=${{#LINE}}
        {function}
        for reply in "${{COMPREPLY[@]}}"; do echo "$reply"; done
    """
    command = ["bash", "--norc", "--noprofile", "-c", script, "bash", str(file), *words]
    env = {**environment(desk), "LINE": line}
    done = subprocess.run(command, cwd=desk, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


@has("bash")
def test_bash_offers_what_fits() -> None:
    """The function, called as readline calls it, offers commands, options not used yet, choices and words."""
    here = ROOT / "completions"
    assert bash_candidates(here, "dynx ") == [command.path[-1] for command in TREE.commands]
    assert bash_candidates(here, "dynx generate --pl") == ["--plain"]
    assert bash_candidates(here, "dynx generate --plain --pl") == []
    assert bash_candidates(here, "dynx generate --model=story --mod") == []
    assert bash_candidates(here, "dynx generate -m story --mod") == []
    assert bash_candidates(here, "dynx generate --stop a --sto") == ["--stop"]
    assert bash_candidates(here, "dynx generate --stop --plain --pl") == ["--plain"]
    assert bash_candidates(here, "dynx generate -- --pl") == []
    assert bash_candidates(here, "dynx generate bench --requ") == ["--require-profile"]
    assert bash_candidates(here, "dynx generate --dtype bf") == ["bfloat16"]
    assert bash_candidates(here, "dynx generate --dtype=bf") == ["bfloat16"]
    assert bash_candidates(here, "dynx generate --draft ") == [
        "auto",
        "none",
        "self",
        "lookup",
        *shipped.names("generate"),
    ]
    assert bash_candidates(here, "dynx generate -n ") == []
    assert bash_candidates(here, "dynx generate -m st") == ["story"]
    assert bash_candidates(here, "dynx classify --model=") == ["mood"]
    assert {"mood", "story"} <= set(bash_candidates(here, "dynx calibrate -m "))
    assert "mood" not in bash_candidates(here, "dynx calibrate --draft ")
    assert bash_candidates(here, "dynx classify --labels dynx.f") == ["dynx.fish"]
    assert bash_candidates(here, "dynx generate --lookup dynx.f") == ["dynx.fish"]
    assert bash_candidates(here, "dynx bench --export j") == ["json:", "junit:"]
    assert bash_candidates(here, "dynx bench --export md:dynx.f") == ["dynx.fish"]
    assert bash_candidates(here, "dynx bench ") == ["generate", "classify", "draw", "all"]
    assert set(bash_candidates(here, "dynx bench --")) >= {"--runs", "--help"}


@has("bash")
def test_bash_finds_profiles_without_python(desk: Path) -> None:
    """Profile ids come from the cache folder's file names, wherever the environment puts it."""
    assert sorted(bash_candidates(desk, "dynx calibrate --show ")) == [PROFILE, OTHER]
    assert bash_candidates(desk, "dynx generate --profile=") == ["none", PROFILE]
    assert bash_candidates(desk, "dynx classify --profile ") == ["none", OTHER]
    assert bash_candidates(desk, "dynx draw --profile ") == ["none"]
    assert bash_candidates(desk / "models", "dynx calibrate --remove ") == []


@has("bash")
def test_bash_finds_the_models_of_a_task(desk: Path) -> None:
    """Of the hub's cache a command offers what it can run, each once, and nothing that was never fetched whole."""
    folders = {path.name for path in desk.iterdir() if path.is_dir()}

    def offered(line: str) -> list[str]:
        return sorted(word for word in bash_candidates(desk, line) if word not in folders)

    assert offered("dynx generate -m ") == ["acme/tiny", "gpt99", "story"]
    assert offered("dynx classify -m ") == ["acme/tone", "mood"]
    assert offered("dynx draw -m ") == ["acme/paint", "emoji"]
    assert offered("dynx calibrate --draft acme") == ["acme/tiny"]
    assert offered("dynx calibrate -m a") == ["acme/paint", "acme/tiny", "acme/tone"]


class Terminal:
    """A shell on a pseudo-terminal: lines are typed with a Tab behind them, and come back as the shell completed them.

    Its start-up file must bind Ctrl-X Ctrl-X to print the line being edited between the bytes 1 and 2, and set the
    prompt to byte 3.
    """

    def __init__(self, command: list[str], desk: Path, **env: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=desk,
            env={**environment(desk), **env},
            start_new_session=True,
        )
        os.close(slave)
        self.read(until=b"\3")

    def read(self, *, until: bytes) -> str:
        """What the terminal shows before the mark."""
        shown = b""
        deadline = time.monotonic() + PATIENCE
        while until not in shown:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no answer after {shown!r}"
            shown += os.read(self.master, 4096)
        return shown.partition(until)[0].decode()

    def complete(self, line: str) -> str:
        """The line after one Tab."""
        os.write(self.master, line.encode() + b"\t\x18\x18")
        completed = self.read(until=b"\2").rpartition("\1")[2]
        os.write(self.master, b"\x15")  # Ctrl-U empties the line
        return completed

    def close(self) -> None:
        """End the shell."""
        self.process.kill()
        self.process.wait()
        os.close(self.master)


# A line, and what one Tab makes of it in bash and in zsh.
TABS = [
    ("dynx generate --dty", "--dtype ", "--dtype="),
    ("dynx cal", "calibrate ", "calibrate "),
    ("dynx generate --dtype bf", "bfloat16 ", "bfloat16 "),
    ("dynx generate --dtype=bf", "--dtype=bfloat16 ", "--dtype=bfloat16 "),
    ("dynx generate bench --pl", "--plain ", "--plain "),
    ("dynx generate -m stor", "story ", "story "),
    ("dynx generate -m mod", "models/", "models/"),
    ("dynx generate -m ac", "acme/tiny ", "acme/tiny "),
    ("dynx bench --model=gp", "--model=gpt99 ", "--model=gpt99 "),
    ("dynx classify -m ac", "acme/tone ", "acme/tone "),
    ("dynx draw --model=ac", "--model=acme/paint ", "--model=acme/paint "),
    ("dynx classify --profile 1", f"{OTHER} ", f"{OTHER} "),
    ("dynx generate --lookup a", r"a\ book.txt ", r"a\ book.txt "),
    ("dynx generate --lookup=a", r"--lookup=a\ book.txt ", r"--lookup=a\ book.txt "),
    ("dynx generate --profile 0f", f"{PROFILE} ", f"{PROFILE} "),
    ("dynx calibrate --export 0", f"{PROFILE} ", f"{PROFILE} "),
    ("dynx bench --export js", "json:", "json:"),
    ("dynx bench --export json:rep", "json:report.json ", "json:report.json "),
    ("dynx bench --export=json:rep", "--export=json:report.json ", "--export=json:report.json "),
]


def completed(line: str, word: str) -> str:
    return line.rpartition(" ")[0] + " " + word


@has("bash")
def test_bash_completes_at_the_terminal(desk: Path) -> None:
    """Typed into a real bash without bash-completion, lines come out whole: after =, after :, and with spaces quoted."""
    start = desk / "bashrc"
    start.write_text(
        f"source '{COMPLETIONS}/dynx.bash'\n"
        "show() { printf '\\1%s\\2' \"$READLINE_LINE\"; }\n"
        "bind 'set enable-bracketed-paste off' 2>/dev/null\n"
        "bind -x '\"\\C-x\\C-x\": show'\n"
        "PS1=$'\\3'\n"
    )
    shell = Terminal(["bash", "--noprofile", "--rcfile", str(start), "-i"], desk)
    try:
        assert [shell.complete(line) for line, _, _ in TABS] == [completed(line, word) for line, word, _ in TABS]
    finally:
        shell.close()


def zsh_terminal(desk: Path, completions: Path) -> Terminal:
    """A zsh that has a folder of completions in its path, and has loaded none of them yet."""
    name = next(path.name for path in completions.glob("_*"))
    (desk / ".zshrc").write_text(
        f"fpath=('{completions}' $fpath)\n"
        "autoload -Uz compinit && compinit -D -u\n"
        f"[[ $_comps[{name[1:]}] == {name} && ${{functions[{name}]}} == *autoload* ]] || exit 1\n"
        "show() { print -rn -- $'\\1'\"$BUFFER\"$'\\2' }\n"
        "zle -N show && bindkey -e && bindkey '^X^X' show\n"
        "unset zle_bracketed_paste\n"
        "PS1=$'%{\\3%}'\n"
    )
    return Terminal(["zsh", "-d", "-i"], desk, ZDOTDIR=str(desk))


@has("zsh")
def test_zsh_completes_from_the_first_tab_on(desk: Path) -> None:
    """A file that compinit has only heard of, and loads at the first Tab, completes at that Tab."""
    shell = zsh_terminal(desk, COMPLETIONS)
    try:
        assert [shell.complete(line) for line, _, _ in TABS] == [completed(line, word) for line, _, word in TABS]
    finally:
        shell.close()


def fish_candidates(desk: Path, line: str, file: Path = COMPLETIONS / "dynx.fish") -> list[str]:
    command = ["fish", "--no-config", "-c", 'source $argv[1]; complete -C "$argv[2]"', str(file), line]
    done = subprocess.run(command, cwd=desk, env=environment(desk), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [shown.partition("\t")[0] for shown in done.stdout.splitlines()]


@has("fish")
@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("dynx cal", ["calibrate"]),
        ("dynx generate --dty", ["--dtype"]),
        ("dynx generate --dtype bf", ["bfloat16"]),
        ("dynx generate --dtype=bf", ["--dtype=bfloat16"]),
        ("dynx generate bench --pl", ["--plain"]),
        ("dynx generate -m stor", ["story"]),
        ("dynx generate -m mod", ["models/"]),
        ("dynx generate -m ac", ["acme/tiny"]),
        ("dynx bench --model=gp", ["--model=gpt99"]),
        ("dynx classify -m ac", ["acme/tone"]),
        ("dynx draw --model=ac", ["--model=acme/paint"]),
        ("dynx classify --profile ", [OTHER, "none"]),
        ("dynx calibrate --remove ", [PROFILE, OTHER]),
        ("dynx generate --model=mod", ["--model=models/"]),
        ("dynx generate --lookup rep", ["report.json"]),
        ("dynx generate --seed rep", []),
        ("dynx generate --profile 0f", [PROFILE]),
        ("dynx bench --export js", ["json:"]),
        ("dynx bench --export json:rep", ["json:report.json"]),
    ],
)
def test_fish_completes(desk: Path, line: str, candidates: list[str]) -> None:
    """fish offers exactly what fits, and nothing for free text."""
    assert fish_candidates(desk, line) == candidates
