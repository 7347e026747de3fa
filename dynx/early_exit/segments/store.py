"""Segments in the cache folder: what was converted and checked once is compiled again without PyTorch's model.

A folder's name contains all that its graphs depend on, and it is moved into place once they were compared with the model. So what
is found there is used unchecked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynx.early_exit.segments.model import SegmentedModel
from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.registry import OPENVINO, TITLES
from dynx.runtime.profile_store import cache_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from dynx.early_exit.attach.model import ExitModel
    from dynx.runtime.backends.openvino.blocks import Ranges

FORMAT_VERSION = 1
"""Version of the cached files; raise it when they, or the graphs that are made, change."""

LOGIT_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.08, "int8": 0.25}
"""Largest change of a logit on probes, relative to the largest one, by precision: a wrong mask or order changes them far more."""

FEATURE_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.3}
"""The same of features at a border, by their norm."""


SPARE_POSITIONS = 4
"""Positions of a table that a model may keep for itself, as RoBERTa does."""


def place(weights: str, precision: str, borders: Sequence[int], ranges: Ranges) -> Path:
    """Return the folder of these segments of the model whose weights have this hash."""
    versions = [metadata.version(name) for name in ("openvino", "transformers", "torch")]
    facts = [FORMAT_VERSION, versions, precision, list(borders)]
    digest = hashlib.sha256(repr(facts).encode())
    for name in sorted(ranges):
        digest.update(name.encode() + np.ascontiguousarray(ranges[name]).tobytes())
    return cache_folder() / "segments" / weights / digest.hexdigest()[:24]


def load(folder: Path, *, threads: int) -> SegmentedModel | None:
    """Compile what is in a folder; None where there is nothing usable."""
    try:
        import openvino as ov

        facts: dict[str, Any] = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        core = ov.Core()
        graphs = [core.read_model(folder / f"{number}.xml") for number in range(len(facts["borders"]) + 1)]
        return SegmentedModel(
            graphs,
            facts["borders"],
            facts["depth"],
            precision=facts["precision"],
            threads=threads,
            kind=facts["kind"],
            merges_lengths=facts["merges_lengths"],
        )
    except Exception:  # noqa: BLE001 - missing, torn, or another version's: made anew
        return None


def make(
    exit_model: ExitModel,
    probes: Sequence[Mapping[str, Tensor]],
    borders: Sequence[int],
    *,
    precision: str,
    ranges: Ranges,
    threads: int,
    folder: Path | None,
) -> SegmentedModel:
    """Convert a model, compare it with the original on `probes`, and keep it in `folder`. Raises UnsupportedModelError."""
    from dynx.early_exit.segments.convert import convert

    graphs = convert(exit_model, probes, borders, ranges=ranges if precision == "int8" else None)
    facts = {
        "borders": list(borders),
        "depth": exit_model.depth,
        "precision": precision,
        "kind": exit_model.kind,
        "merges_lengths": exit_model.merges_lengths,
    }
    draft = None if folder is None else folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    try:
        if draft is not None:
            _write(draft, graphs, facts)
        model = SegmentedModel(
            graphs,
            borders,
            exit_model.depth,
            precision=precision,
            threads=threads,
            kind=exit_model.kind,
            merges_lengths=exit_model.merges_lengths,
        )
        if fault := _difference(model, exit_model, [*probes, *_longer(exit_model, probes[0])]):
            raise UnsupportedModelError(f"{type(exit_model.model).__name__} {fault}")
        if draft is not None and folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # what is there couldn't be used
            with contextlib.suppress(OSError):  # another process was first, or the disk is full: it is used as it is
                draft.rename(folder)
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return model


def _write(folder: Path, graphs: Sequence[Any], facts: Mapping[str, Any]) -> None:
    import openvino as ov

    with contextlib.suppress(OSError):
        folder.mkdir(parents=True)
        for number, graph in enumerate(graphs):
            ov.save_model(graph, folder / f"{number}.xml", compress_to_fp16=False)
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _longer(exit_model: ExitModel, probe: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
    """Make a batch of sizes that nothing was traced with, twice as long where texts may be: a fixed size shows there."""
    rows = {name: value[:3] for name, value in probe.items()}
    if exit_model.kind != "text":
        return [rows]
    width = int(probe["input_ids"].shape[1])
    most = getattr(exit_model.model.config, "max_position_embeddings", None)
    if isinstance(most, int) and 2 * width > most - SPARE_POSITIONS:
        return [rows]
    twice = {name: torch.cat([value, value], 1) if value.dim() > 1 else value for name, value in rows.items()}
    twice["attention_mask"] = twice["attention_mask"].clone()
    twice["attention_mask"][:, :width] = 1
    twice["attention_mask"][0, width:] = 0  # padding that is longer than a local attention reaches
    return [twice]


def _difference(model: SegmentedModel, exit_model: ExitModel, probes: Sequence[Mapping[str, Tensor]]) -> str | None:
    """Say how the segments differ from the model on the probes; None where only rounding does."""
    for probe in probes:
        seen: list[Any] = []

        def watch(_depth: int, hidden: Tensor, _rows: Tensor, seen: list[Any] = seen, probe: Any = probe) -> None:
            seen.append(exit_model.pool(hidden, probe).numpy())

        want = exit_model.run(probe, watch=watch, exits=model.borders).logits
        if want is None:
            return "gives no logits"
        features, logits = model.run_all({name: probe[name].numpy() for name in model.input_names})
        expected = want.float().numpy()
        if exit_model.style == "tokens":  # nobody reads those of padding
            real = probe["attention_mask"].numpy() != 0
            expected, logits = expected[real], logits[real]
            features, seen = [ours[real] for ours in features], [theirs[real] for theirs in seen]
        gap = float(np.abs(logits - expected).max() / max(1.0, float(np.abs(expected).max())))
        where = f"in {model.precision} on {TITLES[OPENVINO]}"
        if not gap <= LOGIT_TOLERANCE[model.precision]:  # also catches NaN
            return f"gives other logits {where} (by {gap:.0%} of the largest)"
        for border, ours, theirs in zip(model.borders, features, seen, strict=True):
            away = float(np.linalg.norm(ours - theirs) / max(float(np.linalg.norm(theirs)), 1e-9))
            if not away <= FEATURE_TOLERANCE[model.precision]:
                return f"gives other hidden states after layer {border} {where} (by {away:.0%})"
    return None
