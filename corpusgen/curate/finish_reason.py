"""Drop answers that did not end by themselves, such as those cut off at `max_tokens`.

The words are those of `generations.finish_reason`: OpenAI's `stop`, `length`, `tool_calls` and
`content_filter`, or the teacher's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa

from corpusgen.curate.interface import Filter
from corpusgen.curate.options import decode


class FinishReasonOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which finish reasons are kept."""

    keep: tuple[str, ...] = ("stop", "tool_calls")


class FinishReason:
    """Keep a generation whose finish reason is one of the wanted."""

    columns: Sequence[str] = ("finish_reason",)

    def __init__(self, keep: frozenset[str]) -> None:
        self._keep = keep

    def judge(self, table: pa.Table) -> list[str | None]:
        """Return `finish_reason is <word>` for each row that ended otherwise."""
        return [
            None if word in self._keep else f"finish_reason is {word}"
            for word in table["finish_reason"].to_pylist()
        ]


def create(options: dict[str, Any]) -> Filter:
    """Make the filter; raises `ConfigError` on options that it does not know."""
    return FinishReason(frozenset(decode("finish_reason", options, FinishReasonOptions).keep))
