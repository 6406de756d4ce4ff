"""Prompt sets are read from real files of every format, sound, torn, foreign and hostile."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import re
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corpusgen.config import Columns, PromptSet
from corpusgen.config_file import read_config
from corpusgen.errors import ConfigError, PromptError
from corpusgen.prompts import fingerprint, read_prompts
from corpusgen.types import BadPrompt, Prompt

ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "What is 1 + 1?", "reference": "2", "kind": "sum"},
    {"id": "b", "prompt": "Say\nhello, «你好» 👋", "kind": "greeting"},
    {"id": "c", "prompt": 'A "quoted" word', "reference": "3", "kind": "quote"},
]


def read(directory: Path, path: str, **options: Any) -> list[Prompt | BadPrompt]:
    return list(read_prompts(PromptSet(path=path, **options), directory))


def prompts(directory: Path, path: str, **options: Any) -> list[Prompt]:
    found = read(directory, path, **options)
    assert [row for row in found if isinstance(row, BadPrompt)] == []
    return [row for row in found if isinstance(row, Prompt)]


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def one(tmp_path: Path, row: Any, **options: Any) -> Prompt | BadPrompt:
    write_jsonl(tmp_path / "one.jsonl", [row])
    (result,) = read(tmp_path, "one.jsonl", **options)
    return result


def good(tmp_path: Path, row: Any, **options: Any) -> Prompt:
    result = one(tmp_path, row, **options)
    assert isinstance(result, Prompt), result
    return result


def problem(tmp_path: Path, row: Any, **options: Any) -> str:
    result = one(tmp_path, row, **options)
    assert isinstance(result, BadPrompt), result
    assert result.row == str(tmp_path / "one.jsonl:1")
    assert not result.problem.endswith(".")
    return result.problem


def csv_text(records: list[dict[str, Any]]) -> str:
    lines = ["id,prompt,reference,kind"]
    for record in records:
        cells = [str(record.get(name, "")) for name in ("id", "prompt", "reference", "kind")]
        lines.append(",".join('"' + cell.replace('"', '""') + '"' for cell in cells))
    return "\n".join(lines) + "\n"


def content(format_: str) -> bytes:
    if format_ == "csv":
        return csv_text(ROWS).encode()
    if format_ == "json":
        return json.dumps(ROWS, indent=1).encode()
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def check_rows(found: list[Prompt]) -> None:
    assert [prompt.prompt_id for prompt in found] == ["a", "b", "c"]
    for prompt, row in zip(found, ROWS, strict=True):
        assert prompt.messages == [{"role": "user", "content": row["prompt"]}]
        assert prompt.reference == row.get("reference")
        assert prompt.metadata == {"kind": row["kind"]}
        assert prompt.tools is None


# Formats


@pytest.mark.parametrize("format_", ["jsonl", "ndjson", "json", "csv"])
@pytest.mark.parametrize("compression", ["", ".gz", ".zst", "bom"])
def test_text_formats_give_the_same_prompts(tmp_path: Path, format_: str, compression: str) -> None:
    raw = content(format_)
    name = f"set.{format_}"
    if compression == ".gz":
        raw = gzip.compress(raw)
    elif compression == ".zst":
        raw = pa.Codec("zstd").compress(raw, asbytes=True)
    elif compression == "bom":
        raw = b"\xef\xbb\xbf" + raw
    name += compression if compression != "bom" else ""
    (tmp_path / name).write_bytes(raw)
    check_rows(prompts(tmp_path, name))


def test_parquet_gives_the_same_prompts_and_counts_rows(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "set.parquet", row_group_size=2)
    found = prompts(tmp_path, "set.parquet")
    check_rows(found)
    assert [prompt.row for prompt in found] == [f"{tmp_path}/set.parquet#{n}" for n in (1, 2, 3)]


def test_lines_are_located_where_their_row_begins(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text('\n{"prompt":"x"}\r\n   \n{"prompt":"y"}')
    (tmp_path / "s.csv").write_text('prompt,k\n"two\nlines",1\n\nlast,2\n')
    (tmp_path / "s.json").write_text('[\n {"prompt":"x"\n }, {"prompt": "y"},\n\n{"prompt":"z"}]\n')

    def lines(name: str) -> list[str]:
        return [prompt.row.rpartition(":")[2] for prompt in prompts(tmp_path, name)]

    assert lines("s.jsonl") == ["2", "4"]
    assert lines("s.csv") == ["2", "5"]
    assert lines("s.json") == ["2", "3", "5"]


def test_a_location_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets").mkdir()
    write_jsonl(tmp_path / "sets" / "a.jsonl", [{"prompt": "x"}])
    assert read(Path("sets"), "a.jsonl")[0].row == "sets/a.jsonl:1"
    assert read(Path(), "./sets/a.jsonl")[0].row == "sets/a.jsonl:1"
    assert read(Path(), "sets/*.jsonl")[0].row == "sets/a.jsonl:1"
    absolute = str(tmp_path / "sets" / "a.jsonl")
    assert read(Path("elsewhere"), absolute)[0].row == f"{absolute}:1"


def test_a_pattern_reads_files_in_order_and_of_mixed_formats(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": "2"}])
    (tmp_path / "a.csv").write_text("prompt\n1\n")
    (tmp_path / "c.json").write_text('[{"prompt":"3"}]')
    (tmp_path / "d.json").mkdir()
    found = prompts(tmp_path, "*.[cj]s*")
    assert [prompt.messages[0]["content"] for prompt in found] == ["1", "2", "3"]


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a[1].jsonl", [{"prompt": "x"}])
    assert len(prompts(tmp_path, "a[1].jsonl")) == 1


def test_a_name_that_is_not_utf8_is_shown_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jsonl")
    write_jsonl(tmp_path / name, [{"prompt": "x"}])
    (found,) = prompts(tmp_path, "*.jsonl")
    assert found.row == f"{tmp_path}/caf\\udce9.jsonl:1"
    assert fingerprint(PromptSet(path="*.jsonl"), tmp_path)[0][0] == "caf\\udce9.jsonl"


def test_format_overrides_the_ending(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_bytes(content("jsonl"))
    check_rows(prompts(tmp_path, "rows.txt", format="jsonl"))


def test_saved_datasets_are_read_with_their_split(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "plain")
    backwards = dataset.select([2, 1, 0])
    datasets.DatasetDict(train=dataset, test=backwards).save_to_disk(tmp_path / "splits")
    check_rows(prompts(tmp_path, "plain"))
    check_rows(prompts(tmp_path, "splits", format="datasets"))
    found = prompts(tmp_path, "splits", split="test")
    assert [(prompt.prompt_id, prompt.row) for prompt in found] == [
        ("c", f"{tmp_path}/splits#1"),
        ("b", f"{tmp_path}/splits#2"),
        ("a", f"{tmp_path}/splits#3"),
    ]
    with pytest.raises(PromptError, match=r"splits: there is no split dev\. .* train, test\."):
        read(tmp_path, "splits", split="dev")
    names = [name for name, _, _ in fingerprint(PromptSet(path="splits"), tmp_path)]
    assert any(name.endswith(".arrow") for name in names)
    assert all(name.startswith("splits/train/") for name in names)
    next((tmp_path / "plain").glob("*.arrow")).write_bytes(b"torn")
    with pytest.raises(PromptError, match="plain: cannot be read as a dataset"):
        read(tmp_path, "plain")


def test_json_features_of_datasets_are_decoded(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    messages = [{"role": "user", "content": "x", "weight": [1, "a"]}]
    columns = {"messages": [messages], "metadata": [{"a": [1, "x"]}], "image": [b"\xff\xd8\xff"]}
    dataset = datasets.Dataset.from_dict(columns, on_mixed_types="use_json")
    dataset.save_to_disk(tmp_path / "d")
    (found,) = prompts(tmp_path, "d")
    assert found.messages == [{"role": "user", "content": "x"}]
    assert found.metadata == {"a": [1, "x"]}


def test_a_named_dataset_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "hub").mkdir()
    write_jsonl(tmp_path / "hub" / "train.jsonl", ROWS)
    name = str(tmp_path / "hub")
    found = list(read_prompts(PromptSet(dataset=name), Path()))
    check_rows([row for row in found if isinstance(row, Prompt)])
    assert found[2].row == f"{name}#3"
    assert fingerprint(PromptSet(dataset=name), Path()) == [(f"{name}::train", 0, 0)]
    other = PromptSet(dataset=name, subset="s", split="test")
    assert fingerprint(other, Path()) == [(f"{name}:s:test", 0, 0)]
    with pytest.raises(PromptError, match=r"cannot be read as a dataset: .*nosplit"):
        list(read_prompts(PromptSet(dataset=name, split="nosplit"), Path()))
    missing = str(tmp_path / "none")
    with pytest.raises(PromptError, match="none: cannot be read as a dataset"):
        list(read_prompts(PromptSet(dataset=missing), Path()))


# Fields


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    row = {"q": "Why?", "key": 7, "gold": 1.5, "prompt": "not this", "info": {"kind": "row"}}
    columns = Columns(prompt="q", id="key", reference="gold", metadata="info")
    assert good(tmp_path, row | {"kind": "column"}, columns=columns) == Prompt(
        prompt_id="7",
        messages=[{"role": "user", "content": "Why?"}],
        row=str(tmp_path / "one.jsonl:1"),
        reference="1.5",
        metadata={"prompt": "not this", "kind": "row"},
    )


def test_messages_keep_what_a_teacher_is_sent(tmp_path: Path) -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "x", "name": "Ann", "weight": 1},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "", "tool_call_id": "c1", "name": None},
    ]
    found = good(tmp_path, {"messages": messages})
    assert found.messages == [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "x", "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "", "tool_call_id": "c1"},
    ]
    assert good(tmp_path, {"messages": json.dumps(messages)}).messages == found.messages


def test_the_default_id_is_of_the_content_alone(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "x"}, {"prompt": "y", "k": 1}])
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": "z"}, {"prompt": "y"}, {"k": 2, "prompt": "x"}])
    x, y = (prompt.prompt_id for prompt in prompts(tmp_path, "a.jsonl"))
    assert [prompt.prompt_id for prompt in prompts(tmp_path, "b.jsonl")][1:] == [y, x]
    # A golden id: another one would orphan the plans of earlier runs.
    assert x == "895562c993e09fcc"


def test_system_messages(tmp_path: Path) -> None:
    system = "You know {{ topic }}."
    own = [{"role": "system", "content": "mine"}, {"role": "user", "content": "x"}]

    def first(row: dict[str, Any]) -> dict[str, Any]:
        return good(tmp_path, row, system=system).messages[0]

    assert first({"prompt": "x", "topic": "tea"}) == {"role": "system", "content": "You know tea."}
    assert first({"prompt": "x", "system": "own"}) == {"role": "system", "content": "own"}
    assert first({"messages": own}) == {"role": "system", "content": "mine"}
    assert "already begins with a system message" in problem(
        tmp_path, {"messages": own, "system": "another"}
    )
    assert "'topic' is undefined" in problem(tmp_path, {"prompt": "x"}, system=system)
    assert problem(tmp_path, {"prompt": "x", "system": 1}) == '"system" must be text, not a number'
    assert len(good(tmp_path, {"prompt": "x", "system": ""}).messages) == 1


def test_tools_of_the_row_win(tmp_path: Path) -> None:
    ours = [{"type": "function", "function": {"name": "ours"}}]
    own = [{"type": "function", "function": {"name": "own"}}]
    assert good(tmp_path, {"prompt": "x"}, tools=ours).tools == ours
    assert good(tmp_path, {"prompt": "x", "tools": own}, tools=ours).tools == own
    assert good(tmp_path, {"prompt": "x", "tools": json.dumps(own)}).tools == own
    assert good(tmp_path, {"prompt": "x", "tools": []}, tools=ours).tools is None
    assert problem(tmp_path, {"prompt": "x", "tools": [1]}) == '"tools" must be a list of objects'


@pytest.mark.parametrize(
    ("value", "text"),
    [(42, "42"), (2.5, "2.5"), (True, "true"), ("x", "x"), ("", None), (None, None)],
)
def test_references_become_text(tmp_path: Path, value: Any, text: str | None) -> None:
    assert good(tmp_path, {"prompt": "x", "reference": value}).reference == text


@pytest.mark.parametrize(
    ("value", "longest"),
    [
        (256, 256),
        (256.0, 256),
        ("256", 256),
        (" 256.0 ", 256),
        (1, 1),
        (2**31 - 1, 2**31 - 1),
        (None, None),
        ("", None),
        (" ", None),
    ],
)
def test_a_row_may_have_its_own_max_tokens(tmp_path: Path, value: Any, longest: int | None) -> None:
    found = good(tmp_path, {"prompt": "x", "max_tokens": value})
    assert (found.max_tokens, type(found.max_tokens)) == (longest, type(longest))
    assert found.metadata is None
    renamed = {"prompt": "x", "limit": value, "max_tokens": "kept"}
    found = good(tmp_path, renamed, columns=Columns(max_tokens="limit"))
    assert (found.max_tokens, found.metadata) == (longest, {"max_tokens": "kept"})


def test_tables_have_max_tokens_as_they_keep_numbers(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("prompt,max_tokens\na,256\nb,\nc,256.0\n")
    for name, column in {
        "floats": pa.array([256.0, float("nan"), None]),  # what pandas makes of whole numbers
        "decimals": pa.array([Decimal("256.00"), None, None]),
        "small": pa.array([256, None, None], pa.int16()),
    }.items():
        pq.write_table(
            pa.table({"prompt": ["a", "b", "c"], "max_tokens": column}),
            tmp_path / f"{name}.parquet",
        )
        found = [row.max_tokens for row in prompts(tmp_path, f"{name}.parquet")]
        assert found == [256, None, None], name
    assert [row.max_tokens for row in prompts(tmp_path, "s.csv")] == [256, None, 256]


def test_csv_has_lists_and_objects_as_json_text(tmp_path: Path) -> None:
    messages = '[{""role"":""user"",""content"":""hi""}]'
    (tmp_path / "s.csv").write_text(
        "prompt,messages,metadata,system,id,reference,tools,note\n"
        f',"{messages}","{{""a"":1}}",,,,,\n'
        "hi,,,,,,,kept\n"
    )
    first, second = prompts(tmp_path, "s.csv")
    assert first.messages == second.messages
    assert first.prompt_id == second.prompt_id
    assert first.metadata == {"a": 1}
    assert second.metadata == {"note": "kept"}


def test_arrow_values_become_json_values(tmp_path: Path) -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "prompt": pa.array([b"old writer", b"x"], pa.binary()),
            "when": pa.array([moment, None], pa.timestamp("us", tz="UTC")),
            "span": pa.array([datetime.timedelta(seconds=90), None]),
            "price": [Decimal("1.50"), None],
            "score": [float("nan"), 0.5],
            "big": [2**62, None],
            "picture": pa.array([b"\xff\xfe", None], pa.binary()),
            "pairs": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "nested": [{"a": None, "b": [1, None]}, None],
            "tools": [[{"name": "f", "default": None}], None],
        }
    )
    pq.write_table(table, tmp_path / "s.parquet")
    first, second = prompts(tmp_path, "s.parquet")
    assert first.messages == [{"role": "user", "content": "old writer"}]
    assert first.tools == [{"name": "f"}]
    assert first.metadata == {
        "when": "2026-01-02T03:04:05+00:00",
        "span": 90.0,
        "price": "1.50",
        "big": 2**62,
        "pairs": {"k": 1},
        "nested": {"b": [1, None]},
    }
    assert second.metadata == {"score": 0.5}
    msgspec.json.encode(first)


# Bad rows


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, 'neither "prompt" nor "messages" is there (the row has no column that is set)'),
        ({"question": "x"}, "the row has question); name the column under the set's columns"),
        ({"prompt": None, "messages": None}, 'neither "prompt" nor "messages"'),
        ({"prompt": ""}, '"prompt" is empty'),
        ({"prompt": " \n\t"}, '"prompt" is empty'),
        ({"prompt": 5}, '"prompt" must be text, not a number'),
        ({"prompt": [{"role": "user", "content": "x"}]}, "name it as messages"),
        ({"prompt": "x", "messages": []}, 'both "prompt" and "messages" are set'),
        ({"messages": []}, '"messages" is empty'),
        ({"messages": "x"}, '"messages" is text that is not valid JSON'),
        ({"messages": {"role": "user"}}, '"messages" must be a list of messages, not an object'),
        ({"messages": ["x"]}, '"messages"[0] is text, not an object'),
        ({"messages": [{"content": "x"}]}, '"messages"[0] has no role'),
        ({"messages": [{"role": "human", "content": "x"}]}, "has the role 'human'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "has the role ['user']"),
        ({"messages": [{"role": "user"}]}, "must have text as content, not null"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "not a list"),
        ({"messages": [{"role": "user", "content": " "}]}, '"messages"[0] has empty content'),
        ({"messages": [{"role": "user", "content": "x", "name": 1}]}, "name must be text"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": 1}]}, "tool_calls must be"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "ends with an assistant message",
        ),
        ({"prompt": "x", "id": True}, '"id" must be text or a whole number, not true or false'),
        ({"prompt": "x", "id": 1.5}, '"id" must be text or a whole number'),
        ({"prompt": "x", "reference": ["y"]}, '"reference" must be text or a number, not a list'),
        ({"prompt": "x", "metadata": [1]}, '"metadata" must be an object, not a list'),
        ({"prompt": "x", "metadata": "{"}, '"metadata" is text that is not valid JSON'),
        *(
            (
                {"prompt": "x", "max_tokens": value},
                f'"max_tokens" must be a positive whole number, not {said}',
            )
            for value, said in [
                (0, "0"),
                (-5, "-5"),
                (256.5, "256.5"),
                ("many", "'many'"),
                ("0", "'0'"),
                ("[1]", "'[1]'"),
                ("1_000", "'1_000'"),
                (True, "true or false"),
                ([256], "a list"),
                ({}, "an object"),
            ]
        ),
        ({"prompt": "x", "max_tokens": 2**31}, '"max_tokens" must be at most 2147483647, not 2147'),
        ({"prompt": "x", "max_tokens": 10**100}, '"max_tokens" must be at most 2147483647, not 1'),
        ({"prompt": "x", "max_tokens": 1e300}, "must be at most 2147483647, not 1e+300"),
        (["prompt"], "the line is a list, not an object"),
        ("prompt", "the line is text, not an object"),
        (None, "the line is null, not an object"),
    ],
)
def test_a_bad_row_says_what_is_wrong(tmp_path: Path, row: Any, said: str) -> None:
    assert said in problem(tmp_path, row)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "x"', "not valid JSON: it breaks off"),
        (b'{"prompt": "x"} y', "not valid JSON: trailing characters"),
        (b'{"prompt": "x", "score": NaN}', "NaN and Infinity are not JSON"),
        (b'{"prompt": "caf\xe9"}', "the line is not valid UTF-8"),
        (b'{"prompt": "\\ud800 alone"}', "not valid JSON"),
        (b'{"prompt": "x", "n": 1e999}', "not valid JSON: number out of range"),
        (b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}", "integer value out of range"),
        (b'{"prompt": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_line_spoils_no_other(tmp_path: Path, line: bytes, said: str) -> None:
    (tmp_path / "s.jsonl").write_bytes(b'{"prompt":"a"}\n' + line + b'\n{"prompt":"b"}\n')
    before, bad, after = read(tmp_path, "s.jsonl")
    assert isinstance(before, Prompt)
    assert isinstance(after, Prompt)
    assert isinstance(bad, BadPrompt)
    assert said in bad.problem
    assert bad.raw == line
    assert bad.row == f"{tmp_path}/s.jsonl:2"


def test_a_torn_last_line_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(b'{"prompt":"a"}\n{"prompt":"b')
    first, last = read(tmp_path, "s.jsonl")
    assert isinstance(first, Prompt)
    assert isinstance(last, BadPrompt)
    assert last.raw == b'{"prompt":"b'


LARGEST, SMALLEST = (1 << 64) - 1, -(1 << 63)


def test_large_numbers_in_metadata_become_text(tmp_path: Path) -> None:
    found = good(
        tmp_path,
        {
            "prompt": "x",
            "uuid": 1 << 127,
            "fits": [LARGEST, SMALLEST],
            "metadata": {"deep": [{"n": LARGEST + 1}, SMALLEST - 1, 1.5, None]},
        },
    )
    assert found.metadata == {
        "uuid": str(1 << 127),
        "fits": [LARGEST, SMALLEST],
        "deep": [{"n": str(LARGEST + 1)}, str(SMALLEST - 1), 1.5, None],
    }
    msgspec.msgpack.encode(found)


@pytest.mark.parametrize("number", [LARGEST + 1, SMALLEST - 1, 10**100])
def test_large_numbers_in_what_is_sent_make_a_bad_row(tmp_path: Path, number: int) -> None:
    said = "the messages or tools hold a whole number of more than 64 bits; write it as text"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"maximum": number}}}]
    assert problem(tmp_path, {"prompt": "x", "tools": tools}) == said
    assert problem(tmp_path, {"prompt": "x"}, tools=tools) == said
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": number}]},
        {"role": "tool", "content": "4"},
    ]
    assert problem(tmp_path, {"messages": turns}) == said
    tools[0]["function"]["parameters"]["maximum"] = LARGEST  # type: ignore[index]
    assert good(tmp_path, {"prompt": "x", "tools": tools}).tools == tools


def test_a_bad_row_keeps_its_own_id(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "s.jsonl", [{"id": "mine", "prompt": ""}, {"prompt": ""}])
    first, second = read(tmp_path, "s.jsonl")
    assert first.prompt_id == "mine"
    assert len(second.prompt_id) == 16


def test_an_overlong_line_is_a_bad_row(tmp_path: Path) -> None:
    with (tmp_path / "s.jsonl").open("wb") as file:
        file.write(b'{"prompt":"')
        for _ in range(65):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"prompt":"b"}\n')
    bad, after = read(tmp_path, "s.jsonl")
    assert isinstance(bad, BadPrompt)
    assert bad.problem == "the line exceeds 64 MiB"
    assert len(bad.raw) <= 4096
    assert isinstance(after, Prompt)
    assert after.row.endswith(":2")


def test_bad_csv_records(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes(
        b'prompt,k\nfine,1\none field\n"x"y,2\ncaf\xe9,3\nfine too,4\n"never closed,5\nend'
    )
    found = read(tmp_path, "s.csv")
    assert [(row.row.rpartition(":")[2], type(row)) for row in found] == [
        ("2", Prompt),
        ("3", BadPrompt),
        ("4", BadPrompt),
        ("5", BadPrompt),
        ("6", Prompt),
        ("7", BadPrompt),
    ]
    problems = [row.problem for row in found if isinstance(row, BadPrompt)]
    assert problems[0] == "the record has 1 fields, the header has 2"
    assert problems[1].startswith("the record is not valid CSV")
    assert problems[2] == "the row holds text that is not valid UTF-8"
    assert problems[3] == "the record is not valid CSV: unexpected end of data"


def test_a_long_csv_field_is_read(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text('prompt\n"' + "x" * 200_000 + '"\n')
    (found,) = prompts(tmp_path, "s.csv")
    assert len(found.messages[0]["content"]) == 200_000


def test_bad_elements_of_a_json_array(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(
        b'[{"prompt":"a"},\n 12,\n {"prompt":"caf\xe9"},\n {"prompt":"b","n":NaN},\n{"prompt":"c"}]'
    )
    found = read(tmp_path, "s.json")
    assert [type(row) for row in found] == [Prompt, BadPrompt, BadPrompt, BadPrompt, Prompt]
    assert [row.row.rpartition(":")[2] for row in found] == ["1", "2", "3", "4", "5"]
    second = found[2]
    assert isinstance(second, BadPrompt)
    assert second.raw == b'{"prompt":"caf\xe9"}'


def test_text_that_is_not_utf8_in_parquet_spoils_its_row_only(tmp_path: Path) -> None:
    raw = pa.array([b"a", b"caf\xe9", b"b"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"prompt": text}), tmp_path / "s.parquet")
    found = read(tmp_path, "s.parquet")
    assert [type(row) for row in found] == [Prompt, BadPrompt, Prompt]
    bad = found[1]
    assert isinstance(bad, BadPrompt)
    assert bad.row.endswith("#2")
    assert bad.problem == "the row holds text that is not valid UTF-8"


# Files


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("x.txt", b"x", "the ending .txt says no format"),
        ("x", b"x", r"the ending \(none\) says no format"),
        ("x.gz", b"x", "the ending .gz says no format"),
        ("x.parquet.gz", b"x", "Unpack the file"),
        ("x.jsonl", b"", "holds no rows"),
        ("x.jsonl", b"\n \n", "holds no rows"),
        ("x.jsonl", b'[{"prompt": "x"}]', "holds a JSON array, not JSON Lines. Set format: json"),
        ("x.jsonl", b'[\n{"prompt": "x"}\n]', "holds a JSON array"),
        ("x.jsonl", gzip.compress(b"{}", mtime=0), "let its name end in .gz"),
        ("x.jsonl", b"PAR1....", "set format: parquet"),
        ("x.jsonl", '{"prompt":"x"}'.encode("utf-16"), "save it as UTF-8"),
        ("x.json.gz", b"not gzip", "cannot be read: .*Restore the file"),
        ("x.jsonl.gz", gzip.compress(os.urandom(4000))[:-9], "cannot be read: .*[Tt]runcated"),
        ("x.csv.zst", b"not zstd", "cannot be read"),
        ("x.json", b"", "is not a JSON array"),
        ("x.json", b"[]", "holds no rows"),
        ("x.json", b'{"prompt": "x"}', "set format: jsonl"),
        ("x.json", b'[{"prompt": "x"}', r"x.json:1: the array breaks off"),
        ("x.json", b'[\n{"prompt": "x', r"x.json:2: the array breaks off in an element"),
        ("x.json", b'[\n{"prompt": tr', r"x.json:2: "),
        ("x.json", b'[{"prompt": "x"},\n', r"x.json:2: the array breaks off"),
        ("x.json", b'[{"prompt": "x"} {"prompt": "x"}]', "a comma or ] is missing"),
        ("x.json", b'[{"prompt": "x"}]\n{"prompt": "x"}', r"x.json:2: something follows"),
        ("x.json", b'[{"prompt": "x"},\n\n{"prompt" "x"}' + b" " * 99, "x.json:3: not valid JSON"),
        ("x.json", b"[" * 200_000, "nested too deeply"),
        ("x.csv", b"", "holds no rows"),
        ("x.csv", b"prompt\n", "holds no rows"),
        ("x.csv", b"prompt,prompt\nx,y\n", 'x.csv:1: the header names "prompt" twice'),
        ("x.csv", b'"pro"mpt\nx\n', "x.csv:1: the CSV header is broken"),
        ("x.parquet", b"", "cannot be read as Parquet"),
        ("x.parquet", b"PAR1 torn", "cannot be read as Parquet"),
        ("x.parquet", content("jsonl"), "cannot be read as Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, raw: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(PromptError, match=said) as caught:
        read(tmp_path, name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert str(caught.value).endswith(".")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path, said in (
        ("none.jsonl", "no such file"),
        ("*.jsonl", "no file matches"),
        ("folder", "not a saved dataset"),
    ):
        # At once, before the first row is asked for.
        with pytest.raises(PromptError, match=said):
            read_prompts(PromptSet(path=path), tmp_path)
        with pytest.raises(PromptError, match=said):
            fingerprint(PromptSet(path=path), tmp_path)


def test_rows_before_a_fault_are_given(tmp_path: Path) -> None:
    lines = b"".join(b'{"prompt":"%s"}\n' % os.urandom(40).hex().encode() for _ in range(60_000))
    packed = gzip.compress(lines, 1)
    (tmp_path / "s.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    found: list[Prompt | BadPrompt] = []
    with pytest.raises(PromptError, match=r"s\.jsonl\.gz: cannot be read"):
        found.extend(read_prompts(PromptSet(path="s.jsonl.gz"), tmp_path))
    assert len(found) > 1000
    assert all(isinstance(row, Prompt) for row in found)


def test_a_torn_parquet_page_is_named(tmp_path: Path) -> None:
    table = pa.table({"prompt": [os.urandom(32).hex() for _ in range(5000)]})
    pq.write_table(table, tmp_path / "s.parquet", compression="zstd", use_dictionary=False)
    raw = bytearray((tmp_path / "s.parquet").read_bytes())
    raw[1000:90_000] = bytes(89_000)
    (tmp_path / "s.parquet").write_bytes(raw)
    with pytest.raises(PromptError, match=r"s\.parquet: cannot be read as Parquet"):
        read(tmp_path, "s.parquet")


def test_the_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "b.jsonl", ROWS)
    prompt_set = PromptSet(path="*.jsonl")
    before = fingerprint(prompt_set, tmp_path)
    state = (tmp_path / "a.jsonl").stat()
    assert before[0] == ("a.jsonl", state.st_size, state.st_mtime_ns)
    assert [name for name, _, _ in before] == ["a.jsonl", "b.jsonl"]
    assert fingerprint(prompt_set, tmp_path) == before
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write('{"prompt":"x"}\n')
    assert fingerprint(prompt_set, tmp_path)[0] == before[0]
    assert fingerprint(prompt_set, tmp_path)[1] != before[1]


def test_an_array_longer_than_a_chunk_is_cut_right(tmp_path: Path) -> None:
    texts = [
        c * n for c, n in zip('a"\\é👋\n[{', [1, 70_000, 9, 300_000, 5, 99, 7, 3], strict=True)
    ]
    numbers = list(range(200_000, 300_000, 7))
    for ascii_only in (True, False):
        array: list[Any] = [{"prompt": f"x{text}"} for text in texts] + numbers
        raw = json.dumps(array, ensure_ascii=ascii_only).encode()
        (tmp_path / "s.json").write_bytes(raw)
        found = read(tmp_path, "s.json")
        got = [row.messages[0]["content"] for row in found if isinstance(row, Prompt)]
        assert got == [f"x{text}" for text in texts]
        assert [row.raw for row in found if isinstance(row, BadPrompt)] == [
            str(number).encode() for number in numbers
        ]


@pytest.mark.parametrize("name", ["s.json", "s.jsonl", "s.csv", "s.parquet"])
def test_memory_stays_flat(tmp_path: Path, name: str) -> None:
    rows_ = [{"prompt": f"{i} " + "x" * 1000} for i in range(16_000)]
    if name.endswith(".json"):
        (tmp_path / name).write_text(json.dumps(rows_, indent=1))
    elif name.endswith(".csv"):
        (tmp_path / name).write_text("prompt\n" + "".join(row["prompt"] + "\n" for row in rows_))
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows_), tmp_path / name, row_group_size=2000)
    else:
        write_jsonl(tmp_path / name, rows_)
    del rows_
    stream = read_prompts(PromptSet(path=name), tmp_path)
    next(stream)
    arrow_before = pa.total_allocated_bytes()
    arrow_peak = count = 0
    tracemalloc.start()
    try:
        for _ in stream:
            count += 1
            if count % 1000 == 0:
                arrow_peak = max(arrow_peak, pa.total_allocated_bytes() - arrow_before)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 15_999
    assert peak < 5_000_000
    assert arrow_peak < 8_000_000


# Templates


def test_a_template_reads_the_rows_fields(tmp_path: Path) -> None:
    row = {"question": "Why?", "hints": ["a", "b"], "odd name": 3, "none": None}
    template = (
        "{% for hint in hints %}- {{ hint }}\n{% endfor %}"
        "{{ question }} {{ row['odd name'] }}{% if none %}!{% endif %}\n"
    )
    found = good(tmp_path, row, template=template)
    assert found.messages == [{"role": "user", "content": "- a\n- b\nWhy? 3"}]
    assert found.metadata == {"question": "Why?", "hints": ["a", "b"], "odd name": 3}
    assert good(tmp_path, {"k": 1}, template="as it is\n").messages[0]["content"] == "as it is"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ missing }}", "the template fails: 'missing' is undefined"),
        ("{{ empty }}", "a null is printed"),
        ("{{ blank }} ", "the template's result is empty"),
        ("{{ 1 / 0 }}", "the template fails: division by zero"),
        ("{% include 'x' %}", "the template fails"),
        ("{{ ''.__class__.__mro__ }}", "the template does what it must not"),
        ("{{ blank['__class__'].__subclasses__() }}", "the template does what it must not"),
        ("{{ '{0.__class__.__init__}'.format(blank) }}", "the template does what it must not"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "what it must not"),
        ("{{ items_.append(1) }}", "the template does what it must not"),
        ("{{ 'x' * 10**10 }}", "a text or list is repeated 10000000000 times"),
        ("{{ 10**(10**10) }}", "too large an exponent"),
        ("{{ range(10**9) | list }}", "the template fails: .*[Rr]ange"),
        (
            "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
            "the template's result exceeds 10,000,000 characters",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the template fails: .*recursion"),
        ("{{ '\\ud800' }}x", "not valid UTF-8"),
    ],
)
def test_a_template_fails_its_row_only(tmp_path: Path, template: str, said: str) -> None:
    row = {"empty": None, "blank": " ", "items_": [1]}
    assert re.search(said, problem(tmp_path, row, template=template))


@pytest.mark.parametrize("key", ["template", "system"])
@pytest.mark.parametrize("text", ["ok\n{{ x", "ok\n{% if %}", "ok\n{{ x | nofilter }}"])
def test_a_template_that_does_not_parse_is_a_configuration_error(
    tmp_path: Path, key: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^prompts \(s\)\.{key}: line 2: .*\.$"):
        read_prompts(PromptSet(path="s.jsonl", **{key: text}), tmp_path)


def test_empty_csv_cells_are_empty_text_in_templates(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("q,hint\nWhy?,\n")
    template = "{{ q }}{% if hint %} ({{ hint }}){% endif %}[{{ hint }}]"
    (found,) = prompts(tmp_path, "s.csv", template=template)
    assert found.messages[0]["content"] == "Why?[]"
    assert found.metadata == {"q": "Why?"}


# Any bytes at all

_FRAGMENTS = st.sampled_from(
    [
        b'{"prompt":"x"}',
        b'{"messages":[{"role":"user","content":"x"}]}',
        b'{"id":1,"prompt":',
        b"\xef\xbb\xbf",
        b"\\ud800",
        b"null",
        *(bytes([byte]) for byte in b'\n[],"}\r\x00\xff'),
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    raw=st.one_of(st.binary(max_size=200), st.lists(_FRAGMENTS, max_size=12).map(b"".join)),
    name=st.sampled_from(["x.jsonl", "x.json", "x.csv", "x.jsonl.gz", "x.parquet"]),
)
@example(raw=b'[{"prompt":"x"}]', name="x.jsonl")
@example(raw=b"\x80\r\x00", name="x.csv")
@example(raw=b"\x80,\x80\r\x00", name="x.csv")
def test_any_bytes_give_rows_or_a_prompt_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, name: str
) -> None:
    directory = tmp_path_factory.getbasetemp()
    (directory / name).write_bytes(raw)
    try:
        found = read(directory, name)
    except PromptError:
        return
    assert found
    for row in found:
        assert isinstance(row, Prompt | BadPrompt)
        msgspec.json.encode(row)
        assert row.row.startswith(str(directory / name))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "name", "tool_calls", "k"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    row=st.dictionaries(
        st.sampled_from(Columns.__struct_fields__),
        _JSON,
        min_size=1,
    )
)
def test_any_json_gives_a_row(tmp_path_factory: pytest.TempPathFactory, row: Any) -> None:
    directory = tmp_path_factory.getbasetemp()
    write_jsonl(directory / "any.jsonl", [row])
    (from_lines,) = read(directory, "any.jsonl")
    (directory / "any.json").write_text(json.dumps([row]))
    (from_array,) = read(directory, "any.json")
    assert type(from_lines) is type(from_array)
    assert from_lines.prompt_id == from_array.prompt_id
    msgspec.json.encode(from_lines)


# The set that ships with the package


def test_the_quickstart_is_sound() -> None:
    loaded = read_config(Path(__file__).parent.parent / "prompts" / "quickstart.yaml")
    (prompt_set,) = loaded.config.prompts
    found = list(read_prompts(prompt_set, loaded.directory))
    assert len(found) == 24
    assert all(isinstance(row, Prompt) for row in found)
    assert len({row.prompt_id for row in found}) == 24
    assert len({str(row.messages) for row in found if isinstance(row, Prompt)}) == 24
    assert all(row.metadata and "kind" in row.metadata for row in found if isinstance(row, Prompt))
