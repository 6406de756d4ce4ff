"""Read rows from Parquet files and from datasets of the `datasets` library, a batch at a time.

Arrow values become plain JSON values here: times become ISO 8601 text, decimals text, NaN null.
Bytes become text where they are UTF-8 (old writers mark no strings) and are left out where they
are not: pictures and sound are neither decoded nor carried along.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from corpusgen.config import PromptSet
from corpusgen.errors import PromptError
from corpusgen.prompts.rows import Row, json_problem
from corpusgen.prompts.sources import Source, reason

_BATCH_ROWS = 512
_decode = msgspec.json.Decoder().decode


def parquet_rows(source: Source) -> Iterator[Row]:
    """Yield a Parquet file's rows; raise `PromptError` where the file is torn or foreign."""
    try:
        # Without pre-buffering, pages are read as they are needed, not a row group at once.
        with pq.ParquetFile(source.path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield from _rows(file.iter_batches(batch_size=_BATCH_ROWS), source.shown)
    except (OSError, pa.ArrowException) as error:
        raise PromptError(
            f"{source.shown}: cannot be read as Parquet: {reason(error)}. "
            "Restore the file, or set the format that it has."
        ) from None


def saved_rows(source: Source, split: str) -> Iterator[Row]:
    """Yield the rows of a directory that `save_to_disk` wrote, mapped into memory and not read."""
    dataset = _loaded(source.shown, lambda: _load_saved(source.path))
    if hasattr(dataset, "keys"):
        if split not in dataset:
            raise PromptError(
                f"{source.shown}: there is no split {split}. "
                f"Set split to one of {', '.join(map(str, dataset))}."
            )
        dataset = dataset[split]
    yield from _dataset_rows(dataset, source.shown)


def hub_rows(prompt_set: PromptSet) -> Iterator[Row]:
    """Yield the rows of a dataset on the hub, streamed: nothing is downloaded beforehand."""
    name = prompt_set.dataset
    assert name is not None
    dataset = _loaded(name, lambda: _load_hub(name, prompt_set.subset, prompt_set.split))
    yield from _dataset_rows(dataset, name)


def _load_saved(path: Path) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_from_disk(str(path))


def _load_hub(name: str, subset: str | None, split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(name, subset, split=split, streaming=True)


def _loaded(shown: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # noqa: BLE001  (loaders, hub and file systems raise what they like)
        raise _unreadable(shown, error) from None


def _dataset_rows(dataset: Any, shown: str) -> Iterator[Row]:
    batches = iter(_record_batches(dataset))
    rows = _rows(batches, shown)
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # noqa: BLE001  (as above)
            raise _unreadable(shown, error) from None
        if row is None:
            return
        yield row


def _record_batches(dataset: Any) -> Iterator[pa.RecordBatch]:
    # In Arrow's own format no feature (image, audio) is decoded.
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        yield from table.to_batches()


def _unreadable(shown: str, error: Exception) -> PromptError:
    return PromptError(
        f"{shown}: cannot be read as a dataset: {type(error).__name__}: {reason(error)}. "
        "Check its name, subset and split, and the access to it."
    )


def _rows(batches: Iterator[pa.RecordBatch], shown: str) -> Iterator[Row]:
    number = 0
    for batch in batches:
        documents = [f.name for f in batch.schema if _holds_json(f.type)]
        for record in _records(batch):
            number += 1
            where = f"{shown}#{number}"
            if isinstance(record, str):
                yield Row(where, None, where.encode(), record)
                continue
            try:
                for name in documents:
                    record[name] = _parsed(record[name], batch.schema.field(name).type)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                yield Row(where, None, where.encode(), f"a column is {json_problem(b'', error)}")
                continue
            yield Row(where, {name: _plain(value) for name, value in record.items()})


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """Yield each row's values, or why they cannot be had."""
    try:
        records = batch.to_pylist(maps_as_pydicts="lossy")
    except (ValueError, OverflowError):  # of one value in the batch
        pass
    else:
        yield from records
        return
    for index in range(batch.num_rows):
        try:
            record = batch.slice(index, 1).to_pylist(maps_as_pydicts="lossy")[0]
        except UnicodeDecodeError:
            yield "the row holds text that is not valid UTF-8"
        except (ValueError, OverflowError) as error:
            yield f"the row holds a value that cannot be read: {reason(error)}"
        else:
            yield record


def _plain(value: Any) -> Any:
    match value:
        case None | str() | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            # Arrow gives each struct all fields; those that a row does not have are null.
            plain = ((str(key), _plain(item)) for key, item in value.items())
            return {key: item for key, item in plain if item is not None}
        case list() | tuple():
            return [_plain(item) for item in value]
        case bytes():
            return _text(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case _:
            return str(value)


def _text(value: bytes) -> str | None:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _holds_json(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.JsonType):
        return True
    return any(_holds_json(kind.field(index).type) for index in range(kind.num_fields))


def _parsed(value: Any, kind: pa.DataType) -> Any:
    """Return a value with the JSON documents in it (Arrow's extension type) decoded."""
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return _decode(value)
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_parsed(item, kind.value_type) for item in value]
    if isinstance(value, dict) and pa.types.is_struct(kind):
        return {name: _parsed(item, kind.field(name).type) for name, item in value.items()}
    return value
