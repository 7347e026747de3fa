"""`dynx bench` as a gate: stored results, further arms, programs, several models, bisection. Speed itself is nobody's test."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from support.classifier_folders import sentences, write_text_classifier

from dynx import schemas
from dynx.bench import runner
from dynx.cli.bench import generation as bench_generation
from dynx.cli.bench import measure
from dynx.cli.bench import task as bench

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]

TINY = ("-n", 8, "--prompts", 2, "--static", "none")
SHORT = ("--runs", 1, *TINY)
ROUNDS = ("--runs", 3, *TINY)


@pytest.fixture
def own(cli: Cli, tiny_folder: Path, tmp_path: Path) -> Path:
    """A result of the tiny model."""
    path = tmp_path / "own.json"
    assert cli("bench", "-m", tiny_folder, *ROUNDS, "--export", f"json:{path}", "-q").code == 0
    return path


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The stored result, edited."""
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def times(factor: float) -> Callable[[dict[str, Any]], None]:
    """Makes a stored dynamic arm so many times as fast."""

    def change(document: dict[str, Any]) -> None:
        for arm in document["arms"]:
            for sample in arm["samples"]:
                sample["seconds"] /= factor if arm["name"] == "dynamic" else 1

    return change


def test_a_baseline_of_the_same_conditions_decides(cli: Cli, tiny_folder: Path, own: Path) -> None:
    """A stored result thousands of times slower passes, and one as much faster fails with exit code 3."""
    passed = cli("bench", "-m", tiny_folder, *ROUNDS, "--baseline", changed(own, times(1e-4)), "--tolerance", "5%")
    failed = cli("bench", "-m", tiny_folder, *ROUNDS, "--baseline", changed(own, times(1e8)), "--tolerance", "5%")

    assert (passed.code, passed.err) == (0, "")
    assert re.search(r"^baseline: pass, .* 5 % less can be ruled out", passed.out, re.MULTILINE)
    assert failed.code == 3
    assert re.fullmatch(r"dynx: baseline: .*: slower by more than 5 %\n", failed.err)


def test_a_baseline_of_other_conditions_advises(cli: Cli, tiny_folder: Path, own: Path) -> None:
    """What differs is told before and after; it fails nothing, and bisection learns nothing from it."""

    def elsewhere(document: dict[str, Any]) -> None:
        times(1e4)(document)
        document["header"] |= {"threads": 64, "data_hash": "another"}

    options = ("-m", tiny_folder, *ROUNDS, "--baseline", changed(own, elsewhere))
    result, bisected = cli("bench", *options), cli("bench", *options, "--bisect")

    assert result.code == 0
    assert "own.json can only advise, as it differs: threads 1, not 64; data hash" in result.err
    assert re.search(r"^baseline: fail, .* advisory only", result.out, re.MULTILINE)
    assert bisected.code == 125


def test_a_gate_goes_on_until_it_is_decided(cli: Cli, tiny_folder: Path) -> None:
    """A speed-up far out of reach is decided at the first look, and how often it could have looked is said."""
    document = cli("bench", "-m", tiny_folder, *TINY, "--min-speedup", 900, "--json").document

    assert schemas.complaint(document) is None
    assert (document["stopped"], document["gates"][0]["verdict"]) == ("decided", "fail")
    assert (document["header"]["harness"]["looks"], document["header"]["harness"]["looks_at_most"]) == (1, 6)
    assert document["rounds"] <= 5  # fewer where that takes so long that the look is brought forward
    sure = 1 - 0.05 * document["rounds"] / 160
    assert document["header"]["harness"]["interval_confidence"] == pytest.approx(sure, abs=1e-6)
    assert any("looked at up to 6 times" in sentence for sentence in document["reading"])


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        (("--runs", 3, "--min-speedup", 0.5), bench.GATE_BUDGET_SECONDS),
        (("--min-speedup", 0.5), bench.SPEED_GATE_BUDGET_SECONDS),
        (("--require-identical",), bench.GATE_BUDGET_SECONDS),
        (("--runs", 3, "--min-speedup", 0.5, "--budget", 7), 7.0),
        (("--runs", 1), None),
    ],
)
def test_every_gate_has_a_deadline(
    cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[Any, ...], seconds: float | None
) -> None:
    """Whatever else is asked for; what is no gate has none."""
    heard: list[float | None] = []
    real = runner.measure

    def listening(*args: Any, **kwargs: Any) -> runner.Measurements:
        heard.append(kwargs["deadline_s"])
        return real(*args, **kwargs)

    monkeypatch.setattr(runner, "measure", listening)
    cli("bench", "-m", tiny_folder, *TINY, *options)
    assert heard == [seconds]


@pytest.mark.parametrize("runs", [1, 6, 11, 17, 40])
def test_a_budget_that_ends_early_is_inconclusive(
    cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, runs: int
) -> None:
    """After any number of clock readings no gate passes on inputs that weren't run, and the exit code is any open gate's."""
    real = runner.measure

    def hasty(*args: Any, **kwargs: Any) -> runner.Measurements:
        ticks = itertools.count()
        return real(*args, **{**kwargs, "clock": lambda: float(next(ticks)), "deadline_s": float(runs)})

    monkeypatch.setattr(runner, "measure", hasty)
    gates = ("--runs", 3, "--min-speedup", 1e-9, "--require-identical", "--json")
    result = cli("bench", "-m", tiny_folder, *TINY, *gates)
    document = result.document
    assert (result.code, document["stopped"]) == (0, "budget")
    assert schemas.complaint(document) is None
    speed, identical = (gate["verdict"] for gate in document["gates"])
    assert speed == "inconclusive"
    whole = document["rounds"] >= 1 and document["cases"] == 2
    assert identical == ("pass" if whole else "inconclusive")
    assert whole or any("in the first round" in sentence for sentence in document["reading"])
    assert cli("bench", "-m", tiny_folder, *TINY, *gates, "--bisect").code == 125


def test_loading_has_a_deadline_of_its_own(cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that doesn't get ready ends a gate with one line that says so."""

    def forever(*_: Any) -> None:
        while True:
            pass

    monkeypatch.setattr(bench_generation, "prepare", forever)
    monkeypatch.setattr(measure, "LOADING_TIMEOUT_SECONDS", 0.2)
    result = cli("bench", "-m", tiny_folder, "--min-speedup", 1.0)
    assert result.code == 1
    assert re.search(r"^dynx: nothing was measured: .* wasn't ready after 0\.2 s$", result.err, re.MULTILINE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema="dynx.bench/9"), "is of schema 'dynx.bench/9', not 'dynx.bench/1'"),
        (lambda d: d.update(task="draw"), "measured draw, and tiny is for generate"),
        (lambda d: d.pop("arms"), "is damaged"),
        (lambda d: d["arms"].pop(), "has no figures of the dynamic arm of tiny"),
    ],
    ids=["schema", "task", "damaged", "arm"],
)
def test_a_baseline_that_is_none_is_told_before_measuring(
    cli: Cli, tiny_folder: Path, own: Path, change: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another schema, another task, damage and a missing arm are wrong usage; under --bisect the commit is skipped."""
    monkeypatch.setattr("dynx.bench.runner.measure", lambda *_, **__: pytest.fail("measured"))
    options = ("-m", tiny_folder, "--baseline", changed(own, change))
    result, bisected = cli("bench", *options), cli("bench", *options, "--bisect")

    assert (result.code, result.out) == (2, "")
    assert f"--baseline {own} " in result.err
    assert words in result.err
    assert ("--export json:FILE writes one" in result.err) == ("schema" in words or "damaged" in words)
    assert bisected.code == 125


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tolerance", "5%"], "neither is given"),
        (["--min-speedup", 1, "--tolerance", "5"], "--tolerance 5: how much slower"),
        (["--arm", "dtype"], "an arm is NAME=OPTIONS"),
        (["--arm", "mine=--prompts 3"], "--prompts is the same for all arms"),
        (["--arm", "mine=--no-such-option"], "--arm mine: No such option"),
        (["--arm", "mine=!program"], "!program is neither an option nor a peer"),
        (["--arm", "mine=--draft none", "--arm", "mine=--draft self"], "--arm mine is given twice"),
        (["--arm", "mine=--batch-size 3"], "--batch-size means nothing"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_told_before_measuring(
    cli: Cli, tiny_folder: Path, options: list[object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arms and bars that can't be are wrong usage."""
    monkeypatch.setattr("dynx.bench.runner.measure", lambda *_, **__: pytest.fail("measured"))
    result = cli("bench", "-m", tiny_folder, *SHORT, *options)

    assert (result.code, result.out) == (2, "")
    assert words in result.err


def test_further_arms_are_options_of_their_own(cli: Cli, tiny_folder: Path) -> None:
    """An arm with another drafter, one with a fixed length, and one of another precision, each under its name."""
    arms = ("--arm", "lookup=--draft lookup", "--arm", "two=--static 2", "--arm", "half=--dtype bfloat16")
    document = cli("bench", "-m", tiny_folder, *SHORT, *arms, "--json").document
    groups = {arm["name"]: arm["group"] for arm in document["arms"]}

    assert groups == {"plain": "plain", "dynamic": "dynamic", "lookup": "dynamic", "two": "static", "half": "dynamic"}
    assert {a["name"]: a["identical"] for a in document["arms"]}["two"] == 1


def test_several_models_are_a_suite(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """One document of both, each option going to the models whose task has it, and the worst exit code of all."""
    other = write_text_classifier(tmp_path / "tiny-bert")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(sentences(8)), encoding="utf-8")
    options = ("-m", tiny_folder, "-m", other, "--data", texts, *SHORT, "--max-disagreement", 0.1, "--json")
    options = (*options, "--with", "--batch-size 3")
    good = cli("bench", *options)
    bad = cli("bench", *options, "--runs", 3, "--min-speedup", 900)

    assert good.code == 0
    assert schemas.complaint(good.document) is None
    assert good.document["schema"] == "dynx.bench.suite/1"
    assert [result["task"] for result in good.document["results"]] == ["generate", "classify"]
    assert [result["header"].get("batch_size") for result in good.document["results"]] == [None, 3]
    assert (bad.code, "tiny: min-speedup" in bad.err) == (3, True)


def test_bisection_asks_for_a_verdict(cli: Cli, tiny_folder: Path) -> None:
    """Passed gates are 0, failed ones 3, and without a gate or a model there is nothing to go by: 125."""
    assert cli("bench", "-m", tiny_folder, *SHORT, "--require-identical", "--bisect").code == 0
    assert cli("bench", "-m", tiny_folder, *ROUNDS, "--min-speedup", 900, "--bisect").code == 3
    assert cli("bench", "-m", tiny_folder, *SHORT, "--bisect").code == 125
    assert cli("bench", "-m", "/nowhere/model", "--bisect").code == 125


def test_the_hook_that_slows_an_arm_down_is_said(cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures made slow on purpose say so, and a wrong value is told."""
    monkeypatch.setenv("DYNX_THREADS", "1")  # a variable of settings makes the others be looked at for typing errors
    monkeypatch.setenv("DYNX_BENCH_SLOW", "dynamic=15%")
    result = cli("bench", "-m", tiny_folder, *SHORT)
    monkeypatch.setenv("DYNX_BENCH_SLOW", "15%")
    wrong = cli("bench", "-m", tiny_folder, *SHORT)

    assert (result.code, result.err) == (0, "")
    assert "DYNX_BENCH_SLOW=dynamic=15% slows an arm down on purpose" in result.out
    assert wrong.code == 2


def test_a_mistake_shows_where_and_how_near_it_was(
    cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token that isn't plain's, and the gap of plain's two best logits there."""
    from dynx.bench.arms import generation

    made = generation.own_arms

    def wrong(*arguments: Any) -> Any:
        from dataclasses import replace

        def last(arm: Any) -> Any:
            def run(case: Any) -> Any:
                outcome = arm.run(case)
                return replace(outcome, output=(*outcome.output[:3], outcome.output[3] ^ 1, *outcome.output[4:]))

            return replace(arm, run=run)

        arms = made(*arguments)
        return [*arms[:-1], last(arms[-1])]

    monkeypatch.setattr(generation, "own_arms", wrong)
    document = cli("bench", "-m", tiny_folder, *SHORT, "--json").document
    found = document["arms"][-1]["facts"]["first_mismatch"]

    assert (found["case"], found["position"]) == (0, 3)
    assert found["expected"] != found["got"]
    assert found["logit_gap"] > 0
