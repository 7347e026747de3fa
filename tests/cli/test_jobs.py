"""`--input FILES --output DIR` answers as the command does without it, can be repeated, and says what is wrong in one line."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.classifier_folders import sentences, write_image_classifier, write_pictures, write_text_classifier
from support.commands import spawn
from support.pair_folders import NLI, pairs, queries, write_pair_classifier
from support.pipelines import ddim

from dynx import schemas

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    from dynx.early_exit.calibrate import Findings


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of all parts in order."""
    parts = sorted((folder / "parts").iterdir())
    return [json.loads(line) for part in parts for line in part.read_text(encoding="utf-8").splitlines()]


def test_classify_answers_as_on_stdin(cli: Callable[..., Result], tmp_path: Path) -> None:
    """The labels of a job are those of the same lines on stdin, and the same command does nothing more."""
    model, texts = write_text_classifier(tmp_path / "model"), sentences(50)
    data = "".join(f"{text}\n" for text in texts)
    (tmp_path / "texts.txt").write_text(data)
    direct = [line["label"] for line in cli("classify", "-m", model, "--jsonl", stdin=data.encode()).documents]
    job = ("classify", "-m", model, "--input", tmp_path / "texts.txt", "--output", tmp_path / "out", "--jsonl")
    first = cli(*job, "--shard-rows", 20)
    assert (first.code, first.out) == (0, "")
    assert [row["label"] for row in rows(tmp_path / "out")] == direct
    assert cli(*job).code == 0


def test_a_certificate_and_an_audit(cli: Callable[..., Result], known: Findings, easy: Path, tmp_path: Path) -> None:
    """The sample's rule is in the manifest; one, two and four workers end with the same thresholds, parts and counts."""
    texts = sentences(4000)
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts))
    found = []
    for workers in (1, 2, 4):
        out = tmp_path / f"out{workers}"
        asked = ("classify", "-m", easy, "--input", tmp_path / "texts.txt", "--output", out, "--jsonl", "--certify")
        done = cli(*asked, "--max-disagreement", 0.1, "--audit", 0.1, "--workers", workers, "--shard-rows", 500)
        assert done.code == 0, done.err
        assert "confidence at most" in done.err
        manifest = json.loads((out / "_dynx" / "job.json").read_text())
        stats = json.loads((out / "stats.json").read_text())
        assert manifest["certificate"]["thresholds"] is not None
        assert schemas.complaint(stats) is None
        assert stats["guarantee"]["basis"] == "job"
        assert stats["audit"]["audited"] > 100
        certificate = {**manifest["certificate"], "kinds": None}  # which name the number of threads
        found.append((certificate, stats["audit"], rows(out)))
    assert found[0] == found[1] == found[2]


def test_generate_depends_on_seed_and_row_alone(cli: Callable[..., Result], tiny_folder: Path, tmp_path: Path) -> None:
    """One and two workers, large and small shards, write the same texts; a list of messages works too."""
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": "The king"}) + "\n" for _ in range(6)))
    found = []
    for name, more in (("one", ()), ("two", ("--workers", 2, "--shard-rows", 2)), ("alone", ("--batch", 1))):
        done = cli(
            *("generate", "-m", tiny_folder, "--input", tmp_path / "p.jsonl", "--output", tmp_path / name, "--jsonl"),
            *("-n", 8, "--temperature", 1, "--seed", 4, "--dtype", "float32", *more),
        )
        assert done.code == 0, done.err
        found.append([row["text"] for row in rows(tmp_path / name)])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) > 1


def test_draw_writes_pictures(cli: Callable[..., Result], tmp_path: Path) -> None:
    """A PNG for each row, which the row names."""
    ddim().save_pretrained(tmp_path / "pipe")
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    asked = ("draw", "-m", tmp_path / "pipe", "--input", tmp_path / "p.txt", "-o", tmp_path / "out", "--jsonl")
    assert cli(*asked, "--steps", 2).code == 0
    for row in rows(tmp_path / "out"):
        assert (tmp_path / "out" / row["picture"]).read_bytes()[:4] == b"\x89PNG"


def test_an_unreadable_image_is_one_error(cli: Callable[..., Result], tmp_path: Path) -> None:
    """The exit code is 1, the others have labels, and the errors file has the reason."""
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "pictures" / "zzz.png").write_bytes(b"no picture")
    model = write_image_classifier(tmp_path / "model")
    done = cli("classify", "-m", model, "--input", tmp_path / "pictures", "--output", tmp_path / "out", "--jsonl")
    assert done.code == 1
    assert "1 of 4 rows have no answer" in done.err
    [error] = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert (error["row"], error["error"]) == (3, "not an image that can be read")


def test_pairs_answer_as_on_stdin(cli: Callable[..., Result], tmp_path: Path) -> None:
    """Two columns of a table are the texts of a pair."""
    model = write_pair_classifier(tmp_path / "nli", labels=NLI)
    lines = "premise\tclaim\n" + "".join(f"{a}\t{b}\n" for a, b in pairs(30, longest=8))
    (tmp_path / "p.tsv").write_text(lines)
    asked = ("classify", "-m", model, "--pair", "premise,claim")
    direct = [line["label"] for line in cli(*asked, "--tsv", "--jsonl", stdin=lines.encode()).documents]
    job = (*asked, "--input", tmp_path / "p.tsv", "--output", tmp_path / "out", "--jsonl", "--shard-rows", 7)
    done = cli(*job, "--workers", 2)
    assert done.code == 0, done.err
    assert [row["label"] for row in rows(tmp_path / "out")] == direct


def test_rankings_answer_as_on_stdin(cli: Callable[..., Result], tmp_path: Path) -> None:
    """A row is a query with all of its documents, under the usual names or those of --pair; a bad one has its error."""
    model, asked = write_pair_classifier(tmp_path / "ranker"), queries(12, 5)
    lines = "".join(json.dumps({"query": q, "documents": d}) + "\n" for q, d in asked)
    named = "".join(json.dumps({"q": q, "texts": d}) + "\n" for q, d in [*asked, ("alone", "no list"), ("none", [])])
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl").write_text(named)
    command = ("classify", "-m", model, "--rank", "--top-k", 2, "--jsonl")
    direct = [[each["index"] for each in one["documents"]] for one in cli(*command, stdin=lines.encode()).documents]
    for name, more, code in (("a", ("--workers", 2), 0), ("b", ("--pair", "q,texts"), 1)):
        job = ("--input", tmp_path / f"{name}.jsonl", "--output", tmp_path / name, "--shard-rows", 5, *more)
        done = cli(*command, *job)
        assert done.code == code, done.err
        found = rows(tmp_path / name)
        assert [[each["index"] for each in row["documents"]] for row in found[:12]] == direct
        assert all(len(row["documents"]) == 2 for row in found[:12])
        errors = ["not a query with a list of texts", "there are no documents"]
        assert [row["error"] for row in found[12:]] == errors[: len(found) - 12]


def test_candidate_labels_answer_as_on_stdin(cli: Callable[..., Result], tmp_path: Path) -> None:
    """A row is a text with all of its labels."""
    model = write_pair_classifier(tmp_path / "nli", labels=NLI)
    lines = "".join(f"{text}\n" for text, _ in pairs(12, longest=8))
    (tmp_path / "t.txt").write_text(lines)
    command = ("classify", "-m", model, "--candidates", "sport,music,food", "--jsonl")
    direct = [(one["label"], one["score"]) for one in cli(*command, stdin=lines.encode()).documents]
    job = ("--input", tmp_path / "t.txt", "--output", tmp_path / "out", "--shard-rows", 5)
    done = cli(*command, *job)
    assert done.code == 0, done.err
    found = [(row["label"], pytest.approx(row["score"], abs=1e-4)) for row in rows(tmp_path / "out")]
    assert direct == found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["classify", "--input", "t.txt"], "--input requires --output"),
        (["classify", "--engine", "ray", "x"], "--engine requires --input"),
        (["generate", "--output", "out", "x"], "--output requires --input"),
        (["draw", "--column", "text", "x"], "--column requires --input"),
        (["classify", "--input", "t.txt", "--output", "o", "--labels", "g"], "--input and --labels exclude each other"),
        (["generate", "--input", "t.txt", "--output", "o", "x"], "--input and PROMPT exclude each other"),
        (["draw", "--input", "t.txt", "--output", "o", "--count", "2"], "--input and --count exclude each other"),
        (["classify", "--input", "t.txt", "--output", "o", "--jsonl", "--workers", "many"], "--workers many"),
        (["classify", "--input", "t.txt", "--output", "o", "--jsonl", "--top-k", "2"], "--input and --top-k exclude"),
        (
            ["classify", "--input", "t.csv", "--output", "o", "--pair", "a,b", "--group", "c"],
            "--input and --group exclude",
        ),
        (["classify", "--input", "t.csv", "--output", "o", "--rank", "--column", "c"], "--rank and --column exclude"),
        (
            ["classify", "--input", "t.csv", "--output", "o", "--rank", "--audit", "0.1"],
            "--audit in jobs is for inputs",
        ),
        (["classify", "--input", "none.txt", "--output", "o", "--jsonl"], "no file matches none.txt"),
        (["classify", "--input", "t.csv", "--output", "o", "--jsonl"], "known to hold the input"),
        (["classify", "--input", "t.csv", "--output", "o", "--jsonl", "--column", "c"], "no --column"),
        (["classify", "--input", "t.txt", "--output", "full", "--jsonl"], "isn't empty and holds no job"),
        (["classify", "--input", "t.txt", "--output", "t.txt", "--jsonl"], "is a file, and a job writes a folder"),
    ],
)
def test_mistakes_are_told_in_a_line(
    cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    """Before a model is loaded, with exit code 2 and the options' names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("one\n")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    done = cli(*arguments)
    assert done.code == 2
    assert words in done.err


@pytest.mark.signals
def test_ctrl_c_keeps_what_is_done(tiny_folder: Path, tmp_path: Path, alone: None) -> None:
    """The exit is the signal's, what is done is told, and the same command goes on."""
    (tmp_path / "p.txt").write_text("The king\n" * 60)
    asked = ("generate", "-m", tiny_folder, "--input", tmp_path / "p.txt", "--output", tmp_path / "out", "--jsonl")
    job = (*asked, "-n", 64, "--dtype", "float32", "--batch", 1, "--shard-rows", 2)
    process = spawn(*job)
    receipts = tmp_path / "out" / "_dynx" / "receipts"
    until = time.monotonic() + 60
    while not receipts.is_dir() or len(list(receipts.iterdir())) < 3:
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert b"of 60 rows are done and kept" in err
    assert b"Traceback" not in err
    before = {path: path.stat().st_mtime_ns for path in receipts.iterdir()}
    assert len(before) < 30
    again = spawn(*job)
    again.communicate(timeout=120)
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(rows(tmp_path / "out")) == 60


def test_without_ray_the_remedy_is_told(cli: Callable[..., Result], tmp_path: Path) -> None:
    """Where Ray isn't installed."""
    import importlib.util

    if importlib.util.find_spec("ray"):
        pytest.skip("Ray is installed")
    (tmp_path / "t.txt").write_text("one\n")
    done = cli("classify", "--input", tmp_path / "t.txt", "--output", tmp_path / "o", "--engine", "ray")
    assert (done.code, "dynx[ray]" in done.err) == (2, True)
