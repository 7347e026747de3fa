"""Exits in classifiers: the same answers with all exits off, with rows leaving, and in two parts, for many architectures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.classifiers import CLASSES, IMAGE, PAD, TEXT, batch, classifier, images, rows_of, texts
from torch import Tensor, nn

from dynx.early_exit.attach.attach import attach
from dynx.early_exit.attach.hidden_state import State
from dynx.early_exit.attach.pooling import pool, pooling_style
from dynx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dynx.early_exit.attach.model import ExitModel

KINDS = [*TEXT, *IMAGE]
DEPTHS = dict.fromkeys(KINDS, 4) | {"swin": 6, "convnext": 6, "resnet": 6}
"""Block calls; of staged networks the blocks inside the stages."""

STYLES = dict.fromkeys(KINDS, "first") | {
    "gpt2": "last",
    "llama": "last",
    "bloom": "last",
    "swin": "mean",
    "convnext": "channels_first",
    "resnet": "channels_first",
}

NEAR = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(params=KINDS)
def attached(request: pytest.FixtureRequest) -> tuple[str, ExitModel]:
    """An architecture with exits."""
    return request.param, attach(classifier(request.param), batch(request.param, 2, seed=9))


def logits_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def state_after(exits: ExitModel, inputs: dict[str, Tensor], depth: int) -> State:
    state = exits.run(inputs, stop=depth).state
    assert state is not None
    return state


def snapshot(model: nn.Module) -> list[Any]:
    """Everything that an attachment could leave behind: each module's own attributes, and how many hooks it has."""
    return [
        (
            name,
            sorted(module.__dict__),
            module.__dict__.get("forward"),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
        )
        for name, module in model.named_modules()
    ]


class Meter:
    """Counts calls of the layers inside the blocks, and the numbers they put out."""

    def __init__(self, exits: ExitModel) -> None:
        self.calls = self.numbers = 0
        inside = {layer for block in exits._blocks for layer in block.module.modules() if not list(layer.children())}
        for layer in inside:
            layer.register_forward_hook(self._note)

    def _note(self, layer: nn.Module, args: Any, out: Any) -> None:
        self.calls += 1
        self.numbers += out.numel() if isinstance(out, Tensor) else 0

    def of(self, work: Callable[[], Any]) -> tuple[int, int]:
        """Calls and numbers of one piece of work."""
        self.calls = self.numbers = 0
        work()
        return self.calls, self.numbers


# --- every architecture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_exits_off_change_no_bit_and_detaching_leaves_nothing(kind: str) -> None:
    model = classifier(kind)
    before = snapshot(model)
    inputs = [batch(kind, rows, seed=rows) for rows in (1, 2, 5)]
    wanted = [logits_of(model, one) for one in inputs]

    with attach(model, inputs[1]) as exits:
        assert (exits.depth, exits.style, exits.kind) == (
            DEPTHS[kind],
            STYLES[kind],
            "image" if kind in IMAGE else "text",
        )
        assert exits.merges_lengths
        for one, want in zip(inputs, wanted, strict=True):
            outcome = exits.run(one, watch=lambda k, hidden, rows: None, exits=range(1, exits.depth + 1))
            assert outcome.logits is not None
            assert torch.equal(outcome.logits, want)
            assert outcome.rows.tolist() == list(range(len(want)))
            assert outcome.state is None
            assert torch.equal(logits_of(model, one), want)  # not by way of `run`
    assert snapshot(model) == before
    assert torch.equal(logits_of(model, inputs[2]), wanted[2])
    with pytest.raises(RuntimeError, match="detached"):
        exits.run(inputs[0])
    exits.detach()


def test_rows_that_leave_change_nothing_for_the_rest(attached: tuple[str, ExitModel]) -> None:
    kind, exits = attached
    inputs = batch(kind, 7)
    want = logits_of(exits.model, inputs)
    full: dict[int, Tensor] = {}
    exits.run(inputs, watch=lambda k, hidden, rows: full.update({k: hidden}), exits=range(1, exits.depth + 1))
    leaving = {1: [1, 4], exits.depth // 2: [0], exits.depth: [6]}
    seen: list[int] = []

    def watch(k: int, hidden: Tensor, rows: Tensor) -> Tensor | None:
        seen.append(len(rows))
        torch.testing.assert_close(hidden, full[k][rows], **NEAR)
        assert exits.pool(hidden, inputs, rows).shape[0] == len(rows)
        stay = torch.tensor([int(row) not in leaving.get(k, []) for row in rows])
        return stay if k % 2 else stay.nonzero()[:, 0].flip(0)  # a mask or positions, in any order

    outcome = exits.run(inputs, watch=watch, exits=range(1, exits.depth + 1))
    assert seen[0] == 7
    assert seen[1:3] == [5, 4] if exits.depth == 4 else [5, 5]
    assert seen[-1] == 4
    assert outcome.rows.tolist() == [2, 3, 5]
    assert outcome.logits is not None
    torch.testing.assert_close(outcome.logits, want[[2, 3, 5]], **NEAR)


def test_stopping_and_resuming_gives_the_same_and_computes_no_block_twice(attached: tuple[str, ExitModel]) -> None:
    kind, exits = attached
    inputs = batch(kind, 3)
    want = logits_of(exits.model, inputs)
    meter = Meter(exits)
    after: dict[int, int] = {}
    exits.run(inputs, watch=lambda k, hidden, rows: after.update({k: meter.calls}), exits=range(1, exits.depth + 1))
    assert sorted(after.values()) == list(after.values())
    assert len(set(after.values())) == exits.depth
    for depth in range(1, exits.depth + 1):
        assert meter.of(lambda k=depth: exits.run(inputs, stop=k))[0] == after[depth]
        state = state_after(exits, inputs, depth)
        kept = state.hidden.clone()
        calls, _ = meter.of(lambda s=state: exits.run(inputs, start=s))
        assert calls == after[exits.depth] - after[depth]
        outcome = exits.run(inputs, start=state)
        assert outcome.logits is not None
        torch.testing.assert_close(outcome.logits, want, **NEAR)
        assert torch.equal(state.hidden, kept)


def test_finished_rows_are_not_computed(attached: tuple[str, ExitModel]) -> None:
    kind, exits = attached
    inputs = batch(kind, 6)
    meter = Meter(exits)
    _, everything = meter.of(lambda: exits.run(inputs))
    _, first = meter.of(lambda: exits.run(inputs, stop=1))
    _, thinned = meter.of(lambda: exits.run(inputs, watch=lambda *_: torch.tensor([2]), exits=[1]))
    assert thinned - first < 0.5 * (everything - first)  # a sixth, and what a model computes once for all rows
    calls, ended = meter.of(lambda: exits.run(inputs, watch=lambda *_: torch.zeros(6, dtype=torch.bool), exits=[1]))
    assert calls
    assert ended == first


def test_survivors_of_different_batches_go_on_together(attached: tuple[str, ExitModel]) -> None:
    kind, exits = attached
    middle = exits.depth // 2
    if kind in IMAGE:
        one, two = images(3, seed=1), images(2, seed=2)
        everything = {"pixel_values": torch.cat([one["pixel_values"][1:], two["pixel_values"]])}
    else:
        one, two = texts([9, 4, 8], seed=1), texts([5, 3], seed=2)
        longer = texts([5, 3], width=9, seed=2)
        everything = {key: torch.cat([value[1:], longer[key]]) for key, value in one.items()}
    wanted = torch.cat([logits_of(exits.model, one)[1:], logits_of(exits.model, two)])

    first = exits.run(one, watch=lambda k, hidden, rows: rows != 0, exits=[1], stop=middle)
    assert first.rows.tolist() == [1, 2]
    assert first.logits is None
    assert first.state is not None
    state = State.merge([first.state, state_after(exits, two, middle)])
    assert len(state) == 4
    outcome = exits.run(everything, start=state)
    assert outcome.logits is not None
    torch.testing.assert_close(outcome.logits, wanted, **NEAR)

    some = torch.tensor([3, 0])  # and any of them in any order, with rows leaving again, stopping again
    again = exits.run(rows_of(everything, some), start=state.select(some), stop=middle + 1)
    assert again.state is not None
    last = exits.run(
        rows_of(everything, some), start=again.state, watch=lambda *_: torch.tensor([1]), exits=[exits.depth]
    )
    assert last.rows.tolist() == [1]
    assert last.logits is not None
    torch.testing.assert_close(last.logits, wanted[some][last.rows], **NEAR)


def test_a_batch_of_one(attached: tuple[str, ExitModel]) -> None:
    kind, exits = attached
    inputs = batch(kind, 1)
    want = logits_of(exits.model, inputs)
    stays = exits.run(inputs, watch=lambda *_: torch.tensor([True]), exits=[1, 2])
    assert stays.logits is not None
    assert torch.equal(stays.logits, want)
    resumed = exits.run(inputs, start=state_after(exits, inputs, 2)).logits
    assert resumed is not None
    torch.testing.assert_close(resumed, want, **NEAR)
    for stop in (None, 1, 3):
        goes = exits.run(inputs, watch=lambda *_: torch.tensor([False]), exits=[1, 2], stop=stop)
        assert goes.rows.tolist() == []
        assert goes.logits is None
        assert goes.state is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_as_large_as_other_dimensions(kind: str) -> None:
    """Rows in the number of tokens, patches, heads: a position table of that many rows isn't the batch."""
    exits = attach(classifier(kind), batch(kind, 2))
    for size in (4, 6, 17) if kind in IMAGE else (4, 6):
        inputs = images(size) if kind in IMAGE else texts([*range(1, size), size])
        want = logits_of(exits.model, inputs)
        keep = torch.arange(0, size, 2)
        outcome = exits.run(inputs, watch=lambda *_, keep=keep: keep, exits=[1])
        assert outcome.logits is not None
        torch.testing.assert_close(outcome.logits, want[keep], **NEAR)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "mpnet", "vit"])
def test_who_goes_on_needs_no_embeddings(kind: str) -> None:
    """Nothing looks at them: they're made for sizes that weren't seen yet, whose shape isn't known."""
    exits = attach(classifier(kind), batch(kind, 2, seed=9))
    inputs = batch(kind, 3)
    want = logits_of(exits.model, inputs)
    state = state_after(exits, inputs, 2)
    made: list[int] = []
    embedding = next(m for m in exits.model.modules() if isinstance(m, (nn.Embedding, nn.Conv2d)))
    embedding.register_forward_hook(lambda *_: made.append(1))

    first = exits.run(inputs, start=state).logits
    assert first is not None
    torch.testing.assert_close(first, want, **NEAR)
    assert not made
    if kind not in IMAGE:
        wider = {
            key: nn.functional.pad(value, (0, 3), value=PAD * (key == "input_ids")) for key, value in inputs.items()
        }
        for calls in (1, 1):
            again = exits.run(wider, start=state.fit(12)).logits
            assert again is not None
            torch.testing.assert_close(again, want, **NEAR)
            assert len(made) == calls
    assert torch.equal(logits_of(exits.model, inputs), want)


# --- special inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "llama", "modernbert"])
@pytest.mark.parametrize("change", ["none padded", "no mask", "own positions", "padded left", "eager attention"])
def test_arguments_that_no_probe_saw(kind: str, change: str) -> None:
    model = classifier(kind, **({"attn_implementation": "eager"} if change == "eager attention" else {}))
    exits = attach(model, texts([6, 5]))
    inputs = texts([7] * 4 if change in {"none padded", "no mask"} else [7, 3, 6, 5])
    if change == "no mask":
        del inputs["attention_mask"]
    elif change == "own positions":
        inputs["position_ids"] = torch.tensor([[3, 2, 4, 0, 1, 5, 6]] * 4).roll(1, 0) + torch.arange(4)[:, None]
    elif change == "padded left":
        inputs = {
            key: torch.stack([row.roll(7 - n) for row, n in zip(value, [7, 3, 6, 5], strict=True)])
            for key, value in inputs.items()
        }
    want = logits_of(model, inputs)
    outcome = exits.run(inputs, watch=lambda k, h, rows: rows != k, exits=[1, 2])
    assert outcome.rows.tolist() == [0, 3]
    assert outcome.logits is not None
    torch.testing.assert_close(outcome.logits, want[[0, 3]], **NEAR)


@pytest.mark.parametrize("kind", ["resnet", "convnext", "swin"])
def test_images_of_another_size(kind: str) -> None:
    exits = attach(classifier(kind), images(2))
    inputs = images(4, side=64)
    want = logits_of(exits.model, inputs)
    outcome = exits.run(inputs, watch=lambda *_: torch.tensor([1, 3]), exits=[2])
    assert outcome.logits is not None
    torch.testing.assert_close(outcome.logits, want[[1, 3]], **NEAR)
    for depth in range(1, exits.depth + 1):
        resumed = exits.run(inputs, start=state_after(exits, inputs, depth)).logits
        assert resumed is not None
        torch.testing.assert_close(resumed, want, **NEAR)


def test_a_model_in_bfloat16() -> None:
    model = classifier("bert").to(torch.bfloat16)
    exits = attach(model, texts([5, 4]))
    inputs = texts([9, 8, 7, 6])
    outcome = exits.run(inputs, watch=lambda k, h, rows: exits.pool(h, inputs, rows)[:, 0] > -100, exits=[1])
    assert outcome.logits is not None
    assert torch.equal(outcome.logits, logits_of(model, inputs))


def test_models_whose_answers_change_with_padding_say_so() -> None:
    """FNet mixes padding in: rows of different lengths can't go on together, everything else is right."""
    small = {"hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64}
    exits = attach(classifier("fnet", **small), texts([5, 4]))
    assert not exits.merges_lengths
    inputs = texts([6, 6, 6])
    resumed = exits.run(inputs, start=state_after(exits, inputs, 2)).logits
    assert resumed is not None
    torch.testing.assert_close(resumed, logits_of(exits.model, inputs), **NEAR)


def test_no_gradients_and_no_inference_tensors() -> None:
    exits = attach(classifier("bert"), texts([5, 4]))
    state = state_after(exits, texts([5, 4]), 2)
    assert not state.hidden.requires_grad
    head = nn.Linear(64, 2)
    head(exits.pool(state.hidden, texts([5, 4]))).sum().backward()
    assert head.weight.grad is not None


# --- refusals ----------------------------------------------------------------------------------------------------------------


BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("bart", BART, "an encoder and a decoder"),
        ("xlnet", {"d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 64}, "the batch as first dimension"),
        ("gpt2", {"pad_token_id": None}, "no padding token"),
        ("bert", {"num_hidden_layers": 1}, "one block"),
        ("bert", {"output_hidden_states": True}, "all hidden states"),
        ("vit", {"output_attentions": True, "attn_implementation": "eager"}, "all hidden states or attentions"),
    ],
)
def test_refused_architectures(kind: str, settings: dict[str, Any], reason: str) -> None:
    refused(classifier(kind, **settings), batch(kind, 2), reason)


def refused(model: Any, example: dict[str, Tensor], reason: str) -> None:
    """One line that says why, and the model as it was."""
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=reason) as failure:
        attach(model, example)
    assert "\n" not in str(failure.value)
    assert str(failure.value).startswith(type(model).__name__)
    assert snapshot(model) == before


def test_refused_states_of_a_model() -> None:
    model = classifier("bert")
    refused(model, {"pixel_values": torch.zeros(1, 3, 8, 8)}, "no input_ids")
    refused(model, {"input_ids": torch.full((2, 4), 999)}, "index out of range")
    refused(model.train(), texts([3, 2]), "training mode")
    exits = attach(model.eval(), texts([3, 2]))
    refused(model, texts([3, 2]), "has them already")
    model.train()
    with pytest.raises(RuntimeError, match="training mode"):
        exits.run(texts([3, 2]))
    refused(nn.Linear(2, 2), texts([3, 2]), "Linear")


@pytest.mark.parametrize(
    "trick", ["mixes rows", "goes round the blocks", "random", "data-dependent depth", "no logits", "nan"]
)
def test_refused_models_that_would_answer_otherwise(trick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier("bert")
    layers = model.bert.encoder.layer
    plain = [layer.forward for layer in layers]
    kept: list[Tensor] = []

    def mixing(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return plain[1](hidden - hidden.mean(0), *args, **kwargs)

    def keeping(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        kept[:] = [plain[0](hidden, *args, **kwargs)]
        return kept[0]

    def adding(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return plain[3](hidden + kept[0][:, :1], *args, **kwargs)

    def noisy(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return plain[1](hidden + torch.randn_like(hidden), *args, **kwargs)

    reasons = {
        "mixes rows": "depends on the rest of its batch",
        "goes round the blocks": "when resumed after block",
        "random": "repeat its own logits|depends on the rest",
        "data-dependent depth": "depend on the input",
        "no logits": "logits",
        "nan": "finite",
    }
    if trick == "mixes rows":
        layers[1].forward = mixing
    elif trick == "goes round the blocks":
        layers[0].forward, layers[3].forward = keeping, adding
    elif trick == "random":
        layers[1].forward = noisy
    elif trick == "data-dependent depth":
        whole = model.bert.encoder.forward

        def shallow(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            model.bert.encoder.layer = layers if len(hidden) == 3 else layers[:2]
            return whole(hidden, *args, **kwargs)

        monkeypatch.setattr(model.bert.encoder, "forward", shallow)
    elif trick == "no logits":
        model = model.bert
    else:
        with torch.no_grad():
            model.classifier.bias.fill_(float("nan"))
    with pytest.raises(UnsupportedModelError, match=reasons[trick]):
        attach(model, texts([6, 5]))
    assert not any(getattr(m.__dict__.get("forward"), "dynx_exits", False) for m in model.modules())


def test_a_forward_that_was_replaced_before_comes_back() -> None:
    model = classifier("bert")
    layer = model.bert.encoder.layer[1]
    plain = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    layer.forward = forward
    attach(model, texts([3, 2])).detach()
    assert layer.__dict__["forward"] is forward
    exits = attach(model, texts([3, 2]))
    wrapped = layer.forward
    layer.forward = later = lambda *args, **kwargs: wrapped(*args, **kwargs)
    exits.detach()
    assert layer.forward is later  # not ours to remove, and it works
    assert torch.equal(logits_of(model, texts([3, 2])), logits_of(classifier("bert"), texts([3, 2])))


# --- wrong use ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert() -> Iterator[ExitModel]:
    with attach(classifier("bert"), texts([6, 5])) as exits:
        yield exits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exits": [0]}, "blocks 1 to 4"),
        ({"exits": [5]}, "blocks 1 to 4"),
        ({"stop": 0}, "can't stop after block 0"),
        ({"stop": 5}, "can't stop after block 5"),
        ({"start": State(2, torch.zeros(2, 6, 32)), "stop": 2}, "blocks 3 to 4 are left"),
        ({"start": State(5, torch.zeros(2, 6, 32))}, "blocks 1 to 4"),
        ({"start": State(2, torch.zeros(3, 6, 32))}, "2 rows for a state of 3"),
        ({"start": State(2, torch.zeros(2, 5, 32))}, "a state of shape"),
        ({"exits": [1], "watch": lambda *_: torch.tensor([True])}, "2 active rows"),
        ({"exits": [1], "watch": lambda *_: torch.tensor([[0]])}, "2 active rows"),
        ({"exits": [1], "watch": lambda *_: torch.tensor([0, 2])}, "positions outside"),
        ({"exits": [1], "watch": lambda *_: torch.tensor([-1])}, "positions outside"),
    ],
)
def test_wrong_arguments(bert: ExitModel, changes: dict[str, Any], message: str) -> None:
    inputs = texts([6, 5])
    with pytest.raises(ValueError, match=message):
        bert.run(inputs, **changes)
    logits = bert.run(inputs).logits
    assert logits is not None
    assert torch.equal(logits, logits_of(bert.model, inputs))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "must have input_ids"),
        ({**texts([6, 5]), "labels": torch.zeros(2)}, "no labels"),
        ({**texts([6, 5]), "output_hidden_states": True}, "must be tensors"),
        ({**texts([6, 5]), "attention_mask": torch.ones(1, 6)}, "different batch sizes"),
        ({"input_ids": torch.zeros(0, 6, dtype=torch.long)}, "batch sizes or none"),
    ],
)
def test_wrong_inputs(bert: ExitModel, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bert.run(inputs)


def test_a_watch_that_fails_leaves_the_model_usable(bert: ExitModel) -> None:
    inputs = texts([6, 5, 4])

    def failing(k: int, hidden: Tensor, rows: Tensor) -> Tensor | None:
        if k == 3:
            raise ZeroDivisionError
        return torch.tensor([0, 2]) if k == 1 else None

    def again(k: int, hidden: Tensor, rows: Tensor) -> None:
        bert.run(inputs)

    with pytest.raises(ZeroDivisionError):
        bert.run(inputs, watch=failing, exits=[1, 3])
    with pytest.raises(RuntimeError, match="in progress"):
        bert.run(inputs, watch=again, exits=[1])
    logits = bert.run(inputs).logits
    assert logits is not None
    assert logits.shape == (3, CLASSES)
    assert torch.equal(logits, logits_of(classifier("bert"), inputs))


def test_states() -> None:
    one, two = State(2, torch.ones(2, 3, 4)), State(2, torch.full((1, 5, 4), 2.0))
    merged = State.merge([one, two])
    assert merged.hidden.shape == (3, 5, 4)
    assert merged.hidden[0, :, 0].tolist() == [1, 1, 1, 0, 0]
    assert merged.hidden[2, :, 0].tolist() == [2] * 5
    assert State.merge([one, two], length=4).hidden.shape == (3, 4, 4)
    assert State.merge([two], length=7).hidden[0, :, 0].tolist() == [2, 2, 2, 2, 2, 0, 0]
    assert len(merged.select(torch.tensor([True, False, True]))) == 2
    assert merged.select(torch.tensor([2])).hidden[0, 0, 0] == 2
    assert one.fit(3) is one
    for states, length, message in [
        ([], None, "no states"),
        ([one, State(3, one.hidden)], None, "different blocks: 2, 3"),
        ([one, State(2, torch.ones(2, 3, 5))], None, "different shapes"),
        ([State(1, torch.ones(1, 2, 3, 3))], 4, "tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            State.merge(states, length=length)


# --- pooling -----------------------------------------------------------------------------------------------------------------


def test_pooled_features() -> None:
    hidden = torch.arange(24.0).reshape(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    first, last = pool(hidden, mask, "text", "first"), pool(hidden, mask, "text", "last")
    assert first.tolist() == [[0, 1, 2, 3, 2, 3, 4, 5], [12, 13, 14, 15, 18, 19, 20, 21]]
    assert last[:, :4].tolist() == [[4, 5, 6, 7], [20, 21, 22, 23]]
    assert torch.equal(last[:, 4:], first[:, 4:])
    assert pool(hidden, None, "text", "last")[0].tolist() == [8, 9, 10, 11, 4, 5, 6, 7]
    assert pool(hidden, mask[:, :2], "text", "first")[0].tolist() == first[0].tolist()  # the model padded further
    assert torch.isfinite(pool(hidden, torch.zeros(2, 3), "text", "last")).all()
    assert pool(hidden, None, "image", "mean").tolist() == hidden.mean(1).tolist()
    assert pool(hidden.to(torch.bfloat16), None, "image", "first").dtype == torch.float32
    maps = torch.arange(48.0).reshape(2, 3, 2, 4)
    assert pool(maps, None, "image", "channels_first").shape == (2, 3)
    assert pool(maps, None, "image", "channels_last").shape == (2, 4)
    for bad, mask_of, style in [
        (hidden, None, "channels_first"),
        (maps, None, "mean"),
        (hidden, torch.ones(2, 4), "first"),
    ]:
        with pytest.raises(ValueError, match=r"needs|fit"):
            pool(bad, mask_of, "text", style)  # type: ignore[arg-type]


def test_pooling_styles() -> None:
    swin, vit = classifier("swin"), classifier("vit")
    assert pooling_style(vit, "image", torch.zeros(1, 5, 8), causal=False) == "first"
    assert pooling_style(swin, "image", torch.zeros(1, 5, 8), causal=False) == "mean"
    assert pooling_style(swin, "image", torch.zeros(1, 5, 5, 8), causal=False) == "channels_last"
    assert pooling_style(swin, "image", torch.zeros(1, 8, 5, 5), causal=False) == "channels_first"
    assert pooling_style(classifier("convnext"), "image", torch.zeros(1, 8, 4, 6), causal=False) == "channels_first"
    with pytest.raises(ValueError, match="pooled"):
        pooling_style(vit, "text", torch.zeros(1, 2, 3, 4), causal=False)


def test_padding_of_the_builders() -> None:
    assert (texts([2, 4])["input_ids"] == PAD).sum() == 2
