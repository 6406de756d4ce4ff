"""Write the Parquet files of a part: generations sorted by sample, failures, attempts.

Files are written aside, synced and renamed; they count for nothing until their commit marker
stands, so a crash at any step leaves what a later attempt simply writes again. Answers arrive as a
stream and leave in row groups of about `ROW_GROUP_BYTES`; only one group is in memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from corpusgen import schema
from corpusgen.attempts import token_count
from corpusgen.files import written_aside
from corpusgen.types import Attempt, ByteStrings, Failure, Generation, Int32s, TokenTrace
from corpusgen.unicode import storable

ROW_GROUP_BYTES = 64 << 20
ALIGNMENT = "row i is P(completion[i] | prompt, completion[<i])"
_Entries = npt.NDArray[Any] | ByteStrings

_FROM_PLAN = (
    "prompt_set",
    "prompt_id",
    "draw",
    "messages",
    "tools",
    "teacher",
    "sampling",
    "metadata",
    "reference",
)
_SPLIT_STREAMS = (
    "prompt_token_ids.list.element",
    "completion_token_ids.list.element",
    "sampled_logprob.list.element",
    "sampled_rank.list.element",
    "topk_ids.list.element.list.element",
    "topk_logprobs.list.element.list.element",
)
"""Numeric leaves: byte-stream-split, no dictionary. All other columns take a dictionary."""


class TokenFormat(msgspec.Struct, frozen=True):
    """What holds for every token column of a file; stands in its metadata."""

    k: int
    precision: Literal["float32", "float16"]
    logprobs_mode: str
    temperature: float | None = None
    tokenizer: str | None = None
    """The vocabulary's fingerprint."""
    tokenizer_name: str | None = None
    vocabulary_size: int | None = None

    def metadata(self) -> dict[bytes, bytes]:
        """Return the entries for the file's metadata; what is unknown is left out."""
        values: dict[str, object] = {
            "top_logprobs": self.k,
            "logprob_precision": self.precision,
            "logprobs_mode": self.logprobs_mode,
            "sampling_temperature": self.temperature,
            "tokenizer_fingerprint": self.tokenizer,
            "tokenizer_name": self.tokenizer_name,
            "vocabulary_size": self.vocabulary_size,
            "alignment": ALIGNMENT,
        }
        return {
            f"corpusgen.{key}".encode(): str(value).encode()
            for key, value in values.items()
            if value is not None
        }


def write_generations(
    target: Path,
    generations: Iterable[Generation],
    plan: pa.Table,
    tokens: TokenFormat,
    corpus_id: str,
) -> int:
    """Write a part's generations, which must come sorted by `sample_id`; return the rows.

    `plan` holds the partition's rows of the plan, from which messages and metadata are taken.
    """
    rows = 0
    names = ["sample_id", *_FROM_PLAN]
    plan = plan.select(names)
    places = {sample: index for index, sample in enumerate(plan.column("sample_id").to_pylist())}
    described = schema.GENERATIONS.with_metadata({**_base(corpus_id), **tokens.metadata()})
    with written_aside(target) as temporary, _writer(temporary, described) as writer:
        for group in _groups(generations):
            table = _generation_table(group, plan, places, tokens.precision)
            writer.write_table(table.cast(described), row_group_size=len(group))
            rows += len(group)
    return rows


def write_failures(
    target: Path, failures: Sequence[Failure], plan: pa.Table, corpus_id: str
) -> int:
    """Write a part's failures, sorted by `sample_id`; return the rows."""
    plan = plan.select(["sample_id", "prompt_set", "prompt_id", "draw"])
    places = {sample: index for index, sample in enumerate(plan.column("sample_id").to_pylist())}
    ordered = sorted(failures, key=lambda failure: failure.sample_id)
    taken = plan.take([places[failure.sample_id] for failure in ordered])
    table = pa.table(
        {
            **{name: taken.column(name) for name in taken.column_names},
            "reason": [failure.reason for failure in ordered],
            "detail": [storable(failure.detail) for failure in ordered],
            "attempts": [failure.attempts for failure in ordered],
        }
    )
    return _write(target, table, schema.FAILURES, corpus_id)


def write_attempts(target: Path, attempts: Sequence[Attempt], corpus_id: str) -> int:
    """Write a part's attempts in the order in which they were sent; return the rows."""
    ordered = sorted(attempts, key=lambda attempt: (attempt.started_at, attempt.attempt_id))
    names = schema.ATTEMPTS.names
    rows = zip(*map(operator.attrgetter(*names), ordered), strict=True)
    columns: dict[str, Any] = dict(zip(names, rows, strict=True))
    columns["started_at"] = _moments(columns["started_at"])
    columns["request_id"] = [storable(value) for value in columns["request_id"]]
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"):
        columns[name] = [token_count(value) for value in columns[name]]
    table = pa.table({name: columns[name] for name in schema.ATTEMPTS.names})
    return _write(target, table, schema.ATTEMPTS, corpus_id)


def _write(target: Path, table: pa.Table, columns: pa.Schema, corpus_id: str) -> int:
    described = columns.with_metadata(_base(corpus_id))
    with written_aside(target) as temporary, _writer(temporary, described) as writer:
        writer.write_table(table.select(columns.names).cast(described))
    return int(table.num_rows)


def _writer(path: Path, columns: pa.Schema) -> pq.ParquetWriter:
    names = {field.name for field in columns}
    split = [leaf for leaf in _SPLIT_STREAMS if leaf.split(".")[0] in names]
    plain = {leaf.split(".")[0] for leaf in split}
    return pq.ParquetWriter(
        path,
        columns,
        compression="zstd",
        use_dictionary=[name for name in _leaves(columns) if name.split(".")[0] not in plain],
        column_encoding=dict.fromkeys(split, "BYTE_STREAM_SPLIT") if split else None,
        write_statistics=["sample_id"] if "sample_id" in names else False,
    )


def _leaves(columns: pa.Schema) -> list[str]:
    found: list[str] = []

    def walk(path: str, kind: pa.DataType) -> None:
        if pa.types.is_list(kind):
            walk(f"{path}.list.element", kind.value_type)
        elif pa.types.is_struct(kind):
            for field in kind:
                walk(f"{path}.{field.name}", field.type)
        else:
            found.append(path)

    for field in columns:
        walk(field.name, field.type)
    return found


def _base(corpus_id: str) -> dict[bytes, bytes]:
    return {
        b"corpusgen.format_version": str(schema.FORMAT_VERSION).encode(),
        b"corpusgen.corpus_id": corpus_id.encode(),
    }


def _groups(generations: Iterable[Generation]) -> Iterator[list[Generation]]:
    group: list[Generation] = []
    size = 0
    for generation in generations:
        group.append(generation)
        size += _size(generation)
        if size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _size(generation: Generation) -> int:
    """Return about how many bytes a generation holds in memory."""
    answer, trace = generation.answer, generation.answer.trace
    size = 512 + len(answer.text) + len(answer.reasoning or "")
    if trace is not None:
        arrays = (trace.ids, trace.sampled_logprob, trace.topk_ids, trace.topk_logprobs)
        size += sum(array.nbytes for array in arrays if array is not None)
        strings = (trace.token_bytes, trace.topk_bytes)
        size += sum(len(s.data) + s.lengths.nbytes for s in strings if s is not None)
    return size


def _generation_table(
    group: list[Generation], plan: pa.Table, places: dict[str, int], precision: str
) -> pa.Table:
    taken = plan.take([places[generation.sample_id] for generation in group])
    answers = [generation.answer for generation in group]
    columns: dict[str, Any] = {name: taken.column(name) for name in taken.column_names}
    columns |= {
        "text": [storable(answer.text) for answer in answers],
        "reasoning": [storable(answer.reasoning) for answer in answers],
        "tool_calls": [_json(answer.tool_calls) for answer in answers],
        "finish_reason": [storable(answer.finish_reason) for answer in answers],
        "prompt_tokens": [token_count(generation.usage.prompt_tokens) for generation in group],
        "completion_tokens": [token_count(answer.completion_tokens) for answer in answers],
        "reasoning_tokens": [token_count(answer.reasoning_tokens) for answer in answers],
        "cached_tokens": [token_count(generation.usage.cached_tokens) for generation in group],
        "model_revision": [storable(generation.model_revision) for generation in group],
        "endpoint": [generation.endpoint for generation in group],
        "started_at": _moments([generation.started_at for generation in group]),
        "latency_s": [generation.latency_s for generation in group],
        "attempts": [generation.attempts for generation in group],
        "prompt_token_ids": _lists([generation.prompt_token_ids for generation in group]),
    }
    columns |= _token_columns([answer.trace or TokenTrace() for answer in answers], precision)
    arrays = []
    for field in schema.GENERATIONS:
        column = columns[field.name]
        arrays.append(
            column
            if isinstance(column, pa.Array | pa.ChunkedArray)
            else pa.array(
                column,
                type=field.type.value_type if pa.types.is_dictionary(field.type) else field.type,
            )
        )
    return pa.table(arrays, names=schema.GENERATIONS.names)


def _token_columns(traces: list[TokenTrace], precision: str) -> dict[str, pa.Array]:
    sampled = [trace.sampled_logprob for trace in traces]
    return {
        "completion_token_ids": _lists([trace.ids for trace in traces]),
        "completion_token_bytes": _byte_lists([trace.token_bytes for trace in traces]),
        "sampled_logprob": _lists(
            [None if values is None else _rounded(values, precision) for values in sampled],
            null=np.isnan,
            kind=np.float32,
        ),
        "sampled_rank": _lists(
            [trace.sampled_rank for trace in traces], null=lambda ranks: ranks == 0
        ),
        "topk_ids": _ragged(
            traces,
            [trace.topk_ids for trace in traces],
            lambda rows: pa.array(_joined(rows, np.int32)),
        ),
        "topk_bytes": _ragged(traces, [trace.topk_bytes for trace in traces], _strings),
        "topk_logprobs": _ragged(
            traces,
            [trace.topk_logprobs for trace in traces],
            lambda rows: pa.array(_rounded(_joined(rows, np.float32), precision)),
        ),
    }


def _rounded(values: npt.NDArray[np.float32], precision: str) -> npt.NDArray[np.float32]:
    """Round to float16's precision (11 significant bits), kept in float32.

    The relative error is at most 2^-11 down to float16's smallest normal, 6.1e-5; nearer to zero
    the absolute error is at most 2^-25. What is below its range (-65,504) becomes -inf.
    """
    if precision == "float32":
        return values
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def _offsets(counts: Iterable[int] | Int32s) -> Int32s:
    lengths = counts if isinstance(counts, np.ndarray) else np.fromiter(counts, dtype=np.int64)
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets.astype(np.int32)


def _joined(rows: Sequence[npt.NDArray[Any] | None], kind: Any) -> npt.NDArray[Any]:
    present = [row for row in rows if row is not None]
    return np.concatenate(present).astype(kind, copy=False) if present else np.empty(0, kind)


def _lists(
    rows: Sequence[npt.NDArray[Any] | None], null: Any = None, kind: Any = np.int32
) -> pa.Array:
    """Return a list array of one number a token; `null` tells which numbers stand for null."""
    values = _joined(rows, kind)
    return pa.ListArray.from_arrays(
        pa.array(_offsets(0 if row is None else len(row) for row in rows)),
        pa.array(values, mask=None if null is None else null(values)),
        mask=pa.array([row is None for row in rows]),
    )


def _byte_lists(rows: Sequence[ByteStrings | None]) -> pa.Array:
    return pa.ListArray.from_arrays(
        pa.array(_offsets(0 if row is None else len(row) for row in rows)),
        _strings([row for row in rows if row is not None]),
        mask=pa.array([row is None for row in rows]),
    )


def _strings(rows: Sequence[ByteStrings]) -> pa.Array:
    """Return all strings of all rows as one binary array, buffer by buffer."""
    offsets = _offsets(_joined([row.lengths for row in rows], np.int32))
    data = pa.py_buffer(b"".join([row.data for row in rows]))
    buffers = [None, pa.py_buffer(offsets), data]
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def _ragged(
    traces: list[TokenTrace], rows: Sequence[_Entries | None], values: Callable[[list[Any]], Any]
) -> pa.Array:
    """Return a list array of lists: for each token its alternatives, null where there are none.

    `values` makes one flat array of the rows that are there.
    """
    given = [
        None if row is None or trace.topk_counts is None else (trace.topk_counts, row)
        for trace, row in zip(traces, rows, strict=True)
    ]
    present = [each for each in given if each is not None]
    counts = _joined([counts for counts, _ in present], np.int32)
    inner = pa.ListArray.from_arrays(
        pa.array(_offsets(np.maximum(counts, 0))),
        values([row for _, row in present]),
        mask=pa.array(counts < 0),
    )
    return pa.ListArray.from_arrays(
        pa.array(_offsets(0 if each is None else len(each[0]) for each in given)),
        inner,
        mask=pa.array([each is None for each in given]),
    )


def _json(value: Any) -> str | None:
    return None if value is None else storable(msgspec.json.encode(value).decode())


def _moments(seconds: Sequence[float]) -> pa.Array:
    """Return times in epoch seconds as timestamps."""
    exact = np.array(seconds, np.float64)
    whole = np.floor(exact)  # apart, or the product would round a second time
    microseconds = whole.astype(np.int64) * 1_000_000 + np.rint((exact - whole) * 1e6).astype(int)
    return pa.array(microseconds).cast(pa.timestamp("us", tz="UTC"))
