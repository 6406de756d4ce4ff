"""Stand between the fan-out and the endpoints: where a request may go now, and at what cost.

`Gate` knows each endpoint's concurrency and pauses; `Budget` sets money aside before a request is
sent and settles it afterwards. Both only wait and count; neither sends, retries or writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from corpusgen.errors import ExitCode, RunStopped
from corpusgen.identity import canonical
from corpusgen.money import Tariff, dollars
from corpusgen.teachers.interface import Endpoint
from corpusgen.types import Message, Request, Sampling

DEFAULT_CONCURRENCY = 64
"""Requests in flight at an endpoint that states no limit."""


LONGEST_PAUSE_S = 30.0
"""Before an endpoint that could not be reached is tried again."""


class _Place:
    """One endpoint's state."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.limit = endpoint.max_concurrency or DEFAULT_CONCURRENCY
        self.in_flight = 0
        self.paused_until = 0.0
        self.failures = 0
        """Connections that failed since the last one that did not."""


class Gate:
    """Hand out places at endpoints: the least loaded one that has room and is not paused."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        clock: Callable[[], float],
        max_concurrency: int | None = None,
    ) -> None:
        self._places = [_Place(endpoint) for endpoint in endpoints]
        self._clock = clock
        self._changed = asyncio.Condition()
        room = sum(place.limit for place in self._places)
        self.concurrency = min(room, max_concurrency or room)
        """Requests in flight over all endpoints."""

    @property
    def in_flight(self) -> int:
        """Requests under way now."""
        return sum(place.in_flight for place in self._places)

    async def enter(self) -> Endpoint:
        """Wait for a place and take it; `leave` gives it back."""
        while True:
            now = self._clock()
            open_places = [
                place
                for place in self._places
                if place.in_flight < place.limit and place.paused_until <= now
            ]
            if open_places and self.in_flight < self.concurrency:
                place = min(open_places, key=lambda p: p.in_flight / p.limit)
                place.in_flight += 1
                return place.endpoint
            await self._wait(now)

    async def leave(
        self, endpoint: Endpoint, pause_s: float | None = None, *, connected: bool = True
    ) -> None:
        """Give a place back; `pause_s` keeps the endpoint closed for so long (`Retry-After`).

        An endpoint that cannot be reached fails at once, and would be the least loaded one for
        ever: where there are others it is left alone for a while, longer each time.
        """
        place = next(place for place in self._places if place.endpoint == endpoint)
        place.in_flight -= 1
        place.failures = 0 if connected else place.failures + 1
        if place.failures and len(self._places) > 1:
            pause_s = max(pause_s or 0.0, min(2.0 ** (place.failures - 1), LONGEST_PAUSE_S))
        if pause_s:
            place.paused_until = max(place.paused_until, self._clock() + pause_s)
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self, now: float) -> None:
        pauses = [place.paused_until - now for place in self._places if place.paused_until > now]
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait(), min(pauses, default=None))
            except TimeoutError:
                return


class Budget:
    """Keep what is charged and what is set aside together under a cap, in picodollars."""

    def __init__(self, cap_picousd: int | None, charged_picousd: int) -> None:
        """`charged_picousd` is what earlier runs of this corpus are charged."""
        self._cap = cap_picousd
        self.charged = charged_picousd
        self.reserved = 0
        self._changed = asyncio.Condition()

    async def reserve(self, amount: int | None) -> None:
        """Set an amount aside before sending; wait while other requests may still free some.

        Raises `RunStopped` (exit code 4) when nothing is in flight and the amount does not fit.
        """
        if self._cap is None:
            self.reserved += amount or 0
            return
        if amount is None:
            raise RunStopped(
                "a sample that was planned under an older configuration has no max_tokens or no "
                "known price, so no budget can be kept; set teacher.price, or leave "
                "generate.budget_usd out for this run",
                ExitCode.ERROR,
            )
        async with self._changed:
            while self.charged + self.reserved + amount > self._cap:
                if self.reserved == 0:
                    raise RunStopped(
                        f"the budget of ${dollars(self._cap)} is reached: ${dollars(self.charged)} "
                        f"is charged and the next request may cost ${dollars(amount)}. Raise "
                        "generate.budget_usd and run the command again to go on",
                        ExitCode.BUDGET,
                    )
                await self._changed.wait()
            self.reserved += amount

    async def settle(self, amount: int | None, cost: int | None, *, may_be_billed: bool) -> None:
        """Replace a reservation by what the request cost.

        An unknown cost (null) is charged as reserved where the provider may bill it. Raises
        `RunStopped` when a cost exceeds its reservation under a cap: the price is wrong.
        """
        reserved = amount or 0
        self.reserved -= reserved
        self.charged += cost if cost is not None else (reserved if may_be_billed else 0)
        if self._cap is None:
            return
        async with self._changed:
            self._changed.notify_all()
        if cost is not None and cost > reserved:
            raise RunStopped(
                f"a request cost ${dollars(cost)}, more than the ${dollars(reserved)} that its "
                "worst case allows: max_tokens does not hold at this endpoint. The run stops "
                "before the budget is overshot",
                ExitCode.ERROR,
            )


def worst_case_tokens(messages: Sequence[Message], *extras: object) -> int:
    """Return more prompt tokens than any tokenizer makes: the UTF-8 bytes and 64 a message.

    `extras` are what else providers put into the prompt: the tools, the response format.
    """
    extra = sum(len(canonical(value)) for value in extras if value)
    return extra + sum(len(canonical(message)) + 64 for message in messages)


def worst_case(request: Request, tariff: Tariff | None) -> int | None:
    """Return the most that a request can cost, null where price or `max_tokens` is unknown."""
    if tariff is None:
        return None
    if tariff.free:
        return 0
    longest = _most_tokens(request.sampling)
    if longest is None:
        return None
    prompt = worst_case_tokens(request.messages, request.tools, request.response_format)
    rate = max(tariff.input_picousd, tariff.cached_input_picousd)
    return prompt * rate + request.draws * longest * tariff.output_picousd


def _most_tokens(sampling: Sampling) -> int | None:
    """Return the largest answer that any of the request's limits allows."""
    extra = sampling.extra_body or {}
    stated = (sampling.max_tokens, extra.get("max_tokens"), extra.get("max_completion_tokens"))
    return max((limit for limit in stated if isinstance(limit, int)), default=None)
