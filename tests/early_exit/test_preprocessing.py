"""From texts and pictures to batches: what is cut, what is padded, what can't be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.classifier_folders import VOCAB, write_pictures
from support.classifiers import SIDE, classifier
from support.commands import train_tokenizer

from dynx.early_exit.preprocessing import Example, ImagePreprocessor, TextPreprocessor, token_limit
from dynx.errors import UsageError
from dynx.runtime.pictures import read_picture

LONG = "a fox in the wood and a key of gold " * 20


def tokenizer(*, pads: bool = True, limit: int | None = None) -> Any:
    made = train_tokenizer(VOCAB)
    if pads:
        made.pad_token = made.eos_token
    if limit:
        made.model_max_length = limit
    return made


def texts(kind: str = "bert", *, pads: bool = True, max_length: int | None = None, **changes: Any) -> TextPreprocessor:
    model = classifier(kind, **{"vocab_size": VOCAB, "pad_token_id": 0, **changes})
    return TextPreprocessor(tokenizer(pads=pads), model, max_length)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("bert", 64), ("roberta", 62), ("mpnet", 62), ("distilbert", 64), ("gpt2", 64), ("llama", 64), ("bloom", None)],
)
def test_how_many_tokens_a_model_takes(kind: str, limit: int | None) -> None:
    """The table's places, less those that RoBERTa's kin keep free; the model takes so many and not one more."""
    model = classifier(kind)

    assert token_limit(tokenizer(), model) == limit
    assert token_limit(tokenizer(limit=20), model) == 20
    if limit and kind not in ("llama",):  # which has no table to run out of
        model(torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, limit + 1), 5))


def test_a_long_text_is_cut_as_the_tokenizer_cuts_it() -> None:
    """To the model's limit or to less if asked, and the row says so."""
    for preprocessor, limit in ((texts(), 64), (texts(max_length=16), 16), (texts(max_length=1000), 64)):
        short, long = preprocessor.rows(["a fox", LONG])
        assert isinstance(short, Example)
        assert isinstance(long, Example)
        assert (preprocessor.limit, long.size, long.truncated, short.truncated) == (limit, limit, True, False)
        assert long.values["input_ids"] == tokenizer()(LONG, truncation=True, max_length=limit)["input_ids"]
    with pytest.raises(UsageError, match="at least 8"):
        texts(max_length=7)


def test_batches_are_padded_on_the_right() -> None:
    """With the model's padding token, which the mask hides; nothing that the model doesn't take."""
    preprocessor = texts("distilbert", pad_token_id=7)
    rows = [
        row
        for row in preprocessor.rows(["a fox", "the miller's daughter had a golden key"])
        if isinstance(row, Example)
    ]
    batch = preprocessor.collate(rows)
    short = rows[0].size

    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"].shape == (2, rows[1].size)
    assert set(batch["input_ids"][0, short:].tolist()) == {7}
    assert batch["attention_mask"].sum(1).tolist() == [short, rows[1].size]


def test_equal_rows_are_known_by_their_tokens() -> None:
    """What reads the same to the model is one row, also two texts cut to the same beginning."""
    one, same, other = texts(max_length=16).rows([LONG, LONG + "!", "a fox"])

    assert one.identity == same.identity != other.identity  # type: ignore[union-attr]


def test_an_empty_text_without_special_tokens() -> None:
    """The end token stands for it; where there is none, the row says why it can't be answered."""
    bare = tokenizer(pads=False)
    bare.eos_token = None
    model = classifier("llama", vocab_size=VOCAB)

    (row,) = texts("llama").rows([""])
    assert isinstance(row, Example)
    assert (row.size, row.values["input_ids"]) == (1, [tokenizer().eos_token_id])
    assert "no special token" in str(TextPreprocessor(bare, model).rows([""])[0])
    assert texts().rows([]) == []


def test_padding_of_causal_classifiers() -> None:
    """They find a text's last token by the padding token of the config: without any, rows can't share a batch."""
    alone = texts("gpt2", pads=False, pad_token_id=None)
    model = classifier("gpt2", vocab_size=VOCAB, pad_token_id=None)
    shared = TextPreprocessor(tokenizer(), model)

    assert not alone.pads_batches
    assert len(alone.probe()["input_ids"]) == 1
    assert shared.pads_batches
    assert model.config.pad_token_id == tokenizer().pad_token_id
    assert len(shared.probe()["input_ids"]) == 4


def processor(**settings: Any) -> Any:
    from transformers import ViTImageProcessor

    return ViTImageProcessor(**{"size": {"height": SIDE, "width": SIDE}, **settings})


def test_pictures_and_what_is_none(tmp_path: Path) -> None:
    """Each file that isn't a picture says why; grey and transparent ones are pictures."""
    from PIL import Image

    first, second = write_pictures(tmp_path / "pictures", 2)
    (tmp_path / "torn.png").write_bytes(first.read_bytes()[:700])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    Image.new("L", (5, 9)).save(tmp_path / "grey.png")
    Image.new("RGBA", (9, 5)).save(tmp_path / "clear.png")
    good = [first, second, first, tmp_path / "grey.png", tmp_path / "clear.png"]
    bad = [tmp_path / name for name in ("torn.png", "text.png", "empty.png", "nowhere.png")] + [tmp_path]
    preprocessor = ImagePreprocessor(processor(), classifier("vit"))
    rows, reasons = preprocessor.rows(good), preprocessor.rows(bad)

    assert all(isinstance(row, Example) for row in rows)
    assert rows[0].identity == rows[2].identity != rows[1].identity  # type: ignore[union-attr]
    assert preprocessor.collate([row for row in rows if isinstance(row, Example)])["pixel_values"].shape == (
        5,
        3,
        SIDE,
        SIDE,
    )
    assert reasons[3:] == ["no such file", "a folder, not an image"]
    assert all("image" in str(reason) for reason in reasons[:3])
    assert preprocessor.probe()["pixel_values"].shape == (4, 3, SIDE, SIDE)


@pytest.mark.parametrize("orientation", [None, *range(10)])
def test_pictures_are_read_as_the_pipeline_reads_them(tmp_path: Path, orientation: int | None) -> None:
    """Turned as their EXIF says, in every format that carries it; transformers' own reader gives the same pixels."""
    from PIL import Image
    from transformers.image_utils import load_image

    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    for suffix in ("png", "jpg", "webp", "tif"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise).save(path, exif=exif)
        found, expected = read_picture(path), load_image(str(path))
        assert (found.mode, found.size, found.tobytes()) == ("RGB", expected.size, expected.tobytes())
        assert found.size == ((24, 40) if orientation in (5, 6, 7, 8) else (40, 24))


def test_files_that_would_never_end(tmp_path: Path) -> None:
    """A pipe that nobody writes to and a device without end are errors in their rows."""
    os.mkfifo(tmp_path / "pipe")
    preprocessor = ImagePreprocessor(processor(), classifier("vit"))

    assert set(preprocessor.rows([tmp_path / "pipe", Path("/dev/zero")])) == {"no file: a pipe, a socket or a device"}


def test_a_picture_that_the_processor_refuses(tmp_path: Path) -> None:
    """Its row says so; the others are read."""
    from PIL import Image

    class Picky:
        def __call__(self, images: Any, return_tensors: str) -> Any:
            if images.width < 3:
                raise ValueError("too thin\nfor words")
            return processor()(images=images, return_tensors=return_tensors)

    Image.new("RGB", (2, 9)).save(tmp_path / "thin.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    thin, good = ImagePreprocessor(Picky(), classifier("vit")).rows([tmp_path / "thin.png", tmp_path / "good.png"])

    assert thin == "the model's image processor can't take its 2 × 9 pixels: too thin"
    assert isinstance(good, Example)


def test_pictures_of_another_shape() -> None:
    """A processor that doesn't bring all to one size: the odd one out is an error, not the end."""
    from PIL import Image

    preprocessor = ImagePreprocessor(processor(do_resize=False), classifier("vit"))
    noise = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)

    assert isinstance(preprocessor.row(Image.fromarray(noise)), Example)
    assert "others as" in str(preprocessor.row(Image.fromarray(noise[:-1])))
