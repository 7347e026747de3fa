"""The text of each token of a tokenizer, as bytes, so that tokens of different tokenizers can be compared.

A token of a byte-level vocabulary spells its bytes in printable characters; one of a SentencePiece vocabulary writes a space as
U+2581 and a single byte as <0xNN>. Special tokens have no text. Tokenizers of other kinds (WordPiece, whose decoder puts spaces
between words) are refused, since their tokens have no text of their own.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dynx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE_SIGN = "\u2581"


class TokenTexts:
    """The texts of one tokenizer's tokens, and encoding without special tokens.

    Raises UnsupportedModelError for a tokenizer whose tokens have no text of their own.
    """

    def __init__(self, tokenizer: Any) -> None:
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if fast is None:
            raise UnsupportedModelError("its tokenizer is of no fast kind")
        self._fast = fast
        self._spelling = _spelling(fast)
        self._added: dict[int, str] = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()}
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special |= set(tokenizer.all_special_ids)
        self._known: dict[int, bytes] = {}
        self.eos: int | None = tokenizer.eos_token_id

    def __getitem__(self, token: int) -> bytes:
        """Return the text of a token; empty for a special one and for an id without a token."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._text(token)
        return found

    def _text(self, token: int) -> bytes:
        if token in self._special:
            return b""
        if token in self._added:
            return self._added[token].encode()
        name = self._fast.id_to_token(token)
        return b"" if name is None else self._spelling(name)

    def special_name(self, token: int) -> str:
        """Return the name of a special token; "" for any other."""
        return self._added.get(token, "") if token in self._special else ""

    @cached_property
    def special_names(self) -> dict[str, int]:
        """Special tokens by name."""
        return {self._added[i]: i for i in self._special if i in self._added}

    @cached_property
    def by_text(self) -> dict[bytes, int]:
        """Tokens by text, special ones left out; the lowest id of those that are spelt alike."""
        found: dict[bytes, int] = {}
        for token in sorted(self._fast.get_vocab(with_added_tokens=True).values()):
            text = self[token]
            if text:
                found.setdefault(text, token)
        return found

    @cached_property
    def prefix(self) -> list[int]:
        """Special tokens that the tokenizer puts before a text."""
        bare, whole = self.encode("a"), list(self._fast.encode("a", add_special_tokens=True).ids)
        for at in range(len(whole) - len(bare) + 1):
            if whole[at : at + len(bare)] == bare:
                return whole[:at]
        return []

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens but for those that it names."""
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def encode_with_starts(self, text: bytes) -> tuple[list[int], list[int]] | None:
        """Return the ids of a text and the byte at which each begins; None where their texts aren't that text.

        A space that the tokenizer puts before a text makes the first token begin at -1.
        """
        ids = self.encode(text.decode("utf-8", "replace"))
        starts, at = [], 0
        for token in ids:
            starts.append(at)
            at += len(self[token]) or len(self.special_name(token).encode())
        if at == len(text) + 1 and ids and self[ids[0]] and (b" " + text).startswith(self[ids[0]]):
            return ids, [start - 1 for start in starts]
        return (ids, starts) if at == len(text) else None


def ends_whole(text: Sequence[int]) -> bool:
    """Whether a text in UTF-8 ends between two characters."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte < 0x80:
            return True
        if byte >= 0xC0:
            return back >= (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
    return True  # no UTF-8; nothing that follows completes it


def starts_whole(text: Sequence[int], at: int) -> bool:
    """Whether a character begins at byte `at`."""
    return at >= len(text) or not 0x80 <= text[at] < 0xC0


def _spelling(fast: Any) -> Callable[[str], bytes]:
    """Return how a token's name spells its bytes. Raises UnsupportedModelError."""
    state = fast.decoder.__getstate__() if fast.decoder is not None else b"null"
    described = json.loads(state)
    parts = (described or {}).get("decoders", [described]) if described else []
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return _byte_level
    if "Metaspace" in kinds or any(
        part["type"] == "Replace" and part.get("pattern", {}).get("String") == SPACE_SIGN for part in parts
    ):
        return _sentence_piece
    raise UnsupportedModelError(f"its tokenizer decodes by {' and '.join(sorted(kinds)) or 'no rule'}")


def _sentence_piece(name: str) -> bytes:
    byte = BYTE_TOKEN.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(SPACE_SIGN, " ").encode()


def _byte_level(name: str) -> bytes:
    try:
        return bytes(_BYTES[c] for c in name)
    except KeyError:
        return name.encode()  # added as it is


def _printable() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _printable()
