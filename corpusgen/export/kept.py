"""Read the generations that a curation kept, a batch at a time, in order.

Also finds out what no generation of the corpus has (tools, reasoning, references, names in
messages), from the Parquet footers where they say so, so that a dataset gets neither columns nor
message fields that are null throughout, and all its shards one schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from corpusgen import schema
from corpusgen.errors import CorpusError
from corpusgen.parquet import read_table, readable
from corpusgen.updates import UPDATED, Updates, updated

BATCH_ROWS = 1024
"""Generations in memory at a time."""

OPTIONAL_COLUMNS = ("tools", "reasoning", "tool_calls", "reference", "metadata")
OPTIONAL_FIELDS = ("name", "tool_calls", "tool_call_id")
"""Of a message."""


class ExportInput(msgspec.Struct, frozen=True):
    """One part: its generations, and the verdicts beside them row by row."""

    generations: Path
    verdicts: Path


class Absent(msgspec.Struct, frozen=True):
    """What no generation of the corpus has."""

    columns: frozenset[str]
    fields: frozenset[str]
    """Of a message."""


def find_absent(inputs: Sequence[ExportInput], updates: Updates) -> Absent:
    """Return the optional columns and message fields that are null in every generation.

    A column for which there is an update is not absent.
    """
    columns, fields = set(OPTIONAL_COLUMNS), set(OPTIONAL_FIELDS)
    for part in inputs:
        with readable(part.generations), pq.ParquetFile(part.generations) as file:
            columns = {name for name in columns if not _has_value(file, (name,))}
            fields = {name for name in fields if not _has_value(file, ("messages", name))}
    for place, name in enumerate(UPDATED):
        if any(values[place] is not None for values in updates.values()):
            columns.discard(name)
    return Absent(frozenset(columns), frozenset(fields))


def read_kept(
    part: ExportInput, columns: Sequence[str], absent: Absent, updates: Updates
) -> Iterator[pa.Table]:
    """Yield the kept rows of a part, with the named columns, in the file's order.

    Reference and metadata are the updates' where there are such. Absent columns come with Arrow's
    null type, absent message fields are left out. Raises `CorpusError` where a file cannot be read,
    or the verdicts are not those of the generations.
    """
    keep, ids = _read_verdicts(part)
    wanted = [name for name in columns if name not in absent.columns]
    with readable(part.generations), pq.ParquetFile(part.generations) as file:
        _check_columns(file, part.generations, columns)
        if file.metadata.num_rows != len(keep):
            raise _misfit(part)
        start = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=list({*wanted, "sample_id"})):
            table = pa.Table.from_batches([batch])
            here = slice(start, start + table.num_rows)
            if not table["sample_id"].combine_chunks().equals(ids[here]):
                raise _misfit(part)
            start = here.stop
            kept = table.filter(keep[here])
            if kept.num_rows:
                yield narrow(updated(kept, updates), columns, absent)


def narrow(table: pa.Table, columns: Sequence[str], absent: Absent) -> pa.Table:
    """Return the named columns in order, without what is absent."""
    arrays = {}
    for name in columns:
        if name in absent.columns:
            arrays[name] = pa.nulls(table.num_rows)
        elif name == "messages":
            arrays[name] = _narrow_messages(table[name], absent.fields)
        else:
            arrays[name] = table[name]
    return pa.table(arrays)


def empty_table(columns: Sequence[str], absent: Absent) -> pa.Table:
    """Return no rows, in the schema that `read_kept` yields."""
    return narrow(schema.GENERATIONS.empty_table(), columns, absent)


def _narrow_messages(column: pa.ChunkedArray, absent: frozenset[str]) -> pa.ChunkedArray:
    if not absent:
        return column
    fields = [field for field in schema.MESSAGE if field.name not in absent]
    kind = pa.list_(pa.struct(fields))
    chunks = []
    for chunk in column.chunks:
        turns = chunk.flatten()
        kept = pa.StructArray.from_arrays([turns.field(f.name) for f in fields], fields=fields)
        offsets = chunk.offsets.to_numpy()
        chunks.append(pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), kept))
    return pa.chunked_array(chunks, kind)


def _read_verdicts(part: ExportInput) -> tuple[pa.Array, pa.Array]:
    table = read_table(part.verdicts, ["sample_id", "keep"])
    return table["keep"].combine_chunks(), table["sample_id"].combine_chunks()


def _check_columns(file: pq.ParquetFile, path: Path, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in file.schema_arrow.names:
            raise CorpusError(
                f"{path}: is no generations file: it lacks the column {name}. "
                "Run `corpusgen verify` on the corpus."
            )


def _has_value(file: pq.ParquetFile, path: tuple[str, ...]) -> bool:
    """Ask the footer whether a leaf has a value; where it does not say, read the column."""
    metadata = file.metadata
    for column in range(metadata.num_columns):
        leaf = metadata.schema.column(column).path.split(".")
        if leaf[0] != path[0] or leaf[-1] != path[-1]:
            continue
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(column)
            statistics = chunk.statistics
            if statistics is None or not statistics.has_null_count:
                return _holds_value(file, ".".join(leaf))
            if statistics.null_count < chunk.num_values:
                return True
    return False


def _holds_value(file: pq.ParquetFile, leaf: str) -> bool:
    for batch in file.iter_batches(BATCH_ROWS, columns=[leaf]):
        column = batch.column(0)
        values = column.flatten().field(0) if pa.types.is_list(column.type) else column
        if values.null_count < len(values):
            return True
    return False


def _misfit(part: ExportInput) -> CorpusError:
    return CorpusError(
        f"{part.verdicts}: does not hold the verdicts of {part.generations}. "
        "Run `corpusgen curate` again."
    )
