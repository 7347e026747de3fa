"""Loads a plan's target and drafter on the backend that it names, or on the fastest of those that run the model.

A backend that turns out not to run a model is replaced, with the reason in the plan's decisions. `runtime.backends.registry`
lists the backends and what each needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from dynx.errors import UnsupportedModelError
from dynx.runtime import loading
from dynx.runtime.backends.registry import (
    COMPILED,
    GRAPHS,
    IPEX,
    OPENVINO,
    TITLES,
    TORCH,
    Quantization,
    attempt,
    capture_model,
    compile_model,
    convert_to_openvino,
    import_backend,
    load_converted,
    load_converted_ahead,
    load_exported,
    load_ipex,
    quantize_model,
    race,
    usable,
    was_checked,
)
from dynx.runtime.decision import Decision
from dynx.runtime.identity import weights_key
from dynx.runtime.profile_store import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from dynx.runtime.backends.eager import EagerBackend
    from dynx.runtime.backends.interface import Backend
    from dynx.runtime.loading import Source
    from dynx.speculation.plan import GeneratorPlan


QUANTIZED = frozenset(get_args(Quantization)) - {"none"}


class ModelBackends:
    """Target and drafter on the plan's backend, the torch models loaded only where they are needed."""

    def __init__(
        self,
        plan: GeneratorPlan,
        stages: Callable[[str], None],
        warn: Callable[[str], None],
        clock: Callable[[], float] | None,
    ) -> None:
        self._plan, self._stages, self._warn, self._clock = plan, stages, warn, clock
        self._begun: Future[Backend | None] | None = None

    def begin(self) -> bool:
        """Let a thread compile the target that was kept for OpenVINO; `target` waits for it. Return whether there is one."""
        plan = self._plan
        if self._clock is not None or plan.backend != OPENVINO or plan.source.is_exported:
            return False
        precision, place, trusted = self._kept(plan.source, None)
        if not trusted:
            return False
        self._begun = load_converted_ahead(precision=precision, threads=plan.threads, cache=place)
        return self._begun is not None

    def _kept(self, source: Source, precision: str | None) -> tuple[str, Path, bool]:
        """Return the precision of a model on OpenVINO, where it is kept, and whether what is kept there can be trusted."""
        plan = self._plan
        precision = precision or (plan.dtype if plan.request.quantize == "none" else plan.request.quantize)
        place = cache_folder() / "openvino" / weights_key(source, [loading.DRAFTER_FOLDER])
        return precision, place, plan.own_profile is not None or was_checked(precision=precision, cache=place)

    def target(self) -> Backend:
        """Load the target. A backend that can't run it is replaced, and the decision gives the reason."""
        plan = self._plan
        if self._clock is not None and plan.request.backend == "auto":
            return self._fastest(self._clock)
        name = plan.backend
        try:
            return self._open(name, plan.source, plan.key.model)
        except UnsupportedModelError as e:
            able = usable(plan.device, plan.request.quantize)[TORCH].value
            if plan.request.backend != "auto" or name == TORCH or not able or plan.source.is_exported:
                raise
            why = f"{TITLES[name]} can't run it: {e}"
        plan.decisions.backend = Decision(TORCH, why)
        if not plan.bundled:
            plan.drop_profile(why, self._warn)
        return self._open(TORCH, plan.source, plan.key.model)

    def target_on(self, name: str) -> Backend:
        """Load the target on a backend other than the plan's. Raises UnsupportedModelError."""
        return self._open(name, self._plan.source, self._plan.key.model)

    def drafter(self, source: Source) -> Backend:
        """Load the draft model, on the target's backend where that runs it up to the target's context."""
        plan = self._plan
        chosen = plan.backend
        name = plan.key.companion or source.name
        try:
            other = self._open(chosen, source, name, precision=plan.drafter_dtype)
        except UnsupportedModelError:
            return torch_backend(plan, source, dtype=plan.drafter_dtype)
        if chosen != OPENVINO or other.context is None:
            return other
        config = source.config()
        limit = config.get("max_position_embeddings") or config.get("n_positions")
        return other if limit and other.context >= limit else torch_backend(plan, source, dtype=plan.drafter_dtype)

    def _fastest(self, clock: Callable[[], float]) -> Backend:
        """Load the fastest of the backends that can run the model and draft as requested."""
        plan = self._plan
        running: dict[str, Backend] = {}
        starts: dict[str, float] = {}
        notes: list[str] = []
        refused: UnsupportedModelError | None = None
        only = TORCH if plan.packed else OPENVINO if plan.source.is_exported else None
        for name, able in usable(plan.device, plan.request.quantize).items():
            if not able.value or (only is not None and name != only):
                continue
            began = clock()
            import_backend(name)
            imported = clock()
            try:
                backend = self._open(name, plan.source, plan.key.model)
            except UnsupportedModelError as e:
                notes.append(f"{TITLES[name]} can't run it: {e}")
                refused = refused or e
                continue
            if "self" in plan.kinds and not plan.auto and not backend.can_exit.value:
                notes.append(f"{TITLES[name]} is left out: {backend.can_exit.reason}")
                continue
            if name == COMPILED and (count := backend.compiled):
                notes.append(f"compiling took {clock() - imported:.1f} s, once ({count} graphs)")
            tested = backend.can_rollback.value
            del backend  # the next is a process's usual start, from what was kept
            again = clock()
            try:
                running[name] = self._open(name, plan.source, plan.key.model, trusted=tested)
            except UnsupportedModelError as e:
                notes.append(f"{TITLES[name]} can't run it: {e}")
                refused = refused or e
                continue
            starts[name] = imported - began + clock() - again
        if not running and refused is not None:
            raise refused
        if len(running) < 2 and running:
            if notes:
                plan.decisions.backend = Decision(next(iter(running)), "; ".join(notes))
            return next(iter(running.values()))
        self._stages(f"timing {' and '.join(TITLES[name] for name in TITLES if name in running)}")
        timed = race(running, clock, starts=starts, model=plan.source.name)
        notes += [f"{TITLES[name]} can't run it: {why}" for name, why in timed.failed.items()]
        plan.decisions.backend = Decision(timed.winner, "; ".join([str(timed), *notes]))
        return running[timed.winner]

    def _open(
        self, name: str, source: Source, folder: str, *, precision: str | None = None, trusted: bool = False
    ) -> Backend:
        """`_load`, with UnsupportedModelError for whatever the backend raises."""
        with attempt(name, source.name):
            return self._load(name, source, folder, precision=precision, trusted=trusted)

    def _load(
        self, name: str, source: Source, folder: str, *, precision: str | None = None, trusted: bool = False
    ) -> Backend:
        """Load a model on a backend, by default in the requested precision; `folder` names its place in the cache.

        Raises UnsupportedModelError. What is kept is `trusted` to be as it was when there is a profile, or a mark that it was
        compared with the model after it was written. Code has no weights in it and is kept by the samples' hash; a converted
        model has, and is kept by the hash of every byte.
        """
        plan, cache = self._plan, cache_folder()
        trusted = trusted or plan.own_profile is not None
        precision = precision or (plan.dtype if plan.request.quantize == "none" else plan.request.quantize)
        dtype = plan.dtype if precision in QUANTIZED else precision
        threads = plan.threads
        if source.is_exported:
            place = None if trusted else cache / "openvino" / weights_key(source)
            return load_exported(
                source.folder, name=source.name, dtype=precision, threads=threads, trusted=trusted, cache=place
            )
        if name == OPENVINO:
            precision, place, known = self._kept(source, precision)
            if trusted or known:
                begun, self._begun = self._begun if source is plan.source else None, None
                kept = begun.result() if begun else None
                if kept := kept or load_converted(precision=precision, threads=threads, cache=place):
                    return kept
            self._stages("converting for OpenVINO")
            model = torch_backend(plan, source, dtype=dtype).model
            same = weights_key(source, [loading.DRAFTER_FOLDER]) == place.name  # now that they were read
            stored = loading.stored_weights(source) if precision == "file" else None
            return convert_to_openvino(
                model,
                precision=precision,
                threads=threads,
                cache=place if same else None,
                stored=stored,
                used_up=True,
            )
        eager = torch_backend(plan, source, dtype=dtype, trusted=trusted)
        if precision in QUANTIZED and precision != "file":
            self._stages(f"quantizing to {precision}")
            eager = quantize_model(eager, precision)
        if name == TORCH:
            return eager
        if name == IPEX:
            self._stages("optimizing with IPEX")
            return load_ipex(eager, trusted=trusted)
        if name == GRAPHS:
            self._stages("capturing CUDA graphs")
            return capture_model(eager, trusted=trusted)
        self._stages("compiling")
        return compile_model(eager, cache=cache / "compiled" / folder, trusted=trusted)


def verifier(plan: GeneratorPlan, target: Backend) -> Backend:
    """Return the backend that verifies an answer of `target`: the weights in the model's folder, without the cache.

    In float32 that is the library's own model. In fewer bits each set of kernels rounds in its own way, so what was converted is
    converted anew. Other backends read the folder when they were loaded. Raises UnsupportedModelError.
    """
    if target.name != OPENVINO:
        return target
    if plan.source.is_exported:
        source = plan.source
        return load_exported(source.folder, name=source.name, dtype=plan.dtype, threads=plan.threads, trusted=False)
    eager = torch_backend(plan, plan.source)
    if target.precision == "float32":
        return eager
    threads = plan.threads
    stored = loading.stored_weights(plan.source) if target.precision == "file" else None
    with attempt(OPENVINO, plan.source.name):
        return convert_to_openvino(eager.model, precision=target.precision, threads=threads, cache=None, stored=stored)


def torch_backend(
    plan: GeneratorPlan, source: Source, *, dtype: str | None = None, trusted: bool = False
) -> EagerBackend:
    """Load a plan's model or drafter on PyTorch, whatever backend the plan runs on, for comparison and for its own methods."""
    from dynx.runtime.backends.eager import EagerBackend

    model = loading.load_causal_lm(
        source,
        device=plan.device,
        dtype=dtype or plan.dtype,
        allow_pickle=plan.request.allow_pickle,
        packed=plan.packed and source is plan.source,
    )
    return EagerBackend(model, trusted=trusted or plan.own_profile is not None)
