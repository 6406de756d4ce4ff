"""What a filter promises. A new filter is a file with a `create` function.

A filter is pure: it reads the columns that it names from an Arrow table and returns one entry a
row, a reason to drop the row or null to keep it. It keeps no state between tables, so that the
result does not depend on how rows are cut into tables.

Register `create(options: dict[str, Any]) -> Filter` under the entry point group
`corpusgen.filters`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa


class Filter(Protocol):
    """Judge generations, a table at a time."""

    @property
    def columns(self) -> Sequence[str]:
        """Name the generation columns that are read; all others are not loaded."""

    def judge(self, table: pa.Table) -> list[str | None]:
        """Return, for each row, why it is dropped, or null to keep it."""
