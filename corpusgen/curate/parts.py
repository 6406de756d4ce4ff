"""Read generations a batch at a time, and write and read their verdicts.

Verdicts stand row by row beside their generations file; nothing here opens a generations file for
writing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from corpusgen import schema
from corpusgen.curate.chain import Verdict
from corpusgen.errors import CorpusError
from corpusgen.files import written_aside
from corpusgen.parquet import read_table, readable

BATCH_ROWS = 1024
"""Generations in memory at a time."""


class PartInput(msgspec.Struct, frozen=True):
    """One committed part."""

    name: str
    """Such as `part-00012-000`; names the verdicts file."""
    generations: Path
    digest: str = ""
    """Of the file's content, where the commit knows it; part of the curation's digest."""


def verdicts_path(directory: Path, part: str) -> Path:
    """Return where a curation keeps a part's verdicts."""
    return directory / "verdicts" / f"{part}.parquet"


def count_rows(path: Path) -> int:
    """Return how many generations a file holds, from its footer alone."""
    with readable(path):
        return int(pq.read_metadata(path).num_rows)


def read_generations(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the named columns in tables of at most `BATCH_ROWS` rows, in the file's order.

    Raises `CorpusError` on a file that is missing, torn, or no generations file.
    """
    with readable(path), pq.ParquetFile(path) as file:
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise CorpusError(
                f"{path}: is no generations file: it lacks the column {missing[0]}. "
                "Run `corpusgen verify` on the corpus."
            )
        for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
            yield pa.Table.from_batches([batch])


def verdict_table(sample_ids: pa.ChunkedArray, verdicts: Sequence[Verdict | None]) -> pa.Table:
    """Return verdicts as rows of `schema.VERDICTS`."""
    return pa.table(
        {
            "sample_id": sample_ids,
            "keep": pa.array([verdict is None for verdict in verdicts], pa.bool_()),
            "filter": pa.array([v and v.filter for v in verdicts], pa.string()),
            "reason": pa.array([v and v.reason for v in verdicts], pa.string()),
        }
    )


def write_verdicts(path: Path, tables: Sequence[pa.Table]) -> None:
    """Write a part's verdicts in one step."""
    plain = schema.VERDICTS.set(2, pa.field("filter", pa.string()))
    table = pa.concat_tables([plain.empty_table(), *(t.cast(plain) for t in tables)])
    encoded = table.set_column(2, "filter", table["filter"].dictionary_encode())
    with written_aside(path) as temporary:
        pq.write_table(encoded.cast(schema.VERDICTS), temporary, compression="zstd")


def read_verdicts(path: Path) -> pa.Table:
    """Return a part's verdicts; raises `CorpusError` where they cannot be read."""
    return read_table(path)
