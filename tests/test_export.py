from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_factory import Row, generation, message, write_generations, write_verdicts
from datasets import Dataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from corpusgen.config import Export, Split
from corpusgen.errors import ConfigError, CorpusError, CorpusgenError
from corpusgen.events import Event, Exported
from corpusgen.export.card import (
    CardFacts,
    ColumnFacts,
    FunnelFacts,
    PromptSetFacts,
    TeacherFacts,
    render_card,
)
from corpusgen.export.kept import ExportInput
from corpusgen.export.run import ExportResult, export, export_digest, read_export, updates_digest
from corpusgen.export.shards import without_nulls
from corpusgen.export.split import fraction
from corpusgen.export.swap import recover, replaced

MESSAGES = Export(format="messages")
PAIRS = Export(format="prompt_completion")
NO_SPLIT = Split()
CALLS = '[{"id":"call_1","type":"function","function":{"name":"add","arguments":"{\\"a\\":1}"}}]'
TYPED_CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
]


def inputs_of(
    directory: Path, *parts: list[Row], dropped: Sequence[str] = (), **options: Any
) -> list[ExportInput]:
    found = []
    for number, rows in enumerate(parts):
        name = f"part-{number:05d}-000.parquet"
        path = write_generations(directory / "generations" / name, rows, **options)
        verdicts = dict.fromkeys(dropped, ("empty", "no text and no tool calls"))
        found.append(
            ExportInput(path, write_verdicts(directory / "verdicts" / name, path, verdicts))
        )
    return found


def card(result: ExportResult) -> str:
    return render_card(
        CardFacts(
            title="Test",
            corpus_id="c",
            corpusgen_version="0",
            created="2026-11-21",
            format=result.format,
            splits=result.rows,
            columns=tuple(ColumnFacts(c.name, c.type) for c in result.columns),
            teachers=(TeacherFacts("teacher", "m"),),
            prompt_sets=(PromptSetFacts("quickstart"),),
            funnel=FunnelFacts(1, 1, 1),
        )
    )


def write(
    destination: Path,
    inputs: list[ExportInput],
    options: Export = MESSAGES,
    split: Split = NO_SPLIT,
    source: str = "s",
) -> ExportResult:
    return export(options, split, inputs, destination, card, source=source)


def rows_of(destination: Path, split: str = "train") -> list[Row]:
    files = sorted(destination.glob(f"{split}-*.parquet"))
    return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]


def ids(rows: Sequence[Row]) -> list[str]:
    return [row["sample_id"] for row in rows]


# Formats


def test_messages(tmp_path: Path) -> None:
    rows = [
        generation("Four.", messages=[message("system", "Add."), message("user", "2+2?")]),
        generation("dropped", prompt="b"),
    ]
    result = write(tmp_path / "d", inputs_of(tmp_path, rows, dropped=[rows[1]["sample_id"]]))
    [row] = rows_of(tmp_path / "d")
    assert row == {
        "messages": [
            {"role": "system", "content": "Add."},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "Four."},
        ],
        "sample_id": rows[0]["sample_id"],
        "prompt_set": "quickstart",
        "prompt_id": rows[0]["prompt_id"],
        "draw": 0,
        "teacher": "teacher",
    }
    assert result.rows == {"train": 1}
    assert (result.prompt_tokens, result.completion_tokens) == (7, 1)
    assert [c.name for c in result.columns][:2] == ["messages", "sample_id"]


def test_prompt_completion(tmp_path: Path) -> None:
    rows = [generation("Four.", prompt="2+2?", reference="4", metadata='{"level":1}')]
    write(tmp_path / "d", inputs_of(tmp_path, rows), PAIRS)
    [row] = rows_of(tmp_path / "d")
    assert row["prompt"] == [{"role": "user", "content": "2+2?"}]
    assert row["completion"] == [{"role": "assistant", "content": "Four."}]
    assert (row["reference"], row["metadata"]) == ("4", '{"level":1}')
    assert "messages" not in row


@pytest.mark.parametrize("options", [MESSAGES, PAIRS])
def test_no_column_is_one_that_trainers_reserve(tmp_path: Path, options: Export) -> None:
    rows = [generation(metadata="{}", reference="r", tools="[]", reasoning="why")]
    result = write(tmp_path / "d", inputs_of(tmp_path, rows), options)
    reserved = {"chosen", "rejected", "label", "labels", "text", "input_ids", "attention_mask"}
    reserved |= {"images", "completion_mask", "assistant_masks", "position_ids", "segments"}
    names = {column.name for column in result.columns}
    assert not names & reserved
    assert not {"prompt", "messages"} <= names


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        ("field", {"role": "assistant", "content": "4", "reasoning_content": "2+2 is 4"}),
        ("inline", {"role": "assistant", "content": "<think>\n2+2 is 4\n</think>\n\n4"}),
        ("drop", {"role": "assistant", "content": "4"}),
    ],
)
@pytest.mark.parametrize("format_name", ["messages", "prompt_completion"])
def test_reasoning(tmp_path: Path, format_name: str, reasoning: Any, expected: Row) -> None:
    rows = [
        generation("4", prompt="a", reasoning="2+2 is 4"),
        generation("5", prompt="b"),
    ]
    options = Export(format=format_name, reasoning=reasoning)
    write(tmp_path / "d", inputs_of(tmp_path, rows), options)
    found = {row["sample_id"]: row for row in rows_of(tmp_path / "d")}
    column = "messages" if format_name == "messages" else "completion"
    assert found[rows[0]["sample_id"]][column][-1] == expected
    plain = found[rows[1]["sample_id"]][column][-1]
    assert without_nulls(plain) == {"role": "assistant", "content": "5"}
    assert ("reasoning_content" in plain) == (reasoning == "field")


def test_tool_calls_make_one_schema_for_all_shards(tmp_path: Path) -> None:
    conversation = [
        message("user", "Add."),
        message("assistant", None, tool_calls=CALLS),
        message("tool", "1", tool_call_id="call_1", name="add"),
    ]
    rows = [
        generation("One.", messages=conversation, tools='[{"type":"function"}]'),
        generation("", prompt="b", tool_calls=CALLS, finish_reason="tool_calls"),
        generation("Plain.", prompt="c"),
        generation("", prompt="d", tool_calls='[{"name":"f","arguments":{"x":[1]}},{}]'),
    ]
    inputs = inputs_of(tmp_path, rows[2:3], rows[:2], rows[3:])
    write(tmp_path / "d", inputs, Export(format="messages", rows_per_shard=1))
    files = sorted((tmp_path / "d").glob("*.parquet"))
    assert len(files) == 4
    assert len({str(pq.read_schema(file)) for file in files}) == 1
    found = {row["sample_id"]: row for row in rows_of(tmp_path / "d")}
    assert [without_nulls(turn) for turn in found[rows[0]["sample_id"]]["messages"]] == [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "tool_calls": TYPED_CALLS},
        {"role": "tool", "content": "1", "tool_call_id": "call_1", "name": "add"},
        {"role": "assistant", "content": "One."},
    ]
    assert found[rows[0]["sample_id"]]["tools"] == '[{"type":"function"}]'
    assert found[rows[1]["sample_id"]]["messages"][-1]["tool_calls"] == TYPED_CALLS
    assert found[rows[2]["sample_id"]]["tools"] is None
    assert [
        call["function"] for call in found[rows[3]["sample_id"]]["messages"][-1]["tool_calls"]
    ] == [
        {"name": "f", "arguments": '{"x":[1]}'},
        {"name": None, "arguments": None},
    ]
    write(tmp_path / "p", inputs, PAIRS)
    pairs = {row["sample_id"]: row for row in rows_of(tmp_path / "p")}
    assert pairs[rows[1]["sample_id"]]["completion"][0]["tool_calls"] == TYPED_CALLS
    assert pairs[rows[0]["sample_id"]]["prompt"][1]["tool_calls"] == TYPED_CALLS
    assert set(pairs[rows[0]["sample_id"]]["completion"][0]) == {"role", "content", "tool_calls"}


def test_broken_tool_calls_are_an_error_of_the_corpus(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="are no JSON list of calls"):
        write(tmp_path / "d", inputs_of(tmp_path, [generation(tool_calls="{broken")]))
    assert list(tmp_path.glob("d*")) == []


def test_optional_fields_are_found_without_statistics(tmp_path: Path) -> None:
    rows = [
        generation("a", messages=[message("user", "x", name="Ann"), message("user", "y")]),
        generation("b", prompt="b"),
    ]
    inputs = inputs_of(tmp_path, rows)
    table = pq.read_table(inputs[0].generations, partitioning=None)
    pq.write_table(table, inputs[0].generations, write_statistics=False)
    result = write(tmp_path / "d", inputs)
    found = {row["sample_id"]: row for row in rows_of(tmp_path / "d")}
    assert found[rows[0]["sample_id"]]["messages"][0] == {
        "role": "user",
        "content": "x",
        "name": "Ann",
    }
    assert [c.name for c in result.columns if c.name in ("tools", "metadata", "reference")] == []


def test_empty_prompts_and_slices(tmp_path: Path) -> None:
    rows = [generation(f"Answer {i}.", messages=[message("user", "q")] * (i % 3), draw=i)
            for i in range(2100)]  # fmt: skip
    dropped = ids(rows)[::2]
    write(tmp_path / "d", inputs_of(tmp_path, rows, dropped=dropped, row_group_size=700))
    found = rows_of(tmp_path / "d")
    expected = sorted(
        (r for r in rows if r["sample_id"] not in dropped), key=lambda r: r["sample_id"]
    )
    assert ids(found) == ids(expected)
    for row, source in zip(found, expected, strict=True):
        assert row["messages"][-1]["content"] == source["text"]
        assert len(row["messages"]) == len(source["messages"]) + 1


# Splits


def test_sides_never_change(tmp_path: Path) -> None:
    rows = [
        generation(f"{i} {draw}", prompt=f"Question {i}?", draw=draw, prompt_set=name)
        for i in range(60)
        for draw in range(2)
        for name in ("a", "b")
    ]
    small = inputs_of(tmp_path / "small", rows[:80])
    split = Split(validation=0.25)
    write(tmp_path / "s", small, split=split)
    random.Random(1).shuffle(rows)
    large = inputs_of(tmp_path / "large", rows[:100], rows[100:])
    result = write(tmp_path / "l", large, split=split)
    held_out = {row["messages"][0]["content"] for row in rows_of(tmp_path / "l", "validation")}
    trained = {row["messages"][0]["content"] for row in rows_of(tmp_path / "l")}
    assert not held_out & trained
    assert 5 <= len(held_out) <= 25
    assert result.rows == {"train": 4 * len(trained), "validation": 4 * len(held_out)}
    for row in rows_of(tmp_path / "s", "validation"):
        assert row["messages"][0]["content"] in held_out
    for row in rows_of(tmp_path / "s"):
        assert row["messages"][0]["content"] in trained
    write(tmp_path / "m", large, split=Split(validation=0.5))
    more = {row["messages"][0]["content"] for row in rows_of(tmp_path / "m", "validation")}
    assert held_out < more
    write(tmp_path / "o", large, split=Split(validation=0.25, seed=1))
    other = {row["messages"][0]["content"] for row in rows_of(tmp_path / "o", "validation")}
    assert other != held_out


def test_a_golden_fraction() -> None:
    assert fraction([{"role": "user", "content": "Hello", "name": None}], 0) == fraction(
        [{"content": "Hello", "role": "user"}], 0
    )
    assert fraction([{"role": "user", "content": "Hello"}], 0) == 0.9079816463179785


@given(st.lists(st.text(max_size=8), min_size=200, max_size=200, unique=True))
@settings(max_examples=20)
def test_the_share_is_about_right(texts: list[str]) -> None:
    values = [fraction([{"role": "user", "content": text}], 3) for text in texts]
    assert all(0 <= value < 1 for value in values)
    assert 0.3 < sum(values) / len(values) < 0.7


def test_a_split_without_rows_has_no_file(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, [generation()])
    result = write(tmp_path / "d", inputs, split=Split(validation=1.0))
    assert result.rows == {"validation": 1}
    assert [file.path for file in result.files] == ["validation-00000-of-00001.parquet"]
    assert list(load_dataset(str(tmp_path / "d"), cache_dir=tmp_path / "cache")) == ["validation"]
    assert write(tmp_path / "e", inputs, split=Split(validation=1e-9)).rows == {"train": 1}


# Files


@pytest.mark.parametrize("options", [MESSAGES, PAIRS])
def test_datasets_opens_it_offline(tmp_path: Path, options: Export) -> None:
    rows = [
        generation(f"Answer {i}.", prompt=f"Question {i}?", metadata='{"a": 1}') for i in range(25)
    ]
    options = msgspec.structs.replace(options, rows_per_shard=6, jsonl=True)
    split = Split(validation=0.3)
    result = write(tmp_path / "d", inputs_of(tmp_path, rows[:11], rows[11:]), options, split)
    opened = load_dataset(str(tmp_path / "d"), cache_dir=tmp_path / "cache")
    assert {name: len(part) for name, part in opened.items()} == result.rows
    assert sum(result.rows.values()) == 25
    for name, part in opened.items():
        assert list(part) == rows_of(tmp_path / "d", name)
        lines = str(tmp_path / "d" / "jsonl" / f"{name}-*.jsonl")
        again = load_dataset("json", data_files={name: lines}, cache_dir=tmp_path / "cache")[name]
        assert [without_nulls(row) for row in again] == [without_nulls(row) for row in part]


def test_shards_hold_exactly_what_was_asked(tmp_path: Path) -> None:
    rows = [generation(f"Answer {i}.", draw=i) for i in range(1500)]
    options = Export(format="messages", rows_per_shard=400, jsonl=True)
    result = write(tmp_path / "d", inputs_of(tmp_path, rows[:1300], rows[1300:]), options)
    counts = {file.path: file.rows for file in result.files}
    assert counts == {
        **{f"train-{n:05d}-of-00004.parquet": r for n, r in enumerate((400, 400, 400, 300))},
        **{f"jsonl/train-{n:05d}-of-00004.jsonl": r for n, r in enumerate((400, 400, 400, 300))},
    }
    for file in result.files:
        path = tmp_path / "d" / file.path
        assert path.stat().st_size == file.size
        if path.suffix == ".jsonl":
            assert len(path.read_bytes().splitlines()) == file.rows
            assert b"null" not in path.read_bytes()
        else:
            assert pq.read_metadata(path).num_rows == file.rows
    expected = sorted(ids(rows[:1300])) + sorted(ids(rows[1300:]))
    assert ids(rows_of(tmp_path / "d")) == expected
    assert {path.name for path in (tmp_path / "d").iterdir()} == {
        *{Path(file.path).parts[0] for file in result.files},
        *("README.md", "export.json"),
    }


def test_the_same_corpus_gives_the_same_bytes(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, [generation(f"{i}", draw=i) for i in range(50)])
    for name in ("a", "b"):
        write(tmp_path / name, inputs, split=Split(validation=0.5))
    for file in (tmp_path / "a").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


@pytest.mark.parametrize("jsonl", [False, True])
def test_an_export_without_rows_can_be_opened(tmp_path: Path, jsonl: bool) -> None:
    rows = [generation()]
    inputs = inputs_of(tmp_path, rows, [], dropped=ids(rows))
    options = Export(format="messages", jsonl=jsonl)
    result = write(tmp_path / "d", inputs, options, Split(validation=0.5))
    assert result.rows == {"train": 0}
    assert (result.prompt_tokens, result.completion_tokens) == (None, None)
    # `load_dataset` refuses every dataset without rows; the file itself is whole.
    opened = Dataset(pq.read_table(tmp_path / "d" / "train-00000-of-00001.parquet"))
    assert opened.column_names[0] == "messages"
    assert len(opened) == 0
    assert (tmp_path / "d" / "jsonl" / "train-00000-of-00001.jsonl").exists() == jsonl
    assert "no rows" in (tmp_path / "d" / "README.md").read_text()
    assert write(tmp_path / "e", []).rows == {"train": 0}


# Reuse, crashes, hostile input


def test_a_finished_export_is_reused(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, [generation()])
    first = write(tmp_path / "d", inputs)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "d").iterdir()}
    events: list[Event] = []
    again = export(
        Export(format="messages", name="other"),
        *(NO_SPLIT, inputs, tmp_path / "d", card),
        source="s",
        observer=events.append,
    )
    assert again == msgspec.structs.replace(first, reused=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "d").iterdir()} == before
    assert events == [Exported("other", str(tmp_path / "d"), {"train": 1}, True)]
    export(MESSAGES, NO_SPLIT, inputs, tmp_path / "d", lambda _: "new card", source="s")
    assert (tmp_path / "d" / "README.md").read_text() == "new card"
    assert not write(tmp_path / "d", inputs, source="other").reused
    (tmp_path / "d" / "train-00000-of-00001.parquet").write_bytes(b"torn")
    assert not write(tmp_path / "d", inputs, source="other").reused
    (tmp_path / "d" / "export.json").write_bytes(b"{")
    assert read_export(tmp_path / "d") is None
    assert not write(tmp_path / "d", inputs, source="other").reused


def test_the_digest_covers_what_changes_a_row() -> None:
    digest = export_digest(MESSAGES, NO_SPLIT, "s")
    assert export_digest(Export(format="messages", name="n"), NO_SPLIT, "s") == digest
    others = {
        export_digest(PAIRS, NO_SPLIT, "s"),
        export_digest(MESSAGES, Split(validation=0.1), "s"),
        export_digest(MESSAGES, Split(seed=1), "s"),
        export_digest(MESSAGES, NO_SPLIT, "t"),
        export_digest(MESSAGES, NO_SPLIT, "s", "u"),
        export_digest(Export(format="messages", jsonl=True), NO_SPLIT, "s"),
        export_digest(Export(format="messages", reasoning="drop"), NO_SPLIT, "s"),
        export_digest(Export(format="messages", rows_per_shard=5), NO_SPLIT, "s"),
    }
    assert len(others | {digest}) == 9
    assert updates_digest({}) == ""
    assert export_digest(MESSAGES, NO_SPLIT, "s", "") == digest


@pytest.mark.parametrize("options", [MESSAGES, PAIRS], ids=lambda options: options.format)
def test_the_plan_s_latest_reference_and_metadata_are_exported(
    tmp_path: Path, options: Export
) -> None:
    rows = [generation(f"answer {i}", prompt=f"p{i}", metadata='{"a":1}') for i in range(3000)]
    first, last = rows[0]["sample_id"], rows[2999]["sample_id"]
    inputs = inputs_of(tmp_path, rows, dropped=[rows[1]["sample_id"]])

    def write_with(updates: dict[str, tuple[str | None, str | None]]) -> ExportResult:
        return export(options, NO_SPLIT, inputs, tmp_path / "d", card, source="s", updates=updates)

    assert "reference" not in {c.name for c in write_with({}).columns}
    updates = {first: ("4", '{"a":2}'), last: ("5", None), "f" * 32: ("of no generation", None)}
    assert not write_with(updates).reused
    found = {
        row["sample_id"]: (row["reference"], row["metadata"]) for row in rows_of(tmp_path / "d")
    }
    assert found.pop(first) == ("4", '{"a":2}')
    assert found.pop(last) == ("5", None)
    assert set(found.values()) == {(None, '{"a":1}')}
    assert len(found) == 2997
    assert write_with(dict(reversed(updates.items()))).reused
    assert not write_with({**updates, first: ("6", None)}).reused
    assert write_with({first: ("6", None), last: (None, None)}).rows == {"train": 2999}


def test_a_new_export_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, [generation(f"{i}", draw=i) for i in range(4)])
    write(tmp_path / "d", inputs, Export(format="messages", rows_per_shard=1, jsonl=True))
    write(tmp_path / "d", inputs)
    assert {path.name for path in (tmp_path / "d").iterdir()} == {
        *("train-00000-of-00001.parquet", "README.md", "export.json"),
    }


def test_a_failed_export_leaves_the_old_one(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, [generation()])
    write(tmp_path / "d", inputs)
    (tmp_path / "verdicts" / "part-00000-000.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(CorpusError, match=r"verdicts/part-00000-000\.parquet: cannot be read"):
        write(tmp_path / "d", inputs, source="new")
    assert len(rows_of(tmp_path / "d")) == 1
    assert [path.name for path in tmp_path.glob("d*")] == ["d"]


LEFT = "0123456789ab"


def test_a_crash_between_the_renames_is_recovered_from(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, [generation()])
    write(tmp_path / "d", inputs)
    (tmp_path / "d").rename(tmp_path / f"d.{LEFT}.old")
    (tmp_path / f"d.{LEFT}.tmp").mkdir()
    (tmp_path / f"d.{LEFT}.tmp" / "train-00000.parquet").write_bytes(b"half")
    neighbour = tmp_path / f"d.v2.{LEFT}.tmp"
    neighbour.mkdir()
    assert write(tmp_path / "d", inputs).reused
    assert {path.name for path in tmp_path.glob("d*")} == {"d", neighbour.name}


def test_a_crash_after_the_renames_is_recovered_from(tmp_path: Path) -> None:
    for name, content in (("d", "new"), (f"d.{LEFT}.old", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(content)
    recover(tmp_path / "d")
    assert (tmp_path / "d" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    recover(tmp_path / "absent" / "d")


def test_an_interrupted_replacement_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with replaced(tmp_path / "d") as aside:
            (aside / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_verdicts_of_other_generations_are_refused(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, [generation(draw=i) for i in range(3)], [generation(draw=9)])
    swapped = [ExportInput(inputs[0].generations, inputs[1].verdicts)]
    with pytest.raises(CorpusError, match="does not hold the verdicts of"):
        write(tmp_path / "d", swapped)
    other = inputs_of(tmp_path / "other", [generation(draw=i + 20) for i in range(3)])
    with pytest.raises(CorpusError, match="does not hold the verdicts of"):
        write(tmp_path / "d", [ExportInput(inputs[0].generations, other[0].verdicts)])
    with pytest.raises(CorpusError, match="lacks the column messages"):
        write(tmp_path / "d", [ExportInput(inputs[0].verdicts, inputs[0].verdicts)])
    absent = tmp_path / "absent.parquet"
    with pytest.raises(CorpusError, match=r"absent\.parquet: cannot be read"):
        write(tmp_path / "d", [ExportInput(absent, inputs[0].verdicts)])


def test_hostile_text_comes_through_unchanged(tmp_path: Path) -> None:
    texts = ['"\\\n\r\t\x00\x1f', "</script>\u2028\u202e", "\U0001f600é", " lead and trail "]
    rows = [generation(text, prompt=text, draw=i) for i, text in enumerate(texts)]
    write(tmp_path / "d", inputs_of(tmp_path, rows), Export(format="messages", jsonl=True))
    expected = {row["sample_id"]: row["text"] for row in rows}
    lines = (tmp_path / "d" / "jsonl" / "train-00000-of-00001.jsonl").read_text().split("\n")
    decoded = [json.loads(line) for line in lines if line]
    for found in (rows_of(tmp_path / "d"), decoded):
        assert {r["sample_id"]: r["messages"][-1]["content"] for r in found} == expected


# Formats of other packages

PLUGIN = """
import pyarrow as pa


class Plain:
    columns = ("text", "sample_id")

    def __init__(self, mode):
        self.mode = mode
        if mode == "column":
            self.columns = ("txet",)

    def convert(self, table):
        if self.mode == "short":
            table = table.slice(1)
        if self.mode == "raise" and table.num_rows:
            raise RuntimeError("oops")
        name = "text" if self.mode != "schema" or table.num_rows else "other"
        return pa.table({name: table["text"]})


def create(options):
    return Plain(options.name)
"""


def plug_in(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = directory / "plain_format-1.0.dist-info"
    info.mkdir(parents=True)
    (directory / "plain_format.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-format\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[corpusgen.exporters]\nplain = plain_format:create\n")
    monkeypatch.syspath_prepend(directory)
    monkeypatch.delitem(sys.modules, "plain_format", raising=False)


def test_a_format_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(tmp_path / "site", monkeypatch)
    inputs = inputs_of(tmp_path, [generation("Just text.")])
    result = write(tmp_path / "d", inputs, Export(format="plain"), Split(validation=0.5))
    found = [row for name in result.rows for row in rows_of(tmp_path / "d", name)]
    assert found == [{"text": "Just text."}]


@pytest.mark.parametrize(
    ("mode", "error", "message"),
    [
        ("short", CorpusgenError, "made 0 rows of 1 generations"),
        (
            "schema",
            CorpusgenError,
            r"changes its columns from table to table \(other became text\)",
        ),
        ("raise", CorpusgenError, "the export format plain failed: RuntimeError: oops"),
        ("column", ConfigError, "reads the column txet"),
    ],
)
def test_a_format_that_breaks_its_promise(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    error: type[Exception],
    message: str,
) -> None:
    plug_in(tmp_path / "site", monkeypatch)
    inputs = inputs_of(tmp_path, [generation()])
    with pytest.raises(error, match=message):
        write(tmp_path / "d", inputs, Export(format="plain", name=mode))
    assert not (tmp_path / "d").exists()


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no export format named mesages\. Did you mean messages"
    ):
        write(tmp_path / "d", [], Export(format="mesages"))


def test_arrow_types_are_plain(tmp_path: Path) -> None:
    write(tmp_path / "d", inputs_of(tmp_path, [generation()]))
    schema = pq.read_schema(tmp_path / "d" / "train-00000-of-00001.parquet")
    assert not any(pa.types.is_dictionary(field.type) for field in schema)
    assert not any(pa.types.is_null(field.type) for field in schema)
