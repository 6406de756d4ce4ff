"""Write the prompt and the teacher's answer apart: `prompt` and `completion`, both conversations.

TRL's best: it trains on the completion alone, without a chat template that marks the answer. There
is no `messages` column beside them, which TRL would refuse. `tools` is JSON text.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from corpusgen.config import Export
from corpusgen.export.interface import Exporter
from corpusgen.export.turns import (
    Reasoning,
    answer_messages,
    prompt_messages,
    provenance,
    single,
    source_columns,
)


class PromptCompletion:
    """Make rows of `prompt`, `completion`, `tools` where there are any, and the provenance."""

    def __init__(self, reasoning: Reasoning) -> None:
        self._reasoning: Reasoning = reasoning
        self.columns: Sequence[str] = source_columns(reasoning)

    def convert(self, table: pa.Table) -> pa.Table:
        """Return one prompt and one completion a generation."""
        completion = single(answer_messages(table, self._reasoning))
        return pa.table(
            {"prompt": prompt_messages(table), "completion": completion, **provenance(table)}
        )


def create(options: Export) -> Exporter:
    """Make the exporter."""
    return PromptCompletion(options.reasoning)
