"""What is kept of a model is used for its weights only: after an edit that no sample sees, new answers and no old promise."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dynx import shipped
from dynx.diffusion import backends as drawing
from dynx.diffusion import setup as diffusion_setup
from dynx.diffusion.plan import ImageGeneratorRequest
from dynx.early_exit import setup as early_exit_setup
from dynx.early_exit.plan import ClassifierRequest
from dynx.errors import DynxError, ModelError, NoProfileError, UsageError
from dynx.runtime import hashing
from dynx.runtime.costs import CostCurve
from dynx.runtime.hashing import model_hash
from dynx.runtime.loading import DRAFTER_FOLDER
from dynx.runtime.profile import Profile
from dynx.runtime.profile_store import ProfileStore, profiles_folder
from dynx.runtime.weights import weights_hash
from dynx.speculation import setup as speculation_setup
from dynx.speculation.plan import GeneratorRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.commands import Result

    Cli = Callable[..., Result]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of OpenVINO's and torch's own tracing
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO isn't installed")

PROMPT = "Once upon a time"
COUNT = 12
SETUPS: dict[str, Any] = {"story": speculation_setup, "mood": early_exit_setup, "emoji": diffusion_setup}
REQUESTS: dict[str, Any] = {"story": GeneratorRequest, "mood": ClassifierRequest, "emoji": ImageGeneratorRequest}
FILES = {"story": "model.safetensors", "mood": "model.safetensors", "emoji": "unet/diffusion_pytorch_model.safetensors"}


def copied(name: str, folder: Path) -> Path:
    """A shipped model as somebody's own."""
    return Path(shutil.copytree(shipped.HERE / name, folder / name, copy_function=shutil.copy))


def edited(name: str, folder: Path) -> None:
    """Zero a row of the largest tensor, in place, that the hash of samples doesn't see."""
    path, before = folder / FILES[name], model_hash(folder, ["drafter"])
    row = answer_begins(folder) if name == "story" else None
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        sampled = list(hashing._spans(file, path.stat().st_size, path.name))
        start, end, rows = max(
            ((*entry["data_offsets"], entry["shape"][0]) for entry in header.values()), key=lambda e: e[1] - e[0]
        )
        width = (end - start) // rows
        for at in (
            range(8 + length + start, 8 + length + end, width) if row is None else [8 + length + start + row * width]
        ):
            if all(stop <= at or at + width <= first for first, stop in sampled):
                file.seek(at)
                file.write(bytes(width))
                break
    assert model_hash(folder, ["drafter"]) == before
    assert row is None or answer_begins(folder) != row


def answer_begins(folder: Path) -> int:
    """The token that transformers' greedy answer begins with."""
    return answered(folder)[0]


def ids(folder: Path) -> list[int]:
    """The prompt's."""
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"])


def answered(folder: Path) -> list[int]:
    """What transformers' own greedy decoding writes with the weights that lie in the folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = torch.tensor([ids(folder)])
    out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=COUNT, do_sample=False)
    return [int(token) for token in out[0, given.shape[1] :]]


def profiled(folder: Path, weights: str | None, draft: str = "none", backend: str = "openvino") -> str:
    """Store a profile that names a backend, measured on such weights; returns its id."""
    key = speculation_setup.make_plan(GeneratorRequest(str(folder), profile="none", draft=draft)).key
    curve = CostCurve.fit([(n, c, 0.001 * n) for n in (1, 2, 8) for c in (16, 64)]).to_json()
    profile = Profile(
        key=key,
        model_name=folder.name,
        created="2026-01-01T00:00:00+00:00",
        versions={"torch": torch.__version__},
        device={"name": "a test"},
        measured={"target": curve, "draft": {}, "overhead": {}},
        fitted={"reliability": {}, "tokens_per_second": 900.0, "origins": [], "lookup": False, "backend": backend},
        evidence={},
        decision={"summary": "made up"},
        weights=weights,
    )
    ProfileStore(profiles_folder(), pytest.fail).save(profile)
    return key.id


@needs_openvino
def test_a_converted_copy_of_other_weights(cli: Cli, tmp_path: Path) -> None:
    """After an edit that no sample sees the text is transformers' own with the new weights, and --verify confirms that text."""
    folder = copied("story", tmp_path)

    def written(*options: str) -> Any:
        result = cli("generate", "-m", folder, PROMPT, "-n", COUNT, "--json", "--verify", "--draft", "none", *options)
        assert result.code == 0, result.err
        return result

    old = answered(folder)
    assert written("--backend", "openvino").document["token_ids"] == old
    identity = profiled(folder, weights_hash(folder, ["drafter"]))
    kept = written().document
    assert (kept["token_ids"], kept["receipt"]["profile"]) == (old, identity)

    edited("story", folder)
    new = answered(folder)
    assert new != old
    result = written()
    assert result.document["token_ids"] == new
    assert result.document["receipt"]["profile"] is None
    assert f"profile {identity} isn't used: the weights were changed since it was measured" in result.err
    assert written("--backend", "openvino", "--profile", "none").document["token_ids"] == new
    profiled(folder, weights_hash(folder, ["drafter"]))
    assert written().document["token_ids"] == new


@needs_openvino
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verifying_reads_the_folder(cli: Cli, tmp_path: Path, dtype: str) -> None:
    """A converted model that isn't the folder's, wherever it came from, is found out by --verify: exit code 3."""
    folder = copied("story", tmp_path)
    asked = ["generate", "-m", folder, PROMPT, "-n", COUNT, "--draft", "none", "--dtype", dtype, "--verify"]
    assert cli(*asked, "--backend", "openvino").code == 0
    (converted,) = (Path(os.environ["DYNX_CACHE_DIR"]) / "openvino").iterdir()
    edited("story", folder)
    converted.rename(converted.with_name(weights_hash(folder, ["drafter"])))  # as if it were of these weights
    if dtype == "float32":
        profiled(folder, weights_hash(folder, ["drafter"]))  # what is kept is trusted, then
        result = cli(*asked)
        assert result.code == 3
        assert "verify: differs at token 1 of" in result.err
    plan = speculation_setup.make_plan(GeneratorRequest(str(folder), dtype=dtype, backend="openvino"))
    plan.profile = SimpleNamespace()  # type: ignore[assignment]  # trusts what is kept
    from dynx.runtime.backends.eager import EagerBackend
    from dynx.speculation.backends import ModelBackends, verifier

    target = ModelBackends(plan, lambda _: None, pytest.fail, None).target()
    judge = verifier(plan, target)
    assert judge is not target
    assert isinstance(judge, EagerBackend) == (dtype == "float32")
    tokens = ids(folder)
    ours, theirs = (backend.open().forward([*tokens, answer_begins(folder), 5]) for backend in (target, judge))
    assert (ours - theirs).abs().max() > 0.1 * theirs.abs().max()


@pytest.mark.parametrize("name", SETUPS)
def test_a_profile_of_other_weights_promises_nothing(alone: None, tmp_path: Path, name: str) -> None:
    """Neither a stored one nor the one that came with the model, in any task; asked for by name or required it is an error."""
    folder, module, said = copied(name, tmp_path), SETUPS[name], []

    def planned(**wish: Any) -> Any:
        said.clear()
        return module.make_plan(REQUESTS[name](str(folder), **wish), warn=said.append)

    if name == "story":
        profiled(folder, weights_hash(folder, ["drafter"]), "auto", backend="torch-eager")
    found = planned().profile
    assert found is not None
    if name != "story":  # the bundled one, as if it had been measured here
        arrays = planned().arrays
        stored = Profile(**{**vars(found), "key": planned().key, "versions": {"torch": metadata.version("torch")}})
        ProfileStore(profiles_folder(), pytest.fail).save(stored, arrays)
    assert planned(require_profile=True).profile is not None
    assert not said

    edited(name, folder)
    plan = planned()
    assert plan.profile is None
    assert [line for line in said if "the weights were changed since it was measured" in line]
    assert plan.decisions.profile.reason == "the weights were changed since it was measured"
    with pytest.raises(NoProfileError, match="weights were changed"):
        planned(require_profile=True)
    with pytest.raises((ModelError, UsageError), match="can't be used: the weights were changed"):
        planned(profile=plan.key.id)


def test_a_profile_that_names_no_weights(alone: None, tmp_path: Path) -> None:
    """Isn't used: nobody knows what it was measured on."""
    folder, said = copied("story", tmp_path), []
    (folder / speculation_setup.BUNDLED).unlink()
    identity = profiled(folder, None, "auto")
    plan = speculation_setup.make_plan(GeneratorRequest(str(folder)), warn=said.append)
    assert plan.profile is None
    assert said == [f"profile {identity} isn't used: it doesn't say which weights it was measured on"]


@pytest.mark.parametrize("name", ["story", "mood", "emoji"])
def test_bundled_profiles_are_of_the_shipped_weights(name: str, tmp_path: Path) -> None:
    """Whoever trains a shipped model anew calibrates it anew."""
    folder = shipped.HERE / name
    file = {"story": speculation_setup.BUNDLED, "mood": early_exit_setup.BUNDLED, "emoji": diffusion_setup.BUNDLED}[
        name
    ]
    assert Profile.from_json((folder / file).read_bytes()).weights == weights_hash(
        folder, [DRAFTER_FOLDER], cache=tmp_path
    )


def test_a_pipelines_kept_kernels_and_drafts(alone: None, tmp_path: Path) -> None:
    """Networks, an unfinished calibration and drafts belong to every byte of the weights."""
    from dynx.cli.draw.drafts import Asked, Draft
    from dynx.diffusion.calibrate import settings

    folder = copied("emoji", tmp_path)

    def facts() -> tuple[Any, ...]:
        plan = diffusion_setup.make_plan(ImageGeneratorRequest(model=str(folder)))
        adapter = SimpleNamespace(slot="unet", name="tiny", default_guidance=1.0, scheduler="ddim")
        pipe = SimpleNamespace(unet=torch.nn.Linear(1, 1))
        engine: Any = SimpleNamespace(adapter=adapter, pipe=pipe, start=None, control=None)
        made = drawing.build_kernels(plan, engine, ("openvino", "float32"))
        assert made is not None
        assembly: Any = SimpleNamespace(plan=plan, engine=engine, starts=(), controls=())
        return plan.key, plan.weights, made._cache, settings(assembly, ["a cat"])

    old = facts()
    assert facts() == old
    edited("emoji", folder)
    new = facts()
    assert old[0] == new[0]
    assert all(one != other for one, other in zip(old[1:], new[1:], strict=True))
    draft = Draft(Path("a.png"), "a cat", 1, Asked(), "emoji", str(old[1]))
    draft.check("emoji", str(old[1]))
    with pytest.raises(DynxError, match="other weights of emoji"):
        draft.check("emoji", str(new[1]))
