"""IPEX as a backend: only for its own torch, never a word of its own, and the unmodified model's logits or a reason.

Most of it runs against a stand-in; what needs the extension itself says so when it is skipped (`tests/environments/ipex.py`
makes a place that has it).
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.models import ROLLING, VOCAB, generated, perturbed, reference, tiny
from torch import nn

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends import availability, ipex
from dynx.runtime.backends.eager import CACHE_HEADROOM_TOKENS
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.policy import Static
from dynx.speculation.types import Request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dynx.runtime.backends.ipex import IpexBackend
    from dynx.speculation.types import DraftSource

CAN = availability.can_use_ipex("cpu")
real = pytest.mark.skipif(not CAN.value, reason=CAN.reason)

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 3e-4}
TEXT = [(11 * i * i + 5 * i + 3) % VOCAB for i in range(CACHE_HEADROOM_TOKENS + 60)]
NAME = "intel_extension_for_pytorch"

NOISY = """
import ctypes, os, sys, warnings
print("Python's stdout")
print("Python's stderr", file=sys.stderr)
os.write(1, b"the descriptor")
os.write(2, b"the other descriptor")
ctypes.CDLL(None).puts(b"C's stdout, which C may hold back")
warnings.warn("a warning")
"""

STAND_IN = """
def optimize(module, *, dtype, inplace):
    assert inplace and not module.training
    return module
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts distributions in front of those that are there, by metadata; `source` is what importing IPEX runs."""

    def put(source: str = STAND_IN, **versions: str) -> None:
        for name, version in versions.items():
            folder = tmp_path / f"{name}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (tmp_path / NAME).mkdir()
        (tmp_path / NAME / "__init__.py").write_text(source)
        monkeypatch.delitem(sys.modules, NAME, raising=False)
        monkeypatch.syspath_prepend(tmp_path)

    return put


@pytest.fixture
def stand_in(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a stand-in for this torch's own IPEX there."""
    monkeypatch.setitem(sys.modules, NAME, None)  # so that whatever is imported now is forgotten afterwards
    return lambda source: install(source, **{NAME: torch.__version__, "torch": torch.__version__})


@pytest.mark.parametrize(
    ("extension", "torch_", "usable", "said"),
    [
        ("2.8.0", "2.8.0", True, "IPEX 2.8.0"),
        ("2.8.0+cpu", "2.8.0+cpu", True, "IPEX 2.8.0+cpu"),
        ("2.8.0", "2.8.1+cu128", True, "IPEX 2.8.0"),
        ("2.8.0", "2.8.0a0+git1234567", True, "IPEX 2.8.0"),
        ("2.8.10+xpu", "2.8", True, "IPEX 2.8.10+xpu"),
        ("2.8.0", "2.9.0", False, "IPEX 2.8.0 is installed: it needs torch 2.8, and 2.9.0 is installed"),
        ("2.8.0", "2.13.0+cpu", False, "it needs torch 2.8, and 2.13.0+cpu is installed"),
        ("2.8.0", "2.80.0", False, "it needs torch 2.8, and 2.80.0 is installed"),
        ("2.8.0", "12.8.0", False, "it needs torch 2.8, and 12.8.0 is installed"),
        ("2.7.0", "2.8.0", False, "it needs torch 2.7, and 2.8.0 is installed"),
    ],
)
def test_it_goes_with_its_own_torch(
    extension: str, torch_: str, usable: bool, said: str, install: Callable[..., None]
) -> None:
    """Usable where the major and minor versions in the metadata agree; else both are named. Nothing is imported."""
    install("raise AssertionError('imported')", **{NAME: extension, "torch": torch_})
    found = availability.can_use_ipex("cpu")

    assert found.value is usable
    assert said in found.reason
    assert NAME not in sys.modules


def test_absent_it_is_asked_for_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it there's a sentence that says how to get it, and without a processor one that says so."""

    def absent(name: str) -> str:
        raise availability.metadata.PackageNotFoundError(name)

    assert availability.can_use_ipex("cuda:0").reason == "IPEX is used on processors only, not on cuda:0"
    monkeypatch.setattr(availability.metadata, "version", absent)
    assert availability.can_use_ipex("cpu").reason == "IPEX isn't installed (pip install 'dynx[ipex]')"
    with pytest.raises(UnsupportedModelError, match="IPEX isn't installed"):
        ipex.load(tiny("llama"))


def test_for_another_torch_it_is_never_imported(
    install: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """A release for another torch is refused before it can print or end the process."""
    install("import os\nprint('ERROR!')\nos._exit(127)", **{NAME: "1.2.0", "torch": torch.__version__})
    with pytest.raises(UnsupportedModelError, match=re.escape("it needs torch 1.2, and")):
        ipex.load(tiny("llama"))

    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("os.exit(127)", "AttributeError: module 'os' has no attribute 'exit'"),
        ("sys.exit(127)", "SystemExit: 127"),
        ("import no_such_library", "ModuleNotFoundError"),
    ],
)
def test_a_loud_failure_is_a_quiet_reason(
    ending: str, said: str, stand_in: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever the extension writes while it fails to load, by any road, is dropped; the reason stays, and so do the streams."""
    stand_in(NOISY + ending)
    with pytest.raises(UnsupportedModelError, match=re.escape(said)):
        ipex.extension()
    print("the product")  # noqa: T201
    print("a word", file=sys.stderr)  # noqa: T201

    assert capfd.readouterr() == ("the product\n", "a word\n")


def test_a_loud_success_is_quiet(stand_in: Callable[[str], None], capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is heard of it either where it loads and works."""
    stand_in(NOISY + STAND_IN.replace("    return", "    print('optimized', flush=True)\n    return"))
    module = nn.Linear(3, 3).train()

    assert ipex.optimize(module, torch.float32) is module
    assert not module.training
    assert capfd.readouterr() == ("", "")


def test_silence_with_closed_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was started without stdout is silenced as well."""

    def closed(_: int) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(ipex.os, "dup", closed)
    with ipex.silence():
        sys.stdout.write("nowhere")


def test_what_agrees_is_taken(stand_in: Callable[[str], None]) -> None:
    """A model whose logits stay the same is a backend under its own name, at its own precision."""
    stand_in(STAND_IN)
    backend = ipex.load(tiny("llama"))
    with torch.inference_mode():
        want = reference("llama")(input_ids=torch.tensor([TEXT[:20]]), use_cache=False).logits[0]

    assert (backend.name, backend.precision) == ("ipex", "float32")
    torch.testing.assert_close(backend.open().forward(TEXT[:20]), want, **CLOSE)


@pytest.mark.parametrize(
    ("doing", "said"),
    [
        ("module.lm_head.weight.data *= 1.5", "llama gives other logits on IPEX"),
        ("module.lm_head.weight.data *= float('nan')", "llama gives other logits on IPEX"),
        ("module.forward = lambda **_: 1 / 0", "llama doesn't run on IPEX (ZeroDivisionError"),
        ("assert False, 'no AVX-512 here'", "IPEX can't take its layers (AssertionError: no AVX-512 here)"),
    ],
)
def test_what_disagrees_is_refused(doing: str, said: str, stand_in: Callable[[str], None]) -> None:
    """Layers that give other logits, fail, or can't be made are never used, and the reason is one sentence."""
    stand_in(STAND_IN.replace("    return", f"    {doing}\n    return"))
    with pytest.raises(UnsupportedModelError, match=re.escape(said)):
        ipex.load(tiny("llama"))


def test_trusted_it_is_compared_no_more(stand_in: Callable[[str], None]) -> None:
    """With a profile that says it agreed, the start isn't spent on finding out again."""
    stand_in(STAND_IN.replace("    return", "    module.lm_head.weight.data *= 1.5\n    return"))

    assert ipex.load(tiny("llama"), trusted=True).name == "ipex"


@pytest.mark.parametrize("kind", ["mamba"])
def test_what_cannot_go_back_is_refused(kind: str, stand_in: Callable[[str], None]) -> None:
    """A recurrent model is left to plain PyTorch."""
    stand_in(STAND_IN)
    with pytest.raises(UnsupportedModelError, match="recurrent state"):
        ipex.load(tiny(kind))


@pytest.fixture(scope="module", params=sorted(ROLLING))
def kind(request: pytest.FixtureRequest) -> str:
    """Every architecture whose cache can be rolled back."""
    return str(request.param)


@pytest.fixture(scope="module")
def backend(kind: str) -> IpexBackend:
    """One backend for all tests of an architecture: sessions must not leave traces."""
    return ipex.load(model(kind))


def model(kind: str) -> Any:
    """Of an architecture, with room for a text that outgrows a cache."""
    return tiny(kind, **({"n_positions": len(TEXT)} if kind in ("gpt2", "gptj") else {}))


@real
def test_any_split_is_one_forward(kind: str, backend: IpexBackend) -> None:
    """A text fed in pieces, guesses taken back in between, gives the logits of the unmodified model's single pass."""
    session, rows, at = backend.open(), [], 0
    for count in (3, 1, 9, 4, CACHE_HEADROOM_TOKENS, 1, 6):
        session.forward(TEXT[:5])
        session.rollback(at)
        rows.append(session.forward(TEXT[at : at + count]))
        at += count
    with torch.inference_mode():
        want = model(kind)(input_ids=torch.tensor([TEXT[:at]]), use_cache=False).logits[0]

    torch.testing.assert_close(torch.cat(rows), want, **CLOSE)


@real
@pytest.mark.parametrize("kind_", ["llama", "gpt2"])
def test_bfloat16_is_as_close_as_bfloat16(kind_: str) -> None:
    """In 16 bits its logits are as far from those in 32 as PyTorch's own are, within a factor."""
    with torch.inference_mode():
        ids = torch.tensor([TEXT[:40]])
        exact = tiny(kind_)(input_ids=ids, use_cache=False).logits[0]
        eager = tiny(kind_).bfloat16()(input_ids=ids, use_cache=False).logits[0].float()
    backend = ipex.load(tiny(kind_).bfloat16())
    got = backend.open().forward(TEXT[:40]).float()

    assert backend.precision == "bfloat16"
    assert (got - exact).pow(2).mean().sqrt() < 2 * (eager - exact).pow(2).mean().sqrt()


@real
def test_exits_in_two_parts(kind: str, backend: IpexBackend) -> None:
    """The first layers' guess and the rest for the same token make the whole model's logits."""
    assert backend.can_exit.value, backend.can_exit.reason
    session = backend.open()
    whole = backend.open().forward(TEXT[:9])
    session.forward(TEXT[:6])
    session.forward_early(TEXT[6:9], 1)

    torch.testing.assert_close(session.complete(), whole[6:], **CLOSE)


@real
@pytest.mark.parametrize("kind_", ["llama", "gpt2"])
@pytest.mark.parametrize("origin", ["draft", "self", "lookup"])
def test_the_engine_writes_the_same_text(kind_: str, origin: DraftSource) -> None:
    """Guessing on IPEX, whoever guesses, writes what transformers' greedy decoding writes, token for token."""
    drafter = ipex.load(perturbed(tiny(kind_), 0.3)) if origin == "draft" else None
    drafters = Drafters(model=drafter, exit_layers=2 if origin == "self" else None, lookup=origin == "lookup")
    run = Engine(ipex.load(tiny(kind_)), drafters).start(Request(TEXT[:10], 60), Static(origin, 4))

    assert [token.id for token in run] == generated(kind_, tuple(TEXT[:10]), 60)


@real
def test_a_classifier_is_optimized_as_well() -> None:
    """Any module will do: an encoder in 16 bits labels as before."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    torch.manual_seed(0)
    plain = BertForSequenceClassification(config).eval().bfloat16()
    ids = torch.arange(24).reshape(2, 12)
    with torch.inference_mode():
        want = plain(input_ids=ids).logits
        got = ipex.optimize(plain, torch.bfloat16)(input_ids=ids).logits

    torch.testing.assert_close(got, want, rtol=0.05, atol=0.02)
