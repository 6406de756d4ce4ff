"""Drop answers that are shorter or longer than wanted, in tokens or in characters.

Tokens are the teacher's own count (`completion_tokens`, reasoning included where the teacher counts
it so). Nothing is tokenised here: a row whose count the teacher did not give passes a bound on
tokens, and a bound on characters is the way to judge it. Characters are code points of the text
without the blanks around it. A row that calls tools has its text judged only if it has any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import pyarrow as pa
from msgspec import Meta

from corpusgen.curate.interface import Filter
from corpusgen.curate.options import decode, where
from corpusgen.errors import ConfigError

Count = Annotated[int, Meta(ge=0)]


class LengthOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Inclusive bounds; null: none."""

    min_tokens: Count | None = None
    max_tokens: Count | None = None
    min_chars: Count | None = None
    max_chars: Count | None = None


class Length:
    """Keep a generation within all bounds."""

    def __init__(self, options: LengthOptions) -> None:
        self._options = options
        self._tokens = options.min_tokens is not None or options.max_tokens is not None
        self._chars = options.min_chars is not None or options.max_chars is not None
        self.columns: Sequence[str] = (
            *(("completion_tokens",) if self._tokens else ()),
            *(("text", "tool_calls") if self._chars else ()),
        )

    def judge(self, table: pa.Table) -> list[str | None]:
        """Return the bound that is broken, tokens first: `fewer than 4 tokens`."""
        o = self._options
        reasons: list[str | None] = [None] * table.num_rows
        if self._chars:
            for row, chars in enumerate(_characters(table)):
                reasons[row] = _broken(chars, o.min_chars, o.max_chars, "characters")
        if self._tokens:
            for row, tokens in enumerate(table["completion_tokens"].to_pylist()):
                reasons[row] = _broken(tokens, o.min_tokens, o.max_tokens, "tokens") or reasons[row]
        return reasons


def create(options: dict[str, Any]) -> Filter:
    """Make the filter; raises `ConfigError` without a bound, or with bounds that exclude all."""
    decoded = decode("length", options, LengthOptions)
    bounds = (
        ("tokens", decoded.min_tokens, decoded.max_tokens),
        ("chars", decoded.min_chars, decoded.max_chars),
    )
    if all(low is None and high is None for _, low, high in bounds):
        raise ConfigError(
            f"{where('length')}: no bound is set; set one, such as {{length: {{min_tokens: 4}}}}."
        )
    for unit, low, high in bounds:
        if low is not None and high is not None and low > high:
            raise ConfigError(
                f"{where('length', f'min_{unit}')}: {low} is above max_{unit}, {high}, "
                "so that nothing would be kept; swap them."
            )
    return Length(decoded)


def _characters(table: pa.Table) -> list[int | None]:
    rows = zip(table["text"].to_pylist(), table["tool_calls"].to_pylist(), strict=True)
    return [
        None if calls is not None and not text.strip() else len(text.strip())
        for text, calls in rows
    ]


def _broken(value: int | None, low: int | None, high: int | None, unit: str) -> str | None:
    if value is None:
        return None
    if low is not None and value < low:
        return f"fewer than {low} {unit}"
    if high is not None and value > high:
        return f"more than {high} {unit}"
    return None
