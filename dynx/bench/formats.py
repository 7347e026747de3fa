"""The result for other tools: CSV, JUnit XML, and github-action-benchmark's JSON."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from dynx.bench.quality import QUALITY_NAMES, quality_of
from dynx.bench.report import sentences
from dynx.bench.wording import in_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.bench.result import ArmResult, BenchResult, Gate

COLUMNS = (
    "model",
    "task",
    "arm",
    "group",
    "speed",
    "unit",
    "ratio",
    "ratio_low",
    "ratio_high",
    "confidence",
    "quality",
    "quality_low",
    "quality_high",
    "identical",
    "runs",
    "outliers",
    "failure",
)

NO_CONTROL = {c: None for c in range(32) if chr(c) not in "\t\n\r"}
"""Characters that XML can't hold, as a translation table."""


def to_csv(results: Sequence[BenchResult]) -> str:
    """Return a CSV line for each arm under a line of names; unknown values are empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in results:
        for arm in result.arms:
            writer.writerow(_row(result, arm))
    return out.getvalue()


def _row(result: BenchResult, arm: ArmResult) -> dict[str, object]:
    ratio, quality = arm.ratio, quality_of(result, arm)
    bounded = ratio is not None and ratio.bounded
    return {
        "model": _model(result),
        "task": result.task,
        "arm": arm.name,
        "group": arm.group,
        "speed": arm.speed,
        "unit": f"{result.unit}/s",
        "ratio": ratio.ratio if ratio else None,
        "ratio_low": ratio.low if ratio and bounded else None,
        "ratio_high": ratio.high if ratio and bounded else None,
        "confidence": ratio.confidence if ratio else None,
        "quality": quality.value if quality else None,
        "quality_low": quality.low if quality else None,
        "quality_high": quality.high if quality else None,
        "identical": arm.identical,
        "runs": len(arm.samples),
        "outliers": len(arm.outliers),
        "failure": arm.failure.message if arm.failure else None,
    }


def to_junit(results: Sequence[BenchResult]) -> str:
    """Return a test suite for each model with a case for each gate; inconclusive and advisory ones count as skipped."""
    every = [gate for result in results for gate in result.gates]
    root = ET.Element("testsuites", {"name": "dynx bench", **_counts(every)})
    for result in results:
        name = f"dynx bench {_model(result)} ({result.task})"
        own = {"name": printable(name), "time": f"{result.elapsed:.3f}"}
        suite = ET.SubElement(root, "testsuite", own | _counts(result.gates))
        properties = ET.SubElement(suite, "properties")
        for key, value in result.header.items():
            ET.SubElement(properties, "property", name=printable(key), value=printable(in_words(value)))
        for gate in result.gates:
            label = printable(f"{gate.name} {gate.bar:g}")
            classname = f"dynx.bench.{printable(_model(result))}"
            case = ET.SubElement(suite, "testcase", classname=classname, name=label, time="0")
            said = "advisory" if gate.advisory else gate.verdict
            if said == "fail":
                ET.SubElement(case, "failure", message=printable(gate.reason), type=printable(gate.name))
            elif said != "pass":
                ET.SubElement(case, "skipped", message=printable(gate.reason))
        ET.SubElement(suite, "system-out").text = printable("\n".join(sentences(result)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _counts(gates: Sequence[Gate]) -> dict[str, str]:
    failed = sum(gate.verdict == "fail" and not gate.advisory for gate in gates)
    unsure = sum(gate.verdict == "inconclusive" or gate.advisory for gate in gates)
    return {"tests": str(len(gates)), "failures": str(failed), "errors": "0", "skipped": str(unsure)}


def printable(text: str) -> str:
    """Return the text without control characters and unpaired surrogates, which XML can't hold."""
    return text.translate(NO_CONTROL).encode("utf-8", "replace").decode()


def to_action_benchmark(results: Sequence[BenchResult]) -> str:
    """Return github-action-benchmark's `customBiggerIsBetter`: dynamic's ratios and quality, which hold across machines."""
    entries: list[dict[str, object]] = []
    for result in results:
        for arm in result.arms:
            if arm.group != "dynamic":
                continue
            against = [(result.reference.name, arm.ratio)]
            against += [(f"{c.basis} ({c.baseline})", c.ratio) for c in result.comparisons if c.arm == arm.name]
            for baseline, ratio in against:
                if ratio is None:
                    continue
                # The best static setting may change between runs: the name holds its role, `extra` which one it is.
                name = f"{_model(result)}: {arm.name} to {baseline.partition(' (')[0]}"
                entry: dict[str, object] = {"name": name, "unit": "x", "value": round(ratio.ratio, 4)}
                if ratio.bounded:
                    entry["range"] = f"± {(ratio.high - ratio.low) / 2:.3f}"
                entry["extra"] = f"{100 * ratio.confidence:g} % interval {ratio.interval}, against {baseline}"
                entries.append(entry)
            quality = quality_of(result, arm)
            if quality is not None:
                name = f"{_model(result)}: {arm.name}, {QUALITY_NAMES.get(result.task, 'identical')}"
                unit, value = ("%", 100 * quality.value) if quality.share else ("SSIM", quality.value)
                entries.append({"name": name, "unit": unit, "value": round(value, 4)})
    return json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _model(result: BenchResult) -> str:
    return str(result.header.get("model") or result.task)
