"""What a result is written as for other tools: each format whole, escaped and honest."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from dynx.bench import export
from dynx.bench.document import to_json
from dynx.bench.measurements import Outcome
from dynx.bench.report import summarize
from dynx.bench.result import BenchResult, Gate, Verdict
from dynx.bench.runner import Arm, measure
from dynx.cli.output_files import parse_export
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def test_nothing_measured_is_written_all_the_same() -> None:
    """An interrupted bench gives files that can be opened."""
    result = result_of()
    bare = replace(result, arms=[replace(a, ratio=None, speed=None, samples=()) for a in result.arms], comparisons=())

    for form in export.FORMATS:
        export.content(form, [bare])


def test_csv_has_a_line_for_each_arm() -> None:
    """Under a line of names; what isn't known is empty."""
    rows = list(csv.DictReader(io.StringIO(export.content("csv", [result_of("classify", facts=CLASSIFIED)]))))

    assert [row["arm"] for row in rows] == ["plain", "draft k=2", "dynamic", "broken"]
    assert rows[2]["quality"] == "0.99"
    assert float(rows[2]["ratio_low"]) == pytest.approx(1.5)
    assert (rows[3]["ratio"], rows[3]["failure"]) == ("", "RuntimeError: no <kernel>")


def test_junit_has_a_case_for_each_gate() -> None:
    """Failures are failures; what is inconclusive or only advises is skipped, with the reason."""
    root = parse(export.content("junit", [result_of().judged(GATES)]))
    cases = {case.get("name"): case for case in root.iter("testcase")}

    assert [root.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["4", "1", "0", "2"]
    assert [[child.tag for child in case] for case in cases.values()] == [[], ["failure"], ["skipped"], ["skipped"]]
    assert cases["require-identical 1"][0].get("message") == "only 50 % <b>&</b>"
    assert root[0].find("properties/property[@name='threads']").get("value") == "2"


def test_junit_survives_control_characters() -> None:
    """XML holds no such characters; they are left out."""
    result = result_of().judged([Gate("min-speedup", Verdict.FAIL, 1.0, 1.2, "broken \x1b[31m\x00 here")])

    assert parse(export.content("junit", [result]))[0][1][0].get("message") == "broken [31m here"


def test_github_action_benchmark_is_told_what_holds_across_machines() -> None:
    """Ratios and quality of the dynamic arm, bigger being better, under names that don't change with the best static setting."""
    entries = json.loads(export.content("github-action-benchmark", [result_of("classify", facts=CLASSIFIED)]))

    assert [(e["name"], e["unit"], e["value"]) for e in entries] == [
        ("story: dynamic to plain", "x", 1.5),
        ("story: dynamic to the best static", "x", 1.25),
        ("story: dynamic, labels equal to the full model's", "%", 99.0),
    ]
    assert entries[1]["extra"] == "95 % interval [1.25, 1.25], against the best static (draft k=2)"


def test_json_of_several_is_a_suite() -> None:
    """Each result as it is alone, under the worst verdict."""
    one, two = result_of().judged(GATES[:1]), result_of(model="other").judged(GATES[1:2])
    document = json.loads(export.content("json", [one, two]))

    assert (document["schema"], document["verdict"]) == ("dynx.bench.suite/1", "fail")
    assert document["results"] == [json.loads(to_json([one])), json.loads(to_json([two]))]


@pytest.mark.parametrize("form", export.FORMATS)
def test_every_format_can_be_written(form: str, tmp_path: Path) -> None:
    """To the path named, whole."""
    result = result_of().judged(GATES)
    path = export.write([result], *parse_export(f"{form}:{tmp_path / 'bench'}"), {})

    assert path.read_text(encoding="utf-8") == export.content(form, [result])


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("junit", "did you mean junit:bench.xml?"),
        ("out.xml", "did you mean junit:out.xml?"),
        ("github-action-benchmark:", "write github-action-benchmark:bench.json"),
        ("junti:x", "did you mean junit:x?"),
        ("html:x", "the formats are json, md, csv, junit, github-action-benchmark"),
    ],
)
def test_specifications_are_put_right(spec: str, hint: str) -> None:
    """A next step for each slip."""
    with pytest.raises(UsageError) as caught:
        parse_export(spec)
    assert caught.value.hint == hint


def test_the_workflow_of_the_guide_gates() -> None:
    """It runs dynx bench with options that there are, a gate among them, and exports that exist."""
    from typer.main import get_command

    from dynx.cli.app import app

    guide = (Path(__file__).parents[2] / "man" / "guides" / "benchmarking.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    assert "\t" not in text
    (line,) = re.findall(r"run: >\s+dynx bench (.*?)\n      - ", text, re.DOTALL)
    commands: Any = get_command(app)
    given = commands.commands["bench"].make_context("bench", line.split()).params
    assert (given["models"], given["min_speedup"], given["require_identical"]) == (["story"], 1.0, True)
    assert [parse_export(spec)[1].name for spec in given["export"]] == ["bench.md", "bench.json", "bench.xml"]
