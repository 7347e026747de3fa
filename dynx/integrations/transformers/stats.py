"""What a call of an attached model's `generate` cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynx.speculation.types import Receipt


@dataclass(frozen=True)
class CallStats:
    """The statistics of one call: a receipt for each sequence, or the reason why transformers decoded them."""

    receipts: tuple[Receipt, ...] = ()
    reason: str | None = None
    """Why transformers' own loop ran; None where dynx decoded."""

    @property
    def tokens(self) -> int | None:
        """Tokens written; None where transformers decoded."""
        return None if self.reason else sum(receipt.tokens for receipt in self.receipts)

    def __str__(self) -> str:
        if self.reason:
            return f"decoded by transformers: {self.reason}"
        passes = sum(receipt.target_forwards for receipt in self.receipts)
        return f"{self.tokens} tokens in {passes} passes"
