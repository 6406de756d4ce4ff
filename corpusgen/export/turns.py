"""Turn generations' messages and answers into the message arrays that trainers read.

A message has `role` and `content`, always. It has `reasoning_content`, `tool_calls`,
`tool_call_id` and `name` only where some message of the corpus has them, because chat templates
see a key that is null as a key: the input's schema says so (see `export.interface`). Tool calls
take OpenAI's shape, their arguments staying the JSON text that the teacher wrote.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpusgen.errors import CorpusError

Reasoning = Literal["field", "inline", "drop"]

TOOL_CALLS = pa.list_(
    pa.struct(
        [
            pa.field("id", pa.string()),
            pa.field("type", pa.string()),
            pa.field(
                "function",
                pa.struct([pa.field("name", pa.string()), pa.field("arguments", pa.string())]),
            ),
        ]
    )
)

_TYPES: dict[str, pa.DataType] = {
    "role": pa.string(),
    "content": pa.string(),
    "reasoning_content": pa.string(),
    "tool_calls": TOOL_CALLS,
    "tool_call_id": pa.string(),
    "name": pa.string(),
}
"""Every field that a message may have, in the order in which they are written."""

_TURN_FIELDS = ("tool_calls", "tool_call_id", "name")

PROVENANCE = ("sample_id", "prompt_set", "prompt_id", "draw", "teacher", "reference", "metadata")
"""Columns that say where a row comes from; none is a name that a trainer reserves."""


def source_columns(reasoning: Reasoning) -> tuple[str, ...]:
    """Return the generation columns that a text format reads."""
    thought = () if reasoning == "drop" else ("reasoning",)
    return ("messages", "tools", "text", "tool_calls", *thought, *PROVENANCE)


def prompt_messages(table: pa.Table) -> pa.ListArray:
    """Return the prompts as lists of messages."""
    turns = _one_array(table["messages"])
    children = turns.flatten()
    fields = [name for name in _TURN_FIELDS if children.type.get_field_index(name) >= 0]
    values = {name: children.field(name) for name in ("role", "content", *fields)}
    if "tool_calls" in values:
        values["tool_calls"] = _calls(values["tool_calls"], "a prompt's message")
    return pa.ListArray.from_arrays(_offsets(turns), _struct(values, len(children)))


def answer_messages(table: pa.Table, reasoning: Reasoning) -> pa.StructArray:
    """Return the answers as assistant messages, with the reasoning where it is wanted."""
    text = _one_array(table["text"])
    values = {"role": pa.array(["assistant"] * table.num_rows, pa.string()), "content": text}
    if reasoning != "drop" and not pa.types.is_null(table["reasoning"].type):
        thought = _one_array(table["reasoning"])
        if reasoning == "field":
            values["reasoning_content"] = thought
        else:
            values["content"] = _inline(thought, text)
    if not pa.types.is_null(table["tool_calls"].type):
        values["tool_calls"] = _calls(_one_array(table["tool_calls"]), "an answer")
    return _struct(values, table.num_rows)


def appended(prompts: pa.ListArray, answers: pa.StructArray) -> pa.ListArray:
    """Return each prompt's messages with its answer as the last one, in one type for all."""
    children = prompts.flatten()
    names = {field.name for kind in (children.type, answers.type) for field in kind}
    pool = pa.concat_arrays([_widened(children, names), _widened(answers, names)])
    lengths = pc.list_value_length(prompts).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths + 1)
    order = np.empty(len(pool), np.int64)
    is_answer = np.zeros(len(pool), bool)
    is_answer[ends - 1] = True
    order[is_answer] = len(children) + np.arange(len(answers))
    order[~is_answer] = np.arange(len(children))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pool.take(pa.array(order)))


def single(answers: pa.StructArray) -> pa.ListArray:
    """Return each answer as a list of one message."""
    return pa.ListArray.from_arrays(pa.array(np.arange(len(answers) + 1), pa.int32()), answers)


def provenance(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Return the tools and the columns that say where a row comes from, where any row has them."""
    found = {}
    for name in ("tools", *PROVENANCE):
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if not pa.types.is_null(column.type):
            found[name] = column
    return found


def _inline(thought: pa.Array, text: pa.Array) -> pa.Array:
    block = pc.binary_join_element_wise("<think>\n", thought, "\n</think>\n\n", "")
    return pc.binary_join_element_wise(pc.fill_null(block, ""), text, "")


def _calls(column: pa.Array, owner: str) -> pa.Array:
    return pa.array([_call_list(raw, owner) for raw in column.to_pylist()], TOOL_CALLS)


def _call_list(raw: str | None, owner: str) -> list[dict[str, Any]] | None:
    if raw is None:
        return None
    try:
        calls = msgspec.json.decode(raw, type=list[dict[str, Any]])
    except msgspec.MsgspecError:
        raise CorpusError(
            f"the tool calls of {owner} are no JSON list of calls: {raw[:80]!r}. "
            "Run `corpusgen verify` on the corpus."
        ) from None
    return [_call(call) for call in calls] or None


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    function = function if isinstance(function, dict) else {}
    return {
        "id": _text(call.get("id")),
        "type": _text(call.get("type", "function")),
        "function": {
            "name": _text(function.get("name")),
            "arguments": _text(function.get("arguments")),
        },
    }


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        return combined.chunk(0) if combined.num_chunks else pa.array([], combined.type)
    return combined


def _offsets(lists: pa.ListArray) -> pa.Array:
    """Return offsets into `lists.flatten()`, which leaves out what a slice or a null hides."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _struct(values: dict[str, pa.Array], rows: int) -> pa.StructArray:
    names = [name for name in _TYPES if name in values]
    columns = [values[name].cast(_TYPES[name]) for name in names]
    assert all(len(column) == rows for column in columns)
    return pa.StructArray.from_arrays(columns, fields=[pa.field(n, _TYPES[n]) for n in names])


def _widened(turns: pa.StructArray, names: set[str]) -> pa.StructArray:
    present = {field.name for field in turns.type}
    values = {
        name: turns.field(name) if name in present else pa.nulls(len(turns), _TYPES[name])
        for name in names
    }
    return _struct(values, len(turns))
