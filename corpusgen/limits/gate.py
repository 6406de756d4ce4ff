"""Hand out places at a teacher's endpoints to requests that wait in line.

A place that comes free goes straight to the request that waited longest; nobody else wakes. Where
routing is sticky, each request has a favourite among the endpoints by rendezvous hashing (Thaler
and Ravishankar, 1998) of how its prompt begins, and waits for it a little while others pass.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from corpusgen.errors import ExitCode, RunStopped
from corpusgen.limits.health import LONGEST_COOL_OFF_S
from corpusgen.limits.place import Fate, Need, Permit, Place
from corpusgen.teachers.interface import Endpoint

_LOOK_S = 0.5
"""How often closed endpoints are looked at again, whatever they say."""
_STICKY_LOOK = 256
"""Requests in line among which one that prefers a free endpoint is looked for."""


class GateSettings(msgspec.Struct, frozen=True):
    """How a gate behaves."""

    max_concurrency: int | None = None
    """Requests in flight over all endpoints."""
    longest_pause_s: float = 3600.0
    outage_s: float = 900.0
    """Stop the run where no endpoint gave a sign of life for so long."""
    first_tries: int = 6
    """Stop the run where none was ever there after so many tries of each."""
    first_cool_off_s: float = 1.0
    longest_cool_off_s: float = LONGEST_COOL_OFF_S
    sticky: bool = False


_DEFAULTS = GateSettings()


class _Waiter:
    __slots__ = ("future", "need", "ranking")

    def __init__(
        self, need: Need, future: asyncio.Future[Permit], ranking: Sequence[Place]
    ) -> None:
        self.need = need
        self.future = future
        self.ranking = ranking
        """The endpoints as its prompt prefers them, where routing is sticky."""


class Gate:
    """The line before one teacher's endpoints."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        clock: Callable[[], float],
        settings: GateSettings = _DEFAULTS,
        earlier: Mapping[str, list[tuple[float, int]]] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """`earlier` holds the last day's (seconds ago, tokens) by endpoint; `tell` gets news."""
        self._clock = clock
        self._settings = settings
        self._tell = tell or (lambda _: None)
        self._places = [
            Place(
                endpoint,
                clock,
                settings.max_concurrency,
                settings.first_cool_off_s,
                settings.longest_cool_off_s,
                (earlier or {}).get(endpoint.name, ()),
            )
            for endpoint in endpoints
        ]
        self._waiting: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._served: asyncio.Future[None] | None = None
        self.in_flight = 0
        """Requests under way now."""
        self.counts_tokens = any(place.counts_tokens for place in self._places)
        """Whether `Need.tokens` matters to any endpoint."""

    @property
    def concurrency(self) -> int:
        """Requests that may be in flight over all endpoints as things stand."""
        room = sum(place.concurrency.limit for place in self._places)
        return min(room, self._settings.max_concurrency or room)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._waiting)

    @property
    def wishes(self) -> int:
        """How many requests should be in line, so that none that comes free stays so."""
        return max(self.concurrency // 8, 2) + (_STICKY_LOOK if self._settings.sticky else 0)

    async def enter(self, need: Need) -> Permit:
        """Wait for a place and take it; `leave` or `give_back` must follow.

        Raises `RunStopped` where every endpoint is closed for longer than `longest_pause_s` (exit
        code 4), or none has given a sign of life for `outage_s`, or ever (exit code 1).
        """
        ranking = self._ranking(need)
        if not self._waiting:
            place = self._place_for(need, ranking)
            if place is not None:
                return self._take(place, need)
        waiter = _Waiter(need, asyncio.get_running_loop().create_future(), ranking)
        self._waiting.append(waiter)
        if self._settings.sticky:
            self._serve()
        elif len(self._waiting) == 1:  # further back nobody can go before the first
            self._come_back()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            future = waiter.future
            if future.done() and not future.cancelled() and future.exception() is None:
                self.give_back(future.result())
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def leave(self, permit: Permit, fate: Fate) -> None:
        """Give a place back and say what became of the request."""
        self.in_flight -= 1
        news = permit.place.end(permit, fate)
        if news is not None:
            self._tell(news)
        if self._waiting:
            self._serve()

    def give_back(self, permit: Permit) -> None:
        """Give a place back that was not used."""
        self.in_flight -= 1
        permit.place.give_back(permit)
        self._serve()

    async def wait_for_demand(self) -> int:
        """Return how many more requests should be in line, once there is room for some.

        Once there were enough, it returns when half of them are gone, so that many are begun at
        a time.
        """
        await asyncio.sleep(0)  # those that were begun just now come in line first
        while len(self._waiting) >= self.wishes:
            if self._served is None:
                self._served = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._served)
        return self.wishes - len(self._waiting)

    def close(self) -> None:
        """Forget the timer; nobody may be in line."""
        if self._timer is not None:
            self._timer.cancel()

    def _take(self, place: Place, need: Need) -> Permit:
        self.in_flight += 1
        return place.take(need)

    def _serve(self) -> None:
        """Give free places to those who wait, and come back when time opens the next."""
        while self._waiting:
            found = self._next()
            if found is None:
                break
            waiter, place = found
            self._waiting.remove(waiter)
            if not waiter.future.done():
                waiter.future.set_result(self._take(place, waiter.need))
        if self._served is not None and len(self._waiting) <= self.wishes // 2:
            self._wake_feeder()
        if self._waiting:
            self._come_back()

    def _wake_feeder(self) -> None:
        if self._served is not None:
            self._served.set_result(None)
            self._served = None

    def _next(self) -> tuple[_Waiter, Place] | None:
        """Return who goes next and where to; null where nobody can."""
        first = self._waiting[0]
        if self._settings.sticky and len(self._places) > 1:
            for waiter in self._with_free_favourites():
                place = _first_healthy(waiter.ranking)
                if place.has_room(waiter.need):
                    return waiter, place
        place_or_none = self._place_for(first.need, first.ranking)
        return None if place_or_none is None else (first, place_or_none)

    @property
    def _has_room(self) -> bool:
        most = self._settings.max_concurrency
        return most is None or self.in_flight < most

    def _place_for(self, need: Need, ranking: Sequence[Place]) -> Place | None:
        """Return the least loaded endpoint that may take a request now."""
        if not self._has_room:
            return None
        if len(self._places) == 1:
            place = self._places[0]
            return place if place.has_room(need) else None
        open_places = [place for place in self._places if place.has_room(need)]
        others = [place for place in open_places if place.endpoint.name != need.avoid]
        if ranking and others and (favourite := _first_healthy(ranking)) in others:
            return favourite
        return min(others or open_places, key=lambda place: place.load, default=None)

    def _with_free_favourites(self) -> Iterator[_Waiter]:
        """Yield those near the front of the line whose favourite endpoint has a place free."""
        if not self._has_room:
            return
        free = {place for place in self._places if place.in_flight < place.room}
        for waiter, _ in zip(self._waiting, range(_STICKY_LOOK), strict=False):
            if free and waiter.ranking and _first_healthy(waiter.ranking) in free:
                yield waiter

    def _ranking(self, need: Need) -> Sequence[Place]:
        prefix = need.prefix
        if prefix is None or not self._settings.sticky:
            return ()
        return sorted(self._places, key=lambda place: -_score(place.endpoint, prefix))

    def _come_back(self) -> None:
        """Set a timer for the first endpoint that time opens; stop a run that waits in vain."""
        first = self._waiting[0].need
        waits = [place.opens_in(first) for place in self._places]
        known = [wait for wait in waits if wait]
        if self.in_flight == 0:
            self._give_up_where_hopeless(first)
        if known or (self.in_flight == 0 and self._waiting):
            self._wake_in(min(*known, _LOOK_S, _LOOK_S))

    def _wake_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = loop.call_later(seconds, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._serve()

    def _give_up_where_hopeless(self, need: Need) -> None:
        """Refuse all in line where no endpoint will take any for long; nothing is in flight."""
        left = [place for place in self._places if place.used_up is None]
        out = [place for place in left if place.health.ejected]
        if not left:
            reason = self._places[-1].used_up
            self._refuse_all(f"every endpoint's quota is used up: {reason}", ExitCode.BUDGET)
            return
        pauses = [place.opens_in(need) or 0.0 for place in left if place not in out]
        if min(pauses, default=math.inf) <= self._settings.longest_pause_s:
            return
        if out and not self._are_out(out):
            return
        if not pauses:
            self._refuse_all(
                f"no endpoint of the teacher answers; {out[0].endpoint.name} said last: "
                f"{out[0].health.reason} What was answered is committed; run the same command "
                "again once it is there",
                ExitCode.ERROR,
            )
            return
        names = ", ".join(place.endpoint.name for place in self._places)
        self._refuse_all(
            f"the limits of {names} are used up for the next {min(pauses) / 3600:.1f} hours, "
            "longer than generate.longest_pause_s. What was answered is committed; run the same "
            "command again then",
            ExitCode.BUDGET,
        )

    def _are_out(self, places: Sequence[Place]) -> bool:
        """Tell whether none of some ejected endpoints was ever there, or none has been for long."""
        healths = [place.health for place in places]
        if all(health.was_never_there for health in healths):
            tries = min(health.tries_before_first_sign for health in healths)
            return tries >= self._settings.first_tries
        silent = min(self._clock() - health.answered_at for health in healths)
        return silent > self._settings.outage_s

    def _refuse_all(self, message: str, code: ExitCode) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.future.done():
                waiter.future.set_exception(RunStopped(message, code))
        self._wake_feeder()


def _first_healthy(ranking: Sequence[Place]) -> Place:
    return next((place for place in ranking if not place.health.ejected), ranking[0])


def _score(endpoint: Endpoint, prefix: bytes) -> float:
    digest = hashlib.blake2b(prefix, key=endpoint.name.encode()[:64], digest_size=8).digest()
    share = (int.from_bytes(digest) + 1) / (2**64 + 1)
    return -endpoint.weight / math.log(share)
