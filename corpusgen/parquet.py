"""Read small Parquet files, and turn what Arrow raises into a sentence that names the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from corpusgen.errors import CorpusError


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what Arrow raises on a torn or missing file into a `CorpusError` that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            f"{path}: cannot be read: {first_line(error)}. Run `corpusgen verify` on the corpus."
        ) from None


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, without its full stop."""
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a small file as a whole, or some columns of it in the file's own order.

    Raises `CorpusError` where it cannot be read or lacks a column. (`pyarrow.parquet.read_table`
    would guess partitions from the path and import pandas.)
    """
    with readable(path), pq.ParquetFile(path) as file:
        lacking = [name for name in columns or () if name not in file.schema_arrow.names]
        if lacking:
            raise CorpusError(
                f"{path}: lacks the column {lacking[0]}. Run `corpusgen verify` on the corpus."
            )
        return file.read(columns=None if columns is None else list(columns))
