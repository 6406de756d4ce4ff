"""Make a prompt of a row: take its fields, check them, and say what is wrong with those that fail.

A row's fields are found by the set's `columns`; every other column goes into the metadata. Keys of
a message beyond `role`, `content`, `name`, `tool_calls` and `tool_call_id` are annotations of the
data set and are left out, since no teacher is sent them.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from corpusgen.config import PromptSet, set_name
from corpusgen.prompts.rows import Row, RowError, json_problem, kind, one_line
from corpusgen.types import BadPrompt, Message, Prompt

if TYPE_CHECKING:
    from corpusgen.prompts.template import Render

_ROLES = ("user", "assistant", "system", "developer", "tool")
_SYSTEM_ROLES = ("system", "developer")
_MOST_TOKENS = 2**31 - 1  # what the files of a corpus count tokens with
_encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder().decode
_pack = msgspec.msgpack.Encoder().encode


def _compiled(text: str, key: str) -> Render:
    from corpusgen.prompts.template import compile_template  # Jinja2 takes a while to import

    return compile_template(text, key)


class Renderer:
    """Render the rows of one prompt set; templates are compiled once, here.

    Raises `ConfigError` for a template that does not parse.
    """

    def __init__(self, prompt_set: PromptSet) -> None:
        where = f"prompts ({set_name(prompt_set)})"
        template, system = prompt_set.template, prompt_set.system
        self._columns = prompt_set.columns
        self._taken = frozenset(msgspec.structs.astuple(prompt_set.columns))
        self._tools = prompt_set.tools or None
        self._template = template and _compiled(template, f"{where}.template")
        self._system = system and _compiled(system, f"{where}.system")

    def render(self, row: Row) -> Prompt | BadPrompt:
        """Return the row's prompt, or the row as a bad one with its problem."""
        if row.values is None:
            return _bad(row, None, row.problem or "the row cannot be read")
        values = row.values
        if row.blank_is_null:
            values = {name: value for name, value in values.items() if value != ""}
        own_id = None
        try:
            own_id = _own_id(values.get(self._columns.id), self._columns.id)
            return self._prompt(row, values, own_id)
        except RowError as problem:
            return _bad(row, own_id, str(problem))

    def _prompt(self, row: Row, values: dict[str, Any], own_id: str | None) -> Prompt:
        columns = self._columns
        messages = self._conversation(row, values)
        reference = values.get(columns.reference)
        if reference is not None:
            reference = _reference(reference, columns.reference)
        metadata = self._metadata(values)
        tools = self._tools
        if values.get(columns.tools) is not None:
            tools = _tools(values[columns.tools], columns.tools)
        max_tokens = _max_tokens(values.get(columns.max_tokens), columns.max_tokens)
        _check_numbers(messages, tools)
        prompt_id = own_id or _digest(_encoded(messages))
        _encoded((prompt_id, reference, tools, metadata, messages if own_id else None))
        return Prompt(prompt_id, messages, row.where, tools, reference, metadata, max_tokens)

    def _conversation(self, row: Row, values: dict[str, Any]) -> list[Message]:
        messages = self._turns(row, values)
        begins_with_system = messages[0]["role"] in _SYSTEM_ROLES
        own = values.get(self._columns.system)
        if own is not None and not isinstance(own, str):
            raise RowError(f'"{self._columns.system}" must be text, not {kind(own)}')
        if own and own.strip():
            if begins_with_system:
                raise RowError(
                    f'"{self._columns.system}" is set, and "{self._columns.messages}" already '
                    "begins with a system message; keep one of them"
                )
            return [{"role": "system", "content": own}, *messages]
        if self._system and not begins_with_system:
            assert row.values is not None
            system = self._system(row.values)
            if system.strip():
                return [{"role": "system", "content": system}, *messages]
        return messages

    def _turns(self, row: Row, values: dict[str, Any]) -> list[Message]:
        columns = self._columns
        if self._template:
            assert row.values is not None
            return _question(self._template(row.values), "the template's result")
        prompt, messages = values.get(columns.prompt), values.get(columns.messages)
        if messages is None:
            if prompt is None:
                raise RowError(self._nothing(values))
            return _question(prompt, f'"{columns.prompt}"')
        if prompt is not None:
            raise RowError(
                f'both "{columns.prompt}" and "{columns.messages}" are set; keep one of them, or '
                "point the set's columns at the one that counts"
            )
        return _messages(_parsed(messages, columns.messages), columns.messages)

    def _nothing(self, values: dict[str, Any]) -> str:
        found = ", ".join(sorted(values)[:12]) or "no column that is set"
        return (
            f'neither "{self._columns.prompt}" nor "{self._columns.messages}" is there (the row '
            f"has {found}); name the column under the set's columns"
        )

    def _metadata(self, values: dict[str, Any]) -> dict[str, Any] | None:
        taken = self._taken
        metadata = {k: v for k, v in values.items() if k not in taken and v is not None}
        own = values.get(self._columns.metadata)
        if own is not None:
            own = _parsed(own, self._columns.metadata)
            if type(own) is not dict:
                raise RowError(f'"{self._columns.metadata}" must be an object, not {kind(own)}')
            metadata.update(own)
        return _small_numbers(metadata) if metadata else None


def _bad(row: Row, own_id: str | None, problem: str) -> BadPrompt:
    raw = _canonical(row.values) if row.raw is None else row.raw
    return BadPrompt(own_id or _digest(raw), raw, row.where, one_line(problem))


def _question(content: Any, what: str) -> list[Message]:
    if type(content) is not str:
        hint = "; name it as messages under the set's columns" if type(content) is list else ""
        raise RowError(f"{what} must be text, not {kind(content)}{hint}")
    if not content or content.isspace():
        raise RowError(f"{what} is empty")
    return [{"role": "user", "content": content}]


def _messages(value: Any, column: str) -> list[Message]:
    if type(value) is not list:
        raise RowError(f'"{column}" must be a list of messages, not {kind(value)}')
    if not value:
        raise RowError(f'"{column}" is empty')
    messages = [_message(turn, f'"{column}"[{index}]') for index, turn in enumerate(value)]
    last = messages[-1]
    if last["role"] == "assistant":
        raise RowError(f'"{column}" ends with an assistant message; there is nothing to answer')
    if last["role"] != "tool" and not last["content"].strip():
        raise RowError(f'"{column}"[{len(messages) - 1}] has empty content')
    return messages


def _message(turn: Any, what: str) -> Message:
    if type(turn) is not dict:
        raise RowError(f"{what} is {kind(turn)}, not an object with role and content")
    role, content = turn.get("role"), turn.get("content")
    if role not in _ROLES:
        said = f"has the role {repr(role)[:40]}" if "role" in turn else "has no role"
        raise RowError(f"{what} {said}; use system, developer, user, assistant or tool")
    calls = turn.get("tool_calls")
    if content is None and calls and role == "assistant":
        content = ""  # as the chat protocol has it: a turn may consist of calls alone
    if type(content) is not str:
        raise RowError(f"{what} must have text as content, not {kind(content)}")
    message: Message = {"role": role, "content": content}
    for key in ("name", "tool_call_id"):
        text = turn.get(key)
        if text is not None:
            if type(text) is not str:
                raise RowError(f"{what}.{key} must be text, not {kind(text)}")
            message[key] = text
    if calls:
        message["tool_calls"] = _objects(_parsed(calls, "tool_calls"), f"{what}.tool_calls")
    return message


def _tools(value: Any, column: str) -> list[dict[str, Any]] | None:
    """Return a row's tools; an empty list says that this row has none, whatever the set has."""
    return _objects(_parsed(value, column), f'"{column}"') or None


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    if type(value) is not list or any(type(item) is not dict for item in value):
        raise RowError(f"{what} must be a list of objects")
    return value


def _parsed(value: Any, column: str) -> Any:
    """Return a value, decoded if it is JSON text: tables of text have no lists and objects."""
    if type(value) is not str:
        return value
    try:
        return _decode(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        problem = json_problem(value.encode("utf-8", "replace"), error)
        raise RowError(f'"{column}" is text that is {problem}') from None


def _own_id(value: Any, column: str) -> str | None:
    if value is None or value == "":
        return None
    if type(value) is str or type(value) is int:
        own_id = str(value)
        _encoded(own_id)
        return own_id
    raise RowError(f'"{column}" must be text or a whole number, not {kind(value)}')


def _reference(value: Any, column: str) -> str | None:
    if type(value) is str:
        return value or None
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) in (int, float):
        return str(value)
    raise RowError(f'"{column}" must be text or a number, not {kind(value)}')


def _max_tokens(value: Any, column: str) -> int | None:
    """Return a row's longest answer; null where it has none of its own.

    An integral float is taken: tables make one of a whole number that stands beside nulls.
    """
    if value is None or (type(value) is str and not value.strip()):
        return None
    number = _number(value) if type(value) is str else value
    if type(number) is float and number.is_integer():
        number = int(number)
    if type(number) is not int or number < 1:
        raise RowError(f'"{column}" must be a positive whole number, not {_shown(value)}')
    if number > _MOST_TOKENS:
        raise RowError(f'"{column}" must be at most {_MOST_TOKENS}, not {_shown(value)}')
    return number


def _number(text: str) -> Any:
    """Return what text says as JSON; null where it says nothing."""
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _shown(value: Any) -> str:
    return repr(value)[:40] if type(value) in (str, int, float) else kind(value)


def _encoded(value: Any) -> bytes:
    """Return canonical JSON; raise `RowError` for what could be neither sent nor stored."""
    try:
        return _encode_sorted(value)
    except UnicodeEncodeError:
        raise RowError("the row holds text that is not valid UTF-8") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RowError(f"the row holds a value that JSON cannot express: {error}") from None


def _check_numbers(*sent: Any) -> None:
    """Raise `RowError` for whole numbers that no file of a corpus takes."""
    try:
        _pack(sent)
    except OverflowError:
        raise RowError(
            "the messages or tools hold a whole number of more than 64 bits; write it as text"
        ) from None
    except (TypeError, ValueError, RecursionError):
        return  # `_encoded` says why


def _small_numbers(value: Any) -> Any:
    """Return metadata whose whole numbers of more than 64 bits are text, as few readers take them.

    What cannot be walked is returned as it is: `_encoded` says why.
    """
    try:
        _pack(value)
    except OverflowError:
        return _numbers_as_text(value)
    except (TypeError, ValueError, RecursionError):
        return value
    return value


def _numbers_as_text(value: Any) -> Any:
    if type(value) is dict:
        return {key: _numbers_as_text(item) for key, item in value.items()}
    if type(value) is list:
        return [_numbers_as_text(item) for item in value]
    if type(value) is int and not -(1 << 63) <= value < 1 << 64:
        return str(value)
    return value


def _canonical(values: dict[str, Any] | None) -> bytes:
    try:
        return _encode_sorted(values)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return repr(values).encode("utf-8", "backslashreplace")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content).hexdigest()[:16]
