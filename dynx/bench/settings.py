"""What static arms are set to, as it is typed."""

from __future__ import annotations

from dynx.errors import UsageError


def parse_numbers(text: str, most: int, what: str) -> list[int]:
    """Numbers from "1-10", "2,4" or "none", each once and rising. Raises UsageError, which calls them `what`."""
    if text.strip() in ("", "none", "0"):
        return []
    numbers: set[int] = set()
    try:
        for part in text.split(","):
            low, _, high = (piece.strip() for piece in part.partition("-"))
            if max(int(low), int(high or low)) > most:
                raise ValueError
            numbers.update(range(int(low), int(high or low) + 1))
    except ValueError:
        numbers = set()
    if not numbers or min(numbers) < 1:
        raise UsageError(f"--static {text}: {what} are numbers from 1 to {most}, like 1-10 or 2,4")
    return sorted(numbers)
