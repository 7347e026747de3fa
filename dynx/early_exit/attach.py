"""Exits for any loaded transformers classifier: its own `forward` runs, and the blocks inside answer to dynx.

`attach` replaces the `forward` of each block on the instance. A block then knows which rows of the batch are still wanted.
It takes the whole batch and returns the whole batch, and computes only those rows: embeddings, masks, whatever lies between
two blocks, and norm, pooler and head after the last see the shapes that they always see, so that none of it is written here a
second time. Where the next block takes over the very tensor that this one returned, the finished rows are never filled in.

Nothing is assumed about a model. Probes with two batch sizes find which arguments of a block grow with the batch (a position
table of T rows isn't a batch of T); an argument that no probe saw makes that one call run whole, which is slower and
right. The answers are then compared with the untouched model's, and a model that disagrees is refused with the reason.
"""

from __future__ import annotations

import inspect
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from dynx.early_exit.pooling import pool, pooling_style
from dynx.errors import DeviceError, UnsupportedModelError
from dynx.runtime.loading import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from dynx.early_exit.pooling import Kind, Style

    Watch = Callable[[int, Tensor, Tensor], Tensor | None]
    Path = tuple[int | str, ...]

PROBE_ROWS = (3, 2)
"""The two batch sizes that tell what grows with the batch."""

PROBE_WIDTH = 7
"""Tokens per row of a text probe: no batch size, nor a multiple of one."""

GAPS = 8
"""Most places between blocks where something else runs: more means that these aren't the blocks of the network."""

CANDIDATES = 6
"""Most classes of blocks that are tried on one model."""

RESUMES = 16
"""Up to this depth the self-test resumes after every block; deeper models after a sample of them."""


@dataclass(frozen=True)
class State:
    """Rows stopped after a block: `hidden` (R, …) are its outputs, `depth` counts the block calls done."""

    depth: int
    hidden: Tensor

    def __len__(self) -> int:
        return int(self.hidden.shape[0])

    def select(self, rows: Tensor) -> State:
        """These rows alone: positions (r,) or a mask (R,)."""
        rows = rows.to(self.hidden.device)
        return State(self.depth, self.hidden[rows])

    def fit(self, length: int) -> State:
        """With `length` tokens: padded on the right with zeros, or cut. For hidden states (R, T, D)."""
        short = length - self.hidden.shape[1]
        return self if short == 0 else State(self.depth, F.pad(self.hidden, (0, 0, 0, short)))

    @staticmethod
    def merge(states: Sequence[State], *, length: int | None = None) -> State:
        """The rows of all, in order, brought to the longest or to `length` tokens.

        The inputs they're resumed with must be padded to the same length, on the right. ValueError: none, or states of
        different depths or of shapes that don't go together.
        """
        if not states:
            raise ValueError("no states to merge")
        depths = sorted({state.depth for state in states})
        if len(depths) > 1:
            raise ValueError(f"states stopped after different blocks: {', '.join(map(str, depths))}")
        if states[0].hidden.dim() == 3:
            widest = max(int(state.hidden.shape[1]) for state in states) if length is None else length
            states = [state.fit(widest) for state in states]
        elif length is not None:
            raise ValueError("only hidden states of tokens have a length")
        if len({state.hidden.shape[1:] for state in states}) > 1:
            raise ValueError("states of different shapes")
        return State(depths[0], torch.cat([state.hidden for state in states]))


@dataclass(frozen=True)
class Outcome:
    """What came of a run: `rows` (R,) of the inputs were still active at its end, in order.

    `logits` (R, C) where they went through the whole model, `state` where the run was told to stop at a block. Both are None
    when no row was left.
    """

    rows: Tensor
    logits: Tensor | None
    state: State | None


class _Refusal(Exception):  # noqa: N818 - a verdict, not a mistake
    """Why a class of blocks won't do; never leaves `attach`."""


class _Ended(Exception):  # noqa: N818 - not an error
    """Leaves the model's forward early; never leaves `run`."""


# --- what a block is called with ---------------------------------------------------------------------------------------------


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Everything in nested tuples, lists and dicts, with the way to it."""
    if isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path, value


def _mapped(value: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """The same structure with every leaf changed."""
    if isinstance(value, (tuple, list)):
        items = [_mapped(item, change, (*path, index)) for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        made = {key: _mapped(item, change, (*path, key)) for key, item in value.items()}
        return made if type(value) is dict else type(value)(**made)
    return change(path, value)


def _tensors(value: Any) -> dict[Path, Tensor]:
    return {path: leaf for path, leaf in _leaves(value) if isinstance(leaf, Tensor)}


def _hidden_path(tensors: Mapping[Path, Tensor]) -> Path | None:
    """Where a block takes its hidden states: first, or by that name."""
    for path in ((0, 0), (1, "hidden_states")):
        if path in tensors:
            return path
    return next(iter(tensors), None)


Role = int | Literal["one", "fixed"]
"""The first dimension of an argument: this many times the batch, one for all, or something that isn't the batch."""


@dataclass
class _Call:
    """One call of a candidate block, as a probe saw it."""

    module: nn.Module
    outer: tuple[int, ...]
    arguments: dict[Path, Tensor]
    output: Any = None
    opaque: str | None = None

    @property
    def into(self) -> Tensor | None:
        path = _hidden_path(self.arguments)
        return None if path is None else self.arguments[path]

    @property
    def returned(self) -> Tensor | None:
        return next(iter(_tensors(self.output).values()), None)


@dataclass
class _Block:
    """One block call of the plan: how to hand rows to it and how to answer in its place."""

    module: nn.Module
    hidden: Path
    roles: dict[Path, set[Role]]
    shell: Any
    """Its output with None for all leaves: what else than hidden states it returns, the model must be able to do without."""
    answer: Path
    """Where in the output the hidden states are."""
    shapes: dict[tuple[int, ...], tuple[int, ...]]
    """Of one row: what comes out for what goes in, where that changes."""
    keeps_shape: bool
    direct: bool = True
    """Whether the next block takes this one's output itself."""

    def returning(self, hidden: Tensor) -> Any:
        """The output that the block would wrap these hidden states in."""
        return _mapped(self.shell, lambda path, _: hidden if path == self.answer else None)

    def copies(self, path: Path, value: Tensor, rows: int) -> int | None:
        """How often each row of a batch of `rows` (two at least) is in this argument, 0 if not at all; None: can't tell."""
        if value.dim() == 0:
            return 0
        size, seen = value.shape[0], self.roles.get(path, set[Role]())
        several = {role for role in seen if isinstance(role, int) and size == role * rows}
        if several:
            return None if len(several) > 1 or "fixed" in seen else next(iter(several))
        return 0 if "fixed" in seen or (seen and size == 1) else None


def _recorded(model: nn.Module, kinds: Collection[type], inputs: Mapping[str, Any]) -> tuple[list[_Call], Any]:
    """The calls of modules of these classes in one forward, in order of starting, and what the model returned."""
    calls: list[_Call] = []
    stack: list[int] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        opaque = None
        for _, leaf in _leaves((args, kwargs)):
            if hasattr(leaf, "get_seq_length"):
                opaque = "its blocks write to a key-value cache"
        calls.append(_Call(module, tuple(stack), _tensors((args, kwargs)), opaque=opaque))
        stack.append(len(calls) - 1)

    def after(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        calls[stack.pop()].output = output

    handles = []
    try:
        for module in model.modules():
            if type(module) in kinds:
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after, with_kwargs=True))
        return calls, model(**inputs)
    finally:
        for handle in handles:
            handle.remove()


def _source(model: nn.Module, first: nn.Module, inputs: Mapping[str, Any]) -> nn.Module | None:
    """The module that returns the very tensor which the first block takes; the outermost, and only one that's called once."""
    made: list[tuple[nn.Module, Any]] = []
    found: list[nn.Module] = []

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        made.append((module, output))

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = _tensors((args, kwargs))
        path = _hidden_path(tensors)
        found.extend(module for module, output in made if path is not None and output is tensors[path])

    handles = [module.register_forward_hook(after) for module in model.modules()]
    handles.append(first.register_forward_pre_hook(before, with_kwargs=True))
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    calls = Counter(id(module) for module, _ in made)
    return found[-1] if found and calls[id(found[-1])] == 1 else None


def _candidates(model: nn.Module) -> list[list[type]]:
    """Classes that may be the blocks, the likeliest first."""
    recorded = (getattr(model, "_can_record_outputs", None) or {}).get("hidden_states")
    named = [getattr(kind, "target_class", kind) for kind in (recorded if isinstance(recorded, list) else [recorded])]
    present = Counter(type(module) for module in model.modules())
    found = [[kind for kind in present if any(isinstance(n, type) and issubclass(kind, n) for n in named)]]
    found += [[kind] for kind, _ in present.most_common() if issubclass(kind, GradientCheckpointingLayer)]
    listed: Counter[type] = Counter()
    for module in model.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len({type(item) for item in module}) == 1:
            listed[type(next(iter(module)))] += len(module)
    found += [[kind] for kind, _ in listed.most_common() if not kind.__module__.startswith("torch.")]
    return [kinds for index, kinds in enumerate(found) if kinds and kinds not in found[:index]]


def _finer_first(candidates: list[list[type]], calls: Sequence[_Call]) -> list[list[type]]:
    """Before each class the classes of its insides that are called more often: blocks before their stages."""
    at = {tuple(kinds): [i for i, call in enumerate(calls) if type(call.module) in kinds] for kinds in candidates}

    def is_inside(inner: list[type], outer: list[type]) -> bool:
        around, called = set(at[tuple(outer)]), at[tuple(inner)]
        return len(called) > len(around) and all(around & set(calls[i].outer) for i in called)

    order: list[list[type]] = []
    for kinds in candidates:
        insides = [inner for inner in candidates if inner != kinds and is_inside(inner, kinds)]
        for chosen in (*insides, kinds):
            if chosen not in order and at[tuple(chosen)]:
                order.append(chosen)
    return order[:CANDIDATES]


def _role(many: Tensor, few: Tensor) -> Role:
    """What two batch sizes say about one argument."""
    if many.shape == few.shape:
        return "one" if many.dim() and many.shape[0] == 1 else "fixed"
    ratio, rest = divmod(many.shape[0], PROBE_ROWS[0])
    if rest or few.shape[0] != ratio * PROBE_ROWS[1] or many.shape[1:] != few.shape[1:]:
        raise _Refusal("an argument of its blocks mixes the batch with another dimension")
    return ratio


def _planned(kinds: list[type], probes: Sequence[list[_Call]]) -> list[_Block]:
    """The chain of block calls that the probes agree on; `probes` alternate between many and few rows."""
    chains: list[list[_Call]] = []
    for probe in probes:
        inside = [index for index, call in enumerate(probe) if type(call.module) in kinds]
        if any(set(probe[index].outer) & set(inside) for index in inside):
            raise _Refusal("its blocks contain one another")
        chains.append([probe[index] for index in inside])
    first = chains[0]
    if len(first) < 2:
        raise _Refusal("it has one block, and so no place to exit")
    if any([id(call.module) for call in chain] != [id(call.module) for call in first] for chain in chains):
        raise _Refusal("the blocks that run depend on the input")
    blocks = [_block([chain[index] for chain in chains]) for index in range(len(first))]
    for index, block in enumerate(blocks[:-1]):
        block.direct = all(chain[index + 1].into is chain[index].returned for chain in chains)
    if sum(not block.direct for block in blocks[:-1]) > GAPS:
        raise _Refusal("its blocks don't follow one another")
    return blocks


def _block(seen: Sequence[_Call]) -> _Block:
    """One block of the plan from its call in every probe."""
    call = seen[0]
    path = _hidden_path(call.arguments)
    opaque = next((one.opaque for one in seen if one.opaque), None)
    if opaque:
        raise _Refusal(opaque)
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    for index, one in enumerate(seen):
        into, out, rows = one.into, one.returned, PROBE_ROWS[index % 2]
        if into is None or out is None or _hidden_path(one.arguments) != path:
            raise _Refusal("its blocks don't take and return hidden states")
        if not into.dim() == out.dim() >= 3 or not out.is_floating_point() or not into.shape[0] == out.shape[0] == rows:
            raise _Refusal("its hidden states don't have the batch as first dimension")
        shapes[tuple(into.shape[1:])] = tuple(out.shape[1:])
    roles: dict[Path, set[Role]] = {}
    for many, few in zip(seen[::2], seen[1::2], strict=True):
        for name in many.arguments.keys() & few.arguments.keys():
            roles.setdefault(name, set()).add(_role(many.arguments[name], few.arguments[name]))
    return _Block(
        module=call.module,
        hidden=path or (),
        roles=roles,
        shell=_mapped(call.output, lambda _path, _leaf: None),
        answer=next(iter(_tensors(call.output))),
        shapes=shapes,
        keeps_shape=all(before == after for before, after in shapes.items()),
    )


# --- one forward -------------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """A forward in progress: which rows are active, and where they are."""

    blocks: Sequence[_Block]
    batch: int
    rows: Tensor
    start: State | None
    watch: Watch | None
    exits: Collection[int]
    stop: int | None
    shape: tuple[int, ...]
    """Of one row of the inputs."""
    done: int = 0
    state: State | None = None
    active: Tensor | None = None
    """Hidden states of the active rows, once they are fewer than the batch."""
    handed: Tensor | None = None
    """The tensor that the model was given in their place."""
    hollow: bool = False
    """Whether that tensor has only the shape."""
    selected: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Arguments by identity, cut down to the active rows."""

    def call(self, module: nn.Module, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In place of `module`'s forward, `inner`."""
        if self.done == len(self.blocks) or self.blocks[self.done].module is not module:
            raise UnsupportedModelError("the blocks ran in another order than when exits were attached")
        block = self.blocks[self.done]
        self.done += 1
        if self.start is not None and self.done <= self.start.depth:
            return self._passed(block, self.start, inner, args, kwargs)
        if self.active is None:
            output = inner(*args, **kwargs)
            hidden: Tensor = _at(output, block.answer)
        else:
            output = None
            hidden = self._computed(block, self.active, inner, args, kwargs)
        kept = self._watched(hidden)
        if kept is not None:
            output = None
            hidden = hidden.index_select(0, kept)
            self.rows = self.rows[kept.to(self.rows.device)]
            self.selected.clear()
        if self.stop == self.done:
            self.state = State(self.done, hidden)
            raise _Ended
        if output is not None:
            return output
        self.active, self.hollow = hidden, self.done < len(self.blocks) and block.direct
        self.handed = hidden.new_zeros(()).expand(self.batch, *hidden.shape[1:]) if self.hollow else self._whole(hidden)
        return block.returning(self.handed)

    def _watched(self, hidden: Tensor) -> Tensor | None:
        """Positions that go on, where they aren't all."""
        if self.watch is None or self.done not in self.exits:
            return None
        answer = self.watch(self.done, hidden, self.rows)
        if answer is None:
            return None
        count = hidden.shape[0]
        if answer.dim() != 1 or (answer.dtype == torch.bool and answer.shape[0] != count):
            raise ValueError(f"an answer of shape {tuple(answer.shape)} for {count} active rows")
        if answer.numel() == 0:
            self.rows = self.rows[:0]
            raise _Ended
        kept = answer.nonzero()[:, 0] if answer.dtype == torch.bool else torch.unique(answer)
        if kept.numel() == 0:
            self.rows = self.rows[:0]
            raise _Ended
        if not 0 <= int(kept[0]) <= int(kept[-1]) < count:
            raise ValueError(f"positions outside the {count} active rows")
        return None if kept.numel() == count else kept.to(hidden.device)

    def _whole(self, hidden: Tensor) -> Tensor:
        """The active rows at their places in a batch whose other rows are zero."""
        rows = self.rows.to(hidden.device)
        return hidden.new_zeros(self.batch, *hidden.shape[1:]).index_copy_(0, rows, hidden)

    def _computed(
        self, block: _Block, active: Tensor, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """The block's hidden states for the active rows, from arguments made for the batch."""
        copies = {
            path: block.copies(path, value, self.batch)
            for path, value in _tensors((args, kwargs)).items()
            if value is not self.handed
        }
        whole = None in copies.values()
        given = self._whole(active) if whole and self.hollow else self.handed if whole else active

        def cut(path: Path, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value is self.handed:
                return given
            return value if whole else self._cut(value, copies[path] or 0)

        args, kwargs = _mapped((args, kwargs), cut)
        hidden: Tensor = _at(inner(*args, **kwargs), block.answer)
        return hidden.index_select(0, self.rows.to(hidden.device)) if whole else hidden

    def _cut(self, value: Tensor, copies: int) -> Tensor:
        """The active rows' part of an argument that has so many copies of each row."""
        if copies == 0:
            return value
        if id(value) not in self.selected:
            rows = self.rows.to(value.device)
            if copies > 1:
                rows = (rows[:, None] * copies + torch.arange(copies, device=rows.device)).flatten()
            made = value.index_select(0, rows)
            self.selected[id(value)] = (value, made)  # the original too: its identity must not be taken by another
        return self.selected[id(value)][1]

    def _passed(
        self, block: _Block, start: State, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """In place of a block that was computed earlier: something of the right shape, and the saved states from the last."""
        into: Tensor = _at((args, kwargs), block.hidden)
        shape = tuple(into.shape[1:]) if block.keeps_shape else block.shapes.get(tuple(into.shape[1:]))
        if self.done == start.depth:
            if shape is not None and tuple(start.hidden.shape[1:]) != shape:
                raise ValueError(
                    f"a state of shape {tuple(start.hidden.shape)} for blocks that return {(self.batch, *shape)}"
                )
            return block.returning(start.hidden)
        if shape is None:  # a size that no probe had: computing is the safe way to know what comes out
            return inner(*args, **kwargs)
        return block.returning(into if block.keeps_shape else into.new_zeros(self.batch, *shape))


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


# --- the model with exits ----------------------------------------------------------------------------------------------------


class Attachment:
    """A classifier whose blocks answer to `run`. Made by `attach`; undone by `detach`, or at the end of a `with`.

    Between runs, and for whoever calls the model itself, it computes what it always did. One run at a time.
    """

    def __init__(self, model: Any, kind: Kind, blocks: Sequence[_Block], source: nn.Module | None = None) -> None:
        self.model = model
        self.kind: Kind = kind
        self.style: Style
        """How `pool` makes features of hidden states; set by the self-test."""
        self.merges_lengths = True
        """Whether padding leaves the model's answers alone, so that rows stopped at different lengths may go on together."""
        self._blocks = blocks
        self._run: _Run | None = None
        self._own: list[tuple[nn.Module, Callable[..., Any], Any]] = []
        self._detached = False
        parameters = inspect.signature(model.forward).parameters
        wanted = {"use_cache": False, "output_hidden_states": False, "output_attentions": False, "return_dict": True}
        self._options = {name: value for name, value in wanted.items() if name in parameters}
        for module in {id(block.module): block.module for block in blocks}.values():
            self._wrap(module)
        if source is not None:
            self._skip(source)

    @property
    def depth(self) -> int:
        """Block calls in a forward, L."""
        return len(self._blocks)

    @property
    def blocks(self) -> list[nn.Module]:
        """The modules called, each once, in order."""
        return list({id(block.module): block.module for block in self._blocks}.values())

    def _wrap(self, module: nn.Module) -> None:
        inner: Callable[..., Any] = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return inner(*args, **kwargs) if self._run is None else self._run.call(module, inner, args, kwargs)

        self._replace(module, forward)

    def _skip(self, source: nn.Module) -> None:
        """Where rows go on from a state, the first block's input needn't be made: no block looks at it, only at its shape."""
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
        self._own.append((module, forward, module.__dict__.get("forward")))
        module.__dict__["forward"] = forward

    def detach(self) -> None:
        """The model as it was. A second time does nothing."""
        for module, ours, before in self._own:
            if module.__dict__.get("forward") is not ours:
                continue  # somebody wrapped it since: ours stays inside, and only passes on
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
        self._own.clear()
        self._detached = True

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _rows(self, inputs: Mapping[str, Tensor]) -> int:
        """The batch size; ValueError where there isn't one."""
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
        """One forward of the model over `inputs`, each (B, …), without gradients.

        After every block call k in `exits` (1 … L), `watch(k, hidden, rows)` is given the hidden states (R, …) of the rows
        still active and their indices (R,) in the batch. It returns the positions (r,) or a mask (R,) of those that go on,
        or None for all. The rest is finished, and later blocks don't compute it; if none goes on, the forward ends there.

        `stop` ends the forward after that block: the outcome has the state of the active rows and no logits. `start` goes on
        from such a state, with `inputs` for exactly its rows: embeddings and masks are made anew, blocks up to `start.depth`
        aren't computed, and rows stopped in different batches may be merged.

        ValueError: inputs, state, exits or answer don't fit; RuntimeError: detached, in training mode, or inside a run.
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
        if start is None and watch is None and stop is None:  # nothing to do but what the model does
            with torch.no_grad():
                return Outcome(rows, self.model(**inputs, **self._options).logits, None)
        shape = tuple(inputs[self.model.main_input_name].shape[1:])
        run = _Run(self._blocks, batch, rows, start, watch, frozenset(exits), stop, shape)
        self._run = run
        try:
            with torch.no_grad():
                logits: Tensor = self.model(**inputs, **self._options).logits
        except _Ended:
            return Outcome(run.rows, None, run.state)
        finally:
            self._run = None
        if run.done != self.depth:
            raise UnsupportedModelError("the model ran fewer blocks than when exits were attached")
        return Outcome(run.rows, logits if run.active is None else logits[run.rows.to(logits.device)], None)

    def pool(self, hidden: Tensor, inputs: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """Features (R, F) of hidden states (R, …): of all `inputs`, or of their `rows` (R,), as `watch` is given them."""
        mask = inputs.get("attention_mask") if self.kind == "text" else None
        if mask is not None and rows is not None:
            mask = mask[rows.to(mask.device)]
        return pool(hidden, mask, self.kind, self.style)


def attach(model: Any, example: Mapping[str, Tensor], *, rounds: bool = False) -> Attachment:
    """Exits for a loaded classifier in evaluation mode, tested on rows made from `example`, a batch as it would be given.

    `rounds`: its blocks compute in less than the model's own precision, and the test has to allow for that.
    UnsupportedModelError: the model can't be run in parts or gives other answers then; it's left as it was. DeviceError: it
    ran out of memory.
    """
    name = type(model).__name__
    try:
        kind = _kind(model, example)
        with torch.no_grad():
            given = {key: value for key, value in example.items() if isinstance(value, Tensor)}
            return _attached(model, kind, given, rounds)
    except (UnsupportedModelError, DeviceError):
        raise
    except _Refusal as e:
        raise UnsupportedModelError(f"{name} can't have exits: {e}") from None
    except Exception as e:  # any failure of a foreign model means: leave it alone
        if is_out_of_memory(e):
            raise DeviceError(f"out of memory on {getattr(model, 'device', 'the device')}") from e
        raise UnsupportedModelError(f"{name} can't have exits: {_line(e)}") from e


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _kind(model: Any, example: Mapping[str, Any]) -> Kind:
    """Text or image, for a model that can be tried at all."""
    config = model.config
    main = getattr(model, "main_input_name", None)
    if any(getattr(module.__dict__.get("forward"), "dynx_exits", False) for module in model.modules()):
        raise _Refusal("it has them already")
    if getattr(config, "is_encoder_decoder", False):
        raise _Refusal("it has an encoder and a decoder")
    if any(module.training for module in model.modules()):
        raise _Refusal("it's in training mode (call its eval() first)")
    if getattr(config, "output_hidden_states", False) or getattr(config, "output_attentions", False):
        raise _Refusal("its config asks for all hidden states or attentions, and those need every block")
    if main not in {"input_ids", "pixel_values"}:
        raise _Refusal(f"its main input is {main}, neither text nor images")
    if main not in example or not len(example[main]):
        raise _Refusal(f"the example has no {main}")
    return "image" if main == "pixel_values" else "text"


def _attached(model: Any, kind: Kind, example: dict[str, Tensor], rounds: bool) -> Attachment:
    """The first class of blocks that passes the self-test."""
    if kind == "text" and "attention_mask" not in example:
        example = {**example, "attention_mask": torch.ones_like(example["input_ids"])}
    sample = _Sample(model, kind, example)
    candidates = _candidates(model)
    kinds = {one for several in candidates for one in several}
    probes: list[list[_Call]] = []
    wanted: list[Tensor] = []
    for inputs in sample.probes():
        calls, output = _recorded(model, kinds, {**inputs, **_quiet(model)})
        probes.append(calls)
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(next(iter(inputs.values()))):
            raise _Refusal("it doesn't return logits (rows, classes)")
        wanted.append(logits)
    first: _Refusal | None = None
    for chosen in _finer_first(candidates, probes[0]):
        try:
            blocks = _planned(chosen, probes)
            source = _source(model, blocks[0].module, {**sample.batch(range(PROBE_ROWS[0])), **_quiet(model)})
            if source is not None:
                with suppress(_Refusal, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
                    return _tested(Attachment(model, kind, blocks, source), sample, wanted[0], rounds)
            return _tested(Attachment(model, kind, blocks), sample, wanted[0], rounds)
        except _Refusal as e:
            reason = e
        except Exception as e:  # of a foreign model
            if is_out_of_memory(e):
                raise
            reason = _Refusal(f"it fails when run in parts ({_line(e)})")
        if first is None or chosen == candidates[0]:
            first = reason
    raise first or _Refusal("it has no list of equal blocks")


def _tested(attachment: Attachment, sample: _Sample, want: Tensor, rounds: bool) -> Attachment:
    try:
        _verify(attachment, sample, want, rounds)
    except BaseException:
        attachment.detach()
        raise
    return attachment


def _quiet(model: Any) -> dict[str, bool]:
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


# --- the self-test -----------------------------------------------------------------------------------------------------------


class _Sample:
    """Rows of our own for probes, made from an example so that they suit the model; all different."""

    def __init__(self, model: Any, kind: Kind, example: dict[str, Tensor]) -> None:
        self.kind = kind
        self._example = example
        config = model.config
        self._pad = getattr(
            config.get_text_config() if hasattr(config, "get_text_config") else config, "pad_token_id", None
        )

    def probes(self) -> Iterator[dict[str, Tensor]]:
        """Batches of many and of few rows in turn: padded, and for text also without padding (a mask may be left out then)."""
        for padded in (True, False) if self.kind == "text" else (True,):
            for rows in PROBE_ROWS:
                yield self.batch(range(rows), padded=padded)

    def batch(self, rows: Sequence[int], *, width: int = PROBE_WIDTH, padded: bool = True) -> dict[str, Tensor]:
        """These rows: for text of 7, 5, 4 … tokens, padded on the right to `width`."""
        made = [self._text(row, width, padded=padded) if self.kind == "text" else self._image(row) for row in rows]
        return {key: torch.cat([one[key] for one in made]) for key in made[0]}

    @staticmethod
    def length(row: int) -> int:
        """Tokens of a row."""
        return PROBE_WIDTH if row == 0 else PROBE_WIDTH - 1 - row

    def _text(self, row: int, width: int, *, padded: bool) -> dict[str, Tensor]:
        mask = self._example["attention_mask"]
        source, length = row % mask.shape[0], self.length(row) if padded else width
        real = (mask[source] != 0).nonzero()[:, 0]
        tokens = real[(row + torch.arange(width, device=real.device)) % max(1, len(real))]
        out: dict[str, Tensor] = {}
        for key, value in self._example.items():
            has_tokens = value.dim() > 1 and value.shape[1] == mask.shape[1]
            out[key] = value[source : source + 1].index_select(1, tokens) if has_tokens else value[source : source + 1]
        out["attention_mask"] = torch.ones_like(out["attention_mask"])
        out["attention_mask"][:, length:] = 0
        if self._pad is not None:
            out["input_ids"][:, length:] = self._pad
        return out

    def _image(self, row: int) -> dict[str, Tensor]:
        out = {key: value[row % len(value)].unsqueeze(0) for key, value in self._example.items()}
        pixels = out["pixel_values"]
        out["pixel_values"] = pixels.roll(row * max(1, pixels.shape[-1] // 3), -1) * (1 - 0.2 * row) + 0.1 * row
        return out


def _verify(attachment: Attachment, sample: _Sample, want: Tensor, rounds: bool) -> None:
    """Compares runs in parts with `want`, the untouched model's logits for the first probe; _Refusal where they differ."""
    model, depth = attachment.model, attachment.depth
    middle = (depth + 1) // 2
    inputs = sample.batch(range(PROBE_ROWS[0]))
    alone: Tensor = model(**sample.batch([2]), **attachment._options).logits
    if not bool(torch.isfinite(want).all()):
        raise _Refusal("its logits aren't finite")
    scale = max(1.0, want.abs().max().item())
    floor = 2e-2 if rounds or want.dtype != torch.float32 else 1e-5
    noise = (alone - want[2:]).abs().max().item()
    if noise > 0.05 * scale:
        raise _Refusal("the answer to a row depends on the rest of its batch")
    close = max(floor, 4 * noise / scale)

    def same(got: Tensor | None, wanted: Tensor, how: str) -> None:
        size = max(1.0, torch.nan_to_num(wanted).abs().max().item())
        if got is None or got.shape != wanted.shape:
            raise _Refusal(f"it gives other rows when {how}")
        gap = (torch.nan_to_num(got) - torch.nan_to_num(wanted)).abs().max().item()
        if not gap <= close * size:
            raise _Refusal(f"it gives other answers when {how} (by {gap:.2g})")

    states: dict[int, Tensor] = {}

    def note(k: int, hidden: Tensor, _rows: Tensor) -> None:
        states[k] = hidden

    off = attachment.run(inputs, watch=note, exits=range(1, depth + 1)).logits
    if off is None or not torch.equal(off, want):
        raise _Refusal("it doesn't repeat its own logits with all exits off")
    attachment.run(sample.batch([2, 0, 1]))  # what blocks leave lying about mustn't help those that resume
    for k in _resumed(attachment._blocks):
        same(attachment.run(inputs, start=State(k, states[k])).logits, want, f"resumed after block {k}")
    stopped = attachment.run(inputs, stop=middle).state
    same(None if stopped is None else stopped.hidden, states[middle], f"stopped after block {middle}")

    def thin(k: int, hidden: Tensor, rows: Tensor) -> Tensor | None:
        same(hidden, states[k][rows], "rows leave its batch")
        gone = 1 if k == 1 else 0 if k == max(2, middle) else None
        return None if gone is None else (rows != gone).to(hidden.device)

    left = attachment.run(inputs, watch=thin, exits=range(1, depth + 1))
    same(left.logits, want[2:], "rows leave its batch")
    causal = attachment.kind == "text" and _is_causal(attachment, sample, close)
    attachment.style = pooling_style(model, attachment.kind, states[middle], causal=causal)
    if attachment.kind == "text":
        merged = _merged(attachment, sample, middle)
        attachment.merges_lengths = (merged - want[[1, 2, 0]]).abs().max().item() <= close * scale


def _merged(attachment: Attachment, sample: _Sample, middle: int) -> Tensor:
    """Logits of rows 1, 2 and 0, stopped in two batches of different lengths."""
    short = attachment.run(sample.batch([1, 2], width=sample.length(1)), stop=middle).state
    long = attachment.run(sample.batch([0]), stop=middle).state
    if short is None or long is None:
        raise _Refusal("it can't be stopped")
    logits = attachment.run(sample.batch([1, 2, 0]), start=State.merge([short, long])).logits
    if logits is None:
        raise _Refusal("it can't be resumed")
    return logits


def _is_causal(attachment: Attachment, sample: _Sample, close: float) -> bool:
    """Whether the first token's state is the same whatever comes last."""
    inputs = sample.batch([0, 0], padded=False)
    ids = inputs["input_ids"]
    ids[1, -1] = ids[1, 0] if ids[1, 0] != ids[1, -1] else (ids[1, -1] - 1).abs()
    state = attachment.run(inputs, stop=attachment.depth).state
    if state is None:
        raise _Refusal("it can't be stopped")
    one, other = state.hidden[:, 0].float()
    return bool(((one - other).abs().max() <= close * one.abs().max().clamp(min=1.0)).item())


def _resumed(blocks: Sequence[_Block]) -> list[int]:
    """Depths to resume at: all, or the first, a spread, and both sides of whatever lies between blocks."""
    depth = len(blocks)
    if depth <= RESUMES:
        return list(range(1, depth + 1))
    spread = {1 + (depth - 1) * i // 7 for i in range(8)}
    gaps = {k for k, block in enumerate(blocks[:-1], 1) if not block.direct}
    return sorted(spread | gaps | {k + 1 for k in gaps})
