"""What the profiles of all classifiers hold beside what was learned: model, device, versions, backend."""

from __future__ import annotations

import datetime as dt
from importlib import metadata
from typing import TYPE_CHECKING, Any

from dynx.early_exit.backends import RANGES_PREFIX
from dynx.early_exit.segments.segments import as_profile
from dynx.runtime.hashing import text_hash
from dynx.runtime.weights import still

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dynx.early_exit.assembly import LoadedClassifier


def envelope(assembly: LoadedClassifier, names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a profile that say what it is about; `names` identify the inputs."""
    plan = assembly.plan
    return {
        "key": plan.key,
        "model_name": plan.source.name,
        "weights": still(plan.weights, plan.source.folder),
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
        "device": {
            "name": plan.machine.cpu if plan.device == "cpu" else plan.device,
            "threads": assembly.plan.threads,
        },
        "evidence": {"data": text_hash(names), "inputs": len(names)},
    }


def segments_of(assembly: LoadedClassifier) -> dict[str, Any]:
    """Return how the model was cut, for a profile; empty where it wasn't."""
    return {} if assembly.segments is None else {"segments": as_profile(assembly.segments)}


def range_arrays(assembly: LoadedClassifier) -> dict[str, NDArray[Any]]:
    """Return the activation ranges of int8 as arrays of a profile."""
    return {RANGES_PREFIX + name: ends for name, ends in assembly.block_backend.ranges.items()}
