"""What an export format promises. A new format is a file with a `create` function.

A format turns a table of kept generations into a table of dataset rows, one to one and in order;
which rows there are, their split, sharding, files and the card are not its business.

Every table of one export has the same schema. What no generation of the corpus has is not in it: an
optional column (`tools`, `reasoning`, `tool_calls`, `reference`, `metadata`) then has Arrow's null
type, and a message's struct lacks the optional field (`name`, `tool_calls`, `tool_call_id`). So a
format can leave out what nobody has and keep one schema; it is first asked to convert no rows.

Register `create(options: corpusgen.config.Export) -> Exporter` under the entry point group
`corpusgen.exporters`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa


class Exporter(Protocol):
    """Turn kept generations into dataset rows."""

    @property
    def columns(self) -> Sequence[str]:
        """Name the generation columns that are read; all others are not loaded."""

    def convert(self, table: pa.Table) -> pa.Table:
        """Return one dataset row for each generation, in the same order and always one schema."""
