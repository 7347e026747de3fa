"""`dynx classify` as a user meets it: what goes in, what comes out, and what is said of it."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.classifier_folders import sentences, write_image_classifier, write_pictures
from support.commands import spawn
from support.exits import EPS, LAYERS, keep, write_easy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    from dynx.early_exit.calibrate import Findings

    Cli = Callable[..., Result]

KEYS = ["schema", "index", "input", "label", "score", "scores", "exit", "layers", "guarantee", "error"]


def lines(*texts: str) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def test_a_line_each(cli: Cli, easy: Path) -> None:
    """Label, score and input in columns, in order, an empty line among them; nothing on stderr."""
    result = cli("classify", "-m", easy, stdin=lines("a fox", "", "a\tkey"))
    rows = [line.split("\t") for line in result.out.splitlines()]

    assert (result.code, result.err) == (0, "")
    assert [row[2:] for row in rows] == [["a fox"], [""], ["a\\tkey"]]
    assert all(row[0].startswith("LABEL_") and 0 < float(row[1]) <= 1 for row in rows)
    assert cli("classify", "-m", easy, "a fox", "").out.splitlines() == result.out.splitlines()[:2]


def test_json(cli: Cli, easy: Path, known: Findings) -> None:
    """Lines and one document hold the same; a single argument is an object, a stream never."""
    texts = sentences(12, seed=1)
    many = cli("classify", "-m", easy, "--max-disagreement", EPS, "--jsonl", stdin=lines(*texts)).documents
    document = cli("classify", "-m", easy, "--max-disagreement", EPS, "--json", stdin=lines(*texts)).document
    single = cli("classify", "-m", easy, "--max-disagreement", EPS, "--json", texts[0])
    stream = cli("classify", "-m", easy, "--json", "-", stdin=lines("one")).document
    two = cli("classify", "-m", easy, "--json", "one", "two").document

    assert [list(line) for line in many] == [KEYS] * 12
    assert document["results"] == [{k: v for k, v in line.items() if k != "schema"} for line in many]
    assert single.document["input"] == texts[0]
    assert [len(stream["results"]), len(two["results"])] == [1, 2]
    for line in many:
        assert line["guarantee"]["basis"] == "profile"
        assert line["layers"] == (line["exit"] or LAYERS)
        assert max(line["scores"].values()) == line["score"] == line["scores"][line["label"]]
        assert sum(line["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_more_than_the_best_label(cli: Cli, easy: Path) -> None:
    """--top-k and --scores widen the table, to as many labels as there are."""
    (two,) = cli("classify", "-m", easy, "--top-k", 2, "a fox").out.splitlines()
    (many,) = cli("classify", "-m", easy, "--top-k", 99, "a fox").out.splitlines()
    (every,) = cli("classify", "-m", easy, "--scores", "a fox").out.splitlines()
    scores = [float(cell) for cell in every.split("\t")[1:-1:2]]

    assert two.split("\t")[:4] == every.split("\t")[:4]
    assert many == every
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert len(cli("classify", "-m", easy, "--top-k", 2, "--jsonl", "a fox").document["scores"]) == 2


def test_several_labels_and_numbers(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A multi-label model may give none; a regression gives its number."""
    from support import classifiers

    several = write_easy(tmp_path / "several", problem_type="multi_label_classification")
    answers = cli("classify", "-m", several, "--jsonl", stdin=lines(*sentences(30))).documents
    for answer in answers:
        assert answer["label"] == ",".join(k for k in sorted(answer["scores"]) if answer["scores"][k] > 0.5)
    monkeypatch.setattr(classifiers, "CLASSES", 1)
    number = write_easy(tmp_path / "number")
    answer = cli("classify", "-m", number, "--jsonl", "a fox").document
    assert answer["scores"] == {"LABEL_0": answer["score"]}


def test_other_inputs(cli: Cli, easy: Path) -> None:
    """NUL-ended, a column of a table, a field of JSON lines: the texts are the same, and so are the answers."""
    texts = ["a fox", "the key of the mill"]
    expected = [line.split("\t")[:2] for line in cli("classify", "-m", easy, *texts).out.splitlines()]
    for arguments, stdin in (
        (["-0"], "\0".join(texts).encode()),
        (["--tsv", "--column", "text"], b"id\ttext\n1\ta fox\n2\tthe key of the mill\n"),
        (["--tsv", "--column", "2"], b"1\ta fox\n2\tthe key of the mill\n"),
        (["--field", "t"], b'{"t": "a fox"}\n{"t": "the key of the mill", "more": 1}\n'),
        (["--skip-empty"], b"\n\na fox\n\nthe key of the mill\n"),
    ):
        result = cli("classify", "-m", easy, *arguments, stdin=stdin)
        assert result.code == 0
        assert [line.split("\t")[:2] for line in result.out.splitlines()] == expected


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["--tsv", "--column", "text"], b"id\tbody\n1\tx\n", 'no column "text"'),
        (["--json", "--jsonl"], b"x\n", "exclude"),
        (["--scores", "--top-k", "2"], b"x\n", "exclude"),
        (["--certify", "--plain"], b"x\n", "plain execution has no exits"),
        (["--json", "--resume", "out"], b"x\n", "can't be resumed"),
        (["--labels", "g", "--resume", "out"], b"x\n", "needs the whole input"),
        ([], b"", "stdin is empty"),
        (["--within", "0.1"], b"x\n", "models that give numbers"),
        (["--max-disagreement", "2"], b"x\n", "between 0 and 1"),
    ],
)
def test_wrong_command_lines(cli: Cli, easy: Path, arguments: list[str], stdin: bytes, words: str) -> None:
    """Exit code 2, one line, and nothing on stdout."""
    result = cli("classify", "-m", easy, *arguments, stdin=stdin)

    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert result.err.startswith('{"schema": "dynx.error/1", ' if "--json" in arguments else "dynx: ")


@pytest.mark.parametrize(
    ("arguments", "stdin", "echo", "error"),
    [
        ([], b"a fox\n\xff\nthe key\n", "\\xff", "not UTF-8: byte 0xff at offset 6"),
        (["a fox", "\udcff", "the key"], None, "\\xff", "not UTF-8: byte 0xff at offset 0"),
        (["-0"], b"a fox\0\xff\0the key\0", "\\xff", "not UTF-8: byte 0xff at offset 6"),
        (
            ["--tsv", "--column", "t"],
            b't\tn\n"a fox"\t1\n"the\t2\nthe key\t3\n',
            '"the\\t2',
            "a quote that opens a cell and is never closed",
        ),
        (
            ["--field", "text"],
            b'{"text": "a fox"}\n{"text": "one", "text_pair": "two"}\n{"text": "the key"}\n',
            '{"text": "one", "text_pair": "two"}',
            'half of a pair: the row has a "text_pair" too, which --pair text,text_pair reads',
        ),
    ],
    ids=["line", "argument", "NUL", "quote", "pair"],
)
def test_a_bad_row_is_an_error_in_its_place(
    cli: Cli, easy: Path, arguments: list[str], stdin: bytes | None, echo: str, error: str
) -> None:
    """The rows around it have the labels that they have alone, and the exit code says that one has none."""
    good = cli("classify", "-m", easy, "a fox", "the key").out.splitlines()
    result = cli("classify", "-m", easy, *arguments, stdin=stdin)
    documents = cli("classify", "-m", easy, "--jsonl", *arguments, stdin=stdin).documents

    assert result.code == 1
    assert result.out.splitlines() == [good[0], f"\terror: {error}\t{echo}", good[1]]
    assert result.err == "dynx: 1 of 3 inputs could not be labelled; the output has the reason\n"
    assert [d["error"] for d in documents] == [None, error, None]


def test_a_quoted_table_is_read_whole(cli: Cli, easy: Path) -> None:
    """What Python's csv module writes has the labels of the texts themselves: tabs, quotes and line ends inside."""
    texts = ['a "golden"\tkey', "the fox\nand the wood", '"quoted" fox', "plain"]
    written = io.StringIO(newline="")
    writer = csv.writer(written, "excel-tab")
    writer.writerows([["id", "text", "label"], *([i, text, "x"] for i, text in enumerate(texts))])
    expected = cli("classify", "-m", easy, *texts).out
    result = cli("classify", "-m", easy, "--tsv", "--column", "text", stdin=written.getvalue().encode())

    assert (result.code, result.out) == (0, expected)


def test_pictures_are_turned_as_they_say(cli: Cli, tmp_path: Path) -> None:
    """All eight orientations, and formats of every kind, get the scores of transformers' pipeline; names are any bytes."""
    from PIL import Image
    from transformers import pipeline

    vit = write_image_classifier(tmp_path / "vit")
    paths = []
    rng = np.random.default_rng(3)
    picture = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        paths.append(tmp_path / os.fsdecode(b"turned \xff %d.png" % orientation))
        picture.save(paths[-1], exif=exif)
    palette = picture.quantize(8)
    palette.save(tmp_path / "palette.png", transparency=2)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.convert("LA").save(tmp_path / "la.png")
    Image.fromarray(rng.integers(0, 1 << 16, (24, 40), dtype=np.uint16)).save(tmp_path / "deep.png")
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[picture.rotate(180)])
    paths += [tmp_path / name for name in ("palette.png", "cmyk.jpg", "la.png", "deep.png", "moving.gif")]
    pipe: Any = pipeline("image-classification", model=str(vit), device="cpu", dtype="float32")
    expected = []
    for path in paths:
        with Image.open(path) as file:
            expected.append({one["label"]: one["score"] for one in pipe(file, top_k=10)})
    result = cli("classify", "-m", vit, "--jsonl", *paths)

    assert result.code == 0
    found = [document["scores"] for document in result.documents]
    assert [one.keys() for one in found] == [one.keys() for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-6)
    assert len({tuple(one.values()) for one in found[:8]}) == 8


def test_models_of_other_tasks(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """One line each, with the command that fits where there is one."""
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    writes = cli("classify", "-m", tiny_folder, "x")
    draws = cli("classify", "-m", tmp_path / "pipeline", "x")

    assert (writes.code, draws.code) == (1, 1)
    assert "writes text" in writes.err
    assert "dynx generate" in writes.err
    assert "a pipeline that draws" in draws.err


def test_pictures(cli: Cli, tmp_path: Path) -> None:
    """Paths as arguments or a line each; a bad one is an error in its row, and exit code 1 at the end."""
    vit = write_image_classifier(tmp_path / "vit")
    one, two = write_pictures(tmp_path / "pictures", 2)
    (tmp_path / "torn.png").write_bytes(one.read_bytes()[:90])
    good = cli("classify", "-m", vit, one, two)
    mixed = cli(
        "classify", "-m", vit, stdin=lines(str(one), "nowhere.png", str(tmp_path), f"{tmp_path}/torn.png", str(two))
    )
    documents = cli("classify", "-m", vit, "--jsonl", "nowhere.png", one).documents

    assert (good.code, mixed.code) == (0, 1)
    rows = mixed.out.splitlines()
    assert [rows[0], rows[4]] == good.out.splitlines()
    assert rows[1] == "\terror: no such file\tnowhere.png"
    assert all(row.startswith("\terror: ") for row in rows[1:4])
    assert "3 of 5 inputs could not be labelled" in mixed.err
    assert (documents[0]["error"], documents[0]["label"], documents[0]["guarantee"]) == ("no such file", None, None)
    assert documents[1]["error"] is None


def test_long_texts(cli: Cli, easy: Path) -> None:
    """One warning and a count, whatever the number of windows; the answer is that of the beginning."""
    long = "a fox and a key " * 40
    result = cli("classify", "-m", easy, stdin=lines("a fox", *[f"{long}{i}" for i in range(1100)]))

    assert result.code == 0
    assert result.err.splitlines() == [
        "dynx: texts longer than 64 tokens are truncated; the count follows at the end",
        "dynx: 1,100 of 1,101 texts were truncated",
    ]
    assert len({line.split("\t")[1] for line in result.out.splitlines()[1:]}) == 1


def test_the_truth(cli: Cli, easy: Path, tmp_path: Path) -> None:
    """Accuracy, macro-F1 and intervals on stderr; another number of labels or unknown ones are errors."""
    texts = sentences(20)
    answers = [line.split("\t")[0] for line in cli("classify", "-m", easy, stdin=lines(*texts)).out.splitlines()]
    gold = tmp_path / "gold"
    gold.write_bytes(lines(*answers))
    right = cli("classify", "-m", easy, "--labels", gold, stdin=lines(*texts))
    short = cli("classify", "-m", easy, "--labels", gold, stdin=lines(*texts[:-1]))
    gold.write_bytes(lines("yes", "no"))
    unknown = cli("classify", "-m", easy, "--labels", gold, stdin=lines(*texts))

    assert right.code == 0
    assert "accuracy   1.0000 [0.8316, 1.0000] (20 of 20)" in right.err
    assert "macro-F1   1.0000" in right.err
    assert (short.code, unknown.code, unknown.out) == (2, 2, "")
    assert "20 labels and the input 19 rows" in short.err
    assert "labels that are unknown to the model: yes, no" in unknown.err


def test_a_stricter_promise_changes_fewer_answers(cli: Cli, easy: Path, known: Findings) -> None:
    """The stored evidence serves another ε; --stats says which promise holds and what was saved."""
    texts = sentences(500, seed=7)

    def answers(*arguments: object) -> tuple[list[str], str]:
        result = cli("classify", "-m", easy, "--stats", *arguments, stdin=lines(*texts))
        assert result.code == 0
        return [line.split("\t")[0] for line in result.out.splitlines()], result.err

    plain, _ = answers("--plain")
    for eps in (0.05, EPS):
        labels, said = answers("--max-disagreement", eps)
        assert sum(a != b for a, b in zip(labels, plain, strict=True)) <= eps * len(texts)
        assert f"at most {eps:.0%}".replace("%", " %") in said
        assert "saved" in said
    none, said = answers("--max-disagreement", 0.001)
    assert none == plain
    assert "exits      none (" in said
    assert "every answer is the full model's" in said


def test_a_required_profile(cli: Cli, easy: Path) -> None:
    """Exit code 4 where none fits."""
    result = cli("classify", "-m", easy, "--require-profile", "a fox")

    assert (result.code, result.out) == (4, "")
    assert f"dynx calibrate -m {easy}" in result.err


def test_a_torn_profile(cli: Cli, easy: Path, known: Findings, tmp_path: Path) -> None:
    """One line, and plain answers."""
    (profile,) = (tmp_path / "cache" / "profiles").glob("*.json")
    profile.write_text(profile.read_text()[:200])
    result = cli("classify", "-m", easy, "a fox")

    assert result.code == 0
    assert result.err.count("\n") == 1
    assert "ignored" in result.err
    assert result.out == cli("classify", "-m", easy, "--plain", "a fox").out


def test_the_audit_says_when_a_promise_is_broken(cli: Cli, easy: Path, findings: Findings) -> None:
    """A profile made of other data than what comes: the alarm is told, and the rest runs to full depth."""
    rosy = {**findings.arrays, "evidence.agree": np.ones_like(findings.arrays["evidence.agree"])}
    keep(replace(findings, arrays=rosy))
    texts = sentences(3000, seed=8)
    result = cli("classify", "-m", easy, "--audit", 0.5, "--stats", "--jsonl", stdin=lines(*texts))
    documents = result.documents

    assert result.code == 0
    assert result.err.count("the promise of 2 % doesn't hold here; from here on every answer is the full model's") == 1
    assert "none any more (the audit ended them)" in result.err
    assert any(document["exit"] == 1 for document in documents[:500])
    assert documents[-1]["guarantee"] is None
    assert {document["layers"] for document in documents[-500:]} == {LAYERS}


def test_certify(cli: Cli, easy: Path, known: Findings) -> None:
    """Says what the sample showed; too small a job says so and runs at full depth."""
    texts = sentences(700, seed=9)
    done = cli("classify", "-m", easy, "--certify", "--max-disagreement", EPS, "--jsonl", stdin=lines(*texts))
    small = cli("classify", "-m", easy, "--certify", "--jsonl", stdin=lines("a fox"))

    assert (done.code, small.code) == (0, 0)
    assert "exact hypergeometric bound" in done.err
    assert {document["guarantee"]["basis"] for document in done.documents} == {"job"}
    assert [document["input"] for document in done.documents] == texts
    assert "1 inputs are too few" in small.err
    assert small.document["layers"] == LAYERS


def test_resuming(cli: Cli, easy: Path, tmp_path: Path) -> None:
    """An output cut anywhere is completed to what one run writes, in any table and in JSON lines; a foreign file stays."""
    texts = sentences(40)
    for arguments in ([], ["--scores"], ["--top-k", "2"], ["--jsonl"]):
        whole = cli("classify", "-m", easy, *arguments, stdin=lines(*texts)).out
        out = tmp_path / "out"
        out.write_text(whole[: len(whole) // 2])
        result = cli("classify", "-m", easy, *arguments, "--resume", out, stdin=lines(*texts))
        assert (result.code, result.out) == (0, "")
        assert "continuing after them" in result.err
        assert [line.split("\t")[0][:60] for line in out.read_text().splitlines()] == [
            line.split("\t")[0][:60] for line in whole.splitlines()
        ]
        again = cli("classify", "-m", easy, *arguments, "--resume", out, stdin=lines(*texts))
        assert (again.code, len(out.read_text().splitlines())) == (0, 40)
    notes = tmp_path / "notes"
    notes.write_text("my notes\n")
    assert cli("classify", "-m", easy, "--resume", notes, stdin=lines(*texts)).code == 2
    assert notes.read_text() == "my notes\n"


def test_explain(cli: Cli, easy: Path, known: Findings) -> None:
    """Where inputs left, which went deep, and why each setting has its value."""
    result = cli("classify", "-m", easy, "--explain", "--max-disagreement", EPS, stdin=lines(*sentences(60, seed=2)))

    assert result.code == 0
    assert "layer 1     " in result.err
    assert "all layers  " in result.err
    assert "all layers: LABEL_" in result.err
    assert "the promise is about float32 answers" in result.err


def test_a_reader_that_goes_away(easy: Path) -> None:
    """`| head` ends it quietly."""
    with spawn("classify", "-m", easy, stdin=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(lines(*sentences(50)))
        process.stdin.flush()
        assert process.stdout.readline()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(lines(*sentences(3000, seed=1)))
            process.stdin.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""


def test_ctrl_c_and_on(cli: Cli, easy: Path, tmp_path: Path) -> None:
    """An interruption ends by its signal and leaves whole lines; the same command completes them."""
    texts, out = sentences(200), tmp_path / "out.tsv"
    with spawn("classify", "-m", easy, "--resume", out, stdin=-1) as process:
        assert process.stdin is not None
        process.stdin.write(lines(*texts[:120]))
        process.stdin.flush()
        limit = time.monotonic() + 60
        while not (out.exists() and out.read_bytes().count(b"\n") == 120):
            assert time.monotonic() < limit
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
    done = cli("classify", "-m", easy, "--resume", out, stdin=lines(*texts))

    assert done.code == 0
    assert [line.split("\t")[2] for line in out.read_text().splitlines()] == texts
