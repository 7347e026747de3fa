"""A classifier whose wrapped blocks can stop, resume and drop rows, and that can be restored."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynx.early_exit.attach.forward import ForwardStopped, PartialForward
from dynx.early_exit.attach.hidden_state import Outcome, State
from dynx.early_exit.attach.pooling import COUNTED, pool
from dynx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from dynx.early_exit.attach.blocks import Block
    from dynx.early_exit.attach.hidden_state import Watch
    from dynx.early_exit.attach.pooling import Kind, Style


class ExitModel:
    """A classifier whose blocks `run` controls. Made by `attach`; undone by `detach`, or at the end of a `with`.

    Between runs, and when the model itself is called, it computes what it did before. One run at a time.
    """

    def __init__(self, model: Any, kind: Kind, blocks: Sequence[Block], source: nn.Module | None = None) -> None:
        self.model = model
        self.kind: Kind = kind
        self.style: Style
        """How `pool` makes features of hidden states; set by the equivalence check."""
        self.merges_lengths = True
        """Whether padding leaves the model's answers unchanged, so that rows of different lengths may resume together."""
        self.source = source
        """The module whose output is the first block's input, where there is one."""
        self._blocks = blocks
        self._run: PartialForward | None = None
        self._replaced: list[tuple[nn.Module, Callable[..., Any], Any]] = []
        self._detached = False
        parameters = inspect.signature(model.forward).parameters
        wanted = {"use_cache": False, "output_hidden_states": False, "output_attentions": False, "return_dict": True}
        self.options = {name: value for name, value in wanted.items() if name in parameters}
        for module in {id(block.module): block.module for block in blocks}.values():
            self._wrap(module)
        if source is not None:
            self._skip_embeddings(source)

    @property
    def depth(self) -> int:
        """Number of block calls in a forward, L."""
        return len(self._blocks)

    @property
    def blocks(self) -> list[nn.Module]:
        """The block modules, each once, in order of their first call."""
        return list({id(block.module): block.module for block in self._blocks}.values())

    @property
    def calls(self) -> Sequence[Block]:
        """The block calls of a forward, in order: a module that is called twice is in it twice."""
        return self._blocks

    def _wrap(self, module: nn.Module) -> None:
        inner: Callable[..., Any] = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return inner(*args, **kwargs) if self._run is None else self._run.call(module, inner, args, kwargs)

        self._replace(module, forward)

    def _skip_embeddings(self, source: nn.Module) -> None:
        """Skip computing the first block's input where rows resume from a state: only its shape is used then."""
        inner: Callable[..., Any] = source.forward
        known: dict[tuple[int, ...], tuple[torch.Size, torch.dtype]] = {}

        def forward(*args: Any, **kwargs: Any) -> Any:
            run = self._run
            if run is None:
                return inner(*args, **kwargs)
            if run.start is not None and run.shape in known:
                shape, dtype = known[run.shape]
                return run.start.hidden.new_zeros((), dtype=dtype).expand(run.batch, *shape)
            made = inner(*args, **kwargs)
            known[run.shape] = made.shape[1:], made.dtype
            return made

        self._replace(source, forward)

    def _replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        forward.dynx_exits = True  # type: ignore[attr-defined]
        self._replaced.append((module, forward, module.__dict__.get("forward")))
        module.__dict__["forward"] = forward

    def detach(self) -> None:
        """Restore the model as it was; a second call does nothing."""
        for module, ours, previous in self._replaced:
            if module.__dict__.get("forward") is not ours:
                continue  # wrapped by others since: this forward stays inside and passes calls through
            if previous is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = previous
        self._replaced.clear()
        self._detached = True

    def __enter__(self) -> ExitModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _rows(self, inputs: Mapping[str, Tensor]) -> int:
        """Return the batch size; ValueError where there isn't one."""
        if any(not isinstance(value, Tensor) or value.dim() == 0 for value in inputs.values()):
            raise ValueError("inputs must be tensors with a row for each of the batch")
        if "labels" in inputs or self.model.main_input_name not in inputs:
            raise ValueError(f"inputs must have {self.model.main_input_name} and no labels")
        sizes = {int(value.shape[0]) for value in inputs.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(f"inputs of different batch sizes or none: {sorted(sizes)}")
        return sizes.pop()

    def run(
        self,
        inputs: Mapping[str, Tensor],
        *,
        start: State | None = None,
        watch: Watch | None = None,
        exits: Collection[int] = (),
        stop: int | None = None,
    ) -> Outcome:
        """Run one forward of the model over `inputs`, each (B, …), without gradients.

        After every block call k in `exits` (1 … L), `watch(k, hidden, rows)` gets the hidden states (R, …) of the active rows
        and their indices (R,) in the batch. It returns the positions (r,) or a mask (R,) of those that continue, or None for
        all. Later blocks don't compute the others; if none continues, the forward ends there.

        `stop` ends the forward after that block: the outcome has the state of the active rows and no logits. `start` resumes
        from such a state, with `inputs` for exactly its rows: embeddings and masks are made again, blocks up to `start.depth`
        aren't computed, and rows stopped in different batches may be merged.

        ValueError: inputs, state, exits or the result of `watch` don't fit; RuntimeError: detached, in training mode, or inside
        a run.
        """
        if self._detached:
            raise RuntimeError("the exits were detached from this model")
        if self._run is not None:
            raise RuntimeError("a run is in progress on this model")
        if self.model.training:
            raise RuntimeError("the model is in training mode")
        batch = self._rows(inputs)
        done = 0 if start is None else start.depth
        if any(not 1 <= k <= self.depth for k in (*exits, *([] if start is None else [done]))):
            raise ValueError(f"this model has blocks 1 to {self.depth}")
        if stop is not None and not done < stop <= self.depth:
            raise ValueError(f"can't stop after block {stop}: blocks {done + 1} to {self.depth} are left")
        if start is not None and len(start) != batch:
            raise ValueError(f"inputs of {batch} rows for a state of {len(start)}")
        rows = torch.arange(batch, device=inputs[self.model.main_input_name].device)
        if start is None and watch is None and stop is None:  # the model's own forward
            with torch.no_grad():
                return Outcome(rows, self.model(**model_inputs(inputs), **self.options).logits, None)
        shape = tuple(inputs[self.model.main_input_name].shape[1:])
        run = PartialForward(self._blocks, batch, rows, start, watch, frozenset(exits), stop, shape)
        self._run = run
        try:
            with torch.no_grad():
                logits: Tensor = self.model(**model_inputs(inputs), **self.options).logits
        except ForwardStopped:
            return Outcome(run.rows, None, run.state)
        finally:
            self._run = None
        if run.done != self.depth:
            raise UnsupportedModelError("the model ran fewer blocks than when exits were attached")
        return Outcome(run.rows, logits if run.active is None else logits[run.rows.to(logits.device)], None)

    def pool(self, hidden: Tensor, inputs: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """Pool hidden states (R, …) into features (R, F): of all `inputs`, or of their `rows` (R,), as `watch` gets them.

        Models that label tokens have features (R, T, F).
        """
        mask = inputs.get(COUNTED, inputs.get("attention_mask")) if self.kind == "text" else None
        if mask is not None and rows is not None:
            mask = mask[rows.to(mask.device)]
        return pool(hidden, mask, self.kind, self.style)


def model_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs that are arguments of the model."""
    return {name: value for name, value in inputs.items() if name != COUNTED}
