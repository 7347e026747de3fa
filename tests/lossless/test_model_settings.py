"""The model's own decoding settings: what `generate` makes of a generation config, dynx writes token for token, or it refuses."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.commands import PROMPT as WORDS
from support.models import VOCAB, Whim, perturbed, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, SynthIDTextWatermarkingConfig

import dynx
from dynx.errors import DynxError, ModelError, UnsupportedModelError, UsageError
from dynx.runtime.backends.eager import EagerBackend
from dynx.speculation import model_settings
from dynx.speculation.batching import Batch, SequenceRun
from dynx.speculation.drafters.prompt_lookup import LookupDrafter
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.equivalence import verify
from dynx.speculation.exactness import RoundingBound
from dynx.speculation.model_settings import end_tokens, own_sampling, read_settings
from dynx.speculation.policy import Plain, Static
from dynx.speculation.processors import AFTER, BEFORE
from dynx.speculation.sampling import check_processors
from dynx.speculation.types import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from support.commands import Result

    from dynx.speculation.policy import Policy

LONG = 30
PROMPTS: tuple[tuple[int, ...], ...] = ((7, 30, 2, 51, 18, 7, 30, 2, 44, 9, 51, 18), (7,), (33, 5, 33, 5))


def generated(model: Any, prompt: Sequence[int], count: int = LONG) -> list[int]:
    """What `generate` appends by the model's generation config, sampling left out."""
    ids = torch.tensor([list(prompt)])
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a shortest length can't be had
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
    return [int(token) for token in out[0, len(prompt) :]]


@cache
def free() -> list[int]:
    """The greedy text after the first prompt, without any settings."""
    return generated(tiny("llama"), PROMPTS[0])


@cache
def end() -> int:
    """A token that ends the text by itself, a good way in."""
    text = free()
    return next(token for i, token in enumerate(text) if i > 9 and token not in text[:i])


def cases() -> dict[str, dict[str, Any]]:
    """Settings of each kind, made so that they change the text."""
    a, b, c, d = free()[:4]
    return {
        "sequence_bias": {"sequence_bias": [[[b], -50.0], [[a, c], 60.0]]},
        "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0},
        "repetition_penalty": {"repetition_penalty": 1.5},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
        "no_repeat_ngram_size 1": {"no_repeat_ngram_size": 1},
        "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
        "bad_words_ids": {"bad_words_ids": [[c], [a, b]]},
        "min_length": {"min_length": len(PROMPTS[0]) + 22},
        "min_new_tokens": {"min_new_tokens": 20},
        "min_new_tokens before min_length": {"min_new_tokens": 14, "min_length": 200},
        "forced_bos_token_id": {"forced_bos_token_id": 3},
        "forced_eos_token_id": {"forced_eos_token_id": 4, "bad_words_ids": [[end()]], "eos_token_id": 4},
        "several forced_eos_token_id": {"forced_eos_token_id": [9, 4], "eos_token_id": 4},
        "remove_invalid_values": {"remove_invalid_values": True},
        "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [2, 1.6]},
        "suppress_tokens": {"suppress_tokens": [b, d]},
        "begin_suppress_tokens": {"begin_suppress_tokens": [a, b]},
        "begin_suppress_tokens after a forced one": {"begin_suppress_tokens": [a, b, c], "forced_bos_token_id": 3},
        "watermarking_config": {"watermarking_config": {"bias": 12.0, "context_width": 1}},
        "selfhash": {"watermarking_config": {"bias": 12.0, "seeding_scheme": "selfhash", "context_width": 2}},
        "renormalize_logits": {"renormalize_logits": True, "suppress_tokens": [a]},
        "eos_token_id": {"eos_token_id": [free()[4], 63]},
        "all": {
            "sequence_bias": [[[b], -9.0], [[a, c], 9.0]],
            "encoder_repetition_penalty": 1.1,
            "repetition_penalty": 1.1,
            "no_repeat_ngram_size": 3,
            "encoder_no_repeat_ngram_size": 3,
            "bad_words_ids": [[c, d]],
            "min_new_tokens": 12,
            "forced_bos_token_id": 3,
            "forced_eos_token_id": 4,
            "remove_invalid_values": True,
            "exponential_decay_length_penalty": (14, 1.2),
            "suppress_tokens": [60, 61],
            "begin_suppress_tokens": [a],
            "watermarking_config": {"bias": 2.0},
            "renormalize_logits": True,
        },
    }


CASES = cases()

NOT_ROLLED_BACK = {"remove_invalid_values"}
"""Cases of a model whose cache can't be trusted, as its logits are no numbers."""


def configured(name: str, *, noise: float = 0.0) -> Any:
    """A model with a case's settings; with noise another that often agrees."""
    model = perturbed(tiny("llama"), noise) if noise else tiny("llama")
    if name == "remove_invalid_values":
        with torch.no_grad():
            model.lm_head.weight[5] = float("nan")
    model.generation_config = GenerationConfig.from_dict({"eos_token_id": end(), **CASES[name]})
    return model


@cache
def expected(name: str, prompt: tuple[int, ...], count: int = LONG) -> list[int]:
    """What `generate` writes in a case."""
    return generated(configured(name), prompt, count)


def request_for(model: Any, prompt: Sequence[int], count: int = LONG, **sampling: Any) -> Request:
    """A request under a model's own settings."""
    ends = end_tokens(model.generation_config)
    return Request(prompt, count, own_sampling(read_settings(model.generation_config, ends), **sampling), ends)


def test_every_field_of_a_generation_config_is_accounted_for() -> None:
    """A field that a new transformers brings belongs to one of the lists before anything can be called identical."""
    lists = (
        model_settings.APPLIED,
        model_settings.ENDING,
        model_settings.CALLER,
        model_settings.LENGTHS,
        model_settings.NO_EFFECT,
        model_settings.REFUSED,
    )
    twice = [name for name, times in Counter(name for names in lists for name in names).items() if times > 1]

    assert vars(GenerationConfig()).keys() - model_settings.FIELDS == set()
    assert twice == []
    assert [*BEFORE, *AFTER] == list(model_settings.APPLIED)
    assert {name for case in CASES.values() for name in case} >= set(model_settings.APPLIED)


@pytest.mark.parametrize("name", CASES)
def test_settings_change_the_text(name: str) -> None:
    """The cases would show it if a setting were ignored: `generate` writes something else without it."""
    texts = [expected(name, prompt) for prompt in PROMPTS]
    plain = configured(name)
    plain.generation_config = GenerationConfig(eos_token_id=end())

    assert texts != [generated(plain, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("name", CASES)
def test_a_drafted_text_is_generates(name: str) -> None:
    """Whatever is drafted, by whom and how far, across the places where settings begin and end."""
    model = configured(name)
    drafters = Drafters(EagerBackend(configured(name, noise=0.02)), exit_layers=1)
    engine = Engine(EagerBackend(model), drafters)
    for prompt in PROMPTS:
        policies: list[Policy] = [Static("draft", 5), Whim(0), Whim(1), Plain()]
        for policy in policies:
            run = engine.start(request_for(model, prompt), policy)
            list(run)

            assert run.tokens == expected(name, prompt)
        assert verify(engine.target, run.request, run.tokens).verdict == "identical"


@pytest.mark.parametrize("name", sorted(CASES.keys() - NOT_ROLLED_BACK))
def test_an_attached_model_keeps_to_its_settings(name: str) -> None:
    """An attached model's `generate` writes what the model's own writes, whatever its generation config says."""
    model = dynx.attach(configured(name), assistant=configured(name, noise=0.02))
    for prompt in PROMPTS:
        assert generated(model, prompt) == expected(name, prompt)
        assert model.dynx.stats.reason is None


class Bold(Batch):
    """Guesses at every chance."""

    def _worthwhile(self, *arguments: Any) -> bool:
        return True

    def _should_draft_more(self, *arguments: Any) -> bool:
        return True


@pytest.mark.parametrize("name", sorted(CASES.keys() - NOT_ROLLED_BACK))
def test_each_row_of_a_batch_is_generates(name: str) -> None:
    """Rows of other lengths begin and end elsewhere, and each keeps to the settings at its own place."""
    model = configured(name)
    rows: list[SequenceRun] = []
    waiting = [request_for(model, prompt, count) for prompt in PROMPTS for count in (LONG, 7)]

    def more() -> SequenceRun | None:
        if not waiting:
            return None
        rows.append(batch.sequence(waiting.pop(0)))
        return rows[-1]

    batch = Bold(Engine(EagerBackend(model), Drafters(EagerBackend(configured(name, noise=0.02)))), 3, more=more)
    batch.step()
    at = 0
    while at < len(rows):
        list(rows[at])
        batch.step()
        at += 1

    assert [row.tokens for row in rows] == [expected(name, p, n) for p in PROMPTS for n in (LONG, 7)]


@pytest.mark.parametrize("name", CASES)
def test_a_seed_gives_one_text(name: str) -> None:
    """Sampled with a seed, drafts change nothing under settings either."""
    model = configured(name)
    engine = Engine(EagerBackend(model), Drafters(EagerBackend(configured(name, noise=0.02)), exit_layers=1))
    request = request_for(model, PROMPTS[0], temperature=1.3, top_k=20, seed=3)
    runs = [engine.start(request, policy) for policy in (Plain(), Static("draft", 4), Whim(2))]
    texts = []
    for run in runs:
        list(run)
        texts.append(run.tokens)

    assert texts == [texts[0]] * len(texts)
    assert verify(engine.target, request, texts[0]).verdict == "identical"


@pytest.mark.parametrize("name", sorted(CASES.keys() - NOT_ROLLED_BACK))
def test_drafts_keep_to_the_settings(name: str) -> None:
    """A draft model as good as the target proposes what the settings allow, so all of it stays."""
    model = configured(name)
    engine = Engine(EagerBackend(model), Drafters(EagerBackend(configured(name)), lookup=False))
    run = engine.start(request_for(model, PROMPTS[0]), Static("draft", 4))
    list(run)
    tally = run.tallies["draft"]
    ended = len(run.tokens) < LONG and 4  # drafts past the end are no one's fault

    assert tally.submitted - tally.accepted <= ended


def test_free_sampling_keeps_to_the_settings() -> None:
    """Without a seed too, a token of no probability is never written, drafted or not."""
    model = configured("all")
    model.generation_config.suppress_tokens = banned = list(range(8, VOCAB))
    engine = Engine(EagerBackend(model), Drafters(EagerBackend(tiny("llama", seed=1)), exit_layers=1))
    for seed in range(6):
        run = engine.start(request_for(model, PROMPTS[0], temperature=1.5), Whim(seed, prefixes=False))
        list(run)

        assert run.tokens
        assert not set(run.tokens) & set(banned)
        assert verify(engine.target, run.request, run.tokens).verdict == "plausible"


def test_a_smaller_vocabulary_drafts_under_the_targets_settings() -> None:
    """Settings may name tokens that the draft model doesn't have."""
    model, small = configured("all"), tiny("llama", vocab=50)
    engine = Engine(EagerBackend(model), Drafters(EagerBackend(small), lookup=False))
    model.generation_config.update(
        sequence_bias=[[[60], 3.0]], suppress_tokens=[*range(50, 62), 63], eos_token_id=[end(), 62]
    )
    for policy in (Static("draft", 4), Whim(5)):
        run = engine.start(request_for(model, (7, 30, 2)), policy)
        list(run)

        assert run.tokens == generated(model, (7, 30, 2))
        assert run.tallies["draft"].submitted


def test_lookup_doesnt_copy_what_may_not_be_repeated() -> None:
    """Where no three tokens may come twice, copying stops after two; a library isn't the text."""
    text = (1, 2, 3, 4, 5, 1)

    def copied(drafter: LookupDrafter) -> list[int]:
        drafter.sync(text)
        out = []
        while len(out) < 4 and (draft := drafter.propose()):
            out.append(draft.token)
        return out

    assert copied(LookupDrafter()) == [2, 3, 4, 5]
    assert copied(LookupDrafter((), 3)) == [2]
    assert copied(LookupDrafter((), 1)) == []
    assert LookupDrafter((), 2).peek_confidence(text) is None
    assert copied(LookupDrafter((9, 5, 1, 8, 8, 8, 8), 3)) == [8, 8, 8, 8]


@pytest.mark.parametrize("name", ["exponential_decay_length_penalty", "all", "selfhash"])
def test_exactness_knows_how_far_settings_stretch_rounding(name: str) -> None:
    """A setting that multiplies a logit multiplies what rounding did to it, so more decisions are made again."""
    model = configured(name)
    exact = RoundingBound({2: 1e-3})
    engine = Engine(EagerBackend(model), Drafters(EagerBackend(configured(name, noise=0.02))), exact=exact)
    run = engine.start(request_for(model, PROMPTS[0]), Static("draft", 4))
    list(run)
    distance_scale = run._verifier._processors.distance_scale(len(PROMPTS[0]) + LONG)

    assert run.tokens == generated(model, PROMPTS[0])
    assert distance_scale > 2


REFUSALS: dict[str, dict[str, Any]] = {
    "num_beams": {"num_beams": 4},
    "num_return_sequences": {"num_return_sequences": 2},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "dola_layers": {"dola_layers": "high"},
    "force_words_ids": {"force_words_ids": [[5]]},
    "constraints": {"constraints": [[5]]},
    "guidance_scale": {"guidance_scale": 1.5},
    "token_healing": {"token_healing": True},
    "max_time": {"max_time": 2.0},
    "cache_implementation": {"cache_implementation": "quantized"},
    "is_assistant": {"is_assistant": True},
}


@pytest.mark.parametrize("name", REFUSALS)
def test_other_ways_of_decoding_are_refused(name: str) -> None:
    """The field is named, and what to do about it."""
    model = tiny("llama")
    model.generation_config = GenerationConfig()
    for field, value in REFUSALS[name].items():
        setattr(model.generation_config, field, value)
    with pytest.raises(UnsupportedModelError, match=f"asks for .*{name}: ") as told:
        read_settings(model.generation_config)

    assert REFUSALS.keys() == model_settings.REFUSED.keys()
    assert told.value.hint
    assert f"without {name}" in told.value.hint


def test_state_besides_the_text_is_refused() -> None:
    """A watermark that remembers what it has marked can't be rolled back."""
    model = tiny("llama")
    model.generation_config.watermarking_config = SynthIDTextWatermarkingConfig(ngram_len=3, keys=[1, 2, 3])
    with pytest.raises(UnsupportedModelError, match="watermark that keeps a state"):
        read_settings(model.generation_config)


def test_a_field_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of transformers' own, that is; what anybody else writes into the file `generate` doesn't read."""
    config = GenerationConfig.from_dict({"chat_format": "chatml", "min_length": 3})

    assert read_settings(config, [1]).values == {"min_length": 3}
    monkeypatch.setattr(model_settings, "FIELDS", model_settings.FIELDS - {"min_length"})
    with pytest.raises(UnsupportedModelError, match="sets min_length"):
        read_settings(config, [1])


@pytest.mark.parametrize(
    "harmless",
    [
        {"num_beams": 1, "length_penalty": 2.0, "early_stopping": True, "num_beam_groups": 1},
        {"penalty_alpha": 0.0, "guidance_scale": 1.0, "top_k": 4, "cache_implementation": "static"},
        {"use_cache": False, "output_scores": True, "no_repeat_ngram_size": 0, "suppress_tokens": []},
        {"do_sample": True, "temperature": 0.6, "min_p": 0.1, "typical_p": 0.5, "max_new_tokens": 3, "max_length": 5},
    ],
    ids=str,
)
def test_what_leaves_the_text_as_it_is_is_left_alone(harmless: dict[str, Any]) -> None:
    """Neutral values, speed, memory, and what the caller decides."""
    model = tiny("llama")
    model.generation_config = GenerationConfig.from_dict(harmless)
    run = Engine(EagerBackend(model)).start(request_for(model, PROMPTS[0]))
    list(run)

    assert not read_settings(model.generation_config).values
    assert run.tokens == free()


@pytest.mark.parametrize(
    "wrong",
    [
        {"no_repeat_ngram_size": "three"},
        {"bad_words_ids": []},
        {"sequence_bias": [[[5000], -1.0]]},
        {"forced_eos_token_id": 5000},
        {"exponential_decay_length_penalty": [2, 1.5]},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": "much"},
        {"encoder_repetition_penalty": 0.0},
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_an_error_in_one_line(wrong: dict[str, Any]) -> None:
    """Not a traceback in the middle of an answer."""
    model = tiny("llama")
    model.generation_config = GenerationConfig()
    for name, value in wrong.items():
        setattr(model.generation_config, name, value)
    with pytest.raises(ModelError) as told:
        check_processors(read_settings(model.generation_config), VOCAB)

    assert "\n" not in str(told.value)
    assert told.value.hint


@pytest.fixture
def folder(changed: Callable[..., Path], alone: None) -> Callable[..., Path]:
    """Makes a model's folder with a generation config."""

    def make(**settings: Any) -> Path:
        path = changed(drafter=True)
        file = path / "generation_config.json"
        file.write_text(json.dumps({"eos_token_id": 0} | settings), encoding="utf-8")
        return path

    return make


def theirs(path: Path, prompt: str, count: int, **options: Any) -> list[int]:
    """What transformers makes of the folder."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    ids = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=count, do_sample=False, pad_token_id=0, tokenizer=tokenizer, **options)
    return [int(token) for token in out[0, ids["input_ids"].shape[1] :]]


FOLDERS: dict[str, dict[str, Any]] = {
    "ngrams": {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
    "suppressed": {"suppress_tokens": [40, 41, 42], "begin_suppress_tokens": list(range(0, 200, 2))},
    "decay": {"exponential_decay_length_penalty": [3, 1.5], "min_new_tokens": 6},
}


@pytest.mark.parametrize("options", [["--plain"], [], ["--exact"], ["--draft", "self,lookup"]], ids=str)
@pytest.mark.parametrize("name", FOLDERS)
def test_the_command_keeps_to_a_folders_settings(
    cli: Callable[..., Result], folder: Callable[..., Path], name: str, options: list[str]
) -> None:
    """`dynx generate` writes what transformers writes from that folder, says by which settings, and verifies it."""
    path = folder(**FOLDERS[name])
    done = cli("generate", "-m", path, "-n", 30, "--json", "--verify", *options, WORDS)

    assert done.document["token_ids"] == theirs(path, WORDS, 30)
    assert done.document["verification"]["verdict"] == "identical"
    assert next(iter(FOLDERS[name])) in done.document["decisions"]["decoding"]["value"]


def test_a_batch_of_lines_keeps_to_a_folders_settings(cli: Callable[..., Result], folder: Callable[..., Path]) -> None:
    """Each line by itself."""
    path = folder(**FOLDERS["ngrams"])
    prompts = [WORDS, "The king", "The fox and the golden key"]
    done = cli(
        "generate", "-m", path, "-n", 20, "--json", "--lines", "--batch", 3, stdin="\n".join(prompts).encode() + b"\n"
    )

    assert [r["token_ids"] for r in done.document["results"]] == [theirs(path, p, 20) for p in prompts]


def test_load_keeps_to_settings_in_an_old_folder(folder: Callable[..., Path]) -> None:
    """Older folders have them in config.json."""
    path = folder()
    (path / "generation_config.json").unlink()
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(
        json.dumps(config | {"no_repeat_ngram_size": 2, "eos_token_id": 0}), encoding="utf-8"
    )

    assert list(dynx.load_generator(str(path)).generate(WORDS, max_new_tokens=30).tokens) == theirs(path, WORDS, 30)


def test_a_folders_stop_strings_end_the_text(folder: Callable[..., Path], cli: Callable[..., Result]) -> None:
    """As one of the caller's own: the same tokens as transformers, and the text up to there."""
    plain = folder()
    whole = dynx.load_generator(str(plain)).generate(WORDS, max_new_tokens=40).text
    stop = whole[20:23]
    (plain / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 0, "stop_strings": [stop]}), encoding="utf-8"
    )
    answer = dynx.load_generator(str(plain)).generate(WORDS, max_new_tokens=40)
    done = cli("generate", "-m", plain, "-n", 40, "--json", WORDS)

    assert answer.text == done.document["text"] == whole[: whole.index(stop)]
    assert list(answer.tokens) == done.document["token_ids"] == theirs(plain, WORDS, 40)
    assert done.document["finish_reason"] == "stop"


def test_sampling_settings_are_named_and_not_used(cli: Callable[..., Result], folder: Callable[..., Path]) -> None:
    """Greedy is the default, whatever the folder asks for, and it is said."""
    path = folder(do_sample=True, temperature=0.6, top_p=0.9)
    done = cli("generate", "-m", path, "-n", 20, "--json", WORDS)
    said = done.document["decisions"]["sampling"]

    assert done.document["token_ids"] == theirs(path, WORDS, 20)
    assert "do_sample True, temperature 0.6, top_p 0.9" in said["reason"]


def test_refusals_reach_the_terminal_in_one_line(cli: Callable[..., Result], folder: Callable[..., Path]) -> None:
    """Exit 1, the field, and a hint, before any weights are read."""
    done = cli("generate", "-m", folder(num_beams=4), WORDS)

    assert (done.code, done.out) == (1, "")
    assert "beam search (num_beams: 4)" in done.err
    assert "Traceback" not in done.err


def test_a_file_that_cant_be_read_is_an_error(folder: Callable[..., Path]) -> None:
    """Settings that nobody can read can't be kept to."""
    path = folder()
    (path / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(DynxError, match=r"generation_config\.json can't be read"):
        dynx.load_generator(str(path))


def test_a_penalty_of_the_callers_replaces_the_models_own(folder: Callable[..., Path]) -> None:
    """And 1 switches it off, the other settings staying."""
    path = folder(repetition_penalty=1.5, no_repeat_ngram_size=3)
    writer = dynx.load_generator(str(path))
    for penalty in (1.0, 1.2):
        answer = writer.generate(WORDS, max_new_tokens=30, repetition_penalty=penalty)

        assert list(answer.tokens) == theirs(path, WORDS, 30, repetition_penalty=penalty)
    with pytest.raises(UsageError):
        writer.generate(WORDS, repetition_penalty=-1.0)
