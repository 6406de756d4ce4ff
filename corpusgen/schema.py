"""The Arrow schemas of every file in a corpus; docs/run-directory.md explains each column.

Any Arrow reader opens these files without this package. File metadata carries what a column cannot
say (k, logprobs mode, temperature, tokenizer, alignment), under keys that begin with `corpusgen.`.
"""

from __future__ import annotations

import pyarrow as pa

FORMAT_VERSION = 1
"""Of a corpus; stands in `corpus.json`, in every marker and in the metadata of every part."""

_TEXT = pa.string()
_WORD = pa.dictionary(pa.int32(), pa.string())
_TIME = pa.timestamp("us", tz="UTC")

MESSAGE = pa.struct(
    [
        pa.field("role", _TEXT),
        pa.field("content", _TEXT),
        pa.field("name", _TEXT),
        pa.field("tool_calls", _TEXT),  # JSON
        pa.field("tool_call_id", _TEXT),
    ]
)
"""One turn. `tool_calls` is JSON text; the last three are null where a turn has none."""

MESSAGES = pa.list_(MESSAGE)

PLAN = pa.schema(
    [
        pa.field("sample_id", _TEXT, nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("prompt_set", _WORD, nullable=False),
        pa.field("prompt_id", _TEXT, nullable=False),
        pa.field("draw", pa.int32()),
        pa.field("teacher", _WORD, nullable=False),
        pa.field("messages", MESSAGES),
        pa.field("tools", _TEXT),
        pa.field("response_format", _TEXT),
        pa.field("sampling", _WORD, nullable=False),
        pa.field("reference", _TEXT),
        pa.field("metadata", _TEXT),
        pa.field("row", _TEXT, nullable=False),
        pa.field("problem", _TEXT),
    ]
)
"""What is asked. `problem` is set on a row that could not be rendered."""

PLAN_CHANGES = pa.schema(
    [
        pa.field("sample_id", _TEXT, nullable=False),
        pa.field("action", _WORD, nullable=False),
        pa.field("reference", _TEXT),
        pa.field("metadata", _TEXT),
    ]
)
"""What a later planning says of samples that were planned before: `retire`, `restore`, `update`."""

GENERATIONS = pa.schema(
    [
        pa.field("sample_id", _TEXT, nullable=False),
        pa.field("prompt_set", _WORD, nullable=False),
        pa.field("prompt_id", _TEXT, nullable=False),
        pa.field("draw", pa.int32(), nullable=False),
        pa.field("messages", MESSAGES, nullable=False),
        pa.field("tools", _TEXT),
        pa.field("text", _TEXT, nullable=False),
        pa.field("reasoning", _TEXT),
        pa.field("tool_calls", _TEXT),
        pa.field("finish_reason", _WORD, nullable=False),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("reasoning_tokens", pa.int32()),
        pa.field("cached_tokens", pa.int32()),
        pa.field("teacher", _WORD, nullable=False),
        pa.field("model_revision", _WORD),
        pa.field("endpoint", _WORD, nullable=False),
        pa.field("sampling", _WORD, nullable=False),
        pa.field("metadata", _TEXT),
        pa.field("reference", _TEXT),
        pa.field("started_at", _TIME, nullable=False),
        pa.field("latency_s", pa.float64(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("prompt_token_ids", pa.list_(pa.int32())),
        pa.field("completion_token_ids", pa.list_(pa.int32())),
        pa.field("completion_token_bytes", pa.list_(pa.binary())),
        pa.field("sampled_logprob", pa.list_(pa.float32())),
        pa.field("sampled_rank", pa.list_(pa.int32())),
        pa.field("topk_ids", pa.list_(pa.list_(pa.int32()))),
        pa.field("topk_bytes", pa.list_(pa.list_(pa.binary()))),
        pa.field("topk_logprobs", pa.list_(pa.list_(pa.float32()))),
    ]
)

FAILURES = pa.schema(
    [
        pa.field("sample_id", _TEXT, nullable=False),
        pa.field("prompt_set", _WORD, nullable=False),
        pa.field("prompt_id", _TEXT, nullable=False),
        pa.field("draw", pa.int32()),
        pa.field("reason", _WORD, nullable=False),
        pa.field("detail", _TEXT, nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
    ]
)

ATTEMPTS = pa.schema(
    [
        pa.field("attempt_id", _TEXT, nullable=False),
        pa.field("sample_ids", pa.list_(_TEXT), nullable=False),
        pa.field("endpoint", _WORD, nullable=False),
        pa.field("started_at", _TIME, nullable=False),
        pa.field("latency_s", pa.float64()),
        pa.field("outcome", _WORD, nullable=False),
        pa.field("http_status", pa.int32()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("cached_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("reasoning_tokens", pa.int32()),
        pa.field("cost_picousd", pa.int64()),
        pa.field("reserved_picousd", pa.int64()),
        pa.field("request_id", _TEXT),
    ]
)

VERDICTS = pa.schema(
    [
        pa.field("sample_id", _TEXT, nullable=False),
        pa.field("keep", pa.bool_(), nullable=False),
        pa.field("filter", _WORD),
        pa.field("reason", _TEXT),
    ]
)
"""One row a generation, in the order of its generations file. Null filter and reason: kept."""
