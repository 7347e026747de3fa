"""Classifiers on disk whose exits are worth something, and a calibration whose outcome doesn't hang on this machine's clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dynx.early_exit import assemble, exit_fitting, make_plan
from dynx.early_exit import calibrate as learning
from dynx.early_exit.plan import ClassifierRequest
from dynx.runtime.certify import Costs
from dynx.runtime.profile_store import ProfileStore, profiles_folder
from support.classifier_folders import VOCAB, sentences
from support.classifiers import classifier
from support.commands import train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pytest

    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.calibrate import Findings

LAYERS = 4
EPS = 0.1
LESSONS = sentences(300)


@torch.no_grad()
def write_easy(folder: Path, **changes: Any) -> Path:
    """A BERT whose blocks after the first hardly change anything, so that most answers are known early."""
    tokenizer = train_tokenizer(VOCAB)
    tokenizer.pad_token = tokenizer.eos_token
    settings = {"num_hidden_layers": LAYERS, "pad_token_id": tokenizer.pad_token_id, **changes}
    model = classifier("bert", vocab_size=VOCAB, **settings)
    for layer in model.bert.encoder.layer[1:]:
        for part in (layer.attention.output, layer.output):
            part.dense.weight.mul_(0.03)
            part.dense.bias.zero_()
            part.LayerNorm.weight.fill_(1)
            part.LayerNorm.bias.zero_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fix_costs(monkeypatch: pytest.MonkeyPatch, *, check: float = 0.03, clock: float = 1.5) -> None:
    """Every block costs the same, a look at an exit `check` of a full run, and the clock says `clock` times as fast."""

    def measured(exit_model: Any, collate: Any, rows: Any, depths: Sequence[int], **_: Any) -> Costs:
        return Costs(tuple(d / exit_model.depth for d in depths), 1.0, tuple(check for _ in depths))

    def of_segments(segments: Any, *_: Any, **__: Any) -> Costs:
        depth, borders = segments.parts.depth, segments.borders
        return Costs(tuple(d / depth for d in borders), 1.0, tuple(check for _ in borders))

    monkeypatch.setattr(exit_fitting, "measure_costs", measured)
    monkeypatch.setattr(exit_fitting, "measure_segment_costs", of_segments)
    monkeypatch.setattr(learning, "confirm", lambda *_: (clock, clock, clock))


def assembled(folder: Path, *, warn: Callable[[str], None] = lambda _: None, **wish: Any) -> LoadedClassifier:
    """Planned and loaded, on one thread."""
    plan = make_plan(ClassifierRequest(str(folder), threads=1, **wish), warn=warn)
    return assemble(plan, warn=warn)


def learned(assembly: LoadedClassifier, texts: Sequence[str] = LESSONS) -> Findings:
    """Calibrated on texts."""
    clock = iter(range(10**6)).__next__
    return learning.calibrate(assembly, learning.Inputs(texts, texts), budget=1.0, clock=clock)


def keep(found: Findings) -> None:
    """Put what was learned into this test's cache."""
    ProfileStore(profiles_folder(), lambda _: None).save(found.profile, found.arrays or None)
