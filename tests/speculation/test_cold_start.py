"""A first run, without anything measured: it does what plain decoding does until a draft is sure to pay, and loads no more."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import finish, spawn
from support.models import Clock, TimedBackend, perturbed, tiny

from dynx.runtime.profile import Profile
from dynx.runtime.weights import weights_hash
from dynx.speculation import assemble, make_plan, setup
from dynx.speculation.drafters.late import MAX_LOADING_SHARE, LateDrafter
from dynx.speculation.engine import UNPROFILED_REGRET_BUDGET_PASSES, AcceptanceProfile, Drafters, Engine
from dynx.speculation.plan import GeneratorRequest
from dynx.speculation.setup import acceptance_profile_of
from dynx.speculation.types import Request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TALE = "Once upon a time"

MODULES = """
import sys
from dynx.cli.main import run
code = run(sys.argv[1:])
sys.stderr.write("\\n".join(sorted(name for name in sys.modules if not name.startswith("dynx.cli"))))
sys.exit(code)
"""


def test_the_first_command_does_what_plain_does(alone: None) -> None:
    """`story` writes 60 tokens in as many passes as plain decoding, without a draft, from modules that plain imports too."""
    plain = finish(spawn("generate", TALE, "-n", 60, "--json", "--plain", code=MODULES))  # which keeps the tokenizer
    cold = finish(spawn("generate", TALE, "-n", 60, "--json", code=MODULES))

    assert (cold.code, plain.code) == (0, 0)
    ours, theirs = cold.document["receipt"], plain.document["receipt"]
    assert cold.document["text"] == plain.document["text"]
    assert ours["target_forwards"] == theirs["target_forwards"]
    assert ours["drafters"] == {}
    more = set(cold.err.splitlines()) - set(plain.err.splitlines())
    assert not {name for name in more if not name.startswith(("dynx.", "encodings."))}, "of other libraries"


def test_storys_profile_comes_with_it(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fits these weights and this precision on any machine, keeps the draft model unloaded, and promises no speed."""
    monkeypatch.setattr(setup, "load_drafter", lambda *_: pytest.fail("the draft model is loaded"))
    assembly = assemble(make_plan(GeneratorRequest(threads=1)), put_off=True)
    plan, engine = assembly.plan, assembly.engine

    assert plan.bundled
    assert plan.own_profile is None
    assert assembly.decisions.profile.reason == "came with the model"
    assert "plain decoding, unless the text repeats itself" in assembly.decisions.draft.reason
    assert (engine.drafters.model, engine.drafters.late, engine.drafters.lookup) == (None, None, True)
    known = engine.acceptance_profile
    assert known.costs.foreign
    assert (known.from_profile, known.rate, known.regret_budget) == (False, None, 0.0)
    assert known.model_for("lookup", greedy=True).observed > 100


def test_what_the_user_says_comes_before_a_bundled_profile(alone: None, tmp_path: Path) -> None:
    """Drafters asked for by name and a text to look up in are loaded and tried, --profile none and --plain know of none."""
    assert not make_plan(GeneratorRequest(draft="lookup")).bundled
    assert not make_plan(GeneratorRequest(profile="none")).bundled
    assert not make_plan(GeneratorRequest(plain=True)).bundled
    assert (
        assemble(make_plan(GeneratorRequest(draft="lookup", threads=1))).engine.acceptance_profile.regret_budget
        == UNPROFILED_REGRET_BUDGET_PASSES
    )
    text = tmp_path / "tale.txt"
    text.write_text(TALE, encoding="utf-8")
    plan = make_plan(GeneratorRequest(lookup=text, threads=1))
    assert not plan.bundled
    assert assemble(plan).engine.acceptance_profile.regret_budget == UNPROFILED_REGRET_BUDGET_PASSES


def test_a_bundled_profile_that_is_damaged_counts_as_none(alone: None, changed: Callable[..., Path]) -> None:
    """Its contents are tried as any other's: one warning, and the run goes on without."""
    folder = changed(drafter=True)
    key = make_plan(GeneratorRequest(str(folder), profile="none")).key
    weights = weights_hash(folder, ["drafter"])
    away = replace(key, device="elsewhere-cpu-64t")
    text = Profile(
        away, "tiny", "2026-01-01T00:00:00+00:00", {}, {}, {"target": 5}, {}, {}, {"summary": "x"}, weights=weights
    ).to_json()
    (folder / setup.BUNDLED).write_text(text, encoding="utf-8")
    heard: list[str] = []
    plan = make_plan(GeneratorRequest(str(folder)), warn=heard.append)
    assert plan.bundled
    assembly = assemble(plan, warn=heard.append)
    assert len(heard) == 1
    assert "can't be used" in heard[0]
    assert assembly.plan.profile is None
    assert assembly.decisions.profile.value == "none"
    assert not assembly.engine.acceptance_profile.costs.foreign


def test_an_unmeasured_draft_model_is_put_off(alone: None, tiny_folder: Path) -> None:
    """Where nobody asked for it; asked for, or for a command that measures it, it is loaded at once."""
    late = assemble(make_plan(GeneratorRequest(str(tiny_folder), threads=1)), put_off=True)
    assert late.engine.drafters.model is None
    assert late.engine.drafters.late is not None
    assert "isn't loaded before the work is long enough" in late.decisions.draft.reason
    assert late.engine.drafters.late.load().vocab == late.engine.target.vocab

    assert assemble(make_plan(GeneratorRequest(str(tiny_folder), threads=1))).engine.drafters.model is not None
    asked = GeneratorRequest(str(tiny_folder), draft=str(tiny_folder / "drafter"), threads=1)
    assert assemble(make_plan(asked), put_off=True).engine.drafters.model is not None


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_it_is_loaded_when_the_work_is_long_enough(seconds: float) -> None:
    """In the middle of a text, once its loading is a hundredth of the time so far; what is written stays the same."""
    clock = Clock()
    target, drafter = TimedBackend(tiny("llama"), clock), TimedBackend(perturbed(tiny("llama")), clock, 0.1)
    request = Request([7, 30, 2, 51, 18], 100)
    loaded: list[float] = []

    def load() -> Any:
        loaded.append(clock())
        return drafter

    began = clock()
    engine = Engine(target, Drafters(lookup=True, late=LateDrafter(load, seconds, began, clock)), clock=clock)
    engine.acceptance_profile = AcceptanceProfile(regret_budget=0.0)
    run = engine.start(request)
    tokens = [token.id for token in run]
    plain = [token.id for token in Engine(target, Drafters(lookup=False), clock=clock).start(request)]

    assert tokens == plain
    pass_seconds = run.rounds[0].seconds
    due = seconds / MAX_LOADING_SHARE
    if due > 100 * pass_seconds:
        assert loaded == []
    else:
        (when,) = loaded
        assert due <= when - began <= due + 3 * pass_seconds
        assert engine.drafters.model is drafter
        assert engine.drafters.late is None


def test_another_machines_costs_are_ratios() -> None:
    """The first plain pass scales them all, and the first pass of a width takes its figure's place."""
    profile = make_plan(GeneratorRequest()).profile or pytest.fail("story has none")
    costs = acceptance_profile_of(profile, foreign=True).costs
    ratio = costs.target(2) / costs.target(1)
    costs.adopt(50.0, costs.target.reference)
    assert costs.target(1, costs.target.reference) == pytest.approx(50.0)
    assert costs.target(2) / costs.target(1) == pytest.approx(ratio)
    costs.target.observe(2, costs.target.reference, 75.0)
    assert costs.target(2, costs.target.reference) == pytest.approx(75.0)
