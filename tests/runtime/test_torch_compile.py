"""Compiled PyTorch as a backend: whatever is run and rolled back, the logits are eager PyTorch's, or there's a reason."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.models import VOCAB, generated, perturbed, reference, tiny
from torch import nn
from transformers.pytorch_utils import Conv1D

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends import availability, compile_cache, compile_graph, packed_linear, torch_compile
from dynx.runtime.backends.eager import CACHE_HEADROOM_TOKENS, EagerBackend
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.policy import Static
from dynx.speculation.types import Request

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from dynx.runtime.backends.torch_compile import CompiledBackend
    from dynx.speculation.types import DraftSource

CAN = availability.can_compile("cpu")
if not CAN.value:
    pytest.skip(CAN.reason, allow_module_level=True)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 3e-4}
TEXT = [(11 * i * i + 5 * i + 3) % VOCAB for i in range(700)]


@pytest.fixture(scope="module", params=["llama", "qwen3", "gpt2"])
def kind(request: pytest.FixtureRequest) -> str:
    """Architectures that differ in attention, positions and activations."""
    return str(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled code is kept for this file."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def backend(kind: str, folder: Path) -> CompiledBackend:
    """One backend for all tests of an architecture: sessions must not leave traces."""
    return torch_compile.load(model(kind), cache=folder)


def model(kind: str) -> Any:
    """Of an architecture, with room for a text that outgrows a cache."""
    return tiny(kind, **({"n_positions": len(TEXT)} if kind == "gpt2" else {"max_position_embeddings": len(TEXT)}))


@torch.inference_mode()
def truth(kind: str, tokens: list[int]) -> Tensor:
    """Logits (T, V) of the unmodified model from scratch."""
    logits: Tensor = model(kind)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("lengths", [[40], [1] * 12, [3, 1, 9, 4, 16, 1, 6], [33, 1, 32, 33, 5]])
def test_any_split_is_one_forward(kind: str, backend: CompiledBackend, lengths: list[int]) -> None:
    """A text fed in any pieces gives the logits of a single pass, wider ones than are compiled included."""
    session, rows, at = backend.open(), [], 0
    for n in lengths:
        rows.append(session.forward(TEXT[at : at + n]))
        at += n

    torch.testing.assert_close(torch.cat(rows), truth(kind, TEXT[:at]), **CLOSE)
    assert (session.length, session.pending) == (at, 0)


def test_a_rollback_leaves_no_trace(kind: str, backend: CompiledBackend) -> None:
    """Tokens taken back are as if they had never been."""
    session, held = backend.open(), TEXT[:30]
    session.forward(held)
    for wrong, back in ((5, 30), (8, 27), (1, 26), (12, 31)):
        session.forward([7] * wrong)
        session.rollback(min(back, len(held)))
        held = held[:back]
        added = TEXT[60 : 60 + back - len(held) + 3]
        got = session.forward(added)
        held = held + added
        torch.testing.assert_close(got, truth(kind, held)[-len(added) :], **CLOSE)


def test_a_long_text_outgrows_the_cache_and_compiles_nothing(kind: str, backend: CompiledBackend) -> None:
    """A prompt beyond a cache's first size, then growth by narrow passes: right logits, and the code that there was."""
    graphs, session = len(backend._graphs), backend.open()
    session.forward(TEXT[:20])
    while session.length < 2 * CACHE_HEADROOM_TOKENS + 40:
        got = session.forward(TEXT[session.length : session.length + 31])
        session.forward([1])
        session.rollback(session.length - 1)

    torch.testing.assert_close(got, truth(kind, TEXT[: session.length])[-31:], **CLOSE)
    assert len(backend._graphs) == graphs == 2


def test_early_exits_are_the_eager_ones(kind: str, folder: Path) -> None:
    """Leaving after a layer and completing gives eager PyTorch's logits, and leaves the compiled code in use."""
    ours, theirs = torch_compile.load(model(kind), cache=folder), EagerBackend(model(kind))
    assert ours.can_exit.value, ours.can_exit.reason
    assert theirs.can_exit.value
    rows: list[list[Tensor]] = []
    for backend in (ours, theirs):
        session = backend.open()
        session.forward(TEXT[:25])
        parts = [session.forward_early(TEXT[25:28], 2), session.forward_early(TEXT[28:29], 2), session.complete(3)]
        rows.append([part for part in [*parts, session.forward(TEXT[28:34])] if part is not None])

    assert len(rows[0]) == 4
    for got, want in zip(*rows, strict=True):
        torch.testing.assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("origin", ["draft", "self"])
def test_the_engine_writes_the_same_text(kind: str, folder: Path, origin: DraftSource) -> None:
    """Speculation on compiled target and drafter writes what transformers' greedy decoding writes, token for token."""
    target = torch_compile.load(tiny(kind), cache=folder)
    drafter = torch_compile.load(perturbed(tiny(kind), 0.3), cache=folder) if origin == "draft" else None
    drafters = Drafters(model=drafter, exit_layers=None if drafter else 2)
    run = Engine(target, drafters).start(Request(TEXT[:10], 60), Static(origin, 4))
    eager = Engine(EagerBackend(tiny(kind)), Drafters()).start(Request(TEXT[:10], 60), Static("draft", 4))

    out = [token.id for token in run]
    assert out == generated(kind, tuple(TEXT[:10]), 60)
    assert out == [token.id for token in eager]
    assert 0 < (run.tallies[origin].acceptance or 0) < 1


def test_what_was_compiled_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second load compiles nothing; torn code is compiled anew, and so is another model's."""
    kept = tmp_path / "kept"
    first = torch_compile.load(tiny("llama"), cache=kept)
    assert first.compiled == 2
    second = torch_compile.load(tiny("llama"), cache=kept, trusted=True)
    assert second.compiled == 0
    session = second.open()
    session.forward(TEXT[:20])
    with torch.inference_mode():
        want = reference("llama")(input_ids=torch.tensor([TEXT[:26]]), use_cache=False).logits[0]
    torch.testing.assert_close(session.forward(TEXT[20:26]), want[20:], **CLOSE)

    torn = sorted(kept.glob("*.bin"))[0]
    torn.write_bytes(torn.read_bytes()[:100])
    assert torch_compile.load(tiny("llama"), cache=kept).compiled == 1
    assert [path.name for path in kept.iterdir() if path.name.startswith(".")] == []

    names = {path.name for path in kept.glob("*.bin")}
    monkeypatch.setattr(compile_graph, "FORMAT_VERSION", -1)
    torch_compile.load(tiny("llama"), cache=kept)
    assert len(list(kept.glob("*.bin"))) == 2 * len(names)


LOAD = """
import sys
from pathlib import Path
from torch._inductor.cpu_vec_isa import VecISA
from torch._inductor.standalone_compile import AOTCompiledArtifact
trials = []
VecISA.check_build = lambda self, code: trials.append(self) or True
from dynx.runtime.backends import compile_cache
folder = Path(sys.argv[1])
with compile_cache.reuse_trials(folder):
    for path in folder.glob("*.bin"):
        AOTCompiledArtifact.load(path=str(path))
print(len(trials))
"""


def test_instruction_sets_are_tried_once(tmp_path: Path) -> None:
    """A process that loads compiled code tries no instruction sets, unless the compiler or PyTorch isn't what it was."""
    torch_compile.load(tiny("llama"), cache=tmp_path)

    def trials() -> int:
        words = [sys.executable, "-c", LOAD, str(tmp_path)]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    note = tmp_path / compile_cache.TRIALS_FILE
    kept = note.read_text()
    assert trials() == 0
    others = kept.replace(torch.__version__, "1.0")
    for unusable in (kept[:40], "[]", others):
        note.write_text(unusable)
        assert compile_cache._read(note) == set()
    assert trials() > 0
    assert note.read_text() == kept


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler, one named that isn't there, no headers, another device: each is refused in its own words."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UnsupportedModelError, match="no C\\+\\+ compiler here called no-such-compiler"):
        torch_compile.load(tiny("llama"))
    monkeypatch.delenv("CXX")
    assert "runs on cuda:1" in availability.can_compile("cuda:1").reason
    with monkeypatch.context() as here:
        here.setattr(availability.shutil, "which", lambda _: None)
        assert availability.can_compile("cpu").reason == "there is no C++ compiler here"
    monkeypatch.setattr(availability.sysconfig, "get_path", lambda _: "/nowhere")
    assert "Python's headers" in availability.can_compile("cpu").reason


def test_a_model_that_disagrees_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that gives other logits than the model is never used."""
    real = torch_compile.compile_block

    def off(*args: Any) -> Any:
        graph = real(*args)
        return lambda *inputs: (graph(*inputs)[0] + 1.0,)

    monkeypatch.setattr(torch_compile, "compile_block", off)
    with pytest.raises(UnsupportedModelError, match="gives other logits when compiled"):
        torch_compile.load(tiny("qwen2"))


@pytest.mark.parametrize("kind_", ["mamba", "mixtral"])
def test_what_cannot_be_compiled_is_refused(kind_: str) -> None:
    """Recurrent states and experts chosen by what they read are refused with the reason, or give the right logits."""
    try:
        backend = torch_compile.load(tiny(kind_))
    except UnsupportedModelError as e:
        assert "state" in str(e) or "can't be compiled" in str(e)  # noqa: PT017
        return
    session = backend.open()
    session.forward(TEXT[:20])
    with torch.inference_mode():
        want = reference(kind_)(input_ids=torch.tensor([TEXT[:26]]), use_cache=False).logits[0]
    torch.testing.assert_close(session.forward(TEXT[20:26]), want[20:], **CLOSE)


def test_a_refusal_is_one_sentence() -> None:
    """What torch can't trace it logs with a traceback; that isn't passed on, and the reason names no source file."""
    told: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = told.append  # type: ignore[method-assign]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(handler)
    try:
        with pytest.raises(UnsupportedModelError, match=r"^bloom can't be compiled \(RuntimeError: [^/]+\)$"):
            torch_compile.load(tiny("bloom"))
        logger.error("the library speaks again")
    finally:
        logger.removeHandler(handler)

    assert [record.getMessage() for record in told] == ["the library speaks again"]


needs_int8 = pytest.mark.skipif(
    not packed_linear.available("int8").value, reason=packed_linear.available("int8").reason
)
needs_bfloat16 = pytest.mark.skipif(
    not packed_linear.available("bfloat16").value, reason=packed_linear.available("bfloat16").reason
)


@needs_int8
def test_int8_is_the_rounded_model(kind: str) -> None:
    """Each packed layer multiplies by its weights rounded to 255 levels an output; nothing is left unpacked."""
    packed, want = tiny(kind), tiny(kind)
    packed_linear.quantize(packed)
    assert not [m for m in packed.modules() if isinstance(m, (nn.Linear, Conv1D))]
    with torch.inference_mode():
        for module in want.modules():
            if isinstance(module, (nn.Linear, Conv1D)):
                rows = module.weight.T if isinstance(module, Conv1D) else module.weight
                scale = rows.abs().amax(1, keepdim=True) / 127
                rounded = (rows / scale).round() * scale
                module.weight.copy_(rounded.T if isinstance(module, Conv1D) else rounded)
        ids = torch.tensor([TEXT[:40]])
        got, exact = packed(input_ids=ids).logits[0], want(input_ids=ids).logits[0]
        plain = reference(kind)(input_ids=ids).logits[0]

    error = (got - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.03  # inputs are rounded as well
    assert not torch.equal(got, plain)


@needs_int8
def test_int8_compiles_to_the_same_numbers(kind: str, folder: Path) -> None:
    """A quantized model compiled gives the quantized model's logits, exits included."""
    packed = tiny(kind)
    packed_linear.quantize(packed)
    want = EagerBackend(packed).open().forward(TEXT[:30])
    backend = torch_compile.load(packed, cache=folder)
    session = backend.open()
    session.forward(TEXT[:22])
    got = torch.cat([session.forward(TEXT[22:23]), session.forward(TEXT[23:30])])

    assert (got - want[22:]).abs().max() < 0.05 * want.abs().max()
    assert backend.can_exit.value


@needs_bfloat16
def test_bfloat16_is_packed_and_close(kind: str, folder: Path) -> None:
    """In bfloat16 no layer stays as it was, and logits differ from eager ones by rounding."""
    backend = torch_compile.load(tiny(kind).to(torch.bfloat16), cache=folder)
    assert not [m for m in backend.model.modules() if type(m) in (nn.Linear, Conv1D)]
    want = EagerBackend(tiny(kind).to(torch.bfloat16)).open().forward(TEXT[:30])
    session = backend.open()
    session.forward(TEXT[:22])
    got = torch.cat([session.forward(TEXT[22:23]), session.forward(TEXT[23:30])])

    assert (got.float() - want[22:].float()).square().mean().sqrt() < 0.03 * want.float().square().mean().sqrt()


@needs_int8
@pytest.mark.parametrize("shifted", [False, True])
def test_int8_products_are_those_of_integers(monkeypatch: pytest.MonkeyPatch, shifted: bool) -> None:
    """Inputs as they are, or moved up to be unsigned: the same integers come out, at the ends of the range too."""
    monkeypatch.setattr(packed_linear, "unsigned", lambda: shifted)
    layer = nn.Linear(96, 40)
    (packed,) = packed_linear.pack_layers([layer], "int8")
    x = torch.randn(5, 96)
    x[0], x[1] = 1.0, -1.0  # levels of 127 and -127 all over
    weight, scale = packed_linear.quantized(layer.weight)
    each = x.abs().amax(1, keepdim=True) / packed_linear.INT8_MAX
    sums = (x / each).round().long() @ weight.long().T
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), sums * each * scale + layer.bias, rtol=1e-5, atol=1e-5)
    assert packed.unsigned == shifted


def test_int8_kernels_that_are_slow_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the processor's instructions there is a kernel too, which nobody wants."""
    packed_linear.available.cache_clear()
    monkeypatch.setattr(packed_linear, "_times_float32", lambda _: 800.0)
    try:
        decision = packed_linear.available("int8")
    finally:
        packed_linear.available.cache_clear()
    assert not decision.value
    assert "takes 800x as long" in decision.reason or "no kernel" in decision.reason


@needs_int8
def test_int8_that_changes_logits_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is wrong by more than rounding is told from one that rounds."""
    monkeypatch.setattr(packed_linear, "available", lambda _: packed_linear.Decision(True, "so it says"))
    real = packed_linear.quantized
    monkeypatch.setattr(packed_linear, "quantized", lambda weight: (real(weight)[0], real(weight)[1] * 2))
    with pytest.raises(UnsupportedModelError, match="gives other logits in int8"):
        packed_linear.quantize(tiny("llama"))


def test_packed_weights_go_when_their_model_goes() -> None:
    """Nothing holds on to the weights of a model that nobody uses any more."""
    before = len(packed_linear._weights)
    layers = (
        packed_linear.pack_layers([nn.Linear(8, 4), nn.Linear(8, 6)], "int8")
        if packed_linear.available("int8").value
        else []
    )
    assert len(packed_linear._weights) == before + bool(layers)
    layers.clear()
    assert len(packed_linear._weights) == before
