"""Write one conversation a row: `messages`, whose last one is the teacher's answer.

TRL, axolotl (`chat_template`), LLaMA-Factory, torchtune, ms-swift and NeMo read it. What is trained
on is the trainer's choice: TRL trains on the prompt too unless `assistant_only_loss` is set, and
`prompt_completion` is the format that leaves no choice. No column is named `prompt`, which TRL
would take for a prompt-completion row. `tools` is JSON text, as TRL and LLaMA-Factory take it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from corpusgen.config import Export
from corpusgen.export.interface import Exporter
from corpusgen.export.turns import (
    Reasoning,
    answer_messages,
    appended,
    prompt_messages,
    provenance,
    source_columns,
)


class Messages:
    """Make rows of `messages`, `tools` where there are any, and the provenance."""

    def __init__(self, reasoning: Reasoning) -> None:
        self._reasoning: Reasoning = reasoning
        self.columns: Sequence[str] = source_columns(reasoning)

    def convert(self, table: pa.Table) -> pa.Table:
        """Return one conversation a generation."""
        answers = answer_messages(table, self._reasoning)
        conversations = appended(prompt_messages(table), answers)
        return pa.table({"messages": conversations, **provenance(table)})


def create(options: Export) -> Exporter:
    """Make the exporter."""
    return Messages(options.reasoning)
