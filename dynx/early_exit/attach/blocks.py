"""The blocks of a classifier: which modules they are, in which order they run, and how to pass them fewer rows.

Nothing is assumed about a model. Probes with two batch sizes find which arguments of a block grow with the batch (a position
table of T rows isn't a batch of T); a call with an argument that no probe had runs on the whole batch, which is slower but
correct.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from dynx.early_exit.attach.arguments import hidden_path, leaves, map_leaves, tensors_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from dynx.early_exit.attach.arguments import Path

PROBE_ROWS = (3, 2)
"""Rows of the two probe batches; arguments that differ between them grow with the batch."""

MAX_GAPS = 8
"""Most places between blocks where something else runs: with more these aren't the blocks of the network."""

MAX_CANDIDATE_CLASSES = 6
"""Most classes of modules that are tried as blocks of one model."""


class Refusal(Exception):  # noqa: N818 - a verdict, not a mistake
    """The reason why a class can't serve as blocks; `attach` catches it."""


Role = int | Literal["one", "fixed"]
"""The first dimension of an argument: this many times the batch, one for all, or something that isn't the batch."""


@dataclass
class Call:
    """One call of a candidate block in a probe."""

    module: nn.Module
    enclosing: tuple[int, ...]
    arguments: dict[Path, Tensor]
    output: Any = None
    unsupported: str | None = None

    @property
    def input_hidden(self) -> Tensor | None:
        """The hidden states among its arguments."""
        path = hidden_path(self.arguments)
        return None if path is None else self.arguments[path]

    @property
    def output_hidden(self) -> Tensor | None:
        """The hidden states in its output."""
        return next(iter(tensors_of(self.output).values()), None)


@dataclass
class Block:
    """One block call of a forward: how to pass rows to it, and how to return an output in its place."""

    module: nn.Module
    hidden: Path
    roles: dict[Path, set[Role]]
    output_template: Any
    """The block's output with None for all leaves; the model must work without the leaves that aren't hidden states."""
    output_path: Path
    """Path of the hidden states in the output."""
    shapes: dict[tuple[int, ...], tuple[int, ...]]
    """Shapes of one row's output by those of its input."""
    keeps_shape: bool
    direct: bool = True
    """Whether the next block takes this block's output tensor itself."""

    def wrap_output(self, hidden: Tensor) -> Any:
        """Return an output of the block's structure with these hidden states."""
        return map_leaves(self.output_template, lambda path, _: hidden if path == self.output_path else None)

    def copies(self, path: Path, value: Tensor, rows: int) -> int | None:
        """Return how often this argument holds each row of a batch of `rows` (two at least); None where that is unknown."""
        if value.dim() == 0:
            return 0
        size, seen = value.shape[0], self.roles.get(path, set[Role]())
        several = {role for role in seen if isinstance(role, int) and size == role * rows}
        if several:
            return None if len(several) > 1 or "fixed" in seen else next(iter(several))
        return 0 if "fixed" in seen or (seen and size == 1) else None


def record_calls(model: nn.Module, kinds: Collection[type], inputs: Mapping[str, Any]) -> tuple[list[Call], Any]:
    """Record the calls of modules of these classes in one forward, in order of starting, and the model's output."""
    calls: list[Call] = []
    stack: list[int] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        unsupported = None
        for _, leaf in leaves((args, kwargs)):
            if hasattr(leaf, "get_seq_length"):
                unsupported = "its blocks write to a key-value cache"
        calls.append(Call(module, tuple(stack), tensors_of((args, kwargs)), unsupported=unsupported))
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


def find_input_module(model: nn.Module, first: nn.Module, inputs: Mapping[str, Any]) -> nn.Module | None:
    """Find the outermost module whose output tensor is the first block's input; None unless it is called exactly once."""
    made: list[tuple[nn.Module, Any]] = []
    found: list[nn.Module] = []

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        made.append((module, output))

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = tensors_of((args, kwargs))
        path = hidden_path(tensors)
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


def candidate_classes(model: nn.Module) -> list[list[type]]:
    """List classes that may be the blocks, the likeliest first."""
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


def order_inner_first(candidates: list[list[type]], calls: Sequence[Call]) -> list[list[type]]:
    """Order classes so that those inside another, called more often, come before it: blocks before their stages."""
    at = {tuple(kinds): [i for i, call in enumerate(calls) if type(call.module) in kinds] for kinds in candidates}

    def is_inside(inner: list[type], enclosing: list[type]) -> bool:
        around, called = set(at[tuple(enclosing)]), at[tuple(inner)]
        return len(called) > len(around) and all(around & set(calls[i].enclosing) for i in called)

    order: list[list[type]] = []
    for kinds in candidates:
        insides = [inner for inner in candidates if inner != kinds and is_inside(inner, kinds)]
        for chosen in (*insides, kinds):
            if chosen not in order and at[tuple(chosen)]:
                order.append(chosen)
    return order[:MAX_CANDIDATE_CLASSES]


def _role(many: Tensor, few: Tensor) -> Role:
    """Find the role of one argument from its values at two batch sizes."""
    if many.shape == few.shape:
        return "one" if many.dim() and many.shape[0] == 1 else "fixed"
    ratio, rest = divmod(many.shape[0], PROBE_ROWS[0])
    if rest or few.shape[0] != ratio * PROBE_ROWS[1] or many.shape[1:] != few.shape[1:]:
        raise Refusal("an argument of its blocks mixes the batch with another dimension")
    return ratio


def plan_blocks(kinds: list[type], probes: Sequence[list[Call]]) -> list[Block]:
    """Make the chain of block calls that all probes share; `probes` alternate between many and few rows."""
    chains: list[list[Call]] = []
    for probe in probes:
        inside = [index for index, call in enumerate(probe) if type(call.module) in kinds]
        if any(set(probe[index].enclosing) & set(inside) for index in inside):
            raise Refusal("its blocks contain one another")
        chains.append([probe[index] for index in inside])
    first = chains[0]
    if len(first) < 2:
        raise Refusal("it has one block, and so no place to exit")
    if any([id(call.module) for call in chain] != [id(call.module) for call in first] for chain in chains):
        raise Refusal("the blocks that run depend on the input")
    blocks = [_block([chain[index] for chain in chains]) for index in range(len(first))]
    for index, block in enumerate(blocks[:-1]):
        block.direct = all(chain[index + 1].input_hidden is chain[index].output_hidden for chain in chains)
    if sum(not block.direct for block in blocks[:-1]) > MAX_GAPS:
        raise Refusal("its blocks don't follow one another")
    return blocks


def _block(seen: Sequence[Call]) -> Block:
    """Make one block from its call in every probe."""
    call = seen[0]
    path = hidden_path(call.arguments)
    unsupported = next((one.unsupported for one in seen if one.unsupported), None)
    if unsupported:
        raise Refusal(unsupported)
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    for index, one in enumerate(seen):
        input_hidden, out, rows = one.input_hidden, one.output_hidden, PROBE_ROWS[index % 2]
        if input_hidden is None or out is None or hidden_path(one.arguments) != path:
            raise Refusal("its blocks don't take and return hidden states")
        if (
            not input_hidden.dim() == out.dim() >= 3
            or not out.is_floating_point()
            or not input_hidden.shape[0] == out.shape[0] == rows
        ):
            raise Refusal("its hidden states don't have the batch as first dimension")
        shapes[tuple(input_hidden.shape[1:])] = tuple(out.shape[1:])
    roles: dict[Path, set[Role]] = {}
    for many, few in zip(seen[::2], seen[1::2], strict=True):
        for name in many.arguments.keys() & few.arguments.keys():
            roles.setdefault(name, set()).add(_role(many.arguments[name], few.arguments[name]))
    return Block(
        module=call.module,
        hidden=path or (),
        roles=roles,
        output_template=map_leaves(call.output, lambda _path, _leaf: None),
        output_path=next(iter(tensors_of(call.output))),
        shapes=shapes,
        keeps_shape=all(before == after for before, after in shapes.items()),
    )
