"""What a result is written as: tables for other tools, drawings, and the page; each of them whole, escaped and honest."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from dynx.bench import exports
from dynx.bench.exports import charts, figures
from dynx.bench.exports.scene import Scene, Text, to_svg
from dynx.bench.gates import Gate, Verdict
from dynx.bench.report import BenchResult, summarize
from dynx.bench.runner import Arm, Outcome, measure
from dynx.bench.statistics import RatioEstimate
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

SVG = "{http://www.w3.org/2000/svg}"
GATES = (
    Gate("min-speedup", Verdict.PASS, 1.5, 1.2, "fast enough"),
    Gate("require-identical", Verdict.FAIL, 0.5, 1.0, "only 50 % <b>&</b>"),
    Gate("baseline", Verdict.INCONCLUSIVE, None, 1.0, "too noisy"),
    Gate("baseline dynamic", Verdict.FAIL, 0.9, 1.0, "another machine", advisory=True),
)


def result_of(
    task: str = "generate",
    speeds: Mapping[str, float] | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    model: str = "story",
    **header: Any,
) -> BenchResult:
    """Arms with scripted speeds on four cases, the failed one beside them; `facts` by arm."""
    now = [0.0]
    speeds = {"plain": 100.0, "draft k=2": 120.0, "dynamic": 150.0} if speeds is None else speeds
    groups = {"plain": "plain", "dynamic": "dynamic", "broken": "external"}

    def arm(name: str, speed: float) -> Arm[int]:
        def run(case: int) -> Outcome:
            if name == "broken":
                raise RuntimeError("no <kernel>")
            now[0] += case / speed
            return Outcome(case, None, "same", {"steps_run": 4 + case % 3})

        return Arm(name, run, groups.get(name, "static"), reference=name == "plain")  # type: ignore[arg-type]

    arms = [arm(name, speed) for name, speed in {**speeds, "broken": 1.0}.items()]
    found = measure(arms, [10, 20, 30, 41], rounds=3, warmup=0, clock=lambda: now[0], rng=random.Random(0))
    told = {"model": model, "threads": 2, "profile": None, "versions": {"dynx": "1.0"}, **header}
    unit = {"generate": "tokens", "classify": "labels", "draw": "images"}[task]
    return summarize(found, task=task, unit=unit, header=told, rng=random.Random(0), facts=facts)


POSITIONS = {
    "dynamic": {
        "by_position": {
            "draft": {"submitted": [50, 40, 4], "accepted": [40, 20, 1]},
            "lookup": {"submitted": [9], "accepted": [3]},
            "self": {"submitted": [2], "accepted": [1]},
        }
    }
}


def agreement(share: float) -> dict[str, Any]:
    """A classifier's facts."""
    return {"agreement": {"value": share, "low": share - 0.01, "high": min(1.0, share + 0.01)}, "mean_layers": 6}


CLASSIFIED = {
    "plain": agreement(1.0),
    "draft k=2": agreement(1.0),
    "dynamic": {**agreement(0.99), "left_after": {"2": 60, "10": 30, "6": 10}},
}


def parse(text: str) -> Any:
    """The root of an XML document that was just made here."""
    return ET.fromstring(text.encode())  # noqa: S314


class Reader(HTMLParser):
    """Checks that elements close in order, and keeps texts, ids and addresses."""

    VOID = ("meta", "br", "rect", "circle", "polyline", "polygon", "line")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember it."""
        known = dict(attrs)
        if (id_ := known.get("id")) is not None:
            self.ids.append(id_)
        self.links += [value for name, value in attrs if name in ("href", "src", "action") and value]
        if tag not in self.VOID or tag in ("rect", "circle", "polygon"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Closed at once."""

    def handle_endtag(self, tag: str) -> None:
        """It must be the innermost."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Its text."""
        self.text += data


def read_page(*results: BenchResult) -> Reader:
    """The page, checked."""
    text = exports.content("html", results)
    assert text.startswith("<!doctype html>")
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    return reader


def test_the_page_needs_nothing_else() -> None:
    """No script, no address but its own parts', both colour schemes, and everything that was measured in words and in a table."""
    result = result_of(facts=POSITIONS).judged(GATES)
    reader, text = read_page(result), exports.content("html", [result])

    assert "<script" not in text
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert reader.links == []
    assert "prefers-color-scheme:dark" in text
    for said in ("1.50×", "draft k=2", "1.25× of the best static, draft k=2", "every answer is plain's", "threads"):
        assert said.lower() in reader.text.lower()
    assert "only 50 % <b>&</b>" in reader.text
    assert "no <kernel>" in reader.text
    assert "(advisory)" in reader.text
    assert "profile" not in reader.text.split("Measured on")[1]


def test_drawings_are_told_to_who_cannot_see_them() -> None:
    """Each drawing is an image with a title and a description that holds its figures."""
    text = exports.content("html", [result_of(facts=POSITIONS)])
    drawings = [parse(one) for one in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]

    assert len(drawings) == 2
    for drawing in drawings:
        label = drawing.get("aria-labelledby", "").split()
        assert drawing.get("role") == "img"
        assert [drawing[0].get("id"), drawing[1].get("id")] == label
        assert drawing[0].text
        assert drawing[1].text
    assert "dynamic is fastest, 1.50x [1.50, 1.50] times plain" in (drawings[0][1].text or "")
    assert "draft model: 1: 80%, 2: 50%" in (drawings[1][1].text or "")


def test_several_models_share_a_page() -> None:
    """Each has its part, with a list of them on top that leads there."""
    reader = read_page(result_of(facts=POSITIONS), result_of("classify", facts=CLASSIFIED, model="mood"))

    assert reader.links == ["#r0", "#r1"]
    assert {"r0", "r1"} <= set(reader.ids)
    assert "2 models" in reader.text


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.95, 1.08, "about as fast"), (0.2, 6.0, "too noisy"), (1.02, 1.2, "1.05×"), (0.0, float("inf"), "too noisy")],
)
def test_the_headline_claims_no_more_than_the_interval(low: float, high: float, said: str) -> None:
    """About as fast only where the interval is narrow around 1; a wide one is noise, and an unbounded one too."""
    result = result_of()
    dynamic = replace(result.arm("dynamic"), ratio=RatioEstimate(1.05, low, high, 0.95, 12))
    headline = read_page(replace(result, arms=[result.reference, dynamic])).text.split("How fast")[0]

    assert said in headline


def test_what_is_drawn_of_acceptance() -> None:
    """The share kept at each position while enough drafts were judged there, the busiest drafter first."""
    found = figures.acceptance(result_of(facts=POSITIONS))

    assert [(k.drafter, k.shares()) for k in found] == [("draft", [(1, 0.8), (2, 0.5)]), ("lookup", [(1, 3 / 9)])]
    assert charts.acceptance(result_of()) is None


def test_exits_are_drawn_by_depth() -> None:
    """Layers in their order, not their spelling's, with counts and shares; the model's depth is called all layers."""
    result = result_of("classify", facts=CLASSIFIED)
    assert figures.exits(result) == [(2, 60), (6, 10), (10, 30)]
    scene = charts.exits(result)
    assert scene is not None
    assert scene.description == "after layer 2: 60 % (60); after layer 6: 10 % (10); all 10 layers: 30 % (30)"


def test_steps_are_counted_once_a_picture() -> None:
    """A histogram of the first round's pictures; none where all take what plain takes."""
    result = result_of("draw", facts={})
    assert figures.steps(result) == [(4, 1), (5, 1), (6, 2)]
    assert charts.steps(result) is not None
    alone = replace(
        result.arm("dynamic"), samples=[replace(s, facts={"steps_run": 50}) for s in result.arms[0].samples]
    )
    same = replace(result, arms=[result.reference, alone], header={"plain_steps": 50})
    assert charts.steps(same) is None


def test_the_frontier_is_what_no_other_arm_beats() -> None:
    """Faster and as good, or better and as fast, beats; where all are as good there is nothing to draw."""
    points = figures.frontier(result_of("classify", facts=CLASSIFIED))

    assert [(p.arm.name, p.best) for p in points] == [("plain", False), ("draft k=2", True), ("dynamic", True)]
    assert figures.frontier(result_of()) == []
    assert charts.quality(result_of()) is None


def test_a_plot_has_quality_where_it_tells_arms_apart(tmp_path: Path) -> None:
    """Below the ratios, under a heading of its own; a plot of speed alone has none."""

    def words(result: BenchResult) -> set[str | None]:
        path = exports.plot([result], tmp_path / "plot.svg")
        return {e.text for e in parse(path.read_text(encoding="utf-8")).iter(f"{SVG}text")}

    heading, measure = "mood: speed and quality", figures.QUALITIES["classify"]
    assert {heading, measure} <= words(result_of("classify", facts=CLASSIFIED, model="mood"))
    assert not {heading, measure} & words(result_of(model="mood"))


def test_one_wide_interval_leaves_the_others_room() -> None:
    """An interval that says nothing is cut, with an arrow; all marks stay on the paper."""
    result = result_of()
    wild = replace(result.arm("draft k=2"), ratio=RatioEstimate(1.2, 0.001, 900.0, 0.95, 12))
    scene = charts.intervals(replace(result, arms=[result.reference, wild, result.arm("dynamic")]))
    assert scene is not None
    places = [x for mark in scene.marks for x, _ in getattr(mark, "points", [])]

    assert 0 <= min(places) < max(places) <= scene.width
    dynamic = next(m for m in scene.marks if isinstance(m, Text) and m.text == "dynamic")
    assert dynamic.bold
    assert "900.00" in scene.description


def test_nothing_measured_is_a_drawing_all_the_same() -> None:
    """An interrupted bench gives files that can be opened."""
    result = result_of()
    bare = replace(result, arms=[replace(a, ratio=None, speed=None, samples=()) for a in result.arms], comparisons=())

    assert "nothing was measured" in exports.drawing([bare])
    assert "No speed of dynamic was measured" in read_page(bare).text
    for form in exports.FORMATS:
        exports.content(form, [bare])


def test_ticks_are_round_numbers() -> None:
    """Within the range, evenly apart, and not too many."""
    assert charts.ticks(0.4, 1.7) == [0.5, 1.0, 1.5]
    assert charts.ticks(0.97, 1.0) == [0.97, 0.98, 0.99, 1.0]
    assert charts.ticks(0, 100) == [0, 20, 40, 60, 80, 100]


@pytest.mark.parametrize("name", ["plot.svg", "plot.PNG"])
def test_a_plot_by_its_ending(name: str, tmp_path: Path) -> None:
    """SVG with both colour schemes, or a PNG of twice the drawing's size."""
    path = exports.plot([result_of(), result_of(model="other")], exports.parse_plot(str(tmp_path / name)))

    if name.endswith("svg"):
        root = parse(path.read_text(encoding="utf-8"))
        assert root.tag == f"{SVG}svg"
        assert "prefers-color-scheme: dark" in path.read_text(encoding="utf-8")
        assert {"story", "other"} <= {e.text for e in root.iter(f"{SVG}text")}
    else:
        with Image.open(path) as image:
            assert image.width == 2 * charts.WIDTH
            assert len(image.getcolors(1 << 20) or []) > 20


def test_other_endings_are_refused(tmp_path: Path) -> None:
    """A plot that can't be made is told before anything is measured."""
    with pytest.raises(UsageError, match="an SVG or a PNG file"):
        exports.parse_plot("plot.pdf")
    with pytest.raises(UsageError, match="there is no folder"):
        exports.parse_plot(str(tmp_path / "nowhere" / "plot.svg"))


def test_letters_are_escaped_in_drawings() -> None:
    """A name can't become markup."""
    scene = Scene(10, 10, "<a>", "&")
    scene.add(Text(0, 0, "</svg><script>"))

    assert parse(to_svg(scene))[2].text == "</svg><script>"


def test_csv_has_a_line_for_each_arm() -> None:
    """Under a line of names; what isn't known is empty."""
    rows = list(csv.DictReader(io.StringIO(exports.content("csv", [result_of("classify", facts=CLASSIFIED)]))))

    assert [row["arm"] for row in rows] == ["plain", "draft k=2", "dynamic", "broken"]
    assert rows[2]["quality"] == "0.99"
    assert float(rows[2]["ratio_low"]) == pytest.approx(1.5)
    assert (rows[3]["ratio"], rows[3]["failure"]) == ("", "RuntimeError: no <kernel>")


def test_junit_has_a_case_for_each_gate() -> None:
    """Failures are failures; what is inconclusive or only advises is skipped, with the reason."""
    root = parse(exports.content("junit", [result_of().judged(GATES)]))
    cases = {case.get("name"): case for case in root.iter("testcase")}

    assert [root.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["4", "1", "0", "2"]
    assert [[child.tag for child in case] for case in cases.values()] == [[], ["failure"], ["skipped"], ["skipped"]]
    assert cases["require-identical 1"][0].get("message") == "only 50 % <b>&</b>"
    assert root[0].find("properties/property[@name='threads']").get("value") == "2"


def test_junit_survives_control_characters() -> None:
    """XML holds no such characters; they are left out."""
    result = result_of().judged([Gate("min-speedup", Verdict.FAIL, 1.0, 1.2, "broken \x1b[31m\x00 here")])

    assert parse(exports.content("junit", [result]))[0][1][0].get("message") == "broken [31m here"


def test_github_action_benchmark_is_told_what_holds_across_machines() -> None:
    """Ratios and quality of the dynamic arm, bigger being better, under names that don't change with the best static setting."""
    entries = json.loads(exports.content("github-action-benchmark", [result_of("classify", facts=CLASSIFIED)]))

    assert [(e["name"], e["unit"], e["value"]) for e in entries] == [
        ("story: dynamic to plain", "x", 1.5),
        ("story: dynamic to the best static", "x", 1.25),
        ("story: dynamic, labels equal to the full model's", "%", 99.0),
    ]
    assert entries[1]["extra"] == "95 % interval [1.25, 1.25], against the best static (draft k=2)"


def test_benchstat_has_a_line_for_each_round() -> None:
    """Go's benchmark format: keys, a unit that says which way is better, and names without spaces."""
    lines = exports.content("benchstat", [result_of()]).splitlines()
    runs = [line.split() for line in lines if line.startswith("Benchmark")]

    assert "model: story" in lines
    assert "Unit tokens/s better=higher" in lines
    assert len(runs) == 3 * 3
    assert {run[0] for run in runs} == {
        f"BenchmarkGenerate/model=story/arm={arm}-2" for arm in ("plain", "draft_k=2", "dynamic")
    }
    for run in runs:
        assert len(run) == 6
        assert (run[3], run[5]) == ("ns/op", "tokens/s")
        assert float(run[2]) * float(run[4]) == pytest.approx(1e9, rel=1e-3)


def test_json_of_several_is_a_suite() -> None:
    """Each result as it is alone, under the worst verdict."""
    one, two = result_of().judged(GATES[:1]), result_of(model="other").judged(GATES[1:2])
    document = json.loads(exports.content("json", [one, two]))

    assert (document["schema"], document["verdict"]) == ("dynx.bench.suite/1", "fail")
    assert document["results"] == [json.loads(one.to_json()), json.loads(two.to_json())]


@pytest.mark.parametrize("form", exports.FORMATS)
def test_every_format_can_be_written(form: str, tmp_path: Path) -> None:
    """To the path named, whole."""
    result = result_of(facts=POSITIONS).judged(GATES)
    path = exports.write([result], f"{form}:{tmp_path / 'bench'}", {})

    assert path.read_text(encoding="utf-8") == exports.content(form, [result])


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("junit", "did you mean junit:bench.xml?"),
        ("report.html", "did you mean html:report.html?"),
        ("out.xml", "did you mean junit:out.xml?"),
        ("github-action-benchmark:", "write github-action-benchmark:bench.json"),
        ("benchsat:x", "did you mean benchstat:x?"),
    ],
)
def test_specifications_are_put_right(spec: str, hint: str) -> None:
    """A next step for each slip."""
    with pytest.raises(UsageError) as caught:
        exports.parse_export(spec)
    assert caught.value.hint == hint


def test_the_workflow_is_yaml_that_gates() -> None:
    """The file that --workflow prints runs dynx bench with gates, and exports that exist."""
    from dynx.bench import workflow

    text = workflow()
    assert "\t" not in text
    for spec in re.findall(r"--export (\S+)", text):
        assert exports.parse_export(spec)[1] == Path(spec.partition(":")[2])
