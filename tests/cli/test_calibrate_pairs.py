"""From calibration to use and measurement, for pairs, rankings and candidate labels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.exits import fix_costs
from support.pair_folders import NLI, fix_group_costs, pairs, queries, write_pair_classifier

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]

pytestmark = pytest.mark.usefixtures("alone")

EPS = ("--max-disagreement", "0.1", "--backend", "torch")


@pytest.fixture(autouse=True)
def fixed_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs and clock fixed."""
    fix_costs(monkeypatch)
    fix_group_costs(monkeypatch)


def written(path: Path, rows: list[Any]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(path: Path, count: int, seed: int) -> Path:
    """Queries with documents."""
    return written(path, [{"query": q, "documents": d} for q, d in queries(count, 6, seed)])


def test_rankings_from_calibration_to_bench(cli: Cli, tmp_path: Path) -> None:
    """The profile is for rankings; a run under it says so; bench judges it on fresh queries, beside transformers' pipeline."""
    model = write_pair_classifier(tmp_path / "m", easy=True)
    learn, test = asked(tmp_path / "learn", 160, 0), asked(tmp_path / "test", 40, 5)
    ranked = ("--rank", "--top-k", "2")
    dry = cli("calibrate", "-m", model, *ranked, *EPS, "--data", learn, "--dry-run")
    made = cli("calibrate", "-m", model, *ranked, *EPS, "--data", learn)
    assert (dry.code, made.code) == (0, 0), made.err
    assert "inputs: 160" in dry.out
    assert "of results differ from the full model's" in made.out
    assert "queries with documents" in cli("calibrate", "--list").out

    result = cli(
        "classify", "-m", model, *ranked, *EPS, "--require-profile", "--verify", "--stats", stdin=test.read_bytes()
    )
    assert result.code == 0, result.err
    assert "pairs      240" in result.err
    assert "40 audited answers" in result.err
    without = cli("classify", "-m", model, "--pair", "query,documents", "--require-profile", stdin=b"{}\n")
    assert without.code == 4

    bench = cli(
        *("bench", "-m", model, *EPS, "--data", test, "--runs", "1", "--json"),
        *("--arm", "hf=transformers", "--with", "--rank --top-k 2 --batch-size 12"),
    )
    assert bench.code == 0, bench.err
    document = bench.document
    arms = {arm["name"]: arm for arm in document["arms"]}
    assert document["unit"] == "queries"
    assert arms["hf pipeline"]["identical"] == arms["bucketed"]["identical"] == 1.0
    assert arms["dynamic"]["facts"]["mean_layers"] < arms["plain"]["facts"]["mean_layers"]


def test_candidate_labels_from_calibration_to_use(cli: Cli, tmp_path: Path) -> None:
    """Under the profile of exactly these labels; others run all layers, with the reason."""
    model = write_pair_classifier(tmp_path / "m", labels=NLI, easy=True)
    learn = tmp_path / "learn.txt"
    learn.write_text("".join(f"{a}\n" for a, _ in pairs(160, longest=8)))
    labels = ("--candidates", "wood,gold,a king,a fox")
    made = cli("calibrate", "-m", model, *labels, *EPS, "--data", learn)
    assert made.code == 0, made.err
    stdin = "".join(f"{a}\n" for a, _ in pairs(20, seed=4, longest=8)).encode()
    used = cli("classify", "-m", model, *labels, *EPS, "--jsonl", "-v", stdin=stdin)
    assert used.code == 0, used.err
    assert all(one["guarantee"]["max_disagreement"] == 0.1 for one in used.documents), used.err
    other = cli("classify", "-m", model, "--candidates", "wood,gold", *EPS, "-v", stdin=stdin)
    assert "the profile is for the labels wood, gold, a king, a fox" in other.err


def test_pairs_with_a_bound_for_each_label(cli: Cli, tmp_path: Path) -> None:
    """The same profile gives a bound for all together and one for each label, or the reason why it can't."""
    model = write_pair_classifier(tmp_path / "m", labels=NLI, easy=True)
    learn = written(tmp_path / "learn", [{"a": a, "b": b} for a, b in pairs(400, longest=8)])
    made = cli("calibrate", "-m", model, "--pair", "a,b", *EPS, "--data", learn)
    assert made.code == 0, made.err
    stdin = written(tmp_path / "fresh", [{"a": a, "b": b} for a, b in pairs(20, seed=3, longest=8)]).read_bytes()
    total = cli("classify", "-m", model, "--pair", "a,b", *EPS, "--jsonl", stdin=stdin).documents
    each = cli("classify", "-m", model, "--pair", "a,b", *EPS, "--per-class", "--jsonl", "-v", stdin=stdin)
    assert total[0]["guarantee"]["max_disagreement"] == 0.1
    assert "per_class" not in total[0]["guarantee"]
    promised = each.documents[0]["guarantee"]
    assert promised.get("per_class") or "for the label" in each.err
    single = cli("classify", "-m", model, *EPS, "--require-profile", stdin=b"a text\n")
    assert single.code == 4


def test_a_language_model_has_no_pairs(cli: Cli, tmp_path: Path) -> None:
    """Options of classifiers are refused for others."""
    result = cli("calibrate", "-m", "story", "--rank")
    assert result.code == 2
    assert "--rank" in result.err
