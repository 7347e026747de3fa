"""Counting and answering a network's calls; what a prediction means elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from dynx.diffusion.denoiser import Denoiser, Order, conditional_half
from dynx.diffusion.schedule import Noise
from dynx.diffusion.solver import Carry, clean_picture

if TYPE_CHECKING:
    from dynx.diffusion.pipelines import Prediction


class Answer(BaseOutput):  # type: ignore[misc]  # diffusers is untyped
    """A network's."""

    sample: Tensor
    other: Any = None


class Network(nn.Module):
    """Answers with its rows times its text, in any of three forms, and remembers what it was given."""

    def __init__(self, form: str = "tuple") -> None:
        super().__init__()
        self.form = form
        self.given: list[dict[str, Any]] = []

    def forward(self, sample: Tensor, timestep: Any = None, text: Tensor | None = None, **others: Any) -> Any:
        """Rows times text."""
        self.given.append({"sample": sample, "timestep": timestep, "text": text, **others})
        made = sample * (1.0 if text is None else text)
        if self.form == "tensor":
            return made
        return (made, "more") if self.form == "tuple" else Answer(sample=made, other="more")


def first(output: Any) -> Tensor:
    """The tensor in any form."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


X = torch.arange(1.0, 5.0)[:, None]


@pytest.mark.parametrize("form", ["tensor", "tuple", "object"])
def test_calls_are_answered_from_memory_in_their_own_form(form: str) -> None:
    """A reused answer costs no call and looks like a computed one."""
    network = Network(form)
    with Denoiser(network) as denoiser:
        computed = network(X, 9.0)
        denoiser.next(Order("reuse"), 1.0)
        reused = network(2 * X, 8.0)
        denoiser.next(Order("compute"), 1.0)
        network(2 * X, 7.0)

    assert type(reused) is type(computed)
    assert torch.equal(first(reused), first(computed))
    if form == "object":
        assert reused.other == "more"
    assert (denoiser.calls, denoiser.rows, denoiser.timesteps) == (2, 8, [9.0, 7.0])
    assert len(network.given) == 2


def test_two_calls_a_step_are_told_apart() -> None:
    """A pipeline that asks for prompt and negative prompt one after the other gets each its own."""
    network = Network()
    with Denoiser(network) as denoiser:
        one, two = network(X, 9.0), network(3 * X, 9.0)
        denoiser.next(Order("reuse"), 1.0)
        again = network(X, 8.0), network(X, 8.0)
        assert denoiser.calls_in_step == 2

    assert torch.equal(again[0][0], one[0])
    assert torch.equal(again[1][0], two[0])
    assert denoiser.calls == 2


def test_nothing_to_reuse_is_computed() -> None:
    """A first call, or one of another shape, can't come from memory."""
    network = Network()
    with Denoiser(network) as denoiser:
        denoiser.next(Order("reuse"), 1.0)
        network(X, 9.0)
        denoiser.next(Order("reuse"), 1.0)
        network(X[:2], 8.0)

    assert denoiser.calls == 2


@pytest.mark.parametrize("half", [0, 1])
def test_half_a_batch_answers_for_both(half: int) -> None:
    """Every argument that has the batch's rows is halved, however deep, and nothing else."""
    network = Network()
    text = torch.tensor([[2.0], [2.0], [5.0], [5.0]])
    with Denoiser(network) as denoiser:
        denoiser.next(Order(half=half, rows=4), 1.0)
        answer = network(X, torch.tensor([7.0] * 4), text=text, added={"ids": [text, "word"]}, txt_ids=text)[0]
        whole = network(X[:2], 7.0)[0]  # a batch of another size isn't halved

    rows = slice(2 * half, 2 * half + 2)
    given = network.given[0]
    assert torch.equal(given["sample"], X[rows])
    assert torch.equal(given["text"], text[rows])
    assert torch.equal(given["added"]["ids"][0], text[rows])
    assert given["added"]["ids"][1] == "word"
    assert given["timestep"].shape == (2,)
    assert given["txt_ids"].shape == (4, 1)
    assert torch.equal(answer, torch.cat([X[rows] * text[rows]] * 2))
    assert torch.equal(whole, X[:2])
    assert (denoiser.calls, denoiser.rows) == (2, 4)


def test_the_module_is_whole_again() -> None:
    """Also where somebody had replaced `forward` before, and after an exception."""
    network = Network()
    own = Network.forward
    with pytest.raises(RuntimeError, match="on purpose"), Denoiser(network):
        raise RuntimeError("on purpose")
    assert "forward" not in network.__dict__

    def hooked(*args: Any, **kwargs: Any) -> Any:
        return own(network, *args, **kwargs)

    network.forward = hooked  # type: ignore[method-assign]
    denoiser = Denoiser(network)
    denoiser.attach()
    with pytest.raises(RuntimeError, match="attached twice"):
        denoiser.attach()
    network(X)
    denoiser.detach()
    denoiser.detach()
    assert network.forward is hooked
    assert denoiser.calls == 1


def test_the_conditional_half_is_found_by_the_formula() -> None:
    """Whichever half it is, from what the pipeline made of both; another formula isn't taken for it."""
    torch.manual_seed(0)
    without, with_text = torch.randn(2, 2, 4, 3)
    guided = without + 3.5 * (with_text - without)

    assert conditional_half(torch.cat([without, with_text]), guided) == 1
    assert conditional_half(torch.cat([with_text, without]), guided) == 0
    assert conditional_half(torch.cat([without, with_text]), guided * 0.9) is None
    assert conditional_half(torch.cat([without, with_text]), without) is None
    assert conditional_half(torch.cat([without, without]), without) is None
    assert conditional_half(with_text, with_text) is None
    extra = torch.cat([torch.cat([without, with_text]), torch.randn(4, 4, 3)], dim=1)  # a predicted variance
    assert conditional_half(extra, torch.cat([guided, torch.randn(2, 4, 3)], dim=1)[:, :4]) == 1
    low = torch.cat([without, with_text]).bfloat16()
    u, c = low.chunk(2)
    assert conditional_half(low, u + 3.5 * (c - u)) == 1


VP = Noise(torch.linspace(0.02, 14, 1000).double().numpy())


@pytest.mark.parametrize(
    ("kind", "noise"), [("epsilon", VP), ("v_prediction", VP), ("sample", VP), ("flow_prediction", Noise(None))]
)
def test_a_straight_trajectory_needs_one_prediction(kind: Prediction, noise: Noise) -> None:
    """Picture and noise as they were: what is carried to another level is what the network would have said there."""
    torch.manual_seed(0)
    picture, gauss = torch.randn(2, 2, 4, 3, 3)

    def at(sigma: float) -> tuple[Tensor, Tensor]:
        alpha, spread = noise.parts(sigma)
        said = {
            "epsilon": gauss,
            "v_prediction": alpha * gauss - spread * picture,
            "sample": picture,
            "flow_prediction": gauss - picture,
        }[kind]
        return alpha * picture + spread * gauss, said

    high, low = (0.8, 0.3) if noise.flow else (5.0, 0.7)
    (x, said), (x_there, said_there) = at(high), at(low)

    assert torch.allclose(Carry(kind, noise)(said, x, high, x_there, low), said_there, atol=1e-5)
    assert torch.allclose(clean_picture(kind, noise, said, x, high), picture, atol=1e-5)
    variance = torch.cat([said, torch.randn_like(said)], dim=1)
    assert torch.allclose(clean_picture(kind, noise, variance, x, high), picture, atol=1e-5)
