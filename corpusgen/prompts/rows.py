"""The value that passes from a file's reader to the renderer, and the words both use for it."""

from __future__ import annotations

from typing import Any

import msgspec

MAX_ROW_BYTES = 64 * 1024 * 1024
"""A longer row is no prompt but a broken or foreign file; it is not read into memory."""

_LONGEST_PROBLEM = 400


class Row(msgspec.Struct, frozen=True):
    """One row as its file gives it, or why it cannot be decoded."""

    where: str
    """`file:line` or `file#row`."""
    values: dict[str, Any] | None
    """Plain JSON values by column; null when `problem` is set."""
    raw: bytes | None = None
    """The row's bytes, where the format has such."""
    problem: str | None = None
    blank_is_null: bool = False
    """Whether empty text stands for no value, as in CSV."""


class RowError(ValueError):
    """Say why one row cannot become a prompt.

    It becomes a `BadPrompt` and never leaves this package.
    """


_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def kind(value: object) -> str:
    """Return JSON's word for a value's type."""
    return _KINDS.get(type(value), type(value).__name__)


def visible(text: str) -> str:
    """Return text with what is not UTF-8 escaped, so that any file and terminal takes it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str) -> str:
    """Return visible text as one line, cut where it is long."""
    line = " ".join(text[:_LONGEST_PROBLEM].split())
    return visible(line + "…" if len(text) > _LONGEST_PROBLEM else line)


def json_problem(raw: bytes, error: Exception) -> str:
    """Return why bytes are not JSON, for a sentence that begins with what they are."""
    if isinstance(error, UnicodeError):
        return "not valid UTF-8"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if b"NaN" in raw or b"Infinity" in raw:
        return "not valid JSON (NaN and Infinity are not JSON; write null)"
    detail = str(error).removeprefix("JSON is malformed: ").partition(" - at ")[0]
    if detail == "Input data was truncated":
        detail = "it breaks off"
    return f"not valid JSON: {detail[0].lower()}{detail[1:]}"
