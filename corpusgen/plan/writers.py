"""Write the Parquet files of a planning; `planning` decides what goes into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from corpusgen import schema
from corpusgen.files import sync_file, written_aside
from corpusgen.layout import Layout
from corpusgen.plan.segments import PARTITIONS_A_FILE, plan_file


class SampleWriter:
    """Write samples to plan files, a row group for each partition."""

    def __init__(self, layout: Layout, number: int, first_partition: int) -> None:
        self._layout = layout
        self._number = number
        self._first = first_partition
        self.partition = first_partition
        self._rows: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    @property
    def waiting(self) -> int:
        """Rows of the partition that is being filled."""
        return len(self._rows)

    def add(self, row: dict[str, Any]) -> None:
        """Add one sample to the partition that is being filled."""
        self._rows.append({**row, "partition": self.partition})

    def flush(self) -> None:
        """Close the partition that is being filled, if it holds anything."""
        if not self._rows:
            return
        index, group = divmod(self.partition - self._first, PARTITIONS_A_FILE)
        if group == 0:
            self._close()
            self._path = plan_file(self._layout, self._number, index)
            self._writer = pq.ParquetWriter(self._path, schema.PLAN, compression="zstd")
        assert self._writer is not None
        self._writer.write_table(
            pa.Table.from_pylist(self._rows, schema=schema.PLAN), row_group_size=len(self._rows)
        )
        self.partition += 1
        self._rows = []

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            sync_file(self._path)


class ChangesWriter:
    """Write what becomes of samples that were planned before."""

    def __init__(self, target: Path) -> None:
        self._aside = written_aside(target)
        self.counts: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> ChangesWriter:
        self._writer = pq.ParquetWriter(
            self._aside.__enter__(), schema.PLAN_CHANGES, compression="zstd"
        )
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._flush()
        self._writer.close()
        self._aside.__exit__(*error)

    def add_ids(self, action: str, ids: Any) -> None:
        """Add an action on each of some raw 16-byte ids."""
        for key in ids.tolist():
            self._add({"sample_id": key.ljust(16, b"\0").hex(), "action": action})

    def add_update(self, sample: str, reference: str | None, metadata: str | None) -> None:
        """Add a sample's new reference and metadata."""
        self._add(
            {
                "sample_id": sample,
                "action": "update",
                "reference": reference,
                "metadata": metadata,
            }
        )

    def _add(self, row: dict[str, Any]) -> None:
        self.counts[row["action"]] = self.counts.get(row["action"], 0) + 1
        self._rows.append(row)
        if len(self._rows) >= 10_000:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=schema.PLAN_CHANGES)
            self._writer.write_table(table)
            self._rows = []
