"""A tokenizer as transformers loaded it once, run by the package tokenizers alone.

transformers takes longer to import than a kept model to load, and of a tokenizer the text and the ids need only what transformers
hands to the package tokenizers. So that is kept in dynx's cache, by the contents of every file that transformers might have read
and by both packages' versions. It is kept only of tokenizers whose classes change nothing in Python, and after both gave the same
ids and texts. So are chat templates that jinja2 alone renders as transformers does (`chat_templates`). Whatever else is asked
of it is answered by transformers' own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from importlib import metadata
from typing import TYPE_CHECKING, Any

from dynx.runtime.loading import chat_templates
from dynx.runtime.profile_store import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

FORMAT_VERSION = 2
"""Of what is kept: raised when its contents change."""

WEIGHT_SUFFIXES = frozenset({".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".xml"})
"""Files that no tokenizer is read from."""

MAX_FILE_BYTES = 256 << 20
"""Largest file that counts; with a larger one nothing is kept."""

FACTS = frozenset({"chat_template", "eos_token_id", "renders"})
"""What is kept beside the tokenizer. `renders` are the special tokens by name where `chat_templates` renders its template."""

FACTS_FILE, TOKENIZER_FILE = "facts.json", "tokenizer.json"

METHODS = (
    "__call__",
    "_encode_plus",
    "_decode",
    "convert_ids_to_tokens",
    "decode",
    "get_vocab",
    "set_truncation_and_padding",
)
"""What a tokenizer's class must have inherited unchanged."""

PROBES = (
    "Once upon a time, there was a little girl.",
    "  two spaces\n\n\tand a tab; don't 12345 3.14",
    "Grüße, 你好 мир 🙂🙃 e\u0301 \u200b",
    "def f(x):\n    return [x**2 for x in range(10)]  # <s> </s> <|im_start|> <bos>",
    "",
)
"""Texts that both must turn into the same ids and back."""


class KeptTokenizer:
    """Encodes and decodes as a transformers tokenizer does; `load` makes that one, for everything else."""

    def __init__(self, inner: Any, facts: dict[str, Any], load: Callable[[], Any]) -> None:
        self._inner, self._facts, self._load = inner, facts, load
        self._loaded: Any = None

    @property
    def whole(self) -> Any:
        """The transformers tokenizer, loaded when it is first used."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    @property
    def chat_template(self) -> Any:
        """The chat template; None without one."""
        return self._facts["chat_template"] if self._loaded is None else self._loaded.chat_template

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text."""
        found: int | None = self._facts["eos_token_id"] if self._loaded is None else self._loaded.eos_token_id
        return found

    def __call__(self, text: Any, add_special_tokens: bool = True, **settings: Any) -> Any:
        """Return the ids of a text as {"input_ids": [...]}."""
        if settings or not isinstance(text, str):
            return self.whole(text, add_special_tokens=add_special_tokens, **settings)
        return {"input_ids": self._inner.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: Any, skip_special_tokens: bool = False, **settings: Any) -> str:
        """Return the text of ids."""
        if settings.pop("clean_up_tokenization_spaces", None) or settings or not isinstance(ids, list):
            text: str = self.whole.decode(ids, skip_special_tokens=skip_special_tokens, **settings)
            return text
        return str(self._inner.decode(ids, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(
        self,
        conversation: Any,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **settings: Any,
    ) -> Any:
        """Return {"input_ids": [...]} of a conversation's rendered messages."""
        special = self._facts["renders"]
        plain = (
            not continue_final_message and settings == {"return_dict": True} and chat_templates.is_plain(conversation)
        )
        if special is not None and plain:
            with contextlib.suppress(Exception):  # said by transformers
                text = chat_templates.render(
                    self._facts["chat_template"], conversation, special, add_generation_prompt=add_generation_prompt
                )
                return self(text, add_special_tokens=False)
        return self.whole.apply_chat_template(
            conversation,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **settings,
        )

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> Any:
        """Return the name of a token, or those of several."""
        if isinstance(ids, int):
            return self._inner.id_to_token(ids)
        return [self._inner.id_to_token(int(each)) for each in ids]

    def get_vocab(self) -> dict[str, int]:
        """Return the ids by token, added tokens included."""
        found: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        return found

    def __len__(self) -> int:
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.whole, name)


def load(folder: Path, whole: Callable[[], Any]) -> Any:
    """Return the tokenizer in `folder` as it was kept, else `whole()`, which is transformers' own and is kept if that can be."""
    key = _key(folder)
    if key is None:
        return whole()
    place = cache_folder() / "tokenizers" / key
    found = _read(place, whole)
    if found is None:
        made = whole()
        with contextlib.suppress(Exception):  # kept or not, it is the one to use
            _keep(made, place)
        return made
    return found


def _key(folder: Path) -> str | None:
    """Hash every file that a tokenizer may be read from; None where that can't be done."""
    digest = hashlib.sha256()
    try:
        digest.update(
            json.dumps([FORMAT_VERSION, *(metadata.version(n) for n in ("transformers", "tokenizers"))]).encode()
        )
        for path in sorted(folder.iterdir()):
            if path.suffix in WEIGHT_SUFFIXES or not path.is_file() or path.name.startswith("."):
                continue
            if path.stat().st_size > MAX_FILE_BYTES:
                return None
            content = path.read_bytes()
            digest.update(json.dumps([os.fsencode(path.name).hex(), len(content)]).encode() + content)
        for path in sorted(folder.glob("additional_chat_templates/*")):
            digest.update(os.fsencode(path.name) + path.read_bytes())
    except (OSError, metadata.PackageNotFoundError):
        return None
    return digest.hexdigest()[:32]


def _read(place: Path, whole: Callable[[], Any]) -> KeptTokenizer | None:
    try:
        facts = json.loads((place / FACTS_FILE).read_text(encoding="utf-8"))
        if not isinstance(facts, dict) or not facts.keys() >= FACTS:
            return None
        from tokenizers import Tokenizer

        return KeptTokenizer(Tokenizer.from_file(str(place / TOKENIZER_FILE)), facts, whole)
    except Exception:  # noqa: BLE001 - not there, torn or of another package: transformers reads the folder
        return None


def _keep(made: Any, place: Path) -> None:
    """Keep what a transformers tokenizer hands to the package tokenizers, where nothing else decides what it does."""
    from transformers import PreTrainedTokenizerFast as Plain

    kind = type(made)
    if not isinstance(made, Plain) or any(getattr(kind, name) is not getattr(Plain, name) for name in METHODS):
        return
    if made.split_special_tokens or made.clean_up_tokenization_spaces:
        return
    template = made.chat_template
    if not isinstance(template, str | None):
        return
    made.backend_tokenizer.no_truncation()
    made.backend_tokenizer.no_padding()
    draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        draft.mkdir(parents=True)
        (draft / TOKENIZER_FILE).write_text(made.backend_tokenizer.to_str(), encoding="utf-8")
        special = {name: value for name, value in made.special_tokens_map.items() if isinstance(value, str)}
        renders = special if chat_templates.renders_alike(made, special) else None
        facts = {"chat_template": template, "eos_token_id": made.eos_token_id, "renders": renders}
        (draft / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")
        kept = _read(draft, lambda: made)
        if kept is not None and _same(kept, made):
            shutil.rmtree(place, ignore_errors=True)
            draft.rename(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _same(kept: KeptTokenizer, made: Any) -> bool:
    """Whether both give the same ids and texts."""
    for text in PROBES:
        for special in (True, False):
            ids = list(made(text, add_special_tokens=special)["input_ids"])
            if kept(text, add_special_tokens=special)["input_ids"] != ids:
                return False
            for skip in (True, False):
                if kept.decode(ids, skip) != made.decode(ids, skip_special_tokens=skip):
                    return False
    return kept.get_vocab() == made.get_vocab() and len(kept) == len(made)
