"""A kept tokenizer gives what transformers' own gives, is never one of other files, and isn't made where Python code decides."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dynx.runtime.loading import kept_tokenizer, plain_settings
from dynx.speculation.model_settings import end_tokens, read_settings, sampling_asked

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ("The fox said.", "  a\n\n\tb 12", "Grüße 🙂 你好", "")


def whole(folder: Path) -> Any:
    """Return transformers' own."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def never() -> Any:
    """Stand for a loader that must not be called."""
    raise AssertionError("transformers was asked")


def test_what_is_kept_encodes_and_decodes_as_transformers_does(tokenizer_folder: Path) -> None:
    """The second load asks transformers for nothing, and gives the same ids, texts and vocabulary."""
    want = kept_tokenizer.load(tokenizer_folder, lambda: whole(tokenizer_folder))
    found = kept_tokenizer.load(tokenizer_folder, never)
    assert isinstance(found, kept_tokenizer.KeptTokenizer)
    for text in TEXTS:
        ids = want(text)["input_ids"]
        assert found(text)["input_ids"] == ids
        assert found.decode(ids, skip_special_tokens=True) == want.decode(ids, skip_special_tokens=True)
    assert found.get_vocab() == want.get_vocab()
    assert found.eos_token_id == want.eos_token_id


def test_a_changed_file_is_read_anew(tokenizer_folder: Path) -> None:
    """Whatever file changes, what was kept of the old ones isn't used."""
    kept_tokenizer.load(tokenizer_folder, lambda: whole(tokenizer_folder))
    file = tokenizer_folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "padding_side": "left"}), "utf-8")
    with pytest.raises(AssertionError, match="transformers was asked"):
        kept_tokenizer.load(tokenizer_folder, never)


def test_a_class_that_changes_a_method_is_not_kept(tokenizer_folder: Path) -> None:
    """What a subclass does in Python can't be kept."""
    made = whole(tokenizer_folder)
    made.__class__ = type("Own", (type(made),), {"_decode": lambda *_args, **_kwargs: ""})
    kept_tokenizer.load(tokenizer_folder, lambda: made)
    with pytest.raises(AssertionError, match="transformers was asked"):
        kept_tokenizer.load(tokenizer_folder, never)


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": [1, 2], "bos_token_id": 1, "pad_token_id": 0},
        {"eos_token_id": 2, "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 40},
        {"_from_model_config": True, "eos_token_id": 2, "use_cache": True, "transformers_version": "5.0.0"},
    ],
)
def test_plain_settings_mean_what_transformers_reads(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Ends, penalties and the sampling asked for are those of transformers' own reading."""
    from transformers import GenerationConfig

    (tmp_path / "generation_config.json").write_text(json.dumps(settings), "utf-8")
    want, found = GenerationConfig.from_pretrained(tmp_path), plain_settings.read(tmp_path / "generation_config.json")
    assert found is not None
    assert end_tokens(found) == end_tokens(want)
    assert read_settings(found, end_tokens(found)) == read_settings(want, end_tokens(want))
    assert sampling_asked(found) == sampling_asked(want)


@pytest.mark.parametrize(
    "settings", [{"num_beams": 4}, {"repetition_penalty": 1.1}, {"eos_token_id": "2"}, {"top_p": 3}, []]
)
def test_other_settings_are_left_to_transformers(tmp_path: Path, settings: Any) -> None:
    """A key that changes logits, or a value of another kind, isn't read here."""
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps(settings), "utf-8")
    assert plain_settings.read(file) is None
