"""Drop answers that say nothing: no text after stripping, and no tool calls.

Zero-width characters count as blank, because some models emit them alone. The rule is our own; an
answer that is all reasoning is empty as well, since a student would learn to end without one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa

from corpusgen.curate.interface import Filter
from corpusgen.curate.options import decode

_VISIBLE = re.compile("[^\\s\\x00\\u200b\\u200c\\u200d\\u2060\\ufeff]")
_NO_CALLS = frozenset({None, "", "[]", "null"})


class EmptyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """None; an answer is empty or it is not."""


class Empty:
    """Keep a generation that has text or calls a tool."""

    columns: Sequence[str] = ("text", "tool_calls")

    def judge(self, table: pa.Table) -> list[str | None]:
        """Return a reason for each row without text and without tool calls."""
        rows = zip(table["text"].to_pylist(), table["tool_calls"].to_pylist(), strict=True)
        return [
            "no text and no tool calls"
            if calls in _NO_CALLS and not _VISIBLE.search(text)
            else None
            for text, calls in rows
        ]


def create(options: dict[str, Any]) -> Filter:
    """Make the filter; raises `ConfigError` on any option."""
    decode("empty", options, EmptyOptions)
    return Empty()
