"""An attached model's `generate` writes what transformers' own writes, or lets transformers write it and says why."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from support.commands import PROMPT
from support.models import VOCAB, perturbed, tiny
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    pipeline,
)

import dynx
from dynx.errors import UnsupportedModelError
from dynx.integrations.transformers.criteria import BySequence

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.usefixtures("alone"),
    pytest.mark.filterwarnings("ignore:.*(Unfeasible|max_length|max_new_tokens).*:UserWarning"),
]

KINDS = ("llama", "gpt2", "qwen3", "gemma3_text")
IDS = torch.tensor([[5, 9, 2, 33, 5, 9, 17, 2]])
PADDED = torch.tensor([[0, 0, 0, 5, 9, 2, 33, 5], [7, 30, 2, 51, 18, 7, 30, 2], [0, 44, 44, 3, 9, 21, 44, 3]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8, [0, *[1] * 7]])

_made: dict[tuple[str, bool], Any] = {}


def models(kind: str, *, assisted: bool = True) -> tuple[Any, Any]:
    """A model as it is, and the same attached."""
    if (kind, assisted) not in _made:
        assistant = perturbed(tiny(kind), 0.02) if assisted else None
        _made[kind, assisted] = tiny(kind), dynx.attach(tiny(kind), assistant=assistant)
    return _made[kind, assisted]


def greedy(model: Any, ids: torch.Tensor = IDS, **options: Any) -> Any:
    """Greedy `generate`, quietly."""
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(ids, **options)


def odd(_batch: int, text: torch.Tensor) -> list[int]:
    """Allow every other token, by the last one."""
    return [token for token in range(VOCAB) if token % 2 != int(text[-1]) % 2]


class Favour(LogitsProcessor):
    """A processor that nobody knows."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Favour a token."""
        scores = scores.clone()
        scores[:, 3] += 2.0
        return scores


class AfterTwice(StoppingCriteria):
    """Stops once a token has come twice in the answer; counts how often it was asked."""

    def __init__(self, start: int) -> None:
        self.start, self.asked = start, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """One answer for each sequence."""
        self.asked += 1
        new = input_ids[:, self.start :].tolist()
        return torch.tensor([len(set(row)) < len(row) for row in new])


class AfterToken(StoppingCriteria):
    """Stops once a token has come in the answer to the first sequence."""

    def __init__(self, start: int, token: int) -> None:
        self.start, self.token = start, token

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> bool:
        """One answer for all sequences."""
        return self.token in input_ids[0, self.start :].tolist()


FIELDS: dict[str, Callable[[], dict[str, Any]]] = {
    "greedy": dict,
    "max_length": lambda: {"max_new_tokens": None, "max_length": 20},
    "repetition_penalty": lambda: {"repetition_penalty": 1.6},
    "no_repeat_ngram_size": lambda: {"no_repeat_ngram_size": 2},
    "bad_words_ids": lambda: {"bad_words_ids": [[1], [5, 9], [12]]},
    "min_new_tokens": lambda: {"min_new_tokens": 12, "eos_token_id": list(range(20))},
    "min_length": lambda: {"min_length": 15, "eos_token_id": list(range(20))},
    "suppress_tokens": lambda: {"suppress_tokens": list(range(0, 64, 3))},
    "begin_suppress_tokens": lambda: {"begin_suppress_tokens": list(range(0, 64, 2))},
    "sequence_bias": lambda: {"sequence_bias": [[[7], 9.0], [[7, 11], 20.0]]},
    "encoder_repetition_penalty": lambda: {"encoder_repetition_penalty": 3.0},
    "encoder_no_repeat_ngram_size": lambda: {"encoder_no_repeat_ngram_size": 1},
    "exponential_decay_length_penalty": lambda: {"exponential_decay_length_penalty": (3, 1.5), "eos_token_id": 4},
    "forced_eos_token_id": lambda: {"forced_eos_token_id": 6, "eos_token_id": 6},
    "eos list": lambda: {"eos_token_id": [3, 9, 14, 20, 31]},
    "prefix_allowed_tokens_fn": lambda: {"prefix_allowed_tokens_fn": odd},
    "logits_processor": lambda: {
        "logits_processor": LogitsProcessorList([MinLengthLogitsProcessor(14, list(range(20)))]),
        "eos_token_id": list(range(20)),
    },
    "stopping_criteria": lambda: {"stopping_criteria": StoppingCriteriaList([AfterTwice(8)])},
    "max_time": lambda: {"max_time": 100.0},
    "renormalize_logits": lambda: {"renormalize_logits": True},
    "remove_invalid_values": lambda: {"remove_invalid_values": True},
    "watermarking_config": lambda: {"watermarking_config": {"bias": 9.0, "context_width": 1}},
    "use_cache": lambda: {"use_cache": False},
    "attention_mask": lambda: {"attention_mask": torch.ones_like(IDS)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_honoured(kind: str, name: str) -> None:
    """Token for token what transformers writes in float32, drafted by a model and by lookup."""
    plain, attached = models(kind)
    want, got = greedy(plain, **FIELDS[name]()), greedy(attached, **FIELDS[name]())

    assert got.tolist() == want.tolist()
    assert attached.dynx.stats.reason is None
    assert attached.dynx.stats.tokens == want.shape[1] - IDS.shape[1]


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"stopping_criteria", "max_time", "attention_mask"}))
def test_a_field_is_honoured_in_a_padded_batch(name: str) -> None:
    """Each row is told from its padding, and processors see the padding as they do in transformers."""
    for kind in ("llama", "gpt2"):
        plain, attached = models(kind)
        want = greedy(plain, PADDED, attention_mask=MASK, **FIELDS[name]())
        got = greedy(attached, PADDED, attention_mask=MASK, **FIELDS[name]())

        assert got.tolist() == want.tolist()
        assert attached.dynx.stats.reason is None
        assert len(attached.dynx.stats.receipts) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_scores_logits_and_cache_are_returned(kind: str) -> None:
    """A dictionary holds what transformers' holds, and its cache goes on where the text ended."""
    plain, attached = models(kind)
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "repetition_penalty": 1.2}
    want, got = greedy(plain, **options), greedy(attached, **options)

    assert attached.dynx.stats.reason is None
    assert got.keys() == want.keys()
    assert got.sequences.tolist() == want.sequences.tolist()
    for one, other in ((got.scores, want.scores), (got.logits, want.logits)):
        assert len(one) == len(other)
        torch.testing.assert_close(torch.cat(one), torch.cat(other), atol=1e-4, rtol=1e-4)
    for one, other in zip(got.cache.layers, want.cache.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, atol=1e-4, rtol=1e-4)
    onward = [
        greedy(plain, out.sequences, cache=out.cache, max_new_tokens=6, attention_mask=torch.ones_like(out.sequences))
        for out in (got, want)
    ]
    assert onward[0].tolist() == onward[1].tolist()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("end", [None, [3, 9, 14, 20, 31]])
def test_scores_logits_and_cache_of_a_padded_batch_are_returned(kind: str, end: list[int] | None) -> None:
    """Also after the end of the rows that end first, which transformers pads and goes on with."""
    plain, attached = models(kind)
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "repetition_penalty": 1.2}
    options |= {"attention_mask": MASK, "eos_token_id": end, "min_new_tokens": 2}
    want, got = greedy(plain, PADDED, **options), greedy(attached, PADDED, **options)

    assert attached.dynx.stats.reason is None
    assert got.keys() == want.keys()
    assert got.sequences.tolist() == want.sequences.tolist()
    for one, other in ((got.scores, want.scores), (got.logits, want.logits)):
        assert len(one) == len(other)
        torch.testing.assert_close(torch.cat(one), torch.cat(other), atol=1e-4, rtol=1e-4)
    assert got.cache.get_seq_length() == want.cache.get_seq_length() == got.sequences.shape[1] - 1
    seen = torch.cat([MASK, torch.ones(3, got.sequences.shape[1] - MASK.shape[1], dtype=torch.long)], -1)
    onward = [
        greedy(plain, out.sequences, cache=out.cache, max_new_tokens=6, attention_mask=seen) for out in (got, want)
    ]
    assert onward[0].tolist() == onward[1].tolist()


def test_in_16_bits_scores_of_a_batch_are_left_to_transformers() -> None:
    """Another pass rounds otherwise there; tokens alone are decoded by dynx."""
    model = dynx.attach(tiny("llama").to(torch.bfloat16))
    greedy(model, PADDED, attention_mask=MASK, return_dict_in_generate=True, output_scores=True)
    assert "rounds otherwise in bfloat16" in model.dynx.stats.reason
    out = greedy(model, PADDED, attention_mask=MASK, return_dict_in_generate=True, use_cache=False)
    assert model.dynx.stats.reason is None
    assert out.keys() == {"sequences"}


CONFIGS = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, 20)},
    optional={
        "repetition_penalty": st.sampled_from([1.0, 0.8, 1.3, 4.0]),
        "no_repeat_ngram_size": st.integers(0, 4),
        "encoder_no_repeat_ngram_size": st.integers(0, 3),
        "encoder_repetition_penalty": st.sampled_from([1.0, 0.5, 2.0]),
        "bad_words_ids": st.lists(st.lists(st.integers(0, 63), min_size=1, max_size=2), min_size=1, max_size=4),
        "min_length": st.integers(0, 20),
        "min_new_tokens": st.integers(0, 12),
        "suppress_tokens": st.lists(st.integers(0, 63), max_size=20),
        "begin_suppress_tokens": st.lists(st.integers(0, 63), max_size=20),
        "sequence_bias": st.lists(
            st.tuples(st.lists(st.integers(0, 63), min_size=1, max_size=2), st.floats(-9, 9)).map(list),
            min_size=1,
            max_size=3,
            unique_by=lambda pair: tuple(pair[0]),
        ),
        "forced_bos_token_id": st.integers(0, 63),
        "forced_eos_token_id": st.integers(0, 63),
        "exponential_decay_length_penalty": st.tuples(st.integers(0, 8), st.sampled_from([1.1, 1.6])),
        "eos_token_id": st.lists(st.integers(0, 63), min_size=1, max_size=12, unique=True),
        "renormalize_logits": st.booleans(),
        "remove_invalid_values": st.booleans(),
        "use_cache": st.booleans(),
        "num_beams": st.sampled_from([1, 1, 1, 2]),
        "guidance_scale": st.sampled_from([1.0, 1.5]),
        "prompt_lookup_num_tokens": st.sampled_from([None, 3]),
        "cache_implementation": st.sampled_from([None, "dynamic"]),
        "return_dict_in_generate": st.booleans(),
        "output_scores": st.booleans(),
        "output_logits": st.booleans(),
        "output_hidden_states": st.booleans(),
        "prefill_chunk_size": st.sampled_from([None, 4]),
        "temperature": st.sampled_from([0.3, 1.0]),
        "top_k": st.sampled_from([0, 5, 50]),
        "top_p": st.sampled_from([0.5, 1.0]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "typical_p": st.sampled_from([0.6, 1.0]),
        "do_sample": st.booleans(),
        "num_return_sequences": st.sampled_from([1, 2, 3]),
        "max_time": st.sampled_from([None, 1000.0]),
    },
).map(lambda config: certain(config))


def certain(config: dict[str, Any]) -> dict[str, Any]:
    """Leave sampling no choice, so that its texts can be compared."""
    if not config.get("do_sample"):
        return config
    return {name: value for name, value in config.items() if name != "num_beams"} | {"top_k": 1}


def outcome(model: Any, config: dict[str, Any], ids: torch.Tensor, mask: torch.Tensor | None) -> Any:
    """What `generate` returns, as lists, or the kind of its error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = GenerationConfig(pad_token_id=0, **copy.deepcopy(config))
            out = model.generate(ids, attention_mask=mask, generation_config=made)
    except Exception as e:  # noqa: BLE001 - whatever transformers makes of what anybody may write
        return type(e).__name__
    if isinstance(out, torch.Tensor):
        return out.tolist()
    return {
        "sequences": out.sequences.tolist(),
        **{name: [torch.stack(out[name]).isinf().tolist()] for name in ("scores", "logits") if name in out},
    }


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(CONFIGS, st.sampled_from(KINDS), st.sampled_from(["one", "several", "short"]), st.booleans())
def test_random_settings_give_transformers_text(config: dict[str, Any], kind: str, inputs: str, assisted: bool) -> None:
    """Whatever is asked for: the same tokens, or the same kind of error."""
    plain, attached = models(kind, assisted=assisted)
    ids, mask = {"one": (IDS, None), "several": (PADDED, MASK), "short": (IDS[:, :1], None)}[inputs]

    assert outcome(attached, config, ids, mask) == outcome(plain, config, ids, mask)


@pytest.mark.parametrize(
    "warpers",
    [
        {},
        {"temperature": 0.7, "top_k": 6},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"typical_p": 0.7},
        {"epsilon_cutoff": 0.02, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_sampling_has_transformers_distribution(warpers: dict[str, Any]) -> None:
    """The first two tokens of many answers are spread as transformers' own probabilities say."""
    plain, attached = models("llama")
    count = 700
    prompt = IDS.expand(count, -1)
    torch.manual_seed(5)
    options = {"do_sample": True, "max_new_tokens": 2, "pad_token_id": 0, "top_k": 0} | warpers
    drawn = torch.cat([attached.generate(IDS, **options)[:, 8:] for _ in range(count)])

    assert attached.dynx.stats.reason is None
    wanted = (
        plain.generate(prompt[:1], return_dict_in_generate=True, output_scores=True, **options).scores[0].softmax(-1)[0]
    )
    seen = torch.bincount(drawn[:, 0], minlength=VOCAB).double()
    assert not seen[wanted == 0].any()
    _fits(seen, wanted.double())
    first = int(seen.argmax())
    after = drawn[drawn[:, 0] == first, 1]
    longer = torch.cat([IDS, torch.tensor([[first]])], -1)
    # Where settings look at lengths the second token's differ, so it is compared by a text one longer.
    wanted = (
        plain.generate(longer, return_dict_in_generate=True, output_scores=True, **options | {"max_new_tokens": 1})
        .scores[0]
        .softmax(-1)[0]
    )
    _fits(torch.bincount(after, minlength=VOCAB).double(), wanted.double())


def _fits(seen: torch.Tensor, wanted: torch.Tensor) -> None:
    expected = wanted * seen.sum()
    big = expected >= 5
    observed = torch.cat([seen[big], seen[~big].sum()[None]])
    expected = torch.cat([expected[big], expected[~big].sum()[None]])
    if expected[-1] < 1:
        observed, expected = observed[:-1], expected[:-1]
    if len(observed) > 1:
        assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


def test_pytorchs_seed_fixes_a_sampled_text() -> None:
    """`manual_seed` repeats the answers, several of one prompt differ, and so do two calls."""
    _, attached = models("llama")
    options = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": 12, "pad_token_id": 0}
    texts = []
    for _ in range(2):
        torch.manual_seed(3)
        texts.append([attached.generate(IDS, **options).tolist() for _ in range(2)])

    assert texts[0] == texts[1]
    assert attached.dynx.stats.reason is None
    assert len({tuple(row) for rows in texts[0] for row in rows}) > 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 2}, "beam search is asked for"),
        ({"prompt_lookup_num_tokens": 3}, "assisted generation"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions is set"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states is set"),
        ({"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidanceLogitsProcessor may keep a state"),
        ({"logits_processor": LogitsProcessorList([Favour()])}, "Favour may keep a state"),
        ({"cache_implementation": "static"}, "cache_implementation is static"),
        ({"cache": DynamicCache()}, "a cache is given"),
        ({"past_key_values": DynamicCache()}, "a cache is given"),
        ({"token_type_ids": torch.zeros_like(IDS)}, "token_type_ids is given"),
        ({"position_ids": torch.arange(8)[None] + 3}, "position_ids is given"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1]])}, "hides more than padding"),
        ({"assistant_model": "small"}, "assistant_model is given"),
        ({"custom_generate": "plainly"}, "custom_generate is given"),
        ({"inputs_embeds": torch.zeros(1, 8, 32)}, "inputs_embeds is given"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_rest_is_left_to_transformers_with_the_reason(options: dict[str, Any], words: str) -> None:
    """The same result as without dynx, and the reason in the statistics."""
    plain, attached = models("gpt2")
    if "custom_generate" in options:
        options = {"custom_generate": lambda model, input_ids, **_: input_ids * 2}
    if "assistant_model" in options:
        options = {"assistant_model": tiny("gpt2", seed=4)}
    want = greedy(plain, **copy.deepcopy(options))
    got = greedy(attached, **copy.deepcopy(options))

    assert words in attached.dynx.stats.reason
    assert "transformers" in str(attached.dynx.stats)
    assert attached.dynx.stats.tokens is None
    same = [out if isinstance(out, torch.Tensor) else out.sequences for out in (want, got)]
    assert same[0].tolist() == same[1].tolist()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stopping_criteria": StoppingCriteriaList([AfterTwice(8)])}, "AfterTwice looks at a batch"),
        ({"max_time": 100.0}, "MaxTimeCriteria looks at a batch"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_needs_a_batch_as_a_whole_is_left_to_transformers(options: dict[str, Any], words: str) -> None:
    """Criteria that look at all sequences at once aren't asked about one."""
    plain, attached = models("llama")
    want, got = (greedy(model, PADDED, attention_mask=MASK, **options) for model in (plain, attached))

    assert words in attached.dynx.stats.reason
    same = [out if isinstance(out, torch.Tensor) else out.sequences for out in (want, got)]
    assert same[0].tolist() == same[1].tolist()


@pytest.mark.parametrize("end", [None, 1])
def test_a_criterion_for_each_sequence_ends_them_one_by_one(end: int | None) -> None:
    """As in transformers' loop, which pads what has ended; without an end token it goes on, so there it is left to do so."""
    plain, attached = models("llama")
    whole = greedy(plain, PADDED, attention_mask=MASK)[:, 8:].tolist()
    texts = []
    for model in (plain, attached):
        each = [AfterToken(8, row[4 + 5 * i]) for i, row in enumerate(whole)]
        options = {"stopping_criteria": StoppingCriteriaList([BySequence(each)]), "eos_token_id": end}
        texts.append(greedy(model, PADDED, attention_mask=MASK, **options).tolist())

    assert texts[0] == texts[1]
    assert (attached.dynx.stats.reason is None) == (end is not None)


def test_a_text_that_outgrows_the_context_is_left_to_transformers() -> None:
    """transformers goes on beyond the positions that a model was made for."""
    plain, attached = tiny("llama", max_position_embeddings=24), dynx.attach(tiny("llama", max_position_embeddings=24))

    assert greedy(attached, max_new_tokens=17).tolist() == greedy(plain, max_new_tokens=17).tolist()
    assert "beyond the model's context of 24" in attached.dynx.stats.reason
    assert greedy(attached, max_new_tokens=16).tolist() == greedy(plain, max_new_tokens=16).tolist()
    assert attached.dynx.stats.reason is None


def test_training_is_left_alone() -> None:
    """Dropout makes every pass another one."""
    model = dynx.attach(tiny("llama"))
    model.train()
    greedy(model)

    assert model.dynx.stats.reason == "the model is in training mode"


def test_a_criterion_is_asked_after_every_token() -> None:
    """Also after those that one pass has verified together, and no more often than transformers asks."""
    plain, attached = models("llama")
    asked = []
    for model in (plain, attached):
        criterion = AfterTwice(8)
        greedy(model, stopping_criteria=StoppingCriteriaList([criterion]))
        asked.append(criterion.asked)

    assert asked[0] == asked[1] > 2


def test_a_function_of_the_users_sees_the_text_alone() -> None:
    """`prefix_allowed_tokens_fn` is asked the same questions in the same order as by transformers."""
    plain, attached = models("llama")
    asked: list[list[Any]] = []
    for model in (plain, attached):
        seen: list[Any] = []

        def allowed(batch: int, text: torch.Tensor, seen: list[Any] = seen) -> list[int]:
            seen.append((batch, text.tolist()))
            return odd(batch, text)

        greedy(model, prefix_allowed_tokens_fn=allowed)
        asked.append(seen)

    assert asked[0] == asked[1]


class Tape:
    """A streamer that writes down what it is told, and fails when told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.told: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        """Token ids."""
        if len(self.told) == self.fails_at:
            raise KeyboardInterrupt
        self.told.append((tuple(value.shape), value.flatten().tolist()))

    def end(self) -> None:
        """The end."""
        self.told.append("end")


def test_a_streamer_is_told_what_transformers_tells() -> None:
    """The prompt, then one token at a time in one dimension, then the end once."""
    plain, attached = models("llama")
    tapes = []
    for model in (plain, attached):
        tapes.append(Tape())
        greedy(model, streamer=tapes[-1])

    assert tapes[0].told == tapes[1].told
    assert tapes[1].told[1][0] == (1,)


def test_a_streamer_cancels() -> None:
    """What it raises passes through, it isn't ended, and the next call works."""
    _, attached = models("llama")
    tape = Tape(5)
    with pytest.raises(KeyboardInterrupt):
        greedy(attached, streamer=tape)

    assert len(tape.told) == 5
    assert "end" not in tape.told
    assert greedy(attached).tolist() == greedy(models("llama")[0]).tolist()


def test_a_failing_call_doesnt_leave_a_reader_waiting(tiny_folder: Path) -> None:
    """An error in a stopping criterion or in the arguments ends the stream."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    model = dynx.attach(AutoModelForCausalLM.from_pretrained(tiny_folder))
    inputs = tokenizer(PROMPT, return_tensors="pt")

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    wrong: list[dict[str, Any]] = [{"stopping_criteria": StoppingCriteriaList([broken])}, {"no_such_argument": 1}]
    for options in wrong:
        streamer = TextIteratorStreamer(tokenizer, timeout=20)
        with pytest.raises((ZeroDivisionError, ValueError)):
            model.generate(**inputs, streamer=streamer, max_new_tokens=4, **options)
        list(streamer)


def test_text_streams_from_another_thread(tiny_folder: Path) -> None:
    """A `TextIteratorStreamer` gives the text that transformers streams."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    texts = []
    for model in (
        AutoModelForCausalLM.from_pretrained(tiny_folder),
        dynx.attach(AutoModelForCausalLM.from_pretrained(tiny_folder)),
    ):
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        thread = threading.Thread(
            target=model.generate, kwargs={**inputs, "streamer": streamer, "max_new_tokens": 30, "do_sample": False}
        )
        thread.start()
        texts.append("".join(streamer))
        thread.join()

    assert texts[0] == texts[1] != ""


def test_stop_strings_end_where_transformers_ends(tiny_folder: Path) -> None:
    """With a tokenizer from the call, from `attach` or from a pipeline; from the call's config, and in batches."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder)
    attached = dynx.attach(AutoModelForCausalLM.from_pretrained(tiny_folder), tokenizer=tokenizer)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    whole = plain.generate(**inputs, **options)
    stop = tokenizer.decode(whole[0, -20:-17])
    options["stop_strings"] = [stop]
    want = plain.generate(**inputs, tokenizer=tokenizer, **options)

    assert want.shape[1] < whole.shape[1]
    assert attached.generate(**inputs, **options).tolist() == want.tolist()
    assert attached.dynx.stats.reason is None
    config = GenerationConfig(**options)
    got = attached.generate(**inputs, generation_config=config, tokenizer=tokenizer)
    assert got.tolist() == want.tolist()
    both = tokenizer([PROMPT, PROMPT[:20]], return_tensors="pt", padding=True)
    options["eos_token_id"] = 1
    want = plain.generate(**both, tokenizer=tokenizer, **options)
    assert attached.generate(**both, **options).tolist() == want.tolist()
    assert attached.dynx.stats.reason is None
    with pytest.raises(ValueError, match="tokenizer"):
        dynx.attach(plain).generate(**inputs, **options)


def test_a_pipeline_runs_on_it(tiny_folder: Path) -> None:
    """`pipeline("text-generation")`, one text and several."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    answers = []
    for attach in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tiny_folder)
        if attach:
            dynx.attach(model)
        pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
        texts = [PROMPT, PROMPT[:30]]
        answers.append([pipe(text, max_new_tokens=20, do_sample=False) for text in (*texts, texts)])

    assert answers[0] == answers[1]


def test_threads_take_turns() -> None:
    """Several threads get the text that each gets alone."""
    plain, attached = models("qwen3")
    prompts = [torch.tensor([[token, 9, 2, 33, token, 9]]) for token in range(3, 11)]
    want = [greedy(plain, prompt).tolist() for prompt in prompts]
    got: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i, p=p: got.update({i: greedy(attached, p).tolist()}))
        for i, p in enumerate(prompts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [got[i] for i in range(len(prompts))] == want


def test_attaching_twice_is_one_attachment_and_detaching_restores_the_method() -> None:
    """The original is the class's method again, or the very object that stood in the model."""
    model = tiny("llama")
    assert dynx.attach(model) is model
    first = model.dynx
    assert dynx.attach(model).dynx is first
    dynx.attach(model, assistant=perturbed(tiny("llama"), 0.02))
    assert model.generate is model.dynx
    assert model.dynx.assistant is not None
    assert dynx.detach(model) is model
    assert "generate" not in vars(model)
    assert "dynx" not in vars(model)
    assert model.generate.__func__ is GenerationMixin.generate
    assert dynx.detach(model) is model

    from functools import partial

    from dynx.integrations.transformers import generate

    model.generate = replaced = partial(generate, model=model)
    dynx.attach(model)
    assert model.generate is not replaced
    assert dynx.detach(model).generate is replaced


def test_a_copy_has_an_attachment_of_its_own() -> None:
    """Copied and pickled models decode with their own weights."""
    model = dynx.attach(tiny("llama"))
    want = greedy(model).tolist()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert other.generate.model is other
        assert greedy(other).tolist() == want
        perturbed(other, 2.0)
        assert greedy(other).tolist() == greedy(copy.deepcopy(dynx.detach(other))).tolist()


def test_another_precision_makes_another_engine() -> None:
    """A model may be converted after it was attached."""
    model = dynx.attach(tiny("llama"))
    engine = model.dynx.engine
    assert model.dynx.engine is engine
    model.to(torch.float64)
    assert greedy(model).tolist() == greedy(tiny("llama").to(torch.float64)).tolist()
    assert model.dynx.engine is not engine


def test_it_looks_like_the_method() -> None:
    """Those who inspect `generate` find the original's parameters."""
    import inspect

    plain, attached = models("llama")
    assert inspect.signature(attached.generate) == inspect.signature(plain.generate)
    with pytest.raises(TypeError):
        attached.generate(IDS, None, None, None, None, None, None, None, None, None, None, "too many")


def test_what_cant_be_attached_is_told_with_the_reason() -> None:
    """And nothing is changed."""
    t5 = AutoConfig.for_model("t5", d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, vocab_size=32)
    cases = [
        (AutoModelForSeq2SeqLM.from_config(t5), "t5 is an encoder-decoder"),
        (AutoModel.from_config(tiny("llama").config), "LlamaModel has no generate"),
        (tiny("mamba"), "recurrent"),
        (torch.nn.Linear(2, 2), "Linear has no generate"),
        ("story", "str has no generate"),
    ]
    for model, words in cases:
        with pytest.raises(UnsupportedModelError, match=words):
            dynx.attach(model)
        assert "generate" not in getattr(model, "__dict__", {})
    with pytest.raises(UnsupportedModelError, match=r"assistant can't draft: "):
        dynx.attach(tiny("llama"), assistant=tiny("minimax"))
    model = tiny("llama")
    model.generate = print
    with pytest.raises(UnsupportedModelError, match="replaced by print"):
        dynx.attach(model)


def test_a_recurrent_assistant_drafts() -> None:
    """Its state is restored after what isn't accepted, and the text stays the model's own."""
    assert greedy(dynx.attach(tiny("llama"), assistant=tiny("mamba"))).tolist() == greedy(tiny("llama")).tolist()
