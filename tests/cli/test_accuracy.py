"""Answers against the truth: how it is read, and that the figures are the textbook's."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynx.cli.classify.accuracy import Gold, Tally, macro_f1, read_gold
from dynx.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

MOOD = ["negative", "positive"]


def gold(folder: Path, data: bytes, labels: list[str] = MOOD) -> list[int | None]:
    """The labels read from a file with this content."""
    path = folder / "gold.tsv"
    path.write_bytes(data)
    return list(read_gold(path, labels).rows)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"positive\nnegative\n", [1, 0]),
        (b"1\n0\n1", [1, 0, 1]),
        (b"\xef\xbb\xbfa text\t1\r\nanother, with\ttabs\t0\r\n", [1, 0]),
        (b"sentence\tlabel\na text\tpositive\n", [1]),
        (b"1\n\n0\n", [1, None, 0]),
        (b"\tpositive \n", [1]),
    ],
    ids=["names", "ids", "table with CRLF and BOM", "header", "a row without label", "empty text"],
)
def test_labels_are_names_or_ids_in_the_last_column(tmp_path: Path, data: bytes, expected: list[int | None]) -> None:
    """One a line, alone or behind the text."""
    assert gold(tmp_path, data) == expected


def test_digits_that_are_names_are_names_unless_they_are_ids_throughout(tmp_path: Path) -> None:
    """Five stars have the ids 0 to 4: a file is read in one way as a whole."""
    stars = ["1", "2", "3", "4", "5"]

    assert gold(tmp_path, b"5\n1\n", stars) == [4, 0]
    assert gold(tmp_path, b"0\n1\n1\n", stars) == [0, 1, 1]
    assert gold(tmp_path, b"1\n2\n", stars) == [0, 1]


def test_a_quoted_table_has_a_label_for_each_row(tmp_path: Path) -> None:
    """Read as --tsv reads the input: line ends inside quotes end no row, and a row whose text can't be read has its label."""
    path = tmp_path / "gold.tsv"
    path.write_bytes(b'text\tlabel\n"two\nlines"\t"positive"\n"open\tnegative\nbad \xff\tpositive\n')

    assert list(read_gold(path, MOOD, quoted=True).rows) == [1, 0, 1]
    assert gold(tmp_path, b'"open\tnegative\nbad \xff\tpositive\nclosed"\tnegative\n') == [0, 1, 0]


def test_unknown_labels_are_named(tmp_path: Path) -> None:
    """The complaint lists some of them, and what the model knows."""
    with pytest.raises(UsageError, match=r"that are unknown to the model: neutral, mixed$") as caught:
        gold(tmp_path, b"positive\nneutral\nmixed\nneutral\n")
    assert caught.value.hint == "its labels are negative, positive, or 0 to 1"
    with pytest.raises(UsageError, match=r"unknown to the model: a0, a1, a2, a3, a4 and 5 more$"):
        gold(tmp_path, "".join(f"a{i}\n" for i in range(10)).encode())


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "has no labels"), (b"\n\n", "has no labels"), (b"1\n\xff\n", "not UTF-8: byte 0xff at offset 2")],
)
def test_files_that_are_no_truth(tmp_path: Path, data: bytes, message: str) -> None:
    """Empty and undecodable files are refused."""
    with pytest.raises(UsageError, match=message):
        gold(tmp_path, data)


def test_a_missing_file(tmp_path: Path) -> None:
    """One line with the system's reason."""
    with pytest.raises(UsageError, match=r"can't read .*gold.tsv: No such file"):
        read_gold(tmp_path / "gold.tsv", MOOD)


def test_the_figures() -> None:
    """Ten answers: accuracy with its interval, macro-F1 and agreement where the full model was asked."""
    tally = Tally(Gold("gold.tsv", MOOD, [1] * 6 + [0] * 4))
    for index, answer in enumerate("pppppnnnnp"):
        label = MOOD[answer == "p"]
        tally.add(index, label, full="positive" if index < 4 else None)
    report = tally.report(10)

    assert report.accuracy is not None
    assert (report.accuracy.hits, report.accuracy.of) == (8, 10)
    assert (report.accuracy.low, report.accuracy.high) == pytest.approx((0.4439045, 0.9747893), abs=1e-7)
    assert report.macro_f1 == pytest.approx((10 / 12 + 6 / 8) / 2)
    assert report.agreement is not None
    assert report.agreement.json() == {"value": 1.0, "low": pytest.approx(0.3976354), "high": 1.0, "hits": 4, "of": 4}
    assert report.rows() == [
        ("accuracy", "0.8000 [0.4439, 0.9748] (8 of 10)"),
        ("macro-F1", "0.7917"),
        ("agreement", "1.0000 [0.3976, 1.0000] (4 of 4) with the full model"),
        ("intervals", "0.95, Clopper-Pearson"),
    ]


def test_rows_without_answer_or_truth_are_not_scored() -> None:
    """They are counted apart; without any scored row there is nothing to report but that."""
    tally = Tally(Gold("gold.tsv", MOOD, [1, None, 0, 1]))
    tally.add(0, "positive")
    tally.add(1, "positive")
    tally.add(2, None)
    report = tally.report(4)

    assert report.accuracy is not None
    assert (report.accuracy.hits, report.accuracy.of, report.unscored) == (1, 1, 3)
    nothing = Tally(Gold("gold.tsv", MOOD, [1])).report(1)
    assert nothing.json() == {
        "accuracy": None,
        "macro_f1": None,
        "agreement": None,
        "unscored": 1,
        "confidence": 0.95,
    }
    assert nothing.rows() == [("not scored", "1"), ("intervals", "0.95, Clopper-Pearson")]


@pytest.mark.parametrize(("rows", "said"), [(1, "3 labels and the input 1 row"), (4, "3 labels and the input 4 rows")])
def test_another_number_of_labels_than_rows_says_both(rows: int, said: str) -> None:
    """The mistake is found at the end, answers and all."""
    tally = Tally(Gold("gold.tsv", MOOD, [1, 0, 1]))
    for index in range(rows):
        tally.add(index, "positive")

    with pytest.raises(UsageError, match=f"gold.tsv has {said}$"):
        tally.report(rows)


def test_blank_lines_at_the_end_of_the_truth_do_not_count() -> None:
    """They are no labels that the input lacks."""
    assert Tally(Gold("gold.tsv", MOOD, [1, 0, None, None])).report(2).unscored == 2


def test_another_interval_can_be_asked_for() -> None:
    """It gets trials, hits and what may be cut off."""
    tally = Tally(Gold("g", MOOD, [1, 1]), confidence=0.5, interval=lambda n, k, delta: (n + delta, k + delta))
    tally.add(0, "positive")
    accuracy = tally.report(2).accuracy

    assert accuracy is not None
    assert (accuracy.low, accuracy.high, accuracy.confidence) == (1.5, 1.5, 0.5)


@given(st.dictionaries(st.tuples(st.integers(0, 4), st.integers(0, 4)), st.integers(1, 9), min_size=1))
def test_macro_f1_is_the_mean_of_precision_and_recall(counts: dict[tuple[int, int], int]) -> None:
    """Against the definition, label by label."""
    scores = []
    for label in {label for pair in counts for label in pair}:
        hits = counts.get((label, label), 0)
        truths = sum(n for (truth, _), n in counts.items() if truth == label)
        answers = sum(n for (_, answer), n in counts.items() if answer == label)
        recall, precision = hits / truths if truths else 0, hits / answers if answers else 0
        scores.append(2 * precision * recall / (precision + recall) if hits else 0)

    assert macro_f1(Counter(counts)) == pytest.approx(sum(scores) / len(scores))
