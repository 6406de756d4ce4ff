"""Build real generations files for tests, with the schema that the tool itself writes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from corpusgen import schema

Row = dict[str, Any]


def sample_id(*parts: object) -> str:
    """Return a sample id that these parts always have."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def generation(text: str = "An answer.", **changes: Any) -> Row:
    """Return one row; `prompt` stands for a single user message."""
    prompt = changes.pop("prompt", "A question?")
    row: Row = dict.fromkeys(schema.GENERATIONS.names)
    row |= {
        "prompt_set": "quickstart",
        "prompt_id": hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest(),
        "draw": 0,
        "messages": [message("user", prompt)],
        "text": text,
        "finish_reason": "stop",
        "prompt_tokens": 7,
        "completion_tokens": len(text.split()),
        "teacher": "teacher",
        "endpoint": "local",
        "sampling": "{}",
        "started_at": datetime(2026, 11, 20, tzinfo=UTC),
        "latency_s": 0.5,
        "attempts": 1,
    }
    row |= changes
    if row["sample_id"] is None:
        identity = (row["messages"], row["draw"], row["prompt_set"], row["teacher"])
        row["sample_id"] = sample_id(*identity)
    return row


def message(role: str, content: str | None, **more: Any) -> Row:
    """Return one turn with all of its fields."""
    return {
        "role": role,
        "content": content,
        "name": None,
        "tool_calls": None,
        "tool_call_id": None,
    } | more


def table(rows: Sequence[Row]) -> pa.Table:
    """Return rows as a table of `schema.GENERATIONS`."""
    return pa.Table.from_pylist(list(rows), schema=schema.GENERATIONS)


def write_generations(
    path: Path, rows: Sequence[Row], *, sort: bool = True, row_group_size: int = 1000
) -> Path:
    """Write a generations file, sorted by sample id as the tool does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(rows, key=lambda row: row["sample_id"]) if sort else rows
    pq.write_table(table(ordered), path, compression="zstd", row_group_size=row_group_size)
    return path


def write_verdicts(path: Path, generations: Path, dropped: dict[str, tuple[str, str]]) -> Path:
    """Write verdicts beside a generations file: `dropped` maps sample ids to filter and reason."""
    ids = pq.read_table(generations, columns=["sample_id"], partitioning=None)["sample_id"]
    rows = [
        {
            "sample_id": sample,
            "keep": sample not in dropped,
            "filter": dropped.get(sample, (None, None))[0],
            "reason": dropped.get(sample, (None, None))[1],
        }
        for sample in ids.to_pylist()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.VERDICTS), path)
    return path
