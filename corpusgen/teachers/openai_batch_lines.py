"""Write the lines of a file of requests, and read those of the files of results.

The answer inside a line is decoded as one that came alone; this module only takes the line apart.
"""

from __future__ import annotations

from typing import Any

import msgspec

from corpusgen.errors import NotRun, TeacherError, TornAnswer, Withdrawn
from corpusgen.teachers.openai_errors import Origin, from_answer, from_status
from corpusgen.teachers.openai_wire import decode_reply
from corpusgen.types import Reply, Request

_ENDED: dict[str, type[NotRun]] = {
    "batch_expired": NotRun,
    "batch_cancelled": Withdrawn,
    "batch_canceled": Withdrawn,
}


class _Response(msgspec.Struct):
    status_code: int | None = None
    request_id: str | None = None
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: Any = None


class _Identity(msgspec.Struct):
    custom_id: str


_LINE = msgspec.json.Decoder(_Line)
_IDENTITY = msgspec.json.Decoder(_Identity)


def encode_line(item_id: str, path: str, body: bytes) -> bytes:
    """Return one request as a line, line break included."""
    line = {"custom_id": item_id, "method": "POST", "url": path, "body": msgspec.Raw(body)}
    return msgspec.json.encode(line) + b"\n"


def identity_of(line: bytes) -> str | None:
    """Return whose result a line is; null where it is torn or none."""
    try:
        return _IDENTITY.decode(line).custom_id
    except (ValueError, RecursionError):
        return None


def decode_line(line: bytes, request: Request, origin: Origin) -> Reply:
    """Return the reply that a line holds; raise the `TeacherError` that it holds instead."""
    try:
        found = _LINE.decode(line)
    except (ValueError, RecursionError) as error:
        raise TornAnswer(origin.sentence("a batch's line is torn", str(error))) from None
    response = found.response
    if response is None or response.status_code is None:
        raise _unanswered(found.error, origin)
    headers = {} if response.request_id is None else {"x-request-id": response.request_id}
    body = bytes(response.body)
    if not 200 <= response.status_code < 300:
        raise from_status(origin, response.status_code, headers, body)
    return decode_reply(body, request, origin, response.status_code, headers)


def _unanswered(error: Any, origin: Origin) -> TeacherError:
    """Return the error for a line without a response."""
    code = error.get("code") if isinstance(error, dict) else None
    ended = _ENDED.get(str(code).lower())
    if ended is not None:
        return ended(origin.sentence("the batch ended before this request was run", str(code)))
    if not error:
        return TornAnswer(origin.sentence("a batch's line holds neither a response nor an error"))
    found = from_answer(origin, 200, {}, error)
    found.http_status = None  # there was no HTTP answer
    return found
