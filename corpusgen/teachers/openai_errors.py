"""Turn what an OpenAI-compatible endpoint says in place of an answer into a typed error.

This is the only place that knows the protocol's error bodies and codes. It refuses to decide what
follows: whether an attempt is repeated stands on the error's class. Sources: OpenAI's and Azure's
error codes, and the bodies that vLLM, SGLang, llama.cpp, DeepSeek and OpenRouter really send.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from corpusgen.errors import (
    AnswerTimeout,
    AuthenticationFailed,
    ContentRefused,
    ContextOverflow,
    ModelNotFound,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Rejected,
    ServerFault,
    TeacherError,
)

MESSAGE_LENGTH = 300
"""Characters of a server's message that an error keeps."""

_QUOTA_CODES = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "insufficient_balance",
}
_OVERFLOW_CODES = {"context_length_exceeded", "exceed_context_size_error"}
_OVERFLOW_PHRASES = (
    "context length",
    "context window",
    "context size",
    "maximum model length",
    "prompt is too long",
    "input token count",
    "`inputs` tokens + `max_new_tokens` must be",
)
_REFUSAL_CODES = {
    "content_filter",
    "content_policy_violation",
    "responsibleaipolicyviolation",
    "data_inspection_failed",
}
_REFUSAL_PHRASES = ("was flagged", "content management policy", "content policy")
_BY_STATUS: dict[int, type[TeacherError]] = {
    401: AuthenticationFailed,
    402: QuotaExhausted,
    403: AuthenticationFailed,
    404: ModelNotFound,
    407: AuthenticationFailed,
    408: AnswerTimeout,
    409: ServerFault,
    425: ServerFault,
    429: RateLimited,
    503: Overloaded,
    529: Overloaded,
}
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
    line = " ".join(text[: 8 * MESSAGE_LENGTH].split())
    line = "".join(c if c.isprintable() else "�" for c in line)
    return line if len(line) <= MESSAGE_LENGTH else line[: MESSAGE_LENGTH - 1] + "…"


def from_status(
    origin: Origin, status: int, headers: Mapping[str, str], body: bytes
) -> TeacherError:
    """Return the error for an HTTP answer that is not a success."""
    content = _parsed(body)
    said = _message(content) or body[:4096].decode("utf-8", "replace")
    if 300 <= status < 400:
        said = f"it redirects to {headers.get('Location', 'nowhere')}"
    kind = _kind(status, set(_codes(content)), said.lower())
    return kind(
        origin.sentence(f"HTTP {status}", said) + _ADVICE.get(kind, ""),
        http_status=status,
        retry_after_s=retry_after_s(headers, time.time()),
        request_id=request_id(headers),
    )


def from_answer(
    origin: Origin, status: int, headers: Mapping[str, str], error: Any
) -> TeacherError:
    """Return the error for an HTTP success whose body holds an error in place of choices.

    Gateways put the upstream's status into `code`; without one it counts as a fault of the server.
    """
    codes = set(_codes({"error": error}))
    meant = next((int(c) for c in codes if c.isdigit() and 400 <= int(c) < 600), None)
    said = _message({"error": error})
    kind = _kind(meant, codes, said.lower())
    return kind(
        origin.sentence(f"HTTP {status} with an error in its body", said) + _ADVICE.get(kind, ""),
        http_status=status,
        retry_after_s=retry_after_s(headers, time.time()),
        request_id=request_id(headers),
    )


def request_id(headers: Mapping[str, str]) -> str | None:
    """Return the server's id of the request, where it names one."""
    found = headers.get("x-request-id") or headers.get("request-id")
    return None if found is None else shortened(found)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return how many seconds the server asks to wait, null where it does not say.

    Reads `retry-after-ms`, then `Retry-After` as seconds or as an HTTP date (RFC 9110, 10.2.3),
    which is compared with the server's own `Date`, or with `now` where it sends none.
    """
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("Retry-After")
    seconds = _seconds(value)
    if seconds is not None:
        return seconds
    until = _epoch(value)
    if until is None:
        return None
    return max(0.0, until - (_epoch(headers.get("Date")) or now))


def _kind(status: int | None, codes: set[str], said: str) -> type[TeacherError]:
    """Choose the error class; the codes are more exact than the status, which is coarse."""
    if codes & _QUOTA_CODES:
        return QuotaExhausted
    if "model_not_found" in codes:
        return ModelNotFound
    asked_wrong = status is None or status in (400, 413, 422)
    if codes & _OVERFLOW_CODES or (asked_wrong and _any(_OVERFLOW_PHRASES, said)):
        return ContextOverflow
    if codes & _REFUSAL_CODES or ((asked_wrong or status == 403) and _any(_REFUSAL_PHRASES, said)):
        return ContentRefused
    if status is None:
        return ServerFault
    if 300 <= status < 400:
        return ModelNotFound
    return _BY_STATUS.get(status, ServerFault if status >= 500 else Rejected)


def _any(phrases: tuple[str, ...], said: str) -> bool:
    return any(phrase in said for phrase in phrases)


def _parsed(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None


def _codes(content: Any) -> Iterator[str]:
    """Yield every machine-readable code of an error body, in lower case.

    They stand under `code` and `type`, at the top, in `error`, or in Azure's `innererror`.
    """
    if not isinstance(content, dict):
        return
    for key in ("code", "type"):
        if isinstance(content.get(key), str | int):
            yield str(content[key]).lower()
    for key in ("error", "innererror"):
        yield from _codes(content.get(key))


def _message(content: Any) -> str:
    """Return the sentence of an error body, empty where there is none."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "; ".join(filter(None, map(_message, content)))
    if not isinstance(content, dict):
        return ""
    for key in ("error", "message", "detail", "msg"):
        found = _message(content.get(key))
        if found:
            return found
    return ""


def _seconds(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _epoch(value: str | None) -> float | None:
    try:
        return parsedate_to_datetime(value or "").timestamp()
    except (ValueError, OverflowError):
        return None
