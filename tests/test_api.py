"""The Python side: `dynx.load_generator`, `generate` and `stream` write what transformers writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.commands import CONTEXT, PROMPT
from support.pipelines import pipeline
from transformers import AutoModelForCausalLM, AutoTokenizer

import dynx
from dynx.errors import ModelError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("alone")


def reference(folder: Path, prompt: str, count: int, **options: Any) -> tuple[str, list[int]]:
    """What transformers' own greedy `generate` appends."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=count, do_sample=False, pad_token_id=0, **options)
    new = out[0, ids["input_ids"].shape[1] :].tolist()
    return tokenizer.decode(new, skip_special_tokens=True), new


@pytest.mark.parametrize("wish", [{}, {"plain": True}, {"draft": "lookup"}, {"draft": "self"}], ids=str)
def test_a_loaded_model_writes_what_transformers_writes(tiny_folder: Path, wish: dict[str, Any]) -> None:
    """`load_generator` then `generate`: the same ids and text as transformers, with stats that count them."""
    text, ids = reference(tiny_folder, PROMPT, 40)
    answer = dynx.load_generator(str(tiny_folder), **wish).generate(PROMPT, max_new_tokens=40)

    assert (answer.text, list(answer.tokens), str(answer)) == (text, ids, text)
    assert (answer.stats.tokens, answer.stats.finish_reason) == (40, "length")
    assert answer.stats.guarantee == "identical to plain decoding"


def test_a_penalty_means_what_it_means_there(tiny_folder: Path) -> None:
    """Options have transformers' names and effect."""
    _, ids = reference(tiny_folder, PROMPT, 24, repetition_penalty=1.5)
    answer = dynx.load_generator(str(tiny_folder)).generate(PROMPT, max_new_tokens=24, repetition_penalty=1.5)

    assert list(answer.tokens) == ids


def test_a_stream_is_the_answer_in_pieces(tiny_folder: Path) -> None:
    """`stream` yields text as it becomes certain; a loaded model answers as often as it is asked."""
    generator = dynx.load_generator(str(tiny_folder))
    pieces = list(generator.stream(PROMPT, max_new_tokens=40))

    assert len(pieces) > 10
    assert all(pieces)
    assert "".join(pieces) == generator.generate(PROMPT, max_new_tokens=40).text
    assert "".join(pieces) == dynx.generate(PROMPT, model=str(tiny_folder), max_new_tokens=40).text


def test_stop_takes_a_string_or_several(tiny_folder: Path) -> None:
    """A stop string ends the text before it."""
    generator = dynx.load_generator(str(tiny_folder))
    whole = generator.generate(PROMPT, max_new_tokens=24).text
    stop = whole[20:23]
    cut = whole[: whole.index(stop)]

    assert generator.generate(PROMPT, max_new_tokens=24, stop=stop).text == cut
    assert generator.generate(PROMPT, max_new_tokens=24, stop=[stop, "never"]).text == cut


def test_seeds_repeat(tiny_folder: Path) -> None:
    """With a seed sampling is reproducible, across drafters too."""
    sample = {"max_new_tokens": 32, "temperature": 1.5, "seed": 4}
    first = dynx.load_generator(str(tiny_folder)).generate(PROMPT, **sample)
    plain = dynx.load_generator(str(tiny_folder), plain=True).generate(PROMPT, **sample)

    assert first.text == plain.text


def test_lookup_takes_a_path_as_text(tiny_folder: Path, tmp_path: Path) -> None:
    """What the command line takes as text, `load_generator` takes as text."""
    file = tmp_path / "tales.txt"
    file.write_text(PROMPT, encoding="utf-8")

    assert (
        dynx.load_generator(str(tiny_folder), draft="lookup", lookup=str(file))
        .generate(PROMPT, max_new_tokens=1)
        .tokens
    )


def test_errors_are_dynx_errors(tiny_folder: Path) -> None:
    """What can't be done is raised, with a hint, and nothing is printed."""
    with pytest.raises(ModelError, match="no folder"):
        dynx.load_generator("./nowhere")
    with pytest.raises(UsageError, match=f"context is {CONTEXT}") as told:
        dynx.load_generator(str(tiny_folder)).generate("the fox " * CONTEXT)

    assert told.value.hint


def test_a_temperature_near_zero_is_greedy(tiny_folder: Path) -> None:
    """Also where no command line has looked at it, with a seed and without; and it may be a whole number."""
    generator = dynx.load_generator(str(tiny_folder))
    for seed in (None, 3):
        cold = generator.generate(PROMPT, max_new_tokens=12, temperature=1e-38, seed=seed)
        assert cold.text == generator.generate(PROMPT, max_new_tokens=12).text
    assert generator.generate(PROMPT, max_new_tokens=4, temperature=2, repetition_penalty=2).stats.tokens == 4


def test_names_arrive_when_asked_for() -> None:
    """Every public name is there, listed, and nothing else pretends to be."""
    assert set(dir(dynx)) == set(dynx.__all__)
    assert all(getattr(dynx, name) is not None for name in dynx.__all__)
    with pytest.raises(AttributeError, match="'dynx' has no attribute 'nothing'"):
        _ = dynx.nothing


def test_classify_gives_predictions_in_order() -> None:
    """Texts in, labels out, and stats that say what they cost."""
    classifier = dynx.load_classifier("mood", profile="none", threads=1)
    predictions = list(classifier.classify(iter(["what a wonderful film", "a dreadful, tedious mess"])))

    assert [p.label for p in predictions] == ["positive", "negative"]
    assert all(p.error is None and p.exit is None and p.layers == classifier.stats.depth for p in predictions)
    assert classifier.stats.inputs == 2
    assert classifier.decisions.exits.value == "none"
    assert [p.label for p in dynx.classify(["great fun"], profile="none", threads=1)] == ["positive"]


def test_draw_gives_the_pipelines_own_picture(tmp_path: Path) -> None:
    """Without a profile, the pixels that the pipeline makes for this seed, and stats that counted its calls."""
    folder = tmp_path / "pipe"
    pipeline("stable-diffusion").save_pretrained(folder)
    generator = dynx.load_image_generator(str(folder), profile="none", threads=1)
    drawn = generator.draw("a cat", 7)
    own = generator.assembly.engine.pipe("a cat", generator=torch.Generator().manual_seed(7), output_type="np").images[
        0
    ]

    assert drawn.pixels is not None
    assert (drawn.pixels == own).all()
    assert drawn.stats.plain
    assert drawn.stats.calls == generator.assembly.engine.adapter.default_steps
    assert generator.guarantee is None
