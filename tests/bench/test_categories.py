"""Categories of a benchmark: each condensed on its own, judged on its own, and shown in every form of the result."""

from __future__ import annotations

import io
import json
import random
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from dynx import schemas
from dynx.bench.arms.generation import StaticLookup
from dynx.bench.categories import by_category, min_speedup_of_each
from dynx.bench.document import to_json
from dynx.bench.gates import min_speedup
from dynx.bench.measurements import Outcome
from dynx.bench.report import summarize
from dynx.bench.result import Verdict
from dynx.bench.runner import Arm, measure
from dynx.bench.table import render_categories, to_markdown
from dynx.speculation.types import DrafterCandidate

if TYPE_CHECKING:
    from dynx.bench.measurements import Group, Measurements
    from dynx.bench.result import BenchResult

LABELS = ("qa", "code", "qa", "code", "code", "code")
SPEEDS: dict[str, tuple[Group, dict[str, float]]] = {
    "plain": ("plain", {"qa": 100.0, "code": 100.0}),
    "k = 2": ("static", {"qa": 120.0, "code": 110.0}),
    "k = 4": ("static", {"qa": 70.0, "code": 300.0}),
    "dynamic": ("dynamic", {"qa": 80.0, "code": 240.0}),
}
HEADER = {"device": "cpu", "threads": 2, "dtype": "float32"}


def measured(rounds: int = 5) -> Measurements:
    """Return arms whose speed depends on the category, on a clock that only they move, with a little noise."""
    now, noise = 0.0, random.Random(1)

    def arm(name: str) -> Arm[int]:
        group, speeds = SPEEDS[name]

        def run(case: int) -> Outcome:
            nonlocal now
            units = 10 * (case + 1)
            now += units / speeds[LABELS[case]] * noise.uniform(0.98, 1.02)
            return Outcome(units, None, "same" if name != "dynamic" or case else "other", {})

        return Arm(name, run, group, reference=name == "plain")

    cases = range(len(LABELS))
    return measure(
        [arm(name) for name in SPEEDS], cases, rounds=rounds, warmup=0, clock=lambda: now, rng=random.Random(0)
    )


def result_of(found: Measurements, labels: tuple[str, ...] = LABELS) -> BenchResult:
    result = summarize(found, task="generate", unit="tokens", header=HEADER, rng=random.Random(0))
    return by_category(result, found, labels, rng=random.Random(0))


def test_each_category_has_the_figures_of_its_own_inputs() -> None:
    """Speeds, ratios, identity and the best static arm are those of the category's inputs, not of all."""
    result = result_of(measured())
    qa, code = result.categories

    assert [(qa.name, qa.cases), (code.name, code.cases)] == [("qa", 2), ("code", 4)]
    for category in (qa, code):
        for arm in category.arms:
            expected = SPEEDS[arm.name][1][category.name]
            assert arm.speed == pytest.approx(expected, rel=0.02)
            assert arm.ratio is not None
            assert arm.ratio.ratio == pytest.approx(expected / 100, rel=0.03)
    assert [arm.identical for arm in qa.arms] == [1.0, 1.0, 1.0, 0.5]
    assert {arm.identical for arm in code.arms} == {1.0}
    assert [item.baseline for item in qa.comparisons] == ["k = 2"]
    assert [item.baseline for item in code.comparisons] == ["k = 4"]
    assert code.comparisons[0].ratio.ratio == pytest.approx(0.8, rel=0.02)


def test_intervals_of_several_categories_hold_together() -> None:
    """Looking at two categories at once takes wider intervals than looking at one, for the same confidence."""
    found = measured()
    alone = summarize(
        found.only([0, 2]), task="generate", unit="tokens", header=HEADER, rng=random.Random(0), confidence=0.95
    )
    narrow, wide = alone.arm("dynamic").ratio, result_of(found).categories[0].arms[3].ratio
    assert narrow is not None
    assert wide is not None

    assert wide.ratio == pytest.approx(narrow.ratio)
    assert wide.on_these().confidence == pytest.approx(0.975)
    assert wide.on_these().high / wide.on_these().low > narrow.on_these().high / narrow.on_these().low


def test_a_category_that_loses_is_not_hidden_by_one_that_gains() -> None:
    """Over all inputs dynamic is faster than plain; the gate of each category fails where it is slower."""
    result = result_of(measured())
    over_all = min_speedup(result.arm("dynamic").ratio, 1.0)
    gates = min_speedup_of_each(result, "dynamic", 1.0)

    assert over_all.verdict is Verdict.PASS
    assert [(gate.name, gate.verdict) for gate in gates] == [
        ("min-speedup qa", Verdict.FAIL),
        ("min-speedup code", Verdict.PASS),
    ]
    assert gates[0].measured == pytest.approx(0.8, rel=0.02)


def test_inputs_of_one_kind_have_no_categories() -> None:
    """One category says what the whole says; nothing measured has none either."""
    assert result_of(measured(), ("qa",) * 6).categories == ()


def test_a_round_that_was_cut_short_counts_the_inputs_that_ran() -> None:
    """Categories of a measurement that ended within its first round are those of the inputs that all arms ran."""
    found = measured(rounds=1).only([0, 1, 2])
    result = result_of(found)

    assert [(category.name, category.cases) for category in result.categories] == [("qa", 2), ("code", 1)]


def test_json_markdown_and_the_table_show_categories() -> None:
    """JSON has every arm of every category, by its schema; the table leaves out static arms that aren't a category's best."""
    result = result_of(measured())
    document = json.loads(to_json([result]))
    page = to_markdown([result])
    stream = io.StringIO()
    Console(file=stream, width=100, color_system=None, legacy_windows=False).print(render_categories(result))
    rows = [line.split("  ")[0].strip() for line in stream.getvalue().splitlines()[1:]]
    arms = [" ".join(line[10:].split("  ")[0].split()) for line in stream.getvalue().splitlines()[1:]]

    assert schemas.complaint(document) is None
    assert [[arm["name"] for arm in each["arms"]] for each in document["categories"]] == [list(SPEEDS)] * 2
    assert document["categories"][0]["comparisons"][0]["baseline"] == "k = 2"
    assert page.count("| qa (2) |") == page.count("| code (4) |") == len(SPEEDS)
    assert [row for row in rows if row] == ["qa (2)", "code (4)"]
    assert arms == ["plain", "k = 2", "dynamic", "plain", "k = 4", "dynamic"]


@pytest.mark.parametrize(("matched", "drafts"), [(1, None), (2, None), (3, "lookup"), (9, "lookup")])
def test_static_lookup_waits_for_its_shortest_match(matched: int, drafts: str | None) -> None:
    """Static lookup with a shortest match of three drafts after matches of three tokens and more; its length is fixed."""
    import math

    policy = StaticLookup(5, 3)
    candidate = DrafterCandidate("lookup", signal=math.log2(matched + 1))

    assert policy.choose([candidate], context=10, room=20) == drafts
    if drafts:
        assert [policy.should_draft_more([0.0] * n) for n in (0, 4, 5)] == [True, True, False]
