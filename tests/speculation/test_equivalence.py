"""Scoring an answer again on the plain model: right answers pass, forged ones are found at the right place."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import PROMPT, environment, finish, spawn

from dynx import schemas
from dynx.cli.generate import verify as command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]

WAYS = {
    "greedy": (["--draft", "lookup"], "greedy", "identical"),
    "penalty": (["--repetition-penalty", 1.2], "greedy", "identical"),
    "seed": (["--temperature", 0.9, "--top-k", 40, "--seed", 3], "seed", "identical"),
    "chance": (["--temperature", 1.0, "--top-p", 0.9], "chance", "plausible"),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_written_is_confirmed(cli: Cli, tiny_folder: Path, way: str) -> None:
    """Each way of choosing tokens is judged by its own rule, and dynx's answers pass; the JSON and the line agree."""
    options, rule, verdict = WAYS[way]
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 24, "--verify", "--json", *options)
    found = result.document["verification"]
    assert result.code == 0
    assert (found["rule"], found["verdict"]) == (rule, verdict)
    assert found["tokens"] == 24 or (rule == "chance" and 0 < found["tokens"] < 24)  # chance may end it early
    assert (found["differences"], found["first_difference"]) == (0, None)
    assert result.err.startswith("verified: ")
    assert (found["deviation"] is None) == (rule != "chance")


@pytest.mark.parametrize("way", ["greedy", "seed"])
def test_a_forged_token_is_found(cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """One token exchanged after the fact: its position, the plain model's choice and the margin are told, with exit code 3."""
    from dynx.speculation import equivalence as module

    honest = module.verify
    taken: list[int] = []

    def forge(target: Any, request: Any, tokens: Any) -> Any:
        taken[:] = tokens
        forged = [*tokens]
        forged[5] = (forged[5] + 1) % target.vocab
        return honest(target, request, forged)

    monkeypatch.setattr(module, "verify", forge)
    options = ["--temperature", 0.9, "--seed", 3] if way == "seed" else WAYS[way][0]
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 12, "--verify", "--json", *options)
    first = result.document["verification"]["first_difference"]
    assert result.code == 3
    assert result.document["verification"]["verdict"] == "different"
    assert (first["position"], first["plain_token_id"]) == (5, taken[5])
    assert first["margin_logits"] > 0
    assert "differs at token 6 of 12" in result.err
    assert result.error["message"] == "--verify: the answer isn't plain decoding's"


def test_an_unlikely_sample_is_told(cli: Cli, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text said to be sampled by chance that this model would hardly sample fails."""
    from dynx.speculation import equivalence as module

    honest = module.verify
    monkeypatch.setattr(module, "verify", lambda target, request, tokens: honest(target, request, [7] * len(tokens)))
    result = cli("generate", "-m", tiny_folder, PROMPT, "-n", 40, "--verify", "--json", "--temperature", 0.5)
    assert result.code == 3
    assert result.document["verification"]["verdict"] == "implausible"


def test_ties_are_no_broken_promise() -> None:
    """A difference smaller than what rounding does is told as a tie; a larger one, or an impossible token, isn't."""
    from dynx.speculation.equivalence import Difference, Verification

    first = Difference(3, 1, 2, 0.001, 0.002)
    found = Verification(9, "greedy", 1, first, 0.0, -1.0, None)
    assert found.verdict == "rounding"
    assert replace(found, first=replace(first, margin=0.1)).verdict == "different"
    assert replace(found, rule="chance", first=replace(first, margin=float("inf"))).verdict == "implausible"
    command.check([found])


@pytest.mark.parametrize("name", ["generate", "classify", "draw"])
@pytest.mark.usefixtures("alone")
def test_a_dry_run_loads_no_library(name: str) -> None:
    """--dry-run says each knob's value, reason and origin, as lines or one document, reads no stdin, and loads no torch."""
    code = (
        "import sys; from dynx.cli.main import run; code = run(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'diffusers'} & set(sys.modules); sys.exit(code)"
    )
    env = environment(DYNX_THREADS="1")
    plain, document = (
        finish(spawn(name, "--dry-run", "--profile", "none", *more, code=code, env=env)) for more in ([], ["--json"])
    )
    assert (plain.code, plain.err, document.code, document.err) == (0, "", 0, "")
    body = json.loads(document.out)
    assert schemas.complaint(body) is None
    assert (body["schema"], body["command"], body["profile"]) == ("dynx.plan/1", name, None)
    assert body["decisions"]["threads"] == {"value": 1, "reason": "asked for", "origin": "DYNX_THREADS"}
    assert body["decisions"]["device"]["origin"] == "decided"
    assert "threads " in plain.out
    assert "(asked for; DYNX_THREADS)" in plain.out
