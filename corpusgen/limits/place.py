"""One endpoint with all that says whether a request may go there now."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from corpusgen.limits.bucket import Bucket, DailyCap, Pace
from corpusgen.limits.concurrency import Concurrency
from corpusgen.limits.health import Health
from corpusgen.teachers.interface import Endpoint
from corpusgen.types import RateHint

_PROBE_S = 3.0
"""An endpoint that has not refused its first request after so long gets more."""
_DRAIN_S = 0.5
_HOLD_S = 1.0
_IN_A_ROW = 5
_WORTH_TELLING_S = 10.0
_SHORT_PAUSE_S = 1.0
_WALL = 3
"""Refusals in a row, the last one with nothing else in flight, that are not for the load."""
_TOKEN_MARGIN = 0.01
"""Of a TPM limit: lengths vary, and a server counts them at other moments than we do."""
_LONGEST_HINT_S = 60.0

Kind = Literal["answered", "refused", "limited", "broken", "unreachable", "used_up", "cancelled"]


class Need(msgspec.Struct, frozen=True):
    """What a request asks of an endpoint."""

    sample: str
    """Which sample it is for; a sick endpoint is known by failures of several."""
    tokens: int = 0
    """Expected, prompt and answers together."""
    most_tokens: int = 0
    """The prompt's expected tokens and all that the answers may have."""
    avoid: str | None = None
    """The endpoint that just failed it: another is taken where there is one."""
    prefix: bytes | None = None
    """How its prompt begins, for sticky routing."""


class Permit:
    """A place at an endpoint, held by one request."""

    __slots__ = ("endpoint", "epoch", "place", "probe", "sample", "sent_at", "tokens")

    def __init__(self, place: Place, sample: str, tokens: int, now: float) -> None:
        self.place = place
        self.endpoint = place.endpoint
        self.sample = sample
        self.tokens = tokens
        """What was taken of the endpoint's token limits."""
        self.sent_at = now
        self.probe = place.health.sent()
        self.epoch = place.concurrency.epoch


class Fate(msgspec.Struct, frozen=True):
    """What became of a request, as far as limits care."""

    kind: Kind
    """`refused`: the endpoint lives and will not answer this (400); `limited`: too many (429, 503);
    `broken`: it failed; `unreachable`: no connection; `used_up`: its account has no quota left."""
    tokens: int | None = None
    """Used by prompt and answers together; null: unknown."""
    output_tokens: int = 0
    pause_s: float | None = None
    """How long the endpoint asked to be left alone."""
    rate: RateHint | None = None
    reason: str = ""


class Place:
    """One endpoint's state."""

    def __init__(
        self,
        endpoint: Endpoint,
        clock: Callable[[], float],
        ceiling: int | None,
        first_cool_off_s: float,
        longest_cool_off_s: float,
        earlier: Iterable[tuple[float, int]] = (),
    ) -> None:
        """`earlier` holds (seconds ago, tokens) of the last day's requests, for daily caps."""
        self.endpoint = endpoint
        self._clock = clock
        self.concurrency = Concurrency(endpoint.max_concurrency, ceiling)
        self.health = Health(clock, first_cool_off_s, longest_cool_off_s)
        self.in_flight = 0
        self.paused_until = 0.0
        self._proven = not endpoint.probed
        self._first_sent: float | None = None
        self._requests = None if endpoint.rpm is None else Bucket(endpoint.rpm, clock)
        self._tokens = None if endpoint.tpm is None else Bucket(endpoint.tpm, clock, _TOKEN_MARGIN)
        past = list(earlier)
        self._daily_requests = (
            None
            if endpoint.rpd is None
            else DailyCap(endpoint.rpd, clock, ((ago, 1.0) for ago, _ in past))
        )
        self._daily_tokens = (
            None
            if endpoint.tpd is None
            else DailyCap(endpoint.tpd, clock, ((ago, float(tokens)) for ago, tokens in past))
        )
        self._pace = None if endpoint.rpm is not None else Pace(clock)
        self._counters: list[tuple[Bucket | DailyCap, int | None]] = [
            (counter, units)
            for counter, units in (
                (self._requests, 1),
                (self._tokens, None),
                (self._daily_requests, 1),
                (self._daily_tokens, None),
            )
            if counter is not None
        ]
        """Each with what a request takes of it; null: its tokens."""
        self.used_up: str | None = None
        """Why it gets no more requests in this run."""
        self._held: deque[float] = deque()
        """Until when places stay taken whose requests were refused."""
        self._refused_in_a_row = 0
        self._short_pauses = 0
        self._told = False
        """Whether its absence was told."""

    @property
    def counts_tokens(self) -> bool:
        """Whether a request's expected tokens matter here."""
        return self._tokens is not None or self._daily_tokens is not None

    @property
    def room(self) -> int:
        """Requests that may be in flight here."""
        return self.concurrency.limit if self._proven or self._probed_long_enough() else 1

    @property
    def load(self) -> float:
        """How much of what it takes is taken, by its weight."""
        return (self.in_flight + 1) / (self.room * self.endpoint.weight)

    def has_room(self, need: Need) -> bool:
        """Tell whether a request may go here now."""
        if not self.health.ejected and self.in_flight + self._held_now() >= self.room:
            return False
        return self.opens_in(need) == 0.0

    def opens_in(self, need: Need) -> float | None:
        """Return after how many seconds time lets a request through.

        0: now, but for those in flight; null: when the one comes back that tries a sick endpoint.
        """
        wait = 0.0
        if self.used_up is not None:
            return None
        if self.health.ejected:
            healthy = self.health.opens_in()
            if healthy is None:
                return None
            wait = healthy
        if self.paused_until:
            wait = max(wait, self.paused_until - self._clock())
        for counter, units in self._counters:
            wait = max(wait, counter.opens_in(self._charge(need) if units is None else units))
        if self._pace is not None:
            wait = max(wait, self._pace.opens_in())
        if self._held or not self._proven:
            wait = max(wait, self._lets_more_in_s())
        return wait

    def _probed_long_enough(self) -> bool:
        return self._first_sent is not None and self._clock() - self._first_sent >= _PROBE_S

    def _lets_more_in_s(self) -> float:
        """Return after how many seconds more may be in flight than now, where time decides it."""
        if not self._proven and self._first_sent is not None and self.in_flight:
            return max(self._first_sent + _PROBE_S - self._clock(), 0.0)
        if self._held and self.in_flight + self._held_now() >= self.room > self.in_flight:
            return max(self._held[0] - self._clock(), 0.0)
        return 0.0

    def take(self, need: Need) -> Permit:
        """Send a request here."""
        permit = Permit(self, need.sample, self._charge(need), self._clock())
        self.in_flight += 1
        self.concurrency.sent(self.in_flight)
        if self._first_sent is None:
            self._first_sent = self._clock()
        if self._pace is not None:
            self._pace.sent()
        self._spend(1, permit.tokens)
        return permit

    def give_back(self, permit: Permit) -> None:
        """Take back a permit that was not used."""
        self.in_flight -= 1
        self.health.given_up(probe=permit.probe)
        if self._pace is not None:
            self._pace.forget(permit.sent_at)
        self._spend(-1, -permit.tokens)

    def end(self, permit: Permit, fate: Fate) -> str | None:
        """Take in what became of a request; return what is worth telling, if anything is."""
        self.in_flight -= 1
        if fate.kind in ("limited", "unreachable"):
            self._spend(0, -permit.tokens)
        elif fate.tokens is not None and self.endpoint.tpm_counts == "used":
            self._spend(0, fate.tokens - permit.tokens)
        told = self._judge(permit, fate)
        if fate.pause_s is not None:
            told = told or self._pause(fate.pause_s)
        if fate.rate is not None:
            self._believe(fate.rate)
        return told

    def _held_now(self) -> int:
        """Return how many places stay taken although nothing is in flight there."""
        while self._held and self._held[0] <= self._clock():
            self._held.popleft()
        return len(self._held)

    def _pause(self, seconds: float) -> str | None:
        """Send nothing for as long as the endpoint asked; tell it where that is long."""
        now = self._clock()
        if seconds < _SHORT_PAUSE_S:  # "at once" is no answer to the second refusal in a row
            self._short_pauses += 1
            seconds = max(seconds, min(0.05 * 2.0**self._short_pauses, _SHORT_PAUSE_S))
        news = seconds >= _WORTH_TELLING_S and self.paused_until <= now
        self.paused_until = max(self.paused_until, now + seconds)
        if not news:
            return None
        return f"endpoint {self.endpoint.name} asked for a pause of {seconds:.0f} s"

    def _charge(self, need: Need) -> int:
        """Return how many tokens the endpoint counts for a request when it arrives."""
        return need.most_tokens if self.endpoint.tpm_counts == "max_tokens" else need.tokens

    def _judge(self, permit: Permit, fate: Fate) -> str | None:
        if fate.kind == "cancelled":
            self.health.given_up(probe=permit.probe)
            return None
        if fate.kind == "used_up":
            self.used_up = fate.reason
            return f"endpoint {self.endpoint.name} is used no more in this run: {fate.reason}"
        if fate.kind == "limited":
            self._proven = True
            self.concurrency.refused(permit.epoch, self.in_flight)
            if fate.pause_s is None:
                return self._slow_down(permit, fate)
        if fate.kind in ("broken", "unreachable"):
            return self._failed(permit, fate)
        if fate.kind == "answered":
            self._refused_in_a_row = self._short_pauses = 0
            if self._pace is not None:
                self._pace.admitted()
            latency = self._clock() - permit.sent_at
            self.concurrency.answered(permit.epoch, fate.output_tokens, latency)
        self._proven = True
        if self.health.alive(probe=permit.probe):
            self.concurrency.restart()
            if self._told:
                self._told = False
                return f"endpoint {self.endpoint.name} answers again"
        return None

    def _failed(self, permit: Permit, fate: Fate) -> str | None:
        ejected = self.health.failed(
            permit.sample,
            fate.reason,
            probe=permit.probe,
            at_once=fate.kind == "unreachable",
        )
        if not ejected:
            return None
        self._told = True
        return f"endpoint {self.endpoint.name} is left alone for a while: {fate.reason}"

    def _slow_down(self, permit: Permit, fate: Fate) -> str | None:
        """Send less for a while: the endpoint refused, and did not say when to come back.

        The place stays taken for a moment, so that refusals are not met with more requests.
        """
        self._held.append(self._clock() + _HOLD_S)
        for bucket in (self._requests, self._tokens):
            if bucket is not None:
                bucket.drain(_DRAIN_S)
        self._refused_in_a_row += 1
        if self._pace is not None:
            walled = self.in_flight == 0 and self._refused_in_a_row >= _WALL
            self._pace.forget(permit.sent_at)
            if self._pace.refused(alone=walled):
                self.concurrency.acquit()
        closed = self._refused_in_a_row >= max(self.in_flight, _IN_A_ROW)
        if not self.health.refused(fate.reason, probe=permit.probe, closed=closed):
            return None
        self._told = True
        return f"endpoint {self.endpoint.name} refuses every request for now: {fate.reason}"

    def _believe(self, rate: RateHint) -> None:
        """Keep to what the endpoint says that it has left."""
        left = rate.requests_remaining
        if left is not None:
            if self._requests is not None:
                self._requests.lower(left)
            elif left < 1:
                self._wait_for(rate.requests_reset_s)
        left = rate.tokens_remaining
        if left is not None:
            if self._tokens is not None:
                self._tokens.lower(left)
            elif left < 1:
                self._wait_for(rate.tokens_reset_s)

    def _wait_for(self, reset_s: float | None) -> None:
        wait = min(reset_s if reset_s is not None else 1.0, _LONGEST_HINT_S)
        self.paused_until = max(self.paused_until, self._clock() + wait)

    def _spend(self, requests: int, tokens: int) -> None:
        for counter, units in self._counters:
            spent = tokens if units is None else requests
            if spent:
                counter.take(spent)
