"""What a part's Parquet files hold is what the teacher gave, in the documented columns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpusgen import schema
from corpusgen.shards import (
    ALIGNMENT,
    ROW_GROUP_BYTES,
    TokenFormat,
    write_attempts,
    write_failures,
    write_generations,
)
from corpusgen.types import Answer, Attempt, ByteStrings, Failure, Generation, TokenTrace, Usage

CORPUS = "c" * 32
TOKENS = TokenFormat(2, "float32", "raw")


def i32(*values: int) -> Any:
    return np.array(values, np.int32)


def f32(*values: float) -> Any:
    return np.array(values, np.float32)


def planned(*ids: str) -> pa.Table:
    """Return a partition's rows of the plan, in another order than the ids'."""
    rows = [
        {
            "sample_id": sample,
            "partition": 0,
            "prompt_set": "set",
            "prompt_id": f"p-{sample}",
            "draw": index,
            "teacher": "t",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"Question of {sample}? 🙂"},
            ],
            "sampling": '{"temperature":0.7}',
            "reference": None if index else "a reference",
            "metadata": '{"k":1}' if index else None,
            "row": f"p.jsonl:{index + 1}",
        }
        for index, sample in enumerate(ids)
    ]
    return pa.Table.from_pylist(rows[::-1], schema=schema.PLAN)


def generation(sample: str, text: str = "An answer.", **changes: Any) -> Generation:
    answer = {name: changes.pop(name) for name in Answer.__struct_fields__ if name in changes}
    values: dict[str, Any] = {
        "sample_id": sample,
        "answer": Answer(**{"text": text, "finish_reason": "stop", **answer}),
        "usage": Usage(7, 3, None, 0),
        "endpoint": "local",
        "started_at": 1760000000.123456,
        "latency_s": 0.25,
        "attempts": 2,
    }
    return Generation(**{**values, **changes})


def written(
    tmp_path: Path,
    generations: Sequence[Generation],
    tokens: TokenFormat = TOKENS,
    plan: pa.Table | None = None,
) -> pq.ParquetFile:
    path = tmp_path / "generations" / "part-00000-000.parquet"
    ids = [found.sample_id for found in generations]
    plan = planned(*ids, "another") if plan is None else plan
    assert write_generations(path, iter(generations), plan, tokens, CORPUS) == len(generations)
    return pq.ParquetFile(path)


def row(tmp_path: Path, found: Generation) -> dict[str, Any]:
    rows: list[dict[str, Any]] = written(tmp_path, [found]).read().to_pylist()
    assert len(rows) == 1
    return rows[0]


FULL = generation(
    "a" * 32,
    "Zürich 東京 🙂 \u0000",
    reasoning="Hmm.",
    tool_calls=[{"id": "1", "function": {"name": "f", "arguments": '{"é":1}'}}],
    completion_tokens=3,
    reasoning_tokens=1,
    usage=Usage(7, 3, 1, 5),
    prompt_token_ids=i32(9, 8),
    model_revision="m@fp",
    trace=TokenTrace(
        ids=i32(1, 2, 2**31 - 1),
        token_bytes=ByteStrings.of([b"a", b"\xff\x00", b""]),
        sampled_logprob=f32(-0.5, np.nan, -7.0),
        sampled_rank=i32(1, 0, 20),
        topk_counts=i32(2, -1, 0),
        topk_ids=i32(1, 7),
        topk_bytes=ByteStrings.of([b"\xf0\x9f", b"x"]),
        topk_logprobs=f32(-0.5, -1.5),
    ),
)


def test_every_column_of_a_full_row(tmp_path: Path) -> None:
    found = row(tmp_path, FULL)
    assert found == {
        "sample_id": "a" * 32,
        "prompt_set": "set",
        "prompt_id": "p-" + "a" * 32,
        "draw": 0,
        "messages": [
            {
                "role": role,
                "content": content,
                "name": None,
                "tool_calls": None,
                "tool_call_id": None,
            }
            for role, content in (
                ("system", "Be brief."),
                ("user", f"Question of {'a' * 32}? 🙂"),
            )
        ],
        "tools": None,
        "text": "Zürich 東京 🙂 \u0000",
        "reasoning": "Hmm.",
        "tool_calls": '[{"id":"1","function":{"name":"f","arguments":"{\\"é\\":1}"}}]',
        "finish_reason": "stop",
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "reasoning_tokens": 1,
        "cached_tokens": 5,
        "teacher": "t",
        "model_revision": "m@fp",
        "endpoint": "local",
        "sampling": '{"temperature":0.7}',
        "metadata": None,
        "reference": "a reference",
        "started_at": datetime(2025, 10, 9, 8, 53, 20, 123456, UTC),
        "latency_s": 0.25,
        "attempts": 2,
        "prompt_token_ids": [9, 8],
        "completion_token_ids": [1, 2, 2**31 - 1],
        "completion_token_bytes": [b"a", b"\xff\x00", b""],
        "sampled_logprob": [-0.5, None, -7.0],
        "sampled_rank": [1, None, 20],
        "topk_ids": [[1, 7], None, []],
        "topk_bytes": [[b"\xf0\x9f", b"x"], None, []],
        "topk_logprobs": [[-0.5, -1.5], None, []],
    }


def test_what_the_teacher_does_not_give_is_null(tmp_path: Path) -> None:
    found = row(tmp_path, generation("a" * 32, usage=Usage()))
    given = {name for name, value in found.items() if value is not None}
    assert set(schema.GENERATIONS.names) - given == {
        "tools",
        "reasoning",
        "tool_calls",
        "prompt_tokens",
        "completion_tokens",
        "reasoning_tokens",
        "cached_tokens",
        "model_revision",
        "metadata",
        "prompt_token_ids",
        "completion_token_ids",
        "completion_token_bytes",
        "sampled_logprob",
        "sampled_rank",
        "topk_ids",
        "topk_bytes",
        "topk_logprobs",
    }


def test_an_answer_without_tokens_has_empty_lists_not_nulls(tmp_path: Path) -> None:
    trace = TokenTrace(
        ids=i32(),
        token_bytes=ByteStrings.of([]),
        sampled_logprob=f32(),
        sampled_rank=i32(),
        topk_counts=i32(),
        topk_ids=i32(),
        topk_bytes=ByteStrings.of([]),
        topk_logprobs=f32(),
    )
    found = row(tmp_path, generation("a" * 32, "", trace=trace))
    columns = [name for name in schema.GENERATIONS.names if "topk" in name or "sampled" in name]
    columns += ["completion_token_ids", "completion_token_bytes"]
    assert {name: found[name] for name in columns} == {name: [] for name in columns}


def test_tokens_given_as_strings_only(tmp_path: Path) -> None:
    trace = TokenTrace(
        token_bytes=ByteStrings.of([b"Hel", b"lo"]),
        sampled_logprob=f32(-0.1, -0.2),
        topk_counts=i32(1, 2),
        topk_bytes=ByteStrings.of([b"Hel", b"lo", b"\xc3"]),
        topk_logprobs=f32(-0.1, -0.2, -3.0),
    )
    found = row(tmp_path, generation("a" * 32, trace=trace))
    assert found["completion_token_ids"] is found["topk_ids"] is found["sampled_rank"] is None
    assert found["completion_token_bytes"] == [b"Hel", b"lo"]
    assert found["topk_bytes"] == [[b"Hel"], [b"lo", b"\xc3"]]
    assert [len(entries) for entries in found["topk_logprobs"]] == [1, 2]


def test_rows_with_and_without_tokens_stand_in_one_file(tmp_path: Path) -> None:
    bare, tail = generation("b" * 32), generation("c" * 32, trace=TokenTrace(ids=i32(4)))
    rows = written(tmp_path, [FULL, bare, tail, generation("d" * 32)]).read().to_pylist()
    assert [r["completion_token_ids"] for r in rows] == [[1, 2, 2**31 - 1], None, [4], None]
    assert [r["topk_ids"] for r in rows] == [[[1, 7], None, []], None, None, None]


def test_the_file_has_exactly_the_documented_types(tmp_path: Path) -> None:
    opened = written(tmp_path, [FULL, generation("b" * 32)])
    assert opened.schema_arrow.equals(schema.GENERATIONS, check_metadata=False)
    assert opened.schema_arrow.types == schema.GENERATIONS.types
    nullable = [field.nullable for field in opened.schema_arrow]
    assert nullable == [field.nullable for field in schema.GENERATIONS]


def test_rows_keep_the_order_in_which_they_come(tmp_path: Path) -> None:
    ids = sorted(f"{index * 7919 % 1000:032x}" for index in range(200))
    opened = written(tmp_path, [generation(sample, f"text of {sample}") for sample in ids])
    table = opened.read(["sample_id", "text", "prompt_id"])
    assert table["sample_id"].to_pylist() == ids
    assert table["text"].to_pylist() == [f"text of {sample}" for sample in ids]
    assert table["prompt_id"].to_pylist() == [f"p-{sample}" for sample in ids]


def test_a_big_part_leaves_in_several_row_groups(tmp_path: Path) -> None:
    big = "x" * (ROW_GROUP_BYTES // 4)
    ids = [f"{index:032x}" for index in range(6)]
    opened = written(tmp_path, [generation(sample, big) for sample in ids])
    assert [opened.metadata.row_group(g).num_rows for g in range(opened.num_row_groups)] == [4, 2]
    assert opened.read(["sample_id"])["sample_id"].to_pylist() == ids


def test_token_arrays_count_as_well(tmp_path: Path) -> None:
    positions = ROW_GROUP_BYTES // 8 // 3
    trace = TokenTrace(
        ids=np.zeros(positions, np.int32), sampled_logprob=np.zeros(positions, np.float32)
    )
    ids = [f"{index:032x}" for index in range(4)]
    opened = written(tmp_path, [generation(sample, trace=trace) for sample in ids])
    assert [opened.metadata.row_group(g).num_rows for g in range(opened.num_row_groups)] == [3, 1]


def test_no_rows_make_an_empty_file_with_the_same_columns(tmp_path: Path) -> None:
    opened = written(tmp_path, [])
    assert opened.metadata.num_rows == 0
    assert opened.schema_arrow.equals(schema.GENERATIONS, check_metadata=False)


def test_lone_surrogates_become_the_replacement_character(tmp_path: Path) -> None:
    found = row(
        tmp_path,
        generation(
            "a" * 32,
            "a\ud800b 🙂",
            reasoning="\udfff",
            finish_reason="st\udc00op",
            model_revision="m\ud800",
        ),
    )
    assert found["text"] == "a\ufffdb 🙂"
    assert found["reasoning"] == "\ufffd"
    assert found["finish_reason"] == "st\ufffdop"
    assert found["model_revision"] == "m\ufffd"


@pytest.mark.parametrize("absurd", [2**31, 10**18, -1])
def test_an_absurd_token_count_is_no_count(tmp_path: Path, absurd: int) -> None:
    """An endpoint's nonsense must not keep a part from being committed for ever."""
    usage = Usage(absurd, absurd, absurd, absurd)
    found = row(
        tmp_path,
        generation("a" * 32, usage=usage, completion_tokens=absurd, reasoning_tokens=absurd),
    )
    names = ["prompt_tokens", "completion_tokens", "reasoning_tokens", "cached_tokens"]
    assert [found[name] for name in names] == [None] * 4
    path = tmp_path / "attempts.parquet"
    counts: dict[str, Any] = dict.fromkeys(names, absurd)
    sent = Attempt("1" * 32, ["s"], "e", 1.0, "answered", **counts)
    write_attempts(path, [sent], CORPUS)
    (stored,) = pq.read_table(path).to_pylist()
    assert [stored[name] for name in names] == [None] * 4


def test_the_file_says_what_its_columns_cannot(tmp_path: Path) -> None:
    tokens = TokenFormat(20, "float16", "raw", 0.7, "f" * 32, "SmolLM2", 49_152)
    metadata = written(tmp_path, [FULL], tokens).schema_arrow.metadata
    assert {key.decode(): value.decode() for key, value in metadata.items()} == {
        "corpusgen.format_version": "1",
        "corpusgen.corpus_id": CORPUS,
        "corpusgen.top_logprobs": "20",
        "corpusgen.logprob_precision": "float16",
        "corpusgen.logprobs_mode": "raw",
        "corpusgen.sampling_temperature": "0.7",
        "corpusgen.tokenizer_fingerprint": "f" * 32,
        "corpusgen.tokenizer_name": "SmolLM2",
        "corpusgen.vocabulary_size": "49152",
        "corpusgen.alignment": ALIGNMENT,
    }


def test_what_is_not_known_is_left_out_of_the_metadata(tmp_path: Path) -> None:
    metadata = written(tmp_path, [FULL]).schema_arrow.metadata
    assert b"corpusgen.tokenizer_fingerprint" not in metadata
    assert b"corpusgen.sampling_temperature" not in metadata


def test_numbers_are_split_by_bytes_and_text_takes_a_dictionary(tmp_path: Path) -> None:
    group = written(tmp_path, [FULL]).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    split = {
        path.split(".")[0]
        for path, column in columns.items()
        if "BYTE_STREAM_SPLIT" in column.encodings
    }
    assert split == {
        "prompt_token_ids",
        "completion_token_ids",
        "sampled_logprob",
        "sampled_rank",
        "topk_ids",
        "topk_logprobs",
    }
    for path, column in columns.items():
        assert column.compression == "ZSTD"
        name = path.split(".")[0]
        assert column.has_dictionary_page == (name not in split), path
        assert column.is_stats_set == (name == "sample_id"), path


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-60, 0, width=32), min_size=1, max_size=200))
def test_float16_rounds_within_2_to_minus_11(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    """Down to float16's smallest normal; nearer to zero the error is at most 2^-25."""
    given_ones = np.array(values, np.float32)
    trace = TokenTrace(
        sampled_logprob=given_ones,
        topk_counts=i32(len(values)),
        topk_logprobs=given_ones,
    )
    opened = written(
        tmp_path_factory.getbasetemp() / "rounding",
        [generation("a" * 32, trace=trace)],
        TokenFormat(1, "float16", "raw"),
    )
    table = opened.read(["sampled_logprob", "topk_logprobs"])
    stored = np.array(table["sampled_logprob"][0].as_py(), np.float64)
    assert stored.tolist() == table["topk_logprobs"][0].as_py()[0]
    error = np.abs(stored - given_ones.astype(np.float64))
    bound = np.maximum(np.abs(given_ones.astype(np.float64)) * 2**-11, 2**-25)
    assert (error <= bound).all()


def test_float32_is_stored_as_it_is(tmp_path: Path) -> None:
    values = np.linspace(-30, 0, 1000, dtype=np.float32)
    found = row(tmp_path, generation("a" * 32, trace=TokenTrace(sampled_logprob=values)))
    assert np.array_equal(np.array(found["sampled_logprob"], np.float32), values)


def test_a_logprob_below_float16s_range_stays_below_all_others(tmp_path: Path) -> None:
    trace = TokenTrace(sampled_logprob=f32(-70000.0, -np.inf, -60.0))
    opened = written(
        tmp_path, [generation("a" * 32, trace=trace)], TokenFormat(0, "float16", "raw")
    )
    assert opened.read()["sampled_logprob"][0].as_py() == [-np.inf, -np.inf, -60.0]


traces = st.lists(
    st.none() | st.lists(st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=3), max_size=5),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(traces)
def test_ragged_distributions_come_back(
    tmp_path_factory: pytest.TempPathFactory, given_ones: list[Any]
) -> None:
    generations = []
    for index, positions in enumerate(given_ones):
        trace = None
        if positions is not None:
            flat = [token for entries in positions for token in entries or ()]
            trace = TokenTrace(
                topk_counts=i32(*(-1 if e is None else len(e) for e in positions)),
                topk_ids=i32(*flat),
                topk_bytes=ByteStrings.of([str(token).encode() for token in flat]),
                topk_logprobs=np.array(flat, np.float32),
            )
        generations.append(generation(f"{index:032x}", trace=trace))
    table = written(tmp_path_factory.getbasetemp() / "ragged", generations).read()
    assert table["topk_ids"].to_pylist() == given_ones
    assert table["topk_bytes"].to_pylist() == mapped(given_ones, lambda t: str(t).encode())
    assert table["topk_logprobs"].to_pylist() == mapped(given_ones, lambda t: float(np.float32(t)))


def mapped(value: Any, change: Any) -> Any:
    """Return nested lists with each number changed."""
    if value is None:
        return None
    return [mapped(v, change) for v in value] if isinstance(value, list) else change(value)


def test_an_exception_while_answers_come_leaves_no_file(tmp_path: Path) -> None:
    def broken_off() -> Any:
        yield FULL
        raise OSError("the journal cannot be read")

    target = tmp_path / "generations" / "part.parquet"
    with pytest.raises(OSError, match="the journal"):
        write_generations(target, broken_off(), planned("a" * 32), TOKENS, CORPUS)
    assert list(target.parent.iterdir()) == []


def test_failures_are_sorted_and_take_their_place_from_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "failures" / "part.parquet"
    failures = [
        Failure("b" * 32, "bad_prompt", "not JSON: \ud800", 0),
        Failure("a" * 32, "rate_limit", "too many", 6),
    ]
    plan = planned("a" * 32, "b" * 32, "c" * 32)
    draws = pa.array([None if d == 1 else d for d in plan["draw"].to_pylist()], pa.int32())
    plan = plan.set_column(plan.schema.get_field_index("draw"), "draw", draws)
    assert write_failures(path, failures, plan, CORPUS) == 2
    opened = pq.ParquetFile(path)
    assert opened.schema_arrow.equals(schema.FAILURES, check_metadata=False)
    assert opened.schema_arrow.metadata[b"corpusgen.corpus_id"] == CORPUS.encode()
    assert opened.read().to_pylist() == [
        {
            "sample_id": "a" * 32,
            "prompt_set": "set",
            "prompt_id": "p-" + "a" * 32,
            "draw": 0,
            "reason": "rate_limit",
            "detail": "too many",
            "attempts": 6,
        },
        {
            "sample_id": "b" * 32,
            "prompt_set": "set",
            "prompt_id": "p-" + "b" * 32,
            "draw": None,
            "reason": "bad_prompt",
            "detail": "not JSON: \ufffd",
            "attempts": 0,
        },
    ]


def test_attempts_stand_in_the_order_in_which_they_were_sent(tmp_path: Path) -> None:
    path = tmp_path / "attempts" / "part.parquet"
    attempts = [
        Attempt("2" * 32, ["s1", "s2"], "local", 20.5, "lost", reserved_picousd=2**62),
        Attempt("3" * 32, ["s1"], "local", 10.0, "timeout", 1.5),
        Attempt("1" * 32, ["s2"], "b", 20.5, "answered", 0.5, 200, 7, 5, 3, 1, 123, 456, "r\ud800"),
    ]
    assert write_attempts(path, attempts, CORPUS) == 3
    opened = pq.ParquetFile(path)
    assert opened.schema_arrow.equals(schema.ATTEMPTS, check_metadata=False)
    rows = opened.read().to_pylist()
    assert [r["attempt_id"][0] for r in rows] == ["3", "1", "2"]
    expected = msgspec.to_builtins(attempts[2]) | {
        "started_at": datetime.fromtimestamp(20.5, UTC),
        "request_id": "r\ufffd",
    }
    assert rows[1] == expected
    assert rows[2]["sample_ids"] == ["s1", "s2"]
    assert rows[2]["reserved_picousd"] == 2**62
    nulls = {name for name, value in rows[2].items() if value is None}
    assert nulls == set(schema.ATTEMPTS.names) - {
        "attempt_id",
        "sample_ids",
        "endpoint",
        "started_at",
        "outcome",
        "reserved_picousd",
    }
