"""Batches: each row writes what it would write alone, whatever its neighbours do; and whether to batch has its reason."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.models import ROLLING, STATEFUL, VOCAB, Stub, perturbed, scripted, tiny

from dynx.cli.stdin import MAX_LINE_BYTES, Arrivals, Beginning, rows_asked
from dynx.errors import DeviceError, UsageError
from dynx.runtime.backends.batch import BatchSession, can_batch
from dynx.runtime.backends.eager import EagerBackend
from dynx.speculation import batch_size
from dynx.speculation.batch_size import by_timing, choose, from_profile, measure_batches, sequences_that_fit, weigh
from dynx.speculation.batching import Batch
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.policy import Plain
from dynx.speculation.shared_costs import BatchCosts
from dynx.speculation.types import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.speculation.sequence import SequenceRun
    from dynx.speculation.types import DrafterCandidate, DraftSource

WINDOWED = ("gemma2", "gemma3_text", "mistral")
BATCHED = [kind for kind in ROLLING if kind not in WINDOWED]


@pytest.mark.parametrize("kind", BATCHED)
def test_rows_get_the_logits_that_they_get_alone(kind: str) -> None:
    """Through ragged passes, rollbacks, rows that leave and others that come, every row's logits are its own."""
    backend = EagerBackend(tiny(kind))
    assert can_batch(backend).value, can_batch(backend).reason
    rng = random.Random(4)

    def begun() -> tuple[list[int], BatchSession]:
        text = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 2, 30]))]
        session = BatchSession(backend)
        session.prefill(text)
        return text, session

    first = [begun() for _ in range(3)]
    texts, batch = [text for text, _ in first], BatchSession(backend)
    batch.admit([session for _, session in first])
    for step in range(24):
        new = [[rng.randrange(VOCAB) for _ in range(rng.randrange(5))] for _ in texts]
        new[rng.randrange(len(texts))].append(1)  # not all empty
        rows = batch.forward(new)
        for r, (text, tokens) in enumerate(zip(texts, new, strict=True)):
            alone = backend.open().forward([*text, *tokens])[len(text) :]
            torch.testing.assert_close(rows[r, : len(tokens)], alone, rtol=1e-3, atol=1e-3)
            text.extend(tokens)
            del text[max(1, len(text) - rng.randrange(4)) :]
        batch.rollback([len(text) for text in texts])
        assert batch.lengths == [len(text) for text in texts]
        if step % 6 == 3:
            at = rng.randrange(len(texts))
            texts[at], session = begun()
            batch.replace(at, session)
        if step == 10:
            batch.remove(1)
            del texts[1]
        if step == 16:
            text, session = begun()
            texts.append(text)
            batch.admit([session])


def test_columns_stay_few() -> None:
    """However much is rolled back, the cache is no longer than its longest row by more than the slack."""
    backend = EagerBackend(tiny("llama"))
    batch, others = BatchSession(backend), [BatchSession(backend) for _ in range(2)]
    for other in others:
        other.prefill([1, 2, 3])
    batch.admit(others)
    for step in range(200):
        lengths = batch.lengths
        batch.forward([[4, 5, 6, 7], [4, 5, 6, 7]])
        batch.rollback([n + (1 if (step + r) % 2 else 4) if n < 40 else n for r, n in enumerate(lengths)])

    assert batch._end <= 1.25 * max(batch.lengths) + 16 + 4


@pytest.mark.parametrize("kind", [*WINDOWED, *STATEFUL])
def test_what_cant_be_batched_is_left_alone(kind: str) -> None:
    """Windows count columns and recurrent states can't go back: refused, with the reason."""
    able = can_batch(EagerBackend(tiny(kind)))

    assert not able.value
    assert kind in able.reason


def test_a_model_that_counts_columns_is_found_out() -> None:
    """One that takes positions from the cache's length rather than as told gives other logits, and is refused."""
    backend = EagerBackend(tiny("llama"))
    inner = backend.model.forward

    @wraps(inner)
    def forward(input_ids: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return inner(input_ids=input_ids, position_ids=None, **kwargs)

    backend.model.forward = forward
    able = can_batch(backend)

    assert not able.value
    assert "llama gives other logits in a batch of unequal rows" in able.reason


class Bold(Plain):
    """Drafts always, with any drafter there is, and however far chance will have it."""

    chance = random.Random(0)

    def choose(self, candidates: Sequence[DrafterCandidate], context: int, room: int) -> DraftSource | None:
        """Return any of them."""
        return self.chance.choice([c.origin for c in candidates]) if candidates else None

    def should_draft_more(self, signals: Sequence[float]) -> bool:
        """Flip a coin."""
        return self.chance.random() < 0.7

    def verify_length(self, signals: Sequence[float]) -> int:
        """Return any number of them."""
        return self.chance.randrange(len(signals) + 1)


def alone(engine: Engine, requests: Sequence[Request]) -> list[tuple[list[int], str]]:
    """Tokens and how they ended, one at a time."""
    out = []
    for request in requests:
        run = engine.start(request)
        list(run)
        out.append((run.tokens, run.finish_reason))
    return out


def together(engine: Engine, requests: Sequence[Request], rows: int, *, bold: bool = True) -> list[SequenceRun]:
    """The answers of a batch."""
    waiting, begun = list(reversed(requests)), []

    def more() -> SequenceRun | None:
        if not waiting:
            return None
        begun.append(batch.sequence(waiting.pop()))
        return begun[-1]

    batch = Batch(engine, rows, more=more, policy=(lambda _: Bold()) if bold else None)
    batch.step()
    for at in range(len(requests)):
        list(begun[at])
        if at == len(begun) - 1:
            batch.step()
    return begun


def requests_for(sampling: Sampling, count: int = 9) -> list[Request]:
    """Prompts of mixed lengths, answers of mixed lengths, some ended by a token."""
    rng = random.Random(2)
    return [
        Request(
            [rng.randrange(VOCAB) for _ in range(rng.choice([1, 3, 9, 30]))],
            rng.choice([0, 1, 24, 40]),
            sampling,
            frozenset([3]),
        )
        for _ in range(count)
    ]


MODES = {"greedy": Sampling(), "penalty": Sampling(repetition_penalty=1.3), "seeded": Sampling(temperature=1.0, seed=5)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "opt", "mixtral"])
def test_a_batch_writes_what_each_row_would_write_alone(kind: str, mode: str) -> None:
    """Token for token, with a draft model that is now right and now wrong, lookups, refills and early ends."""
    target, small = EagerBackend(tiny(kind)), EagerBackend(perturbed(tiny(kind), 0.03))
    requests = requests_for(MODES[mode])
    expected = alone(Engine(target), requests)
    rows = together(Engine(target, Drafters(small)), requests, 3)
    receipts = [row.receipt() for row in rows]
    tallies = [t for receipt in receipts for t in receipt.drafters.values()]

    assert [(row.tokens, row.finish_reason) for row in rows] == expected
    assert sum(t.accepted for t in tallies) > 0
    assert sum(t.submitted - t.accepted for t in tallies) > 0
    assert all(1 <= receipt.sequences <= 3 for receipt in receipts)
    assert any(receipt.sequences > 2 for receipt in receipts)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_any_number_of_rows_will_do(rows: int) -> None:
    """One row, fewer rows than prompts, more rows than prompts: the same texts, by the policy itself."""
    target = EagerBackend(tiny("llama"))
    requests = requests_for(Sampling(), 5)
    found = together(Engine(target, Drafters(EagerBackend(perturbed(tiny("llama"), 0.03)))), requests, rows, bold=False)

    assert [(row.tokens, row.finish_reason) for row in found] == alone(Engine(target), requests)


def test_free_sampling_is_each_rows_own() -> None:
    """Without a seed the draws are the row's own: a batch of certain rows writes what it must."""
    target = EagerBackend(tiny("llama"))
    requests = [replace(r, sampling=Sampling(temperature=1.0, top_k=1)) for r in requests_for(Sampling())]
    rows = together(Engine(target, Drafters(EagerBackend(perturbed(tiny("llama"), 0.03)))), requests, 3)
    greedy = [replace(r, sampling=Sampling()) for r in requests]

    assert [row.tokens for row in rows] == [tokens for tokens, _ in alone(Engine(target), greedy)]


@pytest.fixture(scope="module")
def converted() -> tuple[Any, Any]:
    """A target and a draft model on OpenVINO, whose passes are ragged."""
    pytest.importorskip("openvino")
    from dynx.runtime.backends.openvino import kept

    models = tiny("llama"), perturbed(tiny("llama"), 0.03)
    target, small = (kept.load(model, precision="float32", threads=1, cache=None) for model in models)
    return target, small


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("mode", MODES)
def test_ragged_passes_write_what_each_sequence_would_write_alone(mode: str, converted: tuple[Any, Any]) -> None:
    """As above on OpenVINO, prompts read beside sequences that are being written; and it is what PyTorch writes."""
    target, small = converted
    requests = requests_for(MODES[mode])
    rows = together(Engine(target, Drafters(small)), requests, 3)
    tallies = [t for row in rows for t in row.receipt().drafters.values()]

    assert [(row.tokens, row.finish_reason) for row in rows] == alone(Engine(EagerBackend(tiny("llama"))), requests)
    assert sum(t.accepted for t in tallies) > 0
    assert sum(t.submitted - t.accepted for t in tallies) > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_prompts_that_begin_alike_are_read_once(rows: int, converted: tuple[Any, Any]) -> None:
    """The common beginning is read by one of them, however many begin at the same time, and the texts are their own."""
    target, _ = converted
    target.new_pool()
    rng = random.Random(6)
    common = [rng.randrange(VOCAB) for _ in range(200)]
    requests = [Request([*common, *[rng.randrange(VOCAB) for _ in range(1 + r % 4)]], 6) for r in range(9)]
    read = 0
    inner = target.forward

    def counted(parts: Any) -> Any:
        nonlocal read
        read += sum(len(part.tokens) for part in parts)
        return inner(parts)

    expected = alone(Engine(EagerBackend(tiny("llama"))), requests)
    target.forward = counted
    try:
        found = together(Engine(target, Drafters(lookup=False)), requests, rows, bold=False)
    finally:
        del target.forward

    assert [(row.tokens, row.finish_reason) for row in found] == expected
    assert read < 200 + 9 * (200 % 32 + 4 + 6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_beginning_shorter_than_a_block_is_read_once(converted: tuple[Any, Any]) -> None:
    """As chats have it, whose template begins with the same few tokens, however different the rest of the prompts is."""
    target, _ = converted
    target.new_pool()
    rng = random.Random(8)
    common = [rng.randrange(VOCAB) for _ in range(24)]
    requests = [Request([*common, *[rng.randrange(VOCAB) for _ in range(40)]], 4) for _ in range(6)]
    expected = alone(Engine(EagerBackend(tiny("llama"))), requests)
    found = together(Engine(target, Drafters(lookup=False)), requests, 6, bold=False)

    assert [(row.tokens, row.finish_reason) for row in found] == expected
    assert target.pool.copied == 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_full_cache_delays_the_newest_and_loses_nothing(converted: tuple[Any, Any]) -> None:
    """Sequences that don't fit at the same time take turns; one that doesn't fit at all is an error."""
    target, _ = converted
    rng = random.Random(7)
    requests = [Request([rng.randrange(VOCAB) for _ in range(40)], 60) for _ in range(5)]
    expected = alone(Engine(EagerBackend(tiny("llama"))), requests)
    target.new_pool(limit=9)
    try:
        found = together(Engine(target), requests, 5)
        assert [(row.tokens, row.finish_reason) for row in found] == expected
        assert target.pool.size == 9
        target.new_pool(limit=2)
        with pytest.raises(DeviceError, match="key-value cache is full"):
            together(Engine(target), requests, 5)
    finally:
        target.new_pool()


def test_a_full_context_ends_a_row_and_no_other() -> None:
    """Rows end where the context does, drafts or not, while their neighbours go on."""
    target = EagerBackend(tiny("gpt2", n_positions=48))
    small = EagerBackend(perturbed(tiny("gpt2", n_positions=32), 0.03))
    rng = random.Random(3)
    requests = [Request([rng.randrange(VOCAB) for _ in range(n)], m) for n, m in ((46, 40), (2, 30), (48, 9), (20, 60))]
    found = together(Engine(target, Drafters(small)), requests, 3)

    assert [(row.tokens, row.finish_reason) for row in found] == alone(Engine(target), requests)
    assert [row.finish_reason for row in found] == ["context", "length", "context", "context"]


def test_a_prompt_that_cant_be_continued_is_refused() -> None:
    """As one at a time: with the same words."""
    engine = Engine(EagerBackend(tiny("gpt2", n_positions=48)))
    with pytest.raises(UsageError, match="49 tokens and the model's context is 48"):
        Batch(engine, 2).sequence(Request([1] * 49))


def costs(by_tokens: dict[int, float], draft: dict[int, float] | None = None) -> BatchCosts:
    """Passes by the tokens they carry, in seconds."""
    out = BatchCosts()
    out.target.table = {n: (s, 8.0) for n, s in by_tokens.items()}
    out.draft.table = {n: (s, 8.0) for n, s in (draft or {}).items()}
    return out


def test_a_batch_must_beat_one_at_a_time() -> None:
    """The rows with the highest rate are taken if that beats speculation alone, and from as many waiting prompts as it takes."""
    linear = costs({n: 0.01 * n for n in (1, 2, 4, 8, 16)})
    shared = costs({1: 0.010, 2: 0.010, 4: 0.011, 8: 0.012, 16: 0.030})

    assert weigh(linear, 250.0, "measured", 0.0, 16).sequences == 1
    better = weigh(shared, 250.0, "measured", 0.0, 16)
    assert (better.sequences, better.min_waiting) == (8, 3)
    assert "a batch writes 667 tokens/s, and one at a time 250 (measured); from 3 waiting prompts on" in str(
        better.decision
    )
    assert weigh(shared, 660.0, "measured", 0.0, 16).sequences == 1, "a gain that noise could make"


def test_guesses_count_in_a_small_batch() -> None:
    """Where passes of few rows leave room, drafts that are mostly right raise a batch's rate; where they don't, they don't."""
    roomy = costs({1: 0.05, 64: 0.06}, {1: 0.001, 16: 0.001})
    full = costs({1: 0.01, 2: 0.02, 64: 0.64}, {1: 0.01, 16: 0.16})

    assert batch_size.rate_of(roomy, 4, 0.8) > 2 * batch_size.rate_of(roomy, 4, 0.0)
    assert batch_size.rate_of(full, 4, 0.8) == batch_size.rate_of(full, 4, 0.0)


def test_what_a_profile_says_is_used_or_ignored_whole() -> None:
    """Measured batches come back as they were stored; a profile without them, or with nonsense, says nothing."""
    stored = costs({1: 0.010, 2: 0.010, 4: 0.011, 8: 0.012, 16: 0.030}).target.to_json()
    fitted = {"tokens_per_second": 250.0, "origins": [], "reliability": {}}
    whole: Any = SimpleNamespace(measured={"batch": {"target": stored, "draft": None}}, fitted=fitted)
    found = from_profile(whole, 16)

    assert found is not None
    assert (found.sequences, found.min_waiting) == (8, 3)
    assert from_profile(None, 16) is None
    for bad in (
        {},
        {"batch": None},
        {"batch": {"target": 3}},
        {"batch": {"target": stored | {"seconds_by_width": {}}}},
    ):
        nothing: Any = SimpleNamespace(measured=bad, fitted=fitted)
        assert from_profile(nothing, 16) is None


def test_timing_here_and_now_credits_speculation() -> None:
    """Without a profile a batch must beat what speculation could be worth, or what one at a time was seen to do."""
    ticks = iter(range(10**9))
    engine = Engine(
        EagerBackend(tiny("llama")), Drafters(lookup=True), clock=lambda: float(next(ticks))
    )  # every pass takes 1 s

    assert by_timing(engine, None, 16).sequences == 16
    assert "worth 3x plain, which nothing has measured" in by_timing(engine, None, 2).decision.reason
    assert by_timing(engine, None, 2).sequences == 1
    assert by_timing(engine, 17.0, 16).sequences == 1
    found = measure_batches(EagerBackend(tiny("llama")), None, budget=1.0, clock=engine.clock)
    assert set(found.target.table) == {b * n for b, n in batch_size.TIMED_PASSES}


def assembly(target: Any, **changes: Any) -> Any:
    """As much of one as the choice looks at."""
    plan = SimpleNamespace(
        request=SimpleNamespace(plain=changes.get("plain", False)),
        own_profile=None,
        machine=SimpleNamespace(memory_available=changes.get("free", 1 << 30)),
        key=SimpleNamespace(quantization="none"),
    )
    return SimpleNamespace(engine=Engine(target, exact=changes.get("exact")), plan=plan)


def test_the_choice_says_why() -> None:
    """Asked for, refused, or not worth it: the value has its reason, and what was asked for in vain is an error."""
    target = EagerBackend(tiny("llama"))
    common = {"waiting": 9, "tokens": 100}

    assert choose(assembly(target), asked=1, **common).decision.reason == "asked for"
    assert (
        choose(assembly(target), asked=6, **common).sequences,
        choose(assembly(target), asked=6, **common).min_waiting,
    ) == (
        6,
        1,
    )
    assert "too little" in choose(assembly(target), asked=None, waiting=2, tokens=9).decision.reason
    assert "one sequence at a time" in choose(assembly(Stub(9, scripted(9, [1]))), asked=None, **common).decision.reason
    windowed = choose(assembly(EagerBackend(tiny("gemma2"))), asked=None, **common)
    assert (windowed.sequences, "latest 16" in windowed.decision.reason) == (1, True)
    for refused in (assembly(EagerBackend(tiny("gemma2"))), assembly(target, exact=object()), assembly(target, free=1)):
        with pytest.raises(UsageError, match="`batch` 6: "):
            choose(refused, asked=6, **common)


def test_plain_decoding_is_batched_too() -> None:
    """It is weighed against plain decoding one at a time, whatever speculation could be worth."""
    ticks = iter(range(10**9))
    target = assembly(
        EagerBackend(tiny("llama")), plain=True
    )  # whose passes take as long, however many sequences they have
    target.engine.clock = lambda: float(next(ticks))
    found = choose(target, asked=None, waiting=9, tokens=100)
    stored = costs({1: 0.010, 2: 0.010, 4: 0.011, 8: 0.012, 16: 0.030}).target.to_json()
    fitted = {"tokens_per_second": 800.0, "origins": [], "reliability": {}}
    profile: Any = SimpleNamespace(measured={"batch": {"target": stored, "draft": None}}, fitted=fitted)

    assert (found.sequences, "(plain)" in found.decision.reason) == (16, True)
    assert [getattr(from_profile(profile, 16, plain=plain), "sequences", None) for plain in (False, True)] == [1, 8]


def test_memory_caps_the_rows() -> None:
    """Keys and values of all rows, each as long as the context, take a quarter of what is free at most."""
    backend = EagerBackend(tiny("llama", max_position_embeddings=256))
    each = 2 * backend.layers * 2 * 8 * 4 * 256 * 2  # keys and values, layers, heads, width, bytes, positions, growth

    assert sequences_that_fit(backend, 4 * 5 * each, 16) == 5
    assert sequences_that_fit(backend, 1 << 40, 16) == 16
    assert sequences_that_fit(backend, 10, 16) == 1


def test_a_line_that_is_too_long_arrives_as_its_beginning(tmp_path: Path) -> None:
    """It isn't kept whole, its size is known, and the lines around it are whole; without line ends there are no lines."""
    path = tmp_path / "lines"
    path.write_bytes(
        b"one\n" + b"x" * (MAX_LINE_BYTES + 5) + b"\n" + b"y" * MAX_LINE_BYTES + b"\n" + b"z" * (MAX_LINE_BYTES + 1)
    )
    with path.open("rb") as stream:
        lines = Arrivals(stream)
        first, long, longest, last, end = (lines.readline() for _ in range(5))
    assert (first, end) == (b"one\n", b"")
    assert isinstance(long, Beginning)
    assert (long.size, len(long) <= MAX_LINE_BYTES, long[:3]) == (MAX_LINE_BYTES + 6, True, b"xxx")
    assert longest == b"y" * MAX_LINE_BYTES + b"\n"
    assert isinstance(last, Beginning)
    assert last.size == MAX_LINE_BYTES + 1
    with Path("/dev/zero").open("rb") as zeros, pytest.raises(UsageError, match="1024 MiB without a line end"):
        Arrivals(zeros).readline()


def test_arrivals_are_seen_without_waiting() -> None:
    """A line is there once its end has come; blank ones don't count, the last needs no line break, and the end is an arrival."""
    out, into = os.pipe()
    with os.fdopen(out, "rb") as stream:
        lines = Arrivals(stream)
        assert not lines.ready()
        os.write(into, b"\n  \nfirst")
        assert not lines.ready()
        os.write(into, b" line\nsecond")
        assert lines.ready()
        assert [lines.readline() for _ in range(3)] == [b"\n", b"  \n", b"first line\n"]
        assert not lines.ready()
        os.close(into)
        assert lines.ready()
        assert [lines.readline() for _ in range(3)] == [b"second", b"", b""]
        assert lines.ready()


@pytest.mark.parametrize("text", ["0", "-1", "257", "x", "", "٣", "1.5"])
def test_a_number_of_rows_is_a_number(text: str) -> None:
    """auto, or 1 to 256."""
    assert (rows_asked("auto"), rows_asked("1"), rows_asked("256")) == (None, 1, 256)
    with pytest.raises(UsageError, match="auto or a number from 1 to 256"):
        rows_asked(text)
