"""`dynx bench` on a tiny model: table, JSON, exports, gates and exit codes. Speed itself is nobody's test."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from support.commands import CONTEXT, parse_json

from dynx import schemas

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]

SHORT = ("--runs", 1, "-n", 8, "--prompts", 2, "--static", "1,2")


def arms(table: str) -> list[str]:
    """The first column."""
    return [re.split(r"  +", row)[0] for row in table.splitlines() if "█" in row]


def test_a_table_of_plain_static_and_dynamic(cli: Cli, tiny_folder: Path) -> None:
    """Plain, each static draft length and dynamic are measured side by side, and a sentence reads the table."""
    result = cli("bench", "-m", tiny_folder, *SHORT, "--require-identical")

    assert (result.code, result.err) == (0, "")
    assert arms(result.out) == ["plain", "draft k=1", "draft k=2", "dynamic"]
    assert re.search(r"^dynamic \d\.\d\dx of plain", result.out, re.MULTILINE)
    assert "require-identical: pass" in result.out
    assert max(map(len, result.out.split("\ndynamic")[0].splitlines())) <= 80


def test_json_keeps_to_its_schema(cli: Cli, tiny_folder: Path) -> None:
    """--json is one document of the published schema, with every sample, and says on what it was measured."""
    result = cli("bench", "-m", tiny_folder, *SHORT, "--require-identical", "--min-speedup", 0.001, "--json")
    document = result.document
    assert schemas.complaint(document) is None

    assert (result.code, result.err) == (0, "")
    assert next(iter(document)) == "schema"
    assert (document["header"]["model"], document["header"]["tokens_per_answer"]) == ("tiny", 8)
    assert [gate["name"] for gate in document["gates"]] == ["min-speedup", "require-identical"]
    assert document["cases"] == 2


def test_exports_are_files(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """--export writes JSON and Markdown beside the table, and -v says where."""
    paths = {form: tmp_path / f"result.{form}" for form in ("json", "md")}
    exports = [f"--export={form}:{path}" for form, path in paths.items()]
    result = cli("bench", "-m", tiny_folder, *SHORT, *exports, "-v")

    assert result.code == 0
    assert parse_json(paths["json"].read_text(encoding="utf-8"))["schema"] == "dynx.bench/1"
    assert "dynamic" in paths["md"].read_text(encoding="utf-8")
    assert all(f"wrote {path}\n" in result.err for path in paths.values())


def test_a_gate_that_fails_is_exit_code_3(cli: Cli, tiny_folder: Path) -> None:
    """A speed-up out of reach fails with the figures on stdout all the same, and the reason on stderr."""
    result = cli(
        "bench", "-m", tiny_folder, "--runs", 3, "-n", 8, "--prompts", 2, "--static", "none", "--min-speedup", 900
    )

    assert result.code == 3
    assert arms(result.out) == ["plain", "dynamic"]
    assert re.fullmatch(r"dynx: min-speedup: .* is below 900\.00x as a whole\n", result.err)


def test_transformers_is_a_peer(cli: Cli, tiny_folder: Path) -> None:
    """--arm NAME=transformers measures its generate, plain, with lookup and assisted, and all write the same."""
    result = cli("bench", "-m", tiny_folder, *SHORT, "--arm", "hf=transformers", "--json")
    by_name = {arm["name"]: arm for arm in result.document["arms"]}

    assert (result.code, result.err) == (0, "")
    assert list(by_name) == [
        "plain",
        "draft k=1",
        "draft k=2",
        "dynamic",
        "hf plain",
        "hf lookup",
        "hf dynamic",
        "hf k=1",
        "hf k=2",
    ]
    assert {arm["identical"] for name, arm in by_name.items() if name != "plain"} == {1.0}


def test_prompts_of_a_file(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """--data gives the prompts, one per line, as many as --prompts allows."""
    data = tmp_path / "prompts.txt"
    data.write_text("Once upon\n\nThe fox\nThe king\n", encoding="utf-8")
    result = cli("bench", "-m", tiny_folder, *SHORT, "--data", data, "--prompts", 9, "--json")

    assert result.document["cases"] == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--static", "0-5"], "--static 0-5: lengths are numbers from 1 to 64"),
        (["--static", "many"], "--static many"),
        (["--export", "out.json"], "--export wants FORMAT:PATH"),
        (["--export", "pdf:out.pdf"], "--export has no format 'pdf'"),
        (["--export", "json:/nowhere/out.json"], "can't write /nowhere/out.json"),
        (["--data", "/nowhere.txt"], "--data /nowhere.txt can't be read: No such file"),
        (["--min-speedup", "0"], "must be a positive number"),
        (["--min-speedup", "inf"], "must be a positive number"),
        (["--min-speedup", "nan"], "--min-speedup"),
        (["--arm", "hf=magic"], "--arm hf=magic: magic is neither an option nor a peer"),
        (["--arm", "hf=transformers", "--with", "--temperature 1"], "transformers is compared in greedy decoding"),
        (["--with", "--top-p 0.5"], "--with: No such option: --top-p"),
        (["--with", "--runs 3"], "--with --runs 3: --runs goes beside --with, not into it"),
        (["--with", "generate"], "--with generate: a task goes beside --with"),
        (["--with", "--size '1"], "--with: No closing quotation"),
        (["--with", "--temperature hot"], "--with: Invalid value for '--temperature'"),
        (["--runs", "0"], "--runs"),
        (["-n", "1"], "-n"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_told_before_measuring(
    cli: Cli, tiny_folder: Path, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad values are wrong usage, known before minutes are spent."""
    monkeypatch.setattr("dynx.bench.runner.measure", lambda *_, **__: pytest.fail("measured"))
    result = cli("bench", "-m", tiny_folder, *options)

    assert (result.code, result.out) == (2, "")
    assert words in result.err.splitlines()[0]
    assert len(result.err.splitlines()) <= 2


def test_a_prompt_too_long_to_measure(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """A prompt that no arm could answer ends the measurement with its reason."""
    data = tmp_path / "prompts.txt"
    data.write_text("the fox " * CONTEXT, encoding="utf-8")
    result = cli("bench", "-m", tiny_folder, *SHORT, "--data", data)

    assert (result.code, result.out) == (2, "")
    assert f"the model's context is {CONTEXT}" in result.err


def test_sampling_is_measured_with_a_fixed_seed(cli: Cli, tiny_folder: Path) -> None:
    """With a temperature, every arm draws the same randomness, so outputs still compare."""
    result = cli("bench", "-m", tiny_folder, *SHORT, "--with", "--temperature 0.8", "--require-identical", "--json")

    assert result.code == 0
    assert json.loads(result.out)["header"]["temperature"] == 0.8
