"""Keep to a rate: a token bucket by the minute, a learned pace, a cap on the last 24 hours.

A bucket's rate is a little below the limit, so that what it lets through in any minute, its burst
included, stays within a limit that the server enforces over a sliding minute. A request that is
larger than the burst would break that promise by its debt; it waits until the last minute leaves
room for all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

DAY_S = 86_400.0
_MINUTE_S = 60.0
_BURST_S = 1.0
"""A full bucket holds what one second allows."""
_MARGIN = 0.005
"""Of the limit; requests do not arrive as evenly as they are sent."""
_SLOT_S = 0.25
_LOWER = 0.97
_RAISED_FOR_S = 10.0
"""What a pause longer than this would teach is nothing."""
_RAISE_A_SECOND = 1.003


class Bucket:
    """A token bucket: `per_minute` units in any minute, in bursts of at most a second's worth.

    What is taken is an estimate; it is settled later, and the level may fall below zero by that.
    """

    def __init__(
        self, per_minute: int, clock: Callable[[], float], margin: float = _MARGIN
    ) -> None:
        """`margin` is the share of the limit that is left unused beside the burst."""
        self._clock = clock
        self.capacity = max(per_minute * _BURST_S / _MINUTE_S, 1.0)
        self.rate = (per_minute * (1 - margin) + 1 - self.capacity) / _MINUTE_S
        """Units a second; whole units, so that less than one more than the limit is none more."""
        self._most = per_minute * (1 - margin)
        self._level = self.capacity
        self._at = clock()
        self._taken: deque[list[float]] = deque()
        """Until when it counts, and how much."""
        self._minute = 0.0
        """What was taken in the last minute."""

    def opens_in(self, units: float) -> float:
        """Return after how many seconds so many units can be taken; 0: now.

        A request larger than the bucket goes when it is full, and leaves a debt.
        """
        self._refill()
        missing = min(units, self.capacity) - self._level
        wait = missing / self.rate if missing > 1e-9 else 0.0
        return wait if units <= self.capacity else max(wait, self._fits_in(units))

    def take(self, units: float) -> None:
        """Take units, also down to below zero; negative ones settle an estimate."""
        self._refill()
        self._level = min(self._level - units, self.capacity)
        self._note(units)

    def lower(self, remaining: float) -> None:
        """Believe a server that says that no more than so much remains."""
        self._refill()
        self._level = min(self._level, remaining)

    def drain(self, seconds: float) -> None:
        """Let nothing through for so long: the server refused although we kept to the rate."""
        self._refill()
        self._level = min(self._level, -seconds * self.rate)

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(self._level + (now - self._at) * self.rate, self.capacity)
        self._at = now
        while self._taken and self._taken[0][0] <= now:
            self._minute -= self._taken.popleft()[1]
        if not self._taken:
            self._minute = 0.0  # sums of floats drift

    def _note(self, units: float) -> None:
        """Write down what was taken, a little later than it was."""
        until = self._at - self._at % _SLOT_S + _SLOT_S + _MINUTE_S
        if not self._taken or self._taken[-1][0] < until:
            self._taken.append([until, 0.0])
        self._taken[-1][1] += units
        self._minute += units

    def _fits_in(self, units: float) -> float:
        """Return after how many seconds the last minute has room for all of a request."""
        over = self._minute + min(units, self._most) - self._most
        wait = 0.0
        for until, taken in self._taken:
            if over <= 1e-9:
                break
            over -= taken
            wait = until - self._at
        return wait


class Pace:
    """Learn the rate that an endpoint allows without saying so, from its refusals.

    Where several in a row are refused although nothing else is in flight, it is not for the load:
    what the endpoint let through in the last minute is then taken for its limit. From there the
    rate falls a little with each further refusal, and rises slowly without any.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds = [0] * 60
        self._second = int(clock())
        self._bucket: Bucket | None = None
        self._raised_at = 0.0
        self._admitted = False
        """Whether anything was let through since the rate was last set."""

    @property
    def per_minute(self) -> float | None:
        """The rate that was learned; null: none."""
        return None if self._bucket is None else self._bucket.rate * _MINUTE_S

    def opens_in(self) -> float:
        """Return after how many seconds a request may go; 0: now."""
        if self._bucket is None:
            return 0.0
        self._raise(self._bucket)
        return self._bucket.opens_in(1)

    def sent(self) -> None:
        """Count a request."""
        self._turn()
        self._seconds[self._second % 60] += 1
        if self._bucket is not None:
            self._bucket.take(1)

    def admitted(self) -> None:
        """Count a request that was let through."""
        self._admitted = True

    def forget(self, sent_at: float) -> None:
        """Leave a request out that was refused, or not sent after all."""
        self._turn()
        if self._second - int(sent_at) < 60:
            self._seconds[int(sent_at) % 60] -= 1

    def refused(self, *, alone: bool) -> bool:
        """Learn from a refusal that did not say when to come back; return whether a rate was found.

        `alone` tells that it was one of several in a row, with nothing else in flight.
        """
        now = self._clock()
        if self._bucket is not None:
            if self._admitted:
                self._admitted, self._raised_at = False, now
                self._bucket.rate *= _LOWER
        elif alone:
            self._turn()
            self._bucket = Bucket(max(sum(self._seconds), 1), self._clock)
            self._admitted, self._raised_at = False, now
            return True
        return False

    def _raise(self, bucket: Bucket) -> None:
        now = self._clock()
        bucket.rate *= _RAISE_A_SECOND ** min(now - self._raised_at, _RAISED_FOR_S)
        bucket.capacity = max(bucket.rate * _BURST_S, 1.0)
        self._raised_at = now

    def _turn(self) -> None:
        """Forget the seconds that are more than a minute old."""
        now = int(self._clock())
        for second in range(max(self._second + 1, now - 59), now + 1):
            self._seconds[second % 60] = 0
        self._second = max(now, self._second)


class DailyCap:
    """A cap on the last 24 hours, kept by the minute."""

    def __init__(
        self,
        per_day: int,
        clock: Callable[[], float],
        earlier: Iterable[tuple[float, float]] = (),
    ) -> None:
        """`earlier` holds (seconds ago, units) of what other processes took in the last day."""
        self._limit = per_day
        self._clock = clock
        self._spent: deque[list[float]] = deque()
        self._sum = 0.0
        now = clock()
        for ago, units in sorted(earlier, reverse=True):
            self._enter(now - ago, units)

    def opens_in(self, units: float) -> float:
        """Return after how many seconds so many units can be taken; 0: now."""
        now = self._clock()
        self._forget(now)
        over = self._sum + min(units, self._limit) - self._limit
        if over <= 0:
            return 0.0
        for minute, spent in self._spent:
            over -= spent
            if over <= 0:
                return max(minute + DAY_S + _MINUTE_S - now, 0.0)
        return DAY_S

    def take(self, units: float) -> None:
        """Take units; negative ones correct an estimate."""
        self._enter(self._clock(), units)

    def _enter(self, when: float, units: float) -> None:
        minute = when - when % _MINUTE_S
        if not self._spent or self._spent[-1][0] < minute:
            self._spent.append([minute, 0.0])
        self._spent[-1][1] += units
        self._sum += units

    def _forget(self, now: float) -> None:
        while self._spent and self._spent[0][0] + DAY_S + _MINUTE_S <= now:
            self._sum -= self._spent.popleft()[1]
