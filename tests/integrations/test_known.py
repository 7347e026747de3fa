"""An attached language model uses its stored profile from the start, and says which."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.commands import PROMPT
from transformers import AutoModelForCausalLM, AutoTokenizer

import dynx
from dynx import shipped
from dynx.errors import DynxError
from dynx.runtime.profile import Profile, unpack
from dynx.runtime.profile_store import ProfileStore, profiles_folder
from dynx.speculation import make_plan
from dynx.speculation.plan import GeneratorRequest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("alone")


def story() -> Any:
    """The shipped model, as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(shipped.folder("story"), dtype=torch.float32).eval()


def stored(**fitted: Any) -> Profile:
    """A profile of it that was measured here: the bundled one's figures under this device's key."""
    folder = shipped.folder("story")
    assert folder is not None
    profile, _ = unpack((folder / "drafts.json").read_bytes())
    plan = make_plan(GeneratorRequest(model=str(folder), profile="none"))
    kept = replace(profile, key=plan.key, weights=plan.weights, fitted={**profile.fitted, **fitted}, arrays=None)
    ProfileStore(profiles_folder(), lambda _: None).save(kept)
    return kept


def test_a_bundled_profile_is_a_prior() -> None:
    """Its acceptance and ratios of costs are used, its rate isn't."""
    model = dynx.attach(story())
    profile = model.dynx.profile
    assert (profile.value != "none", profile.reason) == (True, "came with the model")
    assert model.dynx.engine.acceptance_profile.costs.foreign


def test_a_stored_profile_is_used_as_measured() -> None:
    """Costs and acceptance, and lookup only where calibration found it worth having; the model's blocks stay as they are."""
    kept = stored(exit_layers=2, lookup=False, origins=["self"])
    model = dynx.attach(story())
    assert model.dynx.profile.value == kept.key.id
    assert model.dynx.profile.reason.startswith("measured ")
    engine = model.dynx.engine
    assert engine.acceptance_profile.from_profile
    assert (engine.drafters.exit_layers, engine.drafters.lookup) == (None, False)
    assert "doesn't draft with its own first layers" in model.dynx.profile.reason
    assert engine.acceptance_profile.regret_budget == 0

    ids = AutoTokenizer.from_pretrained(shipped.folder("story"))(PROMPT, return_tensors="pt").input_ids
    want = story().generate(ids, max_new_tokens=24, do_sample=False)
    assert model.generate(ids, max_new_tokens=24, do_sample=False).tolist() == want.tolist()
    assert model.dynx.stats.reason is None


def test_trees_are_verified_where_calibration_found_them_worth_it() -> None:
    """On PyTorch alone; the text is the same, and so are returned scores."""
    ids = AutoTokenizer.from_pretrained(shipped.folder("story"))(PROMPT, return_tensors="pt").input_ids
    want = story().generate(ids, max_new_tokens=40, do_sample=False)
    written = want[0].tolist()
    stored(trees=True, own_candidates={str(a): [b, 5, 9] for a, b in pairwise(written)})
    model = dynx.attach(story())
    engine = model.dynx.engine
    assert engine.drafters.trees
    assert engine.next_tokens.after(written[-2]) == (written[-1], 5, 9)
    engine.acceptance_profile.regret_budget = 8.0
    for _ in range(2):
        assert model.generate(ids, max_new_tokens=40, do_sample=False).tolist() == want.tolist()
    assert model.dynx.stats.receipts[0].tree_forwards
    out = model.generate(ids, max_new_tokens=40, do_sample=False, return_dict_in_generate=True, output_scores=True)
    assert out.sequences.tolist() == want.tolist()
    assert len(out.scores) == 40


def test_times_of_another_backend_are_a_prior() -> None:
    """What OpenVINO's passes take says little about PyTorch's; the reason tells."""
    pytest.importorskip("openvino", reason="without it such a profile isn't used at all")
    stored(backend="openvino")
    model = dynx.attach(story())
    assert "its times are OpenVINO's" in model.dynx.profile.reason
    engine = model.dynx.engine
    assert engine.acceptance_profile.costs.foreign


def test_without_a_profile_the_reason_is_told(tmp_path: Path) -> None:
    """Not wanted, none stored, another precision, no folder; and an error for one that isn't there."""
    assert dynx.attach(story(), profile="none").dynx.profile.reason == "not wanted"
    half = AutoModelForCausalLM.from_pretrained(shipped.folder("story"), dtype=torch.bfloat16)
    assert "it was measured in float32, not bfloat16" in dynx.attach(half).dynx.profile.reason
    model = story()
    model.config._name_or_path = model.name_or_path = ""
    assert dynx.attach(model).dynx.profile.reason == "the model wasn't loaded from a folder or the hub"
    model = story()
    model.config._name_or_path = model.name_or_path = str(tmp_path / "gone")
    assert "can't be read" in dynx.attach(model).dynx.profile.reason
    with pytest.raises(DynxError, match="no profile"):
        dynx.attach(story(), profile="0123456789abcdef")
