"""Sum up what is still to be asked, from the plan and the commits, a partition at a time.

Counts, bytes and limits are exact over the whole plan; what needs a look at the text itself is
taken from a sample of it, evenly spread.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corpusgen.commits import Commit, by_partition
from corpusgen.corpus import Corpus
from corpusgen.estimates.counting import MESSAGE_TOKENS, REQUEST_TOKENS, approximate_tokens
from corpusgen.limits.worst_case import most_tokens, worst_case_tokens
from corpusgen.parquet import read_table, readable
from corpusgen.plan.segments import Plan, Run
from corpusgen.types import Sampling

SAMPLED = 2000
"""Prompts of a set whose text is looked at."""
_COLUMNS = [
    "sample_id",
    "prompt_id",
    "messages",
    "tools",
    "response_format",
    "sampling",
    "problem",
]
_TEXTS = ("tools", "response_format")

Int64s = npt.NDArray[np.int64]


class Asked(msgspec.Struct):
    """What is still to be asked of one prompt set as it was planned once; sums over its samples."""

    run: Run
    """One of its runs: set, teacher and variant are those of all."""
    samples: int = 0
    requests: int = 0
    """Where a request asks for as many draws of a prompt as the teacher takes."""
    bytes: int = 0
    """Of the texts of all samples."""
    request_bytes: int = 0
    """Of the texts that are sent, once a request."""
    longest_bytes: int = 0
    """Of the longest sample."""
    most_tokens: int | None = 0
    """The longest answers that are allowed, together; null where one has no limit."""
    unlimited: int = 0
    """Samples whose answer has no limit."""
    sampled: int = 0
    """Prompts that were looked at."""
    sampled_bytes: int = 0
    sampled_tokens: int = 0
    """Of those, about; the chat template's included."""
    sampled_worst_tokens: int = 0
    """Of those, the worst case that a budget reserves."""


def still_asked(
    corpus: Corpus,
    draws: Callable[[Run], int],
    wanted: Callable[[str], bool] | None = None,
    retry: Callable[[str], bool] | None = None,
    out: Callable[[int], Collection[str]] = lambda _: (),
) -> list[Asked]:
    """Return what a run would ask now, by prompt set and variant, in the plan's order.

    `draws` says how many draws of a prompt one request takes; `wanted` which samples are asked at
    all, `retry` which failures are asked again, by their reason, and `out` which samples of a
    partition were sent by an earlier run that left them at the provider; it is called in the
    partitions' order. What a journal holds and no commit does counts as still to be asked.
    """
    commits = by_partition(corpus.commits)
    retired = pa.array(sorted(corpus.plan.retired()), pa.string())
    found: dict[tuple[str, str], Asked] = {}
    sizes = _partitions_by_key(corpus.plan)
    for partition, table in _partitions(corpus, _open(corpus, commits, retry)):
        run = corpus.plan.run_of(partition)
        gone = [retired, *_ended(corpus, commits.get(partition, []), retry)]
        gone.append(pa.array(out(partition), pa.string()))
        table = _left(table, gone, wanted)
        if table.num_rows:
            asked = found.setdefault((run.prompt_set, run.variant), Asked(run))
            _add(asked, table, draws(run), -(-SAMPLED // sizes[run.prompt_set, run.variant]))
    return list(found.values())


def _partitions_by_key(plan: Plan) -> dict[tuple[str, str], int]:
    sizes: dict[tuple[str, str], int] = {}
    for run in plan.runs:
        key = (run.prompt_set, run.variant)
        sizes[key] = sizes.get(key, 0) + run.partitions
    return sizes


def _open(
    corpus: Corpus, commits: dict[int, list[Commit]], retry: Callable[[str], bool] | None
) -> Iterator[int]:
    """Yield the partitions in which something may be left, by their commits alone."""
    for partition in range(corpus.plan.partitions):
        parts = commits.get(partition, ())
        again = retry is not None and any("failures" in part.files for part in parts)
        if again or sum(part.ended for part in parts) < corpus.plan.rows_of(partition):
            yield partition


def _partitions(corpus: Corpus, wanted: Iterable[int]) -> Iterator[tuple[int, pa.Table]]:
    """Yield partitions of the plan, each file opened once."""
    path = file = None
    plannings = [planning for planning in corpus.plan.plannings if planning.partitions]
    starts = [planning.first_partition for planning in plannings]
    try:
        for partition in wanted:
            planning = plannings[bisect_right(starts, partition) - 1]
            needed, group = planning.file_of(corpus.layout, partition)
            with readable(needed):
                if file is None or needed != path:
                    if file is not None:
                        file.close()
                    path, file = needed, pq.ParquetFile(needed)
                table = file.read_row_group(group, columns=_COLUMNS)
            yield partition, table
    finally:
        if file is not None:
            file.close()


def _ended(
    corpus: Corpus, parts: list[Commit], retry: Callable[[str], bool] | None
) -> Iterator[pa.Array]:
    """Yield the ids of a partition's samples that are not asked again."""
    for part in parts:
        if "generations" in part.files:
            path = corpus.path / part.files["generations"].path
            yield read_table(path, ["sample_id"])["sample_id"].combine_chunks()
        if "failures" in part.files:
            table = read_table(corpus.path / part.files["failures"].path, ["sample_id", "reason"])
            reasons = table["reason"].cast(pa.string()).to_pylist()
            given_up = [retry is None or not retry(reason) for reason in reasons]
            yield table.filter(pa.array(given_up, pa.bool_()))["sample_id"].combine_chunks()


def _left(table: pa.Table, gone: list[pa.Array], wanted: Callable[[str], bool] | None) -> pa.Table:
    """Return the rows that are asked: no bad prompts, and nothing that has ended."""
    asked = pc.is_null(table["problem"])
    for ids in gone:
        if len(ids):
            asked = pc.and_(asked, pc.invert(pc.is_in(table["sample_id"], value_set=ids)))
    if wanted is not None:
        chosen = [wanted(sample) for sample in table["sample_id"].to_pylist()]
        asked = pc.and_(asked, pa.array(chosen, pa.bool_()))
    return table if pc.all(asked).as_py() else table.filter(asked)


def _add(asked: Asked, table: pa.Table, draws: int, quota: int) -> None:
    """Enter the rows of a partition; the text of `quota` of them is looked at."""
    sizes = text_bytes(table)
    first = _first_of_request(table["prompt_id"], draws)
    asked.samples += table.num_rows
    asked.requests += int(first.sum())
    asked.bytes += int(sizes.sum())
    asked.request_bytes += int(sizes[first].sum())
    asked.longest_bytes = max(asked.longest_bytes, int(sizes.max()))
    _add_limits(asked, table["sampling"])
    rows = np.unique(np.linspace(0, table.num_rows - 1, min(quota, table.num_rows)).astype(int))
    for row in table.take(rows).to_pylist():
        messages = [{k: v for k, v in m.items() if v is not None} for m in row["messages"]]
        extras = [row[name] for name in _TEXTS]
        asked.sampled_tokens += prompt_tokens(messages, extras)
        asked.sampled_worst_tokens += worst_case_tokens(messages, *extras)
    asked.sampled += len(rows)
    asked.sampled_bytes += int(sizes[rows].sum())


def prompt_tokens(messages: list[dict[str, Any]], extras: list[str | None]) -> int:
    """Return about how many tokens a prompt is; `extras` are further texts that are sent."""
    texts = [text for m in messages for text in (m.get("content"), m.get("tool_calls")) if text]
    texts += [text for text in extras if text]
    counted = sum(approximate_tokens(text) for text in texts)
    return counted + MESSAGE_TOKENS * len(messages) + REQUEST_TOKENS


def text_bytes(table: pa.Table) -> Int64s:
    """Return the UTF-8 bytes of each row's prompt: messages, and where they stand there, extras."""
    lists = table["messages"].combine_chunks()
    messages = pc.list_flatten(lists)
    sizes = sum(_lengths(messages.field(name)) for name in ("content", "tool_calls"))
    bounds = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).fill_null(0))])
    ends = np.concatenate([[0], np.cumsum(sizes)])
    found: Int64s = ends[bounds[1:]] - ends[bounds[:-1]]
    for name in _TEXTS:
        if name in table.column_names:
            found = found + _lengths(table[name])
    return found


def _lengths(column: pa.Array | pa.ChunkedArray) -> Int64s:
    found: Int64s = pc.binary_length(column).fill_null(0).to_numpy().astype(np.int64)
    return found


def _first_of_request(prompt_ids: pa.ChunkedArray, draws: int) -> npt.NDArray[np.bool_]:
    """Tell which rows begin a request, where draws of a prompt stand together."""
    ids = prompt_ids.combine_chunks()
    changes = np.ones(len(ids), bool)
    changes[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    begun = np.maximum.accumulate(np.where(changes, np.arange(len(ids)), 0))
    first: npt.NDArray[np.bool_] = (np.arange(len(ids)) - begun) % draws == 0
    return first


def _add_limits(asked: Asked, sampling: pa.ChunkedArray) -> None:
    encoded = sampling.combine_chunks()
    counts = np.bincount(encoded.indices.to_numpy(), minlength=len(encoded.dictionary))
    for text, count in zip(encoded.dictionary.to_pylist(), counts.tolist(), strict=True):
        longest = most_tokens(msgspec.json.decode(text, type=Sampling)) if count else 0
        if longest is None:
            asked.unlimited += count
            asked.most_tokens = None
        elif asked.most_tokens is not None:
            asked.most_tokens += longest * count
