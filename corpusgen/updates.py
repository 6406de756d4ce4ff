"""Put the plan's latest references and metadata in the place of those stored with generations.

Generations are never rewritten; what a prompt file says anew of a prompt reaches curation and
datasets here.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

UPDATED = ("reference", "metadata")
"""Columns that the plan may know anew, in the order of an update's values."""

Updates = Mapping[str, tuple[str | None, str | None]]
"""The plan's latest reference and metadata (JSON text), by sample id; only of changed samples."""


def updated(table: pa.Table, updates: Updates) -> pa.Table:
    """Return rows with the reference and metadata of the updates that there are for them."""
    ids = table["sample_id"].to_pylist() if updates else []
    rows = {row: updates[sample] for row, sample in enumerate(ids) if sample in updates}
    for place, name in enumerate(UPDATED):
        if rows and name in table.column_names:
            values = table[name].to_pylist()
            for row, latest in rows.items():
                values[row] = latest[place]
            index = table.column_names.index(name)
            table = table.set_column(index, name, pa.array(values, table.schema.field(name).type))
    return table
