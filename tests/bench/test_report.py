"""Gates, the result object, and its three faces: JSON, Markdown, terminal table."""

from __future__ import annotations

import io
import json
import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from dynx import schemas
from dynx.bench import export
from dynx.bench.document import to_document, to_json
from dynx.bench.export import FORMATS
from dynx.bench.gates import best_static, exit_code, min_speedup, require_identical
from dynx.bench.measurements import Group, Measurements, Outcome, Sample
from dynx.bench.report import BenchResult, sentences, summarize
from dynx.bench.result import Gate, Verdict, overall
from dynx.bench.runner import Arm, measure
from dynx.bench.statistics import RatioEstimate
from dynx.bench.table import render, to_markdown
from dynx.bench.wording import percent
from dynx.cli.output_files import parse_export
from dynx.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from jsonschema import Draft202012Validator

HEADER = {
    "device": "cpu: 2 cores, AVX2",
    "threads": 2,
    "dtype": "float32",
    "versions": {"dynx": "0.1.0", "torch": "2.8.0"},
    "models": {"story": "sha256:aa11", "drafter": None},
}
CASES = ("a", "bb", "ccc", "dddd")


class Fake:
    """Arms with scripted speeds (units per second) on a clock that only they move."""

    def __init__(self) -> None:
        self.now = 0.0

    def arm(self, name: str, speed: float, group: str, *, output: str = "same", fail: bool = False) -> Arm[str]:
        """Return an arm of that speed; `fail` makes it raise instead."""

        def run(case: str) -> Outcome:
            if fail:
                raise RuntimeError("kernel | missing")
            units = 10 * len(case)
            self.now += units / speed
            return Outcome(units, None, output, {"acceptance": 0.5, "mode": "greedy"})

        return Arm(name, run, group, reference=group == "plain")  # type: ignore[arg-type]

    def measure(self, arms: list[Arm[str]], rounds: int = 3) -> Measurements:
        """Measure the arms on four cases of 10 to 40 units."""
        return measure(arms, CASES, rounds=rounds, warmup=0, clock=lambda: self.now, rng=random.Random(0))


def result_of(measurements: Measurements, **options: object) -> BenchResult:
    settings: dict[str, object] = {"header": HEADER, "rng": random.Random(0), **options}
    return summarize(measurements, task="generate", unit="tokens", **settings)  # type: ignore[arg-type]


def example() -> BenchResult:
    """Return plain at 100, statics at 110 and 120, dynamic at 150, one whose output differs, and one that failed."""
    fake = Fake()
    arms = [
        fake.arm("plain", 100.0, "plain"),
        fake.arm("k = 2", 110.0, "static"),
        fake.arm("k = 4", 120.0, "static"),
        fake.arm("dynamic", 150.0, "dynamic"),
        fake.arm("transformers assisted k = 10", 80.0, "external", output="different"),
        fake.arm("lookup", 1.0, "external", fail=True),
    ]
    result = result_of(fake.measure(arms))
    dynamic = result.arm("dynamic")
    return result.judged([min_speedup(dynamic.ratio, 1.15), require_identical(dynamic.identical)])


def interrupted() -> BenchResult:
    """Return what a Ctrl-C before the first complete round leaves."""
    fake = Fake()
    empty = fake.measure([fake.arm("plain", 100.0, "plain"), fake.arm("dynamic", 150.0, "dynamic")], rounds=1)
    return result_of(replace(empty, rounds=0, samples={"plain": [], "dynamic": []}, stopped="interrupt"))


def drawn(result: BenchResult, width: int, *, ascii_only: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, legacy_windows=False)
    console.print(render(result, width, ascii_only=ascii_only))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


TABLE_80 = """\
arm                           tokens/s  ratio                    interval   same
plain                              100  1.00x  ████████                 –      –
k = 2                              110  1.10x  ████████▊     [1.10, 1.10]  100 %
k = 4                              120  1.20x  █████████▋    [1.20, 1.20]  100 %
dynamic                            150  1.50x  ████████████  [1.50, 1.50]  100 %
transformers assisted k = 10      80.0  0.80x  ██████▍       [0.80, 0.80]    0 %
lookup                          failed      –                           –      –"""

TABLE_40 = """\
arm              tokens/s  ratio
plain                 100  1.00x  ████
k = 2                 110  1.10x  ████▍
k = 4                 120  1.20x  ████▊
dynamic               150  1.50x  ██████
transfo… k = 10      80.0  0.80x  ███▎
lookup             failed      –"""


def estimate(low: float, ratio: float, high: float) -> RatioEstimate:
    return RatioEstimate(ratio=ratio, low=low, high=high, confidence=0.95, pairs=12)


@pytest.mark.parametrize(
    ("low", "ratio", "high", "verdict"),
    [
        (1.15, 1.20, 1.25, Verdict.PASS),
        (1.10, 1.20, 1.25, Verdict.INCONCLUSIVE),
        (1.10, 1.12, 1.15, Verdict.INCONCLUSIVE),
        (1.05, 1.10, 1.149, Verdict.FAIL),
        (0.0, 9.0, math.inf, Verdict.INCONCLUSIVE),
    ],
    ids=["low on the bar", "straddles", "high on the bar", "all below", "unbounded"],
)
def test_a_speed_up_is_judged_by_its_whole_interval(low: float, ratio: float, high: float, verdict: Verdict) -> None:
    """Pass needs the lower end at the bar, fail the upper end below it; anything between is inconclusive."""
    gate = min_speedup(estimate(low, ratio, high), 1.15)
    assert (gate.verdict, gate.measured, gate.bar) == (verdict, ratio, 1.15)
    assert gate.reason.startswith(f"{ratio:.2f}x [")


def test_gates_on_missing_figures_do_not_pass() -> None:
    """A crashed arm fails with its message; nothing measured is inconclusive, for speed and identity alike."""
    assert min_speedup(None, 1.0).verdict is Verdict.INCONCLUSIVE
    assert require_identical(None).verdict is Verdict.INCONCLUSIVE
    for gate in (min_speedup(None, 1.0, failure="boom"), require_identical(None, failure="boom")):
        assert (gate.verdict, gate.reason) == (Verdict.FAIL, "the arm failed: boom")


def test_one_differing_output_fails_identity() -> None:
    """Identity has no tolerance, and a rate just short of 1 isn't printed as 100 %, in the gate or in the table."""
    assert require_identical(1.0).verdict is Verdict.PASS
    gate = require_identical(1999 / 2000)
    assert gate.verdict is Verdict.FAIL
    assert gate.reason == "only 99.9 % of outputs equal the reference's"
    result = example()
    almost = replace(result.arm("dynamic"), identical=1999 / 2000)
    assert drawn(replace(result, arms=[result.reference, almost]), 80).endswith("99.9 %")
    assert [percent(rate) for rate in (0.0, 0.57, 1.0)] == ["0 %", "57 %", "100 %"]


@pytest.mark.parametrize("bar", [0.0, -1.0, math.inf, math.nan])
def test_a_bar_must_be_a_positive_number(bar: float) -> None:
    """Nonsense bars are usage errors."""
    with pytest.raises(UsageError, match="must be a positive number"):
        min_speedup(None, bar)


def test_the_exit_code_is_that_of_the_worst_gate() -> None:
    """3 for any failure; inconclusive is 0, or 125 when a bisection wants to skip; no gates is 0."""
    gates = {verdict: Gate("g", verdict, 1.0, 1.0, "") for verdict in Verdict}
    passed, failed, unsure = gates[Verdict.PASS], gates[Verdict.FAIL], gates[Verdict.INCONCLUSIVE]
    assert [exit_code(some) for some in ([], [passed], [passed, unsure], [unsure, failed])] == [0, 0, 0, 3]
    assert [exit_code(some, bisect=True) for some in ([], [passed], [passed, unsure], [unsure, failed])] == [
        0,
        0,
        125,
        3,
    ]
    assert overall([]) is None
    assert overall([passed, unsure]) is Verdict.INCONCLUSIVE


def test_the_best_static_arm_is_the_fastest_of_its_group() -> None:
    """Neither plain nor dynamic nor external arms count as static, however fast; without static arms there is none."""
    result = example()
    best = best_static(result.arms)
    assert best is not None
    assert best.name == "k = 4"
    assert best_static([arm for arm in result.arms if arm.group != "static"]) is None


def test_the_result_carries_the_scripted_figures() -> None:
    """Speeds, ratios, identity, facts and the comparison with the best static arm are those of the script."""
    result = example()
    dynamic, foreign, failed = (result.arm(name) for name in ("dynamic", "transformers assisted k = 10", "lookup"))
    assert dynamic.ratio is not None
    assert dynamic.speed == pytest.approx(150.0)
    assert (dynamic.ratio.low, dynamic.ratio.ratio, dynamic.ratio.high) == pytest.approx((1.5, 1.5, 1.5))
    assert (dynamic.identical, foreign.identical, failed.identical) == (1.0, 0.0, None)
    assert dynamic.facts == {"acceptance": 0.5, "mode": "greedy"}
    assert [(item.arm, item.baseline) for item in result.comparisons] == [("dynamic", "k = 4")]
    assert result.comparisons[0].ratio.ratio == pytest.approx(1.25)
    assert (failed.speed, failed.ratio, failed.samples) == (None, None, ())
    assert failed.failure is not None
    assert result.verdict is Verdict.PASS
    assert result.reference.name == "plain"
    with pytest.raises(KeyError):
        result.arm("nobody")


def test_facts_take_medians_and_drop_what_disagrees() -> None:
    """Numbers become their median, equal values stay, differing words go, and the caller's facts win."""
    facts: list[dict[str, object]] = [
        {"steps": 1, "mode": "a", "on": True},
        {"steps": 9, "mode": "b", "on": True},
        {"steps": 2, "mode": "a", "on": True},
        {"steps": 4, "mode": "a", "on": True},
    ]
    turn, fake = iter(facts), Fake()
    plain = Arm("plain", lambda case: Outcome(1, 1.0, case, next(turn)), "plain", reference=True)  # type: ignore[arg-type]
    result = result_of(fake.measure([plain], rounds=1), facts={"plain": {"energy": None}})
    assert result.arm("plain").facts == {"steps": 3.0, "on": True, "energy": None}


def test_outliers_are_relative_to_their_own_case() -> None:
    """A long case is no outlier; a run three times as long as the same case otherwise takes is."""
    fake = Fake()
    measurements = fake.measure([fake.arm("plain", 100.0, "plain")], rounds=4)
    samples = [
        replace(sample, seconds=sample.seconds * (3 if index == 6 else 1))
        for index, sample in enumerate(measurements.samples["plain"])
    ]
    result = result_of(replace(measurements, samples={"plain": samples}))
    assert result.arm("plain").outliers == (6,)
    assert any("1 of 16 for plain" in sentence for sentence in sentences(result))


def test_an_arm_that_produces_nothing_has_no_ratio() -> None:
    """A model that ends every text at once is reported with speed 0, not with a crash."""
    fake = Fake()
    silent = Arm("silent", lambda case: Outcome(0, 1.0, case), "dynamic")
    arm = result_of(fake.measure([fake.arm("plain", 100.0, "plain"), silent])).arm("silent")
    assert (arm.speed, arm.ratio) == (0.0, None)


def test_the_reading_says_what_the_figures_mean() -> None:
    """The first sentence holds both comparisons; gates, failures and the meaning of the brackets follow."""
    said = sentences(example())
    assert said == (
        "dynamic 1.50x of plain [1.50, 1.50]; 1.25x of the best static (k = 4) [1.25, 1.25]",
        "min-speedup: pass, 1.50x [1.50, 1.50] is at or above 1.15x as a whole",
        "require-identical: pass, every output equals the reference's",
        "lookup failed and has no figures: RuntimeError: kernel | missing",
        "[ ] are 95 % intervals for inputs like these, from 3 rounds of 4 inputs; "
        "on exactly these a difference of 0.0 % would show in four runs of five",
        "ratios are of each input's times by Huber's M-estimate over the rounds (1964), in which a disturbed run counts little",
    )


def test_a_single_round_says_that_it_is_not_robust() -> None:
    """The estimator is named in words and in JSON, with how much leaving out one input would change."""
    samples = {
        name: [Sample(0, case, 0, 10, seconds, "x", {}) for case, seconds in enumerate(times)]
        for name, times in (("plain", (2.0, 2.0, 2.0, 2.0)), ("dynamic", (1.0, 1.0, 1.0, 5.0)))
    }
    once = Measurements({"plain": "plain", "dynamic": "dynamic"}, "plain", 4, 1, samples, {}, "rounds", 16.0)
    result = summarize(once, task="generate", unit="tokens", header={}, rng=random.Random(0))
    ratio = to_document(result)["arms"][1]["ratio"]  # type: ignore[index,call-overload]

    assert "(leaving out one input would give 0.86x to 2.00x)" in sentences(result)[-1]
    assert sentences(result)[-1].startswith("one round has no robust estimate: ratios are of total times")
    assert (ratio["estimator"], ratio["leaving_one_out"]) == ("totals", pytest.approx([6 / 7, 2.0]))


def test_gates_are_surer_than_tables() -> None:
    """A gate's confidence widens the interval that it judges by, and none in the table."""
    generator = random.Random(2)
    samples = {
        name: [Sample(r, 0, 0, 10, generator.lognormvariate(0, 0.1), "x", {}) for r in range(5)]
        for name in ("plain", "dynamic")
    }
    groups: dict[str, Group] = {"plain": "plain", "dynamic": "dynamic"}
    measured = Measurements(groups, "plain", 1, 5, samples, {}, "rounds", 16.0)
    found = [
        summarize(measured, task="generate", unit="tokens", header={}, rng=random.Random(0), confidence=confidence)
        .arm("dynamic")
        .ratio
        for confidence in (0.95, 0.999)
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].interval == found[1].interval
    assert found[0].on_these().high < found[1].on_these().high
    assert found[1].on_these().confidence == 0.999


def test_the_reading_tells_interruption_and_budget() -> None:
    """What cut the measurement short is said."""
    assert sentences(interrupted())[-1] == "interrupted before any round was complete"
    assert sentences(replace(example(), stopped="interrupt"))[-1] == "interrupted: figures are from 3 complete rounds"
    assert sentences(replace(example(), stopped="budget"))[-1] == "the time budget ended the measurement after 3 rounds"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return schemas.validator("dynx.bench/1")


@pytest.mark.parametrize("make", [example, interrupted])
def test_json_follows_its_schema(make: object, validator: Draft202012Validator) -> None:
    """Whole and interrupted results validate, and the schema's name comes first."""
    text = to_json([make()])  # type: ignore[operator]
    validator.validate(json.loads(text))
    assert text.startswith('{\n  "schema": "dynx.bench/1",')
    assert text.endswith("}\n")


def test_the_schema_takes_more_and_never_less(validator: Draft202012Validator) -> None:
    """A key that is new is taken, as documents may gain some; another version, and a missing key, are each refused."""
    good = json.loads(to_json([example()]))
    assert validator.is_valid(good | {"extra": 1})
    for bad in (good | {"schema": "dynx.bench/2"}, {k: v for k, v in good.items() if k != "gates"}):
        assert not validator.is_valid(bad)


def test_json_has_null_where_there_is_no_number(validator: Draft202012Validator) -> None:
    """NaN, infinity and unbounded ends become null; NumPy's numbers stay numbers; paths become text."""
    result = example()
    unbounded = replace(result.arms[3], ratio=estimate(0.0, 2.0, math.inf))
    header = {"nan": math.nan, "inf": -math.inf, "count": np.int64(3), "share": np.float32(0.5), "list": (1, "a")}
    document = json.loads(to_json([replace(result, arms=[result.reference, unbounded], header=header)]))
    validator.validate(document)
    assert document["header"] == {"nan": None, "inf": None, "count": 3, "share": 0.5, "list": [1, "a"]}
    ratio = document["arms"][1]["ratio"]
    assert (ratio["low"], ratio["high"], ratio["detectable"]) == (None, None, None)


def test_markdown_holds_verdict_sentences_table_and_conditions() -> None:
    """One row per arm, pipes escaped, the contender in bold, header facts in words."""
    lines = to_markdown([example()]).splitlines()
    assert lines[0] == "## dynx bench: generate – pass"
    assert "- lookup failed and has no figures: RuntimeError: kernel \\| missing" in lines
    assert "| plain | 100 | 1.00x | – | – | 0 |" in lines
    assert "| **dynamic** | 150 | 1.50x | [1.50, 1.50] | 100 % | 0 |" in lines
    assert "| transformers assisted k = 10 | 80.0 | 0.80x | [0.80, 0.80] | 0 % | 0 |" in lines
    assert "| lookup | failed | – | – | – | – |" in lines
    assert "| min-speedup | pass | 1.500 | 1.150 |" in lines
    assert "- versions: dynx 0.1.0, torch 2.8.0" in lines
    assert "- models: story sha256:aa11, drafter unknown" in lines


def test_the_table_at_80_columns_shows_everything() -> None:
    """Eighty columns hold every figure and a bar as long as the ratio."""
    assert drawn(example(), 80) == TABLE_80


def test_the_table_at_40_columns_keeps_figures_and_bar() -> None:
    """Forty columns keep arm, speed, ratio and bar; a long name loses its middle."""
    assert drawn(example(), 40) == TABLE_40


def steady() -> Measurements:
    """Plain, two static arms and dynamic."""
    fake = Fake()
    speeds = {"plain": 100.0, "k = 2": 110.0, "k = 4": 120.0, "dynamic": 150.0}
    groups = {"plain": "plain", "dynamic": "dynamic"}
    return fake.measure([fake.arm(name, speed, groups.get(name, "static")) for name, speed in speeds.items()])


def further() -> BenchResult:
    """With a column of its own, and dynamic compared with a static arm that isn't the fastest."""
    return result_of(steady(), baselines={"the best of them": "k = 2"}, columns={"calls": {"plain": "50.0"}})


def test_a_task_may_choose_the_rival(validator: Draft202012Validator) -> None:
    """In words and in JSON it says why; without rivals there is no comparison."""
    result = further()
    document = json.loads(to_json([result]))
    validator.validate(document)

    assert sentences(result)[0].endswith("; 1.36x of the best of them (k = 2) [1.36, 1.36]")
    assert [(c["baseline"], c["basis"]) for c in document["comparisons"]] == [("k = 2", "the best of them")]
    assert result_of(steady(), baselines={}).comparisons == ()


def test_a_task_may_show_a_column_of_its_own() -> None:
    """Beside the ratio, before the bar, in both tables; an arm without a cell has a dash."""
    lines = drawn(further(), 80).splitlines()

    assert lines[0].split() == ["arm", "tokens/s", "ratio", "calls", "interval", "same"]
    assert lines[1].startswith("plain         100  1.00x   50.0  █")
    assert drawn(further(), 30).splitlines()[0].split() == ["arm", "tokens/s", "ratio"]
    assert "| plain | 100 | 1.00x | – | 50.0 | – | 0 |" in to_markdown([further()])
    assert "| k = 2 | 110 | 1.10x | [1.10, 1.10] | – | 100 % | 0 |" in to_markdown([further()])


@pytest.mark.parametrize("width", [30, 36, 40, 47, 56, 64, 80, 120, 200])
@pytest.mark.parametrize("make", [example, interrupted, further])
def test_the_table_fits_any_terminal(make: object, width: int) -> None:
    """From 30 columns on no line is too long, no row wraps, and no speed or ratio is cut."""
    result: BenchResult = make()  # type: ignore[operator]
    lines = drawn(result, width).splitlines()
    assert len(lines) == 1 + len(result.arms)
    assert max(len(line) for line in lines) <= width
    for arm, line in zip(result.arms, lines[1:], strict=True):
        assert arm.ratio is None or f"{arm.ratio.ratio:.2f}x" in line


def test_bars_are_full_up_to_the_lower_end_and_shaded_up_to_the_upper() -> None:
    """The shade is the doubt: [1, 2] on a scale of 2 is half full, half shaded."""
    result = example()
    arms = [
        replace(result.arms[0], ratio=estimate(1.0, 1.0, 1.0)),
        replace(result.arms[3], ratio=estimate(1.0, 1.5, 2.0)),
    ]
    plain, dynamic = drawn(replace(result, arms=arms), 80, ascii_only=True).splitlines()[1:]
    assert plain.count("#") == dynamic.count("#") == dynamic.count("-")
    assert plain.count("#") > 0


def test_an_ascii_terminal_gets_ascii() -> None:
    """Without Unicode the bars, dashes and cut names are plain characters."""
    assert drawn(example(), 40, ascii_only=True).isascii()


def test_names_are_not_read_as_markup() -> None:
    """An arm called [bold] is printed as it is called."""
    result = example()
    assert "[bold]x" in drawn(replace(result, arms=[replace(result.arms[0], name="[bold]x")]), 80)


def test_export_writes_the_formats(tmp_path: Path) -> None:
    """`json:PATH` and `md:PATH` write the same texts that the result returns."""
    result = example()
    assert export.write([result], *parse_export(f"json:{tmp_path / 'b.json'}"), {}) == tmp_path / "b.json"
    export.write([result], *parse_export(f"md:{tmp_path / 'b.md'}"), {})
    assert (tmp_path / "b.json").read_text(encoding="utf-8") == to_json([result])
    assert (tmp_path / "b.md").read_text(encoding="utf-8") == to_markdown([result])


def test_markdown_is_appended_to_the_step_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other steps wrote stays; JSON doesn't go there."""
    summary, result = tmp_path / "summary.md", example()
    summary.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    export.write([result], *parse_export(f"md:{tmp_path / 'b.md'}"))
    export.write([result], *parse_export(f"json:{tmp_path / 'b.json'}"))
    assert summary.read_text(encoding="utf-8") == "before\n" + to_markdown([result]) + "\n"


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("bench.json", "--export wants FORMAT:PATH, not 'bench.json'", "did you mean json:bench.json?"),
        ("md", "--export wants FORMAT:PATH, not 'md'", "did you mean md:bench.md?"),
        ("jsn:a", "--export has no format 'jsn'", "did you mean json:a?"),
        (
            "parquet:a",
            "--export has no format 'parquet'",
            f"the formats are {', '.join(FORMATS)}",
        ),
        ("json:", "--export json: names no file", "write json:bench.json"),
        ("json:missing/a", "can't write missing/a: the folder missing doesn't exist", "mkdir -p missing"),
        ("md:.", "can't write .: it is a folder", "name a file in it: md:bench.md"),
    ],
)
def test_bad_exports_are_told_with_the_way_out(
    spec: str, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mistake has its sentence and a next step, before anything is measured."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        parse_export(spec)
    assert (str(caught.value), caught.value.hint) == (message, hint)


def test_a_path_that_turns_out_unwritable_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Denied permission is told early, and a failing write names the file instead of raising OSError."""
    target = tmp_path / "b.md"
    with pytest.raises(UsageError, match=r"can't write the step summary .*: No such file"):
        export.write(
            [example()], *parse_export(f"md:{target}"), {"GITHUB_STEP_SUMMARY": str(tmp_path / "no" / "summary.md")}
        )
    assert target.exists()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UsageError, match="permission denied"):
        parse_export(f"json:{target}")
