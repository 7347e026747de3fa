"""One module on other kernels: the same answers, arranged as the module does it, kept for the next process; or a refusal."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends import network as modules
from dynx.runtime.backends.availability import can_compile
from dynx.runtime.backends.network import NetworkBackend

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of OpenVINO's and torch's own tracing
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

OPENVINO = pytest.param(
    "openvino",
    marks=pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO isn't installed"),
)
COMPILED = pytest.param(
    "torch-compiled", marks=pytest.mark.skipif(not can_compile("cpu").value, reason=can_compile("cpu").reason)
)
KEPT = pytest.mark.parametrize("backend", [COMPILED, OPENVINO])


@dataclass
class Answer(BaseOutput):  # type: ignore[misc]  # diffusers is untyped
    """Named, as diffusers' networks answer."""

    sample: Tensor


class Network(nn.Module):
    """A convolution whose answer depends on a time, a condition in a dictionary, and a switch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor, time: Any, *, added: dict[str, Tensor], twice: bool = False) -> Answer:
        """(B, 4, H, W) and (B, 4)."""
        out = self.conv(x) + torch.sin(time * 0.01) + added["text"][:, :, None, None]
        return Answer(sample=2 * out if twice else out)


class Shy(Network):
    """Depends on numbers in a way that no tracing can follow."""

    def forward(self, x: Tensor, time: Any, **others: Any) -> Answer:
        """Of another shape at each time."""
        return super().forward(x[:, :, : int(time)], time, **others)


def call(rows: int = 2, *, seed: int = 1, **others: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments; the time differs with the seed."""
    make = torch.Generator().manual_seed(seed)
    text = torch.randn(rows, 4, generator=make)
    return (torch.randn(rows, 4, 8, 8, generator=make), torch.tensor(100 * seed)), {"added": {"text": text}, **others}


def prepared(backend: str, cache: Path | None, network: nn.Module, dtype: str = "float32") -> NetworkBackend:
    """Kernels for calls of two rows."""
    kernels = NetworkBackend(network, backend, dtype=dtype, threads=1, cache=cache)
    kernels.prepare(*call())
    return kernels


def refused(*_: Any, **__: Any) -> Any:
    raise AssertionError("ran as it is")


@KEPT
def test_answers_are_the_modules(backend: str, tmp_path: Path) -> None:
    """At other values of all tensors too, in the module's own class of answers; earlier answers outlive later calls."""
    network = Network()
    kernels = prepared(backend, tmp_path / "kept", network)
    first = kernels(refused, *call()[:1], call()[1])
    for seed in (2, 3):
        args, kwargs = call(seed=seed)
        answer = kernels(refused, args, kwargs)

        assert isinstance(answer, Answer)
        torch.testing.assert_close(answer.sample, network(*args, **kwargs).sample, rtol=1e-4, atol=1e-5)
    args, kwargs = call()
    torch.testing.assert_close(first.sample, network(*args, **kwargs).sample, rtol=1e-4, atol=1e-5)
    assert (kernels.made, kernels.passed) == (1, 0)


@KEPT
def test_the_next_process_makes_nothing(backend: str, tmp_path: Path) -> None:
    """What was made is found again; one that is torn is made anew, and nothing is left of drafts."""
    network, folder = Network(), tmp_path / "kept"
    prepared(backend, folder, network)
    (kept,) = (path for path in folder.iterdir() if path.is_dir())
    again = prepared(backend, folder, network)
    args, kwargs = call(seed=4)

    assert again.made == 0
    answer = again(refused, args, kwargs)
    torch.testing.assert_close(answer.sample, network(*args, **kwargs).sample, rtol=1e-4, atol=1e-5)
    for file in kept.iterdir():
        file.write_bytes(b"torn")
    assert prepared(backend, folder, network).made == 1
    assert [path for path in folder.iterdir() if path.is_dir()] == [kept]


@KEPT
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_preparing_leaves_the_module(backend: str, dtype: str, tmp_path: Path) -> None:
    """Its tensors are the same objects with the same bits, its hooks are its own, and it answers as before to the last bit."""
    network = Network()
    network.conv.register_forward_hook(lambda *_: None)
    args, kwargs = call()
    want = network(*args, **kwargs).sample
    before = {name: (tensor, tensor.clone(), tensor.dtype) for name, tensor in network.named_parameters()}
    inner = {name: sorted(vars(module)) for name, module in network.named_modules()}
    prepared(backend, tmp_path, network, dtype)
    for name, tensor in network.named_parameters():
        same, bits, kind = before[name]
        assert tensor is same
        assert tensor.dtype is kind
        assert torch.equal(tensor, bits)
    assert {name: sorted(vars(module)) for name, module in network.named_modules()} == inner
    assert torch.equal(network(*args, **kwargs).sample, want)


@KEPT
def test_nowhere_to_keep_it(backend: str, tmp_path: Path) -> None:
    """A folder that can't be made costs the keeping only."""
    (tmp_path / "file").touch()
    kernels = prepared(backend, tmp_path / "file" / "kept", Network())

    assert kernels.made == 1
    assert isinstance(kernels(refused, *call()), Answer)


def test_half_the_bits() -> None:
    """PyTorch's own kernels in bfloat16 answer in float32, near what the module says, which itself stays as it was."""
    network = Network()
    kernels = prepared("torch-eager", None, network, "bfloat16")
    args, kwargs = call()
    answer, want = kernels(refused, args, kwargs).sample, network(*args, **kwargs).sample.detach()

    assert answer.dtype == want.dtype == torch.float32
    assert 0 < float((answer - want).norm() / want.norm()) < 0.02


@pytest.mark.parametrize("others", [call(4), call(twice=True), ((*call()[0][:1], 100), call()[1])])
def test_calls_of_another_form_run_as_they_are(others: Any) -> None:
    """Other rows, other settings, a number in a tensor's place: the module answers, and it is counted."""
    kernels = prepared("torch-eager", None, Network(), "bfloat16")

    assert kernels(lambda *args, **kwargs: (args, kwargs), *others) == others
    assert kernels.passed == 1


@KEPT
def test_what_cannot_be_traced_is_refused(backend: str, tmp_path: Path) -> None:
    """In a sentence with the network's name; nothing is kept."""
    with pytest.raises(UnsupportedModelError, match=r"^Shy can't be prepared for .*\(.*\)$"):
        prepared(backend, tmp_path / "kept", Shy())
    assert not list(tmp_path.glob("kept/*"))


def test_other_answers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What doesn't answer as the module does isn't used."""
    monkeypatch.setattr(modules, "_eager", lambda flat: lambda tensors: [1.5 * t for t in flat(*tensors)])
    with pytest.raises(
        UnsupportedModelError, match=r"Network isn't computed by PyTorch: it answers otherwise \(by 0\.5"
    ):
        prepared("torch-eager", tmp_path, Network(), "bfloat16")


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO isn't installed")
def test_a_compiler_that_crashes_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO is tried in a process of its own, by other settings next; if all end that process, this one says so and lives."""
    died = "import os, signal, sys\n'SNIPPETS' in sys.argv[2] or os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(modules, "TRIAL_SCRIPT", died)
    assert prepared("openvino", tmp_path / "kept", Network()).made == 1
    monkeypatch.setattr(modules, "TRIAL_SCRIPT", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(UnsupportedModelError, match="its compiler ended by 11"):
        prepared("openvino", tmp_path / "other", Network())
