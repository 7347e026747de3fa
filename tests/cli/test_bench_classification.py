"""`dynx bench` on tiny classifiers: the table, JSON, true labels, gates, and options that belong to another task."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.classifier_folders import sentences, write_image_classifier, write_pictures, write_text_classifier
from support.commands import helps

from dynx import schemas
from dynx.cli.bench import arm_options
from dynx.cli.bench import classification as bench_classification
from dynx.cli.bench import generation as bench_generation
from dynx.cli.options import bench as bench_options
from dynx.cli.options import classify as classify_options
from dynx.cli.options import draw as draw_options
from dynx.cli.options import generate as generate_options
from dynx.early_exit.features import Inputs
from dynx.runtime.decision import Decision
from dynx.runtime.hashing import text_hash

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]

COUNT = 24
SHORT = ("--runs", 1, "--with", "--batch-size 1")
"""One round, and batches so small that a few inputs make four cases."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT."""
    return write_text_classifier(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A text per line."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(sentences(COUNT)) + "\n", encoding="utf-8")
    return path


def test_a_table_of_plain_bucketed_and_dynamic(cli: Cli, folder: Path, texts: Path) -> None:
    """Three arms, and in words how many layers and labels, and why there are no exits."""
    result = cli("bench", "-m", folder, *SHORT, "--data", texts, "--max-disagreement", 0.02, "--require-identical")
    lines = result.out.splitlines()

    assert (result.code, result.err) == (0, "")
    assert re.split(r"  +", lines[0])[:2] == ["arm", "labels/s"]
    assert [re.split(r"  +", line)[0] for line in lines[1:4]] == ["plain", "bucketed", "dynamic"]
    assert "of the best static (bucketed)" in result.out
    assert (
        f"dynamic: 4.00 of 4 layers on average, 100.00 % [85.75, 100.00] of {COUNT} labels are the full" in result.out
    )
    assert "dynamic has no exits, so it equals bucketed: no profile; calibrating learns exits" in result.out
    assert f"max-disagreement: pass, 0 of {COUNT} answers differ" in result.out
    assert "require-identical: pass" in result.out
    assert "from 1 round of 4 parts" in result.out


def test_json_keeps_to_its_schema(cli: Cli, folder: Path, texts: Path) -> None:
    """--json is one document of the published schema, whose header says on what was measured and why there are no exits."""
    result = cli("bench", "-m", folder, *SHORT, "--data", texts, "--json", "--min-speedup", 0.001)
    document = result.document
    assert schemas.complaint(document) is None
    header, dynamic = document["header"], document["arms"][2]

    assert (result.code, result.err) == (0, "")
    assert (document["task"], document["unit"], document["cases"]) == ("classify", "labels", 4)
    assert (header["model"], header["inputs"], header["batch_size"], header["dtype"]) == (
        "tiny-bert",
        COUNT,
        1,
        "float32",
    )
    assert header["exits"]["value"] == "none"
    assert header["exits"]["reason"].startswith("no profile; calibrating")
    assert header["profile"] is None
    assert {"model_hash", "device", "processor", "threads", "versions"} <= header.keys()
    assert dynamic["facts"]["agreement"]["hits"] == dynamic["facts"]["agreement"]["of"] == COUNT
    assert (dynamic["facts"]["mean_layers"], dynamic["facts"]["accuracy"], dynamic["identical"]) == (4.0, None, 1.0)


def test_speed_is_judged_against_the_faster_of_plain_and_bucketed(cli: Cli, folder: Path, texts: Path) -> None:
    """A speed-up out of reach fails with exit code 3, and the reason names what dynamic was compared with."""
    result = cli(
        "bench", "-m", folder, "--runs", 3, "--with", "--batch-size 1", "--data", texts, "--min-speedup", 900, "--json"
    )
    (gate,) = result.document["gates"]
    bucketed = next(arm for arm in result.document["arms"] if arm["name"] == "bucketed")
    faster = "bucketed" if bucketed["ratio"]["ratio"] >= 1 else "plain"

    assert result.code == 3
    assert re.fullmatch(rf"min-speedup: \S+ \[.*\] of {faster} is below 900\.00x as a whole", result.error["message"])
    assert (gate["name"], gate["verdict"]) == ("min-speedup", "fail")


def test_true_labels_give_accuracy(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """With --labels each arm's accuracy is counted, from the very table that has the texts."""
    table = tmp_path / "table.tsv"
    rows = [f"{text}\t{i % 5}" for i, text in enumerate(sentences(COUNT))]
    table.write_text("text\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8")
    result = cli(
        "bench", "-m", folder, *SHORT, "--data", table, "--with", "--tsv --column text", "--labels", table, "--json"
    )
    facts = {arm["name"]: arm["facts"]["accuracy"] for arm in result.document["arms"]}

    assert result.code == 0
    assert {accuracy["of"] for accuracy in facts.values()} == {COUNT}
    assert facts["plain"] == facts["dynamic"]
    assert any(line.startswith("accuracy: plain ") for line in result.document["reading"])


def test_true_labels_stay_with_their_rows(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """Rows that are no input, and texts of several lines, shift no label: the model's own labels are all right."""
    texts = [f"{text}\nand more" if i % 5 == 0 else text for i, text in enumerate(sentences(COUNT))]
    said = cli("classify", "-m", folder, *texts).out.splitlines()
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    written = [f"{text}\t{line.split(chr(9))[0]}\n".encode() for text, line in zip(quoted, said, strict=True)]
    written[3:3] = [b"caf\xe9\tLABEL_0\n", b"\tLABEL_1\n"]
    table = tmp_path / "table.tsv"
    table.write_bytes(b"text\tlabel\n" + b"".join(written))
    result = cli(
        "bench", "-m", folder, *SHORT, "--data", table, "--with", "--tsv --column text", "--labels", table, "--json"
    )
    accuracy = result.document["arms"][0]["facts"]["accuracy"]

    assert (result.code, accuracy["hits"], accuracy["of"]) == (0, COUNT, COUNT)
    assert f"1 of {COUNT + 2} rows of --data can't be read and were left out (row 4: not UTF-8" in result.err


def test_true_labels_go_with_the_inputs_drawn(cli: Cli, folder: Path, tmp_path: Path, texts: Path) -> None:
    """--inputs draws at random, each text with its own label: what plain said of all of them is what it says of some."""
    said = cli("classify", "-m", folder, stdin=texts.read_bytes()).out
    gold = tmp_path / "gold.txt"
    gold.write_text("".join(line.split("\t")[0] + "\n" for line in said.splitlines()), encoding="utf-8")
    result = cli("bench", "-m", folder, *SHORT, "--data", texts, "--labels", gold, "--inputs", 9, "--json")
    plain = result.document["arms"][0]["facts"]["accuracy"]

    assert result.document["header"]["inputs"] == 9
    assert (plain["hits"], plain["of"]) == (9, 9)


def test_transformers_is_a_peer(cli: Cli, folder: Path, texts: Path) -> None:
    """--arm NAME=transformers measures its pipeline at its defaults and with batches."""
    result = cli(
        "bench",
        "-m",
        folder,
        "--runs",
        1,
        "--with",
        "--batch-size 2",
        "--data",
        texts,
        "--arm",
        "hf=transformers",
        "--json",
    )

    assert (result.code, result.err) == (0, "")
    assert {arm["name"]: arm["identical"] for arm in result.document["arms"]} == {
        "plain": 1.0,
        "bucketed": 1.0,
        "dynamic": 1.0,
        "hf pipeline": 1.0,
        "hf batch 2": 1.0,
    }


def test_a_folder_of_images(cli: Cli, tmp_path: Path) -> None:
    """An image classifier is measured on a folder; what can't be read is left out and told."""
    model = write_image_classifier(tmp_path / "tiny-vit")
    write_pictures(tmp_path / "pictures", 5)
    (tmp_path / "pictures" / "broken.png").write_text("no picture")
    result = cli("bench", "-m", model, *SHORT, "--data", tmp_path / "pictures", "--json")

    assert result.code == 0
    assert result.err == "dynx: 1 of 6 inputs can't be read and were skipped\n"
    assert result.document["header"]["inputs"] == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--draft", "none"], "--draft is for language models; tiny-bert is a classifier"),
        (["--static", "2"], "--static is for language models"),
        (["-n", "8"], "--max-new-tokens is for language models"),
        (["--with", "--temperature 0"], "--temperature is for language models"),
        (["--max-disagreement", "1"], "--max-disagreement 1 must lie between 0 and 1"),
        (["--with", "--column text"], "--column requires --tsv"),
        (["--with", "--confidence 2"], "--confidence 2 must lie between 0 and 1"),
        (["--data", "/nowhere.txt"], "--data /nowhere.txt can't be read"),
        (["--labels", "/nowhere.txt"], "can't read /nowhere.txt"),
        (["--with", "--max-length 4"], "--max-length"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_told_before_measuring(
    cli: Cli, folder: Path, texts: Path, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options of language models and bad values are refused in one line, and nothing is run."""
    monkeypatch.setattr("dynx.bench.runner.measure", lambda *_, **__: pytest.fail("measured"))
    result = cli("bench", "-m", folder, "--data", texts, *options)

    assert (result.code, result.out) == (2, "")
    assert words in result.err.splitlines()[0]
    assert len(result.err.splitlines()) <= 2


@pytest.mark.parametrize(
    "options",
    [
        ["--with", "--tsv"],
        ["--with", "--column x"],
        ["--labels", "x"],
        ["--with", "--batch-size 8"],
        ["--with", "--max-length 8"],
        ["--with", "--confidence 0.9"],
        ["--with", "--within 1"],
        ["--max-disagreement", "0.1"],
    ],
    ids=lambda options: " ".join(options),
)
def test_a_language_model_has_none_of_a_classifier_s_options(cli: Cli, tiny_folder: Path, options: list[str]) -> None:
    """They are refused, not ignored."""
    result = cli("bench", "-m", tiny_folder, *options)

    assert (result.code, result.out) == (2, "")
    name = options[options[0] == "--with"].split()[0]
    assert result.err.startswith(f"dynx: {name} is for classifiers; tiny is a language model\n")


def test_a_field_is_one_of_the_data(cli: Cli, tiny_folder: Path) -> None:
    """A language model takes --field too, and it is refused where there are no inputs to take it from."""
    result = cli("bench", "-m", tiny_folder, "--with", "--field x")

    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("dynx: --field requires --data\n")


def test_inputs_are_needed(cli: Cli, folder: Path) -> None:
    """A classifier brings no inputs of its own, and what to give is said."""
    result = cli("bench", "-m", folder)

    assert (result.code, result.out) == (2, "")
    assert "classifiers need --data" in result.err
    assert "a file of texts, one per line" in result.err


@pytest.mark.parametrize(("data", "warned"), [(["a", "b"], True), (["a", "c"], False)], ids=["the same", "others"])
def test_inputs_that_the_exits_were_learned_from_are_told(data: list[str], warned: bool) -> None:
    """On them exits do better than on others, and whoever reads the figures should know."""
    profile = SimpleNamespace(evidence={"data": text_hash(["a", "b"])})
    assembly: Any = SimpleNamespace(
        exits_early=True,
        decisions=SimpleNamespace(exits=Decision("after layer 1 of 2", "it pays")),
        plan=SimpleNamespace(profile=profile, request=SimpleNamespace(form="text"), kind="text"),
        exit_model=SimpleNamespace(depth=2),
    )
    said = bench_classification.notes(assembly, Inputs(data, data), {})

    assert any("exits were calibrated on" in sentence for sentence in said) == warned
    assert not any("no exits" in sentence for sentence in said)


def test_labels_for_other_inputs_are_refused(cli: Cli, folder: Path, texts: Path, tmp_path: Path) -> None:
    """Fewer labels than inputs can't belong to them."""
    gold = tmp_path / "gold.txt"
    gold.write_text("0\n1\n", encoding="utf-8")
    result = cli("bench", "-m", folder, "--data", texts, "--labels", gold)

    assert (result.code, result.out) == (2, "")
    assert f"has 2 labels for {COUNT} inputs" in result.err


def test_a_model_that_gives_numbers_needs_a_tolerance(cli: Cli, tmp_path: Path, texts: Path) -> None:
    """Numbers are hardly ever equal: without --within nothing is compared, with it agreement is."""
    model = write_text_classifier(tmp_path / "tiny", problem_type="regression")
    refused = cli("bench", "-m", model, *SHORT, "--data", texts)
    result = cli("bench", "-m", model, *SHORT, "--data", texts, "--with", "--within 0.01", "--json")

    assert refused.code == 2
    assert "--within T: outputs that differ" in refused.err
    assert result.document["arms"][2]["facts"]["agreement"]["hits"] == COUNT


@pytest.mark.parametrize(
    ("kind", "command"),
    [(bench_generation.Settings, generate_options.Options), (bench_classification.Settings, classify_options.Options)],
)
def test_help_tells_each_task_s_defaults(kind: Any, command: Any) -> None:
    """What an option defaults to depends on the task, so that help says it in words, which must be true.

    Options in --with have the defaults of the model's own command.
    """
    options = helps("bench")
    for name, default in vars(kind()).items():
        if name in arm_options.WITH_OPTIONS:
            assert default == getattr(command(), name), name
        elif default not in (None, False, "auto", "none", 0.0):
            assert str(default) in options[f"--{name.replace('_', '-')}"], name


def test_options_of_the_models_own_commands_are_the_same() -> None:
    """Each one that --with takes is an option of a command, under the same names; at most 36 stand in help."""
    own: dict[str, Any] = {}
    for command in (generate_options, classify_options, draw_options):
        own |= {field.name: declared for field, declared in command.COMMAND.declared()}
    within = {f.name: d for f, d in bench_options.LINE.declared() if f.name in arm_options.WITH_OPTIONS}
    listed = [d for _, d in bench_options.COMMAND.declared() if d.names and not d.about.get("hidden")]

    assert within
    assert {name: d.names for name, d in within.items()} == {name: own[name].names for name in within}
    assert len(listed) <= 36


def test_with_may_be_repeated_and_be_set(cli: Cli, folder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several --with add up, an --arm differs from them, and a variable of the environment sets what isn't typed."""
    arguments = ("bench", "-m", folder, "--runs", 1, "--data", texts, "--json")
    arm = ("--arm", "one=--batch-size 1")
    typed = cli(*arguments, "--with", "--batch-size 3", "--with", "--max-length 8", *arm).document
    monkeypatch.setenv("DYNX_BENCH_WITH", "--batch-size 2")
    varied = cli(*arguments).document

    assert (typed["header"]["batch_size"], typed["header"]["max_length"]) == (3, 8)
    assert typed["arms"][-1]["name"] == "one"
    assert varied["header"]["batch_size"] == 2
