"""OpenVINO as a backend: whatever is run and rolled back, the logits are torch's, or the model is refused with a reason."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.models import ROLLING, VOCAB, WINDOW, Bushy, generated, perturbed, reference, tiny

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.eager import EagerBackend
from dynx.runtime.backends.interface import Part
from dynx.runtime.backends.openvino import convert, decoder, paged, pool, weights
from dynx.runtime.backends.openvino import kept as openvino
from dynx.runtime.backends.openvino.precision import MAX_LOGIT_ERROR, WEIGHT_GROUP_SIZE
from dynx.runtime.device import probe
from dynx.speculation.batching import Batch
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.exactness import is_batch_invariant, noise_if_exact, prepare
from dynx.speculation.policy import Plain, Static
from dynx.speculation.timing import measure_noise
from dynx.speculation.tree import visible
from dynx.speculation.types import Request

if TYPE_CHECKING:
    from torch import Tensor

    from dynx.runtime.backends.openvino.decoder import OpenVINOBackend

if importlib.util.find_spec("openvino") is None:
    pytest.skip("OpenVINO isn't installed", allow_module_level=True)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of OpenVINO's and torch's own tracing
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 3e-4}
TEXT = [(11 * i * i + 5 * i + 3) % VOCAB for i in range(120)]

RUNNING = ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma", "gemma3_text", "mistral", "phi", "opt"]
"""Architectures that are known to run; `REFUSED` names the rest."""

REFUSED = {
    "gemma2": "caps its attention scores",
    "bloom": "computes its attention in a way",
    "falcon": "can't be traced",
    "mixtral": "can't be traced",
}


@pytest.fixture(scope="module", params=RUNNING)
def kind(request: pytest.FixtureRequest) -> str:
    """Every architecture that runs."""
    return str(request.param)


@pytest.fixture(scope="module")
def backend(kind: str) -> OpenVINOBackend:
    """One backend for all tests of an architecture: sessions must not leave traces."""
    return openvino.load(tiny(kind), precision="float32", threads=1, cache=None)


@torch.inference_mode()
def truth(kind: str, tokens: list[int]) -> Tensor:
    """Logits (T, V) of the unmodified model from scratch."""
    logits: Tensor = reference(kind)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("lengths", [[40], [1] * 12, [3, 1, 9, 4, 16, 1, 6], [33, 1, 1, 5]])
def test_any_split_is_one_forward(kind: str, backend: OpenVINOBackend, lengths: list[int]) -> None:
    """A text fed in any pieces gives the logits of a single pass, beyond the sliding window and across blocks too."""
    session, rows, at = backend.open(), [], 0
    for n in lengths:
        rows.append(session.forward(TEXT[at : at + n]))
        at += n

    torch.testing.assert_close(torch.cat(rows), truth(kind, TEXT[:at]), **CLOSE)
    assert (session.length, session.pending) == (at, 0)
    assert at > WINDOW or lengths == [1] * 12


def test_a_rollback_leaves_no_trace(kind: str, backend: OpenVINOBackend) -> None:
    """Tokens taken back, within a block and across its border, are as if they had never been."""
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
    with pytest.raises(ValueError, match="roll forward"):
        session.rollback(99)


def test_caches_grow(kind: str, backend: OpenVINOBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that starts at one block and grows while it is rolled back loses nothing."""
    monkeypatch.setattr(pool, "INITIAL_BLOCKS", 1)
    backend.new_pool()
    session = backend.open()
    session.forward(TEXT[:3])
    for end in range(8, 112, 8):
        session.forward([1, 2, 3])
        session.rollback(session.length - 3)
        got = session.forward(TEXT[session.length : end])
    torch.testing.assert_close(got, truth(kind, TEXT[: session.length])[-len(got) :], **CLOSE)
    assert session.length > 3 * backend.block


@pytest.mark.parametrize("keep", [None, 1, 2, 5, 7, 20])
def test_long_prompts_are_chunked(
    kind: str, backend: OpenVINOBackend, keep: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt longer than a chunk gives the same rows, however many are kept, and so does what follows it."""
    monkeypatch.setattr(decoder, "PREFILL_CHUNK_TOKENS", 6)
    session = backend.open()
    rows, after = session.forward(TEXT[:20], keep=keep), session.forward(TEXT[20:28])

    whole = truth(kind, TEXT[:28])
    torch.testing.assert_close(rows, whole[20 - (keep or 20) : 20], **CLOSE)
    torch.testing.assert_close(after, whole[20:], **CLOSE)


def test_rows_stay(backend: OpenVINOBackend) -> None:
    """Logits that a caller holds don't change when the session goes on."""
    session = backend.open()
    rows = session.forward(TEXT[:4])
    copy = rows.clone()
    session.forward(TEXT[4:8])

    assert torch.equal(rows, copy)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma"])
def test_the_engine_writes_the_same_text(kind: str) -> None:
    """Speculation on OpenVINO, target and drafter, writes what transformers' greedy decoding writes, token for token."""
    target = openvino.load(tiny(kind), precision="float32", threads=1, cache=None)
    drafter = openvino.load(perturbed(tiny(kind), 0.3), precision="float32", threads=1, cache=None)
    run = Engine(target, Drafters(model=drafter)).start(Request(TEXT[:10], 60), Static("draft", 4))
    eager = Engine(EagerBackend(tiny(kind)), Drafters()).start(Request(TEXT[:10], 60), Static("draft", 4))

    out = [token.id for token in run]
    assert out == generated(kind, tuple(TEXT[:10]), 60)
    assert out == [token.id for token in eager]
    assert 0 < (run.tallies["draft"].acceptance or 0) < 1


@pytest.mark.parametrize("keep", [None, 1, 2, 7, 20])
def test_picks_are_the_argmax_of_the_logits(
    backend: OpenVINOBackend, keep: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that returns picks writes the same keys and values, and picks what the logits say, in passes of any length."""
    monkeypatch.setattr(decoder, "PREFILL_CHUNK_TOKENS", 7)
    by_logits, by_picks = backend.open(), backend.open()

    assert by_picks.pick(TEXT[:20], keep=keep) == by_logits.forward(TEXT[:20], keep=keep).argmax(-1).tolist()
    by_picks.rollback(17)
    by_logits.rollback(17)
    rows = by_logits.forward(TEXT[17:22])
    copy = rows.clone()
    assert by_picks.pick(TEXT[17:22]) == rows.argmax(-1).tolist()
    by_logits.pick(TEXT[22:27])

    assert torch.equal(rows, copy)  # logits that were handed out stay


def test_sessions_are_apart(backend: OpenVINOBackend, kind: str) -> None:
    """Two sequences in one backend don't see each other."""
    one, two = backend.open(), backend.open()
    one.forward(TEXT[:9])
    two.forward(TEXT[40:55])

    torch.testing.assert_close(one.forward(TEXT[9:12]), truth(kind, TEXT[:12])[9:], **CLOSE)
    torch.testing.assert_close(two.forward(TEXT[55:57]), truth(kind, TEXT[40:57])[15:], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conversion_leaves_the_model_alone(dtype: torch.dtype) -> None:
    """The torch model answers as before, bit for bit, its weights of the same type, an early exit's gate in place."""
    model = tiny("llama").to(dtype)
    eager = EagerBackend(model)
    assert eager.can_exit.value
    ids, kinds = torch.tensor([TEXT[:30]]), {name: p.dtype for name, p in model.named_parameters()}
    with torch.inference_mode():
        before = model(input_ids=ids, use_cache=False).logits
        openvino.load(model, precision="bfloat16", threads=1, cache=None)
        after = model(input_ids=ids, use_cache=False).logits

    assert torch.equal(before, after)
    assert kinds == {name: p.dtype for name, p in model.named_parameters()}
    assert model.config._attn_implementation == tiny("llama").config._attn_implementation


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
def test_positions_stay_exact_at_low_precision(precision: Any) -> None:
    """Far from the beginning too, logits differ from float32's by rounding only: angles aren't rounded with the rest."""
    model = tiny("llama", max_position_embeddings=2048)
    text = [TEXT[i % 120] for i in range(900)]
    session = openvino.load(model, precision=precision, threads=1, cache=None).open()
    with torch.inference_mode():
        want = model(input_ids=torch.tensor([text]), use_cache=False).logits[0]
    gap = (session.forward(text) - want).square().mean(-1).sqrt()

    assert gap[800:].mean() < 1.5 * gap[:100].mean()
    assert gap.mean() < 0.1 * want.square().mean().sqrt()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
def test_float32_holds_sixteen_bits_where_they_are_all_there_is(kind: str, dtype: torch.dtype) -> None:
    """A checkpoint of 16 bits gives float32's logits, from constants of 16 bits; one of more stays as it is."""
    wide = tiny(kind)
    narrow = tiny(kind)
    with torch.no_grad():
        for parameter in narrow.parameters():
            parameter.copy_(parameter.to(dtype).float())
    held = {}
    for name, model in (("wide", wide), ("narrow", narrow)):
        graph = convert.convert(model)
        weights.store_weights(graph, "float32")
        kinds = [
            node.get_output_element_type(0).get_type_name()
            for node in graph.get_ops()
            if node.get_type_name() == "Constant" and len(node.get_output_shape(0)) == 2
        ]
        held[name] = sum(each in ("bf16", "f16") for each in kinds)
    got = openvino.load(narrow, precision="float32", threads=1, cache=None).open().forward(TEXT[:30])
    with torch.inference_mode():
        want = narrow(input_ids=torch.tensor([TEXT[:30]]), use_cache=False).logits[0]

    assert held["wide"] == 0 < held["narrow"]
    torch.testing.assert_close(got, want, **CLOSE)


def test_a_format_must_hold_every_value() -> None:
    """The least values of a matrix decide: bfloat16 has no more bits than eight, and float16 none below its subnormals."""
    from dynx.runtime.backends.openvino.halves import halved

    def kind(*values: float) -> torch.dtype | None:
        half = halved(torch.tensor([values]))
        return None if half is None else half.dtype

    assert kind(1.0, -0.0, 2.0**-130, 1e38 * 0) == torch.bfloat16
    assert kind(1.0, 1 + 2.0**-10) == torch.float16
    assert kind(1 + 2.0**-10, 2.0**-24) == torch.float16  # its least subnormal
    assert kind(1 + 2.0**-10, 2.0**-25) is None
    assert kind(1 + 2.0**-10, 65536.0) is None
    assert kind(1 + 2.0**-20) is None


def test_four_bits_are_the_rounded_model() -> None:
    """With 4-bit weights the logits are those of the torch model with its weights rounded the same way."""
    model = tiny("llama", hidden_size=64, intermediate_size=128)
    got = openvino.load(model, precision="int4", threads=1, cache=None).open().forward(TEXT[:30])
    with torch.inference_mode():
        plain = model(input_ids=torch.tensor([TEXT[:30]]), use_cache=False).logits[0]
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not model.lm_head:
                groups = module.weight.view(len(module.weight), -1, WEIGHT_GROUP_SIZE)
                low, high = groups.amin(2, keepdim=True).clamp_max(0), groups.amax(2, keepdim=True).clamp_min(0)
                scale = (high - low) / 15
                offset = (-low / scale).round()
                module.weight.copy_((((groups / scale + offset).round().clamp(0, 15)) - offset).mul(scale).flatten(1))
        want = model(input_ids=torch.tensor([TEXT[:30]]), use_cache=False).logits[0]

    assert (got - want).square().mean() < 0.1 * (got - plain).square().mean()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_a_kept_model_is_read_back(precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `load` kept gives the same logits in another load, which converts nothing, and in `reload` without torch's model."""
    model = tiny("llama")
    first = openvino.load(model, precision=precision, threads=1, cache=tmp_path / "kept").open().forward(TEXT[:20])
    monkeypatch.setattr(convert, "convert", None)
    second = openvino.load(model, precision=precision, threads=1, cache=tmp_path / "kept").open().forward(TEXT[:20])
    alone = openvino.reload(precision=precision, threads=1, cache=tmp_path / "kept")

    assert torch.equal(first, second)
    assert alone is not None
    assert torch.equal(first, alone.open().forward(TEXT[:20]))
    assert (alone.layers, alone.vocab, alone.context) == (3, VOCAB, model.config.max_position_embeddings)
    assert [p.name for p in (tmp_path / "kept").iterdir() if p.name.startswith(".")] == []


def test_torn_and_foreign_files_are_made_again(tmp_path: Path) -> None:
    """A kept model that can't be read, or is another model's, is replaced; the answer is right all the same."""
    model = tiny("llama")
    openvino.load(tiny("llama", seed=5), precision="float32", threads=1, cache=tmp_path)
    foreign = openvino.load(model, precision="float32", threads=1, cache=tmp_path).open().forward(TEXT[:9])
    (kept,) = tmp_path.iterdir()
    (kept / "model.xml").write_text("<net")
    assert openvino.reload(precision="float32", threads=1, cache=tmp_path) is None
    torn = openvino.load(model, precision="float32", threads=1, cache=tmp_path).open().forward(TEXT[:9])

    for got in (foreign, torn):
        torch.testing.assert_close(got, truth("llama", TEXT[:9]), **CLOSE)
    assert openvino.reload(precision="float32", threads=1, cache=tmp_path) is not None


def test_an_unwritable_folder_is_no_obstacle(tmp_path: Path) -> None:
    """Where nothing can be kept, the model runs from memory."""
    (tmp_path / "file").write_text("")
    backend = openvino.load(tiny("llama"), precision="float32", threads=1, cache=tmp_path / "file")

    torch.testing.assert_close(backend.open().forward(TEXT[:9]), truth("llama", TEXT[:9]), **CLOSE)


@pytest.mark.parametrize("kind", [*REFUSED, "mamba"])
def test_what_cant_run_is_refused_with_a_reason(kind: str) -> None:
    """A model that OpenVINO's attention can't express is an error that names the model and the obstacle."""
    words = REFUSED.get(kind, "recurrent state")
    with pytest.raises(UnsupportedModelError, match=f"{kind} .*{words}"):
        openvino.load(tiny(kind), precision="float32", threads=1, cache=None)


def test_growing_rotations_are_refused() -> None:
    """Rotary frequencies that depend on the length can't be tabulated, and that is the reason given."""
    changed = tiny("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(UnsupportedModelError, match="rotary frequencies with the length"):
        openvino.load(changed, precision="float32", threads=1, cache=None)


def test_other_logits_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A conversion that computes something else is found out, refused with the size of the difference, and not kept."""
    honest = convert.convert
    monkeypatch.setattr(convert, "convert", lambda model, *given: honest(tiny("llama", seed=9), *given))
    with pytest.raises(UnsupportedModelError, match="llama gives other logits on OpenVINO"):
        openvino.load(tiny("llama"), precision="float32", threads=1, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_early_exits_are_declined(backend: OpenVINOBackend) -> None:
    """There is no early exit, and the reason says so instead of a crash."""
    session = backend.open()
    assert backend.can_rollback.value
    assert not backend.can_exit.value
    with pytest.raises(UnsupportedModelError, match="as a whole"):
        session.forward_early([1], 1)
    with pytest.raises(UnsupportedModelError, match="as a whole"):
        session.complete()


def test_too_long_a_text_is_an_error() -> None:
    """Positions beyond the model's own limit are refused before anything is computed."""
    session = openvino.load(
        tiny("llama", max_position_embeddings=64), precision="float32", threads=1, cache=None
    ).open()
    session.forward(TEXT[:60])
    with pytest.raises(UnsupportedModelError, match="64"):
        session.forward([1] * 40)
    assert session.length == 60


def test_availability_is_told_without_importing() -> None:
    """Asking whether OpenVINO is there doesn't load it."""
    code = (
        "import sys; from dynx.runtime.backends import availability as o; d = o.available(); "
        "assert d.value, d.reason; assert 'openvino' not in sys.modules; print(d.reason)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("OpenVINO 20")


@pytest.mark.parametrize(
    ("version", "words"), [(None, "isn't installed (pip install 'dynx[openvino]')"), ("2025.2.0", "older than 2026.4")]
)
def test_absence_is_explained(version: str | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a usable OpenVINO the decision is no, with what to do, and `load` raises just that."""

    def told(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", told)
    decision = openvino.available()
    assert not decision.value
    assert words in decision.reason
    with pytest.raises(UnsupportedModelError) as caught:
        openvino.load(tiny("llama"), precision="float32", threads=1, cache=None)
    assert str(caught.value) == decision.reason


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ImportError("no libtbb"), "can't be loaded (no libtbb)"),
        (OSError("wrong ELF class"), "can't be loaded (wrong ELF class)"),
    ],
)
def test_a_broken_installation_is_a_reason(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OpenVINO that is installed and doesn't load refuses the model in words instead of crashing."""

    def broken() -> None:
        raise error

    monkeypatch.setattr("openvino.Core", broken)
    with pytest.raises(UnsupportedModelError) as caught:
        openvino.load(tiny("llama"), precision="float32", threads=1, cache=None)
    assert words in str(caught.value)


def test_what_doesnt_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that the plugin rejects is an error with the plugin's first line."""

    def rejected(*args: Any) -> None:
        raise RuntimeError("Unsupported operation of type: Zeta\nand more")

    monkeypatch.setattr(paged, "assemble", rejected)
    with pytest.raises(UnsupportedModelError, match=r"llama can't be compiled by OpenVINO \(Unsupported .*: Zeta\)"):
        openvino.load(tiny("llama"), precision="float32", threads=1, cache=None)


def test_every_architecture_is_accounted_for() -> None:
    """A kind of model that the eager backend runs either runs here or is refused on purpose."""
    of_two_minds = {"gptj"}  # its attention can be replaced from transformers 5.24 on
    assert set(ROLLING) == set(RUNNING) | set(REFUSED) | of_two_minds


@pytest.mark.parametrize(("threads", "inner", "fused"), [(1, 256, 0), (2, 256, 3), (2, 96, 0), (3, 256, 0)])
def test_feed_forward_is_fused_only_where_that_is_safe(threads: int, inner: int, fused: int) -> None:
    """OpenVINO's fused operation, which kills the process with one thread, is used with pairs of threads that all have work."""
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if "amx_bf16" not in Path("/proc/cpuinfo").read_text(encoding="utf-8") or able < threads:
        pytest.skip("needs a processor with AMX and as many processors as threads")
    model = tiny("llama", hidden_size=128, intermediate_size=inner).to(torch.bfloat16)
    backend = openvino.load(model, precision="bfloat16", threads=threads, cache=None)

    kinds = [
        node.get_rt_info()["layerType"].astype(str) for node in backend.compiled_model.get_runtime_model().get_ops()
    ]
    assert kinds.count("LLMMLP") == fused


def test_padding_may_pass_the_end_of_the_context() -> None:
    """Passes run wider than asked give the logits of their own tokens, up to the last position that there is."""
    model, limit = tiny("llama", max_position_embeddings=64), 64
    backend = openvino.load(model, precision="float32", threads=1, cache=None)
    assert backend.context == limit
    backend.set_padded_lengths({1: 4, 2: 4})
    session, rows = backend.open(), []
    session.forward(TEXT[: limit - 20], keep=1)
    session.set_padded_length(1)
    for start, count in (
        (limit - 20, 8),
        (limit - 12, 5),
        (limit - 7, 1),
        (limit - 6, 4),
        (limit - 2, 1),
        (limit - 1, 1),
    ):
        rows.append(session.forward(TEXT[start : start + count]))
        assert (len(rows[-1]), session.length) == (count, start + count)
    assert backend.padded_length.current == 5

    with torch.inference_mode():
        want = model(input_ids=torch.tensor([TEXT[:limit]]), use_cache=False).logits[0, -20:]
    torch.testing.assert_close(torch.cat(rows), want, **CLOSE)


@pytest.mark.parametrize(("instead", "widths"), [({}, [9, 5, 1, 1, 1]), ({1: 4}, [9, 5, 4, 4, 4])])
def test_plain_decoding_is_as_wide_as_it_is_told(
    instead: dict[int, int], widths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However wide the graph stands from another text, so a text is one text."""
    from dynx.runtime.backends.padding import PaddedLength

    backend = openvino.load(tiny("llama"), precision="float32", threads=1, cache=None)
    backend.set_padded_lengths(instead)
    seen: list[int] = []
    real = PaddedLength.__call__

    def noted(self: PaddedLength, count: int) -> int:
        seen.append(real(self, count))
        return seen[-1]

    monkeypatch.setattr(PaddedLength, "__call__", noted)
    backend.open().forward(TEXT[:9])
    run = Engine(backend, Drafters(lookup=False)).start(Request(TEXT[:5], 4))
    assert len(list(run)) >= 4
    assert seen == widths


@pytest.mark.skipif(
    "amx_tile" in probe().isa, reason="tiles may compute rows otherwise; calibration measures whether they do"
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "mistral"])
def test_passes_of_two_or_more_tokens_give_the_same_bits(kind: str, precision: Any) -> None:
    """So no text depends on how it was guessed once plain passes are that wide, and before that it may."""
    backend = openvino.load(tiny(kind), precision=precision, threads=2, cache=None)
    narrow = measure_noise(backend)
    backend.set_padded_lengths({1: 2})
    wide = measure_noise(backend, [(TEXT, 7), (TEXT[::-1], 70)])
    noise = noise_if_exact(backend, [(TEXT, 9)], None, {1: 2})

    assert max(narrow.values()) > 0
    assert set(wide.values()) == {0.0}
    assert is_batch_invariant(noise, {1: 2})
    assert not is_batch_invariant(noise, {})


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_exactness_is_two_rows_instead_of_one(precision: Any) -> None:
    """Asked to be exact, plain decoding and guessing write one text, whatever they wrote before."""
    backend = openvino.load(tiny("llama"), precision=precision, threads=2, cache=None)
    drafters = Drafters(model=openvino.load(perturbed(tiny("llama"), 0.3), precision="float32", threads=1, cache=None))
    exact, decision = prepare(backend)
    texts = []
    for policy in (Plain(), Static("draft", 4), None):
        run = Engine(backend, drafters, exact=exact).start(Request(TEXT[:10], 60), policy)
        texts.append([token.id for token in run])
        assert run.receipt().guarantee == "identical to plain decoding"

    assert texts[0] == texts[1] == texts[2]
    assert backend.padded_length.lengths == {1: 2}
    assert "run wider" in decision.reason


def test_in_single_precision_no_pass_is_widened_for_exactness() -> None:
    """There it would be paid for nothing: decisions that close don't occur."""
    backend = openvino.load(tiny("llama"), precision="float32", threads=1, cache=None)
    exact, decision = prepare(backend)
    assert backend.padded_length.lengths == {}
    assert decision.value == ("near-ties read again" if exact.bound else "by every pass")


def state_of(model: Any) -> dict[str, Any]:
    """All that a conversion could leave changed in a model: tensors by object and content, settings, hooks, replaced methods."""
    named = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    return {
        "tensors": {name: (id(t), t.dtype, t.data_ptr(), t.requires_grad, tuple(t.shape)) for name, t in named.items()},
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "modules": {
            name: (
                type(m),
                m.training,
                sorted(vars(m)),
                len(m._forward_hooks),
                len(m._forward_pre_hooks),
                "forward" in vars(m),
            )
            for name, m in model.named_modules()
        },
        "torch": (torch.bmm, torch.nn.functional.linear),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", [*RUNNING, *REFUSED])
def test_converting_changes_nothing_in_the_model(architecture: str, dtype: torch.dtype) -> None:
    """Weights, types, buffers, settings and hooks stay as they were, and so does every bit of its logits, refused or not.

    Embeddings that scale what they look up, as Gemma 3's do, were left in float32 by a conversion from bfloat16.
    """
    model = tiny(architecture).to(dtype)
    model.get_input_embeddings().register_forward_hook(lambda *_: None)
    text = torch.tensor([TEXT[:9]])
    with torch.inference_mode():
        logits = model(input_ids=text, use_cache=False).logits
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = state_of(model)
    try:
        openvino.load(model, precision="float32" if dtype == torch.float32 else "bfloat16", threads=1, cache=None)
    except UnsupportedModelError:
        assert architecture in REFUSED or dtype == torch.float16
    assert state_of(model) == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, values[name]), name
    with torch.inference_mode():
        assert torch.equal(model(input_ids=text, use_cache=False).logits, logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_weights_stay_tied(dtype: torch.dtype) -> None:
    """Where the head is the embedding, both are one parameter before and after, and what is converted gives its logits."""
    model = tiny("gemma3_text").to(dtype)
    model.lm_head.weight = model.get_input_embeddings().weight
    before = state_of(model)
    precision = "float32" if dtype == torch.float32 else "bfloat16"
    backend = openvino.load(model, precision=precision, threads=1, cache=None)
    assert state_of(model) == before
    with torch.inference_mode():
        want = model(input_ids=torch.tensor([TEXT[:9]]), use_cache=False).logits[0].float()
    found = backend.open().forward(TEXT[:9])
    assert (found - want).abs().max() <= MAX_LOGIT_ERROR[precision] * want.abs().max()


def test_a_preparation_that_fails_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's preparation replaces a function of torch's; one that ends half-way must not leave it so."""
    from openvino.frontend.pytorch import patch_model

    def failing(*_: Any) -> None:
        patch_model._patch_torch_functions()
        raise RuntimeError("half-way")

    before = torch.bmm
    monkeypatch.setattr(patch_model, "__make_16bit_traceable", failing)
    with pytest.raises(RuntimeError, match="half-way"):
        openvino.load(tiny("llama"), precision="float32", threads=1, cache=None)
    assert torch.bmm is before


def ragged(backend: OpenVINOBackend, texts: list[list[int]], cuts: list[list[int]]) -> list[Tensor]:
    """Logits of `texts`, read side by side in passes of `cuts` tokens each (0: not in that pass)."""
    sessions = [backend.open() for _ in texts]
    rows: list[list[Tensor]] = [[] for _ in texts]
    for widths in zip(*cuts, strict=True):
        going = [r for r, n in enumerate(widths) if n]
        parts = [Part(sessions[r], texts[r][sessions[r].length :][: widths[r]]) for r in going]
        for r, out in zip(going, backend.forward(parts), strict=True):
            rows[r].append(torch.as_tensor(out))
    return [torch.cat(own) for own in rows]


TREE, PARENTS = [9, 4, 33, 12, 50, 8, 21], [0, 1, 0, 3, 1, 4]
"""A tree of two branches, of which the first two drafts are the trunk."""


@pytest.mark.parametrize("before", [3, 29, 70])
def test_rows_of_a_tree_are_those_of_chains(kind: str, backend: OpenVINOBackend, before: int) -> None:
    """Each row is that of its own chain, across blocks too, and so is what follows a branch that is kept.

    Windows count places and not depths, so that beyond one only the trunk is.
    """
    assert backend.can_tree.value, backend.can_tree.reason
    assert backend.trunk_only == (kind in ("gemma3_text", "mistral"))
    for row, path in enumerate(visible(PARENTS)):
        if backend.trunk_only and before > WINDOW and row > 2:
            continue
        session = backend.open()
        session.forward(TEXT[:before], keep=1)
        rows = session.forward_tree(TREE, PARENTS)
        chain = [TREE[i] for i in path]
        torch.testing.assert_close(rows[row], truth(kind, [*TEXT[:before], *chain])[-1], **CLOSE)
        session.keep(before, path)
        after = session.forward([3, 5])
        torch.testing.assert_close(after, truth(kind, [*TEXT[:before], *chain, 3, 5])[-2:], **CLOSE)


@pytest.mark.parametrize("seed", range(3))
def test_trees_change_nothing(kind: str, backend: OpenVINOBackend, seed: int) -> None:
    """Arbitrary trees beside arbitrary drafts leave the greedy text as it was, alone and in batches of several texts."""
    backend.new_pool()
    engine = Engine(backend, Drafters(trees=True))
    prompts = [[7, 30, 2, 51, 18, 7, 30, 2, 44, 9, 51, 18], [3, 5, 9], [7, 30, 2, 51, 1, 7, 30, 2]]
    alone = engine.start(Request(prompts[0], 48), Bushy(seed))

    assert [t.id for t in alone] == generated(kind, tuple(prompts[0]), 48)
    assert alone.receipt().tree_forwards > 0
    batch = Batch(engine, sequences=3, policy=lambda request: Bushy(seed + len(request.prompt)))
    rows = [batch.sequence(Request(prompt, 48)) for prompt in prompts]
    batch.admit(rows)
    for prompt, row in zip(prompts, rows, strict=True):
        assert [t.id for t in row] == generated(kind, tuple(prompt), 48)
        assert row.receipt().tree_forwards > 0


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_the_trunk_of_a_tree_has_the_bits_of_a_chain(precision: Any) -> None:
    """Whatever a tree has beside it, and in passes of any number of tokens, as `exact_trunk` says."""
    backend = openvino.load(tiny("llama").to(torch.bfloat16), precision=precision, threads=1, cache=None)
    assert backend.can_tree.value
    for before in (5, 31, 64, 90):
        one, other = backend.open(), backend.open()
        one.forward(TEXT[:before], keep=1)
        other.forward(TEXT[:before], keep=1)
        for extra in range(5):
            want = one.forward(TREE[:3])
            got = other.forward_tree([*TREE[:3], *TEXT[:extra]], [0, 1, *[i % 3 for i in range(extra)]])
            assert bool((got[:3] == want).all()) or not backend.exact_trunk
            one.rollback(before)
            other.rollback(before)


def test_side_by_side_is_as_alone(kind: str, backend: OpenVINOBackend) -> None:
    """Sequences of other lengths in passes of other widths, beyond the window and across blocks, get torch's logits."""
    texts = [TEXT[:44], TEXT[30:79], TEXT[50:60]]
    cuts = [[20, 1, 1, 7, 15, 0], [1, 40, 1, 5, 1, 1], [0, 0, 3, 2, 1, 4]]
    for text, got in zip(texts, ragged(backend, texts, cuts), strict=True):
        torch.testing.assert_close(got, truth(kind, text), **CLOSE)


def test_a_shared_beginning_is_read_once(kind: str, backend: OpenVINOBackend) -> None:
    """What is published is reused, and what is written behind it or over it stays apart."""
    backend.new_pool()
    first, second = backend.open(), backend.open()
    first.forward(TEXT[:70])
    first.publish(TEXT[:70])
    text = [*TEXT[:66], 5, 6, 7]
    assert second.reuse(text) == 64
    torch.testing.assert_close(second.forward(text[64:]), truth(kind, text)[64:], **CLOSE)
    second.rollback(40)
    torch.testing.assert_close(second.forward([9, 9]), truth(kind, [*text[:40], 9, 9])[40:], **CLOSE)
    torch.testing.assert_close(first.forward(TEXT[70:72]), truth(kind, TEXT[:72])[70:], **CLOSE)
    twin = first.fork()
    torch.testing.assert_close(twin.forward([3, 4]), truth(kind, [*TEXT[:72], 3, 4])[72:], **CLOSE)
    torch.testing.assert_close(first.forward(TEXT[72:74]), truth(kind, TEXT[:74])[72:], **CLOSE)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_row_has_the_same_bits_whatever_its_neighbours_are(precision: Any) -> None:
    """With two or more tokens of its own: alone, beside one, beside many, in any chunks. With one: beside any others."""
    backend = openvino.load(tiny("llama"), precision=precision, threads=1, cache=None)
    text, others = TEXT[:50], [TEXT[r : r + 50] for r in range(1, 9)]
    cuts = [20, 2, 3, 7, 2, 16]
    alone = ragged(backend, [text], [cuts])[0]
    assert torch.equal(alone, ragged(backend, [text], [[50]])[0])
    for count, own in ((1, [1] * 6), (4, [1, 4, 1, 1, 9, 2]), (8, [2, 1, 8, 3, 1, 1])):
        assert torch.equal(ragged(backend, [text, *others[:count]], [cuts, *[own] * count])[0], alone)

    def singly(count: int, width: int) -> Tensor:
        return ragged(backend, [text, *others[:count]], [[20, 1, 1, 1], *[[2, *[width] * 3]] * count])[0]

    assert torch.equal(singly(1, 1), singly(8, 1))
    assert torch.equal(singly(1, 1), singly(3, 5))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_passes_widened_for_exactness_are_so_in_batches(precision: Any) -> None:
    """Where passes of one token run as two, a sequence's only token has the bits that it has alone."""
    backend = openvino.load(tiny("llama"), precision=precision, threads=1, cache=None)
    backend.set_padded_lengths({1: 2})
    alone = ragged(backend, [TEXT[:30]], [[20, *[1] * 10]])[0]
    together = ragged(backend, [TEXT[:30], TEXT[40:70]], [[20, *[1] * 10], [3, *[2] * 10]])[0]
    assert torch.equal(alone, together)
    assert torch.equal(alone, ragged(backend, [TEXT[:30]], [[30]])[0])
    assert torch.equal(backend.open().forward(TEXT[:20], keep=1)[0], alone[19])


@pytest.mark.parametrize(("used_up", "cached"), [(True, True), (True, False), (False, True)])
def test_weights_that_nobody_needs_are_freed_before_the_graph_is_compiled(
    used_up: bool, cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They aren't held beside the compiler's copy; what isn't kept refers to them, and a model in use stays whole."""
    ov = pytest.importorskip("openvino")
    model = tiny("llama")
    want = generated("llama", tuple(TEXT[:9]), 6)
    there: list[int] = []
    compiled = ov.Core.compile_model

    def compile_model(*given: Any) -> Any:
        there.append(sum(p.untyped_storage().nbytes() for p in model.parameters()))
        return compiled(*given)

    monkeypatch.setattr(ov.Core, "compile_model", compile_model)
    load = openvino.convert if used_up else openvino.load
    backend = load(model, precision="float32", threads=1, cache=tmp_path / "kept" if cached else None)
    assert (there[-1] == 0) is (used_up and cached)
    text = Engine(backend, Drafters(lookup=False)).start(Request(TEXT[:9], 6))
    assert [token.id for token in text] == want
