"""Say how long a teacher needs at its limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from corpusgen.teachers.interface import Endpoint

_DAY_S = 86_400.0


class Load(msgspec.Struct, frozen=True):
    """What a teacher is asked of one prompt set."""

    requests: int
    tokens: int
    """Of prompts and answers."""
    latency_s: float | None
    """Of one request, where earlier answers tell."""


class Wall(msgspec.Struct, frozen=True):
    """A span of time and what sets it."""

    seconds: float | None
    """Null where nothing is known that would set it."""
    limit: str


def wall_time(
    endpoints: Sequence[Endpoint], max_concurrency: int | None, loads: Sequence[Load]
) -> Wall:
    """Return the time that the tightest known limit sets.

    Where the answers' latency or the requests in flight are not known, it is a lower bound, and
    `limit` says so.
    """
    requests, tokens = sum(e.requests for e in loads), sum(e.tokens for e in loads)
    if not requests:
        return Wall(0.0, "nothing is left to ask")
    bounds = [
        _rate(requests, _together(endpoints, lambda e: e.rpm), "requests a minute"),
        _rate(tokens, _together(endpoints, lambda e: e.tpm), "tokens a minute"),
        _daily(requests, _together(endpoints, lambda e: e.rpd), "requests a day"),
        _daily(tokens, _together(endpoints, lambda e: e.tpd), "tokens a day"),
    ]
    answering = _in_flight(endpoints, max_concurrency, loads)
    known = [bound for bound in (*bounds, answering) if bound is not None]
    if not known:
        return Wall(None, "not known: no limit is set, or no answer tells how long one takes")
    slowest = max(known, key=lambda wall: wall.seconds or 0.0)
    if answering is None:
        return Wall(
            slowest.seconds, f"at least: {slowest.limit}; how fast answers come is not known"
        )
    return slowest


def _together(endpoints: Sequence[Endpoint], limit: Callable[[Endpoint], int | None]) -> int | None:
    """Return what all endpoints allow; null where one has no such limit."""
    limits = [limit(endpoint) for endpoint in endpoints]
    known = [each for each in limits if each is not None]
    return sum(known) if known and len(known) == len(limits) else None


def _rate(amount: int, a_minute: int | None, name: str) -> Wall | None:
    if a_minute is None:
        return None
    return Wall(60.0 * amount / a_minute, f"{a_minute:,} {name}")


def _daily(amount: int, a_day: int | None, name: str) -> Wall | None:
    """Return the wait for further days: what a day allows may be spent at once."""
    if a_day is None:
        return None
    return Wall(_DAY_S * max((amount - 1) // a_day, 0), f"{a_day:,} {name}")


def _in_flight(
    endpoints: Sequence[Endpoint], max_concurrency: int | None, loads: Sequence[Load]
) -> Wall | None:
    places = _together(endpoints, lambda e: e.max_concurrency)
    if places is None or max_concurrency is not None:
        places = min(places or max_concurrency or 0, max_concurrency or places or 0)
    spent = [load.requests * load.latency_s for load in loads if load.latency_s is not None]
    if not places or len(spent) < len(loads):
        return None
    requests = sum(load.requests for load in loads)
    return Wall(
        sum(spent) / min(places, requests),
        f"{places:,} in flight at {sum(spent) / requests:.3g} s each",
    )
