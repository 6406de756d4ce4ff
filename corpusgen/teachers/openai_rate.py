"""Read what an endpoint says of its limits: the rate headers, and how long it asks to wait.

Every provider spells them in its own way, so names are read by their parts: `limit`, `remaining`
or `reset`, of `requests` or `tokens`, over a `minute` or a `day`. A value that cannot be one is
left out; nothing here raises, and nothing here decides whether or when to send.

Sources: the API references of OpenAI, Azure, Anthropic, Groq, Cerebras, Fireworks, Mistral,
Together and OpenRouter; draft-ietf-httpapi-ratelimit-headers-07.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache

import msgspec

from corpusgen.types import RateHint

LONGEST_WAIT_S = 366 * 86_400.0
"""A wait beyond it is taken for it: no sleep may overflow."""

_LARGEST_COUNT = 10**15
_EPOCH_S = 10**9
"""A reset at or above it is a point in time, not a span."""
_EPOCH_MS = 10**12
_LONGEST_VALUE = 64
"""Characters of a header's value that are looked at."""

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_UNIT = r"ms|milli(?:second)?s?|s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:(?:ou)?rs?)?|d(?:ays?)?"
_STEP = re.compile(rf"(\d+(?:\.\d+)?)\s*({_UNIT})(?![a-z])", re.ASCII)
_SPAN = re.compile(rf"(?:\d+(?:\.\d+)?\s*(?:{_UNIT})\s*)+", re.ASCII)
_WAIT_SENTENCE = re.compile(
    r"(?:try again|retry|wait)(?: after| in| for)?:? "
    rf"((?:\d{{1,15}}(?:\.\d{{1,15}})?\s?(?:{_UNIT})(?:,? (?:and )?|(?=\d)|(?![a-z0-9])))+)",
    re.ASCII,
)


class _Name(msgspec.Struct, frozen=True):
    """What a header's name says."""

    field: str
    """`limit`, `remaining` or `reset`."""
    of: str
    """`requests` or `tokens`."""
    group: tuple[str, ...]
    """What else stands in the name, such as `minute`; headers of one limit have the same."""
    long: bool
    """Over an hour or more."""
    windowed: bool
    """Whether the reset is the end of a fixed window, and not the time until all is full again."""


class _Limit(msgspec.Struct):
    """One limit, as its headers tell it; null where they do not."""

    limit: int | None = None
    remaining: int | None = None
    reset: float | None = None
    long: bool = False
    windowed: bool = False

    @property
    def share_left(self) -> float:
        """Return what is left of it, from 0 to 1."""
        if self.remaining is None:
            return 1.0
        return self.remaining / self.limit if self.limit else float(self.remaining > 0)


_LONG = frozenset({"hour", "day", "month", "week", "year"})
_WINDOWS = _LONG | {"minute", "second"}
_FIELDS = frozenset({"limit", "remaining", "reset"})
_TOKENS = frozenset({"token", "tokens", "tokenlimit", "ratelimitbysize"})
_REQUESTS = frozenset({"request", "requests", "req"})
_SCOPES = _WINDOWS | {"input", "output", "prompt", "generated", "project", "usage", "based"}
"""What else may stand in a name; limits of images and the like are none of ours."""
_FAMILIES = frozenset({"ratelimit", "tokenlimit", "ratelimitbysize"})


def rate_hint(headers: Mapping[str, str], now: float) -> RateHint | None:
    """Return what the headers say of the limits; null where they say nothing.

    Of several limits of one kind the scarcest counts: the least left of it. One over an hour or
    more counts only where it is the only one or used up. Which span a limit is for is not always
    said (Groq's `requests` are a day's); `remaining` and `reset` hold for any.
    """
    if not _any_there(headers):
        return None
    limits = _limits(headers, now)
    requests, tokens = _scarcest(limits["requests"]), _scarcest(limits["tokens"])
    hint = RateHint(
        requests_limit=requests.limit or None,
        requests_remaining=requests.remaining,
        requests_reset_s=requests.reset,
        tokens_limit=tokens.limit or None,
        tokens_remaining=tokens.remaining,
        tokens_reset_s=tokens.reset,
    )
    return None if hint == _NOTHING else hint


_NOTHING = RateHint()


def grants_nothing(headers: Mapping[str, str]) -> bool:
    """Tell whether a limit is 0: then waiting never helps, the account has no allowance."""
    if not _any_there(headers):
        return False
    limits = _limits(headers, now=0.0)
    return any(limit.limit == 0 for groups in limits.values() for limit in groups.values())


def window_wait_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return how long until the fixed windows that are used up end; null where none is.

    Only where the headers' style is that of windows: OpenAI's resets say when a limit is full
    again, which is long after the next request fits.
    """
    if not _any_there(headers):
        return None
    waits = [
        limit.reset
        for groups in _limits(headers, now).values()
        for limit in groups.values()
        if limit.windowed and limit.remaining == 0 and limit.reset is not None
    ]
    return max(waits, default=None)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return how many seconds the server asks to wait, null where it does not say.

    Reads `retry-after-ms`, then `Retry-After` as seconds, as a span (`1m30s`) or as an HTTP date
    (RFC 9110, 10.2.3), which is compared with the server's own `Date`, or with `now` where it
    sends none.
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        milliseconds = _number(headers.get(name))
        if milliseconds is not None:
            return min(milliseconds / 1000, LONGEST_WAIT_S)
    value = headers.get("Retry-After")
    if value is None:
        return None
    span = _number(value)
    if span is None:
        span = span_s(value)
    if span is not None:
        return min(span, LONGEST_WAIT_S)
    until = _moment(value)
    if until is None:
        return None
    return min(max(0.0, until - _server_now(headers, now)), LONGEST_WAIT_S)


def wait_in_sentence(said: str) -> float | None:
    """Return the wait that a message asks for, as in "Please try again in 6m0s."."""
    found = _WAIT_SENTENCE.search(said.lower()[:4096])
    return None if found is None else _sum(found[1])


def span_s(text: str) -> float | None:
    """Return a span like `1s`, `6m0s`, `20ms` or `1h2m3.5s` in seconds; null where it is none."""
    text = text.strip().lower()
    if len(text) > _LONGEST_VALUE or not _SPAN.fullmatch(text):
        return None
    return _sum(text)


def _sum(text: str) -> float:
    total = sum(float(count) * _unit_s(unit) for count, unit in _STEP.findall(text))
    return min(total, LONGEST_WAIT_S)


def _unit_s(unit: str) -> float:
    return _UNITS_S["ms" if unit.startswith(("ms", "milli")) else unit[0]]


def _any_there(headers: Mapping[str, str]) -> bool:
    """Tell whether any header names a limit; the only cost where none does."""
    return "imit" in (names := "\n".join(headers)) and bool(_FAMILY.search(names))


_FAMILY = re.compile("rate-?limit|tokenlimit", re.IGNORECASE)


def _limits(headers: Mapping[str, str], now: float) -> dict[str, dict[tuple[str, ...], _Limit]]:
    """Return the limits that the headers tell, by kind and group."""
    found: dict[str, dict[tuple[str, ...], _Limit]] = {"requests": {}, "tokens": {}}
    for header, value in headers.items():
        name = _name(header)
        if name is None or len(value) > _LONGEST_VALUE:
            continue
        limit = found[name.of].get(name.group)
        if limit is None:
            limit = _Limit(long=name.long, windowed=name.windowed)
            found[name.of][name.group] = limit
        if name.field == "limit":
            limit.limit = _count(value)
        elif name.field == "remaining":
            limit.remaining = _count(value)
        else:
            limit.reset = _reset_s(value, headers, now)
    return found


@lru_cache(maxsize=256)
def _name(header: str) -> _Name | None:
    """Read a header's name by its parts; null where it is no limit's."""
    if len(header) > _LONGEST_VALUE:
        return None
    parts = header.lower().replace("rate-limit", "ratelimit").replace("_", "-").split("-")
    parts = [part for part in parts if part not in ("x", "anthropic")]
    if not parts or parts[0] not in _FAMILIES:
        return None
    family, rest = parts[0], parts[1:]
    fields = [part for part in rest if part in _FIELDS]
    if len(fields) != 1:
        return None
    named = set(rest) | {family}
    of = "tokens" if named & _TOKENS else "requests"
    group = tuple(p for p in rest if p not in _FIELDS | _TOKENS | _REQUESTS)
    if not _SCOPES.issuperset(group):
        return None
    if not group and family == "ratelimitbysize":
        group = ("minute",)  # Mistral's reset does not repeat the span of its limit
    styled = bool(named & (_REQUESTS | {"token", "tokens"}))
    return _Name(
        field=fields[0],
        of=of,
        group=group,
        long=not _LONG.isdisjoint(group),
        windowed=not styled or not _WINDOWS.isdisjoint(group),
    )


def _scarcest(groups: dict[tuple[str, ...], _Limit]) -> _Limit:
    limits = list(groups.values())
    if len(limits) < 2:
        return limits[0] if limits else _Limit()
    short = [limit for limit in limits if not limit.long or limit.remaining == 0]
    return min(short or limits, key=lambda limit: limit.share_left)


def _count(value: str) -> int | None:
    """Return a count; of the draft's `100, 100;w=60` the first number."""
    if len(value) < 16 and value.isdecimal():
        return int(value)
    number = _number(value.partition(",")[0].partition(";")[0])
    return int(number) if number is not None and number < _LARGEST_COUNT else None


def _reset_s(value: str, headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds until a reset: a span, a number of seconds, an epoch or a date."""
    number = _number(value.removesuffix("s"))
    if number is None:
        span = span_s(value)
        if span is not None:
            return span
        moment = _moment(value)
    elif number < _EPOCH_S:
        return min(number, LONGEST_WAIT_S)
    else:
        moment = number / 1000 if number >= _EPOCH_MS else number
    if moment is None:
        return None
    return min(max(0.0, moment - _server_now(headers, now)), LONGEST_WAIT_S)


def _server_now(headers: Mapping[str, str], now: float) -> float:
    date = headers.get("Date")
    moment = None if date is None else _moment(date)
    return now if moment is None else moment


def _moment(value: str) -> float | None:
    """Return an HTTP or ISO 8601 date as seconds since the epoch; without a zone it is UTC."""
    value = value.strip()
    if len(value) > _LONGEST_VALUE:
        return None
    try:
        iso = value[:4].isdigit()
        parsed = datetime.fromisoformat(value) if iso else parsedate_to_datetime(value)
        if parsed.tzinfo is None:
            parsed = parsed.replace(tzinfo=UTC)
        return parsed.timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def _number(value: str | None) -> float | None:
    """Return a number that is finite and not negative."""
    if value is None or len(value) > _LONGEST_VALUE:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
