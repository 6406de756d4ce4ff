"""Know how much more may go out at each endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from corpusgen.batching.lane import Out
from corpusgen.teachers.interface import BatchSettings, Endpoint

_MOST_DOUBLINGS = 4


class Room:
    """What each endpoint takes at the same time, as configured and as learned from refusals."""

    def __init__(
        self,
        settings: BatchSettings,
        endpoints: Mapping[str, Endpoint],
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._endpoints = endpoints
        self._clock = clock
        self._ceilings: dict[str, int] = {}
        if settings.enqueued_tokens is not None:
            self._ceilings = dict.fromkeys(endpoints, settings.enqueued_tokens)
        self._closed_until: dict[str, float] = {}
        self._refusals: dict[str, int] = {}

    def roomiest(self, out: Sequence[Out]) -> Endpoint | None:
        """Return the endpoint with the fewest batches that takes one more, null where none does."""
        counts = {name: sum(o.endpoint == name for o in out) for name in self._endpoints}
        open_ones = [
            name
            for name, count in counts.items()
            if count < self._settings.max_batches
            and self._closed_until.get(name, 0.0) <= self._clock()
            and (count == 0 or self._left(name, out) != 0)
        ]
        if not open_ones:
            return None
        return self._endpoints[min(open_ones, key=lambda name: counts[name])]

    def tokens(self, endpoint: str, out: Sequence[Out]) -> int | None:
        """Return how many more prompt tokens an endpoint takes; null: no limit is known."""
        return self._left(endpoint, out)

    def overfull(self, refused: Out, others: Sequence[Out], poll_s: float) -> float:
        """Learn that an endpoint refused a batch beside others; return how long it is left alone.

        What it takes is then less than was tried. Alone, a batch is tried at half its size:
        perhaps other users of the account fill it, so that it is not given up.
        """
        name = refused.endpoint
        beside = sum(o.tokens for o in others if o.endpoint == name)
        tried = beside if beside else refused.tokens // 2
        self._ceilings[name] = max(min(self._ceilings.get(name, tried), tried), 1)
        refusals = self._refusals[name] = self._refusals.get(name, 0) + 1
        wait_s = poll_s * 2.0 ** min(refusals - 1, _MOST_DOUBLINGS)
        self.close(name, wait_s)
        return wait_s

    def close(self, endpoint: str, seconds: float) -> None:
        """Send nothing to an endpoint for a time."""
        self._closed_until[endpoint] = self._clock() + seconds

    def _left(self, endpoint: str, out: Sequence[Out]) -> int | None:
        ceiling = self._ceilings.get(endpoint)
        if ceiling is None:
            return None
        return max(ceiling - sum(o.tokens for o in out if o.endpoint == endpoint), 0)
