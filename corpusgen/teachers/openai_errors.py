"""Turn what an OpenAI-compatible endpoint says in place of an answer into a typed error.

This is the only place that makes these errors. It refuses to decide what follows: which class an
error has is `openai_kinds`' table, and whether an attempt is repeated stands on the class.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from corpusgen.errors import (
    AuthenticationFailed,
    ModelNotFound,
    QuotaExhausted,
    TeacherError,
)
from corpusgen.teachers.openai_error_body import ErrorBody, read_content, read_error
from corpusgen.teachers.openai_kinds import kind_of
from corpusgen.teachers.openai_rate import (
    grants_nothing,
    rate_hint,
    retry_after_s,
    wait_in_sentence,
    window_wait_s,
)

MESSAGE_LENGTH = 300
"""Characters of a server's message that an error keeps."""

_ADVICE: dict[type[TeacherError], str] = {
    AuthenticationFailed: " Check the endpoint's api_key_env and headers.",
    ModelNotFound: " Check the teacher's model and the endpoint's base_url.",
    QuotaExhausted: " Top up the account, then run the same command again.",
}


class Origin:
    """Who sent an error: the endpoint's name, and the secrets that its messages must not repeat."""

    __slots__ = ("_secrets", "name")

    def __init__(self, name: str, secrets: tuple[str, ...] = ()) -> None:
        self.name = name
        self._secrets = secrets

    def __repr__(self) -> str:
        return f"Origin({self.name!r})"

    def sentence(self, what: str, said: str = "") -> str:
        """Return one line that names the endpoint, what happened and what the server said."""
        for secret in self._secrets:
            said = said.replace(secret, "[secret]")
        said = shortened(said).rstrip(". ")
        return f"endpoint {self.name}: {what}{': ' if said else ''}{said}."


def shortened(text: str) -> str:
    """Return a text as one printable line of at most `MESSAGE_LENGTH` characters."""
    if len(text) <= MESSAGE_LENGTH and text.isprintable() and " " not in text:
        return text
    line = " ".join(text[: 8 * MESSAGE_LENGTH].split())
    line = "".join(c if c.isprintable() else "�" for c in line)
    return line if len(line) <= MESSAGE_LENGTH else line[: MESSAGE_LENGTH - 1] + "…"


def from_status(
    origin: Origin, status: int, headers: Mapping[str, str], body: bytes
) -> TeacherError:
    """Return the error for an HTTP answer that is not a success."""
    found = read_error(body)
    said = found.said
    if 300 <= status < 400:
        said = f"it redirects to {headers.get('Location', 'nowhere')}"
    kind = kind_of(status, found, no_allowance=grants_nothing(headers))
    return _error(kind, origin.sentence(f"HTTP {status}", said), status, headers, found)


def from_answer(
    origin: Origin, status: int, headers: Mapping[str, str], error: Any
) -> TeacherError:
    """Return the error for an HTTP success whose body holds an error in place of choices.

    Gateways put the upstream's status into `code`; without one it counts as a fault of the server.
    """
    found = read_content({"error": error})
    meant = next((int(c) for c in found.codes if _is_status(c)), None)
    what = f"HTTP {status} with an error in its body"
    return _error(kind_of(meant, found), origin.sentence(what, found.said), status, headers, found)


def request_id(headers: Mapping[str, str]) -> str | None:
    """Return the server's id of the request, where it names one."""
    found = headers.get("x-request-id") or headers.get("request-id")
    return None if found is None else shortened(found)


def _error(
    kind: type[TeacherError],
    sentence: str,
    status: int,
    headers: Mapping[str, str],
    body: ErrorBody,
) -> TeacherError:
    now = time.time()
    return kind(
        sentence + _ADVICE.get(kind, ""),
        http_status=status,
        retry_after_s=_wait_s(kind, headers, body, now),
        request_id=request_id(headers),
        rate=rate_hint(headers, now) or rate_hint(body.headers, now),
    )


def _wait_s(
    kind: type[TeacherError], headers: Mapping[str, str], body: ErrorBody, now: float
) -> float | None:
    """Return the wait that the server asks for: its header's word, else that of its body."""
    asked = retry_after_s(headers, now)
    if asked is not None or kind.retry != "again":
        return asked
    for found in (body.wait_s, wait_in_sentence(body.said), window_wait_s(headers, now)):
        if found is not None:
            return found
    return window_wait_s(body.headers, now)


def _is_status(code: str) -> bool:
    return len(code) == 3 and code.isdecimal() and 400 <= int(code) < 600
