"""`dynx classify` with pairs, rankings and candidate labels, as a user meets it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.pair_folders import NLI, pairs, queries, write_pair_classifier

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("alone")

SOME = pairs(6, longest=8)
ASKED = queries(3, 5)


@pytest.fixture(scope="module")
def nli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that labels pairs."""
    return write_pair_classifier(tmp_path_factory.mktemp("nli") / "nli", labels=NLI)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder."""
    return write_pair_classifier(tmp_path_factory.mktemp("ranker") / "ranker")


def objects(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def of_pairs() -> bytes:
    return objects(*({"premise": a, "claim": b, "id": i} for i, (a, b) in enumerate(SOME)))


def test_pairs_of_json_lines_and_of_tables_are_the_same(cli: Cli, nli: Path) -> None:
    """By key, by column, by number; each line echoes both texts in one column."""
    table = "premise\tclaim\n" + "".join(f"{a}\t{b}\n" for a, b in SOME)
    lines = cli("classify", "-m", nli, "--pair", "premise,claim", stdin=of_pairs())
    named = cli("classify", "-m", nli, "--tsv", "--pair", "premise,claim", stdin=table.encode())
    numbered = cli("classify", "-m", nli, "--tsv", "--pair", "1,2", stdin=table.split("\n", 1)[1].encode())
    assert (lines.code, lines.err) == (0, "")
    assert lines.out == named.out == numbered.out
    assert [line.split("\t")[2] for line in lines.out.splitlines()] == [f"{a}\\t{b}" for a, b in SOME]


def test_json_of_pairs(cli: Cli, nli: Path) -> None:
    """Each line has the caller's object, and a bad one its reason in its place."""
    bad = objects({"premise": "a"}, {"premise": "a", "claim": 5})
    result = cli("classify", "-m", nli, "--pair", "premise,claim", "--jsonl", stdin=of_pairs() + bad)
    assert result.code == 1
    good, errors = result.documents[:6], result.documents[6:]
    assert [one["original"]["id"] for one in good] == list(range(6))
    assert all(one["label"] in NLI.values() for one in good)
    assert [one["error"] for one in errors] == ['no field "claim"', 'field "claim" is not text']


def test_rankings(cli: Cli, ranker: Path) -> None:
    """The best documents of each query in order, with place and score; the same from rows with a group column."""
    stdin = objects(*({"query": q, "documents": d, "id": i} for i, (q, d) in enumerate(ASKED)))
    table = cli("classify", "-m", ranker, "--rank", "--top-k", 2, stdin=stdin)
    lines = cli("classify", "-m", ranker, "--rank", "--top-k", 2, "--jsonl", stdin=stdin)
    document = cli("classify", "-m", ranker, "--rank", "--top-k", 2, "--json", stdin=stdin).document
    rows = objects(*({"q": q, "d": one, "n": i} for i, (q, d) in enumerate(ASKED) for one in d))
    grouped = cli("classify", "-m", ranker, "--pair", "q,d", "--group", "n", "--top-k", 2, stdin=rows)
    cells = "q\td\tn\n" + "".join(f"{q}\t{one}\t{i}\n" for i, (q, d) in enumerate(ASKED) for one in d)
    tsv = cli("classify", "-m", ranker, "--tsv", "--pair", "q,d", "--group", "n", "--top-k", 2, stdin=cells.encode())

    assert (table.code, table.err) == (0, "")
    assert table.out == grouped.out == tsv.out
    found = [line.split("\t") for line in table.out.splitlines()]
    assert [row[1] for row in found] == ["1", "2"] * 3
    for number, (query, documents) in enumerate(ASKED):
        first, second = found[2 * number : 2 * number + 2]
        assert [first[0], first[4], second[4]] == [query, documents[int(first[3])], documents[int(second[3])]]
        assert float(first[2]) >= float(second[2])
        line = lines.documents[number]
        assert [line["schema"], line["query"], line["of"], line["original"]["id"]] == ["dynx.rank/1", query, 5, number]
        assert [each["index"] for each in line["documents"]] == [int(first[3]), int(second[3])]
    assert document["results"] == [{k: v for k, v in one.items() if k != "schema"} for one in lines.documents]


def test_bad_queries_have_their_reason(cli: Cli, ranker: Path) -> None:
    """In their places, and the others are ranked; the exit code is 1."""
    bad = [
        {"query": "a"},
        {"query": 5, "documents": []},
        {"query": "a", "documents": ["b", 1]},
        {"query": "a", "documents": []},
    ]
    result = cli("classify", "-m", ranker, "--rank", "--jsonl", stdin=objects(*bad) + b"no json\n")
    assert result.code == 1
    assert [one["error"] for one in result.documents][:4] == [
        'no field "documents"',
        'field "query" is not text',
        'field "documents" is not a list of texts',
        "there are no documents",
    ]
    mixed = objects({"q": "a", "d": "x", "n": 1}, {"q": "b", "d": "y", "n": 1}, {"q": "c", "d": "z", "n": 2})
    rows = cli("classify", "-m", ranker, "--pair", "q,d", "--group", "n", stdin=mixed)
    assert "different queries" in rows.out.splitlines()[0]
    assert rows.out.splitlines()[1].split("\t")[4] == "z"


def test_candidate_labels(cli: Cli, nli: Path) -> None:
    """The best of the labels, all scores if asked, and several labels with --multi-label."""
    stdin = "".join(f"{a}\n" for a, _ in SOME).encode()
    best = cli("classify", "-m", nli, "--candidates", "wood, gold,a king", stdin=stdin)
    scores = cli("classify", "-m", nli, "--candidates", "wood,gold,a king", "--jsonl", stdin=stdin).documents
    several = cli("classify", "-m", nli, "--candidates", "wood,gold,a king", "--multi-label", "--jsonl", stdin=stdin)
    assert (best.code, best.err) == (0, "")
    assert {line.split("\t")[0] for line in best.out.splitlines()} <= {"wood", "gold", "a king"}
    assert all(sum(one["scores"].values()) == pytest.approx(1, abs=1e-5) for one in scores)
    for one in several.documents:
        assert set(filter(None, one["label"].split(","))) == {name for name, s in one["scores"].items() if s > 0.5}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pair", "a"], "two different names"),
        (["--pair", "a,a"], "two different names"),
        (["--pair", "a,b", "--field", "c"], "exclude each other"),
        (["--pair", "1,b", "--tsv"], "two names, or two numbers"),
        (["--group", "n"], "--group requires --pair"),
        (["--rank", "--pair", "a,b"], "--group"),
        (["--rank", "--tsv"], "--rank"),
        (["--rank", "--scores"], "--scores"),
        (["--candidates", "a,b", "--rank"], "exclude each other"),
        (["--candidates", "a,,b"], "--candidates"),
        (["--multi-label"], "--multi-label requires --candidates"),
        (["--candidates", "a,b", "--hypothesis", "x"], "--hypothesis"),
        (["--per-class", "--candidates", "a,b"], "--per-class"),
        (["--per-class", "--audit", "0.1"], "--per-class"),
    ],
)
def test_options_that_do_not_fit(cli: Cli, nli: Path, arguments: list[str], said: str) -> None:
    """One clear line, and exit code 2."""
    result = cli("classify", "-m", nli, *arguments, stdin=b"{}\n")
    assert result.code == 2
    assert said in result.err
    assert "Traceback" not in result.err


def test_arguments_are_no_pairs(cli: Cli, nli: Path) -> None:
    """Pairs come on stdin."""
    result = cli("classify", "-m", nli, "--pair", "a,b", "a text")
    assert result.code == 2
    assert "--pair reads stdin" in result.err
