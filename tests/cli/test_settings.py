"""Settings that weren't typed: variables, a project's `dynx.toml`, the user's; who counts most, and what is wrong with them."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import PROMPT, finish, spawn

from dynx.cli import app as program
from dynx.cli import configuration
from dynx.cli.main import run
from dynx.cli.options.commands import COMMANDS
from dynx.cli.reference.settings_table import settings_table, with_table
from dynx.cli.settings import by_command, shared

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder to stand in, two folders deep, and an empty home."""
    home, inner = tmp_path / "home", tmp_path / "project" / "a" / "b"
    inner.mkdir(parents=True)
    home.mkdir()
    for name in [n for n in os.environ if n.startswith(("DYNX_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.chdir(inner)
    return tmp_path / "project"


def user(desk: Path, text: str) -> Path:
    """Write the user's file."""
    path = desk.parent / "home" / "config" / "dynx" / "dynx.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def project(desk: Path, text: str) -> Path:
    """Write the project's file."""
    path = desk / "dynx.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the latest command got, by option; no command does anything."""
    got: dict[str, Any] = {}

    def note(name: str, options: Any) -> None:
        got.clear()
        got.update(vars(options))
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "run", note)
    monkeypatch.setattr("dynx.cli.main.die_of", lambda number: 0)
    return got


def test_who_counts_most(desk: Path, seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed, then the variable, then the project, then the user, then the default; within each, the command before all."""
    user(desk, 'threads = 1\n[generate]\ntemperature = 0.1\ntop-k = 1\nmax-new-tokens = 1\nchat = true\nsystem = "u"\n')
    project(desk, '[generate]\ntemperature = 0.2\ntop-k = 2\nmax-new-tokens = 2\ndevice = "xpu"\n')
    monkeypatch.setenv("DYNX_GENERATE_TEMPERATURE", "0.3")
    monkeypatch.setenv("DYNX_GENERATE_TOP_K", "3")
    monkeypatch.setenv("DYNX_DEVICE", "mps")

    assert run(["generate", "--temperature", "0.4", "x"]) == 0
    assert (seen["temperature"], seen["top_k"], seen["max_new_tokens"], seen["chat"]) == (0.4, 3, 2, True)
    assert (seen["system"], seen["top_p"], seen["threads"], seen["device"]) == ("u", 1.0, 1, "mps")

    monkeypatch.setenv("DYNX_GENERATE_DEVICE", "cuda:1")
    run(["generate", "x"])
    assert seen["device"] == "cuda:1"
    run(["classify", "x"])
    assert (seen["device"], seen["threads"], seen["model"]) == ("mps", 1, "mood")


def test_every_kind_of_value(desk: Path, seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches, counts, choices, numbers for texts and lists arrive as the command takes them, from files and variables."""
    project(desk, 'verbose = 0\n[draw]\nsize = 64\nsteps = 20\nquality = 1\nshow = "never"\nlines = false\n')
    run(["draw", "x"])
    assert (seen["size"], seen["steps"], seen["quality"], str(seen["show"]), seen["lines"]) == (
        "64",
        "20",
        1.0,
        "never",
        False,
    )

    monkeypatch.setenv("DYNX_GENERATE_STOP", "the end\nThe End")
    monkeypatch.setenv("DYNX_GENERATE_PLAIN", "yes")
    monkeypatch.setenv("DYNX_VERBOSE", "1")
    monkeypatch.setenv("DYNX_GENERATE_SEED", "")
    run(["generate", "x"])
    assert (seen["stop"], seen["plain"], seen["verbose"], seen["seed"]) == (["the end", "The End"], True, 1, None)


def test_paths_are_seen_from_the_file(desk: Path, seen: dict[str, Any]) -> None:
    """A model, a draft, a data file and a folder for pictures are named from the folder of the file that names them."""
    project(
        desk,
        '[generate]\nmodel = "./m"\ndraft = "self,../d"\nlookup = "book.txt"\n[draw]\noutput = "pictures/"\nmodel = "emoji"\n',
    )
    run(["generate", "x"])
    folder = str(desk)
    assert (seen["model"], seen["draft"], seen["lookup"]) == (
        f"{folder}/./m",
        f"self,{folder}/../d",
        f"{folder}/book.txt",
    )
    run(["draw", "x"])
    assert (seen["output"], seen["model"]) == (f"{folder}/pictures/", "emoji")


def test_the_nearest_file_is_the_projects(desk: Path, seen: dict[str, Any]) -> None:
    """Of several files upwards the nearest alone is read."""
    project(desk, "[generate]\ntop-k = 7\nmax-new-tokens = 7\n")
    (desk / "a" / "dynx.toml").write_text("[generate]\ntop-k = 8\n", encoding="utf-8")
    run(["generate", "x"])
    assert (seen["top_k"], seen["max_new_tokens"]) == (8, 256)


def test_one_file_instead_or_none(desk: Path, seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """DYNX_CONFIG names the only file to read, and `none` reads none."""
    project(desk, "[generate]\ntop-k = 7\n")
    other = desk / "other.toml"
    other.write_text("[generate]\nmax-new-tokens = 9\n", encoding="utf-8")
    monkeypatch.setenv("DYNX_CONFIG", str(other))
    run(["generate", "x"])
    assert (seen["top_k"], seen["max_new_tokens"]) == (0, 9)
    monkeypatch.setenv("DYNX_CONFIG", "none")
    run(["generate", "x"])
    assert (seen["top_k"], seen["max_new_tokens"]) == (0, 256)


def test_what_is_typed_puts_away_its_rival(desk: Path, seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that asks for --json doesn't stand in the way of --jsonl typed, or set by a variable."""
    project(desk, "[generate]\njson = true\n")
    run(["generate", "x", "--jsonl"])
    assert (seen["json"], seen["jsonl"]) == (False, True)
    monkeypatch.setenv("DYNX_GENERATE_JSONL", "1")
    run(["generate", "x"])
    assert (seen["json"], seen["jsonl"]) == (False, True)
    monkeypatch.delenv("DYNX_GENERATE_JSONL")
    run(["generate", "x"])
    assert (seen["json"], seen["jsonl"]) == (True, False)


WRONG = [
    ("[generate]\ntemprature = 1\n", "[generate] temprature is not a setting", "did you mean temperature?"),
    ("[generate]\nmax_new_tokens = 1\n", "[generate] max_new_tokens is not a setting", "did you mean max-new-tokens?"),
    ("[genrate]\ntop-k = 1\n", "genrate is not a setting", r"did you mean \[generate\]?"),
    ("max-new-tokens = 1\n", "max-new-tokens is not a setting", r"it belongs in a table: \[generate\], \[bench\]"),
    ('model = "story"\n', "model is not a setting", "it belongs in a table"),
    ("[calibrate]\nremove = 'x'\n", "[calibrate] remove is not a setting", None),
    ("generate = 1\n", "generate is a command; its settings belong in the table [generate]", None),
    ("[generate]\nplain = 1\n", "[generate] plain must be true or false, not 1", None),
    ("[generate]\ntop-k = true\n", "[generate] top-k must be a whole number, not true", None),
    ("[generate]\ntop-k = 1.5\n", "[generate] top-k must be a whole number, not 1.5", None),
    ("[generate]\ntemperature = 'hot'\n", "[generate] temperature must be a number, not 'hot'", None),
    ("[generate]\nstop = [1]\n", "[generate] stop must be a list of texts, not [1]", None),
    ("[generate]\nmodel = ['a']\n", "[generate] model must be a text, not ['a']", None),
    ("dtype = 'float8'\n", "dtype must be one of auto, float32, bfloat16, float16", None),
    ("[bench]\nruns = 'x'\n", "[bench] runs must be a whole number", None),
    ("allow-pickle = true\n", "allow-pickle can't be set by a project's file", "use --allow-pickle"),
    (
        "trust-remote-code = true\n",
        "trust-remote-code can't be set by a project's file",
        "use --trust-remote-code",
    ),
    ("[generate]\nplain = yes\n", "is not TOML: ", "a setting looks like"),
]


def test_a_byte_order_mark_is_no_setting(desk: Path, seen: dict[str, Any]) -> None:
    """A file that an editor marked as UTF-8 reads like any other."""
    (desk / "dynx.toml").write_bytes(b"\xef\xbb\xbf[generate]\ntop-k = 7\n")

    assert run(["generate", "x"]) == 0
    assert seen["top_k"] == 7


@pytest.mark.parametrize(("text", "words", "hint"), WRONG, ids=[words for _, words, _ in WRONG])
def test_a_wrong_file_is_one_line(
    desk: Path, seen: dict[str, Any], capsys: pytest.CaptureFixture[str], text: str, words: str, hint: str | None
) -> None:
    """An unknown key, a wrong type or broken TOML names file and key and what was meant, also in another command's table."""
    path = project(desk, text)
    assert run(["generate", "x"]) == 2
    out, err = capsys.readouterr()
    first, *others = err.splitlines()
    assert out == ""
    assert first.startswith(f"dynx: {path}")
    assert words in first
    if hint is None:
        assert len(others) <= 1
    else:
        assert [bool(re.match(f"  {hint}", line)) for line in others] == [True], others
    assert run(["generate", "--help"]) == 0


@pytest.mark.parametrize("damage", [b"\xff\xfe", None], ids=["not UTF-8", "no such file"])
def test_a_file_that_cannot_be_read(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: bytes | None
) -> None:
    """What isn't text, or isn't there though it was named, is told by its name."""
    path = desk / "named.toml"
    if damage is not None:
        path.write_bytes(damage)
    monkeypatch.setenv("DYNX_CONFIG", str(path))
    assert run(["generate", "x"]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"DYNX_GENERATE_TEMPERATURE": "hot"}, "DYNX_GENERATE_TEMPERATURE: "),
        ({"DYNX_GENERATE_TOP_P": "2"}, "DYNX_GENERATE_TOP_P: "),
        ({"DYNX_DTYPE": "float8"}, "DYNX_DTYPE: "),
        ({"DYNX_GENERATE_PLAIN": "maybe"}, "DYNX_GENERATE_PLAIN=maybe: must be 1 or 0"),
    ],
    ids=str,
)
def test_a_wrong_variable_is_named(
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    words: str,
) -> None:
    """A value that a variable can't have is told by the variable, not by an option that nobody typed."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(["generate", "x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"dynx: {words}")


def test_a_value_out_of_range_names_file_and_key(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What only the command can judge is told with where it was set, be it the parser or the command that refuses."""
    path = project(desk, "[generate]\ntemperature = 200\n[classify]\nmax-disagreement = 3\n")
    assert run(["generate", "x"]) == 2
    assert capsys.readouterr().err.startswith(f"dynx: {path} [generate] temperature: ")
    assert run(["classify", "x"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "dynx: --max-disagreement 3 must lie between 0 and 1",
        f"  set by {path} [classify] max-disagreement",
    ]


def test_a_variable_that_is_nearly_one_is_warned_of(
    desk: Path, seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped variable would do nothing in silence; it does nothing with a word."""
    monkeypatch.setenv("DYNX_GENERATE_TEMPRATURE", "1")
    assert run(["generate", "x"]) == 0
    assert capsys.readouterr().err == (
        "dynx: DYNX_GENERATE_TEMPRATURE is not a setting; did you mean DYNX_GENERATE_TEMPERATURE?\n"
    )
    run(["generate", "x", "-qq"])
    assert capsys.readouterr().err == ""


def test_a_file_of_somebody_else_is_not_read(
    desk: Path, seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder that many can write to, nobody decides for another what runs."""
    project(desk, "[generate]\ntop-k = 7\n")
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    monkeypatch.setattr(configuration, "ROOT_USER", 12346)
    run(["generate", "x"])
    assert seen["top_k"] == 0
    assert "belongs to another user" in capsys.readouterr().err


def test_very_verbose_says_where_values_are_from(
    cli: Cli, desk: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-vv lists each option that isn't at its default with its value and its origin, on stderr."""
    path = project(desk, "[generate]\nmax-new-tokens = 4\n")
    monkeypatch.delenv("DYNX_CONFIG", raising=False)
    monkeypatch.setenv("DYNX_THREADS", "1")
    result = cli("generate", "-m", tiny_folder, PROMPT, "-vv")
    assert result.code == 0
    assert result.err.splitlines()[:4] == [
        f"--model: {tiny_folder} (command line)",
        f"--max-new-tokens: 4 ({path} [generate] max-new-tokens)",
        "--threads: 1 (DYNX_THREADS)",
        "--verbose: 2 (command line)",
    ]
    assert cli("generate", "-m", tiny_folder, PROMPT, "-v").err.count("command line") == 0


def test_every_option_is_a_setting() -> None:
    """Each option of each command can be set but for those that ask for one action; help lists all but the hidden ones."""
    from dynx.cli.app import app
    from dynx.cli.reference.tree import read_tree

    for command in read_tree(app).commands:
        name = command.path[-1]
        declared = {d.key: d for _, d in COMMANDS[name].declared() if d.key is not None}
        listed = {option.long[2:] for option in command.options} - {"help"}
        known = by_command()[name]
        assert listed == {key for key, d in declared.items() if not d.about.get("hidden")}
        assert set(known) == {key for key, d in declared.items() if not d.once}
        assert all(v.startswith("DYNX_") for setting in known.values() for v in setting.variables)
    assert {"device", "offline", "color"} <= set(shared())
    assert not {"model", "json"} & set(shared())


def test_the_table_of_settings_is_written_between_its_marks() -> None:
    """The configuration guide lists every setting, and nothing outside its marks is touched."""
    known = by_command()
    text = "before\n<!-- settings, old -->\nold\n<!-- end of settings -->\nafter\n"
    table = settings_table(known)
    assert with_table(text, known) == f"before\n<!-- settings, old -->\n{table}<!-- end of settings -->\nafter\n"
    assert with_table("no marks\n", known) == "no marks\n"
    assert all(key in table for settings in known.values() for key in settings)


def test_help_reads_no_file(desk: Path) -> None:
    """`dynx --help` and `--version` look for no settings at all."""
    code = (
        "import sys, pathlib\npathlib.Path.is_file = None\n"
        "from dynx.cli.main import run; sys.exit(run(['--help']) or run(['--version']))"
    )
    assert finish(spawn(code=code)).code == 0
