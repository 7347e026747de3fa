"""lm-evaluation-harness on dynx: the same answers as its `hf`, sample by sample.

Needs `dynx[lm-eval]`: `tests/environments/integrations.py FOLDER lm-eval`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import SENTENCES
from support.entry_points import declare

from dynx.integrations.folder import write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval isn't installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("alone"),
    pytest.mark.filterwarnings("ignore"),
]

TASK = """\
task: tales
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{target}}}}"
generation_kwargs:
  until: ["\\n\\n", "key"]
  max_gen_toks: 32
  do_sample: false
metric_list:
  - metric: exact_match
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A folder with a task of a few prompts."""
    data = tmp_path / "tales.jsonl"
    rows = [{"text": text[:cut], "target": text[cut:]} for text in SENTENCES for cut in (12, 30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "tales.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    return folder


def answers(task: Path, model: Any, **options: Any) -> list[Any]:
    """What a model answers to each sample of the task."""
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=model, tasks=["tales"], task_manager=TaskManager(include_path=str(task)), log_samples=True, **options
    )
    return [sample["resps"] for sample in found["samples"]["tales"]]


def settings(folder: Path, batch: int = 1) -> dict[str, Any]:
    """Arguments of a model."""
    return {"pretrained": str(folder), "device": "cpu", "dtype": "float32", "max_length": 128, "batch_size": batch}


@pytest.mark.parametrize("batch", [1, 3])
def test_samples_are_those_of_hf_and_take_fewer_passes(tiny_folder: Path, task: Path, batch: int) -> None:
    """In float32 every answer is the same; drafts save passes of the model, one request at a time and in batches."""
    from lm_eval.models.huggingface import HFLM

    from dynx.integrations.lm_eval import DynxLM

    calls: list[Any] = []

    class Watched(DynxLM):
        def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
            out = super()._model_generate(*args, **kwargs)
            calls.append(self.model.dynx.stats)
            return out

    attached = Watched(**settings(tiny_folder, batch), assistant=str(tiny_folder / "drafter"))
    attached.model.dynx.engine.acceptance_profile.regret_budget = 50.0
    plain = HFLM(**settings(tiny_folder, batch))
    for each in (attached, plain):  # without an end token, transformers goes on with rows that have stopped
        each.model.generation_config.eos_token_id = each.tokenizer.eos_token_id

    assert answers(task, attached) == answers(task, plain)
    assert {call.reason for call in calls} == {None}
    receipts = [receipt for call in calls for receipt in call.receipts]
    assert len(receipts) == 2 * len(SENTENCES)
    assert sum(r.target_forwards for r in receipts) < 0.9 * sum(r.tokens for r in receipts)
    assert attached.model.generate is attached.model.dynx


def test_a_folder_that_brings_dynx_along_needs_no_plugin(
    changed: Callable[..., Path], tiny_folder: Path, task: Path
) -> None:
    """`--model hf --model_args pretrained=FOLDER,trust_remote_code=True`."""
    from lm_eval.models.huggingface import HFLM

    folder = changed()
    write(folder)
    trusted = HFLM(**settings(folder), trust_remote_code=True)

    assert answers(task, trusted) == answers(task, HFLM(**settings(tiny_folder)))
    assert trusted.model.dynx.stats.reason is None


def test_the_entry_point_names_the_model_type(tmp_path: Path) -> None:
    """Releases of the harness that look for plugins find `dynx`."""
    from importlib.metadata import Distribution

    found = Distribution.at(declare(tmp_path) / "declared_by_dynx-0.dist-info").entry_points
    (point,) = found.select(group="lm_eval.models", name="dynx")

    assert point.load().__name__ == "DynxLM"
