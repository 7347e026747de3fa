"""Policies scored on recordings: by hand where that can be, against the oracles everywhere, and through the command."""

from __future__ import annotations

import json
import math
import random
from typing import TYPE_CHECKING, Any

import pytest
from support import keys, pipelines
from support.commands import spawn
from support.exits import EPS, LESSONS, keep

from dynx import schemas
from dynx.bench import replay
from dynx.errors import UsageError
from dynx.speculation import simulate as walking
from dynx.speculation.simulate import Guess, Recording

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    from dynx.early_exit.calibrate import Findings

    Cli = Callable[..., Result]


def curve(**seconds: float) -> dict[str, Any]:
    """A cost curve by width, whatever the context."""
    return {
        "reference_context": 16,
        "seconds_per_context_token": 0.0,
        "seconds_by_width": {name.removeprefix("w"): value for name, value in seconds.items()},
    }


def texts_head(**changes: Any) -> dict[str, Any]:
    """Passes of a second whatever their width, drafts of a tenth."""
    known = {"reliability": {"draft": {"weights": [0.0, 1.0, 0.0], "typical": 0.6, "n": 0}}, "rate": None, "grant": 2.0}
    return {
        "schema": "dynx.recording/1",
        "task": "generate",
        "created": "2026-01-01T00:00:00+00:00",
        "header": {"model": "m"},
        "costs": {
            "target": curve(w1=1.0, w32=1.0),
            "complete": None,
            "draft": {"draft": curve(w1=0.1, w64=0.1)},
            "overhead": {},
        },
        "costs_from": "measured",
        "dynamic": None,
        "cold": known,
        **changes,
    }


def text_lines(kept: int = 2, tokens: int = 30) -> list[str]:
    """A text whose drafts stay `kept` at a time; the drafter is sure of those and of no others."""
    guesses = [Guess((3.0,) * min(kept, tokens - t) + (-3.0,) * 4, min(kept, tokens - t)) for t in range(tokens)]
    return list(walking.dump([Recording(5, {"draft": guesses})]))


def exits_head(**changes: Any) -> dict[str, Any]:
    """Three places, a second each, and looks for nothing; of ten inputs two may be wrong."""
    return {
        "schema": "dynx.recording/1",
        "task": "classify",
        "created": "2026-01-01T00:00:00+00:00",
        "header": {"model": "m"},
        "places": [1, 2, 3],
        "plain": 3.0,
        "costs": {"reach": [1.0, 2.0], "full": 3.0, "check": [0.0, 0.0]},
        "share": 0.8,
        "confidence": 0.95,
        "provable": 0.2,
        "thresholds": [0.9, None],
        **changes,
    }


ROWS = [([0.95, 0.99], [1, 1, 1])] * 4 + [([0.5, 0.9], [0, 1, 1])] * 4 + [([0.2, 0.3], [0, 0, 1])] * 2


def exit_lines(rows: list[tuple[list[float], list[int]]] = ROWS) -> list[str]:
    """A line for each input."""
    return [json.dumps({"scores": scores, "right": right}) for scores, right in rows]


def scored(found: replay.Scores, name: str) -> replay.Score:
    """One of them."""
    score = found.of(name)
    assert score is not None
    return score


def test_drafting_by_hand() -> None:
    """Two drafts that always stay make three tokens of a pass and two tenths; both oracles can do no better."""
    found = replay.score(texts_head(), text_lines(), ["plain", "draft=2", "draft=1"])

    assert scored(found, "plain").speedup == 1
    assert scored(found, "draft=2").speedup == pytest.approx(3 / 1.2)
    assert scored(found, "draft=1").speedup == pytest.approx(2 / 1.1)
    assert scored(found, "draft=2").mean == pytest.approx(3)
    assert scored(found, replay.INFORMED).speedup == pytest.approx(3 / 1.2)
    assert scored(found, "draft=1").of_oracle == pytest.approx(2 / 1.1 / (3 / 1.2))
    assert scored(found, replay.CLAIRVOYANT).of_oracle >= 1


def test_unasked_the_best_static_length_is_found() -> None:
    """Plain, the best of all draft lengths, and dynamic from nothing; with a profile also as the profile has it."""
    cold = texts_head()["cold"]
    names = [s.policy for s in replay.score(texts_head(), text_lines(3)).scores]
    known = [
        s.policy for s in replay.score(texts_head(dynamic={**cold, "rate": 2.0, "grant": 8.0}), text_lines()).scores
    ]

    assert names == ["plain", "draft=3", "cold", replay.INFORMED, replay.CLAIRVOYANT]
    assert known == ["plain", "draft=2", "dynamic", "cold", replay.INFORMED, replay.CLAIRVOYANT]


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_no_policy_is_better_than_clairvoyant(kept: int) -> None:
    """Whatever the text is like, and the informed oracle is at least as good as everything that is known."""
    found = replay.score(texts_head(), text_lines(kept))

    for score in found.scores:
        assert score.speedup <= scored(found, replay.CLAIRVOYANT).speedup + 1e-9
        if score.policy != replay.CLAIRVOYANT:
            assert score.of_oracle <= 1 + 1e-9


def test_leaving_by_hand() -> None:
    """The rule as recorded, one threshold for all, one place for all: cost, mean place, how many are wrong, if too many."""
    found = replay.score(exits_head(), exit_lines(), ["plain", "dynamic", "threshold=0.9", "at=1", "at=2", "at=3"])
    seen = {s.policy: (round(s.speedup, 3), s.mean, s.wrong, s.within) for s in found.scores[:6]}

    assert seen == {
        "plain": (1.0, 3.0, 0, True),
        "dynamic": (round(30 / 22, 3), 2.2, 0, True),
        "threshold=0.9": (round(30 / 18, 3), 1.8, 0, True),
        "at=1": (3.0, 1.0, 6, False),
        "at=2": (1.5, 2.0, 2, True),
        "at=3": (1.0, 3.0, 0, True),
    }


def test_oracles_of_exits_by_hand() -> None:
    """The best rule over the scores leaves four at the first place and all others at the second, two of them wrong.

    Hindsight of each input lets two of the slowest leave at once.
    """
    found = replay.score(exits_head(), exit_lines(), ["plain"])

    assert scored(found, replay.INFORMED).speedup == pytest.approx(30 / 16)
    assert scored(found, replay.CLAIRVOYANT).speedup == pytest.approx(30 / (4 * 1 + 4 * 2 + 2 * 1))


def test_the_oracle_of_many_inputs_is_not_fitted_to_them() -> None:
    """Scores that tell nothing make no rule: luck on the others isn't luck on the inputs held out, which count.

    Scores that tell all give what is best by hand, folds or not.
    """
    rng = random.Random(4)
    blind = [([rng.random(), rng.random()], [int(rng.random() < 0.7), int(rng.random() < 0.7), 1]) for _ in range(300)]
    nothing = replay.score(exits_head(provable=0.02), exit_lines(blind), ["plain"])
    telling = replay.score(exits_head(), exit_lines(ROWS * 30), ["plain"])

    assert scored(nothing, replay.INFORMED).speedup < 1.08
    assert scored(telling, replay.INFORMED).speedup == pytest.approx(30 / 16, rel=0.03)


def test_what_could_be_certified_bounds_the_oracle() -> None:
    """Where a certificate allows no error, the informed oracle makes none."""
    found = replay.score(exits_head(provable=0.0), exit_lines(), ["plain"])

    assert scored(found, replay.INFORMED).speedup == pytest.approx(30 / 18)


def test_pictures_are_scored_against_the_authors_run() -> None:
    """Plain is the pipeline's own run and takes what that takes; the whole grid is one more number of steps."""
    head = exits_head(task="draw", places=[6, 12, 50], plain=6.0)
    found = replay.score(head, exit_lines(), ["plain", "at=6", "at=50"])

    assert [(s.speedup, s.wrong) for s in found.scores[:3]] == [(1.0, 0), (6.0, 6), (2.0, 0)]


OWN = """
class Greedy:
    def __init__(self, costs): self.costs = costs
    def choose(self, prospects, context, room): return "draft"
    def another(self, signals): return len(signals) < 1
    def submit(self, signals): return len(signals)
    def learn(self, done): pass
def leave(scores): return 0 if scores[0] > 0.9 else 1
def broken(*_): raise ZeroDivisionError("by hand")
number = 3
"""


def test_a_policy_of_ones_own(tmp_path: Path) -> None:
    """A class that drafts, a function that leaves; what fails in it is told as its failure."""
    file = tmp_path / "own.py"
    file.write_text(OWN, encoding="utf-8")
    greedy = replay.score(texts_head(), text_lines(), [f"{file}:Greedy", "draft=1"]).scores
    leaving = replay.score(exits_head(), exit_lines(), [f"{file}:leave"]).scores[0]

    assert greedy[0].speedup == greedy[1].speedup
    assert (leaving.mean, leaving.wrong) == (1.6, 2)
    for name in ("broken", "number", "missing"):
        for head, lines in ((texts_head(), text_lines()), (exits_head(), exit_lines())):
            with pytest.raises(UsageError, match=rf"--policy .*own\.py:{name}"):
                replay.score(head, lines, [f"{file}:{name}"])
    with pytest.raises(UsageError, match="can't be read"):
        replay.score(texts_head(), text_lines(), [f"{tmp_path}/none.py:x"])


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("clever", "isn't known here"),
        ("draft=0", "is no number from 1"),
        ("draft=x", "is no number from 1"),
        ("lookup=2", "isn't known here"),
        ("dynamic", "made without a profile"),
    ],
)
def test_policies_that_drafting_lacks(policy: str, message: str) -> None:
    """Told by name, with those that there are."""
    with pytest.raises(UsageError, match=message):
        replay.score(texts_head(), text_lines(), [policy])


@pytest.mark.parametrize(
    ("policy", "message"),
    [("cold", "isn't known here"), ("at=4", "recorded are 1, 2, 3"), ("threshold=nan", "is no number from 0")],
)
def test_policies_that_leaving_lacks(policy: str, message: str) -> None:
    """The same for exits."""
    with pytest.raises(UsageError, match=message):
        replay.score(exits_head(), exit_lines(), [policy])


@pytest.mark.parametrize(
    ("head", "lines"),
    [
        (texts_head(costs={}), text_lines()),
        (texts_head(cold={"reliability": {}}), text_lines()),
        (texts_head(), []),
        (texts_head(), ["nonsense"]),
        (exits_head(), []),
        (exits_head(), ["[]"]),
        (exits_head(), exit_lines([([0.5], [1, 1])])),
        (exits_head(thresholds=[0.5]), exit_lines()),
        (exits_head(plain=None), exit_lines()),
    ],
)
def test_a_damaged_recording_is_told(head: dict[str, Any], lines: list[str]) -> None:
    """Parts that are missing, of another kind or don't fit each other: one sentence and no traceback."""
    with pytest.raises(UsageError, match=r"recording|fit"):
        replay.score(head, lines)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b"[1]", b'{"schema": "dynx.bench/1"}'])
def test_another_file_is_no_recording(content: bytes, tmp_path: Path) -> None:
    """What it is, and how one is made."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"not 'dynx\.recording/1'") as caught:
        replay.read(path)
    assert caught.value.hint == "dynx bench -m MODEL --record FILE makes one"
    with pytest.raises(UsageError, match="can't be read"):
        replay.read(tmp_path / "nothing")


def recorded(path: Path) -> list[dict[str, Any]]:
    """All lines, by their schemas."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    schema, part = ("replay", "position") if lines[0]["task"] == "generate" else ("recording", "row")
    place = (f"dynx.{schema}/1", ("$defs", part))
    assert [why for line in lines if (why := keys.complaint(line, None if "schema" in line else place))] == []
    return lines


def test_texts_are_recorded_and_replayed(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """A recording of the drafters' guesses, without a profile and with one; what was kept is what decoding keeps."""
    file = tmp_path / "rec.jsonl"
    words = (
        "bench",
        "-m",
        tiny_folder,
        "--prompts",
        2,
        "-n",
        24,
        "--draft",
        "draft,lookup".replace("draft,", f"{tiny_folder}/drafter,"),
    )
    made = cli(*words, "--record", file)
    lines = recorded(file)
    plain = cli("bench", "--replay", file)

    assert (made.code, made.out) == (0, "")
    assert made.err == f"recorded tiny in {file}; dynx bench --replay {file} scores policies on it\n"
    assert (lines[0]["task"], lines[0]["dynamic"], lines[0]["costs_from"]) == ("generate", None, "measured")
    assert [line["drafters"] for line in lines[1:] if "schema" in line] == [["draft", "lookup"]] * 2
    assert any(kept for line in lines[1:] if "schema" not in line for _, kept in line.values())
    assert all(schemas.complaint(line) is None for line in lines[1:] if "schema" in line)
    assert (plain.code, plain.err) == (0, "")
    assert plain.out.splitlines()[0].split() == ["policy", "of", "plain", "of", "oracle", "tokens/pass"]
    assert "cold reaches" in plain.out

    cli("calibrate", "-m", tiny_folder, "--budget", 5)
    cli("bench", "-m", tiny_folder, "--prompts", 2, "-n", 24, "--record", file)
    document = cli("bench", "--replay", file, "--policy", "dynamic", "--policy", "lookup=3", "--json").document

    assert recorded(file)[0]["costs_from"] == "profile"
    assert schemas.complaint(document) is None
    assert [s["policy"] for s in document["scores"]][:2] == ["dynamic", "lookup=3"]


def test_labels_are_recorded_and_replayed(
    cli: Cli, easy: Path, findings: Findings, tmp_path: Path, alone: None
) -> None:
    """Scores and agreement at every exit; dynamic leaves where classify leaves, and without exits there is nothing to record."""
    data, file = tmp_path / "texts.txt", tmp_path / "rec.jsonl"
    data.write_text("".join(f"{text}\n" for text in LESSONS[:60]), encoding="utf-8")
    words = ("bench", "-m", easy, "--data", data, "--max-disagreement", EPS)
    none = cli(*words, "--record", file)
    keep(findings)
    made = cli(*words, "--record", file)
    lines = recorded(file)
    document = cli("bench", "--replay", file, "--json").document
    said = [
        json.loads(line)
        for line in cli(
            "classify", "-m", easy, "--max-disagreement", EPS, "--jsonl", stdin=data.read_bytes()
        ).out.splitlines()
    ]

    assert (none.code, made.code) == (2, 0)
    assert "there are no exits to record" in none.err
    assert len(lines) == 61
    assert schemas.complaint(document) is None
    (dynamic,) = [s for s in document["scores"] if s["policy"] == "dynamic"]
    assert dynamic["mean"] == pytest.approx(sum(one["exit"] or one["layers"] for one in said) / 60, abs=0.02)
    assert dynamic["speedup"] > 1
    assert math.isfinite(dynamic["of_oracle"])


def test_pictures_are_recorded_and_replayed(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each number of steps would have made of each picture; the profile that it takes keeps to its schemas."""
    folder, file, prompts = tmp_path / "tiny", tmp_path / "rec.jsonl", tmp_path / "prompts.txt"
    pipelines.stable_diffusion().save_pretrained(folder)
    prompts.write_text("a red cat\nblue moon\nthe apple\nmoon and cat\n", encoding="utf-8")
    pipelines.hurry(monkeypatch)
    common = ("-m", folder, "--data", prompts, "--quality", 0.1)
    none = cli("bench", *common, "--inputs", 2, "--record", file)
    calibrated = cli("calibrate", *common, "--budget", 600, "--json")
    assert calibrated.code == 0, calibrated.err
    profile = calibrated.document
    made = cli("bench", *common, "--inputs", 3, "--record", file)
    lines = recorded(file)
    document = cli("bench", "--replay", file, "--json").document

    assert (none.code, made.code) == (2, 0)
    assert "there are no steps to record" in none.err
    assert schemas.complaint(profile) is None
    assert lines[0]["places"][:2] == [6, 12]
    assert [len(line["ssim"]) for line in lines[1:]] == [3, 3, 3]
    assert schemas.complaint(document) is None
    drawn = cli("draw", "-m", folder, "a red cat", "--quality", 0.1, "-o", tmp_path / "x.png", "--json").document
    assert schemas.complaint(drawn) is None
    assert drawn["guarantee"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--record", "x", "--replay", "x"], "exclude each other"),
        (["--policy", "plain"], "there is no --replay"),
        (["--replay", "x", "--min-speedup", "2"], "--replay measures none"),
        (["--record", "x", "--export", "json:x"], "--record measures none"),
        (["--record", "missing/x"], "there is no folder missing"),
        (["--record", "x"], "a recording is of one model"),
        (["-m", "story", "--record", "x", "--temperature", "1"], "records greedy decoding"),
        (["-m", "story", "--record", "x", "--draft", "none"], "there is nothing to draft with"),
    ],
)
def test_what_does_not_go_together(
    cli: Cli, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a usage error, and leaves no file."""
    monkeypatch.chdir(tmp_path)
    result = cli("bench", *options)

    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert not (tmp_path / "x").exists()


def test_replaying_loads_no_tensor_library(tmp_path: Path) -> None:
    """A recording is scored in a moment."""
    file = tmp_path / "rec.jsonl"
    file.write_text("\n".join([json.dumps(texts_head()), *text_lines()]), encoding="utf-8")
    code = (
        "import sys\nfrom dynx.cli.main import run\nassert run(sys.argv[1:]) == 0\nassert 'torch' not in sys.modules\n"
    )
    process = spawn("bench", "--replay", file, code=code)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (0, b"")
    assert b"informed oracle" in out
