"""Read the body of an error: its codes, its sentence, and the wait that it asks for.

Providers nest them in different ways; all are collected here, so that the table of classes
(`openai_kinds`) sees one shape. What follows from them is not decided here, and nothing raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from corpusgen.teachers.openai_rate import LONGEST_WAIT_S, span_s

_SHOWN_BYTES = 4096
_DEEPEST = 8
"""Levels of an error's body that are looked at."""
_SCALARS = ("code", "type", "status", "reason", "quotaId")
_NESTED = ("error", "innererror", "details", "violations", "metadata")
_WAITS = ("retryDelay", "retry_after", "retry_after_seconds")


class ErrorBody(msgspec.Struct, frozen=True):
    """What an error's body says, whatever its shape."""

    codes: frozenset[str] = frozenset()
    """Every machine-readable code, in lower case."""
    said: str = ""
    """Its sentence; empty where there is none."""
    wait_s: float | None = None
    headers: Mapping[str, str] = {}
    """Rate headers of the upstream that a gateway (OpenRouter) passes on in the body."""
    page: bool = False
    """Whether it is a web page: a firewall or a proxy spoke, not the API."""


def read_error(body: bytes) -> ErrorBody:
    """Read the body of an HTTP error; one that is no JSON is its own sentence."""
    try:
        content = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        content = None
    found = read_content(content)
    if found.said:
        return found
    text = body[:_SHOWN_BYTES].decode("utf-8", "replace")
    page = content is None and text.lstrip()[:1] == "<"
    return msgspec.structs.replace(found, said=text, page=page)


def read_content(content: Any) -> ErrorBody:
    """Read an error's body that is decoded already."""
    return ErrorBody(
        codes=frozenset(_codes(content)),
        said=_sentence(content),
        wait_s=next(_waits(content), None),
        headers=next(_headers(content), {}),
    )


def _levels(content: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the mappings of an error's body, the outer ones first.

    They stand at the top, in `error`, in Azure's `innererror`, in Google's list of one and its
    `details`, in OpenRouter's `metadata`.
    """
    if isinstance(content, list) and depth < _DEEPEST:
        for item in content:
            yield from _levels(item, depth + 1)
    elif isinstance(content, dict) and depth < _DEEPEST:
        yield content
        for key in _NESTED:
            yield from _levels(content.get(key), depth + 1)


def _codes(content: Any) -> Iterator[str]:
    for level in _levels(content):
        for key in _SCALARS:
            if isinstance(level.get(key), str | int):
                yield str(level[key]).lower()


def _waits(content: Any) -> Iterator[float]:
    for level in _levels(content):
        for key in _WAITS:
            value = level.get(key)
            if isinstance(value, int | float) and 0 <= value <= LONGEST_WAIT_S:
                yield float(value)
            elif isinstance(value, str) and (span := span_s(value)) is not None:
                yield span


def _headers(content: Any) -> Iterator[Mapping[str, str]]:
    for level in _levels(content):
        headers = level.get("headers")
        if isinstance(headers, dict) and headers:
            yield {key: str(value) for key, value in headers.items()}


def _sentence(content: Any, depth: int = 0) -> str:
    """Return the sentence of an error body, empty where there is none."""
    if isinstance(content, str):
        return content
    if depth >= _DEEPEST:
        return ""
    if isinstance(content, list):
        return "; ".join(filter(None, (_sentence(item, depth + 1) for item in content)))
    if not isinstance(content, dict):
        return ""
    for key in ("error", "message", "detail", "msg"):
        found = _sentence(content.get(key), depth + 1)
        if found:
            return found
    return ""
