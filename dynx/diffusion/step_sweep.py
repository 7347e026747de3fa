"""Draw pictures at every number of steps, and measure SSIM to the plain run, time, and the colours of latents."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from dynx.diffusion.predictor import prediction_features, text_features
from dynx.diffusion.profile_data import OBSERVED_STEPS, StepSchedules
from dynx.diffusion.schedule_search import draw, likeness, one_by_one
from dynx.runtime.certify import Costs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dynx.diffusion.engine import Engine
    from dynx.diffusion.sampler import RestOfSchedule, StepState
    from dynx.diffusion.types import Request

    Array = NDArray[np.float64]

MAX_PATCHES = 4000
"""Most pairs of a latent and its colour that are kept, enough for a linear map of a dozen numbers."""


@dataclass(frozen=True)
class StepSweep:
    """Hold the measurements of n pictures at L numbers of steps; the field names are those of the stored arrays."""

    looks: Array  # (n, 6) features of the first predictions
    texts: Array  # (n, D) features of the texts
    likeness: Array  # (n, L+1) SSIM to the plain run; the last on the whole fine grid
    latents: Array  # (m, C) clean ones; C is 0 where there is no decoder
    colours: Array  # (m, 3) that the decoder made of them

    def __len__(self) -> int:
        return len(self.likeness)

    def __add__(self, other: StepSweep) -> StepSweep:
        rows = {f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)}
        return StepSweep(**(rows | {name: rows[name][:MAX_PATCHES] for name in ("latents", "colours")}))


def sweep_steps(engine: Engine, request: Request, schedules: StepSchedules, *, together: bool = False) -> StepSweep:
    """Draw the pictures of one request at every number of steps. Raises UnsupportedModelError for pixels that aren't finite.

    `together`: the engine's backend is prepared for as many pictures in a call.
    """
    plain = draw(engine.reference, request).pixels
    alone = schedules.alone or (engine.kernels is not None and not together)
    if not alone:
        return _sweep(engine, request, schedules, plain)
    whole: StepSweep | None = None
    for one, pixels in zip(one_by_one(request), plain, strict=True):
        part = _sweep(engine, one, schedules, [pixels])
        whole = part if whole is None else whole + part
    if whole is None:
        raise ValueError("a request of no pictures")
    return whole


def _sweep(
    engine: Engine, request: Request, schedules: StepSchedules, plain: Sequence[NDArray[np.float32]]
) -> StepSweep:
    clean: list[Any] = []

    def keep(state: StepState) -> None:
        clean.append(state.clean)

    whole = draw(engine, request, schedules.longest, keep)
    columns = [likeness(draw(engine, request, schedules.schedule(k)).pixels, plain) for k in schedules.levels]
    columns.append(likeness(whole.pixels, plain))
    latents, colours = _colours(clean[-1], plain) if engine.adapter.latent else (np.zeros((0, 0)), np.zeros((0, 3)))
    return StepSweep(
        prediction_features(clean[:OBSERVED_STEPS]),
        text_features(engine.initial_call(request).embedding, len(request)),
        np.stack(columns, axis=1),
        latents,
        colours,
    )


def _colours(clean: Any, pixels: Sequence[NDArray[np.float32]]) -> tuple[Array, Array]:
    """Return latents (m, C) and the mean colours (m, 3) of the patches that they decode to."""
    latents = clean.detach().float().cpu().numpy()
    none = np.zeros((0, latents.shape[1])), np.zeros((0, 3))
    if latents.ndim != 4:
        return none
    _, channels, high, wide = latents.shape
    patches = []
    for picture in pixels:
        h, w = picture.shape[0] // high, picture.shape[1] // wide
        if h < 1 or w < 1:
            return none
        cut = picture[: h * high, : w * wide].reshape(high, h, wide, w, 3)
        patches.append(cut.mean(axis=(1, 3)).reshape(-1, 3))
    flat = latents.transpose(0, 2, 3, 1).reshape(-1, channels)
    return flat.astype(np.float64), np.concatenate(patches).astype(np.float64)


def colour_map(latents: Array, colours: Array) -> Array | None:
    """Fit the linear map (C + 1, 3) from latents to colours by least squares; None without pairs."""
    if not len(latents) or latents.shape[1] == 0:
        return None
    x = np.concatenate([latents, np.ones((len(latents), 1))], axis=1)
    found: Array = np.linalg.lstsq(x, colours, rcond=None)[0]
    return found


def time_steps(
    engine: Engine, requests: Sequence[Request], schedules: StepSchedules, clock: Callable[[], float]
) -> tuple[Costs, float]:
    """Time one picture, drawn alone and with a controller, at every number of steps and on the whole grid; also plain.

    A line is fitted to the medians over the network rows that ran, because the noise of few measurements on a busy machine
    exceeds the difference between neighbouring numbers of steps. Plain isn't part of the line where it runs on another backend.
    """
    step_counts: list[int | None] = [None, *schedules.levels, len(schedules.longest.grid)]
    rows, seconds = np.zeros((len(step_counts), len(requests))), np.zeros((len(step_counts), len(requests)))
    for r, request in enumerate(requests):
        for w, steps in enumerate(step_counts):
            began = clock()
            if steps is None:
                drawn = draw(engine.reference, request)
            else:
                drawn = draw(engine, request, schedules.longest, _always(schedules, steps))
            rows[w, r], seconds[w, r] = drawn.rows, clock() - began
    x, y = rows.mean(axis=1), np.median(seconds, axis=1)
    line = _line(x, y) if engine.kernels is None else [float(y[0]), *_line(x[1:], y[1:])]
    return Costs(tuple(line[1:-1]), line[-1], (0.0,) * len(schedules.levels)), line[0]


def _always(schedules: StepSchedules, steps: int) -> Callable[[StepState], RestOfSchedule | None]:
    """Return a controller that always chooses `steps`."""
    return lambda state: schedules.rest(steps) if state.index == OBSERVED_STEPS - 1 else None


def _line(x: Array, y: Array) -> list[float]:
    """Fit y by a line in x with positive slope and non-negative offset, or in proportion to x where the best line has neither."""
    slope, ground = np.polyfit(x, y, 1)
    if slope <= 0 or ground < 0:
        slope, ground = max(float(y.sum() / x.sum()), 1e-9), 0.0
    return [float(slope * each + ground) for each in x]


class Partial:
    """Store an unfinished calibration in one file: its settings, the step schedules, the pictures so far.

    The file is replaced atomically after every batch. A file with other settings, or one that can't be read, is ignored; if the
    folder can't be written, nothing is stored.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))

    def load(self) -> tuple[dict[str, Any], StepSweep | None] | None:
        """Return the stored state and pictures, or None."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "np") as file:
                kept = json.loads(file.metadata()["dynx"])
                arrays = {name: np.asarray(file.get_tensor(name), dtype=np.float64) for name in file.keys()}  # noqa: SIM118
            if kept["settings"] != self.settings:
                return None
            schedules = StepSchedules.from_json(kept["state"]["ladder"])
            made = StepSweep(**arrays) if arrays else None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        if made is None:
            return kept["state"], None
        n = len(made)
        fits = made.likeness.ndim == 2 and made.likeness.shape[1] == len(schedules.levels) + 1
        return (kept["state"], made) if fits and len(made.looks) == len(made.texts) == n else None

    def save(self, state: Mapping[str, Any], made: StepSweep | None) -> None:
        """Replace the file; on an error the existing one stays."""
        from safetensors.numpy import save

        arrays = {} if made is None else {f.name: np.array(getattr(made, f.name), order="C") for f in fields(made)}
        blob = save(arrays, metadata={"dynx": json.dumps({"settings": self.settings, "state": state})})
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            fresh.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(blob)
            fresh.replace(self.path)
        except OSError:
            return
        finally:
            _remove(fresh)

    def remove(self) -> None:
        """Delete the file of a finished calibration."""
        _remove(self.path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
