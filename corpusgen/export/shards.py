"""Write a split's rows as numbered Parquet shards, and as JSON Lines beside them if wanted.

How many shards there will be is known only at the end, so they are named then. Row groups hold at
most `GROUP_ROWS` rows or `GROUP_BYTES`, whichever is less, and that is what memory holds.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from corpusgen.files import sync_file

GROUP_ROWS = 8192
GROUP_BYTES = 32 * 1024 * 1024

JSONL_DIRECTORY = "jsonl"
"""JSON Lines stand in a directory of their own: a loader that finds both kinds beside each other
would have to guess."""


class DatasetFile(msgspec.Struct, frozen=True):
    """One file of a dataset."""

    path: str
    """Relative to the dataset, with forward slashes."""
    split: str
    rows: int
    size: int
    """Bytes."""


class SplitWriter:
    """Write one split into a directory; `close` names the files and returns them."""

    def __init__(
        self, directory: Path, split: str, schema: pa.Schema, rows_per_shard: int, *, jsonl: bool
    ) -> None:
        self._directory = directory
        self._split = split
        self._schema = schema
        self._rows_per_shard = rows_per_shard
        self._jsonl = jsonl
        self._open = ExitStack()
        self._parquet: pq.ParquetWriter | None = None
        self._lines: Any = None
        self._shards: list[int] = []
        self._buffer: list[pa.Table] = []
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Add rows, starting new shards where one is full."""
        while table.num_rows:
            if self._parquet is None:
                self._start()
            room = self._rows_per_shard - self._shards[-1]
            head, table = table.slice(0, room), table.slice(room)
            self._buffer.append(head)
            self._shards[-1] += head.num_rows
            self.rows += head.num_rows
            if self._is_large():
                self._flush()
            if self._shards[-1] == self._rows_per_shard:
                self._finish()

    def write_empty(self) -> None:
        """Write one shard without rows, so that a dataset without any can still be opened."""
        self._start()

    def close(self) -> list[DatasetFile]:
        """Finish the last shard and give all of them their names."""
        self._finish()
        files = []
        for number, rows in enumerate(self._shards):
            name = f"{self._split}-{number:05d}-of-{len(self._shards):05d}"
            for path in self._paths(number):
                final = path.with_name(f"{name}{path.suffix}")
                path.rename(final)
                relative = final.relative_to(self._directory).as_posix()
                files.append(DatasetFile(relative, self._split, rows, final.stat().st_size))
        return files

    def abandon(self) -> None:
        """Close what is open and keep nothing."""
        self._buffer.clear()
        self._open.close()

    def _paths(self, number: int) -> list[Path]:
        name = f"{self._split}-{number:05d}"
        parquet = self._directory / f"{name}.parquet"
        lines = self._directory / JSONL_DIRECTORY / f"{name}.jsonl"
        return [parquet, lines] if self._jsonl else [parquet]

    def _start(self) -> None:
        parquet, *lines = self._paths(len(self._shards))
        self._shards.append(0)
        writer = pq.ParquetWriter(parquet, self._schema, compression="zstd")
        self._parquet = self._open.enter_context(writer)
        for path in lines:
            path.parent.mkdir(exist_ok=True)
            self._lines = self._open.enter_context(path.open("wb"))

    def _is_large(self) -> bool:
        rows = sum(int(table.num_rows) for table in self._buffer)
        return rows >= GROUP_ROWS or sum(int(t.nbytes) for t in self._buffer) >= GROUP_BYTES

    def _flush(self) -> None:
        if not self._buffer:
            return
        assert self._parquet is not None
        table = pa.concat_tables(self._buffer).combine_chunks()
        self._buffer.clear()
        self._parquet.write_table(table)
        if self._lines is not None:
            for row in table.to_pylist():
                self._lines.write(msgspec.json.encode(without_nulls(row)) + b"\n")

    def _finish(self) -> None:
        if self._parquet is None:
            return
        self._flush()
        self._open.close()
        self._parquet = self._lines = None
        for path in self._paths(len(self._shards) - 1):
            sync_file(path)


def without_nulls(value: Any) -> Any:
    """Return a row without the keys that are null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
